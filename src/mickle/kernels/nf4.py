"""Quantizing to 4 bits, making dense again, and multiplying few rows by weights in 4 bits: compiled.

The definitions are `quantization/nf4.py:quantize_plain` and `dequantize_plain`, and a dense product; tests hold each
function here to them. Quantizing and making dense give the same bits, the product differs by rounding.

Decoding a row reads each weight once, so it is bound by memory, if looking codes up costs less than reading them. Codes
are looked up in registers (`kernels/nf4_strips.py`), and 16 rows of the weight (a strip) lie side by side, so
that a lane is a row and no sum runs across lanes. `interleaved` and `canonical` go to and fro, bit for bit.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mickle.kernels import nf4_strips
from mickle.kernels.assembly import has, side_by_side
from mickle.kernels.compiled import compiled
from mickle.kernels.strips import STRIP as LANES

# What decodes here; bf16 takes rows in bfloat16 alone.
KINDS = {
    "avx2": ("avx2", "fma"),
    "avx512": ("avx512f", "avx512bw"),
    "bf16": ("avx512f", "avx512bw", "avx512bf16"),
}
FEATURES = frozenset(kind for kind, needed in KINDS.items() if has(*needed))
SHARED = 1 << 20  # bytes of codes from which a product is worth sharing among threads

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Words = NDArray[np.uint32]

# -- quantizing ------------------------------------------------------------------------------------------------------


@compiled
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
        for t in range(15):  # counted and not searched for: no branch, so that the compiler makes vectors of it
            threshold = thresholds[t]
            for i in range(block):
                places[i] += np.uint8(scaled[i] > threshold)
        for i in range((size + 1) // 2):
            packed[first // 2 + i] = places[2 * i] << 4 | places[2 * i + 1]


# -- making dense ----------------------------------------------------------------------------------------------------


def dense(
    packed: Bytes, scales: Floats, block: int, table: Floats, out: NDArray[np.generic], threads: int, kind: str
) -> None:
    """Fill `out` [n]: float32, or the bits of bfloat16 as uint16, by the instructions of `kind`, avx512 or avx2. block:
    numbers that have one scale, a power of two of at least 16.
    """
    whole = out.size - out.size % LANES
    run = nf4_strips.dense(kind, out.dtype != np.float32)
    pieces = threads if packed.size >= SHARED else 1
    bounds = [whole * piece // pieces // LANES * LANES for piece in range(pieces)] + [whole]
    places = [array.ctypes.data for array in (packed, scales, table, out)]
    side_by_side([(run, *places, *ends, block.bit_length() - 1) for ends in pairwise(bounds)])
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


def paired(x: Tensor) -> Tensor:
    """bfloat16 [n, in] -> int32 [n, in / 2]: pairs of columns (c, c + 4), which one step of the kernel multiplies."""
    return x.unflatten(-1, (-1, 2, 4)).transpose(-1, -2).contiguous().flatten(1).view(torch.int32)


@dataclass(frozen=True)
class Strips:
    """A weight [outputs, in] in 4 bits, in blocks of 64 columns, as the product reads it.

    words uint32 [strips, in / 8, 16]; scales [strips, in / 64, 16], float32, or uint8 with `nested` not empty: the
    scales of 256 scales each, and `lines` to read them by (`quantization/codes.py:scale_lines`); table float32 [16].
    """

    outputs: int
    words: Words
    scales: Floats | Bytes
    nested: Floats
    offset: float
    lines: Floats
    table: Floats

    @cached_property
    def places(self) -> list[int]:
        """Addresses of the arrays, and of the table in bfloat16 twice. NumPy takes microseconds to tell one."""
        arrays = self.words, self.scales, self.lines, self.nested, self.table, self._brains
        return [array.ctypes.data for array in arrays]

    @cached_property
    def _brains(self) -> NDArray[np.uint16]:
        return np.tile(rounded(self.table), 2)


def rows_product(weight: Strips, x: Tensor, threads: int, kind: str) -> Tensor:
    """x W^T of a few rows x [n, in], float32 [n, outputs]. kind "avx512" or "avx2": x float32; "bf16": bfloat16."""
    strips_, blocks = weight.scales.shape[:2]
    x = (paired(x) if kind == "bf16" else x).contiguous()
    rows = x.shape[0]
    out = torch.empty(rows, strips_ * LANES)
    pieces = min(threads, strips_) if weight.words.nbytes >= SHARED else 1
    scratch = torch.empty(pieces * blocks * LANES)
    own = [scratch.data_ptr() + 4 * LANES * blocks * piece for piece in range(pieces)]
    bounds = pairwise(strips_ * piece // pieces for piece in range(pieces + 1))
    *matrix, values, brains = weight.places
    places = *matrix, x.data_ptr(), brains if kind == "bf16" else values, out.data_ptr()
    sizes = blocks, rows, strips_, weight.nested.size - 1, weight.offset
    run = nf4_strips.product(kind, weight.nested.size > 0)
    side_by_side([(run, *places, made, *ends, *sizes) for made, ends in zip(own, bounds)])
    return out[:, : weight.outputs]
