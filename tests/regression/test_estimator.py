"""The estimator keeps scikit-learn's contract, and is what the closed form says."""

import sys

import numpy as np
import pytest
from one_solve import solve
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from mickle.errors import UsageError
from mickle.regression.estimator import DropoutRegressor


@pytest.mark.parametrize(
    "estimator",
    [DropoutRegressor(), DropoutRegressor(rate=0.3, fit_intercept=False), DropoutRegressor(criterion="kfold")],
    ids=["auto", "fixed", "kfold"],
)
def test_every_check_of_scikit_learn(estimator: DropoutRegressor) -> None:
    results = check_estimator(estimator, on_fail=None)
    assert len(results) > 40
    assert [one["check_name"] for one in results if one["status"] in ("failed", "xfail")] == []


def data(rows: int = 60, columns: int = 40, outputs: int = 1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(3)
    x = generator.normal(size=(rows, columns)) * np.exp(generator.normal(size=columns)) + 2
    return x, x @ generator.normal(size=(columns, outputs)) + 5 * generator.normal(size=(rows, outputs)) + 1


def test_a_fixed_rate_is_ridge_on_columns_of_one_norm() -> None:
    x, y = data()
    model = DropoutRegressor(rate=0.3).fit(x, y[:, 0])
    scale = np.sqrt(((x - x.mean(0)) ** 2).sum(0) / len(x))
    ridge = Ridge(alpha=0.3 / 0.7 * len(x), solver="cholesky").fit(x / scale, y[:, 0])
    np.testing.assert_allclose(model.coef_, ridge.coef_ / scale, rtol=1e-9)
    np.testing.assert_allclose(model.predict(x), ridge.predict(x / scale), rtol=1e-9)
    assert model.rate_ == 0.3


def test_several_targets_share_a_rate_and_keep_their_shape() -> None:
    x, y = data(outputs=3)
    model = DropoutRegressor().fit(x, y)
    assert model.coef_.shape == (3, 40)
    assert model.predict(x).shape == y.shape
    one = solve(x, y[:, 1], model.rate_)
    np.testing.assert_allclose(model.coef_[1], one.weights[:, 0], rtol=1e-8, atol=1e-12)
    assert DropoutRegressor().fit(x, y[:, 1]).predict(x).shape == (60,)


def test_rates_and_criteria_are_followed() -> None:
    x, y = data()
    for criterion in ("loo", "gcv", "kfold"):
        assert DropoutRegressor(criterion=criterion, rates=[0.2, 0.6]).fit(x, y).rate_ in (0.2, 0.6)
    chosen = DropoutRegressor().fit(x, y[:, 0])
    assert chosen.path_.leave_one_out.min() == chosen.path_.leave_one_out[chosen.path_.rates == chosen.rate_]


def test_in_a_pipeline_and_a_search() -> None:
    x, y = data()
    search = GridSearchCV(
        make_pipeline(StandardScaler(), DropoutRegressor()), {"dropoutregressor__rate": [0.0, 0.3, 0.8]}, cv=3
    )
    search.fit(x, y[:, 0])
    assert search.best_params_["dropoutregressor__rate"] > 0  # 40 rows of a fold, 40 columns: the threshold


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": 1.0}, "not in"),
        ({"rate": -0.1}, "not in"),
        ({"rates": [0.5, 1.0]}, "not in"),
        ({"rates": []}, "no rate"),
        ({"rate": "best"}, "'auto'"),
        ({"criterion": "aic"}, "'loo'"),
    ],
)
def test_wrong_parameters_are_a_value_error(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DropoutRegressor(**settings).fit(*data())


def test_without_scikit_learn_the_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "mickle.regression.estimator")
    with pytest.raises(UsageError, match=r"pip install mickle\[studies\]"):
        import mickle.regression.estimator  # noqa: F401
