"""A grouped matrix made dense (`quantization/grouped.py` has the layout), for products with many rows.

The definition is `Grouped.dequantized`; this gives the same bits. The 16 rows of a strip are the 16 lanes of a register
(`grouped_strips.py:dense`), and the matrix is written the other way round, [in, out]: each column of a strip is then
one cache line, in whatever order the columns are stored, and no row has to be gathered.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mickle.kernels.assembly import side_by_side
from mickle.kernels.compiled import compiled
from mickle.kernels.grouped_strips import dense as program
from mickle.kernels.strips import CHUNK, STRIP

SHARED = 1 << 18  # numbers from which the work is worth sharing among threads
LEVELS = 2 * 4 * STRIP  # bytes of a group's scales and zeros


def dense(
    codes: NDArray[np.uint32],
    statistics: NDArray[np.generic],
    second: NDArray[np.float32],
    order: NDArray[np.int64],
    outliers: tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int32]],
    group: int,
    out: NDArray[np.float32],
    threads: int,
) -> None:
    """Fill `out` [inputs + 1, strips * 16] with W^T; its last row is for columns that fill up a chunk.

    codes [strips, chunks, bits, 16]; statistics: uint16 [strips, groups, 6] with `second` [strips, groups, 4], or
    float32 [strips, groups, 2, 16] and `second` without strips; order [inputs]: column c is input order[c]; outliers:
    values, columns, rows [outputs + 1].
    """
    strips, chunks, bits, _ = codes.shape
    columns = np.arange(chunks * CHUNK)
    of = np.minimum(columns // group, statistics.shape[1] - 1) * LEVELS
    to = np.full(len(columns), len(order)) * out.strides[0]
    to[: len(order)] = order * out.strides[0]
    levels = statistics
    if len(second):
        levels = np.empty((strips, statistics.shape[1], 2, STRIP), np.float32)
        _two_levels(statistics, second, levels)
    share = threads if out.size >= SHARED else 1
    places = [array.ctypes.data for array in (codes, levels, of, to, out)]
    bounds = pairwise(strips * piece // share for piece in range(share + 1))
    side_by_side([(program(bits), *places, *ends, chunks, levels.strides[0]) for ends in bounds])
    _add(*outliers, order, out)


@compiled
def _two_levels(planes, second, levels):  # type: ignore[no-untyped-def]
    """Bit planes and second level -> scales and zeros of every row."""
    for strip in range(len(planes)):
        for group in range(planes.shape[1]):
            for level in range(2):
                step, lowest = second[strip, group, 2 * level], second[strip, group, 2 * level + 1]
                for lane in range(STRIP):
                    code = np.int32(0)
                    for bit in range(3):
                        code |= ((np.int32(planes[strip, group, 3 * level + bit]) >> lane) & 1) << bit
                    levels[strip, group, level, lane] = step * (np.float32(code) - lowest)


@compiled
def _add(values, columns, rows, order, out):  # type: ignore[no-untyped-def]
    """Outliers, each to its weight."""
    for row in range(rows.size - 1):
        for number in range(rows[row], rows[row + 1]):
            out[order[columns[number]], row] += values[number]
