"""SpQR: A Sparse-Quantized Representation for Near-Lossless LLM Weight Compression (arXiv 2306.03078), its sweep.

Claim: at 3 to 4.7 bits a weight, some weights in 16 bits, perplexity stays within 1 % of the 16-bit model. This is the
published algorithm (section 4, algorithm 1) in torch, one column at a time and one trial fit for every weight; it
defines what `kernels/sweep.py` computes in another order. With U upper, H^-1 = U^T U, u_c = U_cc, columns left to
right::

    q = clamp(round(w / s + z), 0, 2^b - 1)      w^ = s (q - z)      e = (w - w^) / u_c      W[:, c+1:] -= e U[c, c+1:]
    min-max fit of a group:       s = (max - min) / (2^b - 1),  z = -min / s, not rounded
    loss of a group row:          L = sum_k ((w^_k - w_k) / u_k)^2
    j is a provisional outlier:   L - L_j > theta, L_j the loss of the others under the fit of the others
    a weight is an outlier:       e^2 > theta

A group is fitted when the sweep reaches its first column, on the weights as they are by then, provisional outliers put
at the mean of the others. Second level: the scales of 16 rows are themselves min-max coded in 3 bits, and so are the
zeros. Without outliers and second level this is GPTQ (arXiv 2210.17323); without the last equation of the first line
it is rounding to nearest.

Departures. The 16-bit numbers are rounded where they arise, not when all is done, so that later columns make up for
it. An outlier keeps what 16 bits hold of its difference to the dense value, and its error is what that leaves, where
the paper counts 0. A group row whose values agree to 12 bits takes them for one value c and is stored as s = |c| /
(2^b - 1), z = 0 or 2^b - 1, so that a code is exactly c, where the authors' code fits [-1, 1]; a row of zeros takes
the statistics of its tile's row of smallest scale, for the others' range would suffer. The same goes for a tile whose
scales are all equal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mickle.kernels.strips import LARGEST_HALF, STRIP
from mickle.kernels.sweep import NARROWEST, Parts, SweepSettings


def plain_sweep(weight: Tensor, upper: Tensor, threshold: float, settings: SweepSettings) -> Parts:
    """As `kernels.sweep.sweep_columns`, of tensors."""
    outputs, inputs = weight.shape
    group, top = settings.group_of(inputs), 2**settings.bits - 1
    groups, strips = -(-inputs // group), -(-outputs // STRIP)
    work = weight.clone()
    codes, stored, residuals, errors = (torch.zeros_like(work) for _ in range(4))
    statistics = work.new_zeros(2, groups, strips * STRIP)
    second = work.new_zeros(groups, strips, 4)
    sensitivity = upper.diagonal()
    for column in range(inputs):
        g = column // group
        if column % group == 0:
            members = slice(column, min(column + group, inputs))
            scale, zero = _fit_group(work[:, members], sensitivity[members], threshold, top, settings.leave_one_out)
            if settings.two_level:
                scale, zero = _second_level(scale, zero, statistics[:, g], second[g])
            else:
                scale, zero = half(scale), half(zero)
                statistics[:, g, :outputs] = torch.stack([scale, zero])
        w = work[:, column]
        q = _code(w, scale, zero, top)
        dense = scale * (q - zero)
        found = ((w - dense) / sensitivity[column]).square() > threshold
        residual = torch.where(found, half(w - dense), 0)
        dense = dense + residual
        error = (w - dense) / sensitivity[column]
        codes[:, column], stored[:, column] = q, dense
        residuals[:, column], errors[:, column] = residual, error
        if settings.compensate:
            work[:, column + 1 :] -= error[:, None] * upper[column, column + 1 :]
    return Parts(
        codes.numpy().astype(np.uint8),
        statistics.numpy().astype(np.uint8) if settings.two_level else statistics.numpy(),
        second.numpy() if settings.two_level else None,
        residuals.numpy(),
        stored.numpy(),
        errors.numpy(),
    )


def _fit_group(
    members: Tensor, sensitivity: Tensor, threshold: float, top: int, leave_one_out: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero [outputs] of a group's weights [outputs, n], its provisional outliers left out."""
    if leave_one_out and threshold < float("inf") and members.shape[1] > 1:
        outlying = _usefulness(members, sensitivity, top) > threshold
        count = (~outlying).sum(1, keepdim=True).clamp(min=1)
        mean = members.masked_fill(outlying, 0).sum(1, keepdim=True) / count
        members = torch.where(outlying, mean, members)
        members = _within(members, outlying)
    return _fit(members, top)


