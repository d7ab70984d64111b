"""Remove from a corpus what is in an evaluation set: pages that share a run of words with one of its items.

The usual measure (GPT-3, arXiv 2005.14165, appendix C): any shared run of 13 words, compared as MinHash compares
words, so case, accents and punctuation do not matter. Of an item every text is taken, whatever its field is called.
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
from mickle.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEEPEST = 8  # lists and objects inside each other that texts of an item are looked for in


class Decontamination(Config):
    """Evaluation sets that no page may share a run of words with."""

    against: list[Input] = Field(
        [], description="evaluation sets: .jsonl, .json, .parquet or text files, or corpus folders"
    )
    words: int = Field(13, ge=3, le=100, description="length of the runs of words that are compared")
    shared: int = Field(1, ge=1, description="distinct runs a page must share to be removed")


@dataclass(frozen=True)
class Index:
    """Runs of words of all evaluation items: ``hashes`` uint64 [n] in order, ``items`` int64 [n] where each first
    stands, ``names`` of the items; ``short``: how many items have too few words to be looked for.
    """

    hashes: NDArray[np.uint64]
    items: NDArray[np.int64]
    names: list[str]
    short: int


@cache
def index_of(paths: tuple[Path, ...], words: int) -> Index:
    """Reads the evaluation sets: 16 bytes for each distinct run of words. :class:`UsageError` for bad files."""
    import numpy as np

    from mickle.kernels.signatures import normalise, shingles

    names: list[str] = []
    found: list[Any] = []
    short = 0
    for path in paths:
        for name, text in _items(path):
            if len(normalise(text).split()) < words:
                short += 1
                continue
            found.append((len(names), shingles(text, words)))
            names.append(name)
    if not found:
        raise UsageError(
            f"no item has {words} words", where=", ".join(map(str, paths)),
            expected="evaluation items with texts", todo="lower --decontamination.words",
        )  # fmt: skip
    hashes = np.concatenate([runs for _, runs in found])
    items = np.concatenate([np.full(len(runs), number, np.int64) for number, runs in found])
    hashes, first = np.unique(hashes, return_index=True)
    return Index(hashes, items[first], names, short)


def decontaminate(page: Page, settings: Decontamination) -> Page | Removed:
    """Removes a page that shares runs of words with an evaluation item; its twin is the item, ``FILE#ROW``."""
    import numpy as np

    from mickle.kernels.signatures import shingles

    if not settings.against:
        return page
    index = index_of(tuple(settings.against), settings.words)
    runs = np.unique(shingles(page.text, settings.words))
    places = np.searchsorted(index.hashes, runs).clip(max=len(index.hashes) - 1)
    shared = places[index.hashes[places] == runs]
    if len(shared) < settings.shared:
        return page
    twin = index.names[index.items[shared].min()]
    reason = f"shares {settings.words} words with an evaluation set"
    return remove(page, "decontamination", Failure(reason, len(shared), settings.shared - 1), twin)


def _items(path: Path) -> Iterator[tuple[str, str]]:
    """(name, all its texts) of every item."""
    if not path.exists():
        raise UsageError(f"no such file or folder: {path}", where="decontamination.against")
    suffix = path.suffix.lower()
    if path.is_dir():
        yield from ((page.url, page.text) for page in read_corpus(path))
    elif suffix in (".jsonl", ".ndjson"):
        lines = enumerate(_text(path).splitlines(), start=1)
        yield from _numbered(
            path, ((number, _json(line, f"{path}:{number}")) for number, line in lines if line.strip())
        )
    elif suffix == ".json":
        value = storage.read_json(path)
        yield from _numbered(path, enumerate(value if isinstance(value, list) else [value], start=1))
    elif suffix == ".parquet":
        rows = (row for batch in read_batches(path) for row in batch.to_pylist())
        yield from _numbered(path, enumerate(rows, start=1))
    else:
        yield path.name, _text(path)


def _numbered(path: Path, items: Iterable[tuple[int, Any]]) -> Iterator[tuple[str, str]]:
    for number, item in items:
        yield f"{path.name}#{number}", "\n".join(_texts(item))


def _json(line: str, where: str) -> Any:
    import json

    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise UsageError("not JSON", where=where, expected="one JSON value a line") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError("not UTF-8 text", where=f"{path}, byte {error.start}") from None


def _texts(value: Any, deep: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple, dict)) and deep < DEEPEST:
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner, deep + 1)
