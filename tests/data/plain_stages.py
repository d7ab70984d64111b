"""The comparing stages on pages in memory, one page after the other: what the arrays of ``comparing`` are held to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from mickle.data.comparing import content_hash
from mickle.data.records import Failure, Page, Removed, remove
from mickle.data.repeated_text import RepeatedText, find_repeated, settle


def exact_duplicates(pages: Iterable[Page | Removed]) -> Iterator[Page | Removed]:
    """Removes every later page with the text of an earlier kept one, naming its twin; the value counts its
    copies so far.

    Holds one hash, count and url per distinct page (about 250 bytes). Pages removed before pass untouched.
    """
    kept: dict[bytes, tuple[str, int]] = {}
    for page in pages:
        if isinstance(page, Removed):
            yield page
            continue
        digest = content_hash(page.text)
        url, copies = kept.get(digest, (page.url, 0))
        kept[digest] = (url, copies + 1)
        yield (
            remove(page, "exact duplicates", Failure("same text as a kept page", copies, 1), url) if copies else page
        )


def repeated_text(
    pages: Iterable[Page | Removed], settings: RepeatedText, threads: int = 1
) -> Iterator[Page | Removed]:
    """Pages held in memory through this stage: for a page that is cut the pieces first, then the page with what is
    left; pages that go whole as :class:`Removed`, with the page that their first repeated piece stands in as twin.
    Removed pages pass untouched.
    """
    pages = list(pages)
    judged = [page for page in pages if not isinstance(page, Removed)]
    with tempfile.TemporaryDirectory() as scratch:
        found = find_repeated((page.text for page in judged), settings, Path(scratch), threads)
        for page in pages:
            if isinstance(page, Removed):
                yield page
            else:
                repeated = next(found)
                twins = [judged[each.twin].url for each in repeated.ranges]
                yield from settle(page, repeated, twins, settings)


def restore(left: str, pieces: Iterable[tuple[int, str]]) -> str:
    """The text that ``repeated_text.cut`` took apart."""
    whole, used, size = [], 0, 0
    for start, text in pieces:
        whole += [left[used : used + start - size], text]
        used += start - size
        size = start + len(text)
    return "".join([*whole, left[used:]])
