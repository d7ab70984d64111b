"""Text as a sequence of word-like pieces, each hashed to 63 bits: the tokens in which repeated text is counted.

A piece is, with at most one space before it, a run of letters, a run of decimal digits, or a run of other signs;
letters of scripts written without spaces between words are pieces of their own; any other white space is a piece.
This is nearly how GPT-2 splits text before its byte pairs (Radford et al. 2019), so a piece is one of its tokens
or a few, no vocabulary is needed, and a cut never falls into a word or a character.

``PIECE`` defines the pieces and ``pieces_plain`` the hashes; ``pieces`` is one compiled pass over the code points.
Two of 10^8 different pieces share a hash with probability 5e-4.
"""

from __future__ import annotations

import re
import sys
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mickle.kernels.compiled import MASK, compiled
from mickle.kernels.scripts import UNSPACED

CLASSES = (rf"[^\W\d_{UNSPACED}]", r"\d", r"[^\w\s]|_", r"\s", rf"(?=[^\W\d_])[{UNSPACED}]")
LETTER, DIGIT, SIGN, SPACE, ALONE = range(5)
PIECE = re.compile(" ?(?:{0})+| ?(?:{1})+| ?(?:{2})+| ?{4}|{3}+(?= {any})|{3}+".format(*CLASSES, any=r"\S"))

START, MULTIPLIER = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93


def hash_plain(piece: str) -> int:
    """63 bits of a piece: its code points multiplied and folded in one by one."""
    value = START
    for sign in piece:
        value = (value ^ ord(sign)) * MULTIPLIER & MASK
        value ^= value >> 32
    return (value * MULTIPLIER & MASK) >> 1


def pieces_plain(text: str) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """``pieces`` by the regular expression and hash that define it."""
    found = list(PIECE.finditer(text))
    hashes = np.array([hash_plain(match.group()) for match in found], dtype=np.uint64)
    return hashes, np.array([match.start() for match in found], dtype=np.uint32)


def pieces(text: str) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """The hashes below 2^63 of a text's pieces, and the character at which each begins.

    Every character belongs to one piece. Lone surrogates are signs. Memory: at most 16 bytes a character.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    hashes, starts = np.empty(len(codes), dtype=np.uint64), np.empty(len(codes), dtype=np.uint32)
    count = _split(codes, _classes(), hashes, starts) if len(codes) else 0
    return hashes[:count], starts[:count]


@cache
def _classes() -> NDArray[np.uint8]:
    """The class of every code point, from the same expressions that define the pieces."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    classes = np.full(len(everything), SIGN, dtype=np.uint8)
    for number, pattern in enumerate(CLASSES):
        for run in re.finditer(f"(?:{pattern})+", everything):
            classes[run.start() : run.end()] = number
    return classes


# -- compiled ----------------------------------------------------------------------------------------------------

_start, _multiplier = np.uint64(START), np.uint64(MULTIPLIER)
_fold, _one = np.uint64(32), np.uint64(1)


@compiled
def _split(codes, classes, hashes, starts):  # type: ignore[no-untyped-def]
    count, i, n = 0, 0, codes.size
    while i < n:
        begin = i
        kind = classes[codes[i]]
        if codes[i] == 32 and i + 1 < n and classes[codes[i + 1]] != SPACE:
            i += 1
            kind = classes[codes[i]]
        i += 1
        if kind != ALONE:
            while i < n and classes[codes[i]] == kind:
                i += 1
        # The last space of several goes with the word that follows it.
        if kind == SPACE and i < n and i - begin > 1 and codes[i - 1] == 32:
            i -= 1
        value = _start
        for k in range(begin, i):
            value = (value ^ np.uint64(codes[k])) * _multiplier
            value ^= value >> _fold
        hashes[count] = (value * _multiplier) >> _one
        starts[count] = begin
        count += 1
    return count
