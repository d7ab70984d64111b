"""A learning rate for forward-only steps, measured with some dozens of probes before the first step.

Source: arXiv 2305.17333, section 4.1 and theorem 1: the stable rate shrinks with the effective rank of the Hessian,
not with the number of weights. The rate itself they found by a grid; this is our own derivation. On a quadratic with
gradient d and Hessian H a step w - lr g z with g = z'd_B (d_B the gradient of the step's batch, z'H z = c) changes
the loss on average by

    - lr E[g d'z] + lr^2 / 2 E[g^2 c],    least at    lr* = |d|^2 / E[g^2 c],    no longer falling at 2 lr*

|d|^2 = E[g_A g_B] over two batches A and B and one z, which leaves the batches' noise out; g = (L+ - L-) / (2 eps)
and c = (L+ + L- - 2 L0) / eps^2 come from three losses of each. For a step of n probes the second term falls by n
while n is small against tr H / |H|, so the rate is n lr*; where a variant divides the step by the size of g, the rate
is multiplied by it. A share `SHARE` of lr* is taken: curvature rises as the loss falls, and a rate twice too small
costs little, twice too large all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from mickle.errors import UsageError
from mickle.training.closure import Closure
from mickle.training.mezo import MeZO, evaluating
from mickle.training.mezo_rule import MOST_DRAWS

SHARE = 0.25  # of lr*: too small costs little, too large all
DIRECTIONS = 24  # 144 losses, as many as 72 steps see


@dataclass(frozen=True)
class Rate:
    """What was found: the rate, and the means it is made of."""

    rate: float
    projection: float  # root of the mean g^2
    gradient: float  # estimate of |d|; 0 where the batches' noise hid it
    curvature: float  # mean z'H z: about the trace of the Hessian


@torch.no_grad()
def find_rate(optimizer: MeZO, closure: Callable[[int], Closure], directions: int = DIRECTIONS) -> Rate:
    """The rate for the weights as they are. `closure(i)` gives the loss of batch i; 6 losses a direction.

    Before the first step only. Nothing is stepped; the weights come back to float32 rounding, which the optimizer
    remembers for its journal. Draws are the last of the seed's, which no run reaches.
    UsageError where the loss does not change at all along any direction.
    """
    eps = optimizer.rule.eps
    g = np.zeros((directions, 2))
    c = np.zeros((directions, 2))
    for number in range(directions):
        pair = [closure(2 * number), closure(2 * number + 1)]
        with evaluating(pair[0].model):
            draw = MOST_DRAWS - 1 - (optimizer.measured + number)
            centre = [one.mean_loss(watched=False) for one in pair]
            optimizer.move([draw], [eps])
            plus = [one.mean_loss(watched=False) for one in pair]
            optimizer.move([draw], [-2 * eps])
            minus = [one.mean_loss(watched=False) for one in pair]
            optimizer.move([draw], [eps])
        g[number] = [(p - m) / (2 * eps) for p, m in zip(plus, minus)]
        c[number] = [(p + m - 2 * z) / eps**2 for p, m, z in zip(plus, minus, centre)]
    optimizer.measured += directions
    return rate_of(optimizer, g, c)


def rate_of(
    optimizer: MeZO,
    g: "np.ndarray[tuple[int, int], np.dtype[np.float64]]",
    c: "np.ndarray[tuple[int, int], np.dtype[np.float64]]",
) -> Rate:
    """The rate from projections and curvatures [directions, 2 batches]."""
    rule = optimizer.rule
    projection = math.sqrt(float((g**2).mean()))
    if projection == 0:
        raise UsageError(
            "the loss is the same along every direction that was tried", where="method.learning_rate",
            todo="raise eps or the batch, as for objectives that count right answers; or give a learning rate",
        )  # fmt: skip
    bend = float((g**2 * c).mean())
    if bend <= 0:  # downhill on both sides: curvature of whatever sign has to do
        bend = float((g**2).mean() * np.abs(c).mean())
    # With noisy batches the estimate of |d|^2 may even be negative; a tenth of g^2 is then as much as is believed.
    squared = float((g[:, 0] * g[:, 1]).mean())
    best = max(squared, 0.1 * projection**2) / bend if bend > 0 else 0.1 * rule.eps / projection
    rate = SHARE * best * rule.probes
    if rule.variant in ("adam", "fzoo"):
        rate *= projection
    return Rate(rate, projection, math.sqrt(max(squared, 0.0)), float(c.mean()))
