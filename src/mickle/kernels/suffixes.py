"""Windows of tokens that occur more than once, found with suffix arrays.

Source: Lee et al., "Deduplicating Training Data Makes Language Models Better", arXiv 2107.06499, section 4.1
(ExactSubstr). Suffixes that begin with the same ``length`` tokens are neighbours in the order of suffixes, so one
walk along the order finds all windows that occur twice. A corpus is sorted in parts; the walk merges the
parts' orders, comparing at most ``length`` tokens, since beyond these only equality matters.

Where the paper and its code only list the windows, each repeated window here learns which occurrence is the first in
reading order. In a group of equal windows every position points to the least one before it in the walk; these
pointers always lead to the left, so one pass from left to right makes all of them point to the group's first. That
is what makes the result independent of parts, threads and ties in the order. The first points to the second.

``repeated_plain`` is the definition of ``repeated``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mickle.errors import UsageError
from mickle.kernels.prefetch import prefetch
from mickle.kernels.suffix_sorting import suffix_array

AHEAD = 16  # entries of the order between asking for a window and reading it
SPLITS = 8  # stretches of the order for each thread, so that all threads end together
SMALL = 1 << 16  # tokens that are not worth a second thread


def repeated_plain(tokens: NDArray[Any], length: int) -> NDArray[np.int64]:
    """``repeated`` by its definition: a table of all windows."""
    places: dict[tuple[int, ...], list[int]] = {}
    values = tokens.tolist()
    for start in range(len(values) - length + 1):
        places.setdefault(tuple(values[start : start + length]), []).append(start)
    result = np.full(len(values), -1, dtype=np.int64)
    for found in places.values():
        if len(found) > 1:
            result[found] = found[0]
            result[found[0]] = found[1]
    return result


def repeated(tokens: NDArray[Any], length: int, threads: int = 1) -> NDArray[np.int64]:
    """Where each window of ``length`` tokens occurs first: int64 [n] for ``tokens`` [n] in memory.

    -1 at a position whose window occurs nowhere else; the position of its first occurrence where it is not that;
    the position of the second occurrence where it is the first. Windows may overlap.
    """
    others = np.zeros(len(tokens), dtype=np.uint32 if len(tokens) < (1 << 32) - 1 else np.uint64)
    order = suffix_array(tokens)
    text = tokens if tokens.dtype in (np.uint8, np.uint64) else tokens.astype(np.uint64)
    link_windows(text, order, np.array([0, len(tokens)]), length, others, threads)
    del order  # the answer takes its place in memory
    found = others.astype(np.int64)
    found -= 1
    return found


def link_windows(
    tokens: NDArray[Any],
    order: NDArray[np.int32],
    parts: NDArray[np.int64],
    length: int,
    others: NDArray[Any],
    threads: int = 1,
) -> None:
    """``repeated`` + 1 into the zeros of ``others`` [n], uint32 or uint64, from suffix arrays of parts.

    Part p is ``tokens[parts[p] : parts[p + 1]]``, its suffix array stands in the same places of ``order`` and
    counts from the part's start. Where there are several parts, each must end with a token that occurs once, so
    that what follows a part can not matter. All arrays may be mapped files.
    """
    if length < 1:
        raise UsageError("a window has at least one token", where="length")
    # A slice of a mapped file costs more than its content.
    tokens, order, others = (np.asarray(array) for array in (tokens, order, others))
    parts = np.asarray(parts, dtype=np.int64)
    cuts = _stretches(tokens, order, parts, length, threads)
    with ThreadPoolExecutor(threads) as pool:
        walks = [pool.submit(_walk, tokens, order, parts, low, high, length, others) for low, high in pairwise(cuts)]
        for walk in walks:
            walk.result()
    _resolve(others)


def _stretches(
    tokens: NDArray[Any], order: NDArray[np.int32], parts: NDArray[np.int64], length: int, threads: int
) -> list[NDArray[np.int64]]:
    """Places in each part's order, such that equal windows of all parts fall between the same two."""
    sizes = np.diff(parts)
    cuts = [parts[:-1].copy()]
    if threads > 1 and len(tokens) >= SMALL:
        largest = int(np.argmax(sizes))
        count = threads * SPLITS
        for i in range(1, count):
            place = parts[largest] + sizes[largest] * i // count
            window = order[place] + parts[largest]
            low = [_lower_bound(tokens, order, start, end, window, length) for start, end in pairwise(parts)]
            cuts.append(np.array(low, dtype=np.int64))
    return [*cuts, parts[1:].copy()]


