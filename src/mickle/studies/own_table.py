"""A person's table as a world of linear regression: random subsets of its rows, and held-out rows that measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mickle.errors import UsageError
from mickle.planning.rate import Rate, derived_sizes, read_table, without_constant
from mickle.regression.ridge import Array
from mickle.regression.risk import Problem
from mickle.studies.declaration import Cell, Comparison, Taking

YOURS = "yours"  # the world's name
TABLE = "a table (.csv, .parquet, .npz, .safetensors) whose column or array `y` is the number to predict"
HELD_OUT = 0.25  # of the rows, others in each replicate


class OwnTable(NamedTuple):
    """Inputs [n, p] without constant columns, target [n, 1], how many rows are held out, and the sizes to train on, of
    which ``probe`` lies past the peak.
    """

    x: Array
    y: Array
    held_out: int
    sizes: list[int]
    probe: int


@cache
def opened(data: str) -> OwnTable:
    """The table. UsageError where it has several numbers to predict, or too few rows to pass the interpolation peak."""
    x, y, _ = read_table(Rate(data=Path(data)))
    x, _ = without_constant(x)
    held_out, columns = max(1, round(HELD_OUT * len(x))), x.shape[1]
    sizes, probe = derived_sizes(len(x) - held_out, columns), round(1.1 * (columns + 1))
    if y.shape[1] != 1:
        raise UsageError(f"the target is {y.shape[1]} numbers a row", where=data, expected="one number a row")
    if probe not in sizes or sizes[-1] < 2 * columns:
        raise UsageError(
            f"{len(x)} rows of {columns} columns do not reach past the peak, which is at {columns + 1} training rows",
            where=data,
            expected=f"about {round(2 * columns / (1 - HELD_OUT))} rows or more, and ten columns or more",
        )
    return OwnTable(x, y, held_out, sizes, probe)


def check(values: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` where a person's table cannot be used."""
    opened(values["data"])


def sizes_of(cell: Cell) -> tuple[list[int], int]:
    """The sizes of a world's curve, and the one near its threshold."""
    if cell.world == YOURS:
        return opened(cell.values["data"]).sizes, opened(cell.values["data"]).probe
    return list(cell.values["sizes"][cell.world]), cell.values["probe"][cell.world]


def problems(table: OwnTable, generator: np.random.Generator) -> Iterator[Problem]:
    """One replicate: growing subsets of the rows, each in the next, and the squared error on rows held out."""
    order = generator.permutation(len(table.x))
    test, rest = order[: table.held_out], order[table.held_out :]

    def error(weights: Array, intercepts: Array) -> Array:
        return ((table.x[test] @ weights + intercepts[:, None] - table.y[test]) ** 2).mean((1, 2))

    for size in table.sizes:
        yield table.x[rest[:size]], table.y[rest[:size]], error


left = partial(
    Comparison, measure="peak_left", better="lower", form="difference", says="{value:.1%} of the peak is left"
)
left = partial(left, baseline="none", paper_effect=1.0, worlds=(YOURS,))
TAKES = Taking(
    data=TABLE,
    worlds=(YOURS,),
    comparisons=(
        left("peak over rows of the table", "chosen", paper="its figures: no rise is left", headline=True),
        left("control: tuned ridge", "ridge", paper="not in the paper; arXiv 2003.01897 proves it"),
    ),
    minutes=1.0,
    dials=("replicates",),
    check=check,
)
