"""What a study declares before it runs: claim, arms, settings tried, measure, rule, scales.

A study is one module in this folder with a top-level ``study = Study(...)`` and a function that runs one
cell. Modules are found by looking at the folder; nothing is registered. Importing a page must stay cheap
(no torch at its top), so that ``mickle study`` can list all of them.
"""

import difflib
import importlib
import importlib.util
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import mickle.studies
from mickle import storage
from mickle.errors import UsageError
from mickle.evaluation.compare import LEAST_SEEDS, Better, Form

Setting = Mapping[str, Any]  # what one arm is run with: {"learning_rate": 1e-3}; JSON values only
Measurements = dict[str, Any]  # numbers, and lists of numbers for curves; JSON values only
Phase = Literal["tuning", "reported"]
SEEDS_OF_A_RUN = 10_000  # a replication's seeds begin at a multiple of this
PAGE = re.compile(r"^study(: Study)? = Study\(", re.MULTILINE)  # the mark of a study's page
FIRST_TUNING_SEED = 1000  # reported seeds are 0, 1, 2, ...; a choice is never made on a seed that is reported


@dataclass(frozen=True)
class Arm:
    """One contestant and the settings its tuning may try; every arm of a study gets the same number."""

    name: str
    what: str  # one line for the reader
    grid: tuple[Setting, ...] = ({},)


@dataclass(frozen=True)
class Comparison:
    """One question: does arm ``method`` beat arm ``baseline`` on ``measure``?

    ``paper_effect`` is in the units of ``form``: for ``difference`` the paper's gain (positive: better by
    so much), for ``ratio`` the paper's method/baseline (0.5 with ``better="lower"`` = half of the
    baseline's). Where the paper says that there is ``no_gain``, it is what would count as one. Over several
    ``worlds`` the benefit of a seed is the mean of its benefits in them (of logarithms, for ratios).

    ``says`` reads the figure to a stranger, with its unit and direction: a format string with one of ``{ratio}``
    (method/baseline), ``{change}`` (method - baseline, of the measure itself), ``{points}`` (the same times 100),
    ``{gain}`` (the benefit: positive is better), ``{value}`` (the method's own measure; only where the baseline's is
    one number by definition). Tables fill it with our figure and interval, and with the paper's:
    ``"perplexity rises by {value:.2f} %"``, ``"needs {ratio:.0%} of AdamW's steps"``.
    """

    name: str
    method: str
    baseline: str
    measure: str
    paper_effect: float
    paper: str  # where the paper says so, in a few words: "abstract: 2x fewer steps, 125M to 1.5B"
    better: Better
    form: Form
    worlds: tuple[str, ...] = ("default",)
    headline: bool = False  # exactly one in a study: the row of README's table
    no_gain: bool = False
    says: str = ""

    @property
    def claimed(self) -> float:
        """The paper's effect as a benefit, positive on the side declared better: the gain, or the ratio's logarithm."""
        if self.form == "difference":
            return self.paper_effect
        logarithm = math.log(self.paper_effect) if self.paper_effect > 0 else math.nan
        return logarithm if self.better == "higher" else -logarithm


@dataclass(frozen=True)
class Scale:
    """How large a run is: ``quick`` at most 3 minutes on two cores, ``full`` at most 30, ``gpu`` one GPU.

    ``values`` are the page's own dials (steps, width, ...), handed to every cell; ``tuning_values`` replace
    some of them in the tuning phase (a shorter run). ``cell_seconds`` bounds one cell: past it the cell is
    ended and failed.
    """

    seeds: int
    values: Mapping[str, Any] = field(default_factory=dict)
    tuning_seeds: int = 1
    tuning_values: Mapping[str, Any] = field(default_factory=dict)
    cell_seconds: float = 600.0


@dataclass(frozen=True)
class Cell:
    """One run: an arm with one setting in one world with one seed. The unit that is kept when done.

    ``seed`` is shared by all arms: take initial weights, data and batches from it, so that arms are pairs.
    """

    arm: str
    world: str
    setting: Setting
    seed: int
    values: Mapping[str, Any]  # the scale's dials, those of the tuning phase already put in


RunCell = Callable[[Cell, Path], Measurements]


