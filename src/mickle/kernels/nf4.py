"""Quantizing to 4 bits, making dense again, and multiplying few rows by weights in 4 bits: compiled.

The definitions are `quantization/nf4.py:quantize_plain` and `dequantize_plain`, and a dense product; tests hold each
function here to them. Quantizing and making dense give the same bits, the product differs by rounding.

Decoding a row reads each weight once, so it is bound by memory, if looking codes up costs less than reading them. Codes
are kept in registers' tables (`kernels/register_permute.py`), and 16 rows of the weight (a strip) lie side by side, so
that a lane is a row and no sum runs across lanes. `interleaved` and `canonical` go to and fro, bit for bit.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from mickle.kernels import register_permute as registers

LANES, COLUMNS = registers.LANES, registers.COLUMNS
SHARED = 1 << 20  # bytes of codes from which a product is worth sharing among threads
FEATURES = registers.features()
_NO_CODES, _NO_FLOATS = np.zeros((0, 0, LANES), np.uint8), np.zeros((0, 0, LANES), np.float32)

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Words = NDArray[np.uint32]

_compile = numba.njit(cache=True, nogil=True, error_model="numpy")


# -- quantizing ------------------------------------------------------------------------------------------------------


@_compile
def quantize(flat, thresholds, block, least, packed, absmax):  # type: ignore[no-untyped-def]
    """Places by size of numbers float32 [n] among `thresholds` [15], two in a byte: packed [ceil(n / 2)]; and the
    scales, absmax [ceil(n / block)]: infinite or NaN where a number of the block is.
    """
    n = flat.size
    bits = flat.view(np.uint32)
    places = np.empty(block, np.uint8)
    scaled = np.empty(block, np.float32)
    for number in range(absmax.size):
        first, stop = number * block, min(number * block + block, n)
        size = stop - first
        greatest = np.uint32(0)
        for i in range(first, stop):  # as whole numbers: without their sign, floats rise as their bits do
            greatest = max(greatest, np.uint32(bits[i] & np.uint32(0x7FFFFFFF)))
        absmax.view(np.uint32)[number] = greatest
        scale = max(absmax[number], least)
        if size == block:
            inverse = np.float32(1.0) / scale
            for i in range(block):
                scaled[i] = flat[first + i] * inverse
        else:
            for i in range(size):
                scaled[i] = flat[first + i] / scale
            for i in range(size, block):
                scaled[i] = np.float32(0.0)
        for i in range(block):
            places[i] = 0
        for t in range(15):
            threshold = thresholds[t]
            for i in range(block):
                places[i] += np.uint8(scaled[i] > threshold)
        for i in range((size + 1) // 2):
            packed[first // 2 + i] = places[2 * i] << 4 | places[2 * i + 1]


# -- making dense ----------------------------------------------------------------------------------------------------
# Each of the functions makes numbers [first, stop) of `out`, float32, or bfloat16 as uint16; `first` and `stop` are
# multiples of 16, so that 16 numbers have one scale.


@_compile
def _dense_avx512(packed, scales, block, table, first, stop, out):  # type: ignore[no-untyped-def]
    codes, entries, place = packed.ctypes.data, table.ctypes.data, out.ctypes.data
    for i in range(first, stop, 16):
        registers.values_avx512(codes + i // 2, entries, scales[i // block], place + 4 * i)


@_compile
def _dense_avx2(packed, scales, block, table, first, stop, out):  # type: ignore[no-untyped-def]
    codes, entries, place = packed.ctypes.data, table.ctypes.data, out.ctypes.data
    for i in range(first, stop, 16):
        registers.values_avx2(codes + i // 2, entries, scales[i // block], place + 4 * i)


@_compile
def _bfloats_avx512(packed, scales, block, table, first, stop, out):  # type: ignore[no-untyped-def]
    codes, entries, place = packed.ctypes.data, table.ctypes.data, out.ctypes.data
    for i in range(first, stop, 16):
        registers.bfloats_avx512(codes + i // 2, entries, scales[i // block], place + 2 * i)


@_compile
def _bfloats_avx2(packed, scales, block, table, first, stop, out):  # type: ignore[no-untyped-def]
    codes, entries, place = packed.ctypes.data, table.ctypes.data, out.ctypes.data
    for i in range(first, stop, 16):
        registers.bfloats_avx2(codes + i // 2, entries, scales[i // block], place + 2 * i)


DENSE = {
    ("avx512", "float32"): _dense_avx512,
    ("avx2", "float32"): _dense_avx2,
    ("avx512", "bfloat16"): _bfloats_avx512,
    ("avx2", "bfloat16"): _bfloats_avx2,
}


def dense(
    packed: Bytes, scales: Floats, block: int, table: Floats, out: NDArray[np.generic], threads: int, kind: str
) -> None:
    """Fill `out` [n]: float32, or the bits of bfloat16 as uint16, by the functions of `kind`, avx512 or avx2."""
    whole = out.size - out.size % 16
    function = DENSE[kind, "float32" if out.dtype == np.float32 else "bfloat16"]
    pieces = threads if packed.size >= SHARED else 1
    bounds = [whole * piece // pieces // 16 * 16 for piece in range(pieces)] + [whole]
    _together(function, bounds, packed, scales, block, table, out=out)
    if whole < out.size:
        last = packed[whole // 2 :]
        codes = np.stack([last >> 4, last & 15], axis=1).reshape(-1)[: out.size - whole]
        rest = table[codes] * scales[np.arange(whole, out.size) // block]
        out[whole:] = rest if out.dtype == np.float32 else rounded(rest)


def rounded(values: Floats) -> NDArray[np.uint16]:
    """float32 to the bits of the nearest bfloat16, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)


