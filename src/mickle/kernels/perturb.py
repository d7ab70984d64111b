"""Add random directions to a tensor in place: what a forward-only step does to every weight.

For draws d_1 ... d_n with scales a_i and factors k_i, element by element and in this order,

    w <- k_i w + a_i z(d_i),   i = 1 ... n

with z(d) as `kernels/philox.py` makes it. One draw is a perturbation; two merge a restore with the next perturbation;
an update with momentum has some dozens; a replay has thousands. A tile of the tensor stays in the first cache while all
draws are added to it, so n draws move each weight through memory once. The result does not depend on tiles and threads.

`add_draws_plain` is the definition, for every floating dtype, device and stride; `add_draws_numba` is for contiguous
float32 in this machine's memory, `perturb_triton.py` for CUDA. `add_draws` chooses.
"""

import numba
import numpy as np
import torch
from torch import Tensor

from mickle.kernels import philox
from mickle.kernels.compiled import compiled
from mickle.kernels.philox import Moves, Stream, direction, two_words

_PLAIN_TILE = 1 << 20  # elements: what the plain version holds beside the tensor is some dozens of MB
_CHUNK = 1 << 16  # elements a thread takes at a time
_PARALLEL_FROM = 2 * _CHUNK  # with less a second thread would have nothing to do


@torch.no_grad()
def add_draws(tensor: Tensor, name: str, stream: Stream, moves: Moves) -> None:
    """Add `moves` to `tensor`, known to the generator as `name`, by the fastest path that fits."""
    if tensor.numel() == 0 or len(moves.draws) == 0:
        return
    if tensor.numel() > philox.MOST_ELEMENTS:
        raise ValueError(f"{name} has more than {philox.MOST_ELEMENTS:,} elements")
    if fits_numba(tensor):
        add_draws_numba(tensor, name, stream, moves)
    elif tensor.device.type == "cuda" and tensor.dtype == torch.float32 and tensor.is_contiguous():
        from mickle.kernels.perturb_triton import add_draws_triton

        add_draws_triton(tensor, name, stream, moves)
    else:
        add_draws_plain(tensor, name, stream, moves)


