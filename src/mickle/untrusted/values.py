"""JSON files from anywhere, read within a budget of bytes and values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mickle.errors import UsageError

LARGEST_FILE = 64 << 20  # bytes
MOST_VALUES = 1_000_000  # of a file; read, the smallest takes about 70 bytes


def read_json(path: Path, largest: int = LARGEST_FILE, most: int = MOST_VALUES) -> Any:
    """The value in a JSON file of at most ``largest`` bytes and ``most`` values; :class:`UsageError` names the line
    that is wrong.
    """
    path = Path(path)
    if not path.exists():
        raise UsageError(f"no such file: {path}", todo="check the path")
    if not path.is_file():
        raise UsageError("this is no plain file", where=str(path), expected="a JSON file")
    if path.stat().st_size > largest:
        raise UsageError(
            f"JSON file has {path.stat().st_size:,} bytes", where=str(path), expected=f"at most {largest:,}"
        )
    try:
        text = path.read_text(encoding="utf-8")
        if (count := count_values(text)) > most:
            raise UsageError(f"JSON file holds {count:,} values", where=str(path), expected=f"at most {most:,}")
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"not valid JSON: {error.msg}", where=f"{path}:{error.lineno}") from None
    except UnicodeDecodeError as error:
        raise UsageError("not UTF-8 text", where=f"{path}, byte {error.start}") from None
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
