"""Text and JSON files from anywhere, read within a budget of bytes and values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mickle.errors import UsageError

LARGEST_FILE = 64 << 20  # bytes
MOST_VALUES = 1_000_000  # of a file; read, the smallest takes about 70 bytes


def read_json(path: Path, largest: int = LARGEST_FILE, most: int = MOST_VALUES) -> Any:
    """The value in a JSON file of at most ``largest`` bytes and ``most`` values; :class:`UsageError` names the line
    that is wrong.
    """
    return parse_json(read_text(path, "JSON file", largest), path, most)


def read_text(path: Path, what: str, largest: int = LARGEST_FILE) -> str:
    """The text of a UTF-8 file of at most ``largest`` bytes, without a mark at its beginning; ``what`` it should be."""
    path = Path(path)
    if not path.exists():
        raise UsageError(f"no such {what}: {path}", todo="check the path")
    if not path.is_file():
        raise UsageError("this is no plain file", where=str(path), expected=what)
    if (size := path.stat().st_size) > largest:
        raise UsageError(f"{what} has {size:,} bytes", where=str(path), expected=f"at most {largest:,}")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{what} is not UTF-8 text", where=f"{path}, byte {error.start}") from None


def parse_json(text: str, path: Path, most: int, decode: Callable[[str], Any] = json.loads) -> Any:
    """The value in the text of a file of at most ``most`` values; errors as :func:`read_json`."""
    if (count := count_values(text)) > most:
        raise UsageError(f"JSON file holds {count:,} values", where=str(path), expected=f"at most {most:,}")
    try:
        return decode(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    except (RecursionError, ValueError) as error:
        raise UsageError(f"not valid JSON: {error}", where=str(path)) from None


def most_of_rows(size: int) -> int:
    """How many values a file of rows may hold by its bytes: rows are text, of which each takes some."""
    return max(MOST_VALUES, size // 8)


def count_values(text: str) -> int:
    """At least as many as the lists, objects and values in JSON: the marks that open and part them are counted, those
    in strings too.
    """
    return sum(map(text.count, "[{,")) + 1
