"""Where pages come from: documentation of installed packages, WARC files, folders of text, rows of tables.

Each source is a settings class with ``files`` (what it reads, in order), ``parts`` (the same in pieces of work)
and ``read`` (the pages of a part, as found); documentation is rendered first (``documentation.py``) and then read
as the WARC file it was written to. What cannot be read comes out as a removed page with the reason, so that counts
add up; what makes a whole source useless is one :class:`UsageError`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from mickle.config import Config, Input
from mickle.data.arrow import is_saved, set_files
from mickle.data.compressed import COMPRESSED, open_lines
from mickle.data.pages import PAGES, RawPage, Skipped, record_page, removed_raw
from mickle.data.parquet import open_parquet
from mickle.data.records import Removed, domain_of, grouped
from mickle.data.rows import damage_of_text, parquet_values
from mickle.data.warc import Damaged, read_records
from mickle.errors import UsageError
from mickle.storage import no_such
from mickle.untrusted.values import NOT_UTF8, Doubled, parsed_lines

Found = RawPage | Removed | Skipped
Advance = Callable[[int], None]  # told how many more bytes of the source have been read

HEADER_ROOM = 1 << 20  # bytes that a record's HTTP header and codings may add to its page
HTML_SUFFIXES = (".html", ".htm", ".xhtml")
TEXT_SUFFIXES = (".md", ".markdown", ".txt", ".rst")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".jsonl.zst", ".json.gz")
ROW_SUFFIXES = (*JSON_SUFFIXES, ".parquet", ".arrow")
TEXT_FIELDS = ("text", "content", "raw_content")  # of most corpora; of RefinedWeb; of RedPajama
DATE_FIELDS = ("date", "timestamp")
FILES_IN_A_PART = 500
OTHER_FILE = "file named *"  # and its ending: one that the source does not read
BAD_ROWS = 0.1  # a file with a larger share of bad rows is refused
BAD_ROWS_FROM = 1000  # rows after which a file may be refused before its end


class Documentation(Config):
    """Documentation strings of packages installed in this Python, read from their sources and rendered to pages."""

    kind: Literal["documentation"] = "documentation"
    packages: list[str] = Field(["stdlib"], min_length=1, description="'stdlib' and names of installed packages")
    tests: bool = Field(False, description="document test modules too")
    questions: int = Field(
        0, ge=0, le=1_000_000, description="also write so many questions and answers for tune, a tenth of them held out"
    )


class _Folder(Config):
    """One file, or those of a folder and all below it whose names end as they should."""

    endings: ClassVar[tuple[str, ...]]
    files_in_a_part: ClassVar[int] = 1
    path: Input = Field(description="file or folder")

    def files(self) -> list[Path]:
        """The file itself, or those whose names end so, in order. :class:`UsageError` if there are none."""
        if not self.path.exists():
            raise no_such(self.path, where="source.path")
        files = [self.path] if self.path.is_file() else sorted(_files_under(self.path))
        found = [file for file in files if file.name.lower().endswith(self.endings)]
        if not found:
            expected = "files named *" + ", *".join(self.endings)
            raise UsageError(f"nothing to read in {self.path}", where="source.path", expected=expected)
        return found

    def parts(self) -> list[list[Path]]:
        """The files in pieces of work, at the end those that are not read: none is passed over uncounted."""
        files = self.files()
        others = sorted(_files_under(self.path, links=True) - set(files)) if self.path.is_dir() else []
        return [*grouped(files, self.files_in_a_part), *grouped(others, FILES_IN_A_PART)]

    def read(self, files: Sequence[Path], largest: int, advance: Advance) -> Iterator[Found]:
        """The pages of files, as found."""
        for path in files:
            if _is_dangling(path):
                yield Skipped("link to nothing")
            elif path == self.path or path.name.lower().endswith(self.endings):
                yield from self.read_file(path, largest, advance)
            else:
                ending = os.fsencode(path.suffix).decode("utf-8", "replace").lower()
                yield Skipped(f"{OTHER_FILE}{ending}")

    def read_file(self, path: Path, largest: int, advance: Advance) -> Iterator[Found]:
        """The pages of one file."""
        raise NotImplementedError


class Warc(_Folder):
    """A web crawl: one .warc, .warc.gz or .wet.gz file, or a folder of them."""

    kind: Literal["warc"] = "warc"
    endings: ClassVar[tuple[str, ...]] = (".warc", ".warc.gz", ".wet", ".wet.gz")

    def files(self) -> list[Path]:
        """Files in order of their paths; one that is named itself may be called as it likes."""
        return [self.path] if self.path.is_file() else super().files()

    def read_file(self, path: Path, largest: int, advance: Advance) -> Iterator[Found]:
        """Its pages, still inside their records; damaged ones as removed, an empty file too."""
        empty = True
        for record in read_records(path, largest + HEADER_ROOM, advance=advance):
            empty = False
            if isinstance(record, Damaged):
                place = RawPage(record.url or record.place, domain_of(record.url), "record", b"")
                yield removed_raw(place, record.reason, record.value)
            elif record.kind in PAGES:
                yield record_page(record)
            else:
                yield Skipped(f"{record.kind} record")
        if empty:
            place = RawPage(path.name, "", "record", b"")
            yield removed_raw(place, "file holds no records", float(path.stat().st_size))


class Files(_Folder):
    """A folder of .html, .htm, .xhtml, .md, .markdown, .txt and .rst files (or one such file)."""

    kind: Literal["files"] = "files"
    endings: ClassVar[tuple[str, ...]] = HTML_SUFFIXES + TEXT_SUFFIXES
    files_in_a_part: ClassVar[int] = FILES_IN_A_PART

    def read_file(self, path: Path, largest: int, advance: Advance) -> Iterator[Found]:
        """The file as a page; its url is the path inside the folder, its domain the first folder of that path."""
        name = path.relative_to(self.path).as_posix() if path != self.path else path.name
        name = os.fsencode(name).decode("utf-8", "replace")
        form = "html" if path.suffix.lower() in HTML_SUFFIXES else "text"
        page = RawPage(name, name.partition("/")[0] if "/" in name else "", form, b"")
        try:
            size = path.stat().st_size
            advance(size)
            if size > largest:
                yield removed_raw(page, "page is too large", float(size), limit=largest)
            else:
                yield replace(page, content=path.read_bytes())
        except OSError as error:
            yield removed_raw(page, f"file cannot be read ({type(error).__name__})", 0.0)


class Rows(_Folder):
    """A table with a text in every row: JSON Lines (.jsonl, also .gz and .zst) or Parquet, one file or a folder; or a
    folder of datasets' save_to_disk, of whose splits train is read.
    """

    kind: Literal["rows"] = "rows"
    endings: ClassVar[tuple[str, ...]] = ROW_SUFFIXES
    text: str = Field(
        "", description=f"name of the field that holds the text; the first of {', '.join(TEXT_FIELDS)} if not given"
    )
    url: str = Field("url", description="field that holds the address, where there is one")

    def files(self) -> list[Path]:
        """The file itself, or those of a folder; of a saved set its own."""
        return set_files(self.path) if is_saved(self.path) else super().files()

    def read_file(self, path: Path, largest: int, advance: Advance) -> Iterator[Found]:
        """One page per row; rows without an address get FILE#ROW. Refuses a file with more than 10 % bad rows."""
        if is_saved(self.path) and path not in self.files():
            return iter([Skipped("file of another split")])
        is_parquet = path.suffix.lower() in (".parquet", ".arrow")
        rows = _parquet_rows(path, self, advance) if is_parquet else _json_rows(path, largest, advance)
        return _good_rows((self._page(path, *row, largest) for row in rows), path)

    def text_fields(self) -> tuple[str, ...]:
        """Where the text may stand."""
        return (self.text,) if self.text else TEXT_FIELDS

    def shown_fields(self) -> str:
        """The same for a person."""
        return " or ".join(map(repr, self.text_fields()))

    def _page(self, path: Path, number: int, row: Any, problem: str, largest: int) -> Found:
        """A row's page; a bad row as removed by the stage "rows", with its number."""
        fields = row if isinstance(row, dict) else {}
        url = _text_in(fields, (self.url, "url")) or _text_in(fields, ("id",)) or f"{path.name}#{number}"
        page = RawPage(url, domain_of(url), "text", b"", date=_text_in(fields, DATE_FIELDS))
        text: Any = next((row[field] for field in self.text_fields() if fields.get(field) is not None), None)
        if reason := problem or self._fault(row, text):
            return removed_raw(page, reason, float(number), "rows")
        if len(text) > largest:
            return removed_raw(page, "page is too large", float(len(text)), limit=largest)
        return replace(page, content=text.encode())

    def _fault(self, row: Any, text: Any) -> str:
        """What makes a row no page; "" where nothing does. Fields that are not read may hold what they like."""
        if not isinstance(row, dict):
            return "row is not an object"
        if isinstance(row, Doubled):
            return "a key stands twice in one object"
        if not isinstance(text, str):
            return f"field {self.shown_fields()} is " + ("missing" if text is None else "not text")
        return damage_of_text(text)


