"""What the pages of a Parquet file say they expand to, one by one: their reader believes them, not the footer.

A page begins with a header in Thrift's compact protocol: fields by number and type, whole numbers as zigzag varints.
Wanted of it are `uncompressed_page_size` (2) and `compressed_page_size` (3), both of 32 bits; the rest is passed over.
"""

from __future__ import annotations

from typing import BinaryIO

from mickle.errors import UsageError

# Types of the compact protocol: those of fixed width with their bytes (true, false, byte, double), and the others.
WIDTHS = {1: 0, 2: 0, 3: 1, 7: 8}
INT16, INT32, INT64, TEXT, STRUCT = 4, 5, 6, 8, 12
DEEPEST = 4  # structs inside each other; those of a header are two


def expanded_bytes(stream: BinaryIO, begin: int, end: int) -> int:
    """Bytes, decompressed, of all pages between two places of a file. UsageError where these are no pages."""
    size, at = 0, begin
    while at < end:
        stream.seek(at)
        header = _struct(stream)
        expanded, stored = header.get(2, -1), header.get(3, -1)
        if min(expanded, stored) < 0:
            raise _broken(stream, "a page header lacks its sizes")
        size, at = size + expanded, stream.tell() + stored
    return size


def _struct(stream: BinaryIO, depth: int = 1) -> dict[int, int]:
    """The numbers of 32 bits of a struct, by their fields."""
    if depth > DEEPEST:
        raise _broken(stream, "structs inside each other in a page header")
    found: dict[int, int] = {}
    field = 0
    while head := _byte(stream):
        step, kind = head >> 4, head & 15
        field = field + step if step else _number(stream)
        if kind == STRUCT:
            _struct(stream, depth + 1)
        elif kind in (INT16, INT32, INT64):
            number = _number(stream)
            found |= {field: number} if kind == INT32 else {}
        elif kind == TEXT or kind in WIDTHS:
            stream.seek(_varint(stream) if kind == TEXT else WIDTHS[kind], 1)
        else:
            raise _broken(stream, f"a page header has a field of type {kind}")
    return found


def _number(stream: BinaryIO) -> int:
    coded = _varint(stream)
    return coded >> 1 ^ -(coded & 1)


def _varint(stream: BinaryIO) -> int:
    """Seven bits a byte, the lowest first, ten bytes at most."""
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(stream)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise _broken(stream, "a number of a page header does not end")


def _byte(stream: BinaryIO) -> int:
    read = stream.read(1)
    if not read:
        raise _broken(stream, "it ends inside a page header")
    return read[0]


def _broken(stream: BinaryIO, what: str) -> UsageError:
    return UsageError(f"not a whole Parquet file: {what}", where=str(stream.name))
