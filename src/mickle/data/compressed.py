"""Compressed files of lines, read within measure."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mickle.data.parquet import refuse_expansion
from mickle.errors import UsageError, first_line

COMPRESSED = {".gz": "gzip", ".zst": "zstd"}


@contextmanager
def open_lines(path: Path) -> Iterator[IO[bytes]]:
    """The file's lines, decompressed; what is no such file, is cut off, or expands without end is refused."""
    import pyarrow

    codec = COMPRESSED.get(path.suffix.lower())
    if codec is None:
        with open(path, "rb") as stream:
            yield stream
        return
    try:
        with pyarrow.input_stream(path, compression=codec) as compressed:
            yield io.BufferedReader(_Bounded(compressed, path))
    except OSError as error:
        raise UsageError(f"not a whole {path.suffix} file: {first_line(error, 120)}", where=str(path)) from None


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends in an error when it outgrows its file without measure."""

    def __init__(self, stream: Any, path: Path) -> None:
        self.stream, self.path, self.given = stream, path, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        chunk = self.stream.read(len(buffer))
        self.given += len(chunk)
        refuse_expansion(self.given, self.path)
        buffer[: len(chunk)] = chunk
        return len(chunk)
