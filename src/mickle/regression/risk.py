"""Error over sample size or model size, at every dropout rate: is there a peak, and which rate takes it away?

"Dropout Drops Double Descent" (arXiv 2305.16179): without dropout the error of a linear or random-feature model
rises to a peak where rows and parameters are equally many; with the right rate its curve only falls. Three worlds:
:func:`sample_curve` over subsets of somebody's data, :func:`gaussian_problem` in a simulated one whose theory is
known, :func:`feature_problems` over the number of random features tanh(x W / sqrt(D)) at a fixed number of rows (the
features are centred, as everywhere here: their large mean would hide the peak). :func:`collect` fits any of them.

At the threshold the error's mean over subsets hardly exists, so medians and quantiles stand beside it, and curves are
drawn through medians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mickle import figures
from mickle.errors import UsageError
from mickle.figures import Figure, Line
from mickle.regression.path import DEFAULT_RATES, Criterion, choose_rate, trace_path
from mickle.regression.ridge import Array, numbers
from mickle.results import Table

Done = Callable[[int], None]  # told how many fits are done
Problem = tuple[Array, Array, Callable[[Array, Array], Array]]  # inputs, targets, errors of (weights, intercepts)
NEAR = 2.0  # parameters and rows within this factor of each other are near the threshold


@dataclass(frozen=True)
class RiskCurve:
    """Errors [S, R, B] over sizes, rates and repetitions; those of the chosen rate [S, B], and the rate [S, B].

    ``threshold`` is the size at which rows and parameters are equally many.
    """

    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    errors: Array
    chosen_errors: Array
    chosen_rates: Array
    threshold: float
    size_name: str
    error_name: str


def sample_curve(
    inputs: Any,
    targets: Any,
    sizes: Sequence[int],
    rates: Sequence[float],
    *,
    repeats: int = 20,
    criterion: Criterion = "loo",
    held_out: float = 0.25,
    seed: int = 0,
    done: Done | None = None,
) -> RiskCurve:
    """Held-out mean squared error of linear models on random subsets of inputs [n, p], targets [n] or [n, k].

    Each repetition holds out another random share of the rows; its subsets of growing size contain each other.
    """
    x, y = numbers(inputs, "inputs"), numbers(targets, "targets")
    y = y.reshape(len(y), -1)
    out = max(1, round(held_out * len(x)))
    if max(sizes) > len(x) - out:
        raise UsageError(
            f"size {max(sizes)} is more than the {len(x) - out} rows left beside the {out} held out",
            todo="take smaller sizes, or hold out a smaller share",
        )

    def problems(generator: np.random.Generator) -> Iterator[Problem]:
        order = generator.permutation(len(x))
        test_x, test_y = x[order[:out]], y[order[:out]]

        def error(weights: Array, intercepts: Array) -> Array:
            return ((test_x @ weights + intercepts[:, None] - test_y) ** 2).mean((1, 2))

        for size in sizes:
            rows = order[out : out + size]
            yield x[rows], y[rows], error

    found = collect(problems, len(sizes), rates, repeats, criterion, seed, True, done)
    return RiskCurve(
        tuple(sizes), tuple(rates), *found, float(x.shape[1] + 1), "training rows", "held-out squared error"
    )


def gaussian_problem(
    columns: int,
    rows: int,
    signal: float,
    noise: float,
    spectrum: Sequence[float] | None,
    generator: np.random.Generator,
) -> Problem:
    """Rows of one Gaussian world and its excess risk."""
    variances = np.ones(columns) if spectrum is None else np.asarray(spectrum, float)
    truth = generator.normal(size=columns)
    truth *= math.sqrt(signal) / np.linalg.norm(truth)
    x = generator.normal(size=(rows, columns)) * np.sqrt(variances)
    y = x @ truth + math.sqrt(noise) * generator.normal(size=rows)

    def error(weights: Array, intercepts: Array) -> Array:
        return variances @ (weights[..., 0].T - truth[:, None]) ** 2

    return x, y[:, None], error


def feature_problems(
    rows: int,
    counts: Sequence[int],
    inputs: int,
    noise: float,
    generator: np.random.Generator,
    tests: int = 1000,
) -> Iterator[Problem]:
    """One data set seen through growing sets of random features; the error on fresh rows without noise."""
    truth = generator.normal(size=inputs)
    truth /= np.linalg.norm(truth)
    x, fresh = generator.normal(size=(rows, inputs)), generator.normal(size=(tests, inputs))
    y = x @ truth + math.sqrt(noise) * generator.normal(size=rows)
    mixing = generator.normal(size=(inputs, max(counts))) / math.sqrt(inputs)
    seen, wanted = np.tanh(x @ mixing), (fresh @ truth)[:, None]
    tested = np.tanh(fresh @ mixing)
    for count in counts:

        def error(weights: Array, intercepts: Array, count: int = count) -> Array:
            return ((tested[:, :count] @ weights + intercepts[:, None] - wanted) ** 2).mean((1, 2))

        yield seen[:, :count], y[:, None], error


def collect(
    problems: Callable[[np.random.Generator], Iterator[Problem]],
    sizes: int,
    rates: Sequence[float],
    repeats: int,
    criterion: Criterion,
    seed: int,
    intercept: bool,
    done: Done | None,
) -> tuple[Array, Array, Array]:
    """Errors [S, R, B], chosen errors [S, B] and chosen rates [S, B]; repetition b draws from (seed, b)."""
    errors = np.empty((sizes, len(rates), repeats))
    chosen_errors, chosen_rates = np.empty((2, sizes, repeats))
    grid = [*rates, *DEFAULT_RATES]
    for repeat in range(repeats):
        for place, (x, y, error) in enumerate(problems(np.random.default_rng((seed, repeat)))):
            path = trace_path(x, y, grid, intercept=intercept)
            best = choose_rate(path, criterion, seed=seed)
            weights = np.concatenate([path.weights()[: len(rates)], path.weights(best)[None]])
            found = error(weights, path.intercepts(weights))
            errors[place, :, repeat], chosen_errors[place, repeat] = found[:-1], found[-1]
            chosen_rates[place, repeat] = path.rates[best]
            if done:
                done(repeat * sizes + place + 1)
    return errors, chosen_errors, chosen_rates


# -- what a curve says ---------------------------------------------------------------------------------------------


def climb(curve: Sequence[float]) -> float:
    """How far a curve of positive errors rises: the largest log(later / earlier), 0 where it only falls."""
    lowest, found = math.inf, 0.0
    for value in curve:
        lowest = min(lowest, value)
        found = max(found, math.log(value / lowest))
    return found


def near_threshold(rows: float, parameters: float) -> bool:
    """Whether rows and parameters are within a factor of 2 of each other."""
    return bool(parameters / NEAR <= rows <= parameters * NEAR)


def summarise(curve: RiskCurve) -> list[dict[str, Any]]:
    """One row of numbers for each size: for every rate and the chosen one mean, standard error, median, quantiles."""
    rows = []
    for place, size in enumerate(curve.sizes):
        row: dict[str, Any] = {"size": size, "rates": {}}
        for column, rate in enumerate(curve.rates):
            row["rates"][f"{rate:g}"] = spread(curve.errors[place, column])
        row["chosen"] = {**spread(curve.chosen_errors[place]), "rate": float(np.median(curve.chosen_rates[place]))}
        rows.append(row)
    return rows


def spread(values: Array) -> dict[str, float]:
    """Mean, its standard error, median and the quantiles 0.1 and 0.9."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    named = zip(("mean", "error", "median", "low", "high"), (values.mean(), error, middle, low, high))
    return {name: float(value) for name, value in named}


