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
    if use_plain() or not (torch.is_grad_enabled() and x.requires_grad):
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
        return rotate_pairs_plain(x, cosine, sine)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative()
        cosine, sine = ctx.saved_tensors
        return rotate_pairs_plain(gradient, cosine, -sine), None, None
