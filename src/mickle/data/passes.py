"""The passes of a curation over its scratch folder: pages to chunks, chunks to keys, keys to verdicts, all to shards.

Each leaves whole files and skips those it finds, so a killed run goes on. Chunks of ``earlier`` corpora come first, in
a folder of their own: they are compared with and never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mickle import storage
from mickle.data import chunks
from mickle.data.comparing import Keys, Texts, Verdicts, page_keys, settled, twins_of
from mickle.data.near_duplicates import signatures
from mickle.data.records import Page, Removed, Shards, grouped, read_corpus
from mickle.data.refine import refused
from mickle.data.rules import Rules
from mickle.data.sources import Found, Source
from mickle.data.workers import Crew

CHUNKS_HELD = 8  # in memory, when single texts are asked for


class Scratch:
    """Where a curation keeps what is unfinished: chunks of the source (``pages``) and of ``earlier`` corpora, and the
    search for ``repeated`` text.
    """

    def __init__(self, folder: Path) -> None:
        self.pages, self.earlier, self.repeated = folder / "chunks", folder / "earlier", folder / "repeated"

    @cached_property
    def all(self) -> list[Path]:
        """All chunks in the order in which pages are compared."""
        return [*chunks.chunk_paths(self.earlier), *chunks.chunk_paths(self.pages)]


def refine_part(
    number: int, files: Sequence[Path], source: Source, crew: Crew, folder: Path, advance: Callable[[int], None]
) -> int:  # fmt: skip
    """Takes the records of a part through the stages for one page, chunk by chunk; returns how many were not done
    before.
    """
    if chunks.records_of(folder, number) is not None:
        return 0
    rules = crew.rules
    found: Iterator[Found] = source.read(files, rules.largest_page, advance)
    done = chunks.finished_chunks(folder, number)
    before = sum(1 for _ in islice(found, done * chunks.RECORDS))
    fresh = 0
    outcomes = crew.process(refused(found, rules))
    for chunk, group in enumerate(grouped(outcomes, chunks.RECORDS), start=done):
        rows = [outcome for record in group for outcome in record]
        chunks.write_chunk(chunks.chunk_path(folder, number, chunk), rows, crew.taken_seconds())
        fresh += len(group)
    chunks.finish_part(folder, number, before + fresh)
    return fresh


def refine_part_alone(numbered: tuple[int, Sequence[Path]], source: Source, rules: Rules, folder: Path) -> int:
    """:func:`refine_part` with a worker of its own: what one task of a cluster does."""
    number, files = numbered
    with Crew(rules, 1) as crew:
        return refine_part(number, files, source, crew, folder, lambda count: None)


def keep_earlier(corpora: Sequence[Path], folder: Path) -> None:
    """Copies the pages of earlier corpora into chunks."""
    for number, corpus in enumerate(corpora):
        if chunks.records_of(folder, number) is not None:
            continue
        count = 0
        for chunk, group in enumerate(grouped(read_corpus(corpus), chunks.RECORDS)):
            chunks.write_chunk(chunks.chunk_path(folder, number, chunk), group, {})
            count += len(group)
        chunks.finish_part(folder, number, count)


def sign(path: Path, rules: Rules, seed: int) -> int:
    """Leaves the keys of a chunk's pages beside it: ``.keys.npy`` uint64 [n, 4], ``.bands.npy`` uint64 [bands, n].

    Returns how many pages there are.
    """
    last = path.with_suffix(".keys.npy")
    if last.exists():
        return len(np.load(last, mmap_mode="r"))
    pages = chunks.read_kept(path)
    if rules.runs("near_duplicates"):
        bands = signatures([page.text for page in pages], rules.near_duplicates, seed)
        storage.save_array(path.with_suffix(".bands.npy"), np.ascontiguousarray(bands.T))
    storage.save_array(last, page_keys(pages))
    return len(pages)


def stored_keys(scratch: Scratch) -> Keys:
    """The keys of all signed chunks; bands are read from disk as they are asked for."""
    keys = [np.load(path.with_suffix(".keys.npy")) for path in scratch.all]
    earlier = sum(len(one) for one, path in zip(keys, scratch.all) if path.parent == scratch.earlier)
    whole = np.concatenate([np.empty((0, 4), np.uint64), *keys])

    def bands(first: int, last: int) -> NDArray[np.uint64]:
        rows = [np.load(path.with_suffix(".bands.npy"), mmap_mode="r")[first:last] for path in scratch.all]
        return np.concatenate([np.empty((last - first, 0), np.uint64), *rows], axis=1)

    return Keys(whole[:, :2], whole[:, 2:], bands, earlier)


def kept_pages(scratch: Scratch) -> Iterator[Page]:
    """All pages that are compared, in order."""
    for path in scratch.all:
        yield from chunks.read_kept(path)


def stored_texts(scratch: Scratch) -> Texts:
    """The pages of all signed chunks, read again when they are asked for."""
    counts = [len(np.load(path.with_suffix(".keys.npy"), mmap_mode="r")) for path in scratch.all]
    starts = np.concatenate([[0], np.cumsum(counts)])
    read = lru_cache(maxsize=CHUNKS_HELD)(chunks.read_kept)

    def one(index: int) -> str:
        chunk = int(np.searchsorted(starts, index, side="right")) - 1
        return read(scratch.all[chunk])[index - int(starts[chunk])].text

    return Texts(lambda: kept_pages(scratch), one)


def write_corpus(scratch: Scratch, work: Path, keys: Keys, verdicts: Verdicts, rules: Rules, add: Any) -> None:
    """Everything in order into the two folders of shards; ``add`` hears of every outcome."""
    urls = twins_of(kept_pages(scratch), verdicts)
    outcomes = chain.from_iterable(map(chunks.read_chunk, chunks.chunk_paths(scratch.pages)))
    with Shards(work / "pages", Page) as pages, Shards(work / "removed", Removed) as removed:
        for outcome in settled(outcomes, keys.earlier, verdicts, rules, urls):
            add(outcome)
            if isinstance(outcome, Page):
                (removed if isinstance(outcome, Removed) else pages).add(outcome)