@dataclass(frozen=True)
class Taking:
    """What a study takes of a person's own in place of what it has itself, or why nothing.

    ``data`` and ``model`` say what may be given; "" where it is not taken, and ``instead`` says why. It is asked in
    ``worlds``, by the study's comparisons there or by ``comparisons`` of its own. ``minutes`` are what the page's
    largest scale then takes on two cores; with other hours, ``dials`` of its values (numbers, or numbers by world)
    change in proportion. ``check(values)`` reads the data as a cell will and raises what is wrong, before any cell
    runs. Cells find the paths in ``cell.values`` as ``data`` and ``model``.
    """

    data: str = ""
    model: str = ""
    instead: str = ""
    worlds: tuple[str, ...] = ("default",)
    comparisons: tuple[Comparison, ...] = ()
    minutes: float = 30.0
    dials: tuple[str, ...] = ("steps",)
    check: Callable[[Mapping[str, Any]], object] | None = None


@dataclass(frozen=True)
class Study:
    """The declaration. ``run_cell(cell, work)`` runs one cell and returns its measurements.

    ``run_cell`` must be a function at the top of its module (a worker process imports it), deterministic in
    its cell, and return a dict of JSON values that holds every measure named below and ``"budget"``: how
    much of ``budget_unit`` the cell spent. ``work`` is an empty folder of the cell, deleted after it. A run
    that diverges should return its large finite loss; an exception is a failure, reported as such.

    ``derive({arm: measurements})`` may add measurements that need all arms of one (world, seed), such as
    ranks or steps to the baseline's final loss; it returns the same dict, added to. ``tune_by`` names the
    measure (and ``tune_better`` its side) by which each arm's setting is chosen, in each world on its own,
    by the mean over the tuning seeds; the reported seeds are others.

    ``version`` is raised by hand when the code that computes the cells moves their numbers: older results are stale
    then. ``reads`` says what else the numbers depend on: installed packages whose text or code the cells read (by
    name; ``python`` is the standard library), and files or folders of data (as paths). ``takes`` says what a person may
    give of their own, and ``own`` is what was given (``studies/own.py``).
    """

    name: str  # the module's name
    title: str  # the paper's title
    paper: str  # arXiv id
    claim: str  # in our words, with figure or table number
    budget_unit: str  # what the arms spend equally: "tokens", "steps", "bytes", "seconds", "labels", ...
    arms: tuple[Arm, ...]
    comparisons: tuple[Comparison, ...]
    rule: str  # in words: what would count as what, stated before the run
    scales: Mapping[str, Scale]
    run_cell: RunCell
    worlds: tuple[str, ...] = ("default",)
    tune_by: str = ""
    tune_better: Better = "lower"
    derive: Callable[[dict[str, Measurements]], dict[str, Measurements]] | None = None
    departures: tuple[str, ...] = ()  # where this differs from the paper, one line each
    version: int = 1
    reads: tuple[str | Path, ...] = ("python", "numpy", "torch")
    takes: Taking = Taking()
    own: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for problem in problems(self):
            raise UsageError(problem, where=f"study {self.name}", todo="See docs/studies.md, 'How to write one'.")

    @property
    def headline(self) -> Comparison:
        """The comparison that stands in README's table."""
        return next(comparison for comparison in self.comparisons if comparison.headline)

    @property
    def trials(self) -> int:
        """How many settings each arm may try."""
        return len(self.arms[0].grid)


STATED = ("name", "title", "paper", "claim", "budget_unit", "rule")
LISTED = ("worlds", "arms", "comparisons", "scales")


def problems(study: Study) -> list[str]:
    """What makes a declaration unfair or incomplete, as sentences; an empty list when it is sound."""
    missing = [f"It declares no {name}" for name in STATED + LISTED if not getattr(study, name)]
    return missing or [*arm_problems(study), *comparison_problems(study), *scale_problems(study)]


def arm_problems(study: Study) -> list[str]:
    """Arms must be told apart, have equal numbers of trials, and a measure to choose among them by."""
    found = []
    if len({arm.name for arm in study.arms}) != len(study.arms):
        found.append("Two arms have the same name")
    if len({len(arm.grid) for arm in study.arms}) > 1:
        counts = ", ".join(f"{arm.name} {len(arm.grid)}" for arm in study.arms)
        found.append(f"Arms have unequal numbers of tuning trials ({counts})")
    for arm in study.arms:
        if any(setting in arm.grid[:place] for place, setting in enumerate(arm.grid)):
            found.append(f"Arm {arm.name!r} has the same setting twice, which is one trial")
    if any(not arm.grid for arm in study.arms):
        found.append("An arm has no setting to run with")
    if any(len(arm.grid) > 1 for arm in study.arms) and not study.tune_by:
        found.append("Arms have several settings and tune_by does not say how to choose")
    return found


