"""Spans of tokens that occur more than once in a corpus larger than memory, by suffix arrays of its parts.

Source: Lee et al., "Deduplicating Training Data Makes Language Models Better", arXiv 2107.06499, section 4.1 and
appendix B: a span is repeated where each of its tokens lies in a window of ``length`` tokens that occurs at least
twice, anywhere in the corpus, itself overlapped included. Documents are joined with separators that are all
different (the number of the document above 2^63), so no repeated window crosses the boundary of a document.

Where we depart: a document never lies in two parts, so parts need no overlap and find nothing twice; a
part's tokens become ranks among its own, in the order of the tokens themselves, so parts are merged without a
common vocabulary; and each span knows where it occurs first.

Memory-mapped files in the scratch folder: the tokens, 8 bytes each; the parts' suffix arrays, 4; the links of repeated
windows, 4 (8 from 2^32 tokens on), on the disk only where there are some. Sorting needs some 11 bytes of memory for
each token of a part of ordinary text, in which one token in twenty is new; up to 60 where all are different.
Where the files outgrow memory, the merge reads the disk at random places.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mickle.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PART_TOKENS = 1 << 26  # a part of ordinary text then takes some 0.75 GB to sort
SEPARATOR = 1 << 63

Advance = Callable[[int], None]


class Span(NamedTuple):
    """Tokens ``start`` to ``end`` of a document, which also occur in document ``twin``: of the window that the
    first of these tokens belongs to, the first occurrence, or the second where it is the first itself.
    """

    start: int
    end: int
    twin: int


@dataclass(frozen=True)
class Search:
    """How to search: the least ``length`` of a repetition in tokens, which occurrences to report (all, or all but
    the first), the tokens a part may have, and threads. Parts and threads do not change what is found.
    """

    length: int = 50
    keep_first: bool = False
    part_tokens: int = PART_TOKENS
    threads: int = 1


def find_spans(
    documents: Iterable[NDArray[Any]], search: Search, scratch: Path, advance: Advance = lambda count: None
) -> Iterator[list[Span]]:
    """The repeated spans of each document, in the order of ``documents``: arrays of whole numbers below 2^63, of
    any tokenizer, or of bytes.

    ``scratch`` is a folder for this search alone. If a search was killed, the next one over the same documents
    writes the tokens anew, which is quick, and goes on with the part it was at. ``advance`` hears of the tokens
    sorted.
    """
    import numpy as np

    from mickle.kernels.window_spans import spans

    scratch.mkdir(parents=True, exist_ok=True)
    tokens, offsets, digest = _join(documents, scratch)
    others = np.asarray(_link(tokens, offsets, digest, search, scratch, advance))
    for start, end in pairwise(offsets):
        found = spans(others, start, end - 1, search.length, search.keep_first)
        twins = np.searchsorted(offsets, found[:, 2], side="right") - 1
        yield [Span(int(first - start), int(last - start), int(twin)) for (first, last, _), twin in zip(found, twins)]


def _join(documents: Iterable[NDArray[Any]], scratch: Path) -> tuple[Any, NDArray[Any], str]:
    """All tokens with separators in one mapped file; where each document begins, and the end; their digest."""
    import numpy as np

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


def _link(tokens: Any, offsets: NDArray[Any], digest: str, search: Search, scratch: Path, advance: Advance) -> Any:
    """The links of ``suffixes.link_windows`` for the whole corpus, in a mapped file that is sparse at first."""
    import numpy as np

    from mickle.kernels.suffixes import link_windows

    parts = parts_of(offsets, search)
    order = _sorted_parts(tokens, parts, digest, search.threads, scratch, advance)
    links = scratch / "links"
    links.unlink(missing_ok=True)
    others = _mapped(links, np.uint32 if len(tokens) < (1 << 32) - 1 else np.uint64, len(tokens), "w+")
    link_windows(tokens, order, parts, search.length, others, search.threads)
    return others


def parts_of(offsets: NDArray[Any], search: Search) -> NDArray[Any]:
    """Where each part begins, and the end: whole documents, at most ``part_tokens`` unless one alone has more, and
    a part at least for each thread where the documents allow.
    """
    import numpy as np

    largest = max(1, min(search.part_tokens, -(-int(offsets[-1]) // search.threads)))
    parts = [0]
    while parts[-1] < offsets[-1]:
        fits = int(np.searchsorted(offsets, parts[-1] + largest, side="right")) - 1
        own = int(np.searchsorted(offsets, parts[-1], side="right"))  # the end of the part's first document
        parts.append(int(offsets[max(fits, own)]))
    return np.array(parts if len(parts) > 1 else [0, 0], dtype=np.int64)


def _sorted_parts(tokens: Any, parts: NDArray[Any], digest: str, threads: int, scratch: Path, advance: Advance) -> Any:
    """The parts' suffix arrays one after another in a mapped file; an empty file of its own says a part is
    done.
    """
    import numpy as np

    path = scratch / f"order-{digest}"
    if not path.exists():
        for done in scratch.glob(f"{path.name}-*.done"):
            done.unlink()
    order = _mapped(path, np.int32, len(tokens), "r+" if path.exists() else "w+")

    def sort(start: int, end: int) -> int:
        done = scratch / f"{path.name}-{start}-{end}.done"
        if not done.exists():
            order[start:end] = _sorted(tokens[start:end])
            if isinstance(order, np.memmap):
                order.flush()
            done.touch()
        return end - start

    with ThreadPoolExecutor(threads) as pool:
        for count in pool.map(sort, parts[:-1].tolist(), parts[1:].tolist()):
            advance(count)
    return order


def _sorted(tokens: NDArray[Any]) -> NDArray[Any]:
    """A part's suffix array; its ranks are given back as soon as they are used."""
    from mickle.kernels.ranks import ranks
    from mickle.kernels.suffix_sorting import suffix_array

    return suffix_array(*ranks(tokens))


def _mapped(path: Path, dtype: Any, size: int, mode: Any) -> Any:
    """A mapped file of ``size`` numbers; nothing can be mapped to nothing, so an empty array for none."""
    import numpy as np

    if size == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode=mode, shape=(size,))
