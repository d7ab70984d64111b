"""Which dropout rate takes a regression off the double-descent peak: the task ``rate`` of the verb ``plan``.

A table of rows and columns in; out come the held-out error over sample sizes and rates, the rate that leave-one-out
(or GCV, or folds) chooses, a figure, and a sentence that says whether the data sits near the interpolation threshold,
where a model without dropout is at its worst. The method and its equations: :mod:`mickle.regression.ridge`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from mickle.config import Config, Input
from mickle.data.parquet import open_parquet, read_batches, refuse_expansion
from mickle.errors import UsageError, first_line
from mickle.events import Emit, Noted, Progressed, Started
from mickle.machine import Forecast
from mickle.results import Result
from mickle.step import command
from mickle.storage import load_tensors

MOST_CLASSES = 1000


class Rate(Config):
    """Dropout before a linear model: risk over sizes and rates, and the best rate."""

    kind: Literal["rate"] = "rate"
    data: Input = Field(description="table to regress on: .npz, .csv, .parquet or .safetensors")
    inputs: str = Field("X", description="array of inputs [n, p] in an .npz or .safetensors file")
    target: str = Field("y", description="array [n] or [n, k], or column of a table, to predict")
    classes: bool = Field(False, description="take the target for a class: one output for each, squared loss")
    sizes: list[int] = Field([], description="training rows, each size a point of the curve; [] derives ten")
    rates: list[float] = Field(
        [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9], min_length=1, description="dropout rates drawn as curves"
    )
    seeds: int = Field(20, ge=1, le=1000, description="random subsets drawn at each size")
    criterion: Literal["loo", "gcv", "kfold"] = Field(
        "kfold", description="how the dropout rate is chosen; five folds are steadiest near the threshold"
    )
    held_out: float = Field(0.25, gt=0, lt=1, description="share of rows that only measure the error")

    @field_validator("rates")
    @classmethod
    def _below_one(cls, rates: list[float]) -> list[float]:
        for rate in rates:
            if not 0 <= rate < 1:
                raise ValueError(f"rate {rate} is not in [0, 1): at 1 every input is dropped and nothing is learnt")
        return sorted(set(rates))

    @field_validator("sizes")
    @classmethod
    def _two_rows(cls, sizes: list[int]) -> list[int]:
        for size in sizes:
            if size < 2:
                raise ValueError(f"size {size} is too small: the intercept alone takes one row")
        return sorted(set(sizes))

    def refuse(self, data: Path | None) -> None:
        """ValueError where the verb's own data are given."""
        if data is not None:
            raise ValueError("the task rate reads a table of its own; name it as task.data")

    def run(self, data: Path | None, emit: Emit, seed: int) -> Result:
        """Errors over sizes and rates, and the rate to take. Raises UsageError on bad data."""
        from mickle.regression import risk

        x, y, notes = read_table(self)
        x, dropped = without_constant(x)
        notes += dropped
        for note in notes:
            emit(Noted(note))
        sizes = self.sizes or derived_sizes(len(x) - max(1, round(self.held_out * len(x))), x.shape[1])
        emit(Started("risk curves", len(sizes) * self.seeds, "fits"))
        curve = risk.sample_curve(
            x, y, sizes, self.rates, repeats=self.seeds, criterion=self.criterion, held_out=self.held_out,
            seed=seed, done=lambda count: emit(Progressed(count)),
        )  # fmt: skip
        summary = verdict(self, x, y, curve, seed)
        said, near = [summary["sentence"]], summary["near_threshold"]
        title = f"{self.data.name}: {x.shape[1]} columns, {len(x)} rows"
        return Result(
            summary,
            {**summary, "notes": notes, "curve": risk.summarise(curve)},
            [summary["sentence"], risk.table(curve)],
            {"risk.svg": risk.picture(curve, title)},
            notes=() if near else said,
            warnings=said if near else (),
            told=False,
        )

    def dry_run(self, data: Path | None, seed: int) -> tuple[Forecast, str]:
        """Nothing to speak of."""
        return Forecast(), ""

    def after(self, out: Path) -> str:
        """Look."""
        return command("show", out)


