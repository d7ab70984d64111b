"""The cross-entropy of every token by itself, for losses that weigh tokens by something known only afterwards.

For token ``n`` with hidden state ``h_n`` [D], output matrix ``W`` [V, D], label ``y_n`` and incoming gradient ``g_n``::

    z_n = W h_n,   l_n = log sum_v exp(z_nv) - z_n[y_n],   G_n = softmax(z_n) - onehot(y_n)
    d / d h_n = g_n W^T G_n,          d / d W = sum_n G_n (g_n h_n)^T

``kernels/losses.py`` multiplies by ``g`` a scalar, known in advance up to its size, and throws the logits away. Here
``g_n`` depends on the losses of the whole batch (DoReMi weighs by the domains' excess), so the forward pass keeps
``G`` [N, V] in the precision of the products, and the backward pass scales the rows of ``h`` and not those of ``G``.
The work is the same three products; the memory is N x V numbers of that precision, half of what logits and their
gradient take in torch.

Losses are made by the same operations with and without gradients: equal models have equal losses, bit for bit.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mickle.kernels import losses
from mickle.kernels.dispatch import refuse_second_derivative, use_plain
from mickle.kernels.losses import IGNORE


def token_losses(hidden: Tensor, weight: Tensor | None, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """Cross-entropy of each token in nats, [...]; 0, without a gradient, where the label is ``ignore_index``.

    hidden: [..., D], floating. With ``weight`` None these are the logits themselves, [..., V].
    weight: [V, D] output matrix, or None. labels: [...] int64.

    Returns float32 (float64 for float64 input), whatever the precision of the products; under autocast the products
    run in its precision. Differentiable once with respect to ``hidden`` and ``weight``.
    """
    if use_plain():
        return token_losses_plain(hidden, weight, labels, ignore_index)
    if weight is not None and hasattr(weight, "full_tensor"):  # a DTensor that nobody has gathered
        weight = weight.full_tensor()
    counted = labels != ignore_index  # masked-token training leaves most positions out
    every = bool(counted.all())
    hidden, labels = (hidden.flatten(0, -2), labels.flatten()) if every else (hidden[counted], labels[counted])
    wanted = hidden.requires_grad or (weight is not None and weight.requires_grad)
    precision = hidden.dtype if weight is None else losses._product_precision(hidden)
    found: Tensor
    if wanted and torch.is_grad_enabled():
        found = _TokenLosses.apply(hidden, weight, labels, precision)
    else:
        found = _by_chunks(hidden.to(precision), None if weight is None else weight.to(precision), labels, None)
    # No view: sharded models hang hooks on what they return.
    return found.new_zeros(counted.shape).masked_scatter(counted, found)


def token_losses_plain(hidden: Tensor, weight: Tensor | None, labels: Tensor, ignore_index: int = IGNORE) -> Tensor:
    """``token_losses`` by its definition: can be differentiated any number of times."""
    logits = hidden if weight is None else F.linear(hidden, weight)  # [..., V]
    logits = logits.reshape(-1, logits.shape[-1]).to(losses._wide(logits.dtype))  # [N, V]
    found = F.cross_entropy(logits, labels.reshape(-1), ignore_index=ignore_index, reduction="none")
    return found.view(labels.shape)


class _TokenLosses(torch.autograd.Function):
    """hidden [N, D], weight [V, D] or None, labels [N], all of which count -> losses [N]."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor | None, labels: Tensor, precision: torch.dtype) -> Tensor:
        inputs, matrix = hidden.to(precision), None if weight is None else weight.to(precision)  # [N, D], [V, D]
        kept = hidden.new_empty(len(labels), hidden.shape[-1] if weight is None else len(weight), dtype=precision)
        found = _by_chunks(inputs, matrix, labels, kept)
        ctx.save_for_backward(inputs, matrix, kept)
        ctx.kinds = hidden.dtype, None if weight is None else weight.dtype
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        inputs, matrix, kept = ctx.saved_tensors
        hidden_kind, weight_kind = ctx.kinds
        scale = gradient.unsqueeze(-1)  # [N, 1]
        if matrix is None:
            return (kept * scale).to(hidden_kind), None, None, None
        hidden_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            hidden_gradient = (losses._product(kept, matrix) * scale).to(hidden_kind)
        if ctx.needs_input_grad[1]:
            scaled = (inputs * scale).to(inputs.dtype)
            total = matrix.new_zeros(matrix.shape, dtype=losses._wide(weight_kind))
            for rows in losses._chunks(len(inputs), len(matrix), inputs.dtype, losses.CHUNK_BYTES):
                total += losses._product(kept[rows].T, scaled[rows])  # sums of chunks in float32
            weight_gradient = total.to(weight_kind)
        return hidden_gradient, weight_gradient, None, None


def _by_chunks(inputs: Tensor, matrix: Tensor | None, labels: Tensor, kept: Tensor | None) -> Tensor:
    """Losses [N]; ``kept`` [N, V] becomes softmax - onehot of all tokens, without it those of one chunk are kept."""
    vocabulary = inputs.shape[-1] if matrix is None else len(matrix)
    chunks = losses._chunks(len(labels), vocabulary, inputs.dtype, losses.CHUNK_BYTES)
    most = max((rows.stop - rows.start for rows in chunks), default=0)
    space = inputs.new_empty(most if kept is None else 0, vocabulary)
    found = inputs.new_empty(len(labels), dtype=losses._wide(inputs.dtype))
    for rows in chunks:
        own = space[: rows.stop - rows.start] if kept is None else kept[rows]  # [C, V]: logits, then their gradients
        own = own.copy_(inputs[rows]) if matrix is None else losses._product(inputs[rows], matrix.T, out=own)
        counted = torch.ones_like(labels[rows], dtype=torch.bool)
        found[rows] = losses._losses_to_gradients(own, labels[rows], counted, None, 0.0)
    return found