def fits_numba(tensor: Tensor) -> bool:
    """Whether a tensor is contiguous float32 in this machine's own memory."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.is_contiguous()


@torch.no_grad()
def add_draws_plain(tensor: Tensor, name: str, stream: Stream, moves: Moves) -> None:
    """The definition. float64 tensors are computed in float64, all others in float32 and rounded once, at the end."""
    wide = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
    flat = tensor.detach().reshape(-1)  # a copy where the strides demand it
    for start in range(0, flat.numel(), _PLAIN_TILE):
        part = flat[start : start + _PLAIN_TILE]
        values = part.to(wide)
        for draw, scale, factor in zip(moves.draws.tolist(), moves.scales.tolist(), moves.factors.tolist()):
            z = torch.from_numpy(direction(stream, name, draw, start, len(part))).to(part.device, wide)
            values = values * factor + z * scale
        part.copy_(values)
    if flat.data_ptr() != tensor.data_ptr():
        tensor.copy_(flat.view(tensor.shape))


def add_draws_numba(tensor: Tensor, name: str, stream: Stream, moves: Moves) -> None:
    """`add_draws_plain`, bit for bit, for tensors that pass `fits_numba`; on as many threads as torch uses."""
    weights = tensor.detach().numpy().reshape(-1)
    words = np.array([*stream.key, *two_words(name)], dtype=np.uint32)
    signs = stream.kind == "rademacher"
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    if threads > 1 and weights.size >= _PARALLEL_FROM:
        numba.set_num_threads(threads)
        _add_in_chunks(weights, words, moves.draws, moves.scales, moves.factors, signs)
    else:
        _add(weights, 0, words, moves.draws, moves.scales, moves.factors, signs)


# -- compiled ----------------------------------------------------------------------------------------------------------

_TILE = 2048  # elements: 16 blocks of signs, 512 blocks of normal numbers
_LANES = 16  # blocks made at a time, so that their rounds become vector instructions
_M0, _M1, _W0, _W1 = np.uint64(philox.M0), np.uint64(philox.M1), np.uint32(philox.W0), np.uint32(philox.W1)
_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


@numba.njit(cache=True, nogil=True, error_model="numpy", parallel=True)
def _add_in_chunks(weights, words, draws, scales, factors, signs):  # type: ignore[no-untyped-def]
    for chunk in numba.prange((weights.size + _CHUNK - 1) // _CHUNK):
        part = weights[chunk * _CHUNK : (chunk + 1) * _CHUNK]
        _add(part, chunk * _CHUNK, words, draws, scales, factors, signs)


@compiled
def _add(weights, offset, words, draws, scales, factors, signs):  # type: ignore[no-untyped-def]
    """Tile by tile; `offset`, a multiple of the tile, is the place of the first weight in its tensor."""
    random = np.empty(4 * _LANES, dtype=np.uint32)
    z = np.empty(_TILE, dtype=np.float32)
    rest = np.zeros(_TILE, dtype=np.float32)
    whole = weights.size - weights.size % _TILE
    for start in range(0, weights.size, _TILE):
        if start < whole:
            tile = weights[start : start + _TILE]
        else:
            rest[: weights.size - whole] = weights[whole:]
            tile = rest
        for i in range(draws.size):  # all draws while the tile is in the first cache
            if signs:
                _fill(random, (offset + start) // 128, words, draws[i])
                _add_signs(tile, random, scales[i], factors[i])
            else:
                for group in range(_TILE // (4 * _LANES)):
                    _fill(random, (offset + start) // 4 + group * _LANES, words, draws[i])
                    _normal_numbers(z[group * 4 * _LANES :], random)
                _add_numbers(tile, z, scales[i], factors[i])
    if whole < weights.size:
        weights[whole:] = rest[: weights.size - whole]


@compiled
def _fill(random, first, words, draw):  # type: ignore[no-untyped-def]
    """The words of 16 blocks; word i of lane l is written to [16 i + l]."""
    for lane in range(_LANES):  # no lane waits for another: the compiler makes all of them at once
        c0 = np.uint32(first + lane)
        c1 = words[2]
        c2 = words[3]
        c3 = draw
        k0 = words[0]
        k1 = words[1]
        for _ in range(10):
            low = _M0 * np.uint64(c0)
            high = _M1 * np.uint64(c2)
            c0 = np.uint32(np.uint32(high >> _HALF) ^ c1 ^ k0)
            c1 = np.uint32(high & _LOW)
            c2 = np.uint32(np.uint32(low >> _HALF) ^ c3 ^ k1)
            c3 = np.uint32(low & _LOW)
            k0 = np.uint32(k0 + _W0)
            k1 = np.uint32(k1 + _W1)
        random[lane] = c0
        random[_LANES + lane] = c1
        random[2 * _LANES + lane] = c2
        random[3 * _LANES + lane] = c3


@compiled
def _add_signs(tile, random, scale, factor):  # type: ignore[no-untyped-def]
    for lane in range(_LANES):
        for word in range(4):
            bits = random[word * _LANES + lane]
            part = tile[(4 * lane + word) * 32 : (4 * lane + word) * 32 + 32]
            for j in range(32):
                part[j] = factor * part[j] + (scale if (bits >> np.uint32(j)) & np.uint32(1) else -scale)


@compiled
def _add_numbers(tile, z, scale, factor):  # type: ignore[no-untyped-def]
    for i in range(_TILE):
        tile[i] = factor * tile[i] + scale * z[i]


@compiled
def _normal_numbers(z, random):  # type: ignore[no-untyped-def]
    """64 normal numbers of 16 blocks, by the same operations in the same order as the plain definition."""
    one = np.float32(1)
    for pair in range(2):
        for lane in range(_LANES):
            x = random[2 * pair * _LANES + lane]
            y = random[(2 * pair + 1) * _LANES + lane]
            # 1 is added so that no logarithm is of 0; 24 bits are what float32 holds without rounding.
            value = np.float32(np.uint32((x >> np.uint32(8)) + np.uint32(1)))
            bits = value.view(np.int32)
            mantissa = np.int32((bits & np.int32(0x7FFFFF)) | np.int32(0x3F000000)).view(np.float32)
            below = mantissa < philox.SQUARE_ROOT_OF_HALF
            exponent = np.int32((bits >> np.int32(23)) - np.int32(126 + 24) - np.int32(below))
            mantissa = mantissa + mantissa if below else mantissa  # near 1, where a short series is enough
            s = (mantissa - one) / (mantissa + one)
            q = s * s
            series = q * (philox.L3 + q * (philox.L5 + q * (philox.L7 + q * philox.L9)))
            log = np.float32(exponent) * philox.LOG_2 + (s + s) * (one + series)
            radius = np.sqrt(np.float32(-2) * log)
            share = np.float32(np.int32((y >> np.uint32(6)) & np.uint32(0xFFFFFF))) * np.float32(2.0**-24)
            t = (share - np.float32(0.5)) * philox.HALF_PI
            p = t * t
            sine = t + t * (p * (philox.S3 + p * (philox.S5 + p * (philox.S7 + p * philox.S9))))
            cosine = one + p * (philox.C2 + p * (philox.C4 + p * (philox.C6 + p * philox.C8)))
            odd = (y >> np.uint32(30)) & np.uint32(1)
            a = cosine if odd else sine
            b = -sine if odd else cosine
            turned = y >> np.uint32(31)
            z[4 * lane + 2 * pair] = radius * (-b if turned else b)
            z[4 * lane + 2 * pair + 1] = radius * (-a if turned else a)
