"""Finished training runs: read from a file or from their folders, and what they say of the best number of epochs.

A run is a row with N (parameters), D (tokens read), U (unique tokens) and loss (held out, nats a token). The fitted law
(``repetition_fit.py``) falls with every epoch; a :class:`Pilot`, the curve of measured losses, can turn. Where both
speak, the pilot is right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mickle.data.rows import read_rows
from mickle.errors import UsageError
from mickle.storage import read_manifest

COLUMNS = ("N", "D", "U", "loss")


@dataclass(frozen=True)
class PastRun:
    """One finished training run; ``unique`` is never above ``tokens``."""

    parameters: float
    tokens: float
    unique: float
    loss: float

    @property
    def epochs(self) -> float:
        """How often each token was read."""
        return self.tokens / self.unique


@dataclass(frozen=True)
class Pilot:
    """Measured losses of one size on one text over several numbers of epochs, and the best number by a curve through
    them. ``at_edge``: the best is the least or largest number tried, and may lie beyond it.
    """

    parameters: float
    unique: float
    epochs: tuple[float, ...]
    losses: tuple[float, ...]
    best_epochs: float
    best_loss: float
    at_edge: bool


def pilots(runs: Iterable[PastRun]) -> list[Pilot]:
    """What runs of one size and text with at least three different numbers of epochs say of the best number.

    Losses at the same number are averaged. Inside the range the best is the lowest point of a parabola in ln(epochs)
    through the lowest loss and its neighbours; at an edge it is the edge.
    """
    groups: dict[tuple[float, float], dict[float, list[float]]] = {}
    for run in runs:
        curve = groups.setdefault((run.parameters, run.unique), {})
        curve.setdefault(round(run.epochs, 3), []).append(run.loss)
    return [
        _pilot(parameters, unique, sorted((epochs, sum(of) / len(of)) for epochs, of in curve.items()))
        for (parameters, unique), curve in groups.items()
        if len(curve) >= 3
    ]


def nearest_pilot(found: Sequence[Pilot], parameters: float, unique: float) -> Pilot | None:
    """The pilot whose size and text are nearest, in logarithms; None where there is none."""

    def distance(pilot: Pilot) -> float:
        return abs(math.log(pilot.parameters / parameters)) + abs(math.log(pilot.unique / unique))

    return min(found, key=distance, default=None)


def _turn(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Epochs and loss at the lowest point of the parabola in ln(epochs) through three points, the middle one lowest."""
    (left, before), (middle, lowest), (right, after) = ((math.log(epochs), loss) for epochs, loss in points)
    fall, rise = (lowest - before) / (middle - left), (after - lowest) / (right - middle)
    bend = (rise - fall) / (right - left)  # half of the second derivative
    if bend <= 0:
        return math.exp(middle), lowest
    slope = fall + bend * (middle - left)  # at the middle point
    return math.exp(middle - slope / (2 * bend)), lowest - slope**2 / (4 * bend)


def read_runs(source: Path) -> list[PastRun]:
    """Runs from CSV, JSON (a list of objects) or JSON lines with N, D, U and loss, other columns being left alone; or
    from a folder of model folders that `mickle pretrain` made, each with its last held-out loss.

    Raises UsageError naming the line, entry or folder that is wrong.
    """
    source = Path(source)
    rows = _folder_rows(source) if source.is_dir() else _rows(source)
    if not rows:
        raise UsageError("There is no run here.", where=str(source))
    return [_checked(row, place) for place, row in rows]


def _folder_rows(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Each finished pretraining in ``folder`` as a row. All must have one vocabulary: losses are per token."""
    rows: list[tuple[str, dict[str, Any]]] = []
    sizes: dict[int, str] = {}
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        manifest = read_manifest(path)
        if manifest is None or manifest.kind != "model":
            continue
        summary = manifest.meta.get("summary", {})
        measured = summary.get("last_evaluation") or {}
        names = {"N": "parameters", "D": "tokens_read", "U": "training_tokens"}
        row = {name: summary.get(long) for name, long in names.items()}
        rows.append((str(path), {**row, "loss": measured.get("heldout_loss")}))
        sizes.setdefault(int(summary.get("plan", {}).get("vocabulary_size") or 0), path.name)
    if len(sizes) > 1:
        shown = ", ".join(f"{name} {size:,}" for size, name in sizes.items())
        raise UsageError(
            "These runs have different vocabularies: their losses per token do not compare.",
            where=f"{folder}: {shown}",
            todo="train all of them with the same --tokenizer",
        )
    return rows


def _rows(file: Path) -> list[tuple[str, dict[str, Any]]]:
    rows = list(read_rows(file))
    for row in rows:
        if row.problem:
            raise UsageError(f"This run cannot be read: {row.problem}", where=row.where)
    return [(row.where, row.values) for row in rows]


def _checked(row: dict[str, Any], place: str) -> PastRun:
    if any(row.get(name) is None for name in COLUMNS):
        raise UsageError("A run lacks a number.", where=place, expected=f"columns {', '.join(COLUMNS)}")
    numbers = []
    for name in COLUMNS:
        try:
            number = float(row[name])
        except (TypeError, ValueError):
            number = math.nan
        if not 0 < number < math.inf:
            raise UsageError(f"{name} is {str(row[name])[:40]!r}", where=place, expected="a number above 0")
        numbers.append(number)
    parameters, tokens, unique, loss = numbers
    return PastRun(parameters, tokens, min(unique, tokens), loss)


def _pilot(parameters: float, unique: float, points: list[tuple[float, float]]) -> Pilot:
    epochs, losses = zip(*points, strict=True)
    lowest = losses.index(min(losses))
    best, loss, at_edge = epochs[lowest], losses[lowest], lowest in (0, len(points) - 1)
    if not at_edge:
        best, loss = _turn(points[lowest - 1 : lowest + 2])
    return Pilot(parameters, unique, tuple(epochs), tuple(losses), best, loss, at_edge)
