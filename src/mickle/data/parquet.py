"""Parquet, and the Arrow files of saved sets, read in batches: as written, and never much more than the file.

A shard of a folder with a manifest is hashed when a process opens it, so that not one flipped bit is read; pages of
other files are checked by the checksums they have. Texts are read as dictionaries and measured before they are written
out: a cell that stands once in the file may be the value of every row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from mickle import storage
from mickle.data.arrow import ArrowFile
from mickle.data.parquet_pages import expanded_bytes
from mickle.errors import UsageError, first_line

EXPANSION = 200  # bytes of values to bytes of the file; more is an attack
ANY_EXPANSION = 64 << 20  # bytes that a file of any size may expand to
BATCH_ROWS = 256


@contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile`` that is what was written, its texts as dictionaries; of a file named *.arrow
    what is asked of one (``arrow.py``).

    UsageError, naming the file, where it is changed or expands too far, and for all that pyarrow finds wrong with it
    in the ``with`` block.
    """
    import pyarrow
    from pyarrow import parquet

    kind = "Arrow" if path.suffix.lower() == ".arrow" else "Parquet"
    try:
        stamp = path.stat()
        _refuse_changed(path, stamp.st_ino, stamp.st_size, stamp.st_mtime_ns)
        if path.suffix.lower() == ".arrow":
            yield ArrowFile(path)
            return
        with parquet.ParquetFile(path) as file:
            _refuse_expanding(file.metadata, path)
            texts = [column.path for column in map(file.schema.column, range(len(file.schema))) if _is_text(column)]
        with parquet.ParquetFile(path, read_dictionary=texts, page_checksum_verification=True) as file:
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"not a whole {kind} file: {first_line(error, 120)}", where=str(path)) from None


def read_batches(path: Path, columns: Sequence[str] | None = None, rows: int = BATCH_ROWS) -> Iterator[Any]:
    """The record batches of a file, all columns or some; UsageError as :func:`open_parquet` says."""
    with open_parquet(path) as file:
        size = 0
        for batch in file.iter_batches(batch_size=rows, columns=columns):
            size += sum(map(_decoded_bytes, batch.columns))
            refuse_expansion(size, path)
            yield _written_out(batch)


@cache
def _refuse_changed(path: Path, *stamp: int) -> None:
    """Once in a process for a file as ``stamp`` has it (inode, size, time of its last change)."""
    storage.check_member(path)


def _refuse_expanding(metadata: Any, path: Path) -> None:
    """By what footer and pages say, before one is decompressed; each value takes at least four bytes."""
    size = stored = 0
    with open(path, "rb") as stream:
        for group in map(metadata.row_group, range(metadata.num_row_groups)):
            for column in map(group.column, range(metadata.num_columns)):
                if not column.num_values:  # nothing of it is read, and it may have no page
                    continue
                begin, stored = _first_page(column), stored + column.total_compressed_size
                if stored > path.stat().st_size:
                    raise UsageError("not a whole Parquet file: its columns have more bytes than it", where=str(path))
                pages = expanded_bytes(stream, begin, begin + column.total_compressed_size)
                size += max(pages, column.total_uncompressed_size, 4 * column.num_values)
                refuse_expansion(size, path)


def _first_page(column: Any) -> int:
    """Where a column's pages begin, as pyarrow finds it."""
    dictionary, data = column.dictionary_page_offset or 0, int(column.data_page_offset)
    return dictionary if 0 < dictionary < data else data


def refuse_expansion(size: int, path: Path) -> None:
    """UsageError where a file expands to ``size`` bytes, and that is far more than it has."""
    if size > ANY_EXPANSION + EXPANSION * path.stat().st_size:
        raise UsageError(f"{path.name} expands to more than {EXPANSION} times its size", where=str(path))


def _is_text(column: Any) -> bool:
    return column.physical_type == "BYTE_ARRAY" and column.logical_type.type != "DECIMAL"


def _written_out(batch: Any) -> Any:
    """The batch without dictionaries, which are slow to take values from one by one; those inside lists stay."""
    from pyarrow import RecordBatch, types

    columns = [c.dictionary_decode() if types.is_dictionary(c.type) else c for c in batch.columns]
    return RecordBatch.from_arrays(columns, batch.schema.names)


def _decoded_bytes(array: Any) -> int:
    """What the values of an array take that are not shared."""
    from pyarrow import compute, types

    if types.is_dictionary(array.type) and not types.is_primitive(array.type.value_type):
        lengths = compute.binary_length(array.dictionary)
        return int(compute.sum(lengths.take(array.indices)).as_py() or 0)
    if types.is_map(array.type):
        return _decoded_bytes(array.keys) + _decoded_bytes(array.items)
    if types.is_struct(array.type):
        return sum(map(_decoded_bytes, array.flatten()))
    if types.is_nested(array.type):
        return _decoded_bytes(array.flatten())
    return int(array.nbytes)