def _within(members: Tensor, outlying: Tensor) -> Tensor:
    """Rounding may carry the mean of equal weights past them; it must not widen the range."""
    infinite = float("inf")
    low = members.masked_fill(outlying, infinite).amin(1, keepdim=True)
    high = members.masked_fill(outlying, -infinite).amax(1, keepdim=True)
    return torch.where(outlying & (low <= high), members.clamp(low, high), members)


def _usefulness(members: Tensor, sensitivity: Tensor, top: int) -> Tensor:
    """L - L_j for every weight j [outputs, n]: one fit on the others each."""
    whole = _losses(members, *_trial_fit(members, top), sensitivity, top).sum(1)
    useful = []
    for j in range(members.shape[1]):
        others = [k for k in range(members.shape[1]) if k != j]
        fit = _trial_fit(members[:, others], top)
        useful.append(whole - _losses(members[:, others], *fit, sensitivity[others], top).sum(1))
    return torch.stack(useful, dim=1)


def _losses(members: Tensor, scale: Tensor, zero: Tensor, sensitivity: Tensor, top: int) -> Tensor:
    scale, zero = scale[:, None], zero[:, None]
    return ((scale * (_code(members, scale, zero, top) - zero) - members) / sensitivity).square()


def _fit(members: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """Scale and zero [outputs] of weights [outputs, n] by their smallest and largest."""
    low, high = members.amin(1), members.amax(1)
    wide = high - low > torch.maximum(low.abs(), high.abs()) * NARROWEST
    middle = (low + high) / 2
    scale = torch.where(wide, (high - low) / top, middle.abs() / top)
    zero = torch.where(wide, -low / scale, torch.where(middle >= 0, 0, top).to(scale.dtype))
    return scale, zero


def _trial_fit(members: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """As `_fit`, with scale 1 in place of 0: trial fits do not quantize their statistics."""
    scale, zero = _fit(members, top)
    return torch.where(scale > 0, scale, 1), zero


def _code(w: Tensor, scale: Tensor, zero: Tensor, top: int) -> Tensor:
    return torch.where(scale > 0, (w / scale + zero).round().clamp(0, top), 0)


def _second_level(scale: Tensor, zero: Tensor, codes: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Statistics [outputs] as codes [2, rows] and second [strips, 4] give them; all four are filled in."""
    for strip in range(len(second)):
        rows = slice(strip * STRIP, min((strip + 1) * STRIP, len(scale)))
        tile_scale, tile_zero = scale[rows], zero[rows]
        positive = tile_scale > 0
        if positive.any():
            smallest = torch.where(positive, tile_scale, float("inf")).argmin()
            tile_scale[~positive], tile_zero[~positive] = tile_scale[smallest], tile_zero[smallest]
        else:
            tile_zero[:] = 0
        for level, values in enumerate((tile_scale, tile_zero)):
            code, step, origin = _code_values(values)
            codes[level, strip * STRIP : strip * STRIP + STRIP] = code[-1]  # rows that fill a strip repeat its last
            codes[level, rows] = code
            second[strip, 2 * level], second[strip, 2 * level + 1] = step, origin
            values[:] = step * (code - origin)
    return scale, zero


def _code_values(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """3-bit codes of at most 16 values, and the 16-bit scale and zero of their fit."""
    low, high = values.min(), values.max()
    step, origin = half((high - low) / 7), low.new_zeros(())
    if step > 0 and high - low > max(low.abs(), high.abs()) * NARROWEST:
        origin = half(-low / step)
    else:
        step = half((low + high) / 2)
    if step == 0:
        return torch.zeros_like(values), step, origin
    return (values / step + origin).round().clamp(0, 7), step, origin


def half(x: Tensor) -> Tensor:
    """The nearest numbers that 16 bits hold, by way of float32; at most 65504."""
    return x.float().clamp(-LARGEST_HALF, LARGEST_HALF).half().to(x.dtype)
