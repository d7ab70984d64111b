"""Suffix arrays in linear time, by induced sorting.

Source: Nong, Zhang and Chan, "Linear Suffix Array Construction by Almost Pure Induced-Sorting" (Data Compression
Conference 2009). A suffix *falls* where it is greater than its right neighbour and *rises* where it is smaller; a
*valley* is a rising suffix after a falling one (the paper's LMS). Once the valleys are in order, one pass to the
right puts every falling suffix at the front of its token's bucket and one pass to the left every rising one at the
back. The valleys are ordered by the same two passes, which sort the stretches from valley to valley; each gets its
rank as a name, and where two names agree the sequence of names, at most half as long, is sorted first, the same
way. The end of the sequence is less than any token.

``suffix_array_plain`` is the definition. ``suffix_array`` works in the answer's own memory: 4 bytes a token for it,
1 or 4 for the tokens, and 8 for each different token or name. An entry of the answer that a later pass must
handle waits as its complement, which is negative. The passes read memory in the order of the suffixes, so
what is needed some steps later is asked for ahead of time; that more than doubles the speed.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mickle.errors import UsageError
from mickle.kernels.prefetch import prefetch
from mickle.kernels.ranks import ranks

AHEAD = 32  # steps between asking for a cache line and using it
LONGEST = (1 << 31) - 1  # tokens that 32 bits can number


def suffix_array_plain(tokens: NDArray[Any]) -> NDArray[np.int32]:
    """``suffix_array`` by its definition: positions sorted by what follows. Quadratic memory."""
    values = tokens.tolist()
    return np.array(sorted(range(len(values)), key=lambda start: values[start:]), dtype=np.int32)


def suffix_array(tokens: NDArray[Any], alphabet: int | None = None) -> NDArray[np.int32]:
    """Start positions of all suffixes of ``tokens`` [n] in ascending order, int32 [n].

    ``tokens`` are whole numbers. Bytes, and int32 ranks below ``alphabet`` <= n where it is given (see ``ranks``),
    are used as they are; all others are ranked first. :class:`UsageError` for 2^31 tokens or more.
    """
    _check(tokens)
    if tokens.dtype == np.uint8:
        text, alphabet = np.require(tokens, requirements=["C", "W"]), 256
    elif alphabet is not None and tokens.dtype == np.int32:
        text = np.require(tokens, requirements=["C", "W"])
    else:
        text, alphabet = ranks(tokens)
    order = np.zeros(len(text), dtype=np.int32)
    if len(text):
        _sort(text, order, alphabet)
    return order


def _check(tokens: NDArray[Any]) -> None:
    if tokens.ndim != 1 or tokens.dtype.kind not in "ui":
        raise UsageError("a suffix array is made of one sequence of whole numbers")
    if tokens.dtype.kind == "i" and len(tokens) and tokens.min() < 0:
        raise UsageError("tokens must not be negative")
    if len(tokens) > LONGEST:
        raise UsageError(
            f"{len(tokens)} tokens are too many for one suffix array",
            expected=f"at most {LONGEST}",
            todo="sort smaller parts and merge them",
        )


def _sort(text: NDArray[Any], order: NDArray[np.int32], alphabet: int) -> None:
    """Fills ``order``; calls itself at most log2 n deep, on names that lie in the unused end of ``order``."""
    n = len(text)
    counts, bucket = np.zeros(alphabet, dtype=np.int32), np.empty(alphabet, dtype=np.int32)
    valleys = _place_valleys(text, order, counts, bucket)
    if valleys == 1:
        order[0] = order.max()
    elif valleys:
        _sort_valleys(text, order, counts, bucket)
        names = _name_valleys(text, order, valleys)
        if names < valleys:
            _sort(order[n - valleys :], order[:valleys], names)
            _positions_of_valleys(text, order, valleys)
    _induce(text, order, valleys, counts, bucket)


# -- compiled ----------------------------------------------------------------------------------------------------
# At the top of the module, where numba's cache finds them again: nested ones are compiled in every process.

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def _fronts(counts, bucket):  # type: ignore[no-untyped-def]
    total = np.int32(0)
    for token in range(counts.size):
        bucket[token] = total
        total += counts[token]


@_jit
def _backs(counts, bucket):  # type: ignore[no-untyped-def]
    total = np.int32(0)
    for token in range(counts.size):
        total += counts[token]
        bucket[token] = total


@_jit
def _valley_before(text, i):  # type: ignore[no-untyped-def]
    """The last valley left of ``i``, itself a valley or the end of the text; 0, which is none, if there is none."""
    rising = False  # a valley's left neighbour falls, and so does the last suffix
    for k in range(i - 1, 0, -1):
        if text[k - 1] < text[k]:
            rising = True
        elif rising and text[k - 1] > text[k]:
            return k
    return 0


@_jit
def _place_valleys(text, order, counts, bucket):  # type: ignore[no-untyped-def]
    """Counts the tokens; writes the valleys at the backs of their buckets, rest 0. How many there are."""
    for token in text:
        counts[token] += 1
    _backs(counts, bucket)
    order[:] = 0
    found, i = 0, _valley_before(text, text.size)
    while i > 0:
        slot = bucket[text[i]] - 1
        bucket[text[i]] = slot
        order[slot] = i
        found += 1
        i = _valley_before(text, i)
    return found


@_jit
def _sort_valleys(text, order, counts, bucket):  # type: ignore[no-untyped-def]
    """From the valleys in any order to those sorted by their stretches, as complements among zeros."""
    n = text.size
    _fronts(counts, bucket)
    token = text[n - 1]
    order[bucket[token]] = n - 1 if text[n - 2] >= token else ~(n - 1)
    bucket[token] += 1
    for i in range(n):
        ahead = i + 2 * AHEAD
        if ahead < n:
            prefetch(text, np.int64(order[ahead]) - 1)
            near = order[i + AHEAD]
            if near > 0:
                prefetch(order, np.int64(bucket[text[near - 1]]))
        j = order[i]
        if j > 0:  # the suffix to the left falls; entry by its own left neighbour: falling goes on, rising waits
            order[i] = 0
            j -= np.int32(1)
            token = text[j]
            slot = bucket[token]
            bucket[token] = slot + 1
            order[slot] = ~j if j > 0 and text[j - 1] < token else j
        elif j < 0:
            order[i] = ~j
    _backs(counts, bucket)
    for i in range(n - 1, -1, -1):
        ahead = i - 2 * AHEAD
        if ahead >= 0:
            prefetch(text, np.int64(order[ahead]) - 1)
            near = order[i - AHEAD]
            if near > 0:
                prefetch(order, np.int64(bucket[text[near - 1]]) - 1)
        j = order[i]
        if j > 0:
            order[i] = 0
            j -= np.int32(1)
            if j > 0:
                token = text[j]
                slot = bucket[token] - 1
                bucket[token] = slot
                order[slot] = ~j if text[j - 1] > token else j  # a valley, or a slope to go on with


@_jit
def _name_valleys(text, order, valleys):  # type: ignore[no-untyped-def]
    """Moves the sorted valleys to the front and names their stretches by rank. How many names there are; if
    some agree, the names in text order lie at the end of ``order``.
    """
    n = text.size
    found = 0
    for i in range(n):
        if order[i] < 0:
            order[found] = ~order[i]
            found += 1
    order[valleys:] = 0
    # Valleys are two or more apart, so half the position is a place of its own: first for the stretch's size.
    i, right = _valley_before(text, n), 0
    while i > 0:
        order[valleys + (i >> 1)] = right - i + 1 if right else 0  # the last one, up to the end, equals no other
        i, right = _valley_before(text, i), i
    names, before, size_before = 0, 0, -1
    for place in range(valleys):
        if place + AHEAD < valleys:
            prefetch(text, np.int64(order[place + AHEAD]))
            prefetch(order, np.int64(valleys + (order[place + AHEAD] >> 1)))
        i = order[place]
        size = order[valleys + (i >> 1)]
        same = size == size_before and size > 0
        for d in range(size if same else 0):
            if text[i + d] != text[before + d]:
                same = False
                break
        names += not same
        before, size_before = i, size
        order[valleys + (i >> 1)] = names
    if names < valleys:
        slot = n - 1
        for place in range(n - 1, valleys - 1, -1):
            if order[place] > 0:
                order[slot] = order[place] - 1
                slot -= 1
    return names


@_jit
def _positions_of_valleys(text, order, valleys):  # type: ignore[no-untyped-def]
    """From the sorted places in the sequence of names to the valleys' positions."""
    i, slot = _valley_before(text, text.size), text.size - 1
    while i > 0:
        order[slot] = i
        slot -= 1
        i = _valley_before(text, i)
    for place in range(valleys):
        order[place] = order[text.size - valleys + order[place]]


