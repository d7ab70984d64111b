"""Whether held-out texts were trained on: the same text, or a run of 13 words that both have.

The usual measure (GPT-3, arXiv 2005.14165, appendix C), printed for every tuning: a held-out loss says nothing of texts
that were learnt by heart. Words are compared as in ``decontamination.py``: case, accents and punctuation do not matter.
A text of fewer than 13 words overlaps with one that has the same words in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mickle.data.heldout import content_hash

WORDS = 13


@dataclass(frozen=True)
class Overlap:
    """Of ``heldout`` texts, how many are in the training texts (``exact``; white space aside), how many others share
    ``words`` words in a row with one (``near``), and the ``places`` of both among the held-out texts.
    """

    exact: int
    near: int
    places: list[int]
    heldout: int = 0
    words: int = WORDS

    def line(self) -> str:
        """The finding in one line."""
        first = ", ".join(str(place + 1) for place in self.places[:3]) + (", ..." if len(self.places) > 3 else "")
        return (
            f"overlap of training and held-out texts: {self.exact:,} the same, {self.near:,} others share {self.words}"
            f" words, of {self.heldout:,}" + (f" (held-out {first})" if first else "")
        )


def overlap(training: Iterable[str], heldout: Sequence[str], words: int = WORDS) -> Overlap:
    """Compare two sets of texts. Memory: 8 bytes for each distinct run of words of the held-out ones."""
    from mickle.kernels.signatures import shingles

    runs = [np.unique(shingles(text, words)) for text in heldout]
    known = np.unique(np.concatenate([np.empty(0, np.uint64), *runs]))
    met = np.zeros(len(known), dtype=bool)  # runs of held-out texts that a training text has
    hashes = set[int]()
    for text in training:
        hashes.add(content_hash(text))
        if len(known):
            found = shingles(text, words)
            nearest = np.searchsorted(known, found).clip(max=len(known) - 1)
            met[nearest[known[nearest] == found]] = True
    exact = [content_hash(text) in hashes for text in heldout]
    near = [not same and bool(met[np.searchsorted(known, some)].any()) for same, some in zip(exact, runs)]
    places = [place for place, pair in enumerate(zip(exact, near, strict=True)) if any(pair)]
    return Overlap(sum(exact), sum(near), places, len(heldout), words)
