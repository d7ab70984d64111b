"""Stages that compare pages: which of all pages stay, and who is whose twin.

A page is known by its keys (128 bits of its text and of its address, one 64-bit hash for each MinHash band); texts
are read again for exact substrings and for the likeness of near-duplicates alone. Memory: about 120 bytes a page, the
texts of 16,384 pages, and what ``repeated_text`` states. The order of pages is the order of reading; of equal pages the
first stays, so that the result does not depend on who worked.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from mickle.data.near_duplicates import clusters, signatures, similarity
from mickle.data.parallel import each
from mickle.data.pieces import single_spaced
from mickle.data.records import Failure, Page, Removed, remove
from mickle.data.repeated_spans import find_repeated
from mickle.data.repeated_text import Range, Repeated, settle
from mickle.data.rules import COMPARING, NearDuplicates, Outcome, Rules, name_of
from mickle.data.urls import url_key
from mickle.events import Emit, Progressed, Started, ignore
from mickle.kernels.components import merge, stars

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ADDRESS = re.compile(r"\s*(?:[a-z][a-z0-9+.-]*:)?//|\s*www\.", re.IGNORECASE)
BANDS_AT_ONCE = 16  # of all pages, in memory
TWINS_AT_ONCE = 1 << 14  # pages kept for others, whose texts are in memory
REASONS = {
    "exact_duplicates": "same text as a kept page",
    "near_duplicates": "nearly the same text as a kept page",
    "url_duplicates": "same address as a kept page",
}


@dataclass(frozen=True)
class Keys:
    """Of N pages: ``content`` and ``address`` uint64 [N, 2]; ``bands`` gives rows first to last of all bands as
    uint64 [last - first, N]. The first ``earlier`` pages belong to other corpora and always stay.
    """

    content: NDArray[np.uint64]
    address: NDArray[np.uint64]
    bands: Callable[[int, int], NDArray[np.uint64]]
    earlier: int = 0


@dataclass(frozen=True)
class Texts:
    """Pages read again: ``pages()`` all of them in order, ``one(index)`` the text of one."""

    pages: Callable[[], Iterator[Page]]
    one: Callable[[int], str]


@dataclass
class Verdicts:
    """Of N pages: ``stage`` that took each out, int8 [N], its place in ``COMPARING`` (-1: stays); ``twin``, int64 [N],
    the page that stays for it (-1: none); ``value``, float64 [N]; ``copies``, int64 [N], how many left for a page that
    stays. ``ranges`` hold four numbers for each repeated range, those of page i from number ``cuts[i]`` on.
    """

    stage: NDArray[np.int8]
    twin: NDArray[np.int64]
    value: NDArray[np.float64]
    copies: NDArray[np.int64]
    tokens: NDArray[np.int64]
    cuts: NDArray[np.int64]
    ranges: array[int] = field(default_factory=lambda: array("q"))

    @classmethod
    def all_stay(cls, count: int) -> Verdicts:
        """Nothing taken out yet."""
        none = np.zeros(count, np.int64)
        stage, value = np.full(count, -1, np.int8), np.zeros(count)
        return cls(stage, none - 1, value, none.copy(), none.copy(), np.zeros(count + 1, np.int64))

    def stays(self) -> NDArray[np.bool_]:
        """Which pages no stage has taken out, bool [N]."""
        return self.stage < 0

    def repeated(self, index: int) -> Repeated:
        """What of a page is repeated elsewhere; twins are numbers of pages."""
        flat = self.ranges[4 * int(self.cuts[index]) : 4 * int(self.cuts[index + 1])]
        return Repeated(int(self.tokens[index]), [Range(*flat[i : i + 4]) for i in range(0, len(flat), 4)])


def content_hash(text: str) -> bytes:
    """128 bits of the text with all runs of white space made one space: layout does not make a page another page."""
    hashed = hashlib.blake2b(digest_size=16)
    for piece in single_spaced(text):
        hashed.update(piece.encode("utf-8", "replace"))
    return hashed.digest()


def page_keys(pages: Sequence[Page]) -> NDArray[np.uint64]:
    """Keys of pages, uint64 [N, 4]: of the text with white space made single spaces, and of the address; a page that
    has a name instead, such as a file's path, is known by name and text: two folders may each have a README.
    """
    keys = np.empty((len(pages), 4), np.uint64)
    for row, page in enumerate(pages):
        address = url_key(page.url) if _ADDRESS.match(page.url) else f"{page.url}\n{page.text}"
        both = content_hash(page.text) + content_hash(address)
        keys[row] = np.frombuffer(both, np.uint64)
    return keys


def decide(
    keys: Keys, texts: Texts, rules: Rules, scratch: Path, workers: int = 1, ray: str = "", emit: Emit = ignore
) -> Verdicts:
    """Which pages the chosen comparing stages take out, in the paper's order; ``scratch`` is for repeated text."""
    verdicts = Verdicts.all_stay(len(keys.content))
    if rules.runs("exact_duplicates"):
        _take(verdicts, keys, "exact_duplicates", lambda alive: first_equal(keys.content[alive]))
    if rules.runs("near_duplicates"):
        first_of = partial(_near, keys, texts, rules.near_duplicates, workers, ray, emit)
        _take(verdicts, keys, "near_duplicates", first_of)
        _measure_likeness(verdicts, texts, rules.near_duplicates)
    if rules.runs("repeated_text"):
        _find_repeated(verdicts, keys, texts, rules, scratch, workers, emit)
    if rules.runs("url_duplicates"):
        _take(verdicts, keys, "url_duplicates", lambda alive: first_equal(keys.address[alive]))
    return verdicts


