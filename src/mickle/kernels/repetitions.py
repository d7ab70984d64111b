"""How much of a text is n-grams of words said before: what the repetition rules of MassiveText count.

Source: "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", arXiv 2112.11446, section
A.1.1. For a list of words and n:

- *most frequent n-gram*: characters of the commonest n-gram, joined with a gap (a space), times its count; of several
  equally common the one that comes first; 0 where the text has fewer than n words. A count of 1 counts too.
- *repeated n-grams*: characters, without spaces, in n-grams that stood earlier in the text. ``greedy`` goes through
  the text once and jumps over each n-gram that it has met before; an n-gram that begins inside such a jump is never
  looked at. ``mask`` takes every n-gram that begins earlier too, and counts a word under several of them once. The
  paper leaves open which of the two it means.

Two n-grams are the same where their joined characters are: without spaces, "can not" is "cannot".

``most_frequent_plain`` and ``repeated_plain`` are the definition. The fast versions hash every n-gram in a few
operations, from prefix sums of the characters' codes times powers of an odd number modulo 2^64, and compare
characters where hashes agree, so that they are exact. Time and memory are linear in the number of characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mickle.kernels.compiled import compiled

_BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse modulo 2^64
_MIX = 0xD6E8FEB86659FD93  # spreads a hash over the low bits, which choose the place in the table


def most_frequent_plain(words: Sequence[str], n: int, gap: str = " ") -> int:
    """Characters in the most frequent ``n``-gram times its count."""
    grams = Counter(gap.join(words[i : i + n]) for i in range(len(words) - n + 1))
    if not grams:
        return 0
    gram = max(grams, key=grams.__getitem__)
    return len(gram) * grams[gram]


def repeated_plain(words: Sequence[str], n: int, overlap: str) -> int:
    """Characters in ``n``-grams that stood earlier, by ``overlap`` "greedy" or "mask"."""
    earlier: set[str] = set()
    repeated, counted = 0, 0  # words before ``counted`` are in the sum, if they are to be
    for i in range(len(words) - n + 1):
        if overlap == "greedy" and i < counted:
            continue
        gram = "".join(words[i : i + n])
        if gram in earlier:
            repeated += sum(map(len, words[max(i, counted) : i + n]))
            counted = i + n
        earlier.add(gram)
    return repeated


class Joined(NamedTuple):
    """Words written one after the other, ``gap`` characters between them: the characters' codes, where in them each
    word begins and the last ends, and the hash sums that the compiled functions go by.
    """

    gap: int
    codes: np.ndarray  # uint32, [characters]
    starts: np.ndarray  # int64, [words + 1]
    sums: np.ndarray  # uint64, [words + 1]
    inverses: np.ndarray  # uint64, [words + 1]


def join(words: Sequence[str], gap: str = "") -> Joined:
    """``words`` with ``gap`` behind each: a space, or nothing where the text has none; nothing for :func:`repeated`."""
    text = gap.join(words) + gap if words else ""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    starts = np.zeros(len(words) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, words), np.int64, len(words)) + len(gap), out=starts[1:])
    return Joined(len(gap), codes, starts, *_prefixes(codes, starts))


def most_frequent(joined: Joined, n: int) -> int:
    """:func:`most_frequent_plain`, of words joined with its gap."""
    return int(_most_frequent(*joined, n))


def repeated(joined: Joined, n: int, overlap: str) -> int:
    """:func:`repeated_plain`, of words joined with nothing."""
    return int(_repeated(*joined[1:], n, overlap == "greedy"))


# -- compiled: unsigned 64-bit sums wrap around, as they are meant to --------------------------------------------------

_base, _inverse_base = np.uint64(_BASE), np.uint64(pow(_BASE, -1, 1 << 64))
_mix, _one, _half = np.uint64(_MIX), np.uint64(1), np.uint64(32)


@compiled
def _prefixes(codes, starts):  # type: ignore[no-untyped-def]
    sums, inverses = np.zeros(starts.size, np.uint64), np.ones(starts.size, np.uint64)
    total, power, inverse = np.uint64(0), _one, _one
    for word in range(starts.size - 1):
        for i in range(starts[word], starts[word + 1]):
            total += (np.uint64(codes[i]) + _one) * power
            power *= _base
            inverse *= _inverse_base
        sums[word + 1], inverses[word + 1] = total, inverse
    return sums, inverses


@compiled
def _hashes(sums, inverses, n):  # type: ignore[no-untyped-def]
    keys = np.empty(max(0, sums.size - n), np.uint64)
    for i in range(keys.size):
        key = (sums[i + n] - sums[i]) * inverses[i] * _mix
        keys[i] = key ^ (key >> _half)
    return keys


@compiled
def _empty_table(grams):  # type: ignore[no-untyped-def]
    size = 16
    while size < 2 * grams:
        size *= 2
    return np.zeros(size, np.int64)


@compiled
def _earlier(table, keys, codes, starts, i, n):  # type: ignore[no-untyped-def]
    """Where the n-gram at word i was entered before; -1, and it is entered, where it was not."""
    last = np.uint64(table.size - 1)
    slot = keys[i] & last
    length = starts[i + n] - starts[i]
    while table[slot] > 0:
        other = table[slot] - 1
        if keys[other] == keys[i] and starts[other + n] - starts[other] == length:
            k = 0
            while k < length and codes[starts[other] + k] == codes[starts[i] + k]:
                k += 1
            if k == length:
                return other
        slot = (slot + _one) & last
    table[slot] = i + 1
    return -1


@compiled
def _most_frequent(gap, codes, starts, sums, inverses, n):  # type: ignore[no-untyped-def]
    keys = _hashes(sums, inverses, n)
    table, counts = _empty_table(keys.size), np.zeros(keys.size, np.int64)
    for i in range(keys.size):
        first = _earlier(table, keys, codes, starts, i, n)
        counts[i if first < 0 else first] += 1
    best, most = 0, 0
    for i in range(keys.size):
        if counts[i] > most:
            best, most = i, counts[i]
    return most * (starts[best + n] - starts[best] - gap) if keys.size > 0 else 0


@compiled
def _repeated(codes, starts, sums, inverses, n, greedy):  # type: ignore[no-untyped-def]
    keys = _hashes(sums, inverses, n)
    table = _empty_table(keys.size)
    total, counted = 0, 0
    for i in range(keys.size):
        if greedy and i < counted:
            continue
        if _earlier(table, keys, codes, starts, i, n) >= 0:
            total += starts[i + n] - starts[max(i, counted)]
            counted = i + n
    return total
