"""Text that occurs more than once in a corpus, cut out exactly: ExactSubstr of Lee et al.

Source: Lee et al., "Deduplicating Training Data Makes Language Models Better", arXiv 2107.06499; RefinedWeb, arXiv
2306.01116, section 3.3 and appendix G.3: spans of 50 consecutive tokens or more that occur at least twice are cut
out, and a document is dropped if fewer than 20 characters are left. Its other policies there: drop a document of
which more than 20 % is repeated (PartialDrop) or anything (AnyDrop).

Where we depart: tokens are word-like pieces (``kernels.word_pieces``) instead of GPT-2's, so a cut never falls into a
word; and ``keep="first"`` leaves the first occurrence in reading order where it is, which the paper's code
cuts too. A cut joins what stood left and right of it, and may so make a new repetition; the paper runs twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

from pydantic import Field

from mickle.config import Config
from mickle.data.records import Failure, Page, Removed, cut, piece, remove
from mickle.data.words import latin_length

STAGE = "repeated text"
PART_TOKENS = 1 << 26  # a part then takes some 0.8 GB


class RepeatedText(Config):
    """Cut text that stands elsewhere in the corpus too."""

    length: int = Field(50, ge=1, description="shortest repetition that counts, in word-like pieces of text")
    keep: Literal["none", "first"] = Field(
        "none", description="which occurrence stays: none, as in the paper, or the first in reading order"
    )
    policy: Literal["cut", "drop"] = Field(
        "cut", description="cut the repeated text, or drop pages that have too much of it and leave others whole"
    )
    least_left: int = Field(
        20, ge=0, description="cut: a page that has fewer characters left is dropped whole; a letter of Han counts as 3"
    )
    drop_above: float = Field(
        0.2, ge=0, le=1, description="drop: largest share of a page's pieces that may be repeated; 0 allows none"
    )
    part_tokens: int = Field(
        PART_TOKENS,
        ge=1,
        description="pieces of text compared at a time by one thread, at some 12 bytes of memory each",
    )


class Range(NamedTuple):
    """Characters ``start`` to ``end`` of a text: ``tokens`` pieces that occur in text number ``twin`` as well."""

    start: int
    end: int
    tokens: int
    twin: int


class Repeated(NamedTuple):
    """What is repeated in one text, and how many pieces the whole text has."""

    tokens: int
    ranges: list[Range]


def settle(page: Page, repeated: Repeated, twins: list[str], settings: RepeatedText) -> Iterator[Page | Removed]:
    """One page by the policy: ``twins`` are the addresses of the pages that its ranges occur in as well."""
    tokens = sum(each.tokens for each in repeated.ranges)
    if not tokens:
        yield page
    elif settings.policy == "drop":
        share = tokens / repeated.tokens
        if share > settings.drop_above:
            yield remove(page, STAGE, Failure("too much repeated text", share, settings.drop_above), twins[0])
        else:
            yield page
    else:
        left, pieces = cut(page.text, repeated.ranges)
        if (size := latin_length(left)) < settings.least_left:
            failure = Failure("too little besides repeated text", size, settings.least_left)
            yield remove(page, STAGE, failure, twins[0])
            return
        for each, (start, text), twin in zip(repeated.ranges, pieces, twins):
            failure = Failure("span occurs elsewhere", each.tokens, settings.length)
            yield replace(piece(page, STAGE, failure, start, text), twin=twin)
        yield replace(page, text=left)
