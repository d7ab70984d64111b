"""Causal attention on the CPU, in blocks of queries that see only the keys up to their own.

With queries, keys and values q, k, v [T, K] of one head, P = softmax(q k^T / sqrt(K)) and O = P v, the backward pass
from dO is (arXiv 2205.14135, appendix B.2)::

    dv = P^T dO,   dP = dO v^T,   dS = P * (dP - rowsum(dO * O)),   dq = dS k / sqrt(K),   dk = dS^T q / sqrt(K)

P is computed again in the backward pass, for ``BLOCK`` queries of some rows of the batch at a time, so the scores of
all positions are never held. torch's own CPU kernel does the same with products of 32 queries; here a block of all
heads is one batched product, which the matrix library runs faster, in bfloat16 above all; heads that share keys and
values (arXiv 2305.13245) are more rows of the same product. With documents, keys that no
query of a block sees are left out where they fill whole blocks, and rows of a single document need no mask at all.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mickle.kernels.dispatch import refuse_second_derivative, use_plain

BLOCK = 64
"""Queries to a block: below it products are too small, above it too much of the masked half is computed."""
SCORES_BYTES = 2**20
"""Scores of the rows taken together: fewer and larger products, whose results a core's own cache still holds."""


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, documents: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """softmax(q k^T / sqrt(K)) v where position t sees positions up to t, of its own document only.

    queries [B, H, T, K]; keys and values [B, G, T, K], with G dividing H: heads share them in groups.
    documents [B, T]: each document is one unbroken run of its row. mask [B, 1, T, T] bool: ``visible(documents)``, for
    a caller that made it already.
    Returns [B, H, T, K] in the queries' dtype; under autocast in its dtype.
    """
    if torch.is_autocast_enabled(queries.device.type):
        precision = torch.get_autocast_dtype(queries.device.type)
        queries, keys, values = queries.to(precision), keys.to(precision), values.to(precision)
    fits = queries.device.type == "cpu" and keys.shape[2] == queries.shape[2] >= BLOCK
    if use_plain() or torch.compiler.is_compiling() or not fits:
        return causal_attention_plain(queries, keys, values, documents, mask)
    return _BlockedAttention.apply(queries, keys, values, documents)


def causal_attention_plain(
    queries: Tensor, keys: Tensor, values: Tensor, documents: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """``causal_attention`` by torch's own function."""
    shared = queries.shape[1] != keys.shape[1]
    if documents is None:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=shared)
    mask = visible(documents) if mask is None else mask
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=shared)


def visible(documents: Tensor) -> Tensor:
    """Which key places each query place sees: documents [B, T] -> [B, 1, T, T] bool."""
    return (documents[:, :, None] == documents[:, None, :]).tril()[:, None]


