"""The closed forms against enumeration, scikit-learn, autograd, explicit refits and the Gaussian theory."""

import itertools
import math

import gaussian_theory as theory
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from one_solve import solve
from sklearn.linear_model import Ridge

from mickle.errors import UsageError
from mickle.regression import path as path_module
from mickle.regression.path import DEFAULT_RATES, choose_rate, fold_errors, trace_path
from mickle.regression.ridge import make_table


def draw(rows: int, columns: int, outputs: int = 1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Columns of different means and norms, targets with noise."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, columns)) * np.exp(generator.normal(size=columns)) + generator.normal(size=columns)
    return x, x @ generator.normal(size=(columns, outputs)) / columns + generator.normal(size=(rows, outputs)) + 3


# -- the objective and its minimiser


def test_the_expected_loss_is_the_average_over_all_masks() -> None:
    x, y = draw(1, 9)
    w, rate = np.random.default_rng(1).normal(size=9), 0.3
    average = 0.0
    for mask in itertools.product((0.0, 1.0), repeat=9):
        chance = math.prod(1 - rate if kept else rate for kept in mask)
        average += chance * (y[0, 0] - (x[0] * mask) @ w / (1 - rate)) ** 2
    expected = (y[0, 0] - x[0] @ w) ** 2 + rate / (1 - rate) * (w**2) @ x[0] ** 2
    assert average == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(30, 8), (8, 30), (12, 12)])
@pytest.mark.parametrize("intercept", [True, False])
def test_the_loss_has_no_slope_at_the_minimiser(rows: int, columns: int, intercept: bool) -> None:
    x, y = draw(rows, columns, 2)
    found = solve(x, y, 0.4, intercept=intercept)
    centred = x - x.mean(0) if intercept else x
    inputs, targets = torch.tensor(x), torch.tensor(y)
    weights = torch.tensor(found.weights, requires_grad=True)
    shift = torch.tensor(found.intercepts, requires_grad=True)
    norms = torch.tensor((centred**2).sum(0))
    loss = (targets - inputs @ weights - shift).square().sum() + 0.4 / 0.6 * (norms[:, None] * weights**2).sum()
    loss.backward()
    assert weights.grad.abs().max() < 1e-9 * norms.max()
    assert not intercept or shift.grad.abs().max() < 1e-10
    assert intercept or (found.intercepts == 0).all()


def test_training_with_torch_dropout_ends_at_the_closed_form() -> None:
    torch.manual_seed(0)
    generator = np.random.default_rng(5)
    x = generator.normal(size=(100, 20))
    y = x @ generator.normal(size=20) + generator.normal(size=100)
    exact = solve(x, y, 0.3, intercept=False).weights[:, 0]
    inputs, targets = torch.tensor(x), torch.tensor(y)
    weights, average = torch.zeros(20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)
    for step in range(12000):
        dropped = torch.nn.functional.dropout(inputs, 0.3)
        weights -= 0.3 * dropped.T @ (dropped @ weights - targets) / 100
        average += weights * (step >= 2000) / 10000
    assert np.linalg.norm(average.numpy() - exact) < 0.015 * np.linalg.norm(exact)


def test_the_mean_over_masks_nears_the_objective_as_one_over_root() -> None:
    x, y = draw(40, 6)
    w, rate, generator = np.ones(6) / 3, 0.5, np.random.default_rng(2)
    exact = ((y[:, 0] - x @ w) ** 2).sum() + (w**2 * (x**2).sum(0)).sum()
    masks = generator.random((20000, 40, 6)) >= rate
    losses = ((y[:, 0] - (x * masks) @ w / (1 - rate)) ** 2).sum(1)
    error = losses.std() / np.sqrt(len(losses))
    assert abs(losses.mean() - exact) < 4 * error < 0.05 * exact


# -- identities


