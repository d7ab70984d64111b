"""Parquet is read as it was written: a flipped bit is found, a file that unfolds without measure is refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from mickle import storage
from mickle.data.heldout import read_pages
from mickle.data.parquet import read_batches
from mickle.data.records import Page, read_corpus, write_shards
from mickle.data.rows import read_rows
from mickle.data.sources import Rows
from mickle.errors import UsageError
from mickle.planning.rate import Rate, read_columns

PAGES = [Page(f"http://a.org/{n}", "a.org", "en", f"The page of number {n} says so. " * 9) for n in range(60)]
Bounded = Callable[[Callable[[], object]], str]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A sealed corpus of one shard."""
    folder = tmp_path / "corpus"
    write_shards(PAGES, folder / "pages", Page)
    (folder / "card.json").write_text("{}")
    storage.seal(folder, kind="corpus")
    return folder


def source(path: Path) -> Iterator[object]:
    """The rows of a file as a source of curation."""
    return Rows(path=path, text="text").read([path], 1 << 20, lambda count: None)


def flipped(path: Path, bit: int) -> None:
    """The same file with one bit changed, under a new inode."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("read", [
    lambda folder: list(read_pages(folder)),
    lambda folder: list(read_pages(folder / "pages" / "00000.parquet")),
    lambda folder: list(read_corpus(folder)),
    lambda folder: list(read_rows(folder / "pages")),
    lambda folder: list(source(folder / "pages" / "00000.parquet")),
], ids=["pages", "one shard", "corpus", "rows", "source"])  # fmt: skip
def test_every_flipped_bit_of_a_shard_is_found_and_its_file_named(corpus: Path, read: Callable[[Path], object]) -> None:
    shard, draw = corpus / "pages" / "00000.parquet", random.Random(0)
    assert read(corpus)
    size = 8 * shard.stat().st_size
    for bit in [0, size - 1, *(draw.randrange(size) for _ in range(40))]:
        flipped(shard, bit)
        with pytest.raises(UsageError) as found:
            read(corpus)
        assert found.value.where == str(shard)
        flipped(shard, bit)
    assert read(corpus)


def test_parquet_of_others_is_read_and_its_checksums_are_minded(tmp_path: Path) -> None:
    path, table = tmp_path / "x.parquet", pa.table({"text": [page.text for page in PAGES]})
    parquet.write_table(table, path)
    assert sum(map(len, read_pages(path))) == 60
    parquet.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    assert sum(map(len, read_pages(path))) == 60
    flipped(path, 8 * path.read_bytes().index(b"number 7"))
    with pytest.raises(UsageError, match="crc|CRC"):
        list(read_pages(path))


def test_every_kind_of_column_comes_out_as_it_went_in(tmp_path: Path) -> None:
    table = pa.table({
        "text": ["a", None, "ü" * 300], "lists": [["x", "y"], None, []], "bytes": [b"\xff", b"", None],
        "large": pa.array(["q"] * 3, pa.large_string()), "number": [1, None, 3], "none": pa.nulls(3),
        "map": pa.array([[("k", "v")]] * 3, pa.map_(pa.string(), pa.string())),
        "nested": [{"a": "x", "b": [{"c": "d"}]}] * 3, "dictionary": pa.array(["z"] * 3).dictionary_encode(),
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "x.parquet")
    assert [row for batch in read_batches(tmp_path / "x.parquet") for row in batch.to_pylist()] == table.to_pylist()


MB = "a" * 1_000_000
TURNS = [{"role": "user", "content": MB}]
BOMBS: dict[str, dict[str, Any]] = {
    "one cell in every row": {"text": pa.array([MB]).take(pa.array([0] * 100))},
    "one turn in every row": {"messages": pa.array([TURNS]).take(pa.array([0] * 100))},
    "one cell of 70 MB": {"text": [MB * 70]},
    "one value many times in a list": {
        "text": ["a"],
        "many": pa.ListArray.from_arrays([0, 20_000_000], np.zeros(20_000_000, np.int8)),
    },
}
READERS: dict[str, Callable[[Path], object]] = {
    "pages": lambda path: list(read_pages(path)),
    "rows": lambda path: list(read_rows(path)),
    "source": lambda path: list(source(path)),
    "columns": lambda path: read_columns(Rate(data=path, target="text")),
}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files that hold much."""
    folder = tmp_path_factory.mktemp("bombs")
    for name, columns in BOMBS.items():
        parquet.write_table(pa.table(columns), folder / f"{name}.parquet", compression="zstd", write_statistics=False)
    honest = (folder / "one cell of 70 MB.parquet").read_bytes()
    column = parquet.read_metadata(folder / "one cell of 70 MB.parquet").row_group(0).column(0)
    before, footer = honest[: column.total_compressed_size], honest[column.total_compressed_size :]
    said = varint(2 * column.total_uncompressed_size)
    assert said in footer
    nothing = b"\x80" * (len(said) - 1) + b"\x00"  # the number 0 in as many bytes
    (folder / "a footer that lies.parquet").write_bytes(before + footer.replace(said, nothing))
    return folder


def varint(number: int) -> bytes:
    """Seven bits a byte, as Thrift writes it."""
    found = b""
    while number >= 128:
        found, number = found + bytes([number % 128 + 128]), number // 128
    return found + bytes([number])


def test_a_file_whose_pages_cannot_be_walked_is_refused(tmp_path: Path, bounded: Bounded) -> None:
    parquet.write_table(pa.table({"text": ["a"] * 9}), tmp_path / "x.parquet", compression="none")
    content = (tmp_path / "x.parquet").read_bytes()
    for header in (b"\x1c" * 8, b"\x19" * 8, b"\x15" + b"\xff" * 12, b"\x00" * 8, b"\x15\x00\x15\x01\x15\x01\x00"):
        (tmp_path / "x.parquet").write_bytes(content[:4] + header + content[4 + len(header) :])
        assert "not a whole Parquet file" in bounded(lambda: list(read_pages(tmp_path / "x.parquet")))


@pytest.mark.parametrize(("name", "reader"), [
    *(("one cell in every row", reader) for reader in READERS),
    ("one turn in every row", "rows"), ("one cell of 70 MB", "pages"), ("one value many times in a list", "rows"),
    ("a footer that lies", "pages"),
])  # fmt: skip
def test_a_small_file_that_unfolds_is_refused(bombs: Path, name: str, reader: str, bounded: Bounded) -> None:
    path = bombs / f"{name}.parquet"
    assert path.stat().st_size < 400_000
    assert "expands to more than 200 times its size" in bounded(lambda: READERS[reader](path))
