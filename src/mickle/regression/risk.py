"""Error over sample size or model size, at every dropout rate: is there a peak, and which rate takes it away?

"Dropout Drops Double Descent" (arXiv 2305.16179): without dropout the error of a linear or random-feature model
rises to a peak where rows and parameters are equally many; with the right rate its curve only falls. Three kinds of
curve: :func:`sample_curve` over subsets of somebody's data, :func:`gaussian_curve` over a simulated world whose
theory is known, :func:`feature_curve` over the number of random features act(x W / sqrt(D)) at a fixed number of
rows (the features are centred, as everywhere here: their large mean would hide the peak).

At the threshold the error's mean over subsets hardly exists, so medians and quantiles stand beside it, and curves are
drawn through medians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mickle.errors import UsageError
from mickle.regression.path import DEFAULT_RATES, Criterion, choose_rate, trace_path
from mickle.regression.ridge import Array, numbers
from mickle.regression.theory import best_rate, dropout_risk

Done = Callable[[int], None]  # told how many fits are done
Problem = tuple[Array, Array, Callable[[Array, Array], Array]]  # inputs, targets, errors of (weights, intercepts)
NEAR = 2.0  # parameters and rows within this factor of each other are near the threshold


@dataclass(frozen=True)
class RiskCurve:
    """Errors [S, R, B] over sizes, rates and repetitions; those of the chosen rate [S, B], and the rate [S, B].

    ``threshold`` is the size at which rows and parameters are equally many. ``theory`` [S, R] is the exact or
    asymptotic risk where it is known (infinite at the threshold), ``best_theory`` [S] that of the best rate.
    """

    sizes: tuple[int, ...]
    rates: tuple[float, ...]
    errors: Array
    chosen_errors: Array
    chosen_rates: Array
    threshold: float
    size_name: str
    error_name: str
    theory: Array | None = None
    best_theory: Array | None = None


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


def gaussian_curve(
    columns: int,
    sizes: Sequence[int],
    rates: Sequence[float],
    *,
    signal: float = 1.0,
    noise: float = 0.25,
    repeats: int = 20,
    spectrum: Sequence[float] | None = None,
    criterion: Criterion = "loo",
    seed: int = 0,
    done: Done | None = None,
) -> RiskCurve:
    """Excess risk ||w - w*||_S^2 in a simulated world: x ~ N(0, S), y = x w* + N(0, noise), ||w*||^2 = signal.

    ``spectrum`` is S's diagonal (default: ones, and then the theory is known). No intercept is fitted.
    """

    def problems(generator: np.random.Generator) -> Iterator[Problem]:
        for size in sizes:
            yield gaussian_problem(columns, size, signal, noise, spectrum, generator)

    found = collect(problems, len(sizes), rates, repeats, criterion, seed, False, done)
    theory = best = None
    if spectrum is None:
        theory = np.array([[dropout_risk(n, columns, signal, noise, q) for q in rates] for n in sizes])
        best = np.array([dropout_risk(n, columns, signal, noise, best_rate(n, columns, signal, noise)) for n in sizes])
    return RiskCurve(tuple(sizes), tuple(rates), *found, float(columns), "training rows", "excess risk", theory, best)


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


def feature_curve(
    rows: int,
    counts: Sequence[int],
    rates: Sequence[float],
    *,
    inputs: int = 20,
    noise: float = 0.25,
    activation: Literal["tanh", "relu"] = "tanh",
    repeats: int = 20,
    criterion: Criterion = "loo",
    seed: int = 0,
    done: Done | None = None,
) -> RiskCurve:
    """Excess risk of random-feature regression over the number of features, at a fixed number of rows."""

    def problems(generator: np.random.Generator) -> Iterator[Problem]:
        yield from feature_problems(rows, counts, inputs, noise, activation, generator)

    found = collect(problems, len(counts), rates, repeats, criterion, seed, True, done)
    return RiskCurve(tuple(counts), tuple(rates), *found, float(rows - 1), "random features", "excess risk")


def feature_problems(
    rows: int,
    counts: Sequence[int],
    inputs: int,
    noise: float,
    activation: Literal["tanh", "relu"],
    generator: np.random.Generator,
    tests: int = 1000,
) -> Iterator[Problem]:
    """One data set seen through growing sets of random features; the error on fresh rows without noise."""
    act = np.tanh if activation == "tanh" else lambda values: np.maximum(values, 0)
    truth = generator.normal(size=inputs)
    truth /= np.linalg.norm(truth)
    x, fresh = generator.normal(size=(rows, inputs)), generator.normal(size=(tests, inputs))
    y = x @ truth + math.sqrt(noise) * generator.normal(size=rows)
    mixing = generator.normal(size=(inputs, max(counts))) / math.sqrt(inputs)
    seen, wanted = act(x @ mixing), (fresh @ truth)[:, None]
    tested = act(fresh @ mixing)
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


def table(curve: RiskCurve) -> str:
    """Markdown: a row for each size, a column for each rate; medians, and the mean with its standard error."""
    head = [curve.size_name, *(f"rate {rate:g}" for rate in curve.rates), "chosen", "chosen rate"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in summarise(curve):
        cells = [f"{v['median']:.4g} ({v['mean']:.4g} ± {v['error']:.2g})" for v in row["rates"].values()]
        v = row["chosen"]
        cells += [f"{v['median']:.4g} ({v['mean']:.4g} ± {v['error']:.2g})", f"{v['rate']:.3g}"]
        lines.append(f"| {row['size']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(curve: RiskCurve, title: str = "") -> str:
    """SVG: medians over sizes, the band of the middle 80 %, theory dashed, the threshold dotted."""
    from mickle import figures

    shown = sorted({0, *np.linspace(0, len(curve.rates) - 1, min(4, len(curve.rates))).round().astype(int)})

    def paint(axes: Any) -> None:
        for column in shown:
            rate = curve.rates[column]
            errors = curve.errors[:, column]
            (line,) = axes.plot(
                curve.sizes, np.median(errors, 1), label="no dropout" if rate == 0 else f"rate {rate:g}"
            )
            axes.fill_between(curve.sizes, *np.quantile(errors, (0.1, 0.9), axis=1), alpha=0.1)
            if curve.theory is not None:
                known = np.where(np.isfinite(curve.theory[:, column]), curve.theory[:, column], np.nan)
                axes.plot(curve.sizes, known, "--", color=line.get_color(), linewidth=0.9)
        axes.plot(curve.sizes, np.median(curve.chosen_errors, 1), color="#d9534f", linewidth=2, label="chosen")
        if curve.best_theory is not None:
            axes.plot(curve.sizes, curve.best_theory, "--", color="#d9534f", linewidth=0.9, label="theory")
        axes.axvline(curve.threshold, color=figures.INK, linestyle=":", label="threshold")
        axes.set(xlabel=curve.size_name, ylabel=curve.error_name, xscale="log", yscale="log")
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

    return figures.draw(paint, height=3.2)
