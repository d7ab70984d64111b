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

    x [..., K]; cosine, sine [..., R/2], broadcast over x and without gradients -> [..., K] in x's dtype. This is the
    half-split pairing of Llama folders; the paper (arXiv 2104.09864) and GPT-J pair (2k, 2k + 1), the same map after a
    fixed permutation of dimensions.
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


PIECE_BYTES = 2**20
"""Of the widened rows taken together; one row at a time took three times as long."""


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
    """``rotate_pairs_plain`` into ``out``.

    Some rows at a time, whose passes then stay in the caches. They are widened first: torch multiplies bfloat16 by
    float32 element by element.
    """
    half, wide = cosine.shape[-1], torch.promote_types(x.dtype, cosine.dtype)
    rows = max(1, PIECE_BYTES // max(1, x[:1].numel() * wide.itemsize))
    angles = (t.expand(*x.shape[:-1], half).split(rows) for t in (cosine, sine))
    for some, result, c, s in zip(x.split(rows), out.split(rows), *angles, strict=True):
        source = some.to(wide).contiguous()
        turned = result if result.dtype == wide else torch.empty_like(source)
        first, second = source[..., :half], source[..., half : 2 * half]
        torch.mul(first, c, out=turned[..., :half]).addcmul_(second, s, value=-1)
        torch.mul(second, c, out=turned[..., half : 2 * half]).addcmul_(first, s)
        if 2 * half < x.shape[-1]:
            turned[..., 2 * half :] = source[..., 2 * half :]
        if turned is not result:
            result.copy_(turned)
    return out
