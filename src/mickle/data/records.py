"""A corpus on disk: Parquet shards of pages, kept and removed, read and written as streams.

``pages/00000.parquet ...`` hold pages, ``removed/00000.parquet ...`` all that was taken out: whole pages, and
pieces of pages that stay, each with stage, reason, measured value, limit, and for duplicates the kept twin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from mickle import storage
from mickle.data.parquet import open_parquet, read_batches
from mickle.errors import UsageError

if TYPE_CHECKING:
    import pyarrow

GROUP_ROWS, GROUP_BYTES = 1000, 8 << 20  # a row group is closed at either
SHARD_ROWS, SHARD_BYTES = 50_000, 128 << 20  # and a shard


@dataclass(frozen=True)
class Page:
    """A page's main text. ``domain`` is the host it came from or the folder; ``language`` an ISO 639-1 code or
    empty, ``language_score`` its probability; ``date`` when it was crawled (ISO 8601); ``copies`` how many other
    pages were removed as its duplicates.
    """

    url: str
    domain: str
    language: str
    text: str
    date: str = field(default="", kw_only=True)
    language_score: float = field(default=0.0, kw_only=True)
    copies: int = field(default=0, kw_only=True)


@dataclass(frozen=True)
class Removed(Page):
    """What a stage took out: the rule that failed (``reason``), the value measured, the ``limit`` it was held to,
    and for duplicates the url of the kept ``twin``.

    A whole page has ``start`` -1. A piece of a page that stays has the character where it stood in the text that
    the stage was given: putting the pieces of the stages back, last stage first, gives the text as it was.
    """

    stage: str
    reason: str
    value: float
    twin: str = ""
    limit: float = field(default=0.0, kw_only=True)
    start: int = field(default=-1, kw_only=True)


class Failure(NamedTuple):
    """A rule that a page does not meet: which, the value measured, and the limit it passed."""

    reason: str
    value: float
    limit: float


def first_beyond(measured: Iterable[Failure]) -> Failure | None:
    """The first whose value is greater than its limit."""
    return next((failure for failure in measured if failure.value > failure.limit), None)


P = TypeVar("P", bound=Page)
T = TypeVar("T")


def remove(page: Page, stage: str, failure: Failure, twin: str = "") -> Removed:
    """The same page as one that ``stage`` took out."""
    reason, value, limit = failure
    kept = {f.name: getattr(page, f.name) for f in fields(Page)}
    return Removed(**kept, stage=stage, reason=reason, value=float(value), twin=twin, limit=float(limit))


def piece(page: Page, stage: str, failure: Failure, start: int, text: str) -> Removed:
    """``text``, which ``stage`` cut out of the page at character ``start``."""
    return replace(remove(page, stage, failure), start=start, text=text)


def cut(text: str, ranges: Iterable[tuple[int, int, *tuple[object, ...]]]) -> tuple[str, list[tuple[int, str]]]:
    """What is left of a text without ``ranges`` (start, end, ...), ascending and apart, and the pieces cut out with
    the character where each began.
    """
    left, pieces, position = [], [], 0
    for start, end, *_ in ranges:
        left.append(text[position:start])
        pieces.append((start, text[start:end]))
        position = end
    return "".join([*left, text[position:]]), pieces


def grouped(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items, ``size`` at a time; the last ones may be fewer."""
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group


def domain_of(url: str) -> str:
    """Host of an address in lower case without port; empty where there is none."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:  # such as an unclosed bracket of an IPv6 address
        return ""


def read_corpus(path: Path) -> Iterator[Page]:
    """Pages of a finished corpus folder, in order. :class:`UsageError` where it is not whole."""
    storage.open_folder(path, kind="corpus")
    return read_shards(Path(path) / "pages", Page)


def read_removed(path: Path) -> Iterator[Removed]:
    """Removed pages of a finished corpus folder, in order."""
    storage.open_folder(path, kind="corpus")
    return read_shards(Path(path) / "removed", Removed)


def read_shards(folder: Path, kind: type[P]) -> Iterator[P]:
    """Rows of a folder of Parquet shards as ``Page`` or ``Removed``, some rows in memory at a time."""
    for shard in sorted(folder.glob("*.parquet")):
        yield from read_rows(shard, kind)


def read_rows(shard: Path, kind: type[P]) -> Iterator[P]:
    """Rows of one Parquet file as ``Page`` or ``Removed``; columns that have a default may be missing."""
    needed = [f.name for f in fields(kind) if f.default is MISSING]
    with open_parquet(shard) as file:
        found = file.schema_arrow.names
    if missing := [name for name in needed if name not in found]:
        raise UsageError(
            f"not a shard of pages: no column {missing[0]!r}", where=str(shard), expected="columns " + ", ".join(needed)
        )
    for batch in read_batches(shard, [f.name for f in fields(kind) if f.name in found]):
        yield from (kind(**row) for row in batch.to_pylist())


def schema_of(kind: type[Page]) -> pyarrow.Schema:
    """Arrow schema of ``Page`` or ``Removed``: text columns, and a number for the value."""
    import pyarrow

    kinds = {"str": pyarrow.string(), "float": pyarrow.float64(), "int": pyarrow.int64()}
    return pyarrow.schema([(f.name, kinds[str(f.type)]) for f in fields(kind)])


def write_shards(pages: Iterable[P], folder: Path, kind: type[P]) -> int:
    """Writes pages as ``00000.parquet ...`` under ``folder``; returns how many. The bytes follow from the
    pages alone.
    """
    with Shards(folder, kind) as shards:
        for page in pages:
            shards.add(page)
    return shards.count


class Shards:
    """An open folder of shards: ``add`` pages one by one; at least one shard is written, with no rows if need be."""

    def __init__(self, folder: Path, kind: type[Page]) -> None:
        self.folder, self.kind, self.schema = folder, kind, schema_of(kind)
        self.count = self.shards = self.rows = self.bytes = 0  # of all; shards closed; rows and bytes of the open one
        self.waiting: list[dict[str, Any]] = []
        self.waiting_bytes = 0
        self.writer: Any = None

    def __enter__(self) -> Shards:
        storage.remove(self.folder)
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *problem: object) -> None:
        if problem[0] is None:
            self._write_group()
            if self.shards == 0 and self.writer is None:
                self._open()
        self._close()

    def add(self, page: Page) -> None:
        """Adds a page; it reaches the disk with its row group."""
        self.waiting.append({name: _storable(value) for name, value in asdict(page).items()})
        self.waiting_bytes += len(page.text)
        self.count += 1
        if len(self.waiting) >= GROUP_ROWS or self.waiting_bytes >= GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow

        if not self.waiting:
            return
        if self.writer is None:
            self._open()
        self.writer.write_table(pyarrow.Table.from_pylist(self.waiting, schema=self.schema))
        self.rows += len(self.waiting)
        self.bytes += self.waiting_bytes
        self.waiting, self.waiting_bytes = [], 0
        if self.rows >= SHARD_ROWS or self.bytes >= SHARD_BYTES:
            self._close()

    def _open(self) -> None:
        from pyarrow import parquet

        path = self.folder / f"{self.shards:05d}.parquet"
        self.writer = parquet.ParquetWriter(path, self.schema, compression="zstd", compression_level=3)
        self.rows = self.bytes = 0

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
            self.shards += 1


def _storable(value: Any) -> Any:
    """Parquet holds UTF-8: a lone surrogate becomes a question mark."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value
