"""What ``save_to_disk`` of Hugging Face's ``datasets`` leaves: folders of Arrow files, alone or as named splits.

A set is ``state.json``, which names its files in order, ``dataset_info.json`` and ``*.arrow``, streams of record
batches; a dict of sets is ``dataset_dict.json``, which names its splits, and a folder for each. Files are mapped, so
that nothing is held but what is asked for. What ``datasets`` never writes and could unfold without measure (compressed
or dictionary batches, views, runs) is refused, and every batch is validated: offsets may come from strangers.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mickle.errors import UsageError
from mickle.untrusted.values import read_json

STATE, SPLITS = "state.json", "dataset_dict.json"
TRAINING, HELDOUT = ("train",), ("test", "validation")  # splits by what they are for, the first that is there
LARGEST_STATE = 16 << 20  # bytes
PLAIN = ("string", "large_string", "binary", "large_binary", "null")  # types beside numbers
HEADER, COMPRESSION = 2, 3  # fields of Arrow's tables Message and RecordBatch (format/Message.fbs)


def is_saved(path: Path) -> bool:
    """Whether a folder is what ``save_to_disk`` leaves, one set or several splits."""
    return (path / SPLITS).is_file() or (path / STATE).is_file()


def split_names(path: Path) -> list[str]:
    """The names of a folder's splits; none where it is one set, or something else."""
    file = path / SPLITS
    return [_plain(name, file) for name in _listed(file, "splits")] if file.is_file() else []


def split_of(path: Path, wanted: Sequence[str]) -> Path:
    """The folder of the first of the ``wanted`` splits, or of the only one there is; any other path as it is."""
    names = split_names(path)
    if not names:
        return path
    found = next((name for name in wanted if name in names), names[0] if len(names) == 1 else None)
    if found is None:
        raise UsageError(
            f"this folder holds the splits {', '.join(names)}",
            where=str(path),
            expected=f"one named {' or '.join(wanted)}",
            todo=f"name one of them, as in {path / names[0]}",
        )
    return path / found


def set_files(path: Path) -> list[Path]:
    """The files of a saved set in the order of its rows; of several splits those of ``train``."""
    folder = split_of(path, TRAINING)
    names = [
        item.get("filename") if isinstance(item, dict) else None for item in _listed(folder / STATE, "_data_files")
    ]
    return [folder / _plain(name, folder / STATE) for name in names]


def _listed(file: Path, name: str) -> list[Any]:
    values = read_json(file, LARGEST_STATE)
    found = values.get(name) if isinstance(values, dict) else None
    if not isinstance(found, list) or not found or values.get("_indices_data_files"):  # rows in another order
        raise UsageError(
            f"this file has no list {name!r}, or one of indices beside it",
            where=str(file),
            expected="a folder as `flatten_indices().save_to_disk(...)` of datasets leaves it",
        )
    return found


def _plain(name: Any, file: Path) -> str:
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\\0"):
        raise UsageError(f"this is no name of a file beside it: {str(name)[:60]!r}", where=str(file))
    return name


class ArrowFile:
    """A stream of record batches in a file, with what our readers ask a ``pyarrow.parquet.ParquetFile``.

    Raises pyarrow's errors and UsageError for what is not whole or not taken.
    """

    def __init__(self, path: Path) -> None:
        from pyarrow import ipc

        self.path, self.most = path, 8 * path.stat().st_size  # the smallest value has a bit
        self.schema_arrow = next((ipc.read_schema(m) for m in self._messages() if m.type == "schema"), None)
        if self.schema_arrow is None:
            raise UsageError("not a whole Arrow file: it has no schema", where=str(path))

    @property
    def metadata(self) -> ArrowFile:
        """Itself: what a Parquet file knows of its size from its footer."""
        return self

    @property
    def num_rows(self) -> int:
        """How many rows its batches have."""
        return sum(batch.num_rows for batch in self.iter_batches())

    def iter_batches(self, batch_size: int = 1 << 30, columns: Sequence[str] | None = None) -> Iterator[Any]:
        """Its record batches, at most ``batch_size`` rows at a time, of all columns or some."""
        from pyarrow import ipc

        for message in self._messages():
            if message.type == "schema":
                continue
            if message.type != "record batch" or _is_compressed(message.metadata.to_pybytes()):
                raise self._refused("compressed or dictionary batches")
            batch = ipc.read_record_batch(message, self.schema_arrow)
            batch.validate(full=True)
            for column in batch.columns:
                self._refuse_unfolding(column)
            batch = batch if columns is None else batch.select(list(columns))
            yield from (batch.slice(at, batch_size) for at in range(0, batch.num_rows, batch_size))

    def _messages(self) -> Iterator[Any]:
        import pyarrow
        from pyarrow import ipc

        if not self.most:
            raise UsageError("this Arrow file is empty", where=str(self.path))
        with pyarrow.memory_map(str(self.path)) as source:
            yield from ipc.MessageReader.open_stream(source)

    def _refuse_unfolding(self, array: Any) -> None:
        """Values that stand once in the file and many times in the rows, or take no bytes at all."""
        from pyarrow import BaseExtensionType, types

        kind = array.type
        if len(array) > self.most:
            raise self._refused(f"{len(array):,} values without bytes")
        if isinstance(kind, BaseExtensionType):
            inner = [array.storage]
        elif types.is_struct(kind):
            inner = array.flatten()
        elif types.is_map(kind):
            inner = [array.keys, array.items]
        elif types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            inner = [array.values]
        elif types.is_primitive(kind) or types.is_fixed_size_binary(kind) or str(kind) in PLAIN:
            inner = []
        else:
            raise self._refused(f"columns of type {kind}")
        for part in inner:
            self._refuse_unfolding(part)

    def _refused(self, what: str) -> UsageError:
        return UsageError(
            f"this Arrow file has {what}, which are not read",
            where=str(self.path),
            expected="a stream as datasets' save_to_disk writes it",
            todo="save it anew with datasets, or write Parquet",
        )


def _is_compressed(metadata: bytes) -> bool:
    """Whether a record batch's buffers are compressed, by the flat buffer that describes it, which pyarrow verified."""
    header = _field(metadata, struct.unpack_from("<I", metadata)[0], HEADER)
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return bool(_field(metadata, batch, COMPRESSION))


def _field(buffer: bytes, table: int, number: int) -> int:
    """Where a field of a flat buffer's table stands; 0 where it has none."""
    layout = table - struct.unpack_from("<i", buffer, table)[0]
    size, at = struct.unpack_from("<H", buffer, layout)[0], 4 + 2 * number
    offset = struct.unpack_from("<H", buffer, layout + at)[0] if at < size else 0
    return table + offset if offset else 0
