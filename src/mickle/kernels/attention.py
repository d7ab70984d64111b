"""Causal attention on the CPU, in blocks of queries that see only the keys up to their own.

With queries, keys and values q, k, v [T, K] of one head, P = softmax(q k^T / sqrt(K)) and O = P v, the backward pass
from dO is (arXiv 2205.14135, appendix B.2)::

    dv = P^T dO,   dP = dO v^T,   dS = P * (dP - rowsum(dO * O)),   dq = dS k / sqrt(K),   dk = dS^T q / sqrt(K)

P is computed again in the backward pass, a block of ``BLOCK`` queries and one row of the batch at a time, so the scores
of all positions are never held. torch's own CPU kernel does the same with products of 32 queries; here a block of all
heads is one batched product, which the matrix library runs faster, in bfloat16 above all.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mickle.kernels.dispatch import refuse_second_derivative, use_plain

BLOCK = 64
"""Queries to a block: below it products are too small, above it too much of the masked half is computed."""


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(K)) v where position t sees positions up to t.

    queries [B, H, T, K]; keys and values [B, G, T, K], with G dividing H: heads share them in groups.
    Returns [B, H, T, K] in the queries' dtype; under autocast in its dtype.
    """
    if torch.is_autocast_enabled(queries.device.type):
        precision = torch.get_autocast_dtype(queries.device.type)
        queries, keys, values = queries.to(precision), keys.to(precision), values.to(precision)
    needs_gradient = torch.is_grad_enabled() and (
        queries.requires_grad or keys.requires_grad or values.requires_grad
    )
    fits = queries.device.type == "cpu" and queries.shape[1] == keys.shape[1] and queries.shape[2] >= BLOCK
    if use_plain() or torch.compiler.is_compiling() or not (fits and needs_gradient):
        return causal_attention_plain(queries, keys, values)
    return _BlockedAttention.apply(queries, keys, values)


def causal_attention_plain(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """``causal_attention`` by torch's own function."""
    shared = queries.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=shared)


class _BlockedAttention(torch.autograd.Function):
    """queries, keys, values [B, H, T, K] -> [B, H, T, K]."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(queries, keys, values)
        # Laid out [B, T, H, K], as the projection that follows wants it.
        attended = queries.new_empty(*queries.transpose(1, 2).shape).transpose(1, 2)
        blocks = _blocks(queries)
        with torch.autocast("cpu", enabled=False):
            for q, k, v, o in zip(queries, keys, values, attended, strict=True):  # [H, T, K]
                for rows, seen, mask in blocks:
                    o[:, rows] = _probabilities(q[:, rows], k[:, seen], mask) @ v[:, seen]
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        refuse_second_derivative()
        queries, keys, values = ctx.saved_tensors
        scale, blocks = queries.shape[-1] ** -0.5, _blocks(queries)
        ours = [t.new_empty(*t.transpose(1, 2).shape).transpose(1, 2) for t in (queries, keys, values)]
        for q, k, v, g, dq, dk_out, dv_out in zip(queries, keys, values, gradient, *ours, strict=True):
            # Sums over the blocks, in float32 (float64) whatever the products' precision.
            dk, dv = (
                torch.zeros_like(k, dtype=torch.promote_types(k.dtype, torch.float32)) for _ in range(2)
            )
            for rows, seen, mask in blocks:
                probabilities = _probabilities(q[:, rows], k[:, seen], mask)  # [H, block, seen]
                dv[:, seen] += probabilities.mT @ g[:, rows]
                scores = g[:, rows] @ v[:, seen].mT
                scores = torch._softmax_backward_data(scores, probabilities, -1, probabilities.dtype)
                dq[:, rows] = (scores @ k[:, seen]).mul_(scale)
                dk[:, seen] += scores.mT @ q[:, rows]
            dk_out.copy_(dk.mul_(scale))
            dv_out.copy_(dv)
        return ours[0], ours[1], ours[2]


def _probabilities(queries: Tensor, keys: Tensor, mask: Tensor) -> Tensor:
    """Attention of a block [H, block, K] to the keys up to its own [H, seen, K]: [H, block, seen]."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.mT
    scores[..., -len(mask) :] += mask
    return scores.softmax(-1)


def _blocks(queries: Tensor) -> list[tuple[slice, slice, Tensor]]:
    """For each block of queries [.., T, K]: its rows, the keys it sees, and the triangle that hides later ones."""
    length = queries.shape[-2]
    mask = queries.new_full((min(BLOCK, length), min(BLOCK, length)), float("-inf")).triu(1)
    ends = [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
    return [(slice(a, b), slice(0, b), mask[: b - a, : b - a]) for a, b in ends]
