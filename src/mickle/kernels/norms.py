"""Root-mean-square normalisation (arXiv 1910.07467, eq. 4) with a short backward pass.

With r = 1 / sqrt(mean(x^2) + eps) and n = r x, the output is w n. From the output's gradient g, in two terms::

    dx = r (w g - n mean(w g n)),   dw = sum over tokens of g n

torch's CPU version differentiates square, mean, root and products one by one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mickle.kernels.dispatch import refuse_second_derivative, use_plain

PIECE_BYTES = 2**19
"""Tokens that the backward pass takes at a time, in bytes of float32: its passes then stay in a core's own cache."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension.

    x [..., D], weight [D] -> [..., D] in x's dtype. Under autocast, which leaves x in float32 and casts it for each
    product that reads it, the result is cast once, to autocast's dtype.
    """
    device = x.device.type
    autocast = x.dtype == torch.float32 and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
    wants_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    fits = device == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.compiler.is_compiling()
    if use_plain() or not (wants_gradient and fits):
        return rms_norm_plain(x, weight, eps).to(dtype)
    return _RmsNorm.apply(x, weight, eps, dtype)


def rms_norm_plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``rms_norm`` by torch's own function, in x's dtype."""
    return F.rms_norm(x, weight.shape, weight, eps)


class _RmsNorm(torch.autograd.Function):
    """x [..., D], weight [D], both float32 -> [..., D] in ``dtype``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        # The norm of a row is read in one pass; x * x would be written and read again.
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # [..., 1]
        inverse = (size.square_().div_(x.shape[-1]).add_(eps)).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        refuse_second_derivative()
        x, weight, inverse = ctx.saved_tensors
        result, weight_gradient = x.new_empty(x.shape), torch.zeros_like(weight)
        width = len(weight)
        parts = [t.reshape(-1, t.shape[-1]).split(max(1, PIECE_BYTES // (4 * width))) for t in (x, inverse, gradient)]
        done = 0
        for x_part, r, g in zip(*parts, strict=True):
            g = g.to(x.dtype)
            normed = x_part * r  # n [some, D]
            product = normed * g  # g n
            weight_gradient += product.sum(0)
            shared = (product @ weight).unsqueeze(-1).div_(width)  # mean(w g n) [some, 1]
            rows = result.view(-1, width)[done : done + len(r)]
            torch.mul((g * weight).sub_(normed.mul_(shared)), r, out=rows)
            done += len(r)
        return result, weight_gradient, None, None
