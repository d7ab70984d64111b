"""A corpus on disk: Parquet shards of pages, kept and removed, read and written as streams.

``pages/00000.parquet ...`` hold url, domain, language, text; ``removed/00000.parquet ...`` the same and why a
page is not among them: stage, reason, measured value, and the kept twin's url for duplicates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from mickle import storage
from mickle.errors import UsageError

if TYPE_CHECKING:
    import pyarrow

GROUP_ROWS, GROUP_BYTES = 1000, 8 << 20  # a row group is closed at either
SHARD_ROWS, SHARD_BYTES = 50_000, 128 << 20  # and a shard


@dataclass(frozen=True)
class Page:
    """A page's main text. ``domain`` is the host it came from or the folder; ``language`` an ISO 639-1 code
    or empty.
    """

    url: str
    domain: str
    language: str
    text: str


@dataclass(frozen=True)
class Removed(Page):
    """A page that a stage took out: the rule it failed, the value measured, and for duplicates the kept
    page's url.
    """

    stage: str
    reason: str
    value: float
    twin: str = ""


P = TypeVar("P", bound=Page)


def remove(page: Page, stage: str, reason: str, value: float, twin: str = "") -> Removed:
    """The same page as one that ``stage`` took out."""
    return Removed(page.url, page.domain, page.language, page.text, stage, reason, value, twin)


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
    """Rows of a folder of Parquet shards as ``Page`` or ``Removed``, one row group in memory at a time."""
    import pyarrow
    from pyarrow import parquet

    names = [field.name for field in fields(kind)]
    for shard in sorted(folder.glob("*.parquet")):
        try:
            with parquet.ParquetFile(shard) as file:
                for group in range(file.num_row_groups):
                    columns = file.read_row_group(group, columns=names).to_pydict()
                    yield from (kind(*row) for row in zip(*(columns[name] for name in names), strict=True))
        except (pyarrow.ArrowInvalid, OSError, KeyError) as error:
            raise UsageError(
                f"not a shard of pages: {error}", where=str(shard), expected="columns " + ", ".join(names)
            ) from None


def schema_of(kind: type[Page]) -> pyarrow.Schema:
    """Arrow schema of ``Page`` or ``Removed``: text columns, and a number for the value."""
    import pyarrow

    kinds = {"value": pyarrow.float64()}
    return pyarrow.schema([(field.name, kinds.get(field.name, pyarrow.string())) for field in fields(kind)])


def write_shards(pages: Iterable[P], folder: Path, kind: type[P]) -> int:
    """Writes pages as ``00000.parquet ...`` under ``folder``; returns how many. The bytes follow from the
    pages alone.
    """
    with Shards(folder, kind) as shards:
        for page in pages:
            shards.add(page)
    return shards.count


class Shards:
    """An open folder of shards: ``add`` pages one by one; at least one shard is written, with no rows if need
    be.
    """

    def __init__(self, folder: Path, kind: type[Page]) -> None:
        self.folder, self.kind, self.schema = folder, kind, schema_of(kind)
        self.count = self.shards = self.rows = self.bytes = (
            0  # of all; shards closed; rows and bytes of the open one
        )
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
