"""Spans of tokens that occur more than once in a corpus larger than memory.

Source: Lee et al., "Deduplicating Training Data Makes Language Models Better", arXiv 2107.06499, section 4.1 and
appendix B: a span is repeated where each of its tokens lies in a window of ``length`` tokens that occurs at least
twice, anywhere in the corpus, itself overlapped included. Documents are joined with separators, which belong to no
window, so none crosses the boundary of a document.

Where we depart: the paper sorts all suffixes, of which only the equality of windows is used; here the windows are
compared by their hashes, then token by token (``kernels.repeated_windows``), in parts of the hashes' range; and each
span knows where it occurs first.

Memory-mapped files in the scratch folder: the tokens, 8 bytes each; the links of repeated windows, 4 (8 from 2^32
tokens on), on the disk only where there are some. A part needs some 12 bytes of memory for each of its tokens, and
reads all tokens from first to last, those of repeated windows at random places too.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mickle.data.repeated_text import Range, Repeated, RepeatedText
from mickle.errors import UsageError
from mickle.kernels.repeated_windows import link_type, link_windows, spans
from mickle.kernels.word_pieces import pieces

SEPARATOR = 1 << 63

Advance = Callable[[int], None]


class Span(NamedTuple):
    """Tokens ``start`` to ``end`` of a document, which also occur in document ``twin``: of the window that the
    first of these tokens belongs to, the first occurrence, or the second where it is the first itself.
    """

    start: int
    end: int
    twin: int


def find_repeated(
    texts: Iterable[str], settings: RepeatedText, scratch: Path, threads: int = 1, advance: Advance = lambda count: None
) -> Iterator[Repeated]:
    """For each text, in order, the characters that are repeated, as ``settings`` say; the same for any number of
    threads and parts.

    ``texts`` is read once, before the first result. ``scratch`` is a folder for these texts alone: up to 16 bytes a
    piece, some 4 a character; see :func:`find_spans` for how a killed search goes on. ``advance`` hears of the
    pieces compared, one more for each text.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    sizes: list[int] = []
    documents = _documents(texts, scratch / "starts.u32", sizes)
    starts, begin = np.zeros(0, dtype=np.uint32), 0
    for number, found in enumerate(find_spans(documents, settings, scratch, threads, advance)):
        if number == 0:
            starts = np.asarray(np.memmap(scratch / "starts.u32", dtype=np.uint32, mode="r"))
        own = starts[begin : begin + sizes[number] + 1]
        ranges = [Range(int(own[a]), int(own[b]), b - a, twin) for a, b, twin in found]
        yield Repeated(sizes[number], ranges)
        begin += len(own)


def _documents(texts: Iterable[str], starts: Path, sizes: list[int]) -> Iterator[NDArray[np.uint64]]:
    """The hashes of each text's pieces; where they start goes to a file, with the text's end, how many to ``sizes``."""
    with starts.open("wb") as file:
        for text in texts:
            hashes, begins = pieces(text)
            file.write(begins.tobytes() + len(text).to_bytes(4, sys.byteorder))
            sizes.append(len(hashes))
            yield hashes


def find_spans(
    documents: Iterable[NDArray[Any]],
    settings: RepeatedText,
    scratch: Path,
    threads: int = 1,
    advance: Advance = lambda count: None,
) -> Iterator[list[Span]]:
    """The repeated spans of each document, in the order of ``documents``: arrays of whole numbers below 2^63, of any
    tokenizer, or of bytes. Parts and threads do not change what is found.

    ``scratch`` is a folder for this search alone. If a search was killed, the next one over the same documents writes
    the tokens anew, which is quick, and goes on with the part it was at. ``advance`` hears of the tokens compared.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    tokens, offsets, digest = _join(documents, scratch)
    others = np.asarray(_link(tokens, digest, settings, scratch, threads, advance))
    for start, end in pairwise(offsets):
        found = spans(others, start, end - 1, settings.length, settings.keep == "first")
        twins = np.searchsorted(offsets, found[:, 2], side="right") - 1
        yield [Span(int(first - start), int(last - start), int(twin)) for (first, last, _), twin in zip(found, twins)]


def _join(documents: Iterable[NDArray[Any]], scratch: Path) -> tuple[Any, NDArray[Any], str]:
    """All tokens with separators in one mapped file; where each document begins, and the end; their digest."""
    offsets, digest = [0], hashlib.blake2b(digest_size=8)
    with (scratch / "tokens.u64").open("wb") as file:
        for number, document in enumerate(documents):
            joined = np.empty(len(document) + 1, dtype=np.uint64)
            joined[:-1] = document
            if len(document) and int(joined[:-1].max()) >= SEPARATOR:
                raise UsageError("tokens must be below 2^63", where=f"document {number}")
            joined[-1] = SEPARATOR + number
            digest.update(joined.data)
            file.write(joined.data)
            offsets.append(offsets[-1] + len(joined))
    tokens = _mapped(scratch / "tokens.u64", np.uint64, offsets[-1], "r")
    return tokens, np.array(offsets, dtype=np.int64), digest.hexdigest()


def _link(tokens: Any, digest: str, settings: RepeatedText, scratch: Path, threads: int, advance: Advance) -> Any:
    """The links of ``link_windows`` for the whole corpus, in a mapped file that is sparse at first; an empty file of
    its own says that a part is done.
    """
    parts = max(threads, -(-len(tokens) // settings.part_tokens))
    path = scratch / f"links-{digest}-{settings.length}-{parts}"
    if not path.exists():
        for old in scratch.glob("links-*"):
            old.unlink()
    others = _mapped(path, link_type(len(tokens)), len(tokens), "r+" if path.exists() else "w+")

    def link(part: int) -> int:
        done = scratch / f"{path.name}-{part}.done"
        if not done.exists():
            link_windows(tokens, settings.length, others, part, parts, int(digest, 16))
            if isinstance(others, np.memmap):
                others.flush()
            done.touch()
        return len(tokens) * (part + 1) // parts - len(tokens) * part // parts

    with ThreadPoolExecutor(threads) as pool:
        for count in pool.map(link, range(parts)):
            advance(count)
    return others


def _mapped(path: Path, dtype: Any, size: int, mode: Any) -> Any:
    """A mapped file of ``size`` numbers; nothing can be mapped to nothing, so an empty array for none."""
    if size == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode=mode, shape=(size,))
