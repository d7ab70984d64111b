"""WARC framing: every whole record is found, every damaged one is counted, memory and time stay bounded."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data.warc import Damaged, Record, read_records, write_warc

LARGEST = 100_000


def record(url: str, body: bytes = b"<p>hello</p>", length: int | None = None, kind: str = "response") -> bytes:
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
    size = len(http) if length is None else length
    header = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Length: {size}\r\n\r\n"
    return header.encode() + http + b"\r\n\r\n"


GOOD = [record(f"http://a.org/{i}") for i in range(4)]


def read(content: bytes, folder: Path, name: str = "x.warc") -> tuple[list[str], list[str]]:
    """Addresses of whole records, reasons of damaged ones."""
    path = folder / name
    path.write_bytes(content)
    found = list(read_records(path, LARGEST))
    return (
        [item.url.rpartition("/")[2] for item in found if isinstance(item, Record)],
        [item.reason for item in found if isinstance(item, Damaged)],
    )


HOSTILE = {
    "empty": (b"", [], []),
    "whole": (b"".join(GOOD), ["0", "1", "2", "3"], []),
    "older": (b"".join(GOOD[:3]).replace(b"WARC/1.0", b"WARC/0.18"), ["0", "1", "2"], []),
    "older, after garbage": (b"x" * 65535 + GOOD[1].replace(b"WARC/1.0", b"WARC/0.17"), ["1"], ["not a WARC record"]),
    "length too small": (GOOD[0] + record("b", length=30) + GOOD[1], ["0", "1"], ["Content-Length is wrong"]),
    "length too large": (GOOD[0] + record("b", length=200) + GOOD[1], ["0", "1"], ["Content-Length is wrong"]),
    "length past the end": (GOOD[0] + record("b", length=9999) + GOOD[1], ["0", "1"], ["record is cut off"]),
    "length absurd": (GOOD[0] + record("b", length=10**15) + GOOD[1], ["0", "1"], ["record is too large"]),
    "length negative": (GOOD[0] + record("b", length=-5) + GOOD[1], ["0", "1"], ["header has no Content-Length"]),
    "oversized": (GOOD[0] + record("b", b"x" * 200_000) + GOOD[1], ["0", "1"], ["record is too large"]),
    "garbage between": (GOOD[0] + b"garbage" * 99 + b"\r\n" + GOOD[1], ["0", "1"], ["not a WARC record"]),
    "garbage alone": (b"garbage" * 9999, [], ["not a WARC record"]),
    "cut in the body": ((GOOD[0] + GOOD[1])[:-20], ["0"], ["record is cut off"]),
    "cut in the header": (GOOD[0] + GOOD[1][:40], ["0"], ["header has no end"]),
    "header without end": (b"WARC/1.0\r\n" + b"X: y\r\n" * 20_000 + GOOD[1], ["1"], ["header has no end"]),
    "line feeds only": (record("c/x").replace(b"\r\n", b"\n").replace(b": 56", b": 53") + GOOD[1], ["x", "1"], []),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_file_loses_only_its_damaged_records(name: str, tmp_path: Path) -> None:
    content, urls, reasons = HOSTILE[name]
    assert read(content, tmp_path) == (urls, reasons)


def members(*parts: bytes) -> list[bytes]:
    return [gzip.compress(part, mtime=0) for part in parts]


def test_gzip_by_record_and_gzip_of_the_whole_file_read_alike(tmp_path: Path) -> None:
    assert read(b"".join(members(*GOOD)), tmp_path) == (["0", "1", "2", "3"], [])
    assert read(gzip.compress(b"".join(GOOD)), tmp_path) == (["0", "1", "2", "3"], [])


def test_a_corrupt_member_costs_one_record(tmp_path: Path) -> None:
    first, second, third = members(*GOOD[:3])
    second = second[:40] + b"\xff\xff\xff\xff" + second[44:]
    urls, reasons = read(first + second + third, tmp_path)
    assert urls == ["0", "2"]
    assert reasons == ["compressed data is corrupt"]


def test_a_cut_last_member_is_counted(tmp_path: Path) -> None:
    first, second = members(*GOOD[:2])
    assert read(first + second[:-30], tmp_path) == (["0"], ["compressed data is cut off"])


def test_a_bomb_is_stopped_by_its_ratio_and_the_next_member_is_read(tmp_path: Path) -> None:
    bomb = gzip.compress(record("http://a.org/b", b"\0" * (50 << 20), length=90_000), mtime=0)
    first, last = members(GOOD[0], GOOD[3])
    assert len(bomb) < 100_000
    urls, reasons = read(first + bomb + last, tmp_path)
    assert urls == ["0", "3"]
    assert "compressed data expands too far" in reasons


def test_written_files_are_the_same_bytes_twice_and_fastwarc_reads_them(tmp_path: Path) -> None:
    pages = [(f"https://a.invalid/{i}", f"<p>päge {i}</p>".encode()) for i in range(5)]
    assert write_warc(tmp_path / "a.warc.gz", pages) == 5
    write_warc(tmp_path / "b.warc.gz", pages)
    content = (tmp_path / "a.warc.gz").read_bytes()
    assert content == (tmp_path / "b.warc.gz").read_bytes()
    peer = [
        (r.headers.get("WARC-Target-URI"), r.reader.read())
        for r in ArchiveIterator(io.BytesIO(content), parse_http=True)
        if r.http_headers
    ]
    assert peer == pages
    ours = [r for r in read_records(tmp_path / "a.warc.gz", LARGEST) if isinstance(r, Record)]
    assert [r.url for r in ours] == ["", *(url for url, _ in pages)]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_change_of_bytes_raises_or_loses_untouched_records(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Some bytes of the second of three members change: the first and the last are still read."""
    parts = members(*GOOD[:3]) if data.draw(st.booleans()) else list(GOOD[:3])
    broken = bytearray(parts[1])
    for at in data.draw(st.lists(st.integers(0, len(broken) - 1), min_size=1, max_size=6)):
        broken[at] = data.draw(st.integers(0, 255))
    urls, _ = read(parts[0] + bytes(broken) + parts[2], tmp_path_factory.mktemp("fuzz"))
    assert urls[0] == "0"
    assert urls[-1] == "2"
