"""What all ways to measure a model share: the class of their settings, and the rows that go through at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from mickle.config import Config
from mickle.events import Emit
from mickle.machine import Forecast
from mickle.results import Result

Row = TypeVar("Row")


class Measure(Config):
    """One task of ``mickle evaluate``: its settings, and how it is done."""

    def run(self, folder: Path, emit: Emit, seed: int) -> Result:
        """Measure the model in ``folder``. UsageError where the question has no meaning for it."""
        raise NotImplementedError

    def forecast(self, folder: Path) -> Forecast:
        """What it will need."""
        return Forecast()

    def after(self, folder: Path, out: Path) -> str:
        """The next sensible command."""
        return f"mickle show {out}"


def batches(rows: Iterable[Row], length: Callable[[Row], int], most: int) -> Iterator[list[Row]]:
    """Rows from the longest to the shortest, as many at a time as have ``most`` tokens with padding, or one."""
    ordered = sorted(rows, key=lambda row: -length(row))
    first = 0
    while first < len(ordered):
        some = ordered[first : first + max(1, most // length(ordered[first]))]
        yield some
        first += len(some)
