"""Correction of a page line by line: what menus, counters and buttons left in its text.

Source: "The RefinedWeb Dataset for Falcon LLM", arXiv 2306.01116, section 3.2 and appendix on line-wise corrections.
A line is discarded where

1. more than half of its characters are upper case letters,
2. it is digits and white space only,
3. it is a counter ("3 likes"),
4. it is a single word;

and a line of at most 10 words loses a phrase at its start (as "sign in"), at its end (as "read more...") or anywhere
(as "items in cart"). Where all lines so flagged hold more than 5 % of the words of the page, the page is removed.
Empty lines are kept and not judged. Words are what stands between white space; of scripts without spaces as many
letters as make a word.

The paper names the rules and one example of each; share, counters and phrases are ours. A phrase is plain text,
not an expression, so that no list can make the search slow: letter case does not count, a space stands for spaces or a
hyphen, ``#`` for a number, and it must not begin or end inside a word. Two details that keep the result clean: what an
edit leaves is judged again and discarded with its phrase if it is flagged; empty lines after a discarded line go with
it where they would double those before it.

Applied twice is applied once: what survives holds no line that would be flagged.
"""

from __future__ import annotations

import io
import re
from functools import lru_cache
from typing import NamedTuple

from pydantic import Field

from mickle.config import Config
from mickle.data.records import Failure, cut
from mickle.data.words import split_spaces

LONGEST_EDITED = 400  # characters: ten words that are longer are no button


class Lines(Config):
    """Lines that are no part of a page's prose."""

    upper_case: float = Field(0.5, ge=0, le=1, description="largest share of upper case characters in a line")
    flagged_words: float = Field(
        0.05, ge=0, le=1, description="share of the page's words in flagged lines; more remove the page"
    )
    edited_words: int = Field(10, ge=0, description="phrases are cut only from lines of at most so many words")
    counters: list[str] = Field(
        ["likes", "shares", "comments", "retweets", "reposts", "quotes", "bookmarks", "upvotes", "downvotes",
         "downloads", "views", "followers"],
        description="a line that is a number and one of these, or one of them without its s, is discarded",
    )  # fmt: skip
    at_start: list[str] = Field(
        ["sign in", "sign up", "log in", "log out", "skip to content", "skip to main content", "share this",
         "toggle navigation", "back to top", "you are here:"],
        description="phrases cut from the start of short lines; # stands for a number",
    )  # fmt: skip
    at_end: list[str] = Field(
        ["read more", "continue reading", "see more", "view more", "show more", "learn more", "load more",
         "click here", "view all", "see all"],
        description="phrases cut from the end of short lines",
    )  # fmt: skip
    anywhere: list[str] = Field(
        ["items in cart", "item in cart", "# items in cart", "# item in cart", "add to cart", "add to wishlist",
         "view cart", "your cart is empty", "share on facebook", "share on twitter", "accept cookies",
         "accept all cookies", "all rights reserved"],
        description="phrases cut from short lines wherever they stand",
    )  # fmt: skip


class Corrected(NamedTuple):
    """A page's text after :func:`correct_lines`.

    ``pieces`` are what was cut, in order: the character at which it stood in the text given, the text with the line
    break of a whole line, and the rule. ``share`` is that of the page's words which stand in flagged lines;
    ``failure`` is set where it is greater than the limit: the page is to be removed.
    """

    text: str
    pieces: list[tuple[int, str, Failure]]
    share: float
    failure: Failure | None


def correct_lines(text: str, settings: Lines) -> Corrected:
    """``text`` without what the line-wise rules take out. Time and memory are linear in its length.

    Putting ``pieces`` back in order, each at its character, gives ``text``.
    """
    spans: list[tuple[int, int, Failure]] = []  # start, end in ``text``
    words = flagged = begin = 0
    blank = True  # nothing is kept yet, or the line kept last is empty
    swallowing = False  # the line before was discarded where ``blank`` holds
    for line in io.StringIO(text, newline="\n"):
        count, end = len(split_spaces(line)), begin + len(line)
        cuts = _cuts(line, count, settings) if count else []
        if not count and swallowing:
            spans[-1] = (spans[-1][0], end, spans[-1][2])
        elif cuts and cuts[0][1] - cuts[0][0] == len(line):
            spans.append((begin, end, cuts[0][2]))
            swallowing = blank
        else:
            spans += [(begin + start, begin + stop, failure) for start, stop, failure in cuts]
            blank, swallowing = not count, False
        words, flagged, begin = words + count, flagged + (count if cuts else 0), end
    share = flagged / words if words else 0.0
    failure = Failure("flagged lines", share, settings.flagged_words) if share > settings.flagged_words else None
    left, taken = cut(text, spans)
    pieces = [(start, gone, rule) for (start, gone), (_, _, rule) in zip(taken, spans, strict=True)]
    return Corrected(left, pieces, share, failure)


