"""Grouped matrices (`quantization/grouped.py` has the layout) on a GPU, by Triton: made dense, and times a few rows.
Imported only where CUDA is.

The definitions are `Grouped.dequantized` and a product with it. A program of the product takes one strip of 16 rows,
some chunks of 32 columns at a time: of each word that it reads once it shifts out the codes of four columns as four
bytes, and a pair of statistics serves a segment of 8 to 32 columns::

    y += s (sum of q x - z sum of x)

then walks the lists of outliers of its 16 rows. Everything is summed in float32. The dense weight is made number by
number, first without outliers, then these anew with their residuals: each number is rounded once, so it has the bits
of the plain version. Many rows are multiplied by the dense weight.

A test runs this under Triton's interpreter, on tensors of the CPU.
"""

from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 32
_CHUNKS = 8  # that a program of the product takes at a time

Outliers = tuple[Tensor, Tensor, Tensor]  # values, columns, rows


def dense(codes: Tensor, statistics: Tensor, second: Tensor | None, outliers: Outliers | None, order: Tensor | None,
          outputs: int, inputs: int, group: int, dtype: torch.dtype) -> Tensor:  # fmt: skip
    """The weight [outputs, inputs] in `dtype`, its columns in their own order; bit for bit the plain version's.

    Shapes as in `Grouped`; all on one CUDA device.
    """
    strips, chunks, bits, _ = codes.shape
    out = torch.empty(outputs, inputs, dtype=dtype, device=codes.device)
    given = (codes, statistics, statistics if second is None else second, codes if order is None else order, out)
    sizes = outputs, inputs, chunks, statistics.shape[1], group
    how = {
        "BITS": bits, "TWO_LEVEL": second is not None, "ORDERED": order is not None,
        "enable_fp_fusion": False,  # a fused product is rounded once less than the plain version's
    }  # fmt: skip
    with torch.cuda.device_of(codes):
        _dense[(strips, triton.cdiv(inputs, 64))](*given, *sizes, **how)
        if outliers is not None:
            _dense_outliers[(outputs,)](*given, *outliers, *sizes, **how)
    return out


