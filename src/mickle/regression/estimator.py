"""Dropout before a linear model as a scikit-learn estimator, the rate chosen by leave-one-out.

"Dropout Drops Double Descent" (arXiv 2305.16179): at the right rate the error falls monotonically in the number of
rows. The equations are in :mod:`mickle.regression.ridge`; this module only gives them scikit-learn's interface.

    model = DropoutRegressor().fit(inputs, targets)     # model.rate_ is the chosen share of dropped inputs
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mickle.errors import UsageError
from mickle.regression.path import RatePath, choose_rate, trace_path
from mickle.regression.ridge import penalty

try:
    from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError:
    raise UsageError(
        "DropoutRegressor needs scikit-learn, which is not installed", todo="pip install mickle[studies]"
    ) from None


class DropoutRegressor(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Linear regression under dropout of its inputs, at a given rate or the best one.

    Parameters
    ----------
    rate : "auto" or the share of inputs dropped, in [0, 1). 0 is minimum-norm least squares.
    criterion : how "auto" chooses: "loo" (leave-one-out), "gcv" or "kfold" (five folds, shuffled from seed 0).
    rates : the rates "auto" chooses among; None for 0 and 49 others from 1e-4 to 0.999.
    fit_intercept : whether to fit an intercept, which is never dropped.

    Attributes
    ----------
    coef_ : [p], or [k, p] for targets [n, k]. intercept_ : a number, or [k]. rate_ : the rate used.
    path_ : the :class:`~mickle.regression.path.RatePath` over ``rates`` (over the one rate where it was given).
    """

    def __init__(
        self,
        rate: float | str = "auto",
        criterion: str = "loo",
        rates: Sequence[float] | None = None,
        fit_intercept: bool = True,
    ) -> None:
        self.rate = rate
        self.criterion = criterion
        self.rates = rates
        self.fit_intercept = fit_intercept

    def fit(self, X: Any, y: Any) -> DropoutRegressor:
        """Fit weights, and the rate where it is "auto". X [n, p], y [n] or [n, k]."""
        X, y = validate_data(self, X, y, multi_output=True, y_numeric=True, dtype=np.float64)
        if len(X) < 1 + self.fit_intercept:
            raise ValueError("n_samples = 1: an intercept and weights need two samples at least")
        self.path_ = self._path(X, y)
        place = choose_rate(self.path_, self.criterion) if self.rate == "auto" else 0  # type: ignore[arg-type]
        weights = self.path_.weights(place)
        intercepts = self.path_.intercepts(weights)
        self.rate_ = float(self.path_.rates[place])
        self.coef_ = weights.T if np.ndim(y) > 1 else weights[:, 0]
        self.intercept_ = intercepts if np.ndim(y) > 1 else float(intercepts[0])
        return self

    def predict(self, X: Any) -> Any:
        """Predictions [n], or [n, k], for X [n, p]."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        return X @ self.coef_.T + self.intercept_

    def _path(self, inputs: Any, targets: Any) -> RatePath:
        """The path over the rates asked for. ValueError, as scikit-learn wants it, for wrong parameters."""
        if self.criterion not in ("loo", "gcv", "kfold"):
            raise ValueError(f"criterion is {self.criterion!r}, not one of 'loo', 'gcv', 'kfold'")
        if isinstance(self.rate, str) and self.rate != "auto":
            raise ValueError(f"rate is {self.rate!r}, not 'auto' or a number in [0, 1)")
        rates = self.rates if self.rate == "auto" else [float(self.rate)]
        try:
            for rate in () if rates is None else rates:
                penalty(rate)
            return trace_path(inputs, targets, rates, intercept=self.fit_intercept)
        except UsageError as error:
            raise ValueError(str(error)) from None
