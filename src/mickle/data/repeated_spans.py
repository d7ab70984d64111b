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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mickle.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

PART_TOKENS = 1 << 26  # a part then takes some 0.8 GB
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
    """The repeated spans of each document, in the order of ``documents``: arrays of whole numbers below 2^63, of any
    tokenizer, or of bytes.

    ``scratch`` is a folder for this search alone. If a search was killed, the next one over the same documents writes
    the tokens anew, which is quick, and goes on with the part it was at. ``advance`` hears of the tokens compared.
    """
    import numpy as np

    from mickle.kernels.repeated_windows import spans

    scratch.mkdir(parents=True, exist_ok=True)
    tokens, offsets, digest = _join(documents, scratch)
    others = np.asarray(_link(tokens, digest, search, scratch, advance))
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


def _link(tokens: Any, digest: str, search: Search, scratch: Path, advance: Advance) -> Any:
    """The links of ``link_windows`` for the whole corpus, in a mapped file that is sparse at first; an empty file of
    its own says that a part is done.
    """
    from mickle.kernels.repeated_windows import link_type

    parts = max(search.threads, -(-len(tokens) // search.part_tokens))
    path = scratch / f"links-{digest}-{search.length}-{parts}"
    if not path.exists():
        for old in scratch.glob("links-*"):
            old.unlink()
    others = _mapped(path, link_type(len(tokens)), len(tokens), "r+" if path.exists() else "w+")

    def link(part: int) -> int:
        done = scratch / f"{path.name}-{part}.done"
        if not done.exists():
            _link_part(tokens, search.length, others, part, parts, int(digest, 16))
            done.touch()
        return len(tokens) * (part + 1) // parts - len(tokens) * part // parts

    with ThreadPoolExecutor(search.threads) as pool:
        for count in pool.map(link, range(parts)):
            advance(count)
    return others


def _link_part(tokens: Any, length: int, others: Any, part: int, parts: int, seed: int) -> None:
    import numpy as np

    from mickle.kernels.repeated_windows import link_windows

    link_windows(tokens, length, others, part, parts, seed)
    if isinstance(others, np.memmap):
        others.flush()


def _mapped(path: Path, dtype: Any, size: int, mode: Any) -> Any:
    """A mapped file of ``size`` numbers; nothing can be mapped to nothing, so an empty array for none."""
    import numpy as np

    if size == 0:
        return np.zeros(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode=mode, shape=(size,))