@_jit
def _induce(text, order, valleys, counts, bucket):  # type: ignore[no-untyped-def]
    """From the sorted valleys at the front of ``order`` to all suffixes in order."""
    n = text.size
    order[valleys:] = 0
    _backs(counts, bucket)
    for i in range(valleys - 1, -1, -1):
        j = order[i]
        order[i] = 0
        slot = bucket[text[j]] - 1
        bucket[text[j]] = slot
        order[slot] = j
    _fronts(counts, bucket)
    token = text[n - 1]
    order[bucket[token]] = ~(n - 1) if n > 1 and text[n - 2] < token else n - 1
    bucket[token] += 1
    for i in range(n):
        ahead = i + 2 * AHEAD
        if ahead < n:
            prefetch(text, np.int64(order[ahead]) - 1)
            near = order[i + AHEAD]
            if near > 0:
                prefetch(order, np.int64(bucket[text[near - 1]]))
        j = order[i]
        order[i] = ~j
        if j > 0:
            j -= np.int32(1)
            token = text[j]
            slot = bucket[token]
            bucket[token] = slot + 1
            order[slot] = ~j if j > 0 and text[j - 1] < token else j
    _backs(counts, bucket)
    for i in range(n - 1, -1, -1):
        ahead = i - 2 * AHEAD
        if ahead >= 0:
            prefetch(text, np.int64(order[ahead]) - 1)
            near = order[i - AHEAD]
            if near > 0:
                prefetch(order, np.int64(bucket[text[near - 1]]) - 1)
        j = order[i]
        if j > 0:
            j -= np.int32(1)
            token = text[j]
            slot = bucket[token] - 1
            bucket[token] = slot
            order[slot] = ~j if j == 0 or text[j - 1] > token else j
        else:
            order[i] = ~j
