"""Sources on bad input: counted, or refused in one sentence that names file and line."""

from __future__ import annotations

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from mickle.config import validate
from mickle.data.curate import Curate
from mickle.data.pages import RawPage, Skipped, extract
from mickle.data.records import Page, Removed
from mickle.data.sources import Documentation, Files, Found, Rows, Warc
from mickle.data.warc import write_warc
from mickle.errors import UsageError

LARGEST = 10_000


def ignore(count: int) -> None:
    """Nobody watches."""


def read(source: Files | Rows | Warc) -> list[Found]:
    return [page for files in source.parts() for page in source.read(files, LARGEST, ignore)]


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_files_are_read_in_order_with_their_paths_as_addresses(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/x.html", "b/y.MD", "a.txt", "c.png", "d.rst"):
        (tmp_path / name).write_text(name)
    found = [page for page in read(Files(path=tmp_path)) if isinstance(page, RawPage)]
    assert [(page.url, page.domain, page.form) for page in found] == [
        ("a.txt", "", "text"), ("b/x.html", "b", "html"), ("b/y.MD", "b", "text"), ("d.rst", "", "text"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "kind"),
    [(["a.html", "b/c.txt"], "files"), (["a.warc.gz", "note"], "warc"), (["a.jsonl", "b.parquet"], "rows")],
)
def test_the_kind_of_a_source_is_seen_by_its_files(names: list[str], kind: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    for source in (tmp_path, tmp_path / names[0], {"kind": str(tmp_path)}):
        assert validate(Curate, {"source": source}).source.kind == kind
    assert validate(Curate, {"source": "documentation"}).source == Documentation()
    assert validate(Curate, {"source": {"packages": ["rich"]}}).source == Documentation(packages=["rich"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["a.html", "b.warc"], "1 for --source.kind warc, 1 for --source.kind files"),
        (["a.png"], r"nothing to read.*\*\.warc"),
        ([], "no such file or folder"),
    ],
)
def test_a_source_whose_kind_cannot_be_seen_is_refused(names: list[str], said: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_text("x")
    with pytest.raises(UsageError, match=said):
        validate(Curate, {"source": str(tmp_path) if names else "nowhere"})


@pytest.mark.parametrize("source", [Files, Rows, Warc])
def test_files_that_are_not_read_are_counted_by_their_endings(
    source: type[Files | Rows | Warc], tmp_path: Path
) -> None:
    (tmp_path / "deep" / ".git").mkdir(parents=True)
    for name in ("x.PDF", "deep/y.pdf", "deep/.git/config", "z.tar.gz"):
        (tmp_path / name).write_bytes(b"\0")
    write_warc(tmp_path / "a.WARC.gz", [])
    (tmp_path / "a.TXT").write_text("x")
    parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / "a.PARQUET")
    reasons = Counter(found.reason for found in read(source(path=tmp_path)) if isinstance(found, Skipped))
    assert (reasons["file named *.pdf"], reasons["file named *"]) == (2, 1)
    assert sum(count for why, count in reasons.items() if why.startswith("file")) == 6
    assert len([found for found in read(source(path=tmp_path)) if not isinstance(found, Skipped)]) == (source != Warc)


def test_a_file_that_is_too_large_is_never_read(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_bytes(b"x" * (LARGEST + 1))
    (page,) = read(Files(path=tmp_path))
    assert isinstance(page, Removed)
    assert page.value == LARGEST + 1


@pytest.mark.parametrize("source", [Files, Rows, Warc])
def test_missing_and_empty_folders_are_refused(source: type[Files | Rows | Warc], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read(source(path=tmp_path / "none"))
    with pytest.raises(UsageError, match="nothing to read"):
        read(source(path=tmp_path))


def test_an_empty_warc_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.warc.gz").write_bytes(b"")
    (page,) = read(Warc(path=tmp_path))
    assert isinstance(page, Removed)
    assert page.reason == "file holds no records"


def test_rows_with_and_without_addresses(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", {"text": "one", "url": "https://b.org/1"}, {"text": "two"})
    first, second = read(Rows(path=tmp_path))
    assert isinstance(first, RawPage)
    assert isinstance(second, RawPage)
    assert (first.url, first.domain, first.content) == ("https://b.org/1", "b.org", b"one")
    assert (second.url, second.domain, second.content) == ("a.jsonl#2", "", b"two")


BAD = {  # and why
    '{"text": "x': "not JSON: it is cut off",
    "{'text': 'x'}": "not JSON: Expecting property name enclosed in double quotes",
    '{"text": "x"} {"text": "y"}': "not JSON: Extra data",
    '{"text": "a\tb"}': "not JSON: Invalid control character at",
    '{"text": ' + "9" * 5000 + "}": "not JSON: Exceeds the limit",
    "[1]": "row is not an object",
    "null": "row is not an object",
    '"text"': "row is not an object",
    "[" * 100_000: "more than 32 lists and objects inside each other",
    "[" + "," * 1_000_000 + "]": "row holds more than 1,000,000 values",
    '{"body": "x"}': "field 'text' or 'content' or 'raw_content' is missing",
    '{"text": null}': "field 'text' or 'content' or 'raw_content' is missing",
    '{"text": 3}': "field 'text' or 'content' or 'raw_content' is not text",
    '{"text": NaN}': "field 'text' or 'content' or 'raw_content' is not text",
    '{"text": ["x"]}': "field 'text' or 'content' or 'raw_content' is not text",
    '{"text": "x", "text": "y"}': "a key stands twice in one object",
    '{"text": "\\ud800x"}': "text holds bytes that are no UTF-8, or half a surrogate pair",
    '{"text": "a\\u0000b"}': "text holds a NUL",
    '{"text": "' + "x" * (7 * LARGEST + (1 << 20)) + '"}': "line is too long",
    json.dumps({"text": "x" * (LARGEST + 1)}): "page is too large",
}


@pytest.mark.parametrize(("bad", "reason"), BAD.items(), ids=range(len(BAD)))
def test_one_bad_row_in_twenty_is_counted_with_its_line(bad: str, reason: str, tmp_path: Path) -> None:
    rows = [{"text": f"row {i}", "score": math.nan, "note": "\ud800"} for i in range(19)]  # not asked about
    lines(tmp_path / "a.jsonl", *rows[:10], bad, *rows[10:])
    found = read(Rows(path=tmp_path / "a.jsonl"))
    assert [page.url for page in found if isinstance(page, Removed)] == ["a.jsonl#11"]
    assert found[10].reason.startswith(reason)  # type: ignore[union-attr]
    assert len(found) == 20


def test_bad_rows_of_parquet_are_counted_with_their_numbers(tmp_path: Path) -> None:
    texts = pyarrow.array([b"row"] * 20 + [b"\xff\xfe", b"a\0b"]).view(pyarrow.string())
    parquet.write_table(
        pyarrow.table({"text": texts, "url": [f"https://a.org/{i}" for i in range(22)]}), tmp_path / "a.parquet"
    )
    found = read(Rows(path=tmp_path))
    bad = {page.value: page.reason for page in found if isinstance(page, Removed)}
    assert bad == {21.0: "not UTF-8", 22.0: "text holds a NUL"}
    assert len(found) == 22


def test_bytes_that_are_not_utf8_are_one_bad_row(tmp_path: Path) -> None:
    good = b'{"text": "fine"}\n'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + good * 10 + b'{"text": "\xff\xfe"}\n' + b"\n\r\n" + good * 9)
    found = read(Rows(path=tmp_path))
    assert [page.reason for page in found if isinstance(page, Removed)] == ["not UTF-8"]
    assert len(found) == 20


def test_more_than_a_tenth_of_bad_rows_is_refused_with_the_first_lines(tmp_path: Path) -> None:
    lines(tmp_path / "a.jsonl", {"text": "x"}, "nonsense", {"body": "x"}, *[{"text": "x"}] * 10)
    with pytest.raises(
        UsageError,
        match=r"2 of 13 rows are bad \(line 2: not JSON: Expecting value; line 3: field 'text' or .* is missing\)",
    ):
        read(Rows(path=tmp_path))


def test_parquet_by_its_named_column(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"content": ["a", "b"], "url": ["https://c.org/", None]}), tmp_path / "a.parquet")
    found = [page for page in read(Rows(path=tmp_path, text="content")) if isinstance(page, RawPage)]
    assert [(page.url, page.content) for page in found] == [("https://c.org/", b"a"), ("a.parquet#2", b"b")]
    with pytest.raises(UsageError, match="no column 'body'") as caught:
        read(Rows(path=tmp_path, text="body"))
    assert "content, url" in caught.value.expected


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\0" * 99 + b"PAR1"])
def test_broken_parquet_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UsageError, match="not a whole Parquet file") as caught:
        read(Rows(path=tmp_path))
    assert "a.parquet" in caught.value.where


