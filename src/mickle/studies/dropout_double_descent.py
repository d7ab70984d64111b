"""Dropout against double descent: does the right rate before the last layer take the whole peak away?

"Dropout Drops Double Descent" (arXiv 2305.16179): without dropout the test error peaks where a model just interpolates
its data; with the best rate the error falls monotonically in rows and in model size. The paper shows curves. What is
measured here is a curve's climb, the largest log(later error / earlier error) over growing sizes, 0 for a curve that
only falls; ``peak_left`` is an arm's climb as a share of the climb without dropout. Where that one climbs by less than
a tenth there is no peak, nothing can be taken away, and every arm is said to have left all of it.

Worlds: ``isotropic`` and ``power_law``, linear, over rows; ``features``, random features, over their number at fixed
rows; ``digits_width`` and ``digits_rows``, a network of one hidden layer on scikit-learn's digits with 20 % of the
training labels drawn at random. A cell is a whole curve: geometric means over replicates of the seed's data, the
same for all arms.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mickle.studies import own_table
from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mickle.regression.risk import Problem

NO_PEAK = math.log(1.1)  # a smaller climb without dropout is no peak
SMALLEST_ERROR = 1e-9  # keeps logarithms finite


def run_cell(cell: Cell, work: Path) -> Measurements:
    """One arm's curve in one world: its climb, its error at the threshold and at the largest size."""
    if cell.world.startswith("digits"):
        errors, rates, budget = digits_curve(cell)
    else:
        errors, rates, budget = linear_curve(cell)
    from mickle.regression.risk import climb

    logs = [[math.log(max(error, SMALLEST_ERROR)) for error in row] for row in errors]
    curve = [math.exp(math.fsum(row) / len(row)) for row in logs]
    sizes, probe = own_table.sizes_of(cell)
    near = [error for size, error in zip(sizes, curve) if size == probe]
    return {
        "budget": budget,
        "climb": climb(curve),
        "near_threshold": near[0],
        "at_largest": curve[-1],
        "whole_curve": math.exp(math.fsum(map(math.log, curve)) / len(curve)),
        "sizes": sizes,
        "curve": curve,
        "rate": [sum(row) / len(row) for row in rates],
    }


# -- linear worlds -------------------------------------------------------------------------------------------------


def linear_curve(cell: Cell) -> tuple[list[list[float]], list[list[float]], int]:
    """Excess risks and rates by size and replicate, and the training rows that were used."""
    values = cell.values
    errors: list[list[float]] = [[] for _ in own_table.sizes_of(cell)[0]]
    rates: list[list[float]] = [[] for _ in errors]
    budget = 0
    for replicate in range(values["replicates"]):
        generator = np.random.default_rng((cell.seed, replicate))
        for place, problem in enumerate(problems(cell, generator)):
            error, rate = fit_linear(cell.arm, problem, cell.world in ("features", own_table.YOURS))
            errors[place].append(error)
            rates[place].append(rate)
            budget += len(problem[0])
    return errors, rates, budget


def problems(cell: Cell, generator: np.random.Generator) -> Iterator[Problem]:
    """One replicate's data sets, a size each."""
    from mickle.regression.risk import feature_problems, gaussian_problem

    if cell.world == own_table.YOURS:
        yield from own_table.problems(own_table.opened(cell.values["data"]), generator)
        return
    values, sizes = cell.values, cell.values["sizes"][cell.world]
    if cell.world == "features":
        yield from feature_problems(values["feature_rows"], sizes, values["feature_inputs"], values["noise"], generator)
        return
    columns, spectrum = values["columns"], None
    if cell.world == "power_law":
        raw = [1 / (place + 1) for place in range(columns)]
        spectrum = [value * columns / sum(raw) for value in raw]
    for size in sizes:
        yield gaussian_problem(columns, size, 1.0, values["noise"], spectrum, generator)


def fit_linear(arm: str, problem: Problem, intercept: bool) -> tuple[float, float]:
    """One arm's excess risk on one data set, and its rate (for ridge a / (1 + a), a the penalty a row)."""
    from mickle.regression.path import DEFAULT_RATES, choose_rate, trace_path

    x, y, error = problem
    if arm == "ridge":
        return fit_ridge(problem, intercept)
    fixed = {"none": [0.0], "half": [0.5]}.get(arm)
    path = trace_path(x, y, fixed or DEFAULT_RATES, intercept=intercept)
    weights = path.weights()
    risks = error(weights, path.intercepts(weights))
    place = choose_rate(path) if arm == "chosen" else int(risks.argmin()) if arm == "oracle" else 0
    return float(risks[place]), float(path.rates[place])


