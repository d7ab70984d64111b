"""Run a study: tune every arm on its own seeds, run the reported cells, compare in pairs, give verdicts.

    from mickle.studies.declaration import Arm, Cell, Comparison, Scale, Study   # for a page
    result = run_study(study, "quick", Place(work))    # what `mickle study` calls

Every cell is kept under ``work`` when it is done, so a killed run goes on; a failed cell is tried again by
the next run and stands in the result as a failure until it succeeds. Lack of disk or memory ends the run instead.
"""

import math
import shutil
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mickle import storage
from mickle.errors import ResourceError, UsageError
from mickle.evaluation.compare import LEAST_SEEDS
from mickle.events import Emit, Noted, Progressed, Started, Warned, ignore
from mickle.studies.analysis import compare_all
from mickle.studies.declaration import (
    FIRST_TUNING_SEED,
    SEEDS_OF_A_RUN,
    Cell,
    Measurements,
    Phase,
    RunCell,
    Scale,
    Study,
)
from mickle.studies.own import OWN
from mickle.studies.results import Result, code_digest, declaration, declaration_hash, digest, versions_read, without
from mickle.studies.workers import run_all


@dataclass(frozen=True)
class CellRun:
    """A cell with its outcome; ``measured`` is empty when ``failure`` says why."""

    phase: Phase
    cell: Cell
    measured: Measurements
    failure: str
    seconds: float


@dataclass(frozen=True)
class Place:
    """Where cells run and are kept, who hears of them, and how many processes share them."""

    work: Path
    emit: Emit = ignore
    workers: int = 2


def run_study(study: Study, scale: str, place: Place, seed: int = 0) -> Result:
    """Run a study at one scale and return its result as JSON values.

    ``place.workers`` one-thread processes share the cells (0: this process does them). ``seed`` other than 0 is a
    replication: the same study on other seeds. The result has: declaration, hash, seed, chosen settings, comparisons,
    runs.
    """
    scale_of(study, scale)
    if lacking := [name for name, version in versions_read(study).items() if version == "none"]:
        raise _not_installed(study, ", ".join(lacking))
    tuning = run_cells(study, scale, "tuning", tuning_cells(study, scale, seed), place)
    chosen = choose(study, tuning)
    reported = run_cells(study, scale, "reported", reported_cells(study, scale, chosen, seed), place)
    runs = [*tuning, *reported]
    indicative = scale == "quick" or study.scales[scale].seeds < LEAST_SEEDS
    rows = compare_all(study, measured_cells(reported))
    return {
        "declaration": declaration(study, scale),
        "hash": declaration_hash(study, scale),
        "reads": versions_read(study),
        "seed": seed,
        "indicative": indicative,
        "chosen": [{"world": w, "arm": a, "setting": dict(s)} for (w, a), s in chosen.items()],
        "comparisons": [{**row, **HINT} for row in rows] if indicative else rows,
        "failures": sum(bool(run.failure) for run in runs),
        "cell_seconds": round(sum(run.seconds for run in runs), 1),
        "runs": [{**asdict(run), "cell": known_cell(run.cell)} for run in runs],
    }


HINT = {"verdict": "indicative", "larger": False}  # of a quick run, whatever its numbers


def known_cell(cell: Cell) -> dict[str, Any]:
    """What a cell is known by, as JSON values: all but where a person's own data and model lie (contents count)."""
    return asdict(cell) | {"values": without(cell.values, OWN)}


def scale_of(study: Study, name: str) -> Scale:
    """The study's scale of this name. Raises ``UsageError`` where it declares none."""
    if name not in study.scales:
        raise UsageError(f"Study {study.name} has no scale {name!r}", expected=f"one of: {', '.join(study.scales)}")
    return study.scales[name]


def tuning_cells(study: Study, scale: str, seed: int = 0) -> list[Cell]:
    """Every arm's every setting in every world on the tuning seeds; none where there is nothing to choose."""
    if study.trials == 1:
        return []
    sizes = study.scales[scale]
    values = {**sizes.values, **sizes.tuning_values, **paths(study)}
    first = seed * SEEDS_OF_A_RUN + FIRST_TUNING_SEED
    return [
        Cell(arm.name, world, setting, first + trial, values)
        for world in study.worlds
        for trial in range(sizes.tuning_seeds)
        for arm in study.arms
        for setting in arm.grid
    ]


def reported_cells(study: Study, scale: str, chosen: dict[tuple[str, str], Any], seed: int = 0) -> list[Cell]:
    """Every arm with its chosen setting in every world on seeds 0, 1, 2, ... (a replication's begin elsewhere)."""
    sizes = study.scales[scale]
    values = {**sizes.values, **paths(study)}
    first = seed * SEEDS_OF_A_RUN
    return [
        Cell(arm.name, world, chosen[world, arm.name], first + repeat, values)
        for repeat in range(sizes.seeds)
        for world in study.worlds
        for arm in study.arms
    ]


def paths(study: Study) -> dict[str, str]:
    """Where a person's own data and model lie, as dials of a cell: ``data``, ``model``."""
    return {name: str(path) for name, path in study.own.items()}


