"""Risk curves against theory and by hand; the batched networks against a plain torch model."""

import math

import numpy as np
import pytest
import torch
from gaussian_theory import best_rate, dropout_risk
from one_solve import solve
from torch import nn

from mickle.errors import UsageError
from mickle.regression import risk
from mickle.regression.networks import Networks, fresh_networks, losses, train_networks


def curve_of(problems, sizes, rates, *, threshold=0, repeats=20, seed=0, intercept=False):
    """The risk curve of a world of problems."""
    found = risk.collect(problems, len(sizes), rates, repeats, "loo", seed, intercept, None)
    return risk.RiskCurve(tuple(sizes), tuple(rates), *found, threshold, "training rows", "excess risk")


def gaussian_curve(columns, sizes, rates, **settings):
    """In a world of x ~ N(0, I) with signal 1 and noise 0.25; no intercept is fitted."""

    def problems(generator):
        for size in sizes:
            yield risk.gaussian_problem(columns, size, 1.0, 0.25, None, generator)

    return curve_of(problems, sizes, rates, threshold=columns, **settings)


def feature_curve(rows, counts, rates, **settings):
    """Over the number of random features, at a fixed number of rows."""

    def problems(generator):
        yield from risk.feature_problems(rows, counts, 20, 0.25, generator)

    return curve_of(problems, counts, rates, intercept=True, threshold=rows - 1, **settings)


def test_a_gaussian_world_follows_its_theory() -> None:
    curve = gaussian_curve(60, [30, 57, 60, 66, 120, 240], [0.0, 0.2, 0.5], repeats=40)
    theory = np.array([[dropout_risk(n, 60, 1.0, 0.25, q) for q in curve.rates] for n in curve.sizes])
    best_theory = [dropout_risk(n, 60, 1.0, 0.25, best_rate(n, 60, 1.0, 0.25)) for n in curve.sizes]
    assert math.isinf(theory[2, 0])
    middle = np.isfinite(theory)
    middle[1, 0] = middle[3, 0] = False  # near the threshold a mean over 40 is still far from it
    ratio = curve.errors.mean(2)[middle] / theory[middle]
    assert ratio == pytest.approx(1, abs=0.12)
    assert np.median(curve.errors[2, 0]) > 10 * np.median(curve.errors[0, 0])  # the peak is there
    assert (np.median(curve.chosen_errors, 1) < 1.35 * np.array(best_theory)).all()
    assert risk.climb(np.median(curve.errors[:, 0], 1)) > 2
    assert risk.climb(np.median(curve.errors[:, 2], 1)) < 0.1


def test_repetitions_are_functions_of_seed_and_number() -> None:
    few, more = (gaussian_curve(10, [8, 20], [0.1], repeats=count, seed=3) for count in (2, 4))
    np.testing.assert_array_equal(few.errors, more.errors[:, :, :2])
    assert not np.array_equal(few.errors, gaussian_curve(10, [8, 20], [0.1], repeats=2, seed=4).errors)


def test_a_power_law_measures_risk_in_its_own_norm() -> None:
    spectrum = 1 / np.arange(1, 11)
    generator = np.random.default_rng(0)
    x, y, error = risk.gaussian_problem(10, 5000, 2.0, 0.5, spectrum, generator)
    assert x.var(0) == pytest.approx(spectrum, rel=0.1)
    weights = np.zeros((1, 10, 1))
    # A model of zeros errs by the signal's variance, which with the noise is the targets'.
    assert error(weights, np.zeros((1, 1)))[0] + 0.5 == pytest.approx(y.var(), rel=0.08)


def test_random_features_peak_where_they_are_as_many_as_rows() -> None:
    curve = feature_curve(60, [10, 30, 59, 120, 400], [0.0, 0.4], repeats=10)
    without, dropped = np.median(curve.errors, 2).T
    assert without.argmax() == 2
    assert without[2] > 5 * without[1]
    assert (np.diff(dropped) < 0).all()
    assert curve.threshold == 59


def test_subsets_grow_and_held_out_rows_stay_out() -> None:
    x = np.random.default_rng(0).normal(size=(40, 3))
    y = x @ np.array([1.0, 2, 3]) + np.arange(40) / 40
    curve = risk.sample_curve(x, y, [5, 30], [0.25], repeats=3, seed=7, held_out=0.25)
    for repeat in range(3):
        order = np.random.default_rng((7, repeat)).permutation(40)
        out, rows = order[:10], order[10:15]
        predicted = solve(x[rows], y[rows], 0.25).predict(x[out])[:, 0]
        assert curve.errors[0, 0, repeat] == pytest.approx(((predicted - y[out]) ** 2).mean())
    assert curve.threshold == 4
    with pytest.raises(UsageError, match="30 rows left"):
        risk.sample_curve(x, y, [31], [0.1])


def test_climb_is_the_largest_rise_of_a_later_over_an_earlier_error() -> None:
    assert risk.climb([4, 3, 2, 1]) == 0
    assert risk.climb([4, 1, 2, 0.5, 3, 1]) == pytest.approx(math.log(6))
    assert risk.climb([1]) == 0


@pytest.mark.parametrize(("rows", "near"), [(49, False), (50, True), (100, True), (200, True), (201, False)])
def test_near_the_threshold_is_a_factor_of_two(rows: int, near: bool) -> None:
    assert risk.near_threshold(rows, 100) is near


