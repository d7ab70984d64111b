"""Rows of JSON Lines, JSON, CSV, Parquet and saved sets (``arrow.py``), read one by one; a bad row is no exception.

What is wrong with one row (not UTF-8, not JSON, a key that stands twice, half a surrogate pair, a NUL, too large, too
deep) is its ``problem``, and reading goes on with the next. What is wrong with the file as a whole (no such file, not
Parquet, a JSON array cut off) is a UsageError. JSON Lines, CSV and Parquet are streamed; a JSON array is held whole.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from mickle.data.arrow import is_saved, set_files
from mickle.data.parquet import read_batches
from mickle.errors import UsageError
from mickle.storage import MANIFEST, no_such
from mickle.untrusted.values import (
    DEEPEST,
    NOT_UTF8,
    TOO_DEEP,
    Doubled,
    NotANumber,
    bounded_lines,
    decode,
    most_of_rows,
    parse,
    parse_json,
    parsed_lines,
    read_text,
)

LARGEST_ROW = 16 << 20  # bytes of a line; characters of a row
LARGEST_JSON = 1 << 30  # bytes of a JSON array, which is read whole
PARQUET_ROWS = 64  # held at a time
LINES, ARRAY, TABLE, PARQUET = (".jsonl", ".ndjson"), (".json",), (".csv",), (".parquet", ".arrow")
SUFFIXES = LINES + PARQUET + TABLE + ARRAY
CONVERSATIONS = ("messages", "conversations", "conversation")  # lists that are one row and not a list of rows
EXPECTED = "a file named *" + ", *".join(SUFFIXES) + ", or a folder of such files"
TOO_LARGE = "row is larger than 16 MB"
_CUT = "\0cut"  # stands for a line of CSV that is too long
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Row:
    """One row: its values by name, and where it stands ("FILE:LINE", or item or row of the file, from 1).

    ``problem`` says why it could not be read; ``values`` is then empty.
    """

    values: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    problem: str = ""


def read_rows(path: Path) -> Iterator[Row]:
    """Every row of a file, or of the files of a folder in the order of their names. Empty lines are no rows.

    Of a folder, JSON files count only where it holds nothing else: beside rows they are settings and cards.
    Raises UsageError where a file is missing, unreadable as a whole or of no known ending.
    """
    for file in row_files(Path(path)):
        suffix = file.suffix.lower()
        try:
            if suffix in PARQUET:
                yield from _parquet_rows(file)
                continue
            with open(file, "rb") as stream:
                _refuse_utf16(stream, file)
                if suffix in TABLE:
                    yield from _table_rows(stream, file)
                elif suffix in LINES or _is_lines(stream):
                    yield from _line_rows(stream, file)
                else:
                    yield from _array_rows(file)
        except OSError as error:
            raise UsageError(f"this file cannot be read: {error.strerror or error}", where=str(file)) from None


def row_files(path: Path) -> list[Path]:
    """The file, or the files with rows in a folder; of a corpus its pages, of saved splits those of ``train``.

    Raises UsageError where there are none.
    """
    if not path.exists():
        raise no_such(path, expected=EXPECTED)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise UsageError(f"no rows can be read from a {path.suffix or 'nameless'} file", where=str(path),
                             expected=EXPECTED)  # fmt: skip
        return [path]
    if is_saved(path):
        return set_files(path)
    pages = path / "pages"
    folder = pages if pages.is_dir() and (path / MANIFEST).is_file() else path
    found = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix.lower() in SUFFIXES)
    found = [p for p in found if p.suffix.lower() not in ARRAY] or found
    if not found:
        raise UsageError("this folder holds no rows", where=str(path), expected=EXPECTED)
    return found


def _refuse_utf16(stream: IO[bytes], path: Path) -> None:
    start = stream.read(2)
    stream.seek(0)
    if start in (b"\xff\xfe", b"\xfe\xff"):
        raise UsageError("this file is UTF-16 text", where=str(path), expected="UTF-8", todo="save it as UTF-8")


# -- JSON ------------------------------------------------------------------------------------------------------------


def _line_rows(stream: IO[bytes], path: Path) -> Iterator[Row]:
    for number, value, problem in parsed_lines(stream, LARGEST_ROW, TOO_LARGE):
        yield _row(value, problem, f"{path}:{number}")


def _is_lines(stream: IO[bytes]) -> bool:
    """Whether a file named .json holds JSON Lines, as many do: its first line is an object, and more follows."""
    first = b"\n"
    while first and not first.strip():
        first = stream.readline(LARGEST_ROW + 1)
    second = stream.readline(LARGEST_ROW + 1).strip()
    stream.seek(0)
    return first.endswith(b"\n") and second.startswith(b"{") and not _row(*parse(first)).problem


def _array_rows(path: Path) -> Iterator[Row]:
    """The items of an array, or of the one list that an object holds; an object that is a conversation is a row."""
    text = read_text(path, "JSON file", LARGEST_JSON)
    value = parse_json(text, path, most_of_rows(path.stat().st_size), decode)
    for number, item in enumerate(_items(value, path), start=1):
        yield _row(item, where=f"{path}, item {number}")


def _items(value: Any, path: Path) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        lists = [name for name, item in value.items() if isinstance(item, list) and item and isinstance(item[0], dict)]
        if len(lists) == 1 and lists[0] not in CONVERSATIONS:
            return list(value[lists[0]])
        if not lists or lists[0] in CONVERSATIONS:
            return [value]
    expected = "an array of objects, or one object with one list"
    raise UsageError("this JSON file is no list of rows", where=str(path), expected=expected)


# -- CSV and Parquet -------------------------------------------------------------------------------------------------


def _table_rows(stream: IO[bytes], path: Path) -> Iterator[Row]:
    """Rows of a CSV file whose first line names the columns; a row that has more or fewer fields is bad."""
    # The limit is the module's own and is only ever raised: fields as long as a row are read here.
    csv.field_size_limit(max(csv.field_size_limit(), LARGEST_ROW))
    reader = csv.reader(_table_lines(stream), strict=True)
    try:
        names = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise UsageError(f"the line of column names is not CSV: {error}", where=f"{path}:1") from None
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"column {twice[:60]!r} stands twice", where=f"{path}:1")
    while True:
        where = f"{path}:{reader.line_num + 1}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = "unexpected end" in str(error)
            problem = "not CSV: " + ("a quote is never closed" if unclosed else str(error))
            yield Row(where=where, problem=TOO_LARGE if "limit" in str(error) else problem)
            continue
        if fields == [_CUT]:
            yield Row(where=where, problem=TOO_LARGE)
        elif len(fields) == len(names):
            yield _row(dict(zip(names, fields)), where=where)
        elif fields:
            yield Row(where=where, problem=f"{len(fields)} fields where the columns are {len(names)}")


def _table_lines(stream: IO[bytes]) -> Iterator[str]:
    """Decoded lines. A byte that is not UTF-8 becomes half a surrogate pair, which is then the row's problem."""
    for number, line in enumerate(bounded_lines(stream, LARGEST_ROW)):
        text = f"{_CUT}\n" if line is None else line.decode("utf-8", "surrogateescape")
        yield text.removeprefix("\ufeff") if number == 0 else text