def first_equal(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each row of keys [N, 2] the index of the first row equal to it, int64 [N]."""
    order = np.lexsort((np.arange(len(keys)), keys[:, 1], keys[:, 0]))
    ordered = keys[order]
    fresh = np.ones(len(keys), bool)
    fresh[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = np.empty(len(keys), np.int64)
    first[order] = order[fresh][np.cumsum(fresh) - 1]
    return first


def _take(
    verdicts: Verdicts, keys: Keys, stage: str, first_of: Callable[[NDArray[np.int64]], NDArray[np.int64]]
) -> None:
    """Takes out every page still there, but for earlier ones, that is not the first of its kind."""
    alive = np.flatnonzero(verdicts.stays())
    first = alive[first_of(alive)] if len(alive) else alive
    gone = (first != alive) & (alive >= keys.earlier)
    verdicts.stage[alive[gone]] = COMPARING.index(stage)
    verdicts.twin[alive[gone]] = first[gone]
    np.add.at(verdicts.copies, first[gone], 1 + verdicts.copies[alive[gone]])


def _near(
    keys: Keys,
    texts: Texts,
    settings: NearDuplicates,
    workers: int,
    ray: str,
    emit: Emit,
    alive: NDArray[np.int64],
) -> NDArray[np.int64]:
    emit(Started("compare signatures", settings.bands, "bands"))
    if settings.verify:  # asks for texts, so one page after the other
        columns = (column[alive] for column in _columns(keys, settings, emit))
        return clusters(
            columns, len(alive), verify=settings.verify, shingle=settings.shingle,
            text=lambda index: texts.one(int(alive[index])),
        )  # fmt: skip

    def edges(first: int) -> NDArray[np.int64]:
        columns = keys.bands(first, min(first + BANDS_AT_ONCE, settings.bands))
        return np.concatenate([np.stack(stars(column[alive])) for column in columns], axis=1)

    labels = np.arange(len(alive), dtype=np.int64)
    firsts = range(0, settings.bands, BANDS_AT_ONCE)
    for first, found in zip(firsts, each(edges, firsts, workers, ray)):
        merge(labels, *np.ascontiguousarray(found))
        emit(Progressed(min(first + BANDS_AT_ONCE, settings.bands)))
    return labels


def _columns(keys: Keys, settings: NearDuplicates, emit: Emit) -> Iterator[NDArray[np.uint64]]:
    for first in range(0, settings.bands, BANDS_AT_ONCE):
        emit(Progressed(first))
        yield from keys.bands(first, min(first + BANDS_AT_ONCE, settings.bands))


def _measure_likeness(verdicts: Verdicts, texts: Texts, settings: NearDuplicates) -> None:
    """The Jaccard similarity of each removed page with its twin, which was read before it; all texts are read again
    for so many twins at a time.
    """
    near = verdicts.stage == COMPARING.index("near_duplicates")
    twins = np.unique(verdicts.twin[near])
    for first in range(0, len(twins), TWINS_AT_ONCE):
        wanted = set(twins[first : first + TWINS_AT_ONCE].tolist())
        kept: dict[int, str] = {}
        for index, page in enumerate(texts.pages()):
            if index in wanted:
                kept[index] = page.text
            elif near[index] and (twin := int(verdicts.twin[index])) in kept:
                verdicts.value[index] = round(similarity(kept[twin], page.text, settings.shingle), 4)


def _find_repeated(
    verdicts: Verdicts, keys: Keys, texts: Texts, rules: Rules, scratch: Path, workers: int, emit: Emit
) -> None:
    stays = verdicts.stays()
    alive = np.flatnonzero(stays)
    emit(Started("find repeated text", 0, "pieces"))
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        emit(Progressed(done))

    judged = (page for page, stay in zip(texts.pages(), stays) if stay)
    found = find_repeated((page.text for page in judged), rules.repeated_text, scratch, workers, advance)
    again = (page for page, stay in zip(texts.pages(), stays) if stay)
    for index, page, repeated in zip(alive.tolist(), again, found, strict=True):
        if not repeated.ranges or index < keys.earlier:
            continue
        for start, end, tokens, twin in repeated.ranges:
            verdicts.ranges.extend((start, end, tokens, int(alive[twin])))
        verdicts.tokens[index], verdicts.cuts[index + 1] = repeated.tokens, len(repeated.ranges)
        *_, last = settle(page, repeated, [""] * len(repeated.ranges), rules.repeated_text)
        if isinstance(last, Removed):
            verdicts.stage[index] = COMPARING.index("repeated_text")
    verdicts.cuts = np.cumsum(verdicts.cuts)


def twins_of(pages: Iterable[Page], verdicts: Verdicts) -> dict[int, str]:
    """The url of every page that is a twin."""
    wanted = {*np.unique(verdicts.twin[verdicts.twin >= 0]).tolist(), *verdicts.ranges[3::4]}
    return {index: page.url for index, page in enumerate(pages) if index in wanted}


def settled(
    outcomes: Iterable[Outcome], first: int, verdicts: Verdicts, rules: Rules, twin_urls: dict[int, str]
) -> Iterator[Outcome]:
    """Outcomes with what becomes of their pages, which are numbered from ``first`` on."""
    for outcome in outcomes:
        if isinstance(outcome, Page) and not isinstance(outcome, Removed):
            yield from settle_page(outcome, first, verdicts, rules, twin_urls)
            first += 1
        else:
            yield outcome


def settle_page(
    page: Page, index: int, verdicts: Verdicts, rules: Rules, twin_urls: dict[int, str]
) -> list[Page | Removed]:
    """What becomes of page ``index``: pieces cut out of it, then the page kept or removed."""
    stage = COMPARING[verdicts.stage[index]] if verdicts.stage[index] >= 0 else ""
    page = replace(page, copies=page.copies + int(verdicts.copies[index]))
    repeated = verdicts.repeated(index)
    settled: list[Page | Removed] = [page]
    if repeated.ranges:
        twins = [twin_urls[each.twin] for each in repeated.ranges]
        settled = list(settle(page, repeated, twins, rules.repeated_text))
    if stage in REASONS:
        near = rules.near_duplicates
        limit = (near.verify or near.threshold) if stage == "near_duplicates" else 0.0
        failure = Failure(REASONS[stage], verdicts.value[index], limit)
        # Its text as it is here: what was cut out of it before stands beside it.
        settled[-1] = remove(settled[-1], name_of(stage), failure, twin_urls[int(verdicts.twin[index])])
    return settled


def compare_pages(outcomes: Sequence[Outcome], rules: Rules, seed: int = 0) -> Iterator[Outcome]:
    """Outcomes of :func:`mickle.data.refine.refine_page` in memory, through the comparing stages."""
    pages = [o for o in outcomes if isinstance(o, Page) and not isinstance(o, Removed)]
    known = page_keys(pages)
    near = rules.near_duplicates
    signed = np.empty((near.bands, len(pages)), np.uint64)
    if rules.runs("near_duplicates") and pages:
        signed = signatures([page.text for page in pages], near, seed).T
    keys = Keys(known[:, :2], known[:, 2:], lambda first, last: signed[first:last])
    with TemporaryDirectory() as folder:
        verdicts = decide(keys, Texts(lambda: iter(pages), lambda i: pages[i].text), rules, Path(folder))
    yield from settled(outcomes, 0, verdicts, rules, twins_of(pages, verdicts))
