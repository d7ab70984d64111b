"""Near duplicates by MinHash, banding and clusters: the fuzzy deduplication of RefinedWeb (arXiv 2306.01116,
section 3.3 and appendix G.3.1). Claim: strict deduplication helps on every corpus that it was tried on.

A pair whose sets of word n-grams have Jaccard similarity s shares at least one of r bands of b minima with probability
1 - (1 - s^b)^r (:func:`match_probability`). Shared bands are edges, and of each connected component the first page in
reading order is kept.

Where this departs from the paper: shingles are of words, as in datatrove and FineWeb, not of GPT-2 tokens, so that they
do not depend on a tokenizer; 450 bands of 20 rows, since the main text's "20 buckets of 450" contradicts its own
probabilities; all pages at once instead of 100 parts of a crawl; an optional check of the true similarity.

Memory is one column of band hashes and a label for each page; columns may be rows of a memory map [bands, N].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mickle.data.rules import NearDuplicates
from mickle.kernels import signatures as kernel
from mickle.kernels.components import merge, stars

TEXTS_AT_A_TIME = 256  # joined into one array for the compiled pass


def match_probability(similarity: float, bands: int, rows: int) -> float:
    """1 - (1 - s^rows)^bands: how likely a pair of Jaccard similarity s shares a band."""
    return float(1 - (1 - similarity**rows) ** bands)


def signatures(texts: Sequence[str], settings: NearDuplicates, seed: int = 0) -> NDArray[np.uint64]:
    """Band hashes of texts, uint64 [N, bands]; rows of 0, which match nothing, for texts without words.

    Holds no lock for nearly all of its time: threads may sign parts of a corpus side by side.
    """
    result = np.empty((len(texts), settings.bands), np.uint64)
    for first in range(0, len(texts), TEXTS_AT_A_TIME):
        part = texts[first : first + TEXTS_AT_A_TIME]
        result[first : first + len(part)] = kernel.signatures(
            part, settings.shingle, settings.bands, settings.rows, seed
        )
    return result


def similarity(one: str, other: str, shingle: int = 5) -> float:
    """True Jaccard similarity of two texts' sets of word n-grams; 0 where neither has a word."""
    return _jaccard(_shingle_set(one, shingle), _shingle_set(other, shingle))


def _shingle_set(text: str, shingle: int) -> NDArray[np.uint64]:
    return np.unique(kernel.shingles(text, shingle))


def _jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    common = np.intersect1d(one, other, assume_unique=True).size
    return float(common / max(1, one.size + other.size - common))


def clusters(
    columns: Iterable[NDArray[np.uint64]],
    count: int,
    *,
    verify: float = 0.0,
    shingle: int = 5,
    text: Callable[[int], str] | None = None,
) -> NDArray[np.int64]:
    """The first page, int64 [N], of each page's cluster, from band hashes one column [N] at a time.

    The order of the columns does not matter. With ``verify`` an edge counts only if the true similarity of its two
    texts, asked for by ``text(page)``, is at least that; a pair that failed is not tried again (16 bytes for each).
    Edges lead to a group's first page alone, so two pages that are alike and both unlike the first one are joined only
    by a band that brings them together without it; after its removal a second pass may find them.
    """
    labels = np.arange(count, dtype=np.int64)
    failed = np.empty(0, np.int64)
    for column in columns:
        left, right = stars(column)
        if verify:
            if text is None:
                raise ValueError("similarity can only be verified with the texts")
            new = labels[left] != labels[right]
            new &= ~np.isin(left * count + right, failed, assume_unique=True)
            left, right = left[new], right[new]
            order = np.argsort(left, kind="stable")  # the first page of a group is read once
            left, right = left[order], right[order]
            alike = _alike(left, right, text, shingle, verify)
            failed = np.union1d(failed, (left * count + right)[~alike])
            left, right = left[alike], right[alike]
        merge(labels, left, right)
    return labels


def _alike(
    left: NDArray[np.int64], right: NDArray[np.int64], text: Callable[[int], str], shingle: int, least: float
) -> NDArray[np.bool_]:
    """Which edges, grouped by their left end, join texts of at least that similarity."""
    result = np.zeros(left.size, bool)
    first, kept = -1, np.empty(0, np.uint64)
    for edge, (one, other) in enumerate(zip(left.tolist(), right.tolist())):
        if one != first:
            first, kept = one, _shingle_set(text(one), shingle)
        result[edge] = _jaccard(kept, _shingle_set(text(other), shingle)) >= least
    return result