def _text_in(row: dict[str, Any], names: Sequence[str]) -> str:
    """The first of the named fields that holds text, looked for in the row and then in its ``metadata``."""
    inner = row.get("metadata")
    for place in (row, inner if isinstance(inner, dict) else {}):
        for name in names:
            value = place.get(name)
            if value is not None and not isinstance(value, (dict, list)) and str(value):
                return str(value)
    return ""


Source = Warc | Files | Rows


def kind_of(path: Path) -> str:
    """The kind of source that a file or folder is, by the names of its files. ValueError where none or several fit."""
    if not path.exists():
        raise ValueError(f"no such file or folder, and no kind of source: {path}")
    names = [path.name.lower()] if path.is_file() else [file.name.lower() for file in _files_under(path)]
    found = {kind: sum(name.endswith(kind.endings) for name in names) for kind in (Warc, Files, Rows)}
    fitting = {kind.model_fields["kind"].default: count for kind, count in found.items() if count}
    if len(fitting) == 1:
        return str(next(iter(fitting)))
    endings = ", ".join(f"*{ending}" for kind in found for ending in kind.endings)
    if not fitting:
        raise ValueError(f"nothing to read in {path}; what can be read is named {endings}")
    counts = ", ".join(f"{count:,} for --source.kind {kind}" for kind, count in fitting.items())
    raise ValueError(f"{path} holds several kinds of files: {counts}; choose one, with --source.path {path}")