@pytest.mark.parametrize(("rows", "columns"), [(200, 10), (30, 29), (30, 30), (10, 80)])
def test_it_is_ridge_on_columns_of_one_norm(rows: int, columns: int) -> None:
    x, y = draw(rows, columns, 3)
    rate = 0.25
    scale = np.sqrt((x**2).sum(0) / rows)
    ridge = Ridge(alpha=rate / (1 - rate) * rows, fit_intercept=False, solver="cholesky").fit(x / scale, y)
    found = solve(x, y, rate, intercept=False).weights
    np.testing.assert_allclose(found, ridge.coef_.T / scale[:, None], rtol=1e-10, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(2, 14),
    columns=st.integers(1, 14),
    outputs=st.integers(1, 3),
    intercept=st.booleans(),
    rate=st.sampled_from([0.0, 1e-4, 0.1, 0.5, 0.99]),
    seed=st.integers(0, 999),
)
def test_primal_dual_and_path_agree_and_left_out_errors_are_refits(
    rows: int, columns: int, outputs: int, intercept: bool, rate: float, seed: int
) -> None:
    x, y = draw(rows, columns, outputs, seed)
    path = trace_path(x, y, [rate], intercept=intercept)
    plain = solve(x, y, rate, intercept=intercept)
    scale = np.abs(plain.weights).max()
    np.testing.assert_allclose(path.weights(0), plain.weights, rtol=0, atol=1e-8 * scale)
    np.testing.assert_allclose(path.intercepts(path.weights(0)), plain.intercepts, rtol=1e-6, atol=1e-8 * (1 + scale))
    if rate > 0:
        primal, dual = (solve(x, y, rate, intercept=intercept, form=form).weights for form in ("primal", "dual"))
        np.testing.assert_allclose(primal, dual, rtol=0, atol=1e-9 * scale / min(1, 100 * rate))
    if rows > 1 + intercept:
        refits = leave_out(x, y, rate, intercept)
        assert path.leave_one_out[0] == pytest.approx((refits**2).mean(), rel=1e-6)
        if rows > 2:
            error = (refits**2).mean(1).std(ddof=1) / np.sqrt(rows)
            assert path.leave_one_out_deviation[0] == pytest.approx(error, rel=1e-5)


def leave_out(x: np.ndarray, y: np.ndarray, rate: float, intercept: bool) -> np.ndarray:
    """n refits with D of all rows, the slow and plain way."""
    a = rate / (1 - rate)
    norms = ((x - x.mean(0) if intercept else x) ** 2).sum(0)
    found = []
    for row in range(len(x)):
        rest = np.arange(len(x)) != row
        shift, level = (x[rest].mean(0), y[rest].mean(0)) if intercept else (0 * x[0], 0 * y[0])
        inner = x[rest] - shift
        # Ridge as least squares on more rows: no squared condition number, and rate 0 is minimum norm.
        stacked = np.r_[inner, np.diag(np.sqrt(a * norms))] if a else inner
        wanted = np.r_[y[rest] - level, np.zeros((len(norms), y.shape[1]))] if a else y[rest] - level
        weights = np.linalg.lstsq(stacked, wanted)[0]
        found.append(y[row] - level - (x[row] - shift) @ weights)
    return np.array(found)


@pytest.mark.parametrize(("rows", "columns"), [(60, 12), (12, 60), (25, 24), (25, 25)])
def test_fifty_rates_of_the_path_are_fifty_solves(rows: int, columns: int) -> None:
    x, y = draw(rows, columns, 2)
    path = trace_path(x, y)
    assert len(path.rates) == 50
    weights = path.weights()
    x_centred = x - x.mean(0)
    for place, rate in enumerate(DEFAULT_RATES):
        single = solve(x, y, rate)
        np.testing.assert_allclose(weights[place], single.weights, atol=1e-9 * np.abs(single.weights).max())
        if rate == 0:
            continue
        a, norms = rate / (1 - rate), (x_centred**2).sum(0)
        hat = x_centred @ np.linalg.solve(x_centred.T @ x_centred + a * np.diag(norms), x_centred.T)
        residuals = y - y.mean(0) - hat @ (y - y.mean(0))
        gcv = (residuals**2).mean() / (1 - (np.trace(hat) + 1) / rows) ** 2
        assert path.gcv[place] == pytest.approx(gcv, rel=1e-6)
        assert path.degrees[place] == pytest.approx(np.trace(hat), rel=1e-9)


def test_blocks_of_rates_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(20, 9, 2)
    whole = trace_path(x, y)
    monkeypatch.setattr(path_module, "BLOCK", 100)
    parts = trace_path(x, y)
    np.testing.assert_allclose(parts.leave_one_out, whole.leave_one_out, rtol=1e-12)
    np.testing.assert_allclose(parts.gcv, whole.gcv, rtol=1e-12)


