"""A few rows times a grouped matrix, straight from its bits (`quantization/grouped.py` has the layout).

x of a group (32 columns at most) is a fixed-point number of that group: sigma times a whole number of two bytes where
x is bfloat16, of three where it is float32, so what is lost is below 2^-15 and 2^-23 of the group's largest x, and
sums of products are exact::

    x ~ sigma (256^2 n2 + 256 n1 + n0)
    y += s (sigma (256^2 sum q n2 + 256 sum q n1 + sum q n0) - z sum of x)

with the bytes, sigma and the group's sum of x made once for all strips (`prepare`). Products are the program of
`grouped_strips.py`; on a processor that cannot multiply bytes it takes x in floats. Outliers come in a second pass. The
plain version is x times the transpose of `Grouped.dequantized`.
"""

from __future__ import annotations

import threading
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mickle.kernels import grouped_strips
from mickle.kernels.assembly import has, side_by_side
from mickle.kernels.compiled import compiled
from mickle.kernels.strips import CHUNK, STRIP

SHARED = 1 << 19  # bytes of codes from which a product is worth sharing among threads
_NO_ORDER = np.zeros(0, np.uint16)
_memory = threading.local()


def segment_of(group: int) -> int:
    """Columns that a piece of code sums with one pair of statistics; 0 where there is no such code."""
    narrow = group < CHUNK and CHUNK % group == 0
    return min(group, CHUNK) if group % 8 == 0 and (narrow or group % CHUNK == 0) else 0


def product(
    x: Tensor,
    codes: Tensor,
    statistics: Tensor,
    second: Tensor | None,
    outliers: tuple[Tensor, Tensor, Tensor] | None,
    outputs: int,
    group: int,
    threads: int,
    order: Tensor | None = None,
) -> Tensor:
    """x float32 or bfloat16 [n, in] -> [n, outputs] float32.

    Shapes as in `Grouped`; outliers: values, columns, rows; order: column c of the codes is input order[c]. `group` is
    one that `segment_of` has a code for.
    """
    strips, chunks, bits, _ = codes.shape
    segment, way, count = segment_of(group), way_of(x), len(x)
    groups = statistics.shape[1]
    share = threads if codes.numel() * 4 >= SHARED else 1
    row, parts, sums, scratch, places = _room(chunks, segment, way, share, groups)
    wide = x.dtype == torch.float32
    given = x.detach().contiguous().view(torch.uint32 if wide else torch.uint16).numpy()
    by = _NO_ORDER if order is None else _unsigned(order)
    turns = grouped_strips.multiplies_bits()
    run = grouped_strips.product(bits, segment, second is not None, way, turns)
    matrix = codes.data_ptr(), statistics.data_ptr(), None if second is None else second.data_ptr()
    out = torch.empty(count, strips * STRIP)
    at, end = out.data_ptr(), strips * STRIP * 4
    for number in range(count):
        prepare(given, number, 0 if wide else 16, by, segment, way, row, parts, sums)
        own = at + number * end
        first = *matrix, places[1 if way else 0], places[2], own
        if share == 1:
            run(*first, places[3], 0, strips, chunks, groups, group)
        else:
            bounds = pairwise(strips * piece // share for piece in range(share + 1))
            pieces = enumerate(bounds)
            side_by_side([(run, *first, scratch[k].ctypes.data, *ends, chunks, groups, group) for k, ends in pieces])
        if outliers is not None:
            values, columns, rows = outliers
            add = grouped_strips.outliers(columns.element_size())
            add(values.data_ptr(), columns.data_ptr(), rows.data_ptr(), places[0], own, outputs)
    return out if outputs == strips * STRIP else out[:, :outputs]


def way_of(x: Tensor) -> int:
    """Bytes of the whole numbers that stand for x; 0 for floats, where the processor cannot multiply bytes."""
    if not has("avx512vnni"):
        return 0
    return 2 if x.dtype == torch.bfloat16 else 3


def _unsigned(index: Tensor) -> np.ndarray:
    """Indices as they are stored, as numbers of the unsigned type."""
    return index.numpy().view(np.uint16 if index.dtype == torch.int16 else np.uint32)


def _room(chunks: int, segment: int, way: int, share: int, groups: int) -> tuple[Any, ...]:
    """Memory of this thread for one row's preparation, kept by sizes: x in float32, its bytes, sums, scratch for each
    of `share` threads; and their addresses.
    """
    kept: dict[tuple[int, ...], tuple[Any, ...]] = _memory.__dict__.setdefault("kept", {})
    sizes = chunks, segment, way, share, groups
    if sizes not in kept:
        columns = chunks * CHUNK
        ready = -(-groups // grouped_strips.TILES) * grouped_strips.TILES * grouped_strips.READY
        arrays = (
            np.empty(columns, np.float32),
            np.empty(columns * way, np.int8),
            np.empty((columns // segment, 2), np.float32),
            np.empty((share, ready), np.uint8),
        )
        kept[sizes] = *arrays, tuple(array.ctypes.data for array in arrays)
    return kept[sizes]


@compiled
def prepare(x, number, shift, order, segment, count, row, parts, sums):  # type: ignore[no-untyped-def]
    """Row `number` of x, made ready for the product.

    x uint16 or uint32 [n, in]: the upper bits of floats, `shift` below the top. row float32: x in `order` (as it is
    where that is empty), then 0. parts int8 [columns * count]: `count` signed bytes of each number: of every four
    columns the four highest bytes, then the four next ones. sums [segments, 2]: the sum of x and the unit of each
    segment. count 0: no parts, unit 1.
    """
    bits = row.view(np.uint32)
    if order.size:
        for column in range(order.size):
            bits[column] = np.uint32(x[number, order[column]]) << np.uint32(shift)
    else:
        for column in range(x.shape[1]):
            bits[column] = np.uint32(x[number, column]) << np.uint32(shift)
    whole = np.empty(segment, np.int32)
    bits[x.shape[1] :] = np.uint32(0)  # the memory may have been another layer's
    largest = np.float32(0)
    for _ in range(count):
        largest = largest * np.float32(256) + np.float32(127)
    for place in range(len(sums)):
        first, last = place * segment, (place + 1) * segment
        # Four sums that do not wait for one another.
        a, b, c, d = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        size = np.uint32(0)
        for column in range(first, last, 4):
            a, b = a + row[column], b + row[column + 1]
            c, d = c + row[column + 2], d + row[column + 3]
        for column in range(first, last):  # without their sign, floats rise as their bits do
            size = max(size, np.uint32(bits[column] & np.uint32(0x7FFFFFFF)))
        sums.view(np.uint32)[place, 1] = size
        sums[place, 0] = (a + b) + (c + d)
        # Never 0, which its inverse would not survive: a group of zeros has whole numbers 0.
        unit = max(sums[place, 1] / largest, np.float32(1e-38)) if count else np.float32(1)
        sums[place, 1] = unit
        inverse = np.float32(1) / unit
        if count == 0:
            continue
        for column in range(first, last):
            near = min(max(np.rint(row[column] * inverse), -largest), largest)
            whole[column - first] = np.int32(near)
        for part in range(count - 1, -1, -1):  # the low bytes of all, then what is above them
            for column in range(segment):
                left = whole[column]
                parts[((first + column) // 4 * count + part) * 4 + column % 4] = np.int8(left & np.int32(255))
                whole[column] = (left + np.int32(128)) >> np.int32(8)
