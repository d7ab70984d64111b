"""Turning pairs of dimensions by their angles, with a backward pass that is the same turn the other way round.

A rotation's transpose is its inverse, so the gradient of ``rotate(x, cos, sin)`` is ``rotate(g, cos, -sin)``. Left to
autograd, the two halves' slices would each fill an array of zeros, and four products would keep their inputs.
"""

from typing import Any

import torch
from torch import Tensor

from mickle.kernels.dispatch import refuse_second_derivative, use_plain


def rotate_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (x[k], x[k + R/2]) of the first R dimensions by its angle; the other K - R stay as they are.

    x [..., K]; cosine, sine [..., R/2], broadcast over x and without gradients -> [..., K] in x's dtype.
    """
    fits = x.device.type == "cpu" and x.dim() > 1 and not torch.compiler.is_compiling()
    if use_plain() or not (fits and torch.is_grad_enabled() and x.requires_grad):
        return rotate_pairs_plain(x, cosine, sine)
    return _Rotation.apply(x, cosine, sine)


def rotate_pairs_plain(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """``rotate_pairs`` by its definition."""
    half = cosine.shape[-1]
    first, second = x[..., :half], x[..., half : 2 * half]
    parts = [first * cosine - second * sine, second * cosine + first * sine]
    if 2 * half < x.shape[-1]:
        parts.append(x[..., 2 * half :].to(parts[0].dtype))
    return torch.cat(parts, dim=-1).to(x.dtype)


class _Rotation(torch.autograd.Function):
    """x [..., K], cosine and sine [..., R/2] -> [..., K]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        # Contiguous, as attention reads it, whatever the strides that the projection gave x.
        return _turn(x, cosine, sine, out=x.new_empty(x.shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative()
        cosine, sine = ctx.saved_tensors
        return _turn(gradient, cosine, -sine, out=torch.empty_like(gradient)), None, None


def _turn(x: Tensor, cosine: Tensor, sine: Tensor, out: Tensor) -> Tensor:
    """``rotate_pairs_plain`` into ``out``: x * (cos, cos) + (second, first) * (-sin, sin).

    One index of the first dimension at a time, whose few passes then stay in a core's own cache.
    """
    half, wide = cosine.shape[-1], torch.promote_types(x.dtype, cosine.dtype)
    shape = (*x.shape[:-1], 2 * half)
    cosines = torch.cat([cosine, cosine], -1).expand(shape)
    sines = torch.cat([-sine, sine], -1).expand(shape)
    for row, c, s, result in zip(x, cosines, sines, out, strict=True):
        first, second = row[..., :half], row[..., half : 2 * half]
        swapped = torch.cat([second, first], -1).to(wide)
        result[..., : 2 * half] = row[..., : 2 * half].to(wide).mul(c).addcmul_(swapped, s)
        if 2 * half < x.shape[-1]:
            result[..., 2 * half :] = row[..., 2 * half :]
    return out
