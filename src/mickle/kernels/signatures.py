"""MinHash signatures of texts: normalised words, hashes of word n-grams, minima of many hash functions, bands.

On the resemblance and containment of documents (Broder 1997); the numbers that RefinedWeb (arXiv 2306.01116,
appendix G.3) gives them are settings of :mod:`mickle.data.rules`.

1. Text: lower case with one sigma, NFD, and each character is one of four things (:func:`kind_of`): part of a word,
   dropped (punctuation, accents, what is not seen), a space, or, in scripts without spaces, a word by itself.
2. Word: 64-bit FNV-1a of its UTF-8 bytes, mixed (:func:`mixed_plain`). Shingle of n words w: mixed(sum w_j M^(n-1-j)),
   M odd, modulo 2^64: rolls from word to word. A text of fewer words has one shingle, made of all of them and
   their number, so it resembles only itself; a text without words has none.
3. Function i: h_i(x) = a_i x + b_i modulo 2^32, a_i odd, x the high 32 bits of a shingle; the minimum over all of them.
4. Band: ``rows`` minima folded as the words of a shingle are. 0 stands for a text without words, no band hashes to it.

h_i is multiply-shift (Dietzfelbinger et al. 1997): a permutation whose high bits, which decide a minimum, are universal
up to a factor of 2. No such family is min-wise independent for every set; what carries the estimate is that shingles
arrive mixed, so that sets look random to a linear function. The tests hold mean, variance and band hits to the formulas
of ideal functions. Of n shingles some n^2 / 2^33 share their high bits with another: 1 in a text of 100,000 words.
Parameters are independent draws, those of function i the same whatever k. A known seed can be written against.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from mickle.kernels.compiled import MASK, compiled, mixed, mixed_plain
from mickle.kernels.scripts import UNSPACED

Hashes = NDArray[np.uint64]
Minima = NDArray[np.uint32]

PART, DROPPED, SPACE, ALONE = range(4)
EMPTY = 0  # the band hash of a text without words
_GREATEST = (1 << 32) - 1
_BASIS, _PRIME = 0xCBF29CE484222325, 0x100000001B3  # FNV-1a, 64 bits
_FOLD = 0x9E3779B97F4A7C15  # M above: 2^64 divided by the golden ratio, odd
_SHORT = 0xD6E8FEB86659FD93  # times the number of words, added where they are too few for a shingle
_BLOCK = 1024  # shingles at a time: 4 KiB stay in the first cache while all functions pass over them
_SEEN = 4096  # places of the table of shingles seen last, 32 KiB
_UNSPACED = re.compile(f"[{UNSPACED}]")


# -- the definition --------------------------------------------------------------------------------------------------


def kind_of(code: int) -> int:
    """What a character does in a text: PART of a word, DROPPED, SPACE or a word ALONE.

    Dropped are punctuation (Unicode P and the ASCII signs), accents (Mn), control and format characters and halves of
    pairs (Cc, Cf, Cs). Characters newer than Python's Unicode tables are part of words.
    """
    character = chr(code)
    if character.isspace():
        return SPACE
    category = unicodedata.category(character)
    if category[0] == "P" or category in ("Mn", "Cc", "Cf", "Cs") or character in string.punctuation:
        return DROPPED
    return ALONE if category == "Lo" and _UNSPACED.match(character) else PART


def normalise(text: str) -> str:
    """Words of a text with single spaces between them, as they are hashed."""
    shown = {PART: "{}", DROPPED: "", SPACE: " ", ALONE: " {} "}
    characters = unicodedata.normalize("NFD", text.lower()).replace("ς", "σ")
    return " ".join("".join(shown[kind_of(ord(c))].format(c) for c in characters).split())


def folded(values: Sequence[int]) -> int:
    """sum of values_j M^(n-1-j) modulo 2^64."""
    result = 0
    for value in values:
        result = (result * _FOLD + value) & MASK
    return result


def shingles_plain(text: str, shingle: int) -> Hashes:
    """Hashes of all runs of ``shingle`` words, in order and with repeats."""
    words = []
    for word in normalise(text).split():
        value = _BASIS
        for byte in word.encode():
            value = (value ^ byte) * _PRIME & MASK
        words.append(mixed_plain(value))
    if 0 < len(words) < shingle:
        return np.array([mixed_plain((folded(words) + _SHORT * len(words)) & MASK)], np.uint64)
    runs = (words[first : first + shingle] for first in range(len(words) - shingle + 1))
    return np.array([mixed_plain(folded(run)) for run in runs], np.uint64)


@cache
def functions(seed: int, count: int) -> tuple[Minima, Minima]:
    """a, made odd, and b of ``count`` functions: high halves of SplitMix64's sequence from the mixed seed, in turn."""
    first = mixed_plain((seed + _FOLD) & MASK)
    drawn = [mixed_plain((first + _FOLD * number) & MASK) >> 32 for number in range(1, 2 * count + 1)]
    return np.array(drawn[::2], np.uint32) | np.uint32(1), np.array(drawn[1::2], np.uint32)


