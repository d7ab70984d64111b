"""Where pages come from: documentation of installed packages, WARC files, folders of text, rows of tables.

Each source is a settings class with two methods: ``files`` (what it reads, in order) and ``read`` (its pages,
as found); documentation is rendered first (``documentation.py``) and then read as the WARC file it was
written to. What cannot be read comes out as a removed page with the reason, so that counts add up; what makes
a whole source useless is one :class:`UsageError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from mickle.config import Config, Input
from mickle.data.pages import RawPage, Skipped, record_page, removed_raw
from mickle.data.records import Removed, domain_of
from mickle.data.warc import Damaged, read_records
from mickle.errors import UsageError

Found = RawPage | Removed | Skipped
Advance = Callable[[int], None]  # told how many more bytes of the source have been read

HEADER_ROOM = 1 << 20  # bytes that a record's HTTP header and codings may add to its page
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
TEXT_SUFFIXES = (".md", ".markdown", ".txt", ".rst")
WARC_SUFFIXES = (".warc", ".warc.gz")
ROW_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
BAD_ROWS = 0.1  # a file with a larger share of bad rows is refused
BAD_ROWS_FROM = 1000  # rows after which a file may be refused before its end


class Documentation(Config):
    """Documentation strings of packages installed in this Python, rendered to pages."""

    kind: Literal["documentation"] = "documentation"
    packages: list[str] = Field(
        ["stdlib"], min_length=1, description="'stdlib' and names of installed packages"
    )
    tests: bool = Field(False, description="document test modules too")
    module_seconds: float = Field(
        20.0, gt=0, le=600, description="wall time one module may take to import and render"
    )
    module_megabytes: int = Field(4096, ge=64, description="address space one module may use, in MiB")


class Warc(Config):
    """A web crawl: one .warc or .warc.gz file, or a folder of them."""

    kind: Literal["warc"] = "warc"
    path: Input = Field(description="file or folder")

    def files(self) -> list[Path]:
        """WARC files in order of their names."""
        return find_files(self.path, WARC_SUFFIXES, any_single=True)

    def read(self, largest: int, advance: Advance) -> Iterator[Found]:
        """Pages of all files, still inside their records."""
        for path in self.files():
            yield from read_warc(path, largest, advance)


class Files(Config):
    """A folder of .html, .htm, .xhtml, .md, .markdown, .txt and .rst files (or one such file)."""

    kind: Literal["files"] = "files"
    path: Input = Field(description="file or folder")

    def files(self) -> list[Path]:
        """Files in order of their paths."""
        return find_files(self.path, HTML_SUFFIXES + TEXT_SUFFIXES)

    def read(self, largest: int, advance: Advance) -> Iterator[Found]:
        """One page per file; its url is the path inside the folder, its domain the first folder of that path."""
        for path in self.files():
            name = path.relative_to(self.path).as_posix() if path != self.path else path.name
            form = "html" if path.suffix.lower() in HTML_SUFFIXES else "text"
            page = RawPage(name, name.partition("/")[0] if "/" in name else "", form, b"")
            try:
                size = path.stat().st_size
                advance(size)
                if size > largest:
                    yield removed_raw(page, "page is too large", float(size))
                else:
                    yield RawPage(page.url, page.domain, form, path.read_bytes())
            except OSError as error:
                yield removed_raw(page, f"file cannot be read ({type(error).__name__})", 0.0)


class Rows(Config):
    """A table with a text in every row: JSON Lines (.jsonl) or Parquet, one file or a folder."""

    kind: Literal["rows"] = "rows"
    path: Input = Field(description="file or folder")
    text: str = Field("text", min_length=1, description="name of the field that holds the text")
    url: str = Field("url", description="name of the field that holds the address, where there is one")

    def files(self) -> list[Path]:
        """Files in order of their names."""
        return find_files(self.path, ROW_SUFFIXES)

    def read(self, largest: int, advance: Advance) -> Iterator[Found]:
        """One page per row; rows without an address get FILE#ROW. Refuses a file with more than 10 % bad
        rows.
        """
        for path in self.files():
            rows = (
                _parquet_rows(path, self, advance)
                if path.suffix == ".parquet"
                else _json_rows(path, largest, advance)
            )
            yield from _good_rows((self._page(path, number, row, largest) for number, row in rows), path)

    def _page(self, path: Path, number: int, row: Any, largest: int) -> Found:
        """A row's page. A row that could not be parsed comes as the reason, a string."""
        name = f"{path.name}#{number}"
        address = row.get(self.url) if isinstance(row, dict) else None
        url = address if isinstance(address, str) and address else name
        page = RawPage(url, domain_of(url), "text", b"")
        if not isinstance(row, dict):
            return removed_raw(
                page, row if isinstance(row, str) else "row is not an object", float(number), "rows"
            )
        text = row.get(self.text)
        if not isinstance(text, str):
            reason = f"field {self.text!r} is " + ("missing" if text is None else "not text")
            return removed_raw(page, reason, float(number), "rows")
        if len(text) > largest:
            return removed_raw(page, "page is too large", float(len(text)))
        return RawPage(url, page.domain, "text", text.encode("utf-8", "replace"))