def table(curve: RiskCurve) -> Table:
    """A row for each size, a column for each rate; medians, and the mean with its standard error."""
    headings = [curve.size_name, *(f"rate {rate:g}" for rate in curve.rates), "chosen", "chosen rate"]
    rows = []
    for row in summarise(curve):
        columns = [*row["rates"].values(), row["chosen"]]
        cells = [f"{v['median']:.4g} ({v['mean']:.4g} ± {v['error']:.2g})" for v in columns]
        rows.append([str(row["size"]), *cells, f"{row['chosen']['rate']:.3g}"])
    return Table(headings, rows)


def picture(curve: RiskCurve, title: str = "") -> Figure:
    """Medians over sizes, the band of the middle 80 %, the threshold dotted."""
    shown = sorted({0, *np.linspace(0, len(curve.rates) - 1, min(4, len(curve.rates))).round().astype(int)})
    lines = []
    for column in shown:
        errors, rate = curve.errors[:, column], curve.rates[column]
        low, middle, high = np.quantile(errors, (0.1, 0.5, 0.9), axis=1)
        name = "no dropout" if rate == 0 else f"rate {rate:g}"
        lines.append(Line(curve.sizes, middle, name, band=(low, high), shade=0.1))
    lines.append(
        Line(curve.sizes, list(np.median(curve.chosen_errors, 1)), "chosen", colour=figures.COLOURS[5], width=2)
    )
    rule = figures.Rule(x=curve.threshold, style=":", width=None, label="threshold")
    panel = figures.Panel(
        curve.size_name, curve.error_name, lines, rules=[rule], title=title,
        x_log=10, y_log=10, legend=8, legend_outside=True,
    )  # fmt: skip
    return Figure((panel,), height=3.2)
