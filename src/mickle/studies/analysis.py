"""From measured cells to verdicts: arms paired by seed, averaged over worlds; interval, power, verdict."""

import math
from typing import Any

from mickle.errors import UsageError
from mickle.evaluation.compare import Interval, benefits, detectable, holm, is_larger, paired_t, verdict
from mickle.studies.declaration import Comparison, Measurements, Study

Tables = dict[tuple[str, int], dict[str, Measurements]]  # {(world, seed): {arm: measurements}}
Row = dict[str, Any]
LARGEST_LOGARITHM = 700.0  # of a floating-point number; the interval of two seeds can reach beyond
AVERAGED = ("method", "baseline", "budget_ratio")
NOTHING = Interval(0, math.nan, -math.inf, math.inf, math.nan, math.nan)  # when no pair was measured


def compare_all(study: Study, tables: Tables) -> list[Row]:
    """Every declared comparison as a row, its p-value also corrected over the study's comparisons (Holm).

    ``derive`` runs first, on each (world, seed) in which no arm failed.
    """
    whole = len(study.arms)
    if study.derive is not None:
        tables = {key: study.derive(table) if len(table) == whole else table for key, table in tables.items()}
    for key, table in tables.items():
        if len(table) == whole:
            require_measures(study, key, table)
    seeds = sorted({seed for _, seed in tables})
    rows = [compare_one(comparison, tables, seeds) for comparison in study.comparisons]
    known = [row for row in rows if row["p"] is not None]
    for row, adjusted in zip(known, holm([row["p"] for row in known])):
        row["p_holm"] = adjusted
    return rows


def require_measures(study: Study, key: tuple[str, int], table: dict[str, Measurements]) -> None:
    """Raise ``UsageError`` when a cell that ran does not report what a comparison is about (a misspelt measure)."""
    for comparison in study.comparisons:
        if key[0] not in comparison.worlds:
            continue
        for arm in (comparison.method, comparison.baseline):
            if comparison.measure not in table[arm]:
                raise UsageError(
                    f"Arm {arm!r} did not measure {comparison.measure!r}",
                    where=f"study {study.name}, comparison {comparison.name!r}, world {key[0]!r}",
                    expected=f"one of what it measured: {', '.join(table[arm])}",
                )


def compare_one(comparison: Comparison, tables: Tables, seeds: list[int]) -> Row:
    """One comparison's row of JSON values. A seed without a measurement (a failed cell) forbids a verdict."""
    pairs = [pair for seed in seeds if (pair := paired_seed(comparison, tables, seed)) is not None]
    effects = [pair["benefit"] for pair in pairs]
    interval = paired_t(effects) if effects else NOTHING
    smallest = detectable(interval.deviation, interval.n)
    claimed = comparison.claimed
    missing = len(seeds) - len(pairs)
    averages = {name: finite(mean([pair[name] for pair in pairs])) for name in AVERAGED}
    return {
        "name": comparison.name,
        "seeds": interval.n,
        "missing_pairs": missing,
        **averages,
        "pairs": pairs,
        "benefit": finite(interval.mean),
        "low": finite(interval.low),
        "high": finite(interval.high),
        "p": finite(interval.p) if interval.n > 1 else None,
        "p_holm": None,
        "detectable": finite(smallest),
        "claimed_benefit": claimed,
        "verdict": "too small to tell" if missing else verdict(interval, claimed, smallest, comparison.no_gain),
        "larger": not missing and not comparison.no_gain and is_larger(interval, claimed),
    }


def paired_seed(comparison: Comparison, tables: Tables, seed: int) -> Row | None:
    """One seed's measures, budget ratio and benefit, each a mean over worlds; None if any is missing."""
    measured = []
    for world in comparison.worlds:
        table = tables.get((world, seed), {})
        arms = table.get(comparison.method, {}), table.get(comparison.baseline, {})
        if any(comparison.measure not in arm for arm in arms):
            return None
        measured.append(arms)
    method = [float(arm[comparison.measure]) for arm, _ in measured]
    baseline = [float(arm[comparison.measure]) for _, arm in measured]
    return {
        "seed": seed,
        "method": mean(method),
        "baseline": mean(baseline),
        "budget_ratio": mean([m["budget"] / b["budget"] for m, b in measured]),
        "benefit": mean(benefits(method, baseline, comparison.better, comparison.form)),
    }


def as_declared(benefit: float, form: str, better: str) -> float:
    """A benefit in the units of the declaration: a gain, or the ratio method/baseline."""
    if form == "difference":
        return benefit
    logarithm = benefit if better == "higher" else -benefit
    return math.exp(logarithm) if logarithm < LARGEST_LOGARITHM else math.inf


def mean(values: list[float]) -> float:
    """The arithmetic mean; not a number when there is none."""
    return math.fsum(values) / len(values) if values else math.nan


def finite(value: float) -> float | None:
    """The number, or None (JSON has neither infinity nor NaN)."""
    return value if math.isfinite(value) else None
