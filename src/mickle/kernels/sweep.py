"""The column sweep of GPTQ and SpQR by strips of 16 rows: `compression/plain_sweep.py` in the order a processor likes.

Rows do not touch each other once U and the threshold are there, and a tile of the second level is 16 rows high; so a
strip of 16 rows is done on its own, its rows side by side in a register, strips shared among threads. What a column's
error changes in its block of 128 columns is changed at once; the columns after the block are changed by one matrix
product a block.

Leave-one-out needs three fits, not one a weight: dropping a weight changes a min-max fit only where it is the smallest
(then the next smallest counts) or the largest. The loss without any other weight is the whole loss less its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from mickle.kernels.assembly import side_by_side
from mickle.kernels.compiled import compiled
from mickle.kernels.strips import LARGEST_HALF, STRIP

BLOCK = 128  # columns, as in GPTQ; a multiple of every group size but "row"
NARROWEST = 2.0**-12  # of a group's span over its size; below, the group counts as one value


@dataclass(frozen=True)
class SweepSettings:
    """How a matrix is quantized.

    bits 2 to 4; group: 8, 16, 32, 64 or 128 columns, 0 for a whole row; two_level: statistics in 3 bits with a second
    level, else in 16; tau: the threshold of outliers, infinity for none; leave_one_out: leave provisional outliers
    out of the fits; compensate: later columns make up for earlier errors; act_order: most active inputs first;
    damping: lambda (`compression/sweep.py` has the equations).
    """

    bits: int = 3
    group: int = 16
    two_level: bool = True
    tau: float = math.inf
    leave_one_out: bool = True
    compensate: bool = True
    act_order: bool = True
    damping: float = 0.01

    def group_of(self, inputs: int) -> int:
        """Columns of a group in a matrix with so many inputs."""
        return min(self.group or inputs, inputs)


@dataclass(frozen=True)
class Parts:
    """What a sweep decides, columns in the order they were given in.

    codes uint8 [outputs, inputs]; statistics [2, groups, rows]: uint8 codes of scales and zeros with a second level,
    else floats that 16 bits hold; rows: those of whole strips; second [groups, strips, 4] or None; residuals
    [outputs, inputs], 0 where there is no outlier; weight [outputs, inputs] as stored; errors [outputs, inputs], the
    E of W - Q = E U (without compensation, what was left).
    """

    codes: np.ndarray
    statistics: np.ndarray
    second: np.ndarray | None
    residuals: np.ndarray
    weight: np.ndarray
    errors: np.ndarray


def sweep_columns(
    weight: np.ndarray,
    upper: np.ndarray,
    threshold: float,
    settings: SweepSettings,
    threads: int = 1,
    block: int = BLOCK,
) -> Parts:
    """Quantize the columns of `weight` [outputs, inputs] from left to right. float32 or float64 throughout.

    upper [inputs, inputs]: U of H^-1 = U^T U. A weight whose squared error (w - q)^2 / U_cc^2 exceeds `threshold` is
    an outlier; infinity: none. `block` is a multiple of the group, or the group is all columns.
    """
    outputs, inputs = weight.shape
    group, compensate, two_level = settings.group_of(inputs), settings.compensate, settings.two_level
    strips, groups = -(-outputs // STRIP), -(-inputs // group)
    rows = strips * STRIP
    dtype = weight.dtype
    # Columns first, and the last row again for the rows that fill its strip: a tile's extremes stay what they are.
    work = np.empty((inputs, rows), dtype)
    work[:, :outputs] = weight.T
    work[:, outputs:] = weight[-1][:, None]
    codes = np.empty((inputs, rows), np.uint8)
    scales, zeros = np.empty((groups, rows), dtype), np.empty((groups, rows), dtype)
    coded = np.zeros((2, groups, rows), np.uint8)
    second = np.zeros((groups, strips, 4), dtype)
    residuals, errors = np.zeros((inputs, rows), dtype), np.empty((inputs, rows), dtype)
    stored = np.empty((inputs, rows), dtype)
    theta = dtype.type(threshold)
    seeks = settings.leave_one_out and math.isfinite(threshold)
    shares = np.linspace(0, strips, min(threads, strips) + 1).astype(int)
    for begin in range(0, inputs, block):
        end = min(begin + block, inputs)
        own = (begin, end, group, settings.bits, two_level, seeks, compensate, theta)
        arrays = (work, upper, codes, scales, zeros, coded, second, residuals, stored, errors)
        side_by_side([(_sweep_strips, *arrays, *own, *pair) for pair in pairwise(shares)])
        if compensate and end < inputs:
            later = torch.from_numpy(work[end:])
            across = torch.from_numpy(upper[begin:end, end:])
            later.addmm_(across.T, torch.from_numpy(errors[begin:end]), alpha=-1)

    def by_rows(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array[:, :outputs].T)

    statistics = coded if two_level else np.stack([scales, zeros])
    return Parts(
        by_rows(codes), statistics, second if two_level else None, by_rows(residuals), by_rows(stored), by_rows(errors)
    )  # fmt: skip


@compiled
def _sweep_strips(  # type: ignore[no-untyped-def]
    work, upper, codes, scales, zeros, coded, second, residuals, stored, errors,
    begin, end, group, bits, two_level, seeks, compensate, theta, first, last,
):  # fmt: skip
    """Columns begin to end of strips first to last; their errors change the block's later columns."""
    top = work.dtype.type(2**bits - 1)
    inputs = work.shape[0]
    error = np.empty(STRIP, work.dtype)
    wide = group if group < inputs else inputs
    losses = np.empty((wide, STRIP), work.dtype)
    dropped = np.zeros((wide, STRIP), np.bool_)
    for strip in range(first, last):
        lanes = slice(strip * STRIP, (strip + 1) * STRIP)
        for column in range(begin, end):
            g = column // group
            scale, zero = scales[g, lanes], zeros[g, lanes]
            if column % group == 0:
                members = work[column : min(column + group, inputs), lanes]
                if seeks and len(members) > 1:
                    _find_outliers(members, upper, column, top, theta, losses, dropped)
                else:
                    dropped[: len(members)] = False
                _fit_groups(members, dropped, top, scale, zero)
                if two_level:
                    tile = second[g, strip]
                    _quantize_statistics(scale, zero, coded[0, g, lanes], coded[1, g, lanes], tile)
                else:
                    for lane in range(STRIP):
                        scale[lane] = _half(scale[lane])
                        zero[lane] = _half(zero[lane])
            _quantize_column(
                work[column, lanes], scale, zero, top, upper[column, column], theta, codes[column, lanes],
                residuals[column, lanes], stored[column, lanes], error,
            )  # fmt: skip
            errors[column, lanes] = error
            if compensate:
                for later in range(column + 1, end):
                    factor = upper[column, later]
                    target = work[later, lanes]
                    for lane in range(STRIP):
                        target[lane] -= error[lane] * factor


