"""The data-constrained law fitted to one's own runs, and what the runs say by themselves.

"Scaling Data-Constrained Language Models" (arXiv 2305.16264) fits its law (``repetition.py``) to measured final losses:
first A, B, E, alpha, beta on runs of one epoch, then R_D* and R_N* on runs of several, by the Huber loss (delta 1e-3)
of differences of log losses, with the prediction written as a sum of exponentials (Hoffmann et al., arXiv 2203.15556,
section 3.3)::

    ln L = logsumexp(a - alpha ln N', b - beta ln D', e)       A = exp(a), B = exp(b), E = exp(e)

Where we depart: the minimiser is Levenberg and Marquardt's with Huber weights, from a grid of starts all at once, and
not L-BFGS; and in the end all constants move together on all runs, since a large model on few fresh tokens has excess
parameters too (N' < N), which the first pass cannot know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from mickle.errors import UsageError
from mickle.training.repetition import C4, Law
from mickle.training.repetition_runs import PastRun

HUBER = 1e-3
ONE_EPOCH = 1.001  # D / U up to which a run counts as one of a single epoch
LEAST_SIZES, LEAST_BUDGETS, LEAST_REPEATED = 3, 3, 3
LOWEST = np.log([1e-6, 1e-6, 1e-6, 0.02, 0.02, 0.1, 0.1])  # of A, B, E, alpha, beta, R_D*, R_N*
HIGHEST = np.log([1e9, 1e9, 1e3, 3.0, 3.0, 1e4, 1e4])
Array = np.ndarray


def fit(runs: Sequence[PastRun], base: Law = C4) -> Law:
    """The law of these runs. R_N* stays that of ``base`` where no run has more parameters than its text can use.

    Raises UsageError where runs of one epoch do not have three sizes and three budgets, or fewer than three runs have
    more; it says what is missing.
    """
    missing = what_is_missing(runs)
    if missing:
        raise UsageError(
            f"These {len(runs)} runs are too few to fit the law: {missing}.",
            where="runs",
            expected="one epoch at 3 sizes x 3 budgets of unique tokens, and 3 runs of several epochs",
            todo="train the missing runs, or fit only its scale (refit: scale), for which two runs do",
        )
    data = _arrays(runs)
    single = data[:, data[1] <= ONE_EPOCH * data[2]]
    first = _minimise(lambda theta: _log_loss(theta, single, False), single[3], _starts(single), free=5)
    second = _minimise(lambda theta: _log_loss(theta, data), data[3], _with_decays(first), free=(5, 6))
    whole = _minimise(lambda theta: _log_loss(theta, data), data[3], second[None], free=7)
    law = _law(whole, runs, f"fitted to {len(runs)} runs")
    if _excess_runs(law, runs) >= LEAST_REPEATED:
        return law
    whole[6] = math.log(base.parameter_decay)
    whole = _minimise(lambda theta: _log_loss(theta, data), data[3], whole[None], free=6)
    return _law(whole, runs, f"fitted to {len(runs)} runs, R_N* of {base.origin}")


def fit_scale(runs: Sequence[PastRun], base: Law = C4) -> Law:
    """``base`` with its scale fitted alone: E, and one factor on A and B. Powers and decays stay.

    Raises UsageError where fewer than two runs differ in what ``base`` predicts for them.
    """
    expected = [base.loss(run.parameters, run.tokens, run.unique) - base.floor for run in runs]
    if len({round(math.log(value), 6) for value in expected}) < 2:
        raise UsageError(
            f"These {len(runs)} runs do not differ in what the law predicts; its scale needs two that do.", where="runs"
        )
    reducible, losses = np.array(expected), np.log([run.loss for run in runs])

    def predicted(theta: Array) -> Array:
        return np.log(np.exp(theta[:, :1]) + np.exp(theta[:, 1:]) * reducible)

    floors = np.log(min(run.loss for run in runs) * np.array([0.2, 0.5, 0.8]))
    starts = np.array([[floor, math.log(factor)] for floor, factor in product(floors, (0.3, 1.0, 3.0))])
    log_floor, log_factor = _minimise(predicted, losses, starts, free=2)
    factor = math.exp(log_factor)
    return replace(
        base,
        floor=math.exp(log_floor),
        parameter_factor=base.parameter_factor * factor,
        token_factor=base.token_factor * factor,
        origin=f"{base.origin}, scale fitted to {len(runs)} runs",
    )


def bootstrap(runs: Sequence[PastRun], law: Law, resamples: int = 200, seed: int = 0) -> list[Law]:
    """Laws of runs drawn with replacement, each from ``law`` on: quantiles over them are intervals.

    With few runs these are too narrow, as percentile intervals are.
    """
    data, count = _arrays(runs), len(runs)
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    start = np.repeat(_theta(law)[None], resamples, axis=0)
    free = 7 if _excess_runs(law, runs) >= LEAST_REPEATED else 6
    found = _descend(lambda theta: _log_loss(theta, data), data[3], start, free, drawn.astype(float))[0]
    return [_law(theta, runs, law.origin) for theta in found]


def what_is_missing(runs: Sequence[PastRun]) -> str:
    """In words, what these runs lack for a fit of all constants; "" where they are enough."""
    single = [run for run in runs if run.epochs <= ONE_EPOCH]
    counts = (
        (len({run.parameters for run in single}), LEAST_SIZES, "sizes at one epoch"),
        (len({run.unique for run in single}), LEAST_BUDGETS, "budgets of unique tokens at one epoch"),
        (len({(run.parameters, run.unique) for run in single}), 6, "different pairs of both at one epoch"),
        (len(runs) - len(single), LEAST_REPEATED, "runs of several epochs"),
    )
    return ", ".join(f"{have} {what}, {least} are needed" for have, least, what in counts if have < least)


def _arrays(runs: Sequence[PastRun]) -> Array:
    """ln N, D, U, ln loss, [4, runs]."""
    return np.array([[math.log(r.parameters), r.tokens, r.unique, math.log(r.loss)] for r in runs]).T


def _log_loss(theta: Array, data: Array, excess: bool = True) -> Array:
    """ln of the predicted loss, [K, runs], for K sets of constants ``theta`` [K, 7] (all of them logarithms).

    The same as :meth:`Law.loss`; without ``excess`` every parameter is of use.
    """
    a, b, e = (theta[:, place, None] for place in range(3))
    alpha, beta, token_decay, parameter_decay = (np.exp(theta[:, place, None]) for place in range(3, 7))
    log_size, tokens, unique, _ = data
    read = unique - unique * token_decay * np.expm1(-(tokens / unique - 1) / token_decay)
    log_read = np.log(read)
    if excess:
        log_ratio = (np.log(alpha / beta) + a - b) / (alpha + beta)  # ln G
        fitting = np.minimum(log_size, log_ratio + beta / alpha * (log_ratio + np.log(unique)))
        more = np.exp(np.minimum(log_size - fitting, 50.0)) - 1
        log_size = fitting + np.log1p(-parameter_decay * np.expm1(-more / parameter_decay))
    return np.logaddexp(np.logaddexp(a - alpha * log_size, b - beta * log_read), e)


def _starts(data: Array) -> Array:
    """A grid over powers and floor; A and B by least squares for each, [K, 7]."""
    log_size, tokens, _, log_loss = data
    losses, found = np.exp(log_loss), []
    for alpha, beta, share in product((0.15, 0.35, 0.6), (0.15, 0.35, 0.6), (0.2, 0.5, 0.8)):
        columns = np.stack([np.exp(-alpha * log_size), tokens**-beta])
        factors = np.linalg.lstsq(columns.T, losses - share * losses.min(), rcond=None)[0]
        smallest = 0.01 * losses.mean() / columns.mean(axis=1)  # a negative share of the loss is none
        a, b = np.log(np.maximum(factors, smallest))
        found.append([a, b, math.log(share * losses.min()), math.log(alpha), math.log(beta), 0.0, 0.0])
    return np.array(found)


def _with_decays(theta: Array) -> Array:
    """``theta`` [7] with a grid of decays, [K, 7]."""
    return np.array([[*theta[:5], math.log(r), math.log(s)] for r, s in product((3, 12, 50), (2, 5, 20))])


def _minimise(predict: Callable[[Array], Array], target: Array, starts: Array, free: int | tuple[int, ...]) -> Array:
    """The best end of a descent from each of ``starts`` [K, P]: the constants, [P]."""
    found, costs = _descend(predict, target, starts, free)
    return found[int(np.argmin(costs))].copy()


def _descend(
    predict: Callable[[Array], Array],
    target: Array,
    starts: Array,
    free: int | tuple[int, ...],
    counts: Array | None = None,
    most: int = 150,
) -> tuple[Array, Array]:
    """Levenberg and Marquardt with Huber weights, all K starts at once: constants [K, P] and costs [K].

    ``free``: which constants move (a number: the first so many). ``counts`` [K, runs]: how often each run counts.
    """
    moving = list(range(free)) if isinstance(free, int) else list(free)
    theta, damping = starts.copy(), np.full(len(starts), 1e-2)
    counts = np.ones((len(starts), len(target))) if counts is None else counts
    low, high = (LOWEST, HIGHEST) if theta.shape[1] == len(LOWEST) else (-50.0, 50.0)

    def errors(theta: Array) -> tuple[Array, Array]:
        rest = target - predict(theta)
        size = np.abs(rest)
        huber = np.where(size <= HUBER, rest**2 / 2, HUBER * (size - HUBER / 2))
        return rest, (counts * huber).sum(axis=1)

    rest, costs = errors(theta)
    for _ in range(most):
        slopes = np.stack([_slope(predict, theta, place) for place in moving], axis=-1)  # [K, runs, F]
        weights = counts * np.minimum(1.0, HUBER / np.maximum(np.abs(rest), 1e-12))
        weighted = slopes * weights[..., None]
        normal = np.einsum("krf,krg->kfg", weighted, slopes)
        scale = np.einsum("kff->kf", normal) + 1e-12
        normal[:, range(len(moving)), range(len(moving))] += damping[:, None] * scale
        step = np.linalg.solve(normal, np.einsum("krf,kr->kf", weighted, rest)[..., None])[..., 0]
        tried = theta.copy()
        tried[:, moving] += np.clip(step, -1.0, 1.0)
        tried = np.clip(tried, low, high)
        tried_rest, tried_costs = errors(tried)
        better = tried_costs < costs
        gained = np.where(better, (costs - tried_costs) / np.maximum(costs, 1e-300), 0.0)
        theta[better], rest[better], costs = tried[better], tried_rest[better], np.minimum(costs, tried_costs)
        damping = np.clip(np.where(better, damping / 4, damping * 4), 1e-9, 1e9)
        if np.all((gained < 1e-7) & (better | (damping > 1e6))):
            break
    return theta, costs


def _slope(predict: Callable[[Array], Array], theta: Array, place: int, step: float = 1e-5) -> Array:
    up, down = theta.copy(), theta.copy()
    up[:, place] += step
    down[:, place] -= step
    return (predict(up) - predict(down)) / (2 * step)


def _theta(law: Law) -> Array:
    return np.log(
        [law.parameter_factor, law.token_factor, law.floor, law.parameter_power, law.token_power,
         law.token_decay, law.parameter_decay]
    )  # fmt: skip


def _law(theta: Array, runs: Sequence[PastRun], origin: str) -> Law:
    factor, token_factor, floor, power, token_power, decay, excess = (float(x) for x in np.exp(theta))
    most = max(run.epochs for run in runs)
    return Law(floor, factor, token_factor, power, token_power, decay, excess, most, origin)


def _excess_runs(law: Law, runs: Sequence[PastRun]) -> int:
    """How many runs have more parameters than their unique tokens can use."""
    return sum(run.parameters > law.fitting_parameters(run.unique) for run in runs)
