"""What a GGUF file says of itself, read within bounds before any library reads it: a file from a stranger is hostile.

The format (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little endian: "GGUF", version, counts of
tensors and of metadata; the metadata, each a name, a type and a value; of each tensor name, sides (fastest first), type
and offset; then, aligned, the numbers. Every count is held to the bytes that are left, and tensors may not overlap: so
weights ask for no more than some twenty times the file's size.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mickle.errors import UsageError

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
VERSIONS = (2, 3)
MOST_VALUES = 2_000_000  # in the header; the largest vocabularies in use have some 900,000
MOST_ENTRIES = 10_000  # of metadata
MOST_TENSORS = 100_000
LONGEST_NAME, LONGEST_TEXT = 1024, 1 << 20  # bytes
LARGEST_TENSOR = 1 << 40  # numbers
LARGEST_HEADER = 256 << 20  # bytes


@dataclass(frozen=True)
class GgufHeader:
    """The metadata of a file, and of each tensor its shape, as torch has it, and the name of its type."""

    metadata: dict[str, Any]
    tensors: dict[str, tuple[tuple[int, ...], str]]


def gguf_package(where: str = "") -> Any:
    """The package `gguf`; UsageError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UsageError("GGUF files need the package gguf", where=where, todo="pip install 'mickle[gguf]'") from None
    return gguf


def read_gguf_header(path: Path) -> GgufHeader:
    """The metadata and tensors of a GGUF file; UsageError at the first thing that is not as it should be."""
    gguf_package(str(path))
    size = path.stat().st_size
    if size < 24:
        _refuse(path, f"it has {size} bytes")
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return _Reader(path, data).header()
        except struct.error:
            _refuse(path, "it ends inside its header")
        except UnicodeDecodeError:
            _refuse(path, "a text in its header is not UTF-8")


class _Reader:
    """Reads on from a place in the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.place, self.values = path, data, 0, 0

    def header(self) -> GgufHeader:
        if self.data[:4] != b"GGUF":
            _refuse(self.path, "it does not begin with GGUF")
        self.place = 4
        version, tensors, entries = self.number("I"), self.number("Q"), self.number("Q")
        if version not in VERSIONS:
            _refuse(self.path, f"its version is {version}, and {' and '.join(map(str, VERSIONS))} are known")
        if tensors > MOST_TENSORS or entries > MOST_ENTRIES:
            _refuse(self.path, f"it claims {tensors:,} tensors and {entries:,} entries of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(entries):
            name = self.text(LONGEST_NAME)
            if name in metadata:
                _refuse(self.path, f"{name[:80]!r} stands in it twice")
            metadata[name] = self.value(self.number("I"))
        return GgufHeader(metadata, self.checked_tensors(tensors, metadata.get("general.alignment", 32)))

    def number(self, kind: str) -> Any:
        (value,) = self.several(kind, 1)
        return value

    def several(self, kind: str, count: int) -> tuple[Any, ...]:
        self.values += count
        if self.values > MOST_VALUES:
            _refuse(self.path, f"its header holds more than {MOST_VALUES:,} values")
        found = struct.unpack_from(f"<{count}{kind}", self.data, self.place)
        self.place += struct.calcsize(f"<{count}{kind}")
        return found

    def text(self, longest: int) -> str:
        length = self.number("Q")
        if length > longest:
            _refuse(self.path, f"a text in its header claims {length:,} bytes (at most {longest:,})")
        if self.place + length > min(len(self.data), LARGEST_HEADER):
            _refuse(self.path, f"it ends inside its header, or that has more than {LARGEST_HEADER:,} bytes")
        self.place += length
        return self.data[self.place - length : self.place].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == TEXT:
            return self.text(LONGEST_TEXT)
        if kind != LIST:
            return self.number(self.known(kind))
        kind, count = self.number("I"), self.number("Q")
        if count > MOST_VALUES:
            _refuse(self.path, f"a list in its header claims {count:,} values")
        if kind == TEXT:
            return [self.text(LONGEST_TEXT) for _ in range(count)]
        return list(self.several(self.known(kind), count))

    def known(self, kind: int) -> str:
        if kind not in NUMBERS:
            _refuse(self.path, f"a value in its header has the type {kind}")
        return NUMBERS[kind]

    def checked_tensors(self, count: int, alignment: Any) -> dict[str, tuple[tuple[int, ...], str]]:
        """Every tensor lies in the file, on its own bytes."""
        found: dict[str, tuple[tuple[int, ...], str]] = {}
        places = []
        for _ in range(count):
            name = self.text(LONGEST_NAME)
            shape = tuple(reversed(self.several("Q", min(self.number("I"), 5))))
            number, offset = self.number("I"), self.number("Q")
            kind, length = self.stored(name, shape, number)
            if name in found:
                _refuse(self.path, f"tensor {name[:80]!r} stands in it twice")
            found[name] = shape, kind
            places.append((offset, offset + length, name))
        if type(alignment) is not int or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            _refuse(self.path, f"its alignment is {str(alignment)[:40]}")
        end, start = 0, -(-self.place // alignment) * alignment
        for begin, stop, name in sorted(places):
            if begin < end or begin % alignment or start + stop > len(self.data):
                _refuse(self.path, f"tensor {name[:80]!r} lies on another one, or outside of the file")
            end = stop
        return found

    def stored(self, name: str, shape: tuple[int, ...], number: int) -> tuple[str, int]:
        """The name of a tensor's type, and how many bytes its numbers take."""
        gguf, elements = gguf_package(), math.prod(shape)
        if not 1 <= len(shape) <= 4 or not 0 < elements <= LARGEST_TENSOR:
            _refuse(self.path, f"tensor {name[:80]!r} has the sides {list(shape)}")
        try:
            kind = gguf.GGMLQuantizationType(number)
        except ValueError:
            _refuse(self.path, f"tensor {name[:80]!r} has the type {number}, which this gguf package does not know")
        block, length = gguf.GGML_QUANT_SIZES[kind]
        if shape[-1] % block:
            _refuse(self.path, f"rows of tensor {name[:80]!r} are no multiple of {block}")
        return kind.name, elements // block * length


def _refuse(path: Path, what: str) -> NoReturn:
    raise UsageError(f"not a sound GGUF file: {what}", where=str(path), todo="fetch or write the file again")
