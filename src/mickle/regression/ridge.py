"""Dropout before a linear model in closed form: the table it is solved on, and what a rate comes to as a penalty.

"Dropout Drops Double Descent" (arXiv 2305.16179): the test error of a model that interpolates its data peaks where
rows and parameters are equally many; dropout before the last linear layer, at the right rate, takes the peak away.
Averaged over masks, squared loss with inverted dropout of rate q on the inputs is ridge whose penalty follows each
column's norm:

    L(w) = ||y - X w||^2 + a w' D w,    a = q / (1 - q),    D = diag(X'X)
    w    = (X'X + a D)^-1 X'y = D^-1 X' (X D^-1 X' + a I)^-1 y

All rates at once, and the choice of one: :mod:`mickle.regression.path`.

Where this says more than the paper. The intercept is not dropped. By default X and y are centred first, so D holds
centred squares: the model does not depend on where a column's zero lies. A layer nn.Dropout before nn.Linear drops
columns as they are, means and all; with ``raw=True`` D is diag(X'X) before centring, and w is what that layer is
trained to. Rate 0 is minimum-norm least squares in the columns as given, while the limit of small rates is the
interpolator of least w'Dw; the two differ only where columns outnumber rows and have unequal norms. Equal columns
are kept: each gets an equal share of the weight, and together they are penalised half as much as one alone, as under
dropout itself. Constant columns get weight 0. All in float64: at the peak float32 rounding alone acts like a
penalty, and hides it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mickle.errors import SpoiledError, UsageError

Array = NDArray[np.float64]
LARGEST = 1e150  # inputs beyond it have squares that are no float64 numbers


@dataclass(frozen=True)
class Table:
    """Centred inputs [n, p] and targets [n, k] with what was taken off, and the columns' squared norms."""

    inputs: Array
    targets: Array
    input_means: Array
    target_means: Array
    squares: Array  # D; 0 for constant columns, which take no weight
    intercept: bool
    raw: bool

    @property
    def varying(self) -> NDArray[np.bool_]:
        """Which columns [p] are not constant."""
        return self.squares > 0

    @property
    def free_rows(self) -> int:
        """Rows less the one that the intercept takes."""
        return len(self.inputs) - self.intercept

    @property
    def inputs_varying(self) -> Array:
        """Inputs without the constant columns; no copy where there are none."""
        return self.inputs if self.varying.all() else self.inputs[:, self.varying]


def penalty(rate: float) -> float:
    """a = q / (1 - q) of the dropout rate q, the share of inputs left out. UsageError outside [0, 1)."""
    if not 0 <= rate < 1:
        raise UsageError(
            f"dropout rate {rate} is not in [0, 1)",
            expected="the share of inputs that is dropped; at 1 nothing is left to learn from",
        )
    return rate / (1 - rate)


def rate_of(penalty: float) -> float:
    """The dropout rate q = a / (1 + a) of a penalty."""
    return penalty / (1 + penalty)


def make_table(inputs: ArrayLike, targets: ArrayLike, intercept: bool = True, raw: bool = False) -> Table:
    """Check and centre; ``raw`` takes D before centring. UsageError names the place of what is no finite number."""
    x, y = numbers(inputs, "inputs"), numbers(targets, "targets")
    if x.ndim != 2 or x.shape[1] == 0:
        raise UsageError(f"inputs have shape {x.shape}", expected="rows and at least one column, [n, p]")
    if len(x) != len(y) or y.ndim not in (1, 2):
        raise UsageError(f"inputs have {len(x)} rows and targets shape {y.shape}", expected="[n] or [n, k]")
    if len(x) < 1 + intercept:
        raise UsageError(f"there is {len(x)} row to learn from", expected="two rows at least: the intercept takes one")
    y = y.reshape(len(y), -1)
    least, most = x.min(0), x.max(0)
    if max(-least.min(), most.max()) > LARGEST:
        raise UsageError(f"an input lies beyond {LARGEST:g}", expected="squares that are float64 numbers")
    constant = least == most if intercept else (least == 0) & (most == 0)
    before = np.einsum("ij,ij->j", x, x) * ~constant if raw else None
    input_means, target_means = (x.mean(0), y.mean(0)) if intercept else (0 * x[0], 0 * y[0])
    x, y = x - input_means, y - target_means
    if constant.any():
        x[:, constant] = 0.0  # the mean's rounding was left
    squares = np.einsum("ij,ij->j", x, x) if before is None else before
    return Table(x, y, input_means, target_means, squares, intercept, raw)


def numbers(values: ArrayLike, name: str) -> Array:
    """The values in float64. UsageError for text, objects, NaN and infinity, with the first one's place."""
    array = np.asarray(values)
    if array.dtype.kind not in "buif":
        raise UsageError(f"{name} hold {array.dtype.name}, not numbers", expected="an array of real numbers")
    array = array.astype(float, copy=False)
    with np.errstate(over="ignore"):
        suspicious = not np.isfinite(array.sum())  # quicker than looking at each
    if suspicious and not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0]
        where = ", ".join(f"{word} {number}" for word, number in zip(("row", "column"), place))
        raise SpoiledError(f"{name} hold {array[tuple(place)]}", where=where, expected="finite numbers")
    return array