@compiled
def _quantize_column(  # type: ignore[no-untyped-def]
    weight, scale, zero, top, sensitivity, theta, codes, residuals, stored, error
):
    """One column of a strip: codes, outliers, what is stored, and the error over U_cc."""
    nothing = weight.dtype.type(0)
    for lane in range(STRIP):
        s, z, w = scale[lane], zero[lane], weight[lane]
        q = min(max(np.rint(w / s + z), nothing), top) if s > nothing else nothing
        dense = s * (q - z)
        e = (w - dense) / sensitivity
        if e * e > theta:
            residual = _half(w - dense)
            residuals[lane] = residual
            dense += residual
            e = (w - dense) / sensitivity
        codes[lane] = np.uint8(q)
        stored[lane] = dense
        error[lane] = e


@compiled
def _find_outliers(members, upper, column, top, theta, losses, dropped):  # type: ignore[no-untyped-def]
    """Mark in `dropped` [n, 16] the weights without which the others' loss falls by more than `theta`."""
    n = len(members)
    big, nothing = members.dtype.type(np.inf), members.dtype.type(0)
    low, next_low = np.full(STRIP, big), np.full(STRIP, big)
    high, next_high = np.full(STRIP, -big), np.full(STRIP, -big)
    at_low, at_high = np.zeros(STRIP, np.int64), np.zeros(STRIP, np.int64)
    for k in range(n):
        for lane in range(STRIP):
            w = members[k, lane]
            if w < low[lane]:
                next_low[lane] = low[lane]
                low[lane], at_low[lane] = w, k
            else:
                next_low[lane] = min(next_low[lane], w)
            if w > high[lane]:
                next_high[lane] = high[lane]
                high[lane], at_high[lane] = w, k
            else:
                next_high[lane] = max(next_high[lane], w)
    fits = np.empty((3, 2, STRIP), members.dtype)  # whole, without the smallest, without the largest
    for lane in range(STRIP):
        fits[0, 0, lane], fits[0, 1, lane] = _trial_fit(low[lane], high[lane], top)
        # Where all are equal the smallest and the largest are the same one.
        above = high[lane] if at_high[lane] != at_low[lane] else low[lane]
        fits[1, 0, lane], fits[1, 1, lane] = _trial_fit(next_low[lane], above, top)
        fits[2, 0, lane], fits[2, 1, lane] = _trial_fit(low[lane], next_high[lane], top)
    whole, without_low, without_high = np.zeros((3, STRIP), members.dtype)
    for k in range(n):
        u = upper[column + k, column + k]
        for lane in range(STRIP):
            w = members[k, lane]
            loss = _loss(w, fits[0, 0, lane], fits[0, 1, lane], top, u)
            losses[k, lane] = loss
            whole[lane] += loss
            without = _loss(w, fits[1, 0, lane], fits[1, 1, lane], top, u)
            without_low[lane] += nothing if k == at_low[lane] else without
            without = _loss(w, fits[2, 0, lane], fits[2, 1, lane], top, u)
            without_high[lane] += nothing if k == at_high[lane] else without
    for k in range(n):
        for lane in range(STRIP):
            useful = losses[k, lane]
            if k == at_low[lane]:
                useful = whole[lane] - without_low[lane]
            elif k == at_high[lane]:
                useful = whole[lane] - without_high[lane]
            dropped[k, lane] = useful > theta