# -- compiled ----------------------------------------------------------------------------------------------------
# At the top of the module, where numba's cache finds them again: nested ones are compiled in every process.

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")
_inline = numba.njit(inline="always")  # a call would count references to its arrays, which costs more than it does


@_jit
def _less(tokens, a, b, length):  # type: ignore[no-untyped-def]
    """Whether the window at ``a`` comes before that at ``b``; the end of the tokens is less than any."""
    for d in range(min(length, tokens.size - max(a, b))):
        if tokens[a + d] != tokens[b + d]:
            return tokens[a + d] < tokens[b + d]
    return a > b and a + length > tokens.size


@_jit
def _agree(tokens, a, b, length):  # type: ignore[no-untyped-def]
    """Whether two windows are equal. A loop without an exit compares many tokens at a time."""
    one, other = tokens[a : a + length], tokens[b : b + length]
    difference = one[0] ^ other[0]
    for d in range(length):
        difference |= one[d] ^ other[d]
    return difference == 0


@_inline
def _same(tokens, a, b, length):  # type: ignore[no-untyped-def]
    """Whether two windows are whole and equal. Neighbours begin alike: the end tells them apart soonest."""
    end = length - 1
    return max(a, b) + end < tokens.size and tokens[a + end] == tokens[b + end] and _agree(tokens, a, b, length)


@_jit
def _lower_bound(tokens, order, start, end, window, length):  # type: ignore[no-untyped-def]
    """The first place in the order of the part at ``start`` whose window is not less than ``window``."""
    low, high = start, end
    while low < high:
        middle = (low + high) >> 1
        if _less(tokens, start + order[middle], window, length):
            low = middle + 1
        else:
            high = middle
    return low


@_jit
def _sink(tokens, heads, keys, heap, size, top, length):  # type: ignore[no-untyped-def]
    """Restores the heap of parts below ``top``: least window first; ``keys`` are the windows' first tokens."""
    part = heap[top]
    while 2 * top + 1 < size:
        child = 2 * top + 1
        if child + 1 < size:
            left, right = heap[child], heap[child + 1]
            if keys[right] < keys[left] or (
                keys[right] == keys[left] and _less(tokens, heads[right], heads[left], length)
            ):
                child += 1
        other = heap[child]
        if keys[part] < keys[other] or (
            keys[part] == keys[other] and not _less(tokens, heads[other], heads[part], length)
        ):
            break
        heap[top] = other
        top = child
    heap[top] = part


@_inline
def _link(others, before, here, first):  # type: ignore[no-untyped-def]
    """Notes that the windows at ``before`` and ``here`` are equal; the least of the group so far, now."""
    if first < 0:
        first = before
        others[first] = first + 1
    least = min(first, here)
    others[first] = others[here] = least + 1
    return least


@_jit
def _walk(tokens, order, parts, low, high, length, others):  # type: ignore[no-untyped-def]
    """Links equal windows among the places ``low`` to ``high`` of the parts' orders."""
    count = low.size
    place, heads, keys = low.copy(), np.zeros(count, np.int64), np.zeros(count, tokens.dtype)
    heap, size = np.empty(count, np.int64), 0
    for part in range(count):
        if low[part] < high[part]:
            heads[part] = parts[part] + order[low[part]]
            keys[part] = tokens[heads[part]]
            heap[size] = part
            size += 1
    for top in range(size - 1, -1, -1):
        _sink(tokens, heads, keys, heap, size, top, length)
    before, first = np.int64(-1), np.int64(-1)
    while size:
        part = heap[0]
        here = heads[part]
        if before >= 0 and _same(tokens, before, here, length):
            first = _link(others, before, here, first)
        else:
            first = np.int64(-1)
        before = here
        place[part] += 1
        if place[part] < high[part]:
            if place[part] + AHEAD < high[part]:
                ahead = parts[part] + order[place[part] + AHEAD]
                prefetch(tokens, np.int64(ahead + length - 1))
                prefetch(tokens, np.int64(ahead))
                prefetch(others, np.int64(ahead))
            heads[part] = parts[part] + order[place[part]]
            keys[part] = tokens[heads[part]] if count > 1 else keys[part]
        else:
            size -= 1
            heap[0] = heap[size]
        if size > 1:
            _sink(tokens, heads, keys, heap, size, 0, length)


@_jit
def _resolve(others):  # type: ignore[no-untyped-def]
    """Makes every pointer of a group lead to its first, and the first's to its second."""
    for here in range(others.size):
        if others[here] == 0 or others[here] > here:
            continue
        first = np.int64(others[here]) - 1
        beyond = np.int64(others[first]) - 1
        if beyond < first:
            first = beyond
            others[here] = first + 1
        if others[first] == first + 1:
            others[first] = here + 1
