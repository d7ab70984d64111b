"""Windows of tokens that occur more than once, found with a table of hashes, and the spans of tokens that they cover.

A hash that rolls along the tokens gives every window of ``length`` tokens a place in an open table, which holds the
position of the first window that came there, in reading order. Windows with the same hash are compared token by token,
so the hash decides nothing but the time. What the table knows of a window fits into 8 bytes, and only windows whose
hash falls into one of ``parts`` equal ranges are entered: the tokens are read once for each part, and a part's table
has the size of a part. Places in the table are asked for ahead of time; without that each window would wait for memory.

``repeated_plain`` is the definition of ``repeated``, ``spans_plain`` that of ``spans``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mickle.errors import UsageError
from mickle.kernels.compiled import compiled, inlined, mixed

AHEAD = 16  # windows between asking for a place in the table and reading it; a power of two
SPARE = 1.5  # places in the table for each window of a part
LEAST = 1024  # places in a table, so that chance cannot fill a small one
SEPARATOR = np.uint64(1 << 63)  # tokens from here on belong to no window
POSITION = np.uint64((1 << 40) - 1)  # an entry's low bits: the position + 1; above them 24 bits of the hash


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


def repeated(tokens: NDArray[Any], length: int) -> NDArray[np.int64]:
    """Where each window of ``length`` tokens occurs first: int64 [n] for ``tokens`` [n] in memory.

    -1 at a position whose window occurs nowhere else; the position of its first occurrence where it is not that;
    the position of the second occurrence where it is the first. Windows may overlap.
    """
    others = np.zeros(len(tokens), dtype=link_type(len(tokens)))
    link_windows(tokens, length, others)
    found = others.astype(np.int64)
    found -= 1
    return found


def link_type(count: int) -> type[np.uint32] | type[np.uint64]:
    """The type of links among so many tokens."""
    return np.uint32 if count < (1 << 32) - 1 else np.uint64


def link_windows(
    tokens: NDArray[Any], length: int, others: NDArray[Any], part: int = 0, parts: int = 1, seed: int = 1
) -> None:
    """``repeated`` + 1 into the zeros of ``others`` [n], uint32 or uint64, for the windows of one part of ``parts``.

    tokens: whole numbers below 2^40 of them, mapped or not. Those of 2^63 or more separate: no window holds one.
    Parts may be worked on side by side, in any order and again; ``seed`` must be the same for all. 12 bytes of memory
    for each window of the part.
    """
    if length < 1:
        raise UsageError("a window has at least one token", where="length")
    # A slice of a mapped file costs more than its content.
    tokens, others = np.asarray(tokens), np.asarray(others)
    base = (seed << 3 | 5) & ((1 << 64) - 1)  # 5 modulo 8: its powers have the longest period there is
    size = LEAST + int(SPARE * len(tokens) / parts)
    numbers = np.array([base, pow(base, length, 1 << 64), part, parts], dtype=np.uint64)
    while not _link(tokens, length, numbers, np.zeros(size, dtype=np.uint64), others):
        size *= 2


def spans_plain(
    others: Sequence[int] | NDArray[Any], start: int, end: int, length: int, keep_first: bool
) -> list[tuple[int, int, int]]:
    """``spans`` by its definition: a token at a time."""
    covered: dict[int, int] = {}
    for window in range(start, end):
        other = int(others[window]) - 1
        if other < 0 or (keep_first and other > window):
            continue
        for token in range(max(window, other + length) if keep_first else window, window + length):
            covered.setdefault(token, other)
    found: list[tuple[int, int, int]] = []
    for token in sorted(covered):
        if found and found[-1][1] == token:
            found[-1] = (found[-1][0], token + 1, found[-1][2])
        else:
            found.append((token, token + 1, covered[token]))
    return found


def spans(others: NDArray[Any], start: int, end: int, length: int, keep_first: bool) -> NDArray[np.int64]:
    """Tokens to cut from the document ``tokens[start:end]``: int64 [spans, 3] of first token, end, other place.

    All tokens of repeated windows, in spans that neither overlap nor touch. With ``keep_first`` those of every
    occurrence but the first, save what the first overlaps: at least one token of each occurrence goes, and the first
    stays but for what belongs to a later occurrence of another window. The third number is where the window
    occurs that the span's first token belongs to: its first occurrence, or the second where it is the first.
    """
    found: NDArray[np.int64] = _spans(np.asarray(others), start, end, length, keep_first)
    return found


# -- compiled ----------------------------------------------------------------------------------------------------


@intrinsic
def prefetch(_context: Any, array: Any, index: Any) -> Any:
    """``prefetch(array, index)`` for compiled code: asks for the cache line of ``array[index]``. It changes
    nothing, and an index outside does no harm.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        place = builder.bitcast(builder.gep(view.data, [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, [place, number(0), number(3), number(1)])  # read, keep, data
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@inlined
def _share(high, size):  # type: ignore[no-untyped-def]
    """Which of ``size`` equal ranges a 32-bit number falls into."""
    return (high * np.uint64(size)) >> np.uint64(32)


@compiled
def _agree(tokens, a, b, length):  # type: ignore[no-untyped-def]
    """Whether two windows are equal. A loop without an exit compares many tokens at a time."""
    one, other = tokens[a : a + length], tokens[b : b + length]
    difference = one[0] ^ other[0]
    for d in range(length):
        difference |= one[d] ^ other[d]
    return difference == 0


@compiled
def _enter(tokens, length, here, key, table, others):  # type: ignore[no-untyped-def]
    """Enters the window at ``here``, or links it to the equal one that is there. 1 if it is new, else 0."""
    mark = (key & np.uint64(0xFFFFFF)) << np.uint64(40)
    slot = np.int64(_share(key >> np.uint64(32), table.size))
    while table[slot]:
        entry = table[slot]
        if entry & ~POSITION == mark:
            first = np.int64(entry & POSITION) - 1
            if _agree(tokens, first, here, length):
                others[here] = first + 1
                if others[first] == 0:
                    others[first] = here + 1
                return 0
        slot += 1
        if slot == table.size:
            slot = np.int64(0)
    table[slot] = mark | np.uint64(here + 1)
    return 1


@compiled
def _link(tokens, length, numbers, table, others):  # type: ignore[no-untyped-def]
    """Enters all windows of the part. False if the table is too small."""
    base, leaving, part, parts = numbers[0], numbers[1], numbers[2], numbers[3]
    places, keys = np.empty(AHEAD, np.int64), np.empty(AHEAD, np.uint64)
    most = table.size - table.size // 8
    used, count, run, rolling = 0, 0, 0, np.uint64(0)
    for end in range(tokens.size):
        token = np.uint64(tokens[end])
        if token >= SEPARATOR:
            run, rolling = 0, np.uint64(0)
            continue
        rolling = rolling * base + mixed(token + np.uint64(1))
        run += 1
        if run > length:
            rolling -= mixed(np.uint64(tokens[end - length]) + np.uint64(1)) * leaving
        if run < length:
            continue
        key = mixed(rolling)
        if _share(key & np.uint64(0xFFFFFFFF), parts) != part:
            continue
        turn = count & (AHEAD - 1)
        if count >= AHEAD:
            used += _enter(tokens, length, places[turn], keys[turn], table, others)
            if used > most:
                return False
        places[turn], keys[turn] = end - length + 1, key
        prefetch(table, np.int64(_share(key >> np.uint64(32), table.size)))
        count += 1
    for late in range(max(0, count - AHEAD), count):
        turn = late & (AHEAD - 1)
        used += _enter(tokens, length, places[turn], keys[turn], table, others)
    return True


@compiled
def _spans(others, start, end, length, keep_first):  # type: ignore[no-untyped-def]
    found, count = np.empty((4, 3), np.int64), 0
    for window in range(start, end):
        if others[window] == 0:
            continue
        other = np.int64(others[window]) - 1
        if keep_first and other > window:
            continue
        first = max(window, other + length) if keep_first else window
        # A span that the first occurrence shortened may begin right of where a later one does.
        while count and found[count - 1, 1] >= first:
            count -= 1
            if found[count, 0] <= first:
                first, other = found[count, 0], found[count, 2]
        if count == len(found):
            grown = np.empty((2 * count, 3), np.int64)
            grown[:count] = found
            found = grown
        found[count] = (first, window + length, other)
        count += 1
    return found[:count].copy()
