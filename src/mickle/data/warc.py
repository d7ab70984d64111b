"""WARC files, read so that no record can end the run, and written so that the same pages give the same bytes.

Records are framed here: a damaged or lying one is counted and skipped, and reading goes on at the next record that can
be found; ``responses.py`` takes the page out of a framed record. What is bounded: bytes of a record, the ratio of
decompressed to compressed bytes of a gzip member, and so memory, whatever the file claims. WARC 1.1: ISO 28500:2017;
files of 0.17 and 0.18 frame their records alike.
"""

from __future__ import annotations

import gzip
import io
import re
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mickle.data.gzip_members import RATIO, READ, Break, Members
from mickle.data.responses import EMPTY_LINE, GZIP

LONGEST_HEADER = 1 << 16
OPENING = 11  # bytes of a record's first line
RECORD = re.compile(rb"WARC/(?:0\.1[78]|1\.[01])\r?\n")
LENGTH = re.compile(rb"(?im)^content-length:[ \t]*(\d{1,18})[ \t]*\r?$")
ADDRESS = re.compile(rb"(?im)^warc-target-uri:[ \t]*<?([^\r\n>]*)>?[ \t]*\r?$")
KIND = re.compile(rb"(?im)^warc-type:[ \t]*([a-z_-]{1,40})[ \t]*\r?$")
DATE = re.compile(rb"(?im)^warc-date:[ \t]*([0-9][0-9TZ:.+-]{3,40})[ \t]*\r?$")
NO_DATE = "1970-01-01T00:00:00Z"  # of records that nobody fetched


@dataclass(frozen=True)
class Record:
    """One whole record: WARC header, and the block of as many bytes as the header said."""

    header: bytes
    block: bytes
    place: str  # file and position, for messages

    @property
    def url(self) -> str:
        """What the record is about; empty for records without a target."""
        return _address(self.header)

    @property
    def kind(self) -> str:
        """The record's type: "response", "request", ..."""
        found = KIND.search(self.header)
        return found.group(1).decode().lower() if found else "unnamed"

    @property
    def date(self) -> str:
        """When it was fetched, as the record says; empty where it does not."""
        found = DATE.search(self.header)
        date = found.group(1).decode() if found else ""
        return "" if date == NO_DATE else date


@dataclass(frozen=True)
class Damaged:
    """A record, or a stretch of a file, that could not be read: why, and the value that says so."""

    url: str
    place: str
    reason: str
    value: float


def _address(header: bytes) -> str:
    found = ADDRESS.search(header)
    return found.group(1).decode("utf-8", "replace").strip() if found else ""


class _Reader:
    """Framing over a source of chunks: bytes by count, the header's end, the next record's beginning."""

    def __init__(self, chunk: Callable[[], bytes]) -> None:
        self.chunk, self.buffer, self.position = chunk, bytearray(), 0

    def fill(self, count: int) -> bool:
        """Has at least ``count`` bytes in the buffer; false if the file ends before."""
        while len(self.buffer) < count:
            chunk = self.chunk()
            if not chunk:
                return False
            self.buffer += chunk
        return True

    def drop(self, count: int) -> None:
        del self.buffer[:count]
        self.position += count

    def seek_record(self, start: int = 0) -> int:
        """Skips to where the next record opens, looking from ``start``, or to the end; returns bytes skipped."""
        skipped = 0
        while True:
            found = RECORD.search(self.buffer, start)
            count = found.start() if found else max(0, len(self.buffer) - OPENING)
            self.drop(count)
            skipped += count
            if found:
                return skipped
            start = 0
            if not self.fill(len(self.buffer) + 1):
                skipped += len(self.buffer)
                self.drop(len(self.buffer))
                return skipped


def read_records(
    path: Path, largest: int, ratio: float = RATIO, advance: Callable[[int], None] = lambda count: None
) -> Iterator[Record | Damaged]:
    """Every record of a ``.warc`` or ``.warc.gz`` file, damaged ones as :class:`Damaged`; never raises for
    content.

    ``largest`` bounds a record's bytes. Memory: twice that, whatever the file says. ``advance`` hears of
    bytes read.
    """
    with open(path, "rb") as stream:
        compressed = stream.read(3) == GZIP
        stream.seek(0)

        def read(count: int) -> bytes:
            chunk = stream.read(count)
            advance(len(chunk))
            return chunk

        members = Members(read, RECORD, ratio) if compressed else None
        reader = _Reader(members.chunk if members else partial(read, READ))
        while True:
            try:
                yield from _records(reader, path.name, largest)
                return
            except Break as problem:
                yield Damaged(
                    _address(bytes(reader.buffer[:LONGEST_HEADER])),
                    f"{path.name}, byte {reader.position:,}",
                    problem.reason,
                    float(problem.value),
                )
            reader.drop(len(reader.buffer))
            if members is None or not members.recover():
                return