def fit_ridge(problem: Problem, intercept: bool) -> tuple[float, float]:
    """scikit-learn's ridge, its penalty chosen by its own leave-one-out on as many values as dropout may try."""
    from sklearn.linear_model import RidgeCV

    from mickle.regression.path import DEFAULT_RATES

    x, y, error = problem
    penalties = np.array([rate / (1 - rate) for rate in DEFAULT_RATES if rate > 0])
    penalties *= len(x) * ((x - x.mean(0)) ** 2).mean()
    found = RidgeCV(penalties, fit_intercept=intercept).fit(x, y[:, 0])
    share = found.alpha_ / penalties[0] * 1e-4
    weights, shift = found.coef_[None, :, None], np.full((1, 1), float(found.intercept_))
    return float(error(weights, shift)[0]), float(share / (1 + share))


# -- networks ------------------------------------------------------------------------------------------------------


def digits_curve(cell: Cell) -> tuple[list[list[float]], list[list[float]], int]:
    """Squared test errors and dropout rates (weight decays for ridge) by size and replicate, and training rows."""
    from mickle.studies.digits import train_nets

    values = cell.values
    errors, rates, budget = [], [], 0
    for size in values["sizes"][cell.world]:
        width, rows = (size, values["net_rows"]) if cell.world == "digits_width" else (values["net_width"], size)
        found = train_nets(cell.arm, values, cell.seed, width, rows)
        errors.append([error for error, _ in found])
        rates.append([rate for _, rate in found])
        budget += values["net_replicates"] * (rows + values["validation_rows"])
    return errors, rates, budget


# -- the declaration -----------------------------------------------------------------------------------------------


def share_of_peak(table: dict[str, Measurements]) -> dict[str, Measurements]:
    """Adds ``peak_left``: each arm's climb as a share of the climb without dropout; 1 where there was no peak."""
    peak = table["none"]["climb"]
    return {
        arm: {**measured, "peak_left": measured["climb"] / peak if peak > NO_PEAK else 1.0}
        for arm, measured in table.items()
    }


WORLDS = ("isotropic", "power_law", "features", "digits_width", "digits_rows")
ROWS = (20, 40, 60, 80, 90, 95, 100, 105, 110, 120, 150, 200, 300, 500)
CURVES: dict[str, tuple[int, ...]] = {
    "isotropic": ROWS,
    "power_law": ROWS,
    "features": (10, 20, 40, 75, 100, 125, 140, 150, 160, 175, 225, 300, 500, 1000),
    "digits_width": (4, 8, 16, 32, 64, 128),
    "digits_rows": (40, 80, 160, 240, 400, 700),
}
PROBES = {"isotropic": 110, "power_law": 110, "features": 160, "digits_width": 16, "digits_rows": 160}
SIZES: dict[str, Any] = (
    {"sizes": CURVES, "probe": PROBES}
    | {"columns": 100, "noise": 0.25, "replicates": 20, "feature_rows": 150, "feature_inputs": 20}
    | {"label_noise": 0.2, "test_rows": 600, "validation_rows": 200}
    | {"net_rows": 200, "net_width": 20, "net_replicates": 2, "net_steps": 2000, "net_learning_rate": 0.01}
    | {"net_rates": (0.0, 0.2, 0.5, 0.8), "decays": (0.0, 0.3, 1.0, 3.0), "device": "cpu"}
)
QUICK_CURVES: dict[str, tuple[int, ...]] = {
    **{"isotropic": ROWS[2:], "power_law": ROWS[2:], "features": (20, 40, 75, 125, 150, 160, 225, 300)},
    **{"digits_width": (4, 8, 16, 32, 64), "digits_rows": (80, 160, 240, 400)},
}
QUICK: dict[str, Any] = {"sizes": QUICK_CURVES, "replicates": 6, "net_replicates": 1, "net_steps": 1500}
GPU_CURVES: dict[str, tuple[int, ...]] = {
    **CURVES,
    "digits_width": (2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 256, 512),
    "digits_rows": (40, 60, 80, 100, 120, 140, 160, 200, 240, 320, 400, 700, 990),
}
GPU: dict[str, Any] = {"sizes": GPU_CURVES, "net_replicates": 20, "net_steps": 4000, "device": "cuda"}