class _BlockedAttention(torch.autograd.Function):
    """queries [B, H, T, K], keys and values [B, G, T, K], documents [B, T] or None -> [B, H, T, K].

    In what follows N is some rows of the batch times some heads of keys, and S the H / G heads that share each.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor, documents: Tensor | None) -> Tensor:
        ctx.save_for_backward(queries, keys, values, documents)
        scale = queries.shape[-1] ** -0.5
        # Laid out [B, T, H, K], as the projection that follows wants it.
        attended = queries.new_empty(*queries.transpose(1, 2).shape).transpose(1, 2)
        with torch.autocast("cpu", enabled=False):
            for some, of_keys, own in _groups(queries, keys):
                k, v = (t[some, of_keys].flatten(0, 1) for t in (keys, values))  # [N, T, K]
                q, out = _shared(queries[some, own] * scale, k), attended[some, own]  # [N, S, T, K], [.., .., T, K]
                for rows, seen, bias in _blocks(queries, None if documents is None else documents[some]):
                    block = torch.bmm(_probabilities(_block(q, rows), k[:, seen], bias), v[:, seen])
                    out[:, :, rows] = block.view(out[:, :, rows].shape)
        return attended

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        refuse_second_derivative()
        queries, keys, values, documents = ctx.saved_tensors
        scale = queries.shape[-1] ** -0.5
        ours = [t.new_empty(*t.transpose(1, 2).shape).transpose(1, 2) for t in (queries, keys, values)]
        for some, of_keys, own in _groups(queries, keys):
            k, v = (t[some, of_keys].flatten(0, 1) for t in (keys, values))  # [N, T, K]
            q, g = _shared(queries[some, own] * scale, k), _shared(gradient[some, own], k)  # [N, S, T, K]
            dq, dk_out, dv_out = ours[0][some, own], ours[1][some, of_keys], ours[2][some, of_keys]
            # Sums over the blocks, in float32 (float64) whatever the products' precision.
            dk, dv = (torch.zeros_like(k, dtype=torch.promote_types(k.dtype, torch.float32)) for _ in range(2))
            for rows, seen, bias in _blocks(queries, None if documents is None else documents[some]):
                # Copies that the products would make each for itself.
                q_block, k_seen, g_block = _block(q, rows), k[:, seen].contiguous(), _block(g, rows)
                probabilities = _probabilities(q_block, k_seen, bias)  # [N, S * block, seen]
                dv[:, seen] += torch.bmm(probabilities.mT, g_block)
                scores = torch.bmm(g_block, v[:, seen].mT)
                scores = torch._softmax_backward_data(scores, probabilities, -1, probabilities.dtype)
                dq[:, :, rows] = torch.bmm(scores, k_seen).mul_(scale).view(dq[:, :, rows].shape)
                dk[:, seen] += torch.bmm(scores.mT, q_block)  # the queries are scaled already
            dk_out.copy_(dk.view_as(dk_out))
            dv_out.copy_(dv.view_as(dv_out))
        return ours[0], ours[1], ours[2], None


def _probabilities(queries: Tensor, keys: Tensor, bias: Tensor) -> Tensor:
    """Attention of a block of scaled queries [N, S * block, K] to the keys it sees [N, seen, K]: [N, S * block, seen].

    bias [rows, 1, block, some]: 0 or minus infinity, on the last ``some`` of the keys.
    """
    scores = torch.bmm(queries, keys.mT)
    by_row = scores.view(len(bias), -1, bias.shape[2], scores.shape[-1])
    by_row[..., -bias.shape[-1] :] += bias
    return scores.softmax(-1)


def _shared(heads: Tensor, keys: Tensor) -> Tensor:
    """[rows, H, T, K] beside keys [N, T, K] -> [N, S, T, K]: heads that share keys lie together."""
    return heads.reshape(len(keys), -1, *heads.shape[2:])


def _block(heads: Tensor, rows: slice) -> Tensor:
    """Some of the queries of [N, S, T, K]: [N, S * block, K]."""
    return heads[:, :, rows].reshape(len(heads), -1, heads.shape[-1])


def _groups(queries: Tensor, keys: Tensor) -> list[tuple[slice, slice, slice]]:
    """What is taken together: some rows of the batch with all heads, or of one row some heads; the keys' heads first,
    then the queries'.
    """
    batch, heads, length, _ = queries.shape
    shared = heads // keys.shape[1]
    fit = SCORES_BYTES // (shared * BLOCK * length * queries.itemsize)  # heads of keys
    size, some = max(1, fit // keys.shape[1]), max(1, min(fit, keys.shape[1]))
    return [
        (slice(row, min(row + size, batch)), slice(head, head + some), slice(shared * head, shared * (head + some)))
        for row in range(0, batch, size)
        for head in range(0, keys.shape[1], some)
    ]


def _blocks(queries: Tensor, documents: Tensor | None) -> Iterator[tuple[slice, slice, Tensor]]:
    """For each block of queries [.., T, K]: its rows, the keys it sees, and the bias that hides others among them.

    documents [rows, T] of the rows taken together.
    """
    length = queries.shape[-2]
    triangle = queries.new_full((min(BLOCK, length), min(BLOCK, length)), float("-inf")).triu(1)
    single = documents is None or bool((documents == documents[:, :1]).all())
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        hidden = triangle[: end - start, : end - start]
        if documents is None or single:
            yield slice(start, end), slice(0, end), hidden[None, None]
            continue
        same = documents[:, start:end, None] == documents[:, None, :end]  # [rows, block, end]
        # Whole blocks of keys: products of many sizes would each be prepared anew.
        first = int(same[:, 0].any(0).int().argmax()) // BLOCK * BLOCK
        bias = queries.new_zeros(same[..., first:].shape).masked_fill_(~same[..., first:], float("-inf"))
        bias[..., -len(hidden) :] += hidden
        yield slice(start, end), slice(first, end), bias[:, None]