def minima_plain(shingles: Hashes, a: Minima, b: Minima) -> Minima:
    """Minimum of each function over the shingles [n], n >= 1: uint32 [k]."""
    high = (shingles >> np.uint64(32)).astype(np.uint32)
    return (a[:, None] * high[None, :] + b[:, None]).min(axis=1)


def bands_plain(minima: Minima, rows: int) -> Hashes:
    """One hash for each ``rows`` minima: uint64 [k / rows], none EMPTY."""
    bands = [mixed_plain(folded([int(value) for value in band])) for band in minima.reshape(-1, rows)]
    return np.array([max(band, 1) for band in bands], np.uint64)


def signatures_plain(texts: Sequence[str], shingle: int, bands: int, rows: int, seed: int) -> Hashes:
    """Band hashes of texts: uint64 [N, bands]; a row of EMPTY for a text without words."""
    a, b = functions(seed, bands * rows)
    result = np.full((len(texts), bands), EMPTY, np.uint64)
    for row, text in zip(result, texts):
        found = shingles_plain(text, shingle)
        if found.size:
            row[:] = bands_plain(minima_plain(found, a, b), rows)
    return result


# -- the same, compiled ----------------------------------------------------------------------------------------------


def shingles(text: str, shingle: int) -> Hashes:
    """``shingles_plain`` at some hundred megabytes a second."""
    data, _ = _joined([text])
    return _shingles_of(data, *_tables(), shingle)


def minima(shingles: Hashes, a: Minima, b: Minima) -> Minima:
    """``minima_plain``, a block of shingles at a time; the greatest integer for no shingles."""
    result = np.full(a.size, _GREATEST, np.uint32)
    for first in range(0, shingles.size, _BLOCK):
        _lower(shingles[first : first + _BLOCK], a, b, result)
    return result


def signatures(texts: Sequence[str], shingle: int, bands: int, rows: int, seed: int) -> Hashes:
    """``signatures_plain``: bytes to band hashes in one compiled pass that holds no lock of the interpreter."""
    a, b = functions(seed, bands * rows)
    result = np.full((len(texts), bands), EMPTY, np.uint64)
    data, ends = _joined(texts)
    _bands_of(data, ends, *_tables(), shingle, a, b, result)
    return result


