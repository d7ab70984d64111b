"""The task from its file to its folder, and the sentences for files that are wrong."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import csv, parquet
from pydantic import ValidationError

from mickle import storage
from mickle.errors import UsageError
from mickle.events import Event, Noted, Progressed, Warned, ignore
from mickle.planning.rate import Rate, derived_sizes, read_table


def data(rows: int = 80, columns: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(rows, columns))
    return x, x @ generator.normal(size=columns) / np.sqrt(columns) + 0.5 * generator.normal(size=rows)


def write(path: Path, x: np.ndarray, y: np.ndarray) -> Path:
    """The same table in the form that the name asks for."""
    names = {f"c{place}": x[:, place] for place in range(x.shape[1])}
    if path.suffix == ".npz":
        np.savez(path, X=x, y=y)
    elif path.suffix == ".safetensors":
        storage.save_tensors(path, {"X": torch.tensor(x), "y": torch.tensor(y)})
    elif path.suffix == ".csv":
        csv.write_csv(pyarrow.table({**names, "y": y}), path)
    else:
        parquet.write_table(pyarrow.table({**names, "y": y}), path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".parquet", ".safetensors"])
def test_every_form_of_file_is_the_same_table(suffix: str, tmp_path: Path) -> None:
    x, y = data()
    found_x, found_y, notes = read_table(Rate(data=write(tmp_path / f"table{suffix}", x, y)))
    np.testing.assert_array_equal(found_x, x)
    np.testing.assert_array_equal(found_y[:, 0], y)
    assert notes == []


def test_data_at_the_threshold_are_warned_of_and_given_a_rate(tmp_path: Path) -> None:
    x, y = data(56, 40)  # 42 rows train, 14 are held out
    heard: list[Event] = []
    task = Rate(data=write(tmp_path / "t.npz", x, y), seeds=8, rates=[0.0, 0.3])
    summary = task.run(None, heard.append, 0).write(tmp_path, heard.append)
    assert summary["near_threshold"]
    assert 0.01 < summary["rate"] < 0.9
    assert summary["error_at_chosen_rate"] < 0.5 * summary["error_without_dropout"]
    assert any(isinstance(event, Warned) and "near its peak" in event.message for event in heard)
    done = [event.done for event in heard if isinstance(event, Progressed)]
    result = json.loads((tmp_path / "results.json").read_text())
    assert done == list(range(1, 8 * len(result["curve"]) + 1))
    peak = max(result["curve"], key=lambda row: row["rates"]["0"]["median"])
    assert 36 <= peak["size"] <= 46  # 41 parameters
    assert (tmp_path / "table.md").read_text().count("\n|") == len(result["curve"]) + 2
    assert "threshold" in (tmp_path / "risk.svg").read_text()
    again = tmp_path / "again"
    again.mkdir()
    assert task.run(None, ignore, 0).write(again, ignore) == summary
    assert (again / "risk.svg").read_bytes() == (tmp_path / "risk.svg").read_bytes()


def test_many_rows_are_clear_of_it(tmp_path: Path) -> None:
    task = Rate(data=write(tmp_path / "t.npz", *data(400, 10)), seeds=2, sizes=[20, 300], rates=[0.2])
    summary = task.run(None, ignore, 0).write(tmp_path, ignore)
    assert not summary["near_threshold"]
    assert summary["error_without_dropout"] is None
    assert "more rows than columns by far" in summary["sentence"]
    assert [row["size"] for row in json.loads((tmp_path / "results.json").read_text())["curve"]] == [20, 300]


def test_constant_and_equal_columns_are_noted(tmp_path: Path) -> None:
    x, y = data(60, 6)
    x[:, 2], x[:, 5] = 0.1, x[:, 0]
    heard: list[Event] = []
    summary = Rate(data=write(tmp_path / "t.csv", x, y), seeds=2).run(None, heard.append, 0).summary
    notes = " ".join(event.message for event in heard if isinstance(event, Noted))
    assert "1 constant columns: 2" in notes
    assert "5 = 0" in notes
    assert summary["columns"] == 5


def test_classes_become_one_output_each(tmp_path: Path) -> None:
    x, _ = data(60, 6)
    words = np.array(["ant", "bee", "cat"])[np.arange(60) % 3]
    _, y, notes = read_table(Rate(data=write(tmp_path / "t.csv", x, words)))
    np.testing.assert_array_equal(y, np.eye(3)[np.arange(60) % 3])
    assert "3 classes" in notes[0]
    _, y, _ = read_table(Rate(data=write(tmp_path / "t.npz", x, np.arange(60) % 3 + 5), classes=True))
    assert y.shape == (60, 3)
    _, y, _ = read_table(Rate(data=write(tmp_path / "u.npz", x, np.arange(60) % 3)))
    assert y.shape == (60, 1)  # whole numbers are numbers unless said otherwise


def test_half_precision_is_read(tmp_path: Path) -> None:
    x = torch.randn(10, 3).bfloat16()
    storage.save_tensors(tmp_path / "t.safetensors", {"a": x, "b": torch.arange(10)})
    found, _, _ = read_table(Rate(data=tmp_path / "t.safetensors", inputs="a", target="b"))
    np.testing.assert_array_equal(found, x.double().numpy())


@pytest.mark.parametrize(("most", "columns"), [(3, 2), (500, 100), (90, 1000), (1000, 5)])
def test_derived_sizes_rise_to_all_rows_and_straddle_the_threshold(most: int, columns: int) -> None:
    sizes = derived_sizes(most, columns)
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == most
    assert sizes[0] >= min(10, most)
    if 12 < columns < 0.8 * most:
        assert {round((columns + 1) * f) for f in (0.9, 1.0, 1.1)} <= set(sizes)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rates": [1.0]}, "every input is dropped"), ({"rates": [-0.1]}, "not in"), ({"sizes": [1]}, "too small"),
     ({"rates": []}, "at least 1"), ({"seeds": 0}, "greater"), ({"held_out": 1.0}, "less than 1")],
)  # fmt: skip
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Rate(data=Path("t.npz"), **settings)


def broken(name: str, tmp_path: Path) -> Path:
    x, y = data(12, 3)
    path = tmp_path / name
    if name == "nan.npz":
        x[7, 2] = np.nan
    elif name == "inf.npz":
        y[4] = np.inf
    elif name == "constant.npz":
        x[:] = 3.0
    elif name == "one.npz":
        x, y = x[:1], y[:1]
    elif name == "none.csv":
        path.write_text("y\n1\n2\n3\n4\n")
        return path
    elif name == "object.npz":
        np.savez(path, X=x.astype(object), y=y)
        return path
    elif name == "text.csv":
        path.write_text("a,b,y\n1,x,2\n2,y,3\n")
        return path
    elif name == "hole.csv":
        path.write_text("a,y\n1,2\n2,\n3,4\n")
        return path
    elif name == "torn.npz":
        path.write_bytes(b"PK\x03\x04 not an archive")
        return path
    elif name in ("torn.parquet", "torn.safetensors", "table.txt"):
        path.write_bytes(b"nothing of that kind")
        return path
    elif name == "names.npz":
        np.savez(path, inputs=x, y=y)
        return path
    elif name == "missing.npz":
        return path
    elif name == "lengths.npz":
        y = y[:5]
    elif name == "flat.npz":
        x = x[:, 0]
    np.savez(path, X=x, y=y)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan.npz", "row 7, column 2"),
        ("inf.npz", "row 4"),
        ("constant.npz", "every column is constant"),
        ("one.npz", "1 rows"),
        ("none.csv", r"shape \(4, 0\)"),
        ("object.npz", "Python objects"),
        ("text.csv", "column 'b' holds string"),
        ("hole.csv", "column 'y' has no value in row 1"),
        ("torn.npz", "cannot read torn.npz"),
        ("torn.parquet", "not a whole Parquet file"),
        ("torn.safetensors", "not a whole safetensors file"),
        ("table.txt", "cannot read table.txt"),
        ("names.npz", "no array 'X'"),
        ("missing.npz", "no such file"),
        ("lengths.npz", "12 rows of inputs"),
        ("flat.npz", r"shape \(12,\)"),
    ],
)
def test_wrong_files_are_one_sentence(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        Rate(data=broken(name, tmp_path)).run(None, ignore, 0)
    assert str(caught.value).count("\n") <= 3


def test_a_target_that_is_not_there_and_sizes_beyond_the_data(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", *data(20, 3))
    with pytest.raises(UsageError, match="--task.target"):
        Rate(data=path, target="z").run(None, ignore, 0)
    with pytest.raises(UsageError, match="15 rows left"):
        Rate(data=path, sizes=[16]).run(None, ignore, 0)


def test_the_settings_import_nothing_heavy() -> None:
    code = "import sys, mickle.planning.rate; print({'torch', 'numpy', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