def few_rows(codes: Tensor, statistics: Tensor, second: Tensor | None, outliers: Outliers | None, outputs: int,
             group: int, x: Tensor) -> Tensor:  # fmt: skip
    """x W^T: x [n, inputs], its columns in the order of the codes, -> [n, outputs] in x's type. `group` is one that
    `segment_of` has a length for.
    """
    strips, chunks, bits, _ = codes.shape
    x = x.contiguous()
    n, inputs = x.shape
    groups = statistics.shape[1]
    out = torch.empty(n, outputs, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(codes):
        _few_rows[(strips, n)](
            codes, statistics, statistics if second is None else second, *(outliers or (codes, codes, codes)),
            x, out, outputs, inputs, groups, group,
            PIECES=chunks, SEGMENT=segment_of(group, groups), BITS=bits, TWO_LEVEL=second is not None,
            OUTLIERS=outliers is not None, CHUNKS=_CHUNKS,
        )  # fmt: skip
    return out


def segment_of(group: int, groups: int) -> int:
    """Columns of a chunk that share their statistics, where a row has so many groups of so many columns; 0 where they
    are no whole quads, and the product has no code.
    """
    segment = CHUNK if groups == 1 else gcd(group, CHUNK)
    return segment if segment % 4 == 0 else 0


@triton.jit
def _few_rows(  # type: ignore[no-untyped-def]
    codes, statistics, second, values, columns, starts, x, out, outputs, inputs, groups, group,
    PIECES: tl.constexpr, SEGMENT: tl.constexpr, BITS: tl.constexpr, TWO_LEVEL: tl.constexpr, OUTLIERS: tl.constexpr,
    CHUNKS: tl.constexpr
):  # fmt: skip
    strip = tl.program_id(0).to(tl.int64)
    given = x + tl.program_id(1).to(tl.int64) * inputs
    lane = tl.arange(0, 16)[None, :]
    total = tl.zeros((CHUNKS, 16), tl.float32)
    for first in range(0, PIECES, CHUNKS):
        chunk = first + tl.arange(0, CHUNKS)[:, None]
        inside = chunk < PIECES
        at = codes + (strip * PIECES + chunk) * (16 * BITS) + lane
        w0 = _word(at, inside)
        w1 = _word(at + 16, inside)
        w2, w3 = w1, w1
        if BITS >= 3:
            w2 = _word(at + 32, inside)
        if BITS == 4:
            w3 = _word(at + 48, inside)
        for segment in tl.static_range(32 // SEGMENT):
            column = 32 * chunk + SEGMENT * segment
            dot = tl.zeros((CHUNKS, 16), tl.float32)
            sum_of_x = tl.zeros((CHUNKS, 1), tl.float32)
            for quad in tl.static_range(SEGMENT // 4):
                four = _quad(w0, w1, w2, w3, segment * (SEGMENT // 4) + quad, BITS)
                for byte in tl.static_range(4):
                    place = column + 4 * quad + byte
                    number = tl.load(given + place, mask=place < inputs, other=0.0).to(tl.float32)
                    dot += ((four >> (8 * byte)) & 15).to(tl.float32) * number
                    sum_of_x += number
            tile = strip * groups + tl.minimum(column // group, groups - 1)
            scale, zero = _statistics(statistics, second, tile, lane, inside, TWO_LEVEL)
            total += scale * (dot - zero * sum_of_x)
    y = tl.sum(total, axis=0)
    row = strip * 16 + tl.arange(0, 16)
    if OUTLIERS:
        begin = tl.load(starts + row, mask=row < outputs, other=0)
        count = tl.load(starts + row + 1, mask=row < outputs, other=0) - begin
        most = tl.max(count, axis=0)
        done = 0
        while done < most:
            number = done + tl.arange(0, 32)[None, :]
            listed = number < count[:, None]
            place = begin[:, None] + number
            value = tl.load(values + place, mask=listed, other=0.0).to(tl.float32)
            column = _unsigned(tl.load(columns + place, mask=listed, other=0))
            y += tl.sum(value * tl.load(given + column, mask=listed, other=0.0).to(tl.float32), axis=1)
            done += 32
    place = out + tl.program_id(1).to(tl.int64) * outputs + row
    tl.store(place, y.to(out.dtype.element_ty), mask=row < outputs)


@triton.jit
def _dense(  # type: ignore[no-untyped-def]
    codes, statistics, second, order, out, outputs, inputs, chunks, groups, group,
    BITS: tl.constexpr, TWO_LEVEL: tl.constexpr, ORDERED: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * 16 + tl.arange(0, 16)[:, None]
    column = tl.program_id(1) * 64 + tl.arange(0, 64)[None, :]
    inside = (row < outputs) & (column < inputs)
    weight = _weight(codes, statistics, second, row, column, inside, chunks, groups, group, BITS, TWO_LEVEL)
    if ORDERED:
        column = _unsigned(tl.load(order + column, mask=column < inputs, other=0))
    tl.store(out + row * inputs + column, weight.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _dense_outliers(  # type: ignore[no-untyped-def]
    codes, statistics, second, order, out, values, columns, starts, outputs, inputs, chunks, groups, group,
    BITS: tl.constexpr, TWO_LEVEL: tl.constexpr, ORDERED: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    end = tl.load(starts + row + 1)
    done = tl.load(starts + row)
    while done < end:
        place = done + tl.arange(0, 64)
        inside = place < end
        column = _unsigned(tl.load(columns + place, mask=inside, other=0))
        weight = _weight(codes, statistics, second, row, column, inside, chunks, groups, group, BITS, TWO_LEVEL)
        weight += tl.load(values + place, mask=inside, other=0.0).to(tl.float32)
        if ORDERED:
            column = _unsigned(tl.load(order + column, mask=inside, other=0))
        tl.store(out + row * inputs + column, weight.to(out.dtype.element_ty), mask=inside)
        done += 64


@triton.jit
def _weight(  # type: ignore[no-untyped-def]
    codes, statistics, second, row, column, mask, chunks, groups, group, BITS: tl.constexpr, TWO_LEVEL: tl.constexpr
):  # fmt: skip
    """The numbers at these rows and columns, without outliers, float32."""
    strip, lane = row // 16, row % 16
    at = codes + (strip * chunks + column // 32) * (16 * BITS) + lane
    quad, byte = (column % 32) // 4, 8 * (column % 4)
    if BITS == 3:
        # Quads 6 and 7 are what the six before them leave in words 0, 1 and in 1, 2.
        whole = quad < 6
        low = tl.where(whole, quad // 2, quad - 6)
        shift = tl.where(whole, 3 * (quad % 2), quad)
        code = _word(at + 16 * low, mask) >> (byte + shift).to(tl.uint32)
        rest = _word(at + 16 * (low + 1), mask & (quad >= 6)) >> (byte + 6).to(tl.uint32)
        code = tl.where(whole, code & 7, tl.where(quad == 6, code & 3 | (rest & 1) << 2, code & 1 | (rest & 3) << 1))
    else:
        a_byte: tl.constexpr = 8 // BITS
        shift = byte + quad % a_byte * BITS
        code = _word(at + 16 * (quad // a_byte), mask) >> shift.to(tl.uint32) & (2**BITS - 1)
    tile = strip * groups + column // group
    scale, zero = _statistics(statistics, second, tile, lane, mask, TWO_LEVEL)
    return scale * (code.to(tl.float32) - zero)


@triton.jit
def _quad(w0, w1, w2, w3, QUAD: tl.constexpr, BITS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The codes of four columns as the four bytes of a word (`strips.py:places`)."""
    if BITS == 3 and QUAD == 6:
        four = (w0 >> 6 & 0x03030303) | (w1 >> 6 & 0x01010101) << 2
    elif BITS == 3 and QUAD == 7:
        four = (w1 >> 7 & 0x01010101) | (w2 >> 6 & 0x03030303) << 1
    else:
        a_word: tl.constexpr = 8 // BITS  # quads
        word: tl.constexpr = QUAD // a_word
        if word == 0:
            four = w0
        elif word == 1:
            four = w1
        elif word == 2:
            four = w2
        else:
            four = w3
        four = four >> (QUAD % a_word * BITS) & ((2**BITS - 1) * 0x01010101)
    return four


@triton.jit
def _statistics(  # type: ignore[no-untyped-def]
    statistics, second, tile, lane, mask, TWO_LEVEL: tl.constexpr
):
    """Scales and zeros of the groups with these numbers, float32."""
    if TWO_LEVEL:
        scale = _level(statistics + 6 * tile, second + 4 * tile, lane, mask)
        zero = _level(statistics + 6 * tile + 3, second + 4 * tile + 2, lane, mask)
    else:
        scale = tl.load(statistics + 32 * tile + lane, mask=mask, other=0.0).to(tl.float32)
        zero = tl.load(statistics + 32 * tile + 16 + lane, mask=mask, other=0.0).to(tl.float32)
    return scale, zero


@triton.jit
def _level(planes, second, lane, mask):  # type: ignore[no-untyped-def]
    """a (k - o), k from three planes of bits."""
    k = tl.load(planes, mask=mask, other=0).to(tl.int32) >> lane.to(tl.int32) & 1
    k += (tl.load(planes + 1, mask=mask, other=0).to(tl.int32) >> lane.to(tl.int32) & 1) << 1
    k += (tl.load(planes + 2, mask=mask, other=0).to(tl.int32) >> lane.to(tl.int32) & 1) << 2
    step = tl.load(second, mask=mask, other=0.0).to(tl.float32)
    lowest = tl.load(second + 1, mask=mask, other=0.0).to(tl.float32)
    return step * (k.to(tl.float32) - lowest)


@triton.jit
def _word(at, mask):  # type: ignore[no-untyped-def]
    return tl.load(at, mask=mask, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def _unsigned(index):  # type: ignore[no-untyped-def]
    """Stored indices of 16 or 32 bits as int32; 32 hold fewer than 2^24."""
    if index.dtype == tl.int16:
        wide = index.to(tl.int32) & 0xFFFF
    else:
        wide = index
    return wide
