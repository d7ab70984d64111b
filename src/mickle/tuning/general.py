"""General text, to see what a tuning broke: pages named by the user, those the model's own training held out, or the
documentation of this Python, which every machine has.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from mickle.errors import UsageError
from mickle.storage import HELDOUT

if TYPE_CHECKING:
    from mickle.data.records import Page

MOST_PAGES, MOST_CHARACTERS = 100, 4000  # of each page the first characters
MODULES = 40  # of the standard library, spread over the alphabet
SHORTEST = 200  # characters of a page worth measuring


def general_pages(given: Path | None, model: Path) -> tuple[list[Page], str]:
    """The pages, each cut to its first characters, and where they are from. UsageError where there is no text."""
    own = model / HELDOUT
    if given is None and not own.is_file():
        return documentation_pages(), "documentation of this Python"
    from mickle.data.heldout import read_pages

    source = given or own
    written = source.is_file() and source.suffix.lower() != ".parquet"
    pages = _rows(source) if written else (page for batch in read_pages(source) for page in batch)
    found = list(islice(pages, MOST_PAGES))
    if not found:
        raise UsageError("There is no page with text to measure on.", where=f"general: {source}")
    return list(map(_opening, found)), f"texts of {given.name}" if given else "the model's own held-out pages"


def _rows(source: Path) -> Iterator[Page]:
    """The texts of JSON Lines, JSON or CSV."""
    from mickle.data.records import Page
    from mickle.data.rows import read_rows

    for row in read_rows(source):
        text = row.values.get("text")
        if not isinstance(text, str):
            raise UsageError(row.problem or "this row has no `text`", where=row.where, expected='{"text": "..."}')
        if text.strip():
            yield Page("", "", "", text)


def documentation_pages() -> list[Page]:
    """Pages of some modules of the standard library; the same on the same machine."""
    from mickle.data.documentation import STDLIB, list_modules, render
    from mickle.data.extraction import main_text
    from mickle.data.records import Page

    modules = list_modules([STDLIB])
    chosen = modules[:: max(1, len(modules) // MODULES)][:MODULES]
    texts = ((module, main_text(page)) for module, page, _ in render(chosen) if page)
    pages = [_opening(Page(m.url, m.package, "", text)) for m, text in texts if len(text) >= SHORTEST]
    if not pages:
        raise UsageError(
            "The documentation of this Python cannot be read.", where="general", todo="name pages with --general"
        )
    return pages


def _opening(page: Page) -> Page:
    return replace(page, text=page.text[:MOST_CHARACTERS])