def comparison_problems(study: Study) -> list[str]:
    """One headline; names that are declared; a paper's effect that is a benefit."""
    found = []
    if sum(comparison.headline for comparison in study.comparisons) != 1:
        found.append("Not exactly one comparison is the headline")
    if len({comparison.name for comparison in study.comparisons}) != len(study.comparisons):
        found.append("Two comparisons have the same name")
    declared = {arm.name for arm in study.arms} | set(study.worlds)
    for comparison in study.comparisons:
        named = {comparison.method, comparison.baseline, *comparison.worlds}
        if unknown := ", ".join(sorted(named - declared)):
            found.append(f"Comparison {comparison.name!r} names what is not declared: {unknown}")
        if not comparison.claimed > 0:
            found.append(f"Comparison {comparison.name!r}: {comparison.paper_effect} is no benefit")
    return found


def scale_problems(study: Study) -> list[str]:
    """Both scales that everybody can run, or ``real`` alone, and but for ``quick`` enough seeds for a verdict."""
    if not ({"quick", "full"} <= set(study.scales) or set(study.scales) == {"real"}):
        return ["The scales quick and full are not both declared"]
    largest = "real" if "real" in study.scales else "full"
    if study.scales[largest].seeds < LEAST_SEEDS:
        seeds = study.scales[largest].seeds
        return [f"The {largest} scale has {seeds} seeds; {LEAST_SEEDS} are the least for a verdict"]
    found = []
    for name, scale in study.scales.items():
        if not 1 <= scale.seeds <= FIRST_TUNING_SEED:
            found.append(f"The scale {name} has {scale.seeds} seeds, not 1 to {FIRST_TUNING_SEED}")
        if study.trials > 1 and scale.tuning_seeds < 1:
            found.append(f"The scale {name} has no seed to choose among {study.trials} settings")
    return found


def page_names() -> list[str]:
    """The names of all studies: modules here with a top-level ``study = Study(...)``. Imports none of them."""
    paths = (path for folder in mickle.studies.__path__ for path in Path(folder).glob("*.py"))
    return sorted(path.stem for path in paths if PAGE.search(path.read_text(encoding="utf-8")))


def has_real(name: str) -> bool:
    """Whether a study is asked on a real model too: by a page ``NAME_real.py``, whose ``real`` is its declaration."""
    return any((Path(folder) / f"{name}_real.py").is_file() for folder in mickle.studies.__path__)


def open_study(name: str, scale: str = "full") -> Study:
    """The declaration of one study, by its name or as the file of a page that lies anywhere; at scale ``real`` that of
    its page for a real model. An unknown name is answered with the nearest known one.
    """
    if name.endswith(".py"):
        return _open_page(Path(name))
    if scale == "real" and has_real(name):
        real: Study = importlib.import_module(f"mickle.studies.{name}_real").real
        return real
    names = page_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise UsageError(
            f"There is no study {name!r}",
            expected=f"one of: {', '.join(names)}" if names else "a study page in mickle/studies",
            todo=f"did you mean {near[0]!r}?" if near else "list them with: mickle study",
        )
    return _named(importlib.import_module(f"mickle.studies.{name}"), name)


def _open_page(file: Path) -> Study:
    """The study of a page anywhere. Its folder joins those that modules are found in: worker processes look there."""
    if not file.is_file():
        raise storage.no_such(file, "page of a study")
    found = importlib.util.find_spec(file.stem)
    if found is not None and Path(found.origin or "").resolve() != file.resolve():
        raise UsageError(f"{file.stem} is the name of another module", where=str(file), todo="rename the page")
    if found is None:
        sys.path.append(str(file.resolve().parent))
    return _named(importlib.import_module(file.stem), file.stem)


def _named(module: ModuleType, name: str) -> Study:
    study = getattr(module, "study", None)
    if not isinstance(study, Study):
        raise UsageError(f"The page {name}.py declares no study", expected="study = Study(...) at its top")
    if study.name != name:
        raise UsageError(f"The page {name}.py declares the study {study.name!r}", expected=f"name={name!r}")
    return study
