"""All dropout rates of a linear model from one decomposition, their errors left out, and the choice of a rate.

"Dropout Drops Double Descent" (arXiv 2305.16179) asks for the best rate; it is found here from the data alone. With
X D^-1/2 = U s V' (D, a and the loss as in :mod:`mickle.regression.ridge`), for every rate

    w(a) = D^-1/2 V diag(s / (s^2 + a)) U'y,    H = U diag(s^2 / (s^2 + a)) U',    e = y - H y
    leave-one-out: mean of (e_i / (1 - H_ii))^2,    GCV: mean(e^2) / (1 - tr H / n)^2

The code takes eigenvectors of the smaller of the two Gram matrices; residuals and leverages of all rates are then
one matrix product each. Leave-one-out holds D fixed and fits the intercept again, exactly so: a refit would also
change D, by a share 1/n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from mickle.errors import UsageError
from mickle.regression.ridge import Array, Table, make_table, penalty, rate_of

Criterion = Literal["loo", "gcv", "kfold"]
DEFAULT_RATES = (0.0, *(rate_of(float(a)) for a in np.geomspace(1e-4, 1e3, 49)))
FEW_ROWS = 30  # below this leave-one-out is so noisy that the choice leans to more dropout
NO_LEVERAGE_LEFT = 1e-10  # 1 - H_ii below this is rounding
GRAM_ROOM = 1e-7  # a penalty below this share of the largest eigenvalue drowns in the Gram matrix's rounding
BLOCK = 1 << 17  # numbers of residuals that are held at a time: 1 MB


@dataclass(frozen=True)
class RatePath:
    """Every rate's errors; weights on demand. Errors are means over rows and outputs of squared residuals.

    ``leave_one_out_deviation`` is its standard error over rows. ``degrees`` is tr H without the intercept.
    """

    table: Table
    rates: Array
    leave_one_out: Array
    leave_one_out_deviation: Array
    gcv: Array
    degrees: Array
    basis: Basis
    at_zero: Array | None  # weights [p, k] of rate 0 where the basis does not give them

    def weights(self, place: int | None = None) -> Array:
        """Weights [p, k] at one place of the path, or [R, p, k] at all."""
        places = np.arange(len(self.rates)) if place is None else np.array([place])
        shrink = self.basis.inverse(self.rates[places] / (1 - self.rates[places]))  # [m, r]
        inner = shrink[:, :, None] * self.basis.scores[:, None, :]
        width, (modes, count, outputs) = len(self.table.squares), inner.shape
        found = np.zeros((count, width, outputs))
        product = self.basis.turn @ inner.reshape(modes, -1)
        if not self.basis.primal:
            product = self.table.inputs_varying.T @ product / self.table.squares[self.table.varying, None]
        found[:, self.table.varying] = product.reshape(-1, count, outputs).transpose(1, 0, 2)
        if self.at_zero is not None:
            found[self.rates[places] == 0] = self.at_zero
        return found if place is None else found[0]

    def intercepts(self, weights: Array) -> Array:
        """Intercepts [..., k] that belong to weights [..., p, k]."""
        return self.table.target_means - self.table.input_means @ weights


@dataclass(frozen=True)
class Basis:
    """Eigenvalues [m] of the smaller Gram matrix of X D^-1/2 = U s V', and what turns them into residuals and weights.

    Primal (p columns): turn is D^-1/2 V [p, m], residual = y - X turn (scores / (values + a)), weights =
    turn (scores / (values + a)). Dual (n rows): turn is U [n, m], residual = a turn (scores / (values + a)), where
    the factor a cancels in every ratio, weights = D^-1 X' turn (scores / (values + a)).
    """

    values: Array
    turn: Array
    scores: Array  # [m, k]: of y
    primal: bool

    def inverse(self, penalties: Array) -> Array:
        """1 / (values + a) [m, R]; 0 for a null mode without penalty, which takes no weight."""
        total = self.values[:, None] + penalties
        return np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)


def trace_path(
    inputs: ArrayLike,
    targets: ArrayLike,
    rates: Sequence[float] | None = None,
    *,
    intercept: bool = True,
    raw: bool = False,
) -> RatePath:
    """Leave-one-out and GCV errors at every rate (default: 0 and 49 from 1e-4 to 0.999), by one decomposition.

    ``raw`` as in :func:`~mickle.regression.ridge.make_table`. Rate 0 takes a second decomposition where columns
    outnumber rows or nearly depend on each other.
    """
    table = make_table(inputs, targets, intercept, raw)
    grid = np.array(DEFAULT_RATES if rates is None else rates, float)
    if grid.size == 0:
        raise UsageError("there is no rate to choose from", expected="one rate at least, in [0, 1)")
    penalties = np.array([penalty(float(rate)) for rate in grid])
    basis = decompose(table, penalties)
    found, at_zero = np.empty((5, len(grid))), None
    plain = (penalties == 0) & (not well_conditioned(basis))
    found[:, ~plain] = errors(table, basis, penalties[~plain])
    plain |= (penalties == 0) & (found[4] < NO_LEVERAGE_LEFT)
    if plain.any():
        summary, at_zero = least_squares(table)
        found[:, plain] = summary[:, None]
    return RatePath(table, grid, found[0], found[1], found[2], found[3], basis, at_zero)


def well_conditioned(basis: Basis) -> bool:
    """Whether rate 0 may use the Gram matrix: all columns say something of their own."""
    return basis.primal and bool(basis.values.size and basis.values.min() > 1e-6 * basis.values.max())


def decompose(table: Table, penalties: Array) -> Basis:
    """Eigenvectors of the smaller Gram matrix; of X D^-1/2 itself where a penalty is too small for squares."""
    x, scale = table.inputs_varying, np.sqrt(table.squares[table.varying])
    primal = x.shape[1] < table.free_rows
    scaled = None if primal else x / scale
    gram = x.T @ x / scale / scale[:, None] if scaled is None else scaled @ scaled.T
    if not primal and table.intercept:
        gram = reflect(reflect(gram).T)[1:, 1:]
    values, vectors = np.linalg.eigh(gram)
    smallest = penalties[penalties > 0].min(initial=np.inf)
    if values.size and smallest < GRAM_ROOM * values[-1]:
        scaled = x / scale
        short = scaled if primal or not table.intercept else reflect(scaled)[1:]
        left, singular, right = np.linalg.svd(short, full_matrices=False)
        values, vectors = singular**2, right.T if primal else left
    values = np.maximum(values, 0.0)
    if primal:
        turn = vectors / scale[:, None]
        return Basis(values, turn, turn.T @ (x.T @ table.targets), True)
    if table.intercept:
        vectors = reflect(np.vstack([np.zeros((1, vectors.shape[1])), vectors]))
    return Basis(values, vectors, vectors.T @ table.targets, False)


def reflect(rows: Array) -> Array:
    """The Householder reflection [n, m] that swaps the constant vector and the first axis (up to sign).

    What is left of centred rows below the first has n - 1 rows and no null vector that the intercept owns.
    """
    root = 1 / np.sqrt(len(rows))
    along = (root * rows.sum(0) + rows[0]) / (1 + root)
    found = rows - root * along
    found[0] -= along
    return found


def errors(table: Table, basis: Basis, penalties: Array) -> Array:
    """Leave-one-out, its standard error, GCV, degrees of freedom and the least 1 - H_ii, [5, R].

    One product serves all rates. Rows go by in blocks that stay in the processor's cache.
    """
    rows, outputs = table.targets.shape
    shrink = basis.inverse(penalties)  # [m, R]
    inner = (shrink[:, :, None] * basis.scores[:, None, :]).reshape(len(shrink), -1)
    squared, fourth, residual, leverage = np.zeros((4, len(penalties)))
    least = np.full(len(penalties), np.inf)
    step = max(1, BLOCK // max(1, len(penalties) * outputs))
    for start in range(0, rows, step):
        part = slice(start, start + step)
        vectors = table.inputs_varying[part] @ basis.turn if basis.primal else basis.turn[part]
        left, misses = vectors**2 @ shrink, (vectors @ inner).reshape(len(vectors), -1, outputs)
        if basis.primal:
            left, misses = (1 - table.intercept / rows) - left, table.targets[part, None] - misses
        squares = np.einsum("irk,irk->ir", misses, misses) / outputs
        residual += squares.sum(0)
        leverage += left.sum(0)
        least = np.minimum(least, left.min(0))
        with np.errstate(divide="ignore", invalid="ignore"):  # rate 0 where a row decides alone is done over
            squares /= left**2
        squared += squares.sum(0)
        fourth += np.einsum("ir,ir->r", squares, squares)
    mean = squared / rows
    deviation = np.sqrt(np.maximum(fourth / rows - mean**2, 0) / max(rows - 1, 1))
    return np.stack([mean, deviation, residual * rows / leverage**2, shrink.T @ basis.values, least])


def least_squares(table: Table) -> tuple[Array, Array]:
    """The same four numbers and the weights [p, k] of minimum-norm least squares.

    Where the fit passes through a row, both residual and 1 - H_ii vanish; their ratio's limit is that of X X'^+.
    """
    x, y = table.inputs, table.targets
    u, s, v = np.linalg.svd(x, full_matrices=False)
    rank = int((s > np.finfo(float).eps * max(x.shape) * s.max(initial=0)).sum())
    u, s, v = u[:, :rank], s[:rank], v[:rank]
    scores = u.T @ y
    weights = v.T @ (scores / s[:, None])
    through = rank >= table.free_rows
    residuals, left = y - u @ scores, 1 - table.intercept / len(x) - (u**2).sum(1)
    limit, limit_left = u @ (scores / s[:, None] ** 2), (u**2) @ s**-2.0
    inside = (left < NO_LEVERAGE_LEFT) | through
    residuals[inside], left[inside] = limit[inside], limit_left[inside]
    left = np.maximum(left, np.finfo(float).tiny)
    squared = ((residuals / left[:, None]) ** 2).mean(1)
    deviation = squared.std() / np.sqrt(max(len(squared) - 1, 1))
    if through:
        gcv = (limit**2).mean() / max(limit_left.mean() ** 2, np.finfo(float).tiny)
    else:
        gcv = ((y - u @ scores) ** 2).mean() / ((table.free_rows - rank) / len(x)) ** 2
    return np.array([squared.mean(), deviation, gcv, rank, left.min()]), weights


# -- the choice of a rate ------------------------------------------------------------------------------------------


def choose_rate(path: RatePath, criterion: Criterion = "loo", *, folds: int = 5, seed: int = 0) -> int:
    """The place on the path of the chosen rate: least error; with fewer than 30 rows the largest rate within
    two standard errors of it, for there leave-one-out is too noisy to be followed down to little dropout.
    """
    if criterion == "gcv":
        return int(path.gcv.argmin())
    mean, deviation = path.leave_one_out, path.leave_one_out_deviation
    if criterion == "kfold":
        mean, deviation = fold_errors(path, folds, seed)
    best = int(mean.argmin())
    if len(path.table.inputs) >= FEW_ROWS:
        return best
    near = np.flatnonzero(mean <= mean[best] + 2 * deviation[best])
    return int(near[path.rates[near].argmax()])


def fold_errors(path: RatePath, folds: int, seed: int) -> tuple[Array, Array]:
    """Mean squared error on held-out folds at every rate, and its standard error over rows [R]."""
    x, y, rows = path.table.inputs + path.table.input_means, path.table.targets, len(path.table.inputs)
    order = np.random.default_rng(seed).permutation(rows)
    squared = np.empty((rows, len(path.rates)))
    for fold in range(count := min(folds, rows)):
        out = order[fold::count]
        rest = np.setdiff1d(order, out)
        inner = trace_path(x[rest], y[rest], list(path.rates), intercept=path.table.intercept, raw=path.table.raw)
        weights = inner.weights()
        predicted = x[out] @ weights + inner.intercepts(weights)[:, None]
        squared[out] = ((predicted - y[out]) ** 2).mean(2).T
    return squared.mean(0), squared.std(0, ddof=1) / np.sqrt(rows)