def test_tiny_rates_do_not_drown_in_the_gram_matrix() -> None:
    for rows, columns in ((14, 9), (9, 14), (10, 9)):
        x, y = draw(rows, columns)
        path = trace_path(x, y, [1e-12])
        refits = leave_out(x, y, 1e-12, True)
        assert path.leave_one_out[0] == pytest.approx((refits**2).mean(), rel=1e-3)


@pytest.mark.parametrize(("rows", "columns"), [(40, 7), (7, 40)])
def test_units_of_a_column_do_not_matter(rows: int, columns: int) -> None:
    x, y = draw(rows, columns)
    factors = np.geomspace(1e-3, 1e4, columns)
    before, after = solve(x, y, 0.2), solve(x * factors, y, 0.2)
    np.testing.assert_allclose(after.weights * factors[:, None], before.weights, rtol=1e-8, atol=1e-13)
    np.testing.assert_allclose(after.predict(x * factors), before.predict(x), rtol=1e-10)
    ridge = Ridge(alpha=1.0)
    changed = ridge.fit(x * factors, y).predict(x * factors)
    assert np.abs(changed - ridge.fit(x, y).predict(x)).max() > 1e-3  # plain ridge is not so


# -- limits


def test_rate_zero_is_least_squares_and_rate_near_one_shrinks_to_nothing() -> None:
    for rows, columns in ((30, 6), (6, 30)):
        x, y = draw(rows, columns)
        centred = x - x.mean(0)
        exact = np.linalg.lstsq(centred, y - y.mean(0))[0]
        np.testing.assert_allclose(solve(x, y, 0.0).weights, exact, atol=1e-10)
        near = 1 - 1e-7
        first = (1 - near) / near * (centred.T @ y) / (centred**2).sum(0)[:, None]
        np.testing.assert_allclose(solve(x, y, near).weights, first, rtol=1e-4)


def test_orthogonal_columns_keep_the_share_that_is_kept() -> None:
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(30, 5)))[0] * np.array([1, 2, 3, 4, 5.0])
    y = np.random.default_rng(1).normal(size=30)
    ols = np.linalg.lstsq(x, y)[0]
    np.testing.assert_allclose(solve(x, y, 0.3, intercept=False).weights[:, 0], 0.7 * ols, rtol=1e-12)


def test_on_the_threshold_there_is_an_answer_and_a_flag() -> None:
    x, y = draw(20, 20)
    found = solve(x, y, 0.0, intercept=False)
    assert np.isfinite(found.weights).all()
    assert found.at_threshold
    assert found.smallest_singular == pytest.approx(np.linalg.svd(x, compute_uv=False).min())
    assert solve(x[:, :19], y, 0.0).at_threshold
    assert not solve(x[:, :10], y, 0.0).at_threshold
    path = trace_path(x, y)
    assert np.isfinite([path.leave_one_out, path.gcv]).all()


def test_constant_columns_get_no_weight_and_equal_columns_share_theirs() -> None:
    x, y = draw(30, 3)
    wide = np.c_[x[:, 0], np.full(30, 0.1), x[:, 1:], x[:, 0]]
    for rate in (0.0, 0.3):
        found = solve(wide, y, rate)
        assert found.constant == (1,)
        assert found.weights[1, 0] == 0
        assert found.weights[0, 0] == pytest.approx(found.weights[4, 0])
        assert trace_path(wide, y, [rate]).weights(0) == pytest.approx(found.weights)
    alone, doubled = solve(x[:, :1], y, 0.5).weights[0, 0], solve(x[:, [0, 0]], y, 0.5).weights[:, 0].sum()
    ols = solve(x[:, :1], y, 0.0).weights[0, 0]
    # One column: ols / (1 + a). Two halves w each, penalty 2 a (w/2)^2: ols / (1 + a / 2).
    assert alone == pytest.approx(ols / 2)
    assert doubled == pytest.approx(ols / 1.5)


# -- theory


