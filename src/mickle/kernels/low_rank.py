"""A frozen linear layer and a low-rank product beside it as one function, kept small for the backward pass.

Of x [..., in], W [out, in], A [r, in] and B [out, r], with s a number and d dropout::

    y  = x W^T + b + s d(x) A^T B^T
    dx = g W + d'(s g B A),   dA = (s g B)^T d(x),   dB = s g^T (d(x) A^T)

torch's own operations keep x and d(x), write x A^T B^T before it is scaled and added, and sum the two parts of dx in a
pass of their own. Here x is kept once and of dropout one byte a number, and the products add their results themselves.
W takes no gradient: it is frozen.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mickle.kernels.dispatch import refuse_second_derivative, use_plain


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float, dropout: float = 0.0
) -> Tensor:
    """x W^T + b + scaling * dropout(x) A^T B^T; x [..., in] -> [..., out].

    W `weight` [out, in] and b `bias` [out] are frozen and of x's type; A `down` [r, in] and B `up` [out, r] may be of a
    wider one, in which their product is then computed and added, rounded once. Under autocast all is of its type.
    """
    if use_plain() or torch.compiler.is_compiling():
        return add_low_rank(F.linear(x, weight, bias), x, down, up, scaling, dropout)
    autocast = torch.is_autocast_enabled(x.device.type)
    low = torch.get_autocast_dtype(x.device.type) if autocast else None
    result: Tensor = _LowRankLinear.apply(x, weight, bias, down, up, scaling, dropout, low)
    return result


def add_low_rank(base: Tensor, x: Tensor, down: Tensor, up: Tensor, scaling: float, dropout: float = 0.0) -> Tensor:
    """base [..., out] + scaling * dropout(x) A^T B^T in base's type; x [..., in], A `down` [r, in], B `up` [out, r].

    Of torch's own operations: the plain twin of `low_rank_linear`, and what runs beside a layer in few bits.
    """
    read = x if torch.is_autocast_enabled(x.device.type) else x.to(down.dtype)
    if dropout:
        read, _ = torch.native_dropout(read, dropout, True)
    hidden = F.linear(read, down)  # [..., r]
    return (base + F.linear(scaling * hidden, up)).to(base.dtype)


class _LowRankLinear(torch.autograd.Function):
    """x W^T + b + s dropout(x) A^T B^T for a frozen W [out, in]; `low` is autocast's type, None without it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        down: Tensor,
        up: Tensor,
        scaling: float,
        dropout: float,
        low: torch.dtype | None,
    ) -> Tensor:
        outer = low or weight.dtype  # of the base's product
        inner = low or down.dtype  # of the low-rank products
        kept: Tensor | None = None
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1])
            flat = flat if low is None else flat.to(low)
            y = F.linear(flat, weight.to(outer), None if bias is None else bias.to(outer))
            read = flat.to(inner)
            if dropout and len(read):
                read, kept = torch.native_dropout(read, dropout, True)
            hidden = read @ down.to(inner).T  # [N, r]
            if y.dtype == inner:
                y.addmm_(hidden, up.to(inner).T, alpha=scaling)
            else:
                y.add_(hidden @ up.to(inner).T, alpha=scaling)  # summed in the wider type, rounded once
        ctx.save_for_backward(flat, weight, down, up, hidden, kept)
        ctx.settings = (x.shape, x.dtype, outer, inner, scaling, dropout)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        flat, weight, down, up, hidden, kept = ctx.saved_tensors
        shape, dtype, outer, inner, scaling, dropout = ctx.settings
        grad = grad.reshape(-1, grad.shape[-1])
        narrow = grad.to(inner)
        grad_hidden = (narrow @ up.to(inner)).mul_(scaling)  # [N, r]
        grad_x = grad_down = grad_up = None
        if ctx.needs_input_grad[4]:
            grad_up = (narrow.T @ hidden).mul_(scaling).to(up.dtype)
        scale = 1 / (1 - dropout)
        bytes_kept = None if kept is None else kept.view(torch.uint8)  # a bool's products are slower
        if ctx.needs_input_grad[3]:
            read = flat.to(inner)
            read = read if bytes_kept is None else read * bytes_kept
            grad_down = (grad_hidden.T @ read).mul_(scale).to(down.dtype)
        if ctx.needs_input_grad[0]:
            grad_x = grad.to(outer) @ weight.to(outer)
            if bytes_kept is None and outer == inner:
                grad_x.addmm_(grad_hidden, down.to(inner))
            else:
                extra = grad_hidden @ down.to(inner)
                grad_x.add_(extra if bytes_kept is None else extra.mul_(bytes_kept), alpha=scale)
            grad_x = grad_x.to(dtype).view(shape)
        return grad_x, None, None, grad_down, grad_up, None, None, None
