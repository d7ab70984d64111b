"""4-bit weights on a GPU, by Triton: made dense, and times a few rows. Imported only where CUDA is.

The definitions are those of `kernels/nf4.py`: `quantization/nf4.py:dequantize_plain` and a dense product. Codes and
scales are read as folders have them, with scales of 8 bits decoded in the kernel, so a product of few rows moves the
stored bytes once and nothing else. Many rows are multiplied by the dense weight. Blocks of 64 numbers that do not run
over row ends; others are made dense by the plain version.

A program takes 64 columns (32 bytes, one block) of some rows of the weight at a time. High halves of its bytes are the
even columns, low halves the odd ones: two products with x's even and odd columns need no interleaving.

A test runs this under Triton's interpreter, on tensors of the CPU.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 64


def dense(packed: Tensor, absmax: Tensor, map8: Tensor, nested: Tensor | None, offset: float, table: Tensor,
          rows: int, columns: int, dtype: torch.dtype) -> Tensor:  # fmt: skip
    """The weight [rows, columns] in `dtype`, bit for bit the plain version's. packed uint8 [rows columns / 2]; absmax
    float32, or uint8 with `nested`; table float32 [16]; map8 float32 [256]; all on one CUDA device.
    """
    out = torch.empty(rows, columns, dtype=dtype, device=packed.device)
    blocks = rows * columns // COLUMNS
    other = absmax if nested is None else nested
    with torch.cuda.device_of(packed):
        _dense[(triton.cdiv(blocks, 16),)](
            packed, absmax, map8, other, offset, table, out, blocks,
            DOUBLE=nested is not None, BLOCKS=16,
            enable_fp_fusion=False,  # a fused product is rounded once less than the plain version's
        )  # fmt: skip
    return out


def few_rows(packed: Tensor, absmax: Tensor, map8: Tensor, nested: Tensor | None, offset: float, table: Tensor,
             rows: int, x: Tensor) -> Tensor:  # fmt: skip
    """x W^T: x [n, columns] -> [n, rows] in x's type, summed in float32."""
    x = x.contiguous()
    n, columns = x.shape
    out = torch.empty(n, rows, dtype=x.dtype, device=x.device)
    other = absmax if nested is None else nested
    with torch.cuda.device_of(packed):
        _few_rows[(triton.cdiv(rows, 16), n)](
            packed, absmax, map8, other, offset, table, x, out, rows,
            BLOCKS=columns // COLUMNS, DOUBLE=nested is not None, ROWS=16,
        )  # fmt: skip
    return out


@triton.jit
def _scale(  # type: ignore[no-untyped-def]
    absmax, map8, nested, offset, block, mask, DOUBLE: tl.constexpr
):
    """Scales of the blocks with these numbers, float32."""
    if DOUBLE:
        code = tl.load(absmax + block, mask=mask, other=0).to(tl.int32)
        scale = tl.load(map8 + code) * tl.load(nested + block // 256, mask=mask, other=0.0) + offset
    else:
        scale = tl.load(absmax + block, mask=mask, other=0.0)
    return scale


@triton.jit
def _dense(  # type: ignore[no-untyped-def]
    packed, absmax, map8, nested, offset, table, out, blocks, DOUBLE: tl.constexpr, BLOCKS: tl.constexpr
):
    block = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    mask = block < blocks
    scale = _scale(absmax, map8, nested, offset, block, mask, DOUBLE)[:, None]
    byte = tl.arange(0, 32)[None, :]
    codes = tl.load(packed + block[:, None] * 32 + byte, mask=mask[:, None], other=0).to(tl.int32)
    place = out + block[:, None] * 64 + 2 * byte
    tl.store(place, (tl.load(table + (codes >> 4)) * scale).to(out.dtype.element_ty), mask=mask[:, None])
    tl.store(place + 1, (tl.load(table + (codes & 15)) * scale).to(out.dtype.element_ty), mask=mask[:, None])


@triton.jit
def _few_rows(  # type: ignore[no-untyped-def]
    packed, absmax, map8, nested, offset, table, x, out, rows,
    BLOCKS: tl.constexpr, DOUBLE: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    mask = row < rows
    given = x + tl.program_id(1).to(tl.int64) * (64 * BLOCKS)
    byte = tl.arange(0, 32)
    acc = tl.zeros((ROWS,), tl.float32)
    for b in range(BLOCKS):
        block = row * BLOCKS + b
        codes = tl.load(packed + block[:, None] * 32 + byte[None, :], mask=mask[:, None], other=0).to(tl.int32)
        even = tl.load(given + 64 * b + 2 * byte).to(tl.float32)[None, :]
        odd = tl.load(given + 64 * b + 2 * byte + 1).to(tl.float32)[None, :]
        total = tl.load(table + (codes >> 4)) * even + tl.load(table + (codes & 15)) * odd
        acc += tl.sum(total, axis=1) * _scale(absmax, map8, nested, offset, block, mask, DOUBLE)
    place = out + tl.program_id(1).to(tl.int64) * rows + row
    tl.store(place, acc.to(out.dtype.element_ty), mask=mask)