# -- a few rows ------------------------------------------------------------------------------------------------------


def strips(out_features: int) -> int:
    """How many groups of 16 rows a weight has, the last one filled up."""
    return -(-out_features // LANES)


def interleaved(rows: NDArray[np.generic]) -> NDArray[np.generic]:
    """rows [out, n] -> [strips, n, 16], those that fill up the last strip 0."""
    out, n = rows.shape
    full = np.zeros((strips(out) * LANES, n), rows.dtype)
    full[:out] = rows
    return np.ascontiguousarray(full.reshape(-1, LANES, n).transpose(0, 2, 1))


def canonical(strips_of: NDArray[np.generic], out_features: int) -> NDArray[np.generic]:
    """What :func:`interleaved` was made of: [strips, n, 16] -> [out, n]."""
    n = strips_of.shape[1]
    return np.ascontiguousarray(strips_of.transpose(0, 2, 1).reshape(-1, n)[:out_features])


@_compile
def _near(row, b, count, nested, near):  # type: ignore[no-untyped-def]
    """Scales of scales of 16 rows at their block `b` into `near`; the next block at which one changes."""
    again = count
    for lane in range(16):
        place = (row + lane) * count + b
        near[lane] = nested[min(place >> 8, nested.size - 1)]  # rows that fill up a strip have none
        again = min(again, b + 256 - (place & 255))
    return again


# One function for each kind of registers: products of a strip's blocks, one row after another.


@_compile
def _rows_avx512(words, codes, absmax, lines, nested, offset, x, table, first, stop, out):  # type: ignore[no-untyped-def]
    blocks = words.shape[1] // 8
    scales, near, acc = np.empty((blocks, 16), np.float32), np.empty(16, np.float32), np.empty(16, np.float32)
    entries, sums, by, map_of = table.ctypes.data, acc.ctypes.data, near.ctypes.data, lines.ctypes.data
    for strip in range(first, stop):
        word, column, scale = words[strip].ctypes.data, x[0].ctypes.data, scales.ctypes.data
        acc[:] = 0.0
        if nested.size:  # scales are made where they are needed: meanwhile the codes arrive
            code, done = codes[strip].ctypes.data, 0
            while done < blocks:
                again = _near(strip * 16, done, blocks, nested, near)
                for b in range(done, again):
                    registers.scales_avx512(code + 16 * b, map_of, by, offset, scale + 64 * b)
                    registers.product_avx512(word + 512 * b, column + 256 * b, entries, scale + 64 * b, sums)
                done = again
        else:
            scale = absmax[strip].ctypes.data
            for b in range(blocks):
                registers.product_avx512(word + 512 * b, column + 256 * b, entries, scale + 64 * b, sums)
        lanes = min(16, out.shape[1] - 16 * strip)
        for lane in range(lanes):
            out[0, 16 * strip + lane] = acc[lane]
        for row in range(1, x.shape[0]):  # by now the strip is in the first caches
            acc[:] = 0.0
            column = x[row].ctypes.data
            for b in range(blocks):
                registers.product_avx512(word + 512 * b, column + 256 * b, entries, scale + 64 * b, sums)
            for lane in range(lanes):
                out[row, 16 * strip + lane] = acc[lane]


@_compile
def _rows_avx2(words, codes, absmax, lines, nested, offset, x, table, first, stop, out):  # type: ignore[no-untyped-def]
    blocks = words.shape[1] // 8
    scales, near, acc = np.empty((blocks, 16), np.float32), np.empty(16, np.float32), np.empty(16, np.float32)
    entries, sums, by, map_of = table.ctypes.data, acc.ctypes.data, near.ctypes.data, lines.ctypes.data
    for strip in range(first, stop):
        word, column, scale = words[strip].ctypes.data, x[0].ctypes.data, scales.ctypes.data
        acc[:] = 0.0
        if nested.size:  # scales are made where they are needed: meanwhile the codes arrive
            code, done = codes[strip].ctypes.data, 0
            while done < blocks:
                again = _near(strip * 16, done, blocks, nested, near)
                for b in range(done, again):
                    registers.scales_avx2(code + 16 * b, map_of, by, offset, scale + 64 * b)
                    registers.product_avx2(word + 512 * b, column + 256 * b, entries, scale + 64 * b, sums)
                done = again
        else:
            scale = absmax[strip].ctypes.data
            for b in range(blocks):
                registers.product_avx2(word + 512 * b, column + 256 * b, entries, scale + 64 * b, sums)
        lanes = min(16, out.shape[1] - 16 * strip)
        for lane in range(lanes):
            out[0, 16 * strip + lane] = acc[lane]
        for row in range(1, x.shape[0]):  # by now the strip is in the first caches
            acc[:] = 0.0
            column = x[row].ctypes.data
            for b in range(blocks):
                registers.product_avx2(word + 512 * b, column + 256 * b, entries, scale + 64 * b, sums)
            for lane in range(lanes):
                out[row, 16 * strip + lane] = acc[lane]


@_compile
def _rows_bf16(words, codes, absmax, lines, nested, offset, x, table, first, stop, out):  # type: ignore[no-untyped-def]
    blocks = words.shape[1] // 8
    scales, near, acc = np.empty((blocks, 16), np.float32), np.empty(16, np.float32), np.empty(16, np.float32)
    entries, sums, by, map_of = table.ctypes.data, acc.ctypes.data, near.ctypes.data, lines.ctypes.data
    for strip in range(first, stop):
        word, column, scale = words[strip].ctypes.data, x[0].ctypes.data, scales.ctypes.data
        acc[:] = 0.0
        if nested.size:  # scales are made where they are needed: meanwhile the codes arrive
            code, done = codes[strip].ctypes.data, 0
            while done < blocks:
                again = _near(strip * 16, done, blocks, nested, near)
                for b in range(done, again):
                    registers.scales_avx512(code + 16 * b, map_of, by, offset, scale + 64 * b)
                    registers.product_bf16(word + 512 * b, column + 128 * b, entries, scale + 64 * b, sums)
                done = again
        else:
            scale = absmax[strip].ctypes.data
            for b in range(blocks):
                registers.product_bf16(word + 512 * b, column + 128 * b, entries, scale + 64 * b, sums)
        lanes = min(16, out.shape[1] - 16 * strip)
        for lane in range(lanes):
            out[0, 16 * strip + lane] = acc[lane]
        for row in range(1, x.shape[0]):  # by now the strip is in the first caches
            acc[:] = 0.0
            column = x[row].ctypes.data
            for b in range(blocks):
                registers.product_bf16(word + 512 * b, column + 128 * b, entries, scale + 64 * b, sums)
            for lane in range(lanes):
                out[row, 16 * strip + lane] = acc[lane]


ROWS = {"avx512": _rows_avx512, "avx2": _rows_avx2, "bf16": _rows_bf16}


@_compile
def _pair(x, pairs):  # type: ignore[no-untyped-def]
    for row in range(x.shape[0]):
        for eight in range(x.shape[1] // 8):
            for column in range(4):
                low, high = x[row, 8 * eight + column], x[row, 8 * eight + 4 + column]
                pairs[row, 4 * eight + column] = np.uint32(low) | np.uint32(high) << np.uint32(16)


def paired(x: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """bfloat16 bits [n, in] -> [n, in / 2]: pairs of columns (c, c + 4), which one step of the kernel multiplies."""
    pairs = np.empty((x.shape[0], x.shape[1] // 2), np.uint32)
    _pair(x, pairs)
    return pairs


def rows_product(
    words: Words,
    scales: Floats | Bytes,
    lines: Floats,
    nested: Floats,
    offset: float,
    x: NDArray[np.generic],
    table: NDArray[np.generic],
    out: Floats,
    threads: int,
    kind: str,
) -> None:
    """out [n, out] = x W^T of a few rows x.

    words uint32 [strips, in / 8, 16]; scales [strips, in / 64, 16], float32, or uint8 with `nested` not empty and
    `lines` to read them by. kind "avx512" or "avx2": x float32 [n, in], table float32 [16]; "bf16": x from
    :func:`paired`, table uint16 [32].
    """
    codes, absmax = (scales, _NO_FLOATS) if nested.size else (_NO_CODES, scales)
    number = words.shape[0]
    pieces = min(threads, number) if words.nbytes >= SHARED else 1
    bounds = [number * piece // pieces for piece in range(pieces + 1)]
    _together(ROWS[kind], bounds, words, codes, absmax, lines, nested, np.float32(offset), x, table, out=out)


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, "mickle-nf4")


def _together(function: Any, bounds: list[int], *arguments: Any, out: NDArray[np.generic]) -> None:
    """Each piece between two bounds by a function that holds no lock of the interpreter: the first here, the others in
    threads of their own.
    """
    pieces = list(pairwise(bounds))
    waiting = [_pool(len(pieces) - 1).submit(function, *(*arguments, *piece, out)) for piece in pieces[1:]]
    function(*arguments, *pieces[0], out)
    for other in waiting:
        other.result()
