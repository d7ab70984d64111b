"""Folders of datasets' `save_to_disk`, as written by hand: read as rows, pages and sources; hostile ones refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import ipc

from mickle.data.arrow import HELDOUT, split_of
from mickle.data.heldout import page_count, read_pages
from mickle.data.pages import RawPage, Skipped
from mickle.data.rows import read_rows
from mickle.data.sources import Rows, kind_of
from mickle.errors import UsageError

ROWS = [{"text": f"page {i} tells of rivers", "tags": ["a", "b"][: i % 3], "of": {"n": i}} for i in range(200)]


def stream(path: Path, table: pa.Table, **options: Any) -> Path:
    with ipc.new_stream(str(path), table.schema, options=ipc.IpcWriteOptions(**options)) as file:
        file.write_table(table, max_chunksize=table.num_rows // 3 + 1)
    return path


def saved(folder: Path, rows: list[Any], files: int = 1) -> Path:
    """A set as datasets 5 saves it, cut into some files."""
    folder.mkdir(parents=True)
    size, names = -(-len(rows) // files), [f"data-{i:05d}-of-{files:05d}.arrow" for i in range(files)]
    for i, name in enumerate(names):
        stream(folder / name, pa.Table.from_pylist(rows[i * size : (i + 1) * size]))
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def splits(folder: Path, **rows: list[Any]) -> Path:
    for name, some in rows.items():
        saved(folder / name, some)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(rows)}))
    return folder


def pages_of(folder: Path) -> list[Any]:
    source = Rows(path=folder)
    return [page for part in source.parts() for page in source.read(part, 1 << 20, lambda size: None)]


def test_a_saved_set_is_read_in_its_order_by_every_reader(tmp_path: Path) -> None:
    folder = saved(tmp_path / "set", ROWS, files=3)
    assert [row.values for row in read_rows(folder)] == ROWS
    assert [page.text for some in read_pages(folder) for page in some] == [row["text"] for row in ROWS]
    assert page_count(folder) == 200
    assert kind_of(folder) == "rows"
    found = [page.content.decode() for page in pages_of(folder) if isinstance(page, RawPage)]
    assert found == [row["text"] for row in ROWS]
    assert next(read_rows(folder)).where.endswith("data-00000-of-00003.arrow, row 1")


def test_of_splits_train_is_read_and_test_is_measured(tmp_path: Path) -> None:
    folder = splits(tmp_path / "dict", train=ROWS[:150], test=ROWS[150:])
    assert [row.values for row in read_rows(folder)] == ROWS[:150]
    assert split_of(folder, HELDOUT) == folder / "test"
    found = pages_of(folder)
    assert sum(isinstance(page, RawPage) for page in found) == 150
    assert Skipped("file of another split") in found
    assert split_of(splits(tmp_path / "one", all=ROWS), HELDOUT).name == "all"
    with pytest.raises(UsageError, match=r"holds the splits a, b\n"):
        list(read_rows(splits(tmp_path / "two", a=ROWS, b=ROWS)))


def _state(folder: Path, value: Any) -> None:
    (folder / "state.json").write_text(json.dumps(value))


NULLS = pa.table({"text": pa.Array.from_buffers(pa.null(), 10**9, [None])})
VIEWS = pa.table({"text": pa.array(["a"], pa.string_view())})
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "above": (lambda f: _state(f, {"_data_files": [{"filename": "../x.arrow"}]}), "no name of a file"),
    "no list": (lambda f: _state(f, {"_data_files": 3}), "no list '_data_files'"),
    "indices": (lambda f: _state(f, {"_data_files": [1], "_indices_data_files": [1]}), "one of indices"),
    "missing": (lambda f: _state(f, {"_data_files": [{"filename": "x.arrow"}]}), "No such file"),
    "compressed": (lambda f: stream(f / "a.arrow", pa.table({"text": ["a" * 99] * 9}), compression="zstd"), "compress"),
    "dictionary": (lambda f: stream(f / "a.arrow", pa.table({"text": pa.array(["a"]).dictionary_encode()})), "diction"),
    "no bytes": (lambda f: stream(f / "a.arrow", NULLS), "values without bytes"),
    "views": (lambda f: stream(f / "a.arrow", VIEWS), "type string_view"),
    "empty": (lambda f: (f / "a.arrow").write_bytes(b""), "is empty"),
    "cut off": (lambda f: (f / "a.arrow").write_bytes((f / "a.arrow").read_bytes()[:300]), "not a whole Arrow file"),
    "no Arrow": (lambda f: (f / "a.arrow").write_bytes(b"ARROW1\0\0" * 40), "not a whole Arrow file"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_save_to_disk_does_not_write_is_refused(name: str, tmp_path: Path) -> None:
    folder, (spoil, message) = saved(tmp_path / "set", ROWS), BAD[name]
    (folder / "data-00000-of-00001.arrow").rename(folder / "a.arrow")
    _state(folder, {"_data_files": [{"filename": "a.arrow"}]})
    spoil(folder)
    with pytest.raises(UsageError, match=message):
        list(read_rows(folder))
