"""Weights in 4 bits with a scale for every block, and scales in 8 bits.

QLoRA: Efficient Finetuning of Quantized LLMs, arXiv 2305.14314: a base in 4-bit NormalFloat with doubly quantized
scales trains, with adapters, to the quality of one in 16 bits. Section 2 and 3:

    a_b = max |w| of block b,    index = nearest code of w / a_b,    w^ = code[index] a_b           (equation 1, 2)
    double: m = mean of a,  a_b - m in 8 bits with one 32-bit scale for 256 of them                 (section 3)

A weight is flattened row by row; a block is 64 numbers and may run over the end of a row; the last may be short. Two
indices share a byte, the first in its high half. 4 + 8/64 + 32/(64 256) = 4.127 bits a weight, 4.5 without `double`.

Bytes and scales are those of bitsandbytes 0.50 on a CPU, which decides where this text leaves room:
- The paper says FP8 for scales; folders carry the dynamic map (`codes.dynamic_map`), rounded by `nearest_scales`.
- w / a_b is w times the rounded 1 / a_b, in a short last block a true division. Scales below 1e-38 count as 1e-38.
- Where it differs: a short last block of zeros has scale 0 here, like every other block of zeros, and 1e-38 there.
"""

from dataclasses import dataclass, replace
from functools import cache
from math import prod

import numpy as np
import torch
from torch import Tensor

from mickle.errors import NumericError, UsageError
from mickle.kernels.dispatch import use_plain
from mickle.quantization.codes import dynamic_map, nearest_scales, places, table, thresholds

BLOCK, SCALES_BLOCK = 64, 256
BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
LEAST = 1e-38
_PIECE = 1 << 18  # numbers quantized at a time, a multiple of every block
KINDS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Blocks:
    """A tensor in 4 bits: indices, a scale for each block of `block` numbers, and how to read both."""

    packed: Tensor  # uint8 [ceil(n / 2)]
    absmax: Tensor  # float32 [ceil(n / block)], or uint8 codes of the dynamic map with `nested`
    shape: tuple[int, ...]
    code: str = "nf4"
    block: int = BLOCK
    dtype: torch.dtype = torch.float32  # what it was before
    nested: Tensor | None = None  # float32 [ceil(blocks / 256)]
    offset: float = 0.0  # m

    def scales(self) -> Tensor:
        """The scale of each block: float32 [ceil(n / block)]."""
        if self.nested is None:
            return self.absmax
        values = dynamic_map().to(self.absmax.device)[self.absmax.long()]
        return values * self.nested.repeat_interleave(SCALES_BLOCK)[: len(values)] + self.offset

    def stored_bytes(self) -> int:
        """Bytes of indices and scales, with the 16 values and, if double, the 256 and the offset they are read by."""
        tables = 4 * 16 + (4 * 256 + 4 if self.nested is not None else 0)
        parts = [self.packed, self.absmax, *([] if self.nested is None else [self.nested])]
        return sum(part.numel() * part.element_size() for part in parts) + tables


def quantize_4bit(
    weight: Tensor, code: str = "nf4", double: bool = True, block: int = BLOCK, name: str = "weight"
) -> Blocks:
    """A tensor of floats in 4 bits. NumericError that names it where a number is not finite; UsageError for a block
    that is no power of two from 32 to 4096, an unknown code or a tensor that holds no floats.
    """
    if block not in BLOCKS:
        raise UsageError(f"block of {block}", expected=f"one of {', '.join(map(str, BLOCKS))}")
    if weight.dtype not in KINDS:
        raise UsageError(f"{name} holds {str(weight.dtype).removeprefix('torch.')}", expected="16- or 32-bit floats")
    packed, absmax = _quantized(weight.detach().reshape(-1), code, block)
    if not bool(torch.isfinite(absmax).all()):
        raise NumericError(
            f"tensor {name[:200]!r} holds numbers that are not finite", todo="use an earlier checkpoint of this model"
        )
    blocks = Blocks(packed, absmax, tuple(weight.shape), code, block, weight.dtype)
    return doubled(blocks, name) if double else blocks


def doubled(blocks: Blocks, name: str = "weight") -> Blocks:
    """The same indices with scales in 8 bits. NumericError where the scales are too large to have a mean."""
    offset = blocks.absmax.mean() if len(blocks.absmax) else torch.zeros(())
    if not bool(torch.isfinite(offset)):
        raise NumericError(
            f"tensor {name[:200]!r} holds numbers too large for scales in 8 bits", todo="use double: false"
        )
    rest = blocks.absmax - offset
    rows = torch.nn.functional.pad(rest, (0, -len(rest) % SCALES_BLOCK)).reshape(-1, SCALES_BLOCK)
    nested = rows.abs().amax(dim=1)
    step = (rows * (1 / nested)[:, None] + 1) * 32767.5 + 0.5
    codes = nearest_scales().to(step.device)[step.nan_to_num(0.0).clamp(0, 65535).int()]
    codes = torch.where(nested[:, None] > 0, codes, 0).reshape(-1)[: len(rest)]
    return replace(blocks, absmax=codes, nested=nested, offset=float(offset))