def _joined(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Texts as bytes, a space after each, and where each ends. Only lines that are not ASCII are normalised here."""
    encoded = [text.encode() if text.isascii() else _decomposed(text) for text in texts]
    ends = np.cumsum([len(one) + 1 for one in encoded], dtype=np.int64)
    return np.frombuffer(b" ".join([*encoded, b""]), np.uint8), ends


def _decomposed(text: str) -> bytes:
    """Lower case and NFD where it matters: one foreign name must not cost a long page. Neither looks beyond a line."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not line.isascii():
            lines[number] = unicodedata.normalize("NFD", line.lower()).replace("ς", "σ")
    return "\n".join(lines).encode("utf-8", "replace")


@cache
def _tables() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """For ASCII the byte to hash, or DROPPED or SPACE (both below any letter); for all characters their kind."""
    kinds = np.array([kind_of(code) for code in range(0x110000)], np.uint8)
    letters = [ord(chr(code).lower()) if kinds[code] == PART else kinds[code] for code in range(128)]
    return np.array(letters, np.uint8), kinds


# -- compiled ----------------------------------------------------------------------------------------------------
# The loop over a block's shingles must stay as plain as it is: the compiler makes vectors of 32-bit multiply, add and
# minimum of it, with the function's two numbers in registers.

_u, _half = np.uint64, np.uint32
_basis, _prime, _fold, _short = _u(_BASIS), _u(_PRIME), _u(_FOLD), _u(_SHORT)


@compiled
def _character(data, position):  # type: ignore[no-untyped-def]
    """Code and number of bytes of one that is not ASCII."""
    lead = np.int64(data[position])
    width = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    code = lead & (0x7F >> width)
    for step in range(1, width):
        code = code << 6 | (np.int64(data[position + step]) & 0x3F)
    return code, width


@compiled
def _fill(data, stop, letters, kinds, last, words, out):  # type: ignore[no-untyped-def]
    """Shingles from where ``words`` (position, number of words, fold) says, until the text ends or ``out`` is
    full; how many. ``last`` is the ring of the last words' hashes.
    """
    position, number, gram = np.int64(words[0]), np.int64(words[1]), words[2]
    shingle, count = np.int64(last.size), 0
    top = _u(1)  # the _fold's factor of the word that leaves, after the step
    for _ in range(shingle):
        top *= _fold
    word, begun = _basis, False
    while position < stop and count < out.size:
        byte = data[position]
        letter = letters[byte & 127]
        if byte < 128 and letter > SPACE:
            word, begun = (word ^ _u(letter)) * _prime, True
            position += 1
            continue
        code, width = (np.int64(byte), np.int64(1)) if byte < 128 else _character(data, position)
        kind = kinds[code]
        if kind != ALONE or not begun:  # else it ends the word before it first
            if kind in (PART, ALONE):
                for step in range(width):
                    word = (word ^ _u(data[position + step])) * _prime
                begun = True
            position += width
            if kind in (PART, DROPPED) or not begun:
                continue
        hashed, slot = mixed(word), number % shingle
        gram = gram * _fold + hashed - last[slot] * top
        last[slot] = hashed
        number += 1
        word, begun = _basis, False
        if number >= shingle:
            out[count] = mixed(gram)
            count += 1
    if position == stop and 0 < number < shingle:
        out[0] = mixed(gram + _short * _u(number))
        count = 1
    words[0], words[1], words[2] = _u(position), _u(number), gram
    return count


@compiled
def _lower(shingles, a, b, minima):  # type: ignore[no-untyped-def]
    high = (shingles >> _u(32)).astype(_half)
    for function in range(a.size):
        factor, term, least = a[function], b[function], minima[function]
        for index in range(high.size):
            least = min(least, _half(factor * high[index] + term))
        minima[function] = least


@compiled
def _fresh(shingles, seen):  # type: ignore[no-untyped-def]
    """Moves those to the front that ``seen``, a table that forgets, does not hold: repeats change no minimum."""
    count = 0
    for shingle in shingles:
        place = shingle & _u(_SEEN - 1)
        if seen[place] != shingle:
            seen[place] = shingles[count] = shingle
            count += 1
    return count


@compiled
def _shingles_of(data, letters, kinds, shingle):  # type: ignore[no-untyped-def]
    out = np.empty(data.size // 2 + 1, _u)  # a word has a letter and a space
    last, words = np.zeros(shingle, _u), np.zeros(3, _u)
    return out[: _fill(data, data.size, letters, kinds, last, words, out)].copy()


@compiled
def _bands_of(data, ends, letters, kinds, shingle, a, b, result):  # type: ignore[no-untyped-def]
    rows = a.size // result.shape[1]
    block, minima = np.empty(_BLOCK, _u), np.empty(a.size, _half)
    last, words, seen = np.empty(shingle, _u), np.empty(3, _u), np.empty(_SEEN, _u)
    for text in range(ends.size):
        minima[:] = _half(_GREATEST)
        for zeroed in (last, words, seen):  # a shingle that hashes to 0 is lost, one in 2^64
            zeroed[:] = _u(0)
        words[0] = _u(ends[text - 1]) if text else _u(0)
        found = 0
        while words[0] < _u(ends[text]):
            count = _fill(data, ends[text], letters, kinds, last, words, block)
            _lower(block[: _fresh(block[:count], seen)], a, b, minima)
            found += count
        for band in range(result.shape[1] if found else 0):
            hashed = _u(0)
            for row in range(band * rows, (band + 1) * rows):
                hashed = hashed * _fold + _u(minima[row])
            result[text, band] = max(mixed(hashed), _u(1))