def verdict(task: Rate, x: Any, y: Any, curve: Any, seed: int) -> dict[str, Any]:
    """What all rows together say: how near the threshold they are, the rate to take, and what it gained."""
    import numpy as np

    from mickle.regression.path import choose_rate, trace_path
    from mickle.regression.ridge import make_table
    from mickle.regression.risk import near_threshold

    path = trace_path(x, y)
    rate = float(path.rates[choose_rate(path, task.criterion, seed=seed)])
    singular = np.linalg.svd(make_table(x, y).inputs, compute_uv=False)
    rows, columns = x.shape
    near = near_threshold(rows - 1, columns)
    without = float(np.median(curve.errors[-1, curve.rates.index(0.0)])) if 0.0 in curve.rates else None
    chosen = float(np.median(curve.chosen_errors[-1]))
    place = "near the interpolation threshold: without dropout the error is near its peak" if near else (
        "clear of the interpolation threshold: more rows than columns by far" if rows > columns
        else "clear of the interpolation threshold: more columns than rows by far"
    )  # fmt: skip
    gain = "" if without is None else f" (without dropout {without:.4g})"
    sentence = (
        f"{rows} rows and {columns} columns are {place}. Drop {rate:.3g} of the inputs (keep {1 - rate:.3g})."
        f" On {curve.sizes[-1]} rows the chosen rate left a held-out squared error of {chosen:.4g}{gain}."
    )
    return {
        "rows": rows, "columns": columns, "rows_per_column": rows / columns, "near_threshold": near,
        "rate": rate, "keep": 1 - rate, "criterion": task.criterion,
        "smallest_singular_value": float(singular[: min(rows - 1, columns)].min()),
        "error_without_dropout": without, "error_at_chosen_rate": chosen, "sentence": sentence,
    }  # fmt: skip


def derived_sizes(most: int, columns: int) -> list[int]:
    """Ten sizes from 10 rows to all, evenly on a logarithmic scale, and three at the threshold where it is inside."""
    if most < 2:
        raise UsageError(f"{most} rows are left to train on", where="task.data", expected="two at least")
    least = min(10, most)
    sizes = {round(least * (most / least) ** (step / 9)) for step in range(10)}
    sizes |= {round((columns + 1) * factor) for factor in (0.9, 1.0, 1.1)}
    return sorted(size for size in sizes if least <= size <= most)


def without_constant(x: Any) -> tuple[Any, list[str]]:
    """The table without its constant columns, and notes on these and on columns that equal each other."""
    import numpy as np

    from mickle.regression.ridge import make_table

    squares = make_table(x, np.zeros(len(x))).squares
    constant = np.flatnonzero(squares == 0)
    notes = []
    if len(constant) == x.shape[1]:
        raise UsageError("every column is constant", where="task.data", expected="inputs that differ")
    if len(constant):
        notes.append(f"left out {len(constant)} constant columns: {listed(constant)}")
    seen: dict[bytes, int] = {}
    equal = [(place, seen[key]) for place in range(x.shape[1])
             if place != seen.setdefault(key := np.ascontiguousarray(x[:, place]).tobytes(), place)
             and squares[place] > 0]  # fmt: skip
    if equal:
        pairs = listed(f"{place} = {first}" for place, first in equal)
        notes.append(f"{len(equal)} columns equal an earlier one and share its weight: {pairs}")
    return x[:, squares > 0], notes


def listed(items: Iterable[Any], most: int = 8) -> str:
    """The first few, and how many more."""
    texts = [str(item) for item in items]
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


# -- reading a table -----------------------------------------------------------------------------------------------