def find_files(path: Path, suffixes: tuple[str, ...], any_single: bool = False) -> list[Path]:
    """``path`` itself, or the files under it with one of the suffixes, in order. :class:`UsageError` if there
    are none.
    """
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}", where="source.path", todo="check the path")
    if path.is_file():
        found = [path] if any_single or path.name.lower().endswith(suffixes) else []
    else:
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(suffixes))
    if not found:
        raise UsageError(
            f"nothing to read in {path}", where="source.path", expected="files named *" + ", *".join(suffixes)
        )
    return found


def read_warc(path: Path, largest: int, advance: Advance) -> Iterator[Found]:
    """The records of one WARC file as pages; damaged ones as removed, an empty file too."""
    empty = True
    for record in read_records(path, largest + HEADER_ROOM, advance=advance):
        empty = False
        if isinstance(record, Damaged):
            place = RawPage(record.url or record.place, domain_of(record.url), "record", b"")
            yield removed_raw(place, record.reason, record.value)
        else:
            yield record_page(record)
    if empty:
        yield removed_raw(
            RawPage(path.name, "", "record", b""), "file holds no records", float(path.stat().st_size)
        )


def _json_rows(path: Path, largest: int, advance: Advance) -> Iterator[tuple[int, Any]]:
    with open(path, "rb") as stream:
        number = 0
        # A character takes at most six bytes of JSON (\uXXXX); a longer line cannot hold a page that may stay.
        while line := stream.readline(6 * largest + HEADER_ROOM):
            number += 1
            advance(len(line))
            if not line.endswith(b"\n") and stream.read(1):
                while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                    pass
                yield number, "line is too long"
            elif line.strip():
                yield number, _parse(line)


def _parse(line: bytes) -> Any:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return "not UTF-8"
    except (ValueError, RecursionError):
        return "not JSON"
    return value if isinstance(value, dict) else None


def _parquet_rows(path: Path, source: Rows, advance: Advance) -> Iterator[tuple[int, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if source.text not in names:
                raise UsageError(
                    f"no column {source.text!r}", where=str(path),
                    expected="one of its columns: " + ", ".join(names[:20]), todo="name it with --source.text",
                )  # fmt: skip
            columns = [name for name in (source.text, source.url) if name in names]
            number, size = 0, path.stat().st_size
            for batch in file.iter_batches(batch_size=256, columns=columns):
                advance(size * batch.num_rows // max(1, file.metadata.num_rows))
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0][:120]
        raise UsageError(f"not a whole Parquet file: {reason}", where=str(path)) from None


def _good_rows(pages: Iterable[Found], path: Path) -> Iterator[Found]:
    bad: list[Removed] = []
    count = bad_count = 0
    for page in pages:
        count += 1
        if isinstance(page, Removed) and page.stage == "rows":
            bad_count += 1
            bad = [*bad, page][:3]
        if count % BAD_ROWS_FROM == 0:
            _refuse_bad(path, bad, bad_count, count)
        yield page
    _refuse_bad(path, bad, bad_count, count)


def _refuse_bad(path: Path, bad: list[Removed], bad_count: int, count: int) -> None:
    if bad_count > BAD_ROWS * count:
        shown = "; ".join(f"line {page.value:.0f}: {page.reason}" for page in bad)
        raise UsageError(
            f"{bad_count} of {count} rows are bad ({shown})", where=str(path),
            expected=f"at most {BAD_ROWS:.0%}", todo="mend the file, or name the right field with --source.text",
        )  # fmt: skip