def choose(study: Study, tuning: list[CellRun]) -> dict[tuple[str, str], Any]:
    """For each (world, arm) the setting with the best mean of ``tune_by``.

    One with a failed cell loses to any other. Ties go to the setting declared first.
    Raises ``UsageError`` when every setting of an arm failed.
    """
    trials: dict[tuple[str, str, str], list[CellRun]] = {}
    for run in tuning:
        trials.setdefault((run.cell.world, run.cell.arm, digest(run.cell.setting)), []).append(run)
    chosen = {}
    for world, arm in product(study.worlds, study.arms):
        costs = [cost(study, trials.get((world, arm.name, digest(setting)), [])) for setting in arm.grid]
        if min(costs) == math.inf:
            raise UsageError(
                f"Every tuning trial of arm {arm.name!r} failed in world {world!r}",
                where=f"study {study.name}",
                todo="The warnings above say why each cell failed.",
            )
        chosen[world, arm.name] = arm.grid[costs.index(min(costs))]
    return chosen


def cost(study: Study, trials: list[CellRun]) -> float:
    """The mean of ``tune_by`` over one setting's trials, turned so that lower is better.

    Infinite if any trial failed; zero where there were none, which is the case of an only setting.
    """
    if any(trial.failure for trial in trials):
        return math.inf
    if missing := [trial for trial in trials if study.tune_by not in trial.measured]:
        raise UsageError(
            f"Arm {missing[0].cell.arm!r} did not measure {study.tune_by!r}, by which settings are chosen",
            where=f"study {study.name}",
        )
    sign = 1.0 if study.tune_better == "lower" else -1.0
    return sign * math.fsum(trial.measured[study.tune_by] for trial in trials) / max(len(trials), 1)


def run_cells(study: Study, scale: str, phase: Phase, cells: list[Cell], place: Place) -> list[CellRun]:
    """Run the cells that are not kept from an earlier try; return all of them in the order given."""
    if not cells:
        return []
    folder = place.work / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    code, reads = code_digest(study), versions_read(study)
    keys = [digest([study.version, reads, code, known_cell(cell)]) for cell in cells]
    files = {key: folder / f"{key}.json" for key in keys}
    kept = {key: storage.read_json(file) for key, file in files.items() if file.exists()}
    missing = {
        key: (study.run_cell, cell, place.work / "running" / key) for key, cell in zip(keys, cells) if key not in kept
    }
    place.emit(Started(f"{study.name}: {phase} cells", len(cells), "cells"))
    if kept:
        place.emit(Noted(f"{len(kept)} of {len(cells)} cells were kept from an earlier run"))
    done = len(kept)
    limit = study.scales[scale].cell_seconds
    for outcome in run_all(run_one, missing, workers=place.workers, limit_seconds=limit):
        entry = {"measured": outcome.value or {}, "failure": outcome.failure, "seconds": round(outcome.seconds, 3)}
        kept[outcome.key] = entry
        cell = missing[outcome.key][1]
        name = f"{cell.arm} in {cell.world}, seed {cell.seed}"
        if outcome.failure.startswith("ModuleNotFoundError"):
            raise _not_installed(study, outcome.failure.split(": ", 1)[1])
        if outcome.failure.startswith(ResourceError.__name__):  # no answer to the study's question: nothing is sealed
            raise ResourceError(
                f"A cell could not be done ({name}): {outcome.failure.split(': ', 1)[1]}",
                todo="mend that and run the same command again: finished cells are kept",
            )
        if outcome.failure:
            place.emit(Warned(f"a {phase} cell failed ({name}): {outcome.failure}"))
        elif code_digest(study) == code:  # else: it changed while the cell ran, and nobody knows which one computed it
            storage.write_json(files[outcome.key], entry)
        done += 1
        place.emit(Progressed(done, name))
    return [CellRun(phase, cell, **kept[key]) for key, cell in zip(keys, cells)]


def _not_installed(study: Study, what: str) -> UsageError:
    return UsageError(
        f"Study {study.name} needs a package that is not installed ({what}).", todo="pip install 'mickle[studies]'"
    )


def run_one(task: tuple[RunCell, Cell, Path]) -> Measurements:
    """Run one cell in its own empty folder and check what it measured. Runs in a worker process."""
    run_cell, cell, folder = task
    with storage.disk_errors(folder):
        storage.remove(folder)
        folder.mkdir(parents=True)
        try:
            measured = run_cell(cell, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    if "budget" not in measured:
        raise UsageError("The cell did not measure its budget", expected='"budget": how much of the unit it spent')
    for name, value in measured.items():
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers):
            raise UsageError(f"Measurement {name!r} holds what is not a finite number", expected="finite numbers")
    return measured


def measured_cells(reported: list[CellRun]) -> dict[tuple[str, int], dict[str, Measurements]]:
    """{(world, seed): {arm: measurements}}; an arm whose cell failed is absent."""
    tables: dict[tuple[str, int], dict[str, Measurements]] = {}
    for run in reported:
        table = tables.setdefault((run.cell.world, run.cell.seed), {})
        if not run.failure:
            table[run.cell.arm] = dict(run.measured)
    return tables