def test_risks_of_the_theory() -> None:
    risk = theory.least_squares_risk
    assert risk(50, 100, 1, 0.25) == pytest.approx(0.5 + 0.25 * 50 / 49)
    assert risk(200, 100, 1, 0.25) == pytest.approx(0.2525, abs=1e-4)
    assert risk(500, 100, 1, 0.25) == pytest.approx(0.0627, abs=1e-4)
    assert all(math.isinf(risk(n, 100, 1, 0.25)) for n in (99, 100, 101))
    at = theory.dropout_risk
    assert [round(at(n, 100, 1, 0.25, 0.3), 3) for n in (100, 200, 500)] == [0.406, 0.240, 0.145]
    best = theory.best_rate
    assert (best(100, 100, 1, 0.25), round(best(500, 100, 1, 0.25), 3)) == (pytest.approx(0.2), 0.048)
    assert round(at(100, 100, 1, 0.25, 0.2), 3) == 0.390
    assert round(at(500, 100, 1, 0.25, best(500, 100, 1, 0.25)), 3) == 0.058
    assert at(200, 100, 1, 0.25, 1e-9) == pytest.approx(0.25, rel=1e-3)  # p n / (n - p - 1) without the 1


def test_the_best_rate_is_the_least_risk_and_its_curve_never_rises() -> None:
    rates = np.linspace(0.01, 0.99, 400)
    for rows in (20, 100, 300):
        risks = [theory.dropout_risk(rows, 100, 1, 0.5, rate) for rate in rates]
        assert rates[int(np.argmin(risks))] == pytest.approx(theory.best_rate(rows, 100, 1, 0.5), abs=0.01)
    curve = [theory.dropout_risk(n, 100, 1, 0.5, theory.best_rate(n, 100, 1, 0.5)) for n in range(10, 500, 5)]
    assert all(later < earlier for earlier, later in itertools.pairwise(curve))


def test_light_dropout_on_noisy_data_still_rises() -> None:
    """Largest rise over n = 10..500 of the asymptotic formula, p = 100: known values, by keep probability."""
    known = {
        (1, 0.25): {0.99: 0.438, 0.98: 0.125, 0.95: 0, 0.90: 0, 0.80: 0},
        (1, 1): {0.99: 3.53, 0.98: 2.10, 0.95: 0.875, 0.90: 0.316, 0.80: 0.037},
        (1, 4): {0.99: 16.7, 0.98: 10.8, 0.95: 5.74, 0.90: 3.20, 0.80: 1.49},
    }
    for (signal, noise), rises in known.items():
        for keep, expected in rises.items():
            curve = [theory.dropout_risk(n, 100, signal, noise, 1 - keep) for n in range(10, 501, 5)]
            lowest, rise = math.inf, 0.0
            for value in curve:
                lowest = min(lowest, value)
                rise = max(rise, value - lowest)
            assert rise == pytest.approx(expected, rel=0.01, abs=1e-3), (signal, noise, keep)


def test_measured_risk_is_the_theory() -> None:
    generator = np.random.default_rng(0)
    for rows, rate in ((100, 0.3), (200, 0.3), (500, 0.3), (50, 0.0), (60, 0.1)):
        found = []
        for _ in range(80):
            truth = generator.normal(size=100)
            truth /= np.linalg.norm(truth)
            x = generator.normal(size=(rows, 100))
            y = x @ truth + 0.5 * generator.normal(size=rows)
            found.append(((solve(x, y, rate, intercept=False).weights[:, 0] - truth) ** 2).sum())
        expected = theory.dropout_risk(rows, 100, 1, 0.25, rate)
        error = np.std(found) / np.sqrt(80)
        assert error < 0.025 * expected
        assert abs(np.mean(found) - expected) < 3 * error + 0.01 * expected


# -- the choice


def test_the_chosen_rate_is_near_the_best_one() -> None:
    generator = np.random.default_rng(4)
    for criterion in ("loo", "gcv", "kfold"):
        chosen = []
        for _ in range(8):
            truth = generator.normal(size=40) / np.sqrt(40)
            x = generator.normal(size=(80, 40))
            path = trace_path(x, x @ truth + generator.normal(size=80))
            chosen.append(path.rates[choose_rate(path, criterion)])
        assert np.median(chosen) == pytest.approx(theory.best_rate(80, 40, 1, 1), abs=0.15)


