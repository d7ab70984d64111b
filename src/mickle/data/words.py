"""How a text falls into words, and which characters are punctuation: for the rules that count words.

A word is a run of letters, digits, underscores and the marks written onto letters (accents, the vowel signs of
Indian scripts, joiners); an apostrophe, full stop or at sign inside it belongs to it: ``don't``, ``3.14``,
``example.com``. Every other character that is not white space is a token of its own, but a run of full stops or of
hyphens is one: ``...``, ``--``. So ``state-of-the-art`` is four words and three hyphens.

datatrove 0.10.1 splits English by spaCy's rules, which cut ``do n't`` and ``John 's`` and keep addresses with their
slashes whole. The n-grams are then others, and a few pages in a hundred that stand near a limit are judged otherwise.

In scripts written without spaces (Chinese, Japanese, Thai, Lao, Tibetan, Burmese, Khmer) each letter with its marks is
a word here. Rules that count words take :func:`letters_a_word` of them for one; no dictionary is asked.
"""

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache

from mickle.kernels.scripts import IDEOGRAPHS, KANA, LETTERS_A_WORD, UNSPACED

# Unicode's Sentence_Terminal marks beyond ASCII and their like, in every script: first and last code point.
_SENTENCE_ENDS = """
0589 061D-061F 06D4 0700-0702 07F9 0837 0839 083D-083E 0964-0965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6
17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 2E2E
2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB FE52
FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 111C5-111C6
111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 1173C-1173E 11944
11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 16B37-16B38 16B44 16E98 1BC9F
1DA88
"""
_TYPOGRAPHIC = "«»´–—’“”„…∶━►、〈〉《》「」【】％（），：；～"
_CONTROLS = "".join(chr(c) for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n")


def _characters(spans: str) -> str:
    ends = [[int(end, 16) for end in span.split("-")] for span in spans.split()]
    return "".join(chr(c) for pair in ends for c in range(pair[0], pair[-1] + 1))


# What datatrove 0.10.1 takes for punctuation, so that the same pages pass; without its full-width digit one.
# Symbols such as a bullet or a currency sign are not in it: alone they count as words.
PUNCTUATION = frozenset(string.punctuation + _TYPOGRAPHIC + _CONTROLS + _characters(_SENTENCE_ENDS))


SPACED_WORD = 5  # letters, in the mean of English and its like
# Letters of an English text for one of its translation, about, where a letter says much more than a Latin one.
_DENSE = ((re.compile(f"[{IDEOGRAPHS}]"), 3), (re.compile(f"[{KANA}\uac00-\ud7a3]"), 2))
_UNSPACED = re.compile(f"[{UNSPACED}]")
_LETTERS = [(re.compile(rf"(?=[^\W\d_])[{script}]"), count) for script, count in LETTERS_A_WORD.items()]
_GROUPS = [rf"(?:(?=[^\W\d_])[{script}][^\w\s]*+){{1,{count}}}" for script, count in LETTERS_A_WORD.items()]
_SPACED = re.compile("|".join([*_GROUPS, rf"[^\s{UNSPACED}]++", r"\S"]))


@cache
def word_pattern(unspaced: bool = False) -> re.Pattern[str]:
    """The regular expression whose matches are the tokens of :func:`split_words`; ``unspaced`` for a text that has
    letters of scripts without spaces, which costs more.
    """
    marks = "".join(c for c in map(chr, range(0x300, 0x10000)) if unicodedata.category(c).startswith("M"))
    marks += "\u200c\u200d"
    letter = rf"[^\W{UNSPACED}]" if unspaced else r"\w"
    alone = rf"\w[{marks}]*+|" if unspaced else ""
    # Marks are looked for only where a run of letters ends: in one class with \w every letter would cost ten times
    # more. Possessive, for else a word of ten million dots and letters would keep a way back at each.
    inner = rf"[{marks}]++{letter}*+|['’.@]{letter}++"
    return re.compile(rf"{letter}++(?:{inner})*+|{alone}\.+|-+|[^\w\s]")


def split_words(text: str) -> list[str]:
    """Words and marks of ``text`` in order, without the white space between them. Linear in its length."""
    return word_pattern(_has_unspaced(text)).findall(text)


def split_spaces(text: str) -> list[str]:
    """What stands between white space in ``text``; of scripts without spaces as many letters as make a word, with the
    marks behind them. Linear in its length.
    """
    return _SPACED.findall(text) if _has_unspaced(text) else text.split()


def letters_a_word(text: str) -> int:
    """How many letters make a word where most words of ``text`` are in scripts without spaces; else 1."""
    if not _has_unspaced(text):
        return 1
    found = {count: len(letters.findall(text)) for letters, count in _LETTERS}
    unspaced = sum(number / count for count, number in found.items())
    others = (sum(map(str.isalpha, text)) - sum(found.values())) / SPACED_WORD
    return max(found, key=found.__getitem__) if unspaced > others else 1


def latin_length(text: str) -> int:
    """About how many characters ``text`` would have in a Latin script: a letter of Han counts as three, one of Kana or
    a syllable of Hangul as two.
    """
    if text.isascii():
        return len(text)
    return len(text) + sum((count - 1) * len(letters.findall(text)) for letters, count in _DENSE)


def _has_unspaced(text: str) -> bool:
    return not text.isascii() and _UNSPACED.search(text) is not None
