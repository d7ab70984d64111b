"""What became of an address in a corpus: kept, or removed by which rule, and which kept page is its twin."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mickle import storage
from mickle.data.parquet import read_batches
from mickle.data.records import Page, Removed, read_rows
from mickle.errors import UsageError, shortened

SHOWN = 5  # of copies, of pieces
EXCERPT = 200  # characters


def explain_url(folder: Path, url: str) -> str:
    """A few lines on every page and piece with this address; :class:`UsageError` where the corpus never saw it."""
    storage.open_folder(folder, kind="corpus")
    kept = list(rows_where(folder / "pages", Page, "url", url))
    removed = [row for row in rows_where(folder / "removed", Removed, "url", url) if isinstance(row, Removed)]
    if not kept and not removed:
        raise UsageError(
            f"no page of {folder} has the address {url}", expected="an address as the source gave it",
            todo="the column url of pages/ and removed/ lists all of them",
        )  # fmt: skip
    pieces = [row for row in removed if row.start >= 0]
    lines = []
    for page in kept:
        lines += [f"{url}: kept, {len(page.text):,} characters{_origin(page)}", *_copies(folder, url, page)]
    for row in removed:
        if row.start < 0:
            lines += [f"{url}: removed by {row.stage}: {row.reason}", *_details(folder, row)]
    if pieces:
        lines.append(f"  {len(pieces)} pieces of it were cut out:")
        lines += [
            f"    {row.stage}: {row.reason}: {_excerpt(row.text)}" + (f" (also in {row.twin})" if row.twin else "")
            for row in pieces[:SHOWN]
        ]
    return "\n".join(lines)


def rows_where(folder: Path, kind: type[Page], column: str, value: str) -> Iterator[Page]:
    """Rows of a folder of shards whose ``column`` is ``value``; of a shard without one that column alone is read."""
    for shard in sorted(folder.glob("*.parquet")):
        if any(value in batch.column(column).to_pylist() for batch in read_batches(shard, [column])):
            yield from (row for row in read_rows(shard, kind) if getattr(row, column) == value)


def _details(folder: Path, row: Removed) -> list[str]:
    lines = [f"  value     {row.value:.5g}, limit {row.limit:.5g}"]
    if row.twin:
        stays = any(True for _ in rows_where(folder / "pages", Page, "url", row.twin))
        where = "kept" if stays else "in an earlier corpus or an evaluation set, or removed later"
        lines.append(f"  twin      {row.twin} ({where})")
    if row.text:
        lines.append(f"  text      {_excerpt(row.text)}")
    return lines


def _copies(folder: Path, url: str, page: Page) -> list[str]:
    if not page.copies:
        return []
    copies = [row for row in rows_where(folder / "removed", Removed, "twin", url) if isinstance(row, Removed)]
    lines = [f"  {page.copies} other pages were removed as its duplicates:"]
    return [*lines, *(f"    {row.url} ({row.stage}, {row.value:.3g})" for row in copies[:SHOWN])]


def _origin(page: Page) -> str:
    known = [page.language and f"{page.language} {page.language_score:.2f}", page.date]
    return "".join(f", {one}" for one in known if one)


def _excerpt(text: str) -> str:
    return shortened(" ".join(text[: 2 * EXCERPT].split()), EXCERPT)