def test_table_and_figure_say_what_was_measured() -> None:
    curve = gaussian_curve(10, [5, 10, 30], [0.0, 0.3], repeats=5)
    rows = risk.summarise(curve)
    assert rows[2]["rates"]["0.3"]["median"] == pytest.approx(np.median(curve.errors[2, 1]))
    assert rows[0]["chosen"]["mean"] == pytest.approx(curve.chosen_errors[0].mean())
    assert rows[0]["chosen"]["low"] <= rows[0]["chosen"]["median"] <= rows[0]["chosen"]["high"]
    lines = risk.table(curve).markdown().splitlines()
    assert len(lines) == 5
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    picture = risk.picture(curve, "a title").svg()
    for text in ("no dropout", "rate 0.3", "chosen", "threshold", "a title", "training rows"):
        assert text in picture
    assert risk.spread(np.array([2.0]))["error"] == 0


# -- networks


def plain(networks: Networks, place: int, rate: float) -> nn.Sequential:
    """One of the networks as torch modules."""
    inputs, width = networks.first.shape[1:]
    model = nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(rate), nn.Linear(width, networks.last.shape[2])
    )
    with torch.no_grad():
        model[0].weight.copy_(networks.first[place].T)
        model[3].weight.copy_(networks.last[place].T)
        model[0].bias.zero_()
        model[3].bias.zero_()
    return model


def batch(count: int = 3, rows: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(count, rows, 5, generator=generator)
    labels = torch.randint(4, (count, rows), generator=generator)
    return inputs, nn.functional.one_hot(labels, 4).float()


@pytest.mark.parametrize("decays", [[0.0, 0.0, 0.0], [0.0, 0.1, 1.0]])
def test_many_networks_at_once_are_each_alone(decays: list[float]) -> None:
    inputs, targets = batch()
    networks = fresh_networks([4, 5, 6], 5, 8, 4)
    twins = [plain(networks, place, 0.0) for place in range(3)]
    final = train_networks(networks, inputs, targets, [0.0] * 3, steps=40, learning_rate=0.02, decays=decays)
    for place, twin in enumerate(twins):
        weights = [twin[0].weight, twin[3].weight]
        groups = [{"params": weights, "weight_decay": decays[place]},
                  {"params": [twin[0].bias, twin[3].bias], "weight_decay": 0.0}]  # fmt: skip
        adam = torch.optim.AdamW(groups, lr=0.02)
        for step in range(40):
            for group in adam.param_groups:
                group["lr"] = 0.02 * 0.5 * (1 + math.cos(math.pi * step / 40))
            adam.zero_grad()
            losses(twin(inputs[place])[None], targets[place][None]).sum().backward()
            adam.step()
        torch.testing.assert_close(twin(inputs[place]), networks(inputs)[place], rtol=1e-3, atol=1e-4)
        left = losses(twin(inputs[place])[None], targets[place][None])
        torch.testing.assert_close(left, final[place : place + 1], rtol=1e-3, atol=1e-4)


def test_every_network_has_its_own_rate() -> None:
    inputs, targets = batch(3, 300)
    networks = fresh_networks([1, 1, 1], 5, 64, 4)
    assert torch.equal(networks.first[0], networks.first[1])
    final = train_networks(networks, inputs[:1].expand(3, -1, -1), targets[:1].expand(3, -1, -1),
                           [0.0, 0.3, 0.8], steps=150, learning_rate=0.01)  # fmt: skip
    assert final[0] < final[1] < final[2]  # what dropout costs on the training rows


def test_masks_keep_the_mean_and_the_share() -> None:
    """With frozen weights the mean over masks of the loss is that of the closed form."""
    inputs, targets = batch(1, 50)
    networks = fresh_networks([0], 5, 16, 4)
    with torch.no_grad():
        hidden = torch.baddbmm(networks.first_bias, inputs, networks.first).relu()[0].double()
        exact = losses(networks(inputs), targets)[0].double()
        exact += 0.4 / 0.6 * (networks.last[0].double() ** 2 * (hidden**2).mean(0)[:, None]).sum()
        generator = torch.Generator().manual_seed(1)
        found = torch.stack([
            losses(networks(inputs, (torch.rand(1, 50, 16, generator=generator) < 0.6) / 0.6), targets)[0]
            for _ in range(2000)
        ]).double()  # fmt: skip
    assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(2000)


def test_the_head_of_a_dropped_network_is_the_closed_form() -> None:
    """Training only the head under dropout ends where the formula says: the masks are those of the theory."""
    inputs, targets = batch(1, 80)
    networks = fresh_networks([0], 5, 10, 4)
    hidden = torch.baddbmm(networks.first_bias, inputs, networks.first).relu().detach()
    # A body that passes its inputs through: identity, on inputs that are not negative.
    head = fresh_networks([0], 10, 10, 4)
    with torch.no_grad():
        head.first.copy_(torch.eye(10)[None])
    frozen = Networks(head.first.detach(), head.first_bias.detach(), head.last, head.last_bias)
    trained = Networks(*(part.requires_grad_() for part in frozen.parameters))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Networks, "parameters", property(lambda self: [self.last, self.last_bias]))
        train_networks(trained, hidden, targets, [0.4], steps=2500, learning_rate=0.01)
    found, features = trained(hidden)[0].detach().numpy(), hidden[0].double().numpy()
    expected, centred = (
        solve(features, targets[0].double().numpy(), 0.4, raw=raw).predict(features) for raw in (True, False)
    )
    spread = np.abs(expected - expected.mean(0)).mean()
    assert np.abs(found - expected).mean() < 0.08 * spread
    assert np.abs(found - centred).mean() > 0.12 * spread  # the layer does not centre
