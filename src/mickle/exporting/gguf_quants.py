"""Numbers in llama.cpp's quantized types, and which type each matrix of a file has.

In its types of 256 numbers to a block ("K") the blocks consist of groups, whose scales are themselves whole numbers,
times a 16-bit scale of the block::

    Q6_K    x = d s q          16 groups of 16;  q -32 to 31,  s -128 to 127                  210 bytes
    Q4_K    x = d s q - e m     8 groups of 32;  q 0 to 15,  s and m 0 to 63                  144 bytes

q, s and m are sought group by group: several grids, each fitted anew to what it rounds to by least squares, and of
these the one with the least squared error, which is what a layer's output is off by where its inputs are alike in all
directions; in Q4_K then s and m beside these, and d and e for them. Q4_0, Q5_0, Q8_0 and all
reading are the package gguf's.

Q4_K_M is Q4_K with Q6_K for what suffers most: the output matrix, and in a quarter and more of the layers the values
of attention and the last matrix of the network.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mickle.models.gguf_check import gguf_package

Pair = tuple[Tensor, Tensor]  # of scales and of offsets
BITS = {"Q4_0": 4.5, "Q4_K_M": 4.5, "Q6_K": 6.5625, "Q8_0": 8.5}  # of most of its numbers
# What a matrix is stored in whose rows are no multiple of a type's block: as llama.cpp's own program has it.
COARSER_ROWS = {"Q4_K": "Q5_0", "Q6_K": "Q8_0", "Q4_0": "F16", "Q5_0": "F16", "Q8_0": "F16"}
BLOCK = 256
REFITS = 2  # of Q4_K: then its error is some 2 % below that of llama.cpp's quantizer
CHUNK = 1 << 18  # numbers at a time: more would leave the processor's cache, fewer cost calls


def kept_of(model: nn.Module, wanted: str | None) -> tuple[str, str]:
    """The type of a file that is made of `model`, and what it keeps of layers in few bits, "" where there are none.

    wanted: the type that was asked for; without it layers in few bits get the type whose numbers are nearest in size.
    """
    from mickle.models.quantized import bits_per_weight, quantized_layers

    layers = quantized_layers(model)
    if not layers:
        return wanted or "F16", ""
    bits = bits_per_weight(model)
    kind = wanted or min((name for name in BITS if name != "Q4_0"), key=lambda name: abs(BITS[name] - bits))
    how = "asked for" if wanted else "the nearest type; --format.type names another"
    outliers = any(getattr(layer, "values", None) is not None for layer in layers.values())
    apart = ", and outliers no longer stand apart" if outliers else ""
    lost = f"each number is rounded once more{apart}" if kind in BITS else "each number stays, codes do not"
    return kind, f"{len(layers)} matrices of {bits:.2f} bits a weight become {kind} ({how}): {lost}"


def type_of(name: str, shape: tuple[int, ...], kind: str, layers: int, tied: bool) -> str:
    """The type of the tensor that a file of type `kind` calls `name`. tied: the embedding is the output matrix too."""
    if len(shape) == 1:
        return "F32"
    wanted, sizes = _mixture(name, kind, layers, tied), gguf_package().GGML_QUANT_SIZES
    while shape[-1] % sizes[gguf_package().GGMLQuantizationType[wanted]][0]:
        wanted = COARSER_ROWS[wanted]
    return wanted


def _mixture(name: str, kind: str, layers: int, tied: bool) -> str:
    """The type that llama.cpp's program chooses by a tensor's place; its Q4_0 takes coarser tables than ours."""
    output = name == "output.weight" or (tied and name == "token_embd.weight")
    if kind == "Q4_0":
        return "Q8_0" if output or name == "token_embd.weight" else kind
    if kind != "Q4_K_M":
        return kind
    if output:
        return "Q6_K"
    place = name.split(".")
    sensitive = place[0] == "blk" and place[2] in ("attn_v", "attn_qkv", "ffn_down")
    return "Q6_K" if sensitive and _more_bits(int(place[1]), layers) else "Q4_K"


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def quantize(rows: np.ndarray, kind: str) -> np.ndarray:
    """Numbers [..., N] float32 as the bytes [..., n] of a type of tensors; plain types as they are."""
    found = {"Q4_K": q4_k, "Q6_K": q6_k}.get(kind)
    if found is None:
        gguf = gguf_package()
        stored: np.ndarray = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind])
        return stored
    blocks = torch.from_numpy(rows).reshape(-1, BLOCK)
    parts = [found(part) for part in blocks.split(CHUNK // BLOCK)]
    return torch.cat(parts).reshape(*rows.shape[:-1], -1).numpy()


@torch.no_grad()
def q6_k(blocks: Tensor) -> Tensor:
    """Blocks [B, 256] float32 -> [B, 210] bytes."""
    groups = blocks.view(-1, 16, 16)
    scales = _symmetric(groups, 32)
    large = scales.gather(1, scales.abs().argmax(1, keepdim=True))
    unit = (large / -128).half()  # the largest scale is -128 of them
    steps = _over(scales, unit.float()).round().clamp(-128, 127)
    codes = _over(groups, (unit.float() * steps)[..., None]).round().clamp(-32, 31)
    codes = (codes.view(-1, 2, 4, 32) + 32).to(torch.uint8)
    low, high = codes & 15, codes >> 4
    low = (low[:, :, :2] | low[:, :, 2:] << 4).flatten(1)
    high = (high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6).flatten(1)
    return torch.cat([low, high, steps.to(torch.int8).view(torch.uint8), unit.view(torch.uint8)], 1)


@torch.no_grad()
def q4_k(blocks: Tensor) -> Tensor:
    """Blocks [B, 256] float32 -> [B, 144] bytes."""
    groups = blocks.view(-1, 8, 32)
    parts = _affine(groups, 15)
    units: Any = tuple((part.amax(1, keepdim=True) / 63).half().float() for part in parts)
    steps: Any = tuple(_over(part, unit).round().clamp(0, 63) for part, unit in zip(parts, units, strict=True))
    for _ in range(REFITS):
        steps = _nearer(groups, units, steps)
        units = _refitted(groups, units, steps)
    steps = _nearer(groups, units, steps)
    codes = _codes(groups, units, steps).to(torch.uint8).view(-1, 4, 2, 32)
    s, m = (step.to(torch.uint8) for step in steps)
    packed = [s[:, :4] | s[:, 4:] >> 4 << 6, m[:, :4] | m[:, 4:] >> 4 << 6, s[:, 4:] & 15 | (m[:, 4:] & 15) << 4]
    halves = [unit.half().view(torch.uint8) for unit in units]
    return torch.cat([*halves, *packed, (codes[:, :, 0] | codes[:, :, 1] << 4).flatten(1)], 1)


def _codes(groups: Tensor, units: Pair, steps: Pair) -> Tensor:
    """q [B, 8, 32] of each number, given d and e [B, 1], s and m [B, 8]."""
    scale, offset = (unit * step for unit, step in zip(units, steps, strict=True))
    return _over(groups + offset[..., None], scale[..., None]).round().clamp(0, 15)


def _errors(groups: Tensor, units: Pair, steps: Pair) -> Tensor:
    """The squared error of each group [B, 8]."""
    scale, offset = (unit * step for unit, step in zip(units, steps, strict=True))
    return (scale[..., None] * _codes(groups, units, steps) - offset[..., None] - groups).square().sum(-1)


def _nearer(groups: Tensor, units: Pair, steps: Pair) -> Pair:
    """The best s and m within one of these, for each group."""
    (first, second), (s, m), least = steps, steps, _errors(groups, units, steps)
    for more, further in itertools.product((-1, 0, 1), repeat=2):
        tried = (first + more).clamp(0, 63), (second + further).clamp(0, 63)
        error = _errors(groups, units, tried)
        better = error < least
        s, m = torch.where(better, tried[0], s), torch.where(better, tried[1], m)
        least = torch.minimum(error, least)
    return s, m


def _refitted(groups: Tensor, units: Pair, steps: Pair) -> Pair:
    """d and e by least squares over a block, given its q, s and m; the old ones where those are no better."""
    up = (steps[0][..., None] * _codes(groups, units, steps)).flatten(1)
    down, x = steps[1][..., None].expand_as(groups).flatten(1), groups.flatten(1)
    uu, ud, dd, ux, dx = (
        (a * b).sum(1, keepdim=True) for a, b in ((up, up), (up, down), (down, down), (up, x), (down, x))
    )
    alike = uu * dd - ud * ud
    found = _over(ux * dd - dx * ud, alike), _over(ux * ud - dx * uu, alike).clamp(min=0)
    new: Any = tuple(part.half().float() for part in found)
    better = _errors(groups, new, steps).sum(1, True) < _errors(groups, units, steps).sum(1, True)
    return torch.where(better, new[0], units[0]), torch.where(better, new[1], units[1])


def _symmetric(x: Tensor, levels: int) -> Tensor:
    """Scales [B, G] of groups [B, G, N]: x is near scale * q, q from -levels to levels - 1; the sign is free."""
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    best, least = largest[..., 0] / -levels, torch.full(x.shape[:-1], -1.0)
    for shift in range(-9, 10):
        q = (x * _over(-(levels + 0.1 * shift), largest)).round().clamp(-levels, levels - 1)
        xq, qq = (x * q).sum(-1), (q * q).sum(-1)
        gain = _over(xq * xq, qq)  # how much of sum x^2 the best scale for these q takes away
        better = gain > least
        best, least = torch.where(better, _over(xq, qq), best), torch.where(better, gain, least)
    return best


def _affine(x: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scales and offsets [B, G] of groups [B, G, N], neither below 0: x is near scale * q - offset, q from 0 to top."""
    bottom, count = x.amin(-1, keepdim=True).clamp(max=0), x.shape[-1]
    span, sum_x = x.amax(-1, keepdim=True) - bottom, x.sum(-1)
    best, offset, least = torch.zeros_like(sum_x), -bottom[..., 0], torch.full_like(sum_x, torch.inf)
    for shift in range(-4, 3):
        q = ((x - bottom) * _over(top + 0.3 * shift, span)).round().clamp(0, top)
        sum_q, qq, xq = q.sum(-1), (q * q).sum(-1), (x * q).sum(-1)
        scale = _over(count * xq - sum_x * sum_q, count * qq - sum_q * sum_q)
        below = (scale * sum_q - sum_x) / count
        scale = torch.where(below < 0, _over(xq, qq), scale).clamp(min=0)
        below = below.clamp(min=0)
        error = (scale[..., None] * q - below[..., None] - x).square().sum(-1)
        better = error < least
        least = torch.where(better, error, least)
        best, offset = torch.where(better, scale, best), torch.where(better, below, offset)
    return best, offset


def _over(a: Any, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0."""
    return torch.where(b == 0, 0.0, a / b)
