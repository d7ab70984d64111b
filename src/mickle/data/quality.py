"""Removal of pages that do not read like prose: the document-wise rules of MassiveText, as RefinedWeb uses them.

Sources: "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv 2112.11446, section
A.1.1; "The RefinedWeb Dataset for Falcon LLM", arXiv 2306.01116. *Words* are what stands between white space, *proper
words* those that hold more than punctuation. A page is kept where

    50 <= proper words <= 100,000
    3 <= mean length of proper words <= 10
    hash signs / words <= 0.1 and ellipses / words <= 0.1
    lines that begin with a bullet or a hyphen / lines <= 0.9
    lines that end in an ellipsis / lines <= 0.3
    words with a letter / words >= 0.8
    of "the be to of and that have with" at least 2 stand in it

The rules are asked in this order and the first that fails is the reason, as in datatrove 0.10.1, with whose
decisions these agree for the same words and ``match_case``. datatrove makes every mark a word of its own
(``words="marks"``), which removes news full of figures and quotations as "words without letters": of 161 articles
13.7 %, against 1.2 % by words between white space. Departure: by default a stop word counts in any letter case;
datatrove compares as it stands, so that a text in capitals has none.

Other scripts and languages: where no spaces stand between words (Chinese, Thai) some letters are taken for a word
(:mod:`mickle.data.words`) and the mean length is not asked. A syllable of Hangul counts twice in a word's length, and
marks written onto letters (Malayalam) make no word too long. The English stop words are asked of English, and of pages
whose language is not known. Code, poetry and tables fail these rules.

Applied twice is applied once: a page is kept as it is or removed.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from pydantic import Field

from mickle.config import Config
from mickle.data.records import Failure, first_beyond
from mickle.data.words import PUNCTUATION, letters_a_word, split_spaces, split_words

_HANGUL = re.compile("[\uac00-\ud7a3]")  # syllables of two or three letters
ELLIPSES = ("...", "…")
ENGLISH = ("the", "be", "to", "of", "and", "that", "have", "with")


class Quality(Config):
    """What a page of prose looks like. Shares and lengths exactly at their limit are kept."""

    words: Literal["spaces", "marks"] = Field(
        "spaces",
        description="what is counted: words between white space, as in the paper, or every mark beside the words too",
    )
    least_words: int = Field(50, ge=0, description="fewer words, punctuation aside, remove the page")
    most_words: int = Field(100_000, ge=1, description="more words, punctuation aside, remove the page")
    least_mean_length: float = Field(3.0, ge=0, description="characters of a word in the mean, at least")
    most_mean_length: float = Field(10.0, ge=0, description="characters of a word in the mean, at most")
    hash_signs: float = Field(0.1, ge=0, description="most hash signs a word, in the mean")
    ellipses: float = Field(0.1, ge=0, description="most ellipses a word, in the mean")
    bullet_lines: float = Field(0.9, ge=0, le=1, description="share of lines that begin with a bullet, at most")
    ellipsis_lines: float = Field(0.3, ge=0, le=1, description="share of lines that end in an ellipsis, at most")
    words_with_letters: float = Field(0.8, ge=0, le=1, description="share of words with a letter, at least")
    least_stop_words: int = Field(2, ge=0, description="how many of the stop words must stand in the page")
    stop_words: list[str] | None = Field(
        None,
        description=f"words that prose of the language cannot do without; if not given, of English {' '.join(ENGLISH)}",
    )
    match_case: bool = Field(False, description="stop words count only in the letter case in which they are given")


def find_low_quality(text: str, settings: Quality, language: str = "") -> Failure | None:
    """The first document-wise rule that ``text`` does not meet; None where it meets all.

    ``language`` is an ISO 639-1 code; "" where it is not known. The value of a failure is what was counted or measured.
    """
    words = split_spaces(text) if settings.words == "spaces" else split_words(text)
    return find_low_quality_words(text, words, settings, language)


def find_low_quality_words(text: str, words: Sequence[str], settings: Quality, language: str = "") -> Failure | None:
    """:func:`find_low_quality` for a text and its words however split."""
    counts = Counter(words)
    return (
        _of_words(text, counts, settings)
        or first_beyond(_of_marks(text, len(words), settings))
        or _of_prose(counts, settings, language)
    )


def _of_words(text: str, counts: Counter[str], settings: Quality) -> Failure | None:
    """Number and length of the words that are more than punctuation."""
    proper = [(word, count) for word, count in counts.items() if not PUNCTUATION.issuperset(word)]
    number = sum(count for _, count in proper)
    if number < settings.least_words:
        return Failure("too few words", number, settings.least_words)
    if number > settings.most_words:
        return Failure("too many words", number, settings.most_words)
    if number == 0 or letters_a_word(text) > 1:
        return None
    mean = sum((len(word) + len(_HANGUL.findall(word))) * count for word, count in proper) / number
    if mean < settings.least_mean_length:
        return Failure("words are short", mean, settings.least_mean_length)
    mean -= sum(_marks_on(word) * count for word, count in proper) / number
    if mean > settings.most_mean_length:
        return Failure("words are long", mean, settings.most_mean_length)
    return None


def _marks_on(word: str) -> int:
    """Accents and vowel signs that are written onto the letters of a word."""
    return 0 if word.isascii() else sum(unicodedata.category(character).startswith("M") for character in word)


def _of_marks(text: str, words: int, settings: Quality) -> Iterator[Failure]:
    """Hash signs, ellipses and bullets."""
    lines = text.splitlines()
    if words:
        yield Failure("hash signs", text.count("#") / words, settings.hash_signs)
        yield Failure("ellipses", sum(map(text.count, ELLIPSES)) / words, settings.ellipses)
    if lines:
        bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
        yield Failure("lines that begin with a bullet", bullets / len(lines), settings.bullet_lines)
        trailing = sum(line.rstrip().endswith(ELLIPSES) for line in lines)
        yield Failure("lines that end in an ellipsis", trailing / len(lines), settings.ellipsis_lines)


def _of_prose(counts: Counter[str], settings: Quality, language: str) -> Failure | None:
    """Letters and stop words."""
    words = counts.total()
    lettered = sum(count for word, count in counts.items() if word.isalpha() or any(map(str.isalpha, word)))
    if words and lettered / words < settings.words_with_letters:
        return Failure("words without letters", lettered / words, settings.words_with_letters)
    if settings.stop_words is None and language not in ("en", ""):
        return None
    wanted = ENGLISH if settings.stop_words is None else settings.stop_words
    found = len(_cased(wanted, settings) & _cased(counts, settings))
    if found < settings.least_stop_words:
        return Failure("too few stop words", found, settings.least_stop_words)
    return None


def _cased(words: Iterable[str], settings: Quality) -> set[str]:
    return set(words) if settings.match_case else {word.lower() for word in words}
