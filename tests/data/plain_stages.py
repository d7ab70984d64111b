"""The comparing stages on pages in memory, one page after the other: what the arrays of ``comparing`` are held to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from mickle.data.comparing import content_hash
from mickle.data.near_duplicates import clusters, signatures, similarity
from mickle.data.records import Failure, Page, Removed, remove
from mickle.data.repeated_spans import find_repeated
from mickle.data.repeated_text import RepeatedText, settle
from mickle.data.rules import NearDuplicates


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


def near_duplicates(
    pages: Iterable[Page | Removed], settings: NearDuplicates, seed: int = 0
) -> Iterator[Page | Removed]:
    """Removes every page whose cluster has an earlier one, naming it; holds all pages and their signatures
    (8 bytes a band).

    The value is the true similarity with the kept twin; it is under the limit where only pages between the two make
    them one cluster. A kept page counts what was removed for it in ``copies``. Pages removed before pass untouched.
    """
    held = list(pages)
    places = [place for place, page in enumerate(held) if not isinstance(page, Removed)]
    texts = [held[place].text for place in places]
    columns = signatures(texts, settings, seed).T
    labels = clusters(
        columns, len(texts), verify=settings.verify, shingle=settings.shingle, text=texts.__getitem__
    ).tolist()
    copies = [0] * len(texts)
    for index, first in enumerate(labels):
        copies[first] += index != first and 1 + held[places[index]].copies
    limit = settings.verify or settings.threshold
    cluster = dict(zip(places, zip(range(len(texts)), labels)))
    for place, page in enumerate(held):
        if place not in cluster:
            yield page
            continue
        index, first = cluster[place]
        if index == first:
            yield replace(page, copies=page.copies + copies[index])
            continue
        value = similarity(texts[first], page.text, settings.shingle)
        failure = Failure("nearly the same text as a kept page", value, limit)
        yield remove(page, "near duplicates", failure, held[places[first]].url)


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