def _cuts(line: str, words: int, settings: Lines) -> list[tuple[int, int, Failure]]:
    """What is cut out of a line of ``words`` words, as (start, end, rule); the whole line where it is discarded."""
    if failure := _discarded(line.strip(), words, settings):
        return [(0, len(line), failure)]
    cuts = _edits(line, words, settings)
    if cuts:
        left, _ = cut(line, cuts)
        words = len(split_spaces(left))
        if not words or _discarded(left.strip(), words, settings) or _edits(left, words, settings):
            return [(0, len(line), cuts[0][2])]
    return cuts


def _discarded(line: str, words: int, settings: Lines) -> Failure | None:
    """The rule by which a whole line goes."""
    upper = _upper_case(line) / len(line)
    if upper > settings.upper_case:
        return Failure("line in upper case", upper, settings.upper_case)
    if _DIGITS.fullmatch(line):
        return Failure("line of digits", words, 0.0)
    if _counter(tuple(settings.counters)).fullmatch(line):
        return Failure("line is a counter", words, 0.0)
    return Failure("line of one word", words, 1.0) if words == 1 else None


def _edits(line: str, words: int, settings: Lines) -> list[tuple[int, int, Failure]]:
    """Phrases to cut from a short line, as (start, end, rule)."""
    if words > settings.edited_words or len(line) > LONGEST_EDITED:
        return []
    lists = tuple(settings.at_start), tuple(settings.at_end), tuple(settings.anywhere)
    at_start, at_end, anywhere, reach = _phrases(*lists)
    cuts, begin, end = [], 0, len(line)
    if found := at_start.match(line):
        begin = found.end()
        cuts.append((0, begin, Failure("phrase at a line's start", words, settings.edited_words)))
    trailing = at_end.search(line, max(begin, len(line) - reach))
    if trailing:
        end = trailing.start()
    for found in anywhere.finditer(line, begin, end):
        cuts.append((*found.span(), Failure("phrase in a line", words, settings.edited_words)))
    if trailing:
        stop = trailing.end()
        cuts.append((end, stop, Failure("phrase at a line's end", words, settings.edited_words)))
    return cuts


_UPPER = bytes(range(ord("A"), ord("Z") + 1))
_DIGITS = re.compile(r"[\d\s]+")


def _upper_case(line: str) -> int:
    """How many characters are upper case letters."""
    if line.isascii():
        return len(line) - len(line.encode().translate(None, _UPPER))
    return sum(map(str.isupper, line))


@lru_cache(16)
def _counter(names: tuple[str, ...]) -> re.Pattern[str]:
    """A number, as 3 or 1,024 or 1.2k, and one of ``names``."""
    either = "|".join(re.escape(name.removesuffix("s")) + ("s?" if name.endswith("s") else "") for name in names)
    return re.compile(rf"\d[\d.,]{{0,20}}[km]?\s{{1,5}}(?:{either or '(?!)'})", re.IGNORECASE)


@lru_cache(16)
def _phrases(
    at_start: tuple[str, ...], at_end: tuple[str, ...], anywhere: tuple[str, ...]
) -> tuple[re.Pattern[str], re.Pattern[str], re.Pattern[str], int]:
    """The three lists as expressions in which every repeat is bounded, separators beside a phrase with it; and how
    many characters from a line's end the second can reach.
    """
    beside = r"[\s|·•«»‹›<>→–—-]{0,10}"
    return (
        re.compile(rf"{beside}{_any(at_start)}(?:\.{{3}}|…)?{beside}", re.IGNORECASE),
        re.compile(rf"{beside}{_any(at_end)}[.…]{{0,5}}{beside}$(?<!\n)", re.IGNORECASE),
        re.compile(_any(anywhere), re.IGNORECASE),
        # Of a space three characters can come, of # nine; dots and separators beside.
        30 + max((len(phrase) + 2 * phrase.count(" ") + 8 * phrase.count("#") for phrase in at_end), default=0),
    )


def _any(phrases: tuple[str, ...]) -> str:
    """Any of ``phrases``, the longest first, not from or to the middle of a word."""
    ordered = sorted((phrase.split() for phrase in phrases if phrase.strip()), key=lambda p: -len(" ".join(p)))
    each = [r"[\s-]{1,3}".join(re.escape(w).replace(r"\#", r"\d{1,9}") for w in words) for words in ordered]
    return rf"(?<!\w)(?:{'|'.join(each)})(?!\w)" if each else r"(?!)"
