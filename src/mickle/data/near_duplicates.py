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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from mickle.config import Config
from mickle.data.records import Failure, Page, Removed, remove

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STAGE = "near duplicates"
TEXTS_AT_A_TIME = 256  # joined into one array for the compiled pass


class NearDuplicates(Config):
    """Which pages are near duplicates."""

    shingle: int = Field(5, ge=1, le=100, description="words to a shingle; texts are sets of these")
    bands: int = Field(
        450,
        ge=1,
        le=5000,
        description="groups of minima; pages that agree in one are near duplicates: similarity s is found with "
        "probability 1 - (1 - s^rows)^bands, 63% at the threshold (1/bands)^(1/rows). 450 x 20 finds 76% at 0.75 and "
        "99% at 0.8; 14 x 8 (FineWeb) 77% and 92%, and more of what is less alike",
    )
    rows: int = Field(20, ge=1, le=200, description="minima to a band; more rows find only what is more alike")
    verify: float = Field(
        0.0,
        ge=0,
        le=1,
        description="least true similarity of the pages that a band brings together; 0, as in the paper, trusts the "
        "bands",
    )

    @property
    def threshold(self) -> float:
        """The similarity that is found with probability 0.63: (1/bands)^(1/rows)."""
        return float((1 / self.bands) ** (1 / self.rows))


def match_probability(similarity: float, bands: int, rows: int) -> float:
    """1 - (1 - s^rows)^bands: how likely a pair of Jaccard similarity s shares a band."""
    return float(1 - (1 - similarity**rows) ** bands)


def signatures(texts: Sequence[str], settings: NearDuplicates, seed: int = 0) -> NDArray[np.uint64]:
    """Band hashes of texts, uint64 [N, bands]; rows of 0, which match nothing, for texts without words.

    Holds no lock for nearly all of its time: threads may sign parts of a corpus side by side.
    """
    import numpy as np

    from mickle.kernels import signatures as kernel

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
    import numpy as np

    from mickle.kernels.signatures import shingles

    return np.unique(shingles(text, shingle))


def _jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    import numpy as np

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
    import numpy as np

    from mickle.kernels.components import merge, stars

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
    import numpy as np

    result = np.zeros(left.size, bool)
    first, kept = -1, np.empty(0, np.uint64)
    for edge, (one, other) in enumerate(zip(left.tolist(), right.tolist())):
        if one != first:
            first, kept = one, _shingle_set(text(one), shingle)
        result[edge] = _jaccard(kept, _shingle_set(text(other), shingle)) >= least
    return result


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
        yield remove(page, STAGE, failure, held[places[first]].url)