def test_a_misspelt_field_is_explained() -> None:
    with pytest.raises(UsageError, match="did you mean 'path'"):
        validate(Warc, {"kind": "warc", "paht": "x"})


@pytest.mark.parametrize(("suffix", "codec"), [("gz", "gzip"), ("zst", "zstd")])
def test_compressed_rows_and_what_other_tools_call_things(suffix: str, codec: str, tmp_path: Path) -> None:
    """datatrove's Document, RefinedWeb's own rows."""
    rows = [
        {"text": "one", "id": "a", "metadata": {"url": "https://b.org/1", "date": "2023-06-01"}},
        {"content": "two", "url": "https://b.org/2", "timestamp": "2023-06-02"},
        {"text": "three", "id": "an-id"},
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(pyarrow.compress(content, codec, asbytes=True))
    found = [page for page in read(Rows(path=tmp_path)) if isinstance(page, RawPage)]
    assert [(page.url, page.content, page.date) for page in found] == [
        ("https://b.org/1", b"one", "2023-06-01"), ("https://b.org/2", b"two", "2023-06-02"), ("an-id", b"three", ""),
    ]  # fmt: skip


def test_compressed_rows_that_are_cut_off_or_expand_without_end_are_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"text": "x"}\n' * 1000)
    (tmp_path / "a.jsonl.gz").write_bytes(whole[:-9])
    with pytest.raises(UsageError, match="not a whole .gz file"):
        read(Rows(path=tmp_path))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((b'{"text": "' + b"x" * 20_000 + b'"}\n') * 6_000, 9))
    with pytest.raises(UsageError, match="expands to more than 200 times"):
        read(Rows(path=tmp_path))


def test_wet_files_hold_text(tmp_path: Path) -> None:
    block = b"Der Text einer Seite."
    lines = [
        "WARC/1.0", "WARC-Type: conversion", "WARC-Target-URI: https://a.org/", "WARC-Date: 2023-06-01T00:00:01Z",
        "Content-Type: text/plain", f"Content-Length: {len(block)}", "", "",
    ]  # fmt: skip
    header = "\r\n".join(lines)
    (tmp_path / "a.wet.gz").write_bytes(gzip.compress(header.encode() + block + b"\r\n\r\n"))
    (page,) = read(Warc(path=tmp_path))
    assert isinstance(page, RawPage)
    text = extract(page, LARGEST)
    assert isinstance(text, Page)
    assert (text.text, text.url, text.date) == (block.decode(), "https://a.org/", "2023-06-01T00:00:01Z")


def test_records_that_are_no_pages_are_skipped_before_anything_reads_them(tmp_path: Path) -> None:
    header = "WARC/1.0\r\nWARC-Type: request\r\nContent-Length: 0\r\n\r\n\r\n\r\n"
    (tmp_path / "a.warc").write_text(header, newline="")
    assert read(Warc(path=tmp_path)) == [Skipped("request record")]
