"""Remove from a corpus what is in an evaluation set: pages that share a run of words with one of its items.

The usual measure (GPT-3, arXiv 2005.14165, appendix C): any shared run of 13 words, compared as MinHash compares
words, so case, accents and punctuation do not matter. Of an item every text is taken, whatever its field is called.
Of an item that is shorter, the longest of its texts is looked for as a whole, unless that has fewer than 5 words: so
few stand in many an innocent page. In scripts without spaces a run has the letters of so many words.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from mickle import storage
from mickle.config import Config, Input
from mickle.data.parquet import read_batches
from mickle.data.records import Failure, Page, Removed, read_corpus, remove
from mickle.data.words import letters_a_word
from mickle.errors import UsageError
from mickle.untrusted.values import good_lines, most_of_rows, read_text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LARGEST_JSON = 256 << 20  # bytes
ITEM = "one JSON value a line"
DEEPEST = 8  # lists and objects inside each other that texts of an item are looked for in


class Decontamination(Config):
    """Evaluation sets that no page may share a run of words with."""

    against: list[Input] = Field(
        [], description="evaluation sets: .jsonl, .json, .parquet or text files, or corpus folders"
    )
    words: int = Field(13, ge=3, le=100, description="length of the runs of words that are compared")
    least_words: int = Field(
        5, ge=1, description="shorter items are looked for whole, from so many words on; a warning counts those below"
    )
    shared: int = Field(1, ge=1, description="distinct runs a page must share to be removed")


@dataclass(frozen=True)
class Runs:
    """Runs of ``words`` words: ``hashes`` uint64 [n] in order, ``items`` int64 [n] where each first stands."""

    words: int
    hashes: NDArray[np.uint64]
    items: NDArray[np.int64]
    enough: int  # how many of them a page must share


@dataclass(frozen=True)
class Index:
    """What is looked for of all evaluation items: ``names`` of the items; those with too few words in ``short``."""

    runs: list[Runs]
    names: list[str]
    short: list[str]

    def warning(self) -> str:
        """How many items are not looked for; "" where all are."""
        if not self.short:
            return ""
        count, all_items = len(self.short), len(self.short) + len(self.names)
        return f"{count:,} of {all_items:,} evaluation items are too short to be looked for, such as {self.short[0]}"


def index_of(settings: Decontamination) -> Index:
    """Reads the evaluation sets: 16 bytes for each distinct run of words. :class:`UsageError` for bad files."""
    if not settings.against:
        return Index([], [], [])
    return _index_of(tuple(settings.against), settings.words, settings.least_words, settings.shared)


@cache
def _index_of(paths: tuple[Path, ...], words: int, least: int, shared: int) -> Index:
    from mickle.kernels.signatures import shingles

    names: list[str] = []
    short: list[str] = []
    found: dict[tuple[int, int], list[tuple[int, NDArray[np.uint64]]]] = {}
    for path in paths:
        for name, texts in _items(path):
            looked_for = _looked_for(texts, words, least)
            if looked_for is None:
                short.append(name)
                continue
            text, size, whole = looked_for
            found.setdefault((size, 1 if whole else shared), []).append((len(names), shingles(text, size)))
            names.append(name)
    if not found:
        raise UsageError(
            f"no item has {least} words", where=", ".join(map(str, paths)),
            expected="evaluation items with texts", todo="lower --decontamination.least-words",
        )  # fmt: skip
    return Index([_runs(*key, pieces) for key, pieces in sorted(found.items())], names, short)


def _looked_for(texts: list[str], words: int, least: int) -> tuple[str, int, bool] | None:
    """Of an item a text, the length of the runs of it that are looked for, and whether that is the whole text; None
    for one that is too short.
    """
    text = "\n".join(texts)
    if _size(text) >= words * letters_a_word(text):
        return text, words * letters_a_word(text), False
    text = max(texts, key=_size, default="")
    size = _size(text)
    return (text, size, True) if size >= least * letters_a_word(text) else None


def _size(text: str) -> int:
    from mickle.kernels.signatures import normalise

    return len(normalise(text).split())


def _runs(words: int, enough: int, pieces: list[tuple[int, NDArray[np.uint64]]]) -> Runs:
    import numpy as np

    hashes = np.concatenate([runs for _, runs in pieces])
    items = np.concatenate([np.full(len(runs), number, np.int64) for number, runs in pieces])
    hashes, first = np.unique(hashes, return_index=True)
    return Runs(words, hashes, items[first], enough)


def decontaminate(page: Page, settings: Decontamination) -> Page | Removed:
    """Removes a page that shares runs of words with an evaluation item; its twin is the item, ``FILE#ROW``."""
    import numpy as np

    from mickle.kernels.signatures import shingles

    index = index_of(settings)
    for looked_for in index.runs:
        runs = np.unique(shingles(page.text, looked_for.words))
        places = np.searchsorted(looked_for.hashes, runs).clip(max=len(looked_for.hashes) - 1)
        shared = places[looked_for.hashes[places] == runs]
        if len(shared) >= looked_for.enough:
            twin = index.names[looked_for.items[shared].min()]
            reason = f"shares {looked_for.words} words with an evaluation set"
            return remove(page, "decontamination", Failure(reason, len(shared), looked_for.enough - 1), twin)
    return page


def _items(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(name, all its texts) of every item."""
    if not path.exists():
        raise storage.no_such(path, where="decontamination.against")
    suffix = path.suffix.lower()
    if path.is_dir():
        yield from ((page.url, [page.text]) for page in read_corpus(path))
    elif suffix in (".jsonl", ".ndjson"):
        yield from _numbered(path, good_lines(path, "evaluation set", LARGEST_JSON, ITEM))
    elif suffix == ".json":
        value = storage.read_json(path, LARGEST_JSON, most_of_rows(path.stat().st_size))
        yield from _numbered(path, enumerate(value if isinstance(value, list) else [value], start=1))
    elif suffix == ".parquet":
        rows = (row for batch in read_batches(path) for row in batch.to_pylist())
        yield from _numbered(path, enumerate(rows, start=1))
    else:
        yield path.name, [read_text(path, "evaluation set", LARGEST_JSON)]


def _numbered(path: Path, items: Iterable[tuple[int, Any]]) -> Iterator[tuple[str, list[str]]]:
    for number, item in items:
        yield f"{path.name}#{number}", list(_texts(item))


def _texts(value: Any, deep: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)) and deep < DEEPEST:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner, deep + 1)