@compiled
def _fit_groups(members, dropped, top, scale, zero):  # type: ignore[no-untyped-def]
    """Scale and zero of each lane from its weights that are not dropped; if all are, from 0 alone."""
    big = members.dtype.type(np.inf)
    low, high = np.full(STRIP, big), np.full(STRIP, -big)
    for k in range(len(members)):
        for lane in range(STRIP):
            if not dropped[k, lane]:
                low[lane] = min(low[lane], members[k, lane])
                high[lane] = max(high[lane], members[k, lane])
    for lane in range(STRIP):
        if low[lane] > high[lane]:
            low[lane] = high[lane] = members.dtype.type(0)
        scale[lane], zero[lane] = _fit(low[lane], high[lane], top)


@compiled
def _quantize_statistics(scale, zero, scale_codes, zero_codes, tile):  # type: ignore[no-untyped-def]
    """The second level of one tile: codes and 16-bit numbers, and in place the statistics that they give."""
    nothing = scale.dtype.type(0)
    smallest = -1
    for lane in range(STRIP):
        if scale[lane] > nothing and (smallest < 0 or scale[lane] < scale[smallest]):
            smallest = lane
    for lane in range(STRIP):  # rows of zeros alone must not widen the range of the others
        if not scale[lane] > nothing:
            scale[lane] = scale[smallest] if smallest >= 0 else nothing
            zero[lane] = zero[smallest] if smallest >= 0 else nothing
    tile[0], tile[1] = _code_values(scale, scale_codes)
    tile[2], tile[3] = _code_values(zero, zero_codes)


@compiled
def _code_values(values, codes):  # type: ignore[no-untyped-def]
    """3-bit codes of 16 values in place of them, by a min-max fit with 16-bit scale and zero, which are returned."""
    top = values.dtype.type(7)
    nothing = values.dtype.type(0)
    low, high = values.min(), values.max()
    step = _half((high - low) / top)
    origin = nothing
    if step > nothing and high - low > values.dtype.type(NARROWEST) * max(abs(low), abs(high)):
        origin = _half(-low / step)
    else:
        step = _half((low + high) / values.dtype.type(2))  # one value: code 1
    for lane in range(STRIP):
        code = nothing
        if step != nothing:
            code = min(max(np.rint(values[lane] / step + origin), nothing), top)
        codes[lane] = np.uint8(code)
        values[lane] = step * (code - origin)
    return step, origin


@compiled
def _fit(low, high, top):  # type: ignore[no-untyped-def]
    """Scale and zero of a min-max fit; of one value alone, that value exactly; of 0 alone, scale 0."""
    if high - low > max(abs(low), abs(high)) * NARROWEST:
        scale = (high - low) / top
        return scale, -low / scale
    middle = (low + high) * type(top)(0.5)
    return abs(middle) / top, type(top)(0) if middle >= 0 else top


@compiled
def _trial_fit(low, high, top):  # type: ignore[no-untyped-def]
    """As `_fit`, with scale 1 in place of 0."""
    scale, zero = _fit(low, high, top)
    return scale if scale > 0 else type(top)(1), zero


@compiled
def _loss(w, scale, zero, top, sensitivity):  # type: ignore[no-untyped-def]
    """((s (q - z) - w) / u)^2."""
    q = min(max(np.rint(w / scale + zero), type(top)(0)), top)
    e = (scale * (q - zero) - w) / sensitivity
    return e * e


@compiled
def _half(x):  # type: ignore[no-untyped-def]
    """The nearest number that 16 bits hold, ties to even, by way of float32; at most 65504."""
    single = np.float32(x)
    if not abs(single) < np.float32(LARGEST_HALF):
        return type(x)(LARGEST_HALF) if single > 0 else -type(x)(LARGEST_HALF)
    if single == np.float32(0):
        return x - x
    _, exponent = math.frexp(np.float64(single))
    unit = math.ldexp(1.0, max(exponent - 11, -24))
    return type(x)(np.rint(np.float64(single) / unit) * unit)
