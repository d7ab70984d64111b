"""Removal of pages that say the same again and again: the repetition rules of MassiveText, as RefinedWeb uses them.

Sources: "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv 2112.11446, section
A.1.1 and table A1; "The RefinedWeb Dataset for Falcon LLM", arXiv 2306.01116. A page is removed where one of these
shares is greater than its limit; lines are separated by line breaks, paragraphs by two or more, a duplicate is
the second and every later one, and all characters are counted against those of the whole text:

    duplicate paragraphs / paragraphs                       0.30
    characters in duplicate paragraphs                      0.20
    duplicate lines / lines                                 0.30
    characters in duplicate lines                           0.20
    characters of the most frequent 2-, 3-, 4-gram          0.20, 0.18, 0.16
    characters in repeated 5-, 6-, 7-, 8-, 9-, 10-grams     0.15, 0.14, 0.13, 0.12, 0.11, 0.10

The rules are asked in this order and the first that fails is the reason, as in datatrove 0.10.1, with whose
decisions these agree for the same words; :mod:`mickle.kernels.repetitions` defines the n-gram counts. Words
are those of :mod:`mickle.data.words`; in a script without spaces an n-gram has the letters of n words. A text of only
a few words fails by its most frequent 2-gram, which counts though it stands once.

Applied twice is applied once: a page is kept as it is or removed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from mickle.config import Config
from mickle.data.records import Failure, first_beyond
from mickle.data.words import letters_a_word, split_words

Size = Annotated[int, Field(ge=1, le=100)]
Share = Annotated[float, Field(ge=0)]

_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")


class Repetitions(Config):
    """How much a page may repeat itself. A share that is greater than its limit removes the page."""

    duplicate_paragraph_share: Share = Field(0.30, description="largest share of paragraphs that stood before")
    duplicate_paragraph_characters: Share = Field(
        0.20, description="largest share of characters in paragraphs that stood before"
    )
    duplicate_line_share: Share = Field(0.30, description="largest share of lines that stood before")
    duplicate_line_characters: Share = Field(0.20, description="largest share of characters in lines that stood before")
    most_frequent_ngram: dict[Size, Share] = Field(
        {2: 0.20, 3: 0.18, 4: 0.16},
        description="largest share of characters in the most frequent n-gram, for each n",
    )
    repeated_ngrams: dict[Size, Share] = Field(
        {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10},
        description="largest share of characters in n-grams that stood before, for each n",
    )
    overlap: Literal["greedy", "mask"] = Field(
        "greedy",
        description="repeated n-grams that overlap: jump over each one found, or count every word under any once",
    )


def find_repetition(text: str, settings: Repetitions) -> Failure | None:
    """The first repetition rule that ``text`` does not meet; None where it meets all.

    An empty text fails. The value of a failure is the share measured.
    """
    if not text:
        return Failure("text is empty", 0.0, 0.0)
    if duplicates := first_beyond(_duplicates(text, settings)):
        return duplicates
    return find_repeated_words(text, split_words(text), settings, letters_a_word(text))


def find_repeated_words(text: str, words: Sequence[str], settings: Repetitions, letters: int = 1) -> Failure | None:
    """The n-gram rules alone, for a text that is not empty and its words however split; ``letters`` of them make a
    word where they are the letters of a script without spaces.
    """
    return first_beyond(_ngrams(len(text), words, settings, letters))


def _duplicates(text: str, settings: Repetitions) -> Iterator[Failure]:
    for name, pieces, share, characters in (
        (
            "paragraphs",
            _PARAGRAPHS.split(text.strip()),
            settings.duplicate_paragraph_share,
            settings.duplicate_paragraph_characters,
        ),
        ("lines", _LINES.split(text), settings.duplicate_line_share, settings.duplicate_line_characters),
    ):
        distinct = set(pieces)
        again = sum(map(len, pieces)) - sum(map(len, distinct))
        yield Failure(f"duplicate {name}", (len(pieces) - len(distinct)) / len(pieces), share)
        yield Failure(f"characters in duplicate {name}", again / len(text), characters)


def _ngrams(size: int, words: Sequence[str], settings: Repetitions, letters: int) -> Iterator[Failure]:
    from mickle.kernels.repetitions import join, most_frequent, repeated

    if settings.most_frequent_ngram:
        spaced = join(words, " " if letters == 1 else "")
        for n, limit in settings.most_frequent_ngram.items():
            yield Failure(f"most frequent {n}-gram", most_frequent(spaced, n * letters) / size, limit)
    if settings.repeated_ngrams:
        tight = join(words)
        for n, limit in settings.repeated_ngrams.items():
            yield Failure(f"repeated {n}-grams", repeated(tight, n * letters, settings.overlap) / size, limit)
