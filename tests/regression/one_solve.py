"""Dropout before a linear model at one rate, the plain way: the twin that the path of all rates is held to."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from mickle.regression.ridge import Array, make_table, penalty


@dataclass(frozen=True)
class Solution:
    """Weights [p, k] and intercepts [k] at one rate, and how near the data is to the interpolation threshold.

    ``smallest_singular`` belongs to the centred inputs without their constant columns; ``at_threshold``: rows (less the
    intercept's) and columns differ by at most 1, so that without dropout the weights are set by noise.
    """

    weights: Array
    intercepts: Array
    rate: float
    smallest_singular: float
    at_threshold: bool
    constant: tuple[int, ...]

    def predict(self, inputs: ArrayLike) -> Array:
        """Predictions [n, k] for inputs [n, p]."""
        return np.asarray(inputs, float) @ self.weights + self.intercepts


def solve(
    inputs: ArrayLike,
    targets: ArrayLike,
    rate: float,
    *,
    intercept: bool = True,
    raw: bool = False,
    form: Literal["auto", "primal", "dual"] = "auto",
) -> Solution:
    """The minimiser of the expected dropout loss for inputs [n, p], targets [n] or [n, k].

    ``form``: "primal" solves p equations, "dual" n; "auto" the fewer. Rate 0 is minimum-norm least squares.
    """
    table = make_table(inputs, targets, intercept, raw)
    a = penalty(rate)
    x, y, d = table.inputs_varying, table.targets, table.squares[table.varying]
    singular = np.linalg.svd(x, compute_uv=False) if x.size else np.zeros(1)
    if a == 0:
        # rcond as for a rank: what is below is rounding, not data
        weights = np.linalg.lstsq(x, y, rcond=np.finfo(float).eps * max(x.shape))[0]
    elif form == "primal" or (form == "auto" and x.shape[1] <= x.shape[0]):
        scale = np.sqrt(d)
        scaled = x / scale
        weights = np.linalg.solve(scaled.T @ scaled + a * np.eye(len(d)), scaled.T @ y) / scale[:, None]
    else:
        weights = (x / d).T @ np.linalg.solve((x / d) @ x.T + a * np.eye(len(x)), y)
    found = np.zeros((len(table.squares), y.shape[1]))
    found[table.varying] = weights
    smallest = singular[: min(table.free_rows, x.shape[1])].min(initial=np.inf)
    return Solution(
        found, table.target_means - table.input_means @ found, rate,
        float(smallest) if np.isfinite(smallest) else 0.0,
        abs(table.free_rows - x.shape[1]) <= 1, tuple(map(int, np.flatnonzero(~table.varying))),
    )  # fmt: skip