LEFT = "{value:.1%} of the peak is left"
peak = partial(
    Comparison, better="lower", form="difference", worlds=WORLDS, says=LEFT
)  # the claim: nothing of it is left
risk = partial(Comparison, better="lower", form="ratio", worlds=("isotropic",))
PEAK = "peak_left"
FIGURES = "its figures: no rise is left"
THRESHOLD = "theory: .355 at the best rate, 2.78 without dropout"
RIDGE = "not in the paper; arXiv 2003.01897 proves it"
FAR = "monotone is not good: excess risk at n = 5 p, chosen rate against .5"
LARGEST = "theory: .058 and .300"

study = Study(
    name="dropout_double_descent",
    title="Dropout Drops Double Descent",
    paper="2305.16179",
    claim=(
        "With the best rate of dropout before the last linear layer the test error falls monotonically in rows and"
        " in model size: in linear and random-feature regression and in networks (the paper's figures)."
    ),
    budget_unit="training rows",
    arms=(
        Arm("none", "no dropout: minimum-norm least squares, or the network as it is"),
        Arm("chosen", "dropout, the rate chosen from the data (leave-one-out; networks: a validation split)"),
        Arm("half", "dropout of rate .5 at every size"),
        Arm("oracle", "dropout, the rate with the least test error: cheats, shows what a better choice would give"),
        Arm("ridge", "no dropout, a tuned L2 penalty (RidgeCV; networks: weight decay, validation split)"),
    ),
    comparisons=(
        peak("share of the peak that is left, all worlds", "chosen", "none", PEAK, 1.0, FIGURES, headline=True),
        peak("the same, linear, isotropic inputs", "chosen", "none", PEAK, 1.0, FIGURES, worlds=("isotropic",)),
        peak("the same, linear, power-law spectrum", "chosen", "none", PEAK, 1.0, FIGURES, worlds=("power_law",)),
        peak("the same, random features, by their number", "chosen", "none", PEAK, 1.0, FIGURES, worlds=("features",)),
        peak("the same, networks on digits, by width", "chosen", "none", PEAK, 1.0, FIGURES, worlds=("digits_width",)),
        peak("the same, networks on digits, by rows", "chosen", "none", PEAK, 1.0, FIGURES, worlds=("digits_rows",)),
        peak("fixed rate .5, all worlds", "half", "none", PEAK, 1.0, "v3: a fixed rate within a range is monotone"),
        peak("control: tuned ridge, the same worlds", "ridge", "none", PEAK, 1.0, RIDGE),
        risk("excess risk at n = 1.1 p, isotropic", "chosen", "none", "near_threshold", 0.128, THRESHOLD),
        risk(FAR, "chosen", "half", "at_largest", 0.193, LARGEST),
    ),
    rule=(
        "A curve's climb is the largest log(later / earlier error) over growing sizes, of geometric means over the"
        " seed's replicates. The headline is reproduced when the chosen rate leaves at most half of the climb without"
        " dropout, averaged over five worlds; the claim itself is that it leaves nothing, so the table's number is to"
        " be read: 1 is all of the peak gone. A world whose curve without dropout climbs by less than a tenth counts as"
        " no benefit."
    ),
    scales={
        "quick": Scale(seeds=2, values={**SIZES, **QUICK}, cell_seconds=60),
        "full": Scale(seeds=5, values=SIZES, cell_seconds=300),
        "gpu": Scale(seeds=8, values={**SIZES, **GPU}, cell_seconds=3600),
    },
    run_cell=run_cell,
    reads=("numpy", "torch", "scikit-learn"),
    worlds=WORLDS,
    derive=share_of_peak,
    takes=own_table.TAKES,
    departures=(
        "100 columns and 150 rows, not 500; excess risk, without the noise of new targets",
        "the rate is chosen from the data by leave-one-out, not read off the test error",
        "networks of one hidden layer of 4 to 128 units on 8 x 8 digits, squared loss and squared test error, 2,000"
        " full-batch steps of Adam; the paper has deeper networks, Fashion-MNIST and CIFAR-10, thousands of epochs",
        "steps, rate, sizes and test measure of the networks were set by pilots without dropout, on other splits"
        " and seeds, so that there is a peak; the page in docs/studies says what was seen",
    ),
)