def _parquet_rows(path: Path) -> Iterator[Row]:
    for number, values in enumerate(parquet_values(path), start=1):
        yield _row(values, NOT_UTF8 if values is None else "", f"{path}, row {number}")


def parquet_values(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any] | None]:
    """The values of each row, of all columns or some; None for a row whose text is not UTF-8."""
    for batch in read_batches(path, columns, PARQUET_ROWS):
        for at in range(batch.num_rows):
            try:
                yield batch.slice(at, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield None


# -- what no row may hold ----------------------------------------------------------------------------------------------


def _row(value: Any, problem: str = "", where: str = "") -> Row:
    if not problem:
        problem = damage(value) if isinstance(value, dict) else f"row is {_kind(value)}, not an object"
    return Row(where=where, problem=problem) if problem else Row(dict(value), where)


def damage(value: Any) -> str:
    """What makes a row unfit to be used, wherever in it that stands; "" where nothing does."""
    waiting: list[tuple[Any, int]] = [(value, 1)]
    size = 0
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, str):
            size += len(item)
            if problem := damage_of_text(item):
                return problem
        elif isinstance(item, NotANumber):
            return "not JSON: NaN and Infinity are no numbers there"
        elif isinstance(item, (dict, list, tuple)):
            if isinstance(item, Doubled):
                return "a key stands twice in one object"
            if depth > DEEPEST:
                return TOO_DEEP
            inner = [*item.keys(), *item.values()] if isinstance(item, dict) else item
            waiting += [(part, depth + 1) for part in inner]
            size += len(item)
        if size > LARGEST_ROW:
            return TOO_LARGE
    return ""


def damage_of_text(text: str) -> str:
    """What makes a text unfit to be used; "" where nothing does."""
    if "\0" in text:
        return "text holds a NUL"
    if not text.isascii() and _SURROGATE.search(text):
        return "text holds bytes that are no UTF-8, or half a surrogate pair"
    return ""


def _kind(value: Any) -> str:
    names = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), "no value of JSON")
