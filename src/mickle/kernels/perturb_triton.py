"""`kernels/perturb.py` on CUDA: the same counters, so the same directions; imported only where a GPU is.

One program holds a tile of the tensor in registers and adds all draws to it. Each lane makes the words of its own
element (so a word of signs is made 32 times over: arithmetic is free beside memory). Fused multiply-adds are switched
off and quotients and roots are rounded as IEEE 754 has it; so weights are bit for bit those of the CPU, with signs and
with normal numbers.

A test runs this under Triton's interpreter, on tensors of the CPU.
"""

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mickle.kernels.philox import Moves, Stream, two_words

_TILE = 1024


def add_draws_triton(tensor: Tensor, name: str, stream: Stream, moves: Moves) -> None:
    """`add_draws_plain` for a contiguous float32 tensor on CUDA. The host does not wait for the device."""
    count = len(moves.draws)
    # All are of 32 bits, so they travel as one.
    table = torch.from_numpy(
        np.concatenate([part.view(np.int32) for part in (moves.draws, moves.scales, moves.factors)])
    )
    if tensor.is_cuda:
        table = table.pin_memory().to(tensor.device, non_blocking=True)
    words = [word - (1 << 32) if word >= 1 << 31 else word for word in (*stream.key, *two_words(name))]
    with torch.cuda.device_of(tensor):
        _add[(triton.cdiv(tensor.numel(), _TILE),)](
            tensor, tensor.numel(), *words, table, count,
            SIGNS=stream.kind == "rademacher", TILE=_TILE, enable_fp_fusion=False,
        )  # fmt: skip


@triton.jit(do_not_specialize=["key0", "key1", "name0", "name1", "count"])
def _add(  # type: ignore[no-untyped-def]
    weights, size, key0, key1, name0, name1, table, count, SIGNS: tl.constexpr, TILE: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    inside = place < size
    w = tl.load(weights + place, mask=inside, other=0.0)
    i = 0
    while i < count:  # Triton's interpreter takes no loop over a range whose end is an argument
        draw = tl.load(table + i).to(tl.uint32, bitcast=True)
        scale = tl.load(table + count + i).to(tl.float32, bitcast=True)
        factor = tl.load(table + 2 * count + i).to(tl.float32, bitcast=True)
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
        i += 1
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
    """One of the two numbers of a pair of words, by the operations of `philox.py` in their order."""
    radius = tl.sqrt_rn(-2.0 * _log(x))
    share = ((y >> 6) & 0xFFFFFF).to(tl.float32) * (1.0 / 16777216.0)
    t = (share - 0.5) * 1.5707964
    p = t * t
    sine = t + t * (p * (-1 / 6 + p * (1 / 120 + p * (-1 / 5040 + p * (1 / 362880)))))
    cosine = 1.0 + p * (-1 / 2 + p * (1 / 24 + p * (-1 / 720 + p * (1 / 40320))))
    quarter = y >> 30
    sideways = quarter & 1  # by a quarter of a turn cosine becomes -sine, and sine cosine
    value = tl.where((odd == 1) == (sideways == 1), cosine, sine)
    negative = ((sideways == 1) & (odd == 0)) != (quarter >= 2)
    return radius * tl.where(negative, -value, value)


@triton.jit
def _log(x):  # type: ignore[no-untyped-def]
    """ln((x / 2^8 + 1) / 2^24): the exponent from the number's bits, and the series for the rest."""
    bits = ((x >> 8) + 1).to(tl.float32).to(tl.int32, bitcast=True)
    mantissa = ((bits & 0x7FFFFF) | 0x3F000000).to(tl.float32, bitcast=True)  # in [1/2, 1)
    below = mantissa < 0.70710677
    exponent = (bits >> 23) - 150 - below.to(tl.int32)
    mantissa = tl.where(below, mantissa + mantissa, mantissa)
    s = tl.div_rn(mantissa - 1.0, mantissa + 1.0)
    q = s * s
    series = q * (1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9))))
    return exponent.to(tl.float32) * 0.6931472 + (s + s) * (1.0 + series)
