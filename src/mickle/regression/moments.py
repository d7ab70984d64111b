"""A linear model under dropout from sums alone: rows stream by, D x D numbers stay.

The equations of :mod:`mickle.regression.ridge` need X'X, X'y, y'y and the means only; so does generalised
cross-validation of every rate, by which the rate is chosen here ("Dropout Drops Double Descent", arXiv 2305.16179,
asks for the best one). D is diag(X'X) before centring, as a layer of dropout has it. Sums are taken around the first
batch's means, so that large means do not eat the digits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mickle.errors import UsageError
from mickle.regression.ridge import Array, penalty


class Moments:
    """Running sums over rows of features [n, D] and targets [n, k], float64."""

    def __init__(self, intercept: bool = True) -> None:
        self.intercept, self.rows = intercept, 0
        self.gram = self.sums = self.shift = np.zeros(0)

    def add(self, features: Array, targets: Array) -> None:
        """Count rows in."""
        if not len(features):
            return
        joint = np.concatenate([features, targets], axis=1)
        if not self.rows:
            self.width, columns = features.shape[1], joint.shape[1]
            self.gram, self.sums = np.zeros((columns, columns)), np.zeros(columns)
            self.shift = joint.mean(0) if self.intercept else np.zeros(columns)
            self.least, self.most = features[0], features[0]
        self.least = np.minimum(self.least, features.min(0))
        self.most = np.maximum(self.most, features.max(0))
        joint = joint - self.shift
        self.gram += joint.T @ joint
        self.sums += joint.sum(0)
        self.rows += len(joint)

    def solve(self, rates: Sequence[float]) -> tuple[Array, Array, float]:
        """Weights [D, k], intercepts [k] and rate: of the given rates the one with the least GCV error.

        Rate 0 takes part only where it is the only one: without dropout, sums say too little near the threshold.
        """
        if self.rows < 1 + self.intercept:
            raise UsageError(f"there are {self.rows} rows to fit the head on", expected="two at least")
        centred = self.gram - np.outer(self.sums, self.sums) / self.rows if self.intercept else self.gram
        d = self.width
        gram, cross, total = centred[:d, :d], centred[:d, d:], np.trace(centred[d:, d:])
        means = self.shift + self.sums / self.rows if self.intercept else 0 * self.shift
        squares = np.diag(self.gram)[:d] + (2 * self.sums + self.rows * self.shift)[:d] * self.shift[:d]
        varying = (self.most > self.least) if self.intercept else squares > 0
        weights = np.zeros(cross.shape)
        penalties = np.array([penalty(rate) for rate in rates])
        if len(rates) > 1:
            penalties = penalties[penalties > 0]
        if len(penalties) == 1 and penalties[0] == 0:
            inner = np.linalg.lstsq(gram[np.ix_(varying, varying)], cross[varying], rcond=1e-12)[0]
            weights[varying], chosen = inner, 0.0
        else:
            scale = np.sqrt(squares[varying])[:, None]
            values, vectors = np.linalg.eigh(gram[np.ix_(varying, varying)] / scale / scale.T)
            scores = vectors.T @ (cross[varying] / scale)
            chosen = float(penalties[self.gcv(np.maximum(values, 0), (scores**2).sum(1), total, penalties).argmin()])
            weights[varying] = vectors @ (scores / (np.maximum(values, 0)[:, None] + chosen)) / scale
        return weights, means[d:] - means[:d] @ weights, chosen / (1 + chosen)

    def gcv(self, values: Array, scores: Array, total: float, penalties: Array) -> Array:
        """Generalised cross-validation [R]: residual squares over the square of what leverage leaves."""
        inverse = 1 / (values[:, None] + penalties)
        residual = total - scores @ (2 * inverse - values[:, None] * inverse**2)
        left = self.rows - self.intercept - values @ inverse
        return np.maximum(residual, 0) * self.rows / left**2