def read_table(task: Rate) -> tuple[Any, Any, list[str]]:
    """Inputs [n, p] and targets [n, k] in float64, and notes. UsageError names the column or row that is wrong."""
    import numpy as np

    from mickle.regression.ridge import numbers

    path = task.data
    readers = {".npz": read_arrays, ".safetensors": read_arrays, ".csv": read_columns, ".parquet": read_columns}
    if path.suffix.lower() not in readers:
        raise UsageError(f"cannot read {path.name}", where="task.data", expected=", ".join(readers))
    if not path.is_file():
        raise UsageError(f"no such file: {path}", where="task.data", todo="check the path")
    x, y = readers[path.suffix.lower()](task)
    notes = []
    x = numbers(x, f"inputs of {path.name}")
    if x.ndim != 2 or x.shape[1] == 0:
        raise UsageError(f"inputs have shape {x.shape}", where=str(path), expected="rows and columns, [n, p]")
    if task.classes or y.dtype.kind in "US":
        if y.ndim != 1:
            raise UsageError(f"classes have shape {y.shape}", where=str(path), expected="one label a row, [n]")
        names, places = np.unique(y, return_inverse=True)
        if len(names) > MOST_CLASSES:
            raise UsageError(
                f"the target has {len(names)} classes", where=str(path), expected=f"at most {MOST_CLASSES}"
            )
        notes.append(f"the target has {len(names)} classes: one output each, squared loss")
        y = np.eye(len(names))[places]
    y = numbers(y, f"target of {path.name}")
    if y.ndim not in (1, 2) or len(x) != len(y):
        raise UsageError(f"{len(x)} rows of inputs and a target of shape {y.shape}", where=str(path))
    if len(x) < 4:
        raise UsageError(f"{path.name} has {len(x)} rows", where="task.data", expected="four at least")
    return x, y.reshape(len(y), -1), notes


def read_arrays(task: Rate) -> tuple[Any, Any]:
    """Two named arrays of an .npz (never unpickled) or .safetensors file."""
    import numpy as np

    path, found = task.data, {}
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as file:
                refuse_expansion(sum(member.file_size for member in file.zip.infolist()), path)
                known = list(file.files)
                found = {name: file[name] for name in (task.inputs, task.target) if name in known}
        else:
            tensors = load_tensors(path)
            known = list(tensors)
            found = {name: plain(tensors[name]) for name in (task.inputs, task.target) if name in known}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        reason = "it holds Python objects" if "pickle" in str(error) else first_line(error, 120)
        raise UsageError(f"cannot read {path.name}: {reason}", where=str(path)) from None
    for field, name in (("inputs", task.inputs), ("target", task.target)):
        if name not in found:
            raise UsageError(
                f"no array {name!r} in {path.name}", where=str(path),
                expected=f"one of: {listed(known)}", todo=f"name it with --task.{field}",
            )  # fmt: skip
    return found[task.inputs], found[task.target]


def plain(tensor: Any) -> Any:
    """A tensor as a NumPy array; half precision becomes single, for NumPy has no bfloat16."""
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


def read_columns(task: Rate) -> tuple[Any, Any]:
    """A .csv or .parquet file: the target's column, and all others as inputs in the file's order."""
    import numpy as np
    import pyarrow
    import pyarrow.csv

    path = task.data
    try:
        table = pyarrow.csv.read_csv(path) if path.suffix.lower() == ".csv" else _parquet_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"cannot read {path.name}: {first_line(error, 120)}", where=str(path)) from None
    names = table.column_names
    if names.count(task.target) != 1:
        raise UsageError(
            f"{'no' if task.target not in names else 'more than one'} column {task.target!r} in {path.name}",
            where=str(path), expected=f"one of: {listed(names)}", todo="name it with --task.target",
        )  # fmt: skip
    kinds = pyarrow.types
    inputs = []
    for name, column in zip(names, table.columns):
        if name == task.target:
            continue
        if not (kinds.is_floating(column.type) or kinds.is_integer(column.type) or kinds.is_boolean(column.type)):
            raise UsageError(
                f"column {name!r} holds {column.type}, not numbers", where=str(path),
                todo="leave it out, or turn it into numbers first",
            )  # fmt: skip
        inputs.append(filled(column, name, path).astype(float))
    target = filled(table.column(task.target), task.target, path)
    if target.dtype == object:
        target = target.astype(str)
    return np.stack(inputs, axis=1) if inputs else np.empty((len(target), 0)), target


def _parquet_table(path: Path) -> Any:
    """All of a Parquet file, its texts written out."""
    import pyarrow

    with open_parquet(path) as file:
        schema = file.schema_arrow
    plain = [kind.value_type if pyarrow.types.is_dictionary(kind) else kind for kind in schema.types]
    written_out = pyarrow.schema(list(zip(schema.names, plain)))
    return pyarrow.Table.from_batches(list(read_batches(path, rows=1 << 16)), written_out)


def filled(column: Any, name: str, path: Path) -> Any:
    """A column as an array; UsageError names the first row without a value."""
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise UsageError(
            f"column {name!r} has no value in row {row}", where=str(path), expected="a number in every row"
        )
    return column.to_numpy()