def _files_under(folder: Path, links: bool = False) -> set[Path]:
    """The files of a folder and all below it; ``links``: and links to nothing."""
    return {path for path in folder.rglob("*") if path.is_file() or (links and _is_dangling(path))}


def _is_dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


def _json_rows(path: Path, largest: int, advance: Advance) -> Iterator[tuple[int, Any, str]]:
    """Number of the line, its value, and what is wrong with it."""
    with open_lines(path) as stream:
        # A character takes at most six bytes of JSON (\uXXXX); a longer line cannot hold a page that may stay.
        heard = (lambda size: None) if path.suffix.lower() in COMPRESSED else advance
        yield from parsed_lines(stream, 6 * largest + HEADER_ROOM, "line is too long", heard)


def _parquet_rows(path: Path, source: Rows, advance: Advance) -> Iterator[tuple[int, Any, str]]:
    with open_parquet(path) as file:
        names, count = file.schema_arrow.names, file.metadata.num_rows
    if not any(field in names for field in source.text_fields()):
        raise UsageError(
            f"no column {source.shown_fields()}", where=str(path),
            expected="one of its columns: " + ", ".join(names[:20]), todo="name it with --source.text",
        )  # fmt: skip
    wanted = {*source.text_fields(), source.url, "url", "id", *DATE_FIELDS, "metadata"}
    size = path.stat().st_size
    for number, row in enumerate(parquet_values(path, [name for name in names if name in wanted]), start=1):
        advance(size * number // count - size * (number - 1) // count)
        yield number, row, NOT_UTF8 if row is None else ""


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
