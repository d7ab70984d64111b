"""`kernels/perturb.py` on CUDA: the same counters, so the same directions; imported only where a GPU is.

One program holds a tile of the tensor in registers and adds all draws to it. Of signs, each lane makes the word of
its 32 elements (so a word is made 32 times over: arithmetic is free beside memory); fused multiply-adds are switched
off, and the weights are bit for bit those of the CPU. Normal numbers use the device's logarithm, sine and cosine:
they agree with the CPU's to some 1e-6.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mickle.kernels.perturb import Moves
from mickle.kernels.philox import Stream, two_words

_TILE = 1024


def add_draws_triton(tensor: Tensor, name: str, stream: Stream, moves: Moves) -> None:
    """`add_draws_plain` for a contiguous float32 tensor on CUDA."""
    device = tensor.device
    draws = torch.from_numpy(moves.draws.astype("int64")).to(device)
    scales, factors = (torch.from_numpy(part).to(device) for part in (moves.scales, moves.factors))
    words = [word - (1 << 32) if word >= 1 << 31 else word for word in (*stream.key, *two_words(name))]
    with torch.cuda.device(device):
        _add[(triton.cdiv(tensor.numel(), _TILE),)](
            tensor, tensor.numel(), *words, draws, scales, factors, len(moves.draws),
            SIGNS=stream.kind == "rademacher", TILE=_TILE, enable_fp_fusion=False,
        )  # fmt: skip


@triton.jit(do_not_specialize=["key0", "key1", "name0", "name1", "count"])
def _add(  # type: ignore[no-untyped-def]
    weights,
    size,
    key0,
    key1,
    name0,
    name1,
    draws,
    scales,
    factors,
    count,
    SIGNS: tl.constexpr,
    TILE: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = place < size
    w = tl.load(weights + place, mask=inside, other=0.0)
    for i in range(count):
        draw = tl.load(draws + i).to(tl.uint32)
        scale = tl.load(scales + i)
        factor = tl.load(factors + i)
        if SIGNS:
            block = (place // 128).to(tl.uint32)
        else:
            block = (place // 4).to(tl.uint32)
        c0, c1, c2, c3 = _philox(block, key0, key1, name0, name1, draw)
        if SIGNS:
            part = (place % 128) // 32
            word = tl.where(part == 0, c0, tl.where(part == 1, c1, tl.where(part == 2, c2, c3)))
            bit = (word >> (place % 32).to(tl.uint32)) & 1
            z = tl.where(bit == 1, scale, -scale)
        else:
            first = place % 4 < 2
            z = scale * _normal(tl.where(first, c0, c2), tl.where(first, c1, c3), place % 2)
        w = factor * w + z
    tl.store(weights + place, w, mask=inside)


@triton.jit
def _philox(block, key0, key1, name0, name1, draw):  # type: ignore[no-untyped-def]
    c0 = block
    c1 = tl.zeros_like(block) + name0.to(tl.uint32, bitcast=True)
    c2 = tl.zeros_like(block) + name1.to(tl.uint32, bitcast=True)
    c3 = tl.zeros_like(block) + draw
    k0 = key0.to(tl.uint32, bitcast=True)
    k1 = key1.to(tl.uint32, bitcast=True)
    for _ in tl.static_range(10):
        low = c0.to(tl.uint64) * 0xD2511F53
        high = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (high >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = (high & 0xFFFFFFFF).to(tl.uint32)
        c2 = (low >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = (low & 0xFFFFFFFF).to(tl.uint32)
        k0 = (k0.to(tl.uint64) + 0x9E3779B9).to(tl.uint32)
        k1 = (k1.to(tl.uint64) + 0xBB67AE85).to(tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def _normal(x, y, odd):  # type: ignore[no-untyped-def]
    u = ((x >> 8) + 1).to(tl.float32) * (1.0 / 16777216.0)
    radius = tl.sqrt(-2.0 * tl.log(u))
    share = ((y >> 6) & 0xFFFFFF).to(tl.float32) * (1.0 / 16777216.0)
    angle = ((y >> 30).to(tl.float32) + (share - 0.5)) * 1.5707963267948966
    return radius * tl.where(odd == 0, tl.cos(angle), tl.sin(angle))
