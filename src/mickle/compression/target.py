"""A size instead of a threshold: which tau, or which group, gives so many bits a weight.

With outliers: a layer's errors e^2 hardly depend on tau, so one sweep of every layer without outliers gives, as a
histogram of e^2 over what tau multiplies, how many outliers any tau would have. The tau that spends the budget by
these counts is then corrected, layer by layer, by what earlier layers really spent. Without outliers there is nothing
but the size of a group to choose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mickle.errors import UsageError
from mickle.quantization.grouped import NARROW, Layout

LOWEST, HIGHEST, STEPS = -8.0, 6.0, 1400  # powers of ten of tau, and how finely it is told apart
ENOUGH = 50  # outliers predicted, before what they became corrects what is predicted
GROUP_SIZES = (8, 16, 32, 64, 128, 0)


def error_counts(errors: np.ndarray, unit: float) -> list[int]:
    """How many squared errors exceed each tau of the grid `taus()`, times `unit`. errors of any shape."""
    if not unit > 0:
        return [0] * STEPS
    ratios = np.log10(np.maximum(np.square(errors, dtype=np.float64).ravel() / unit, 1e-300))
    bins = np.floor((ratios - LOWEST) / (HIGHEST - LOWEST) * STEPS).astype(np.int64)
    inside = bins[bins >= 0].clip(max=STEPS - 1)
    counts = np.bincount(inside, minlength=STEPS)
    return [int(n) for n in counts[::-1].cumsum()[::-1]]


def taus() -> np.ndarray:
    """The grid of thresholds, rising."""
    return 10 ** (LOWEST + (HIGHEST - LOWEST) * np.arange(STEPS) / STEPS)


@dataclass
class Budget:
    """Outliers left to spend over layers still to come; `counts` of each by `error_counts`, in their order."""

    left: int
    counts: list[list[int]]
    predicted: float = 0.0
    spent: int = 0

    def tau(self) -> float:
        """The smallest tau by which the layers to come spend what is left; infinity where nothing is."""
        ahead = np.sum(np.asarray(self.counts, dtype=np.float64), axis=0)
        ratio = self.spent / self.predicted if self.predicted >= ENOUGH and self.spent else 1.0
        fitting = np.flatnonzero(ahead * ratio <= max(self.left, 0))
        return float(taus()[fitting[0]]) if len(fitting) else float("inf")

    def spend(self, tau: float, outliers: int) -> None:
        """The next layer took so many."""
        own = self.counts.pop(0)
        place = np.searchsorted(taus(), tau * (1 - 1e-9))
        self.predicted += own[place] if place < STEPS else 0
        self.spent += outliers
        self.left -= outliers


def outlier_budget(layouts: Sequence[Layout], target_bits: float, ordered: bool) -> int:
    """How many outliers `target_bits` stored bits a weight leave room for. UsageError where not even none fit."""
    weights = sum(layout.outputs * layout.inputs for layout in layouts)
    base = sum(layout.stored_bytes(0, ordered) for layout in layouts)
    each = 4 if all(layout.inputs <= NARROW for layout in layouts) else 6
    room = int((target_bits * weights / 8 - base) // each)
    if room < 0:
        least = _up(8 * base / weights)
        raise UsageError(
            f"{target_bits:g} bits a weight cannot be reached: without outliers it takes {least:.3f}",
            where="method.target_bits",
            expected=f"at least {least:.3f}, or fewer bits a code, or larger groups",
        )
    return room


def group_for(sizes: Sequence[tuple[int, int]], bits: int, target_bits: float, ordered: bool) -> int:
    """The smallest group (0: a whole row) whose codes of `bits` and 16-bit statistics take at most `target_bits` stored
    bits a weight, for matrices of `sizes` (out, in). UsageError where not even whole rows do.
    """
    weights = sum(outputs * inputs for outputs, inputs in sizes)
    found = 0.0
    for group in GROUP_SIZES:
        layouts = [Layout(o, i, bits, min(group or i, i), False) for o, i in sizes]
        found = 8 * sum(layout.stored_bytes(None, ordered) for layout in layouts) / weights
        if found <= target_bits:
            return group
    found = _up(found)
    raise UsageError(
        f"{target_bits:g} bits a weight cannot be reached with {bits}-bit codes: whole rows take {found:.3f}",
        where="method.target_bits",
        expected=f"at least {found:.3f}, or fewer bits a code",
    )


def _up(bits: float) -> float:
    """To three places, upwards: what is said to be enough is."""
    return math.ceil(1000 * bits - 1e-9) / 1000