def dequantize_4bit(blocks: Blocks, dtype: torch.dtype = torch.float32, out: Tensor | None = None) -> Tensor:
    """The tensor that 4 bits stand for, computed in float32 and rounded to `dtype`; in the memory of `out` if given."""
    if blocks.packed.device.type == "cuda" and on_gpu(blocks):
        from mickle.kernels import nf4_triton

        rows, columns = blocks.shape
        return nf4_triton.dense(*gpu_parts(blocks), rows, columns, dtype)
    if blocks.packed.device.type != "cpu" or dtype not in KINDS or use_plain():
        return dequantize_plain(blocks, dtype)
    from mickle.kernels import nf4 as kernels

    kind = next((kind for kind in ("avx512", "avx2") if kind in kernels.FEATURES), None)
    if kind is None:
        return dequantize_plain(blocks, dtype)
    n = prod(blocks.shape)
    made = torch.bfloat16 if dtype == torch.bfloat16 else torch.float32
    flat = torch.empty(n, dtype=made) if out is None or out.dtype != made else out[:n]
    kernels.dense(
        blocks.packed.numpy(),
        blocks.scales().numpy(),
        blocks.block,
        table(blocks.code).numpy(),
        flat.numpy() if made == torch.float32 else flat.view(torch.uint16).numpy(),
        torch.get_num_threads(),
        kind,
    )
    return flat.to(dtype).reshape(blocks.shape)


def on_gpu(blocks: Blocks) -> bool:
    """Whether the GPU's kernels take such a weight: blocks of 64 that do not run over row ends."""
    fits = len(blocks.shape) == 2 and blocks.block == BLOCK and blocks.shape[1] % BLOCK == 0
    return fits and not use_plain()


def gpu_parts(blocks: Blocks) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float, Tensor]:
    """What of a weight the GPU's kernels take, on its device."""
    values, map8 = _tables_on(blocks.code, blocks.packed.device)
    return blocks.packed, blocks.absmax, map8, blocks.nested, blocks.offset, values


@cache
def _tables_on(code: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Values of a code and of scales in 8 bits, moved once: each move would make the host wait for the device."""
    return table(code).to(device), dynamic_map().to(device)


def quantize_plain(flat: Tensor, code: str, block: int) -> tuple[Tensor, Tensor]:
    """Packed indices uint8 [ceil(n / 2)] and scales float32 [ceil(n / block)] of numbers [n]: the definition."""
    flat = flat.float()
    end = len(flat) - len(flat) % block
    full, tail = flat[:end].reshape(-1, block), flat[end:]
    absmax = full.abs().amax(dim=1)
    scaled = [(full * (1 / absmax.clamp(min=LEAST))[:, None]).reshape(-1)]
    if len(tail):
        last = tail.abs().max()
        scaled.append(tail / last.clamp(min=LEAST))
        absmax = torch.cat([absmax, last[None]])
    ratios = torch.nn.functional.pad(torch.cat(scaled).clamp(-1, 1), (0, len(flat) % 2))
    index = places(code).to(flat.device)[torch.bucketize(ratios, thresholds(code).to(flat.device))]
    return index[::2] << 4 | index[1::2], absmax


def dequantize_plain(blocks: Blocks, dtype: torch.dtype = torch.float32) -> Tensor:
    """code[index] times the block's scale: the definition."""
    n = prod(blocks.shape)
    index = torch.stack([blocks.packed >> 4, blocks.packed & 15], dim=1).reshape(-1)[:n]
    values = table(blocks.code).to(index.device)[index.int()]
    scales = blocks.scales().repeat_interleave(blocks.block)[:n]
    return (values * scales).to(dtype).reshape(blocks.shape)


def _quantized(flat: Tensor, code: str, block: int) -> tuple[Tensor, Tensor]:
    """As `quantize_plain`, in compiled passes over pieces that stay in the cache, where that is possible."""
    if flat.device.type != "cpu" or use_plain():
        return quantize_plain(flat, code, block)
    from mickle.kernels import nf4 as kernels

    packed = torch.empty((len(flat) + 1) // 2, dtype=torch.uint8)
    absmax = torch.empty(-(-len(flat) // block), dtype=torch.float32)
    bounds, least = thresholds(code).numpy(), np.float32(LEAST)
    for first in range(0, len(flat), _PIECE):
        piece = flat[first : first + _PIECE].float().contiguous()
        stop = first + len(piece)
        to_packed, to_absmax = (packed[first // 2 : (stop + 1) // 2], absmax[first // block : -(-stop // block)])
        kernels.quantize(piece.numpy(), bounds, block, least, to_packed.numpy(), to_absmax.numpy())
    if not torch.equal(places(code), torch.arange(16, dtype=torch.uint8)):
        packed = _byte_places(code)[packed.int()]
    return packed, absmax


@cache
def _byte_places(code: str) -> Tensor:
    """`places` for two indices in one byte: uint8 [256]."""
    high, low = places(code)[:, None], places(code)[None, :]
    return (high << 4 | low).reshape(-1)
