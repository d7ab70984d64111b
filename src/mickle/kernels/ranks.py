"""Dense ranks of 64-bit values: what bounds an alphabet by the length of its text.

``ranks_plain`` is the definition; ``ranks`` is linear but for sorting the distinct values.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def ranks_plain(values: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """``ranks`` by sorting: 32 bytes a value of working memory."""
    distinct, inverse = np.unique(values, return_inverse=True)
    return inverse.reshape(-1).astype(np.int32), len(distinct)


def ranks(values: NDArray[np.uint64]) -> tuple[NDArray[np.int32], int]:
    """Each value's place among the distinct values in ascending order, and how many these are.

    One pass with a hash table: 4 bytes a value for the answer, and some 40 for each distinct one.
    """
    numbers = np.empty(len(values), dtype=np.int32)
    distinct = _number(np.ascontiguousarray(values, dtype=np.uint64), numbers)
    order = np.argsort(distinct)
    place = np.empty(len(distinct), dtype=np.int32)
    place[order] = np.arange(len(distinct), dtype=np.int32)
    _renumber(numbers, place)
    return numbers, len(distinct)


# -- compiled ----------------------------------------------------------------------------------------------------
# At the top of the module, where numba's cache finds them again: nested ones are compiled in every process.

_jit = numba.njit(cache=True, nogil=True, error_model="numpy")
_golden = np.uint64(0x9E3779B97F4A7C15)


@_jit
def _slot_of(table, keys, value):  # type: ignore[no-untyped-def]
    """Where ``value`` stands in the open hash table of numbers + 1, or the free place for it."""
    mask = np.uint64(table.size - 1)
    slot = ((value * _golden) >> np.uint64(20)) & mask  # the low bits of a product are not mixed
    while table[slot] and keys[table[slot] - 1] != value:
        slot = (slot + np.uint64(1)) & mask
    return slot


@_jit
def _number(values, numbers):  # type: ignore[no-untyped-def]
    """Numbers values in the order of their first appearance; the distinct values in that order."""
    table, keys = np.zeros(1024, np.int32), np.empty(512, np.uint64)
    found = 0
    for i in range(values.size):
        slot = _slot_of(table, keys, values[i])
        if table[slot] == 0:
            if found == keys.size:
                grown = np.empty(2 * found, np.uint64)
                grown[:found] = keys
                keys = grown
                table = np.zeros(4 * found, np.int32)
                for key in range(found):
                    table[_slot_of(table, keys, keys[key])] = key + 1
                slot = _slot_of(table, keys, values[i])
            keys[found] = values[i]
            found += 1
            table[slot] = found
        numbers[i] = table[slot] - 1
    return keys[:found].copy()


@_jit
def _renumber(numbers, place):  # type: ignore[no-untyped-def]
    for i in range(numbers.size):
        numbers[i] = place[numbers[i]]