def _records(reader: _Reader, name: str, largest: int) -> Iterator[Record | Damaged]:
    while reader.fill(1):
        reader.drop(len(reader.buffer) - len(reader.buffer.lstrip(b"\r\n")))  # more empty lines than there should be
        if not reader.buffer:
            continue
        place = f"{name}, byte {reader.position:,}"
        reader.fill(OPENING)
        if not RECORD.match(reader.buffer):
            skipped = reader.seek_record()
            yield Damaged("", place, "not a WARC record", float(skipped))
            continue
        found, end = _one_record(reader, place, largest)
        yield found  # before the next is looked for: what is compressed may break there
        if isinstance(found, Damaged):
            reader.seek_record(end)


def _one_record(reader: _Reader, place: str, largest: int) -> tuple[Record | Damaged, int]:
    """The record that the reader stands at, behind which it then stands; of a damaged one where to go on looking."""
    end = _header_end(reader)
    header = bytes(reader.buffer[: end or LONGEST_HEADER])
    length = LENGTH.search(header)
    size = int(length.group(1)) if length else 0
    reason, value = "Content-Length is wrong", float(size)
    if not end or length is None:
        reason, value, end = "header has no Content-Length" if end else "header has no end", 0.0, 4
    elif size > largest:
        reason = "record is too large"
    elif not reader.fill(end + size):
        reason, value = "record is cut off", float(len(reader.buffer) - end)
    else:
        reader.fill(end + size + 4)
        after = bytes(reader.buffer[end + size : end + size + 4])
        if after[:4] == b"\r\n\r\n" or after[:2] == b"\n\n" or not after.strip():
            block = bytes(reader.buffer[end : end + size])
            reader.drop(end + size + (2 if after[:2] == b"\n\n" else len(after)))
            return Record(header, block, place), 0
    return Damaged(_address(header), place, reason, value), end


def _header_end(reader: _Reader) -> int:
    """Bytes of the header with its empty line; 0 where none ends within ``LONGEST_HEADER``."""
    size = 0
    while size < LONGEST_HEADER:
        if found := EMPTY_LINE.search(reader.buffer, 0, LONGEST_HEADER):
            return found.end()
        size = len(reader.buffer)
        if not reader.fill(size + 1):
            return 0
    return 0


def write_warc(path: Path, pages: Iterable[tuple[str, bytes]]) -> int:
    """Writes HTML pages, (address, UTF-8 bytes), as ``.warc.gz`` with one gzip member per record; returns how
    many.

    Dates are zero and identifiers follow from the content, so the file's bytes follow from the pages alone.
    """
    count = 0
    with open(path, "wb") as stream:
        about = b"software: mickle\r\nformat: WARC File Format 1.1\r\n"
        stream.write(_member("warcinfo", "", b"application/warc-fields", about))
        for url, content in pages:
            http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"
            http += b"Content-Length: %d\r\n\r\n" % len(content)
            stream.write(_member("response", url, b"application/http; msgtype=response", http + content))
            count += 1
    return count


def _member(kind: str, url: str, content_type: bytes, block: bytes) -> bytes:
    identifier = uuid.uuid5(uuid.NAMESPACE_URL, f"{kind} {url} {zlib.crc32(block)}")
    header = io.BytesIO()
    header.write(
        b"WARC/1.1\r\nWARC-Type: %s\r\nWARC-Record-ID: <urn:uuid:%s>\r\n" % (kind.encode(), str(identifier).encode())
    )
    header.write(b"WARC-Date: %s\r\n" % NO_DATE.encode())
    if url:
        header.write(b"WARC-Target-URI: %s\r\n" % url.encode())
    header.write(b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n" % (content_type, len(block)))
    return gzip.compress(header.getvalue() + block + b"\r\n\r\n", compresslevel=6, mtime=0)