def test_few_rows_lean_to_more_dropout() -> None:
    x, y = draw(20, 10)
    path = trace_path(x, y)
    place = choose_rate(path)
    best = path.leave_one_out.argmin()
    assert path.rates[place] >= path.rates[best]
    assert path.leave_one_out[place] <= path.leave_one_out[best] + 2 * path.leave_one_out_deviation[best]
    assert path.rates[place] == max(
        path.rates[path.leave_one_out <= path.leave_one_out[best] + 2 * path.leave_one_out_deviation[best]]
    )


def test_as_many_folds_as_rows_are_leave_one_out_with_fresh_norms() -> None:
    x, y = draw(15, 4)
    path = trace_path(x, y, [0.2, 0.6])
    folds, _ = fold_errors(path, 15, 0)
    slow = []
    for rate in (0.2, 0.6):
        rows = [np.arange(15) != row for row in range(15)]
        predicted = [solve(x[rest], y[rest], rate).predict(x[~rest])[0] for rest in rows]
        slow.append(((np.array(predicted) - y) ** 2).mean())
    np.testing.assert_allclose(folds, slow, rtol=1e-9)


# -- what is refused


@pytest.mark.parametrize("rate", [1.0, -0.1, 2.0, math.nan])
def test_a_rate_outside_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match=r"not in \[0, 1\)"):
        solve(np.eye(3), np.ones(3), rate)


def test_bad_numbers_are_named_by_row_and_column() -> None:
    x, y = draw(6, 3)
    broken = x.copy()
    broken[4, 1] = np.nan
    with pytest.raises(UsageError, match="row 4, column 1"):
        make_table(broken, y)
    with pytest.raises(UsageError, match="row 2"):
        make_table(x, np.r_[1, 2, np.inf, 4, 5, 6])
    with pytest.raises(UsageError, match="not numbers"):
        make_table(x.astype(str), y)
    with pytest.raises(UsageError, match="object"):
        make_table(x.astype(object), y)
    with pytest.raises(UsageError, match="two rows at least"):
        make_table(x[:1], y[:1])
    with pytest.raises(UsageError, match="at least one column"):
        make_table(x[:, :0], y)
    with pytest.raises(UsageError, match="6 rows"):
        make_table(x, y[:5])
    with pytest.raises(UsageError, match="lies beyond"):
        make_table(x * 1e160, y)


@pytest.mark.parametrize(("rows", "columns"), [(20, 6), (6, 20), (9, 8)])
def test_raw_columns_are_penalised_with_their_means(rows: int, columns: int) -> None:
    x, y = draw(rows, columns)
    x[:, 0] = 2.0  # constant: the intercept does its work, at no penalty
    found = solve(x, y, 0.3, raw=True)
    ones = np.c_[np.ones(rows), x]
    norms = np.r_[0.0, (x**2).sum(0)]
    exact = np.linalg.solve(ones.T @ ones + 0.3 / 0.7 * np.diag(norms), ones.T @ y)
    np.testing.assert_allclose(found.weights, exact[1:], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(found.intercepts, exact[0], rtol=1e-8)
    path = trace_path(x, y, [0.3, 0.6], raw=True)
    np.testing.assert_allclose(path.weights(0), exact[1:], rtol=1e-8, atol=1e-10)
    left = []
    for row in range(rows):
        rest = np.arange(rows) != row
        inner = np.linalg.solve(ones[rest].T @ ones[rest] + 0.3 / 0.7 * np.diag(norms), ones[rest].T @ y[rest])
        left.append(((y[row] - ones[row] @ inner) ** 2).mean())
    assert path.leave_one_out[0] == pytest.approx(np.mean(left), rel=1e-8)
    assert not np.allclose(found.weights, solve(x, y, 0.3).weights, rtol=1e-2)
    folds, _ = fold_errors(path, 3, 0)
    order = np.random.default_rng(0).permutation(rows)
    slow = [(y[out] - solve(np.delete(x, out, 0), np.delete(y, out, 0), 0.6, raw=True).predict(x[out])) ** 2
            for out in (order[fold::3] for fold in range(3))]  # fmt: skip
    assert folds[1] == pytest.approx(np.concatenate(slow).mean(), rel=1e-8)
