"""Text, JSON and JSON Lines from anywhere, read within a budget of bytes and values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mickle.errors import UsageError

LARGEST_FILE = 64 << 20  # bytes
DEEPEST = 32  # lists and objects of a row inside each other
NOT_UTF8 = "not UTF-8"
TOO_DEEP = f"more than {DEEPEST} lists and objects inside each other"
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


def parse_json(text: str, path: Path, most: int, read: Callable[[str], Any] = json.loads) -> Any:
    """The value in the text of a file of at most ``most`` values; errors as :func:`read_json`."""
    if (count := count_values(text)) > most:
        raise UsageError(f"JSON file holds {count:,} values", where=str(path), expected=f"at most {most:,}")
    try:
        return read(text)
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


# -- JSON Lines --------------------------------------------------------------------------------------------------------


class Doubled(dict[str, Any]):
    """An object in which a key stands twice; what was meant is not known."""


class NotANumber:
    """Where NaN or Infinity stood, which are no JSON."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    return values if len(values) == len(pairs) else Doubled(values)


decode = json.JSONDecoder(object_pairs_hook=_object, parse_constant=lambda _: NotANumber()).decode


def parse(line: bytes) -> tuple[Any, str]:
    """The value of a line of JSON, or what is wrong with it; an object with a key twice is :class:`Doubled`."""
    try:
        text = line.decode("utf-8-sig")
        if count_values(text) > MOST_VALUES:
            return None, f"row holds more than {MOST_VALUES:,} values"
        return decode(text), ""
    except UnicodeDecodeError:
        return None, NOT_UTF8
    except json.JSONDecodeError as error:
        cut = error.pos >= len(line.rstrip()) or error.msg.startswith("Unterminated")
        return None, "not JSON: " + ("it is cut off" if cut else error.msg)
    except RecursionError:
        return None, TOO_DEEP
    except ValueError as error:  # such as an integer of 5,000 digits
        return None, f"not JSON: {error}"


def good_lines(path: Path, what: str, largest: int, expected: str) -> Iterator[tuple[int, Any]]:
    """Number and value of each line of JSON Lines of at most ``largest`` bytes that must be good throughout.

    ``what`` the file is. Raises UsageError for a line that is not JSON.
    """
    for number, line in enumerate(read_text(path, what, largest).split("\n"), start=1):
        if line.strip():
            value, problem = parse(line.encode())
            if problem:
                raise UsageError(problem, where=f"{path}:{number}", expected=expected)
            yield number, value


def parsed_lines(
    stream: IO[bytes], largest: int, too_large: str, advance: Callable[[int], None] = lambda size: None
) -> Iterator[tuple[int, Any, str]]:
    """Number and value of each line of JSON Lines but empty ones, and what is wrong with it: ``too_large`` of one of
    more than ``largest`` bytes. ``advance`` hears of the bytes of the others.
    """
    for number, line in enumerate(bounded_lines(stream, largest), start=1):
        if line is None:
            yield number, None, too_large
            continue
        advance(len(line))
        if line.strip(b"\xef\xbb\xbf\r\n\t "):
            yield number, *parse(line)


def bounded_lines(stream: IO[bytes], largest: int) -> Iterator[bytes | None]:
    """Lines as they are; None for one of more than ``largest`` bytes, of which no more than that is ever held."""
    while line := stream.readline(largest + 1):
        if len(line) <= largest or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
        yield None
