"""What a model is trained to do: plain functions ``(model, batch) -> (sum of loss terms, count of terms)``.

An objective never divides: the loop divides once by the count of the whole effective batch, over all
micro-batches and processes, so padding, accumulation and data-parallel splits cannot change the result. Where
terms have weights, the count is the sum of the weights. A label of -100 is not trained and does not count.
``labels[b, t]`` is the target of position ``t`` (already shifted).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.kernels.losses import cross_entropy

Batch = dict[str, Tensor]
Objective = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def next_token(model: nn.Module, batch: Batch, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) of the token that follows each position.

    ``batch``: ``input_ids`` [B, T], ``labels`` [B, T], and optionally ``documents`` [B, T], whose ids keep
    the attention inside one document. The loss is made from hidden states in chunks: logits [B, T, V] never
    exist. ``smoothing`` is the share of each target spread evenly over the vocabulary (arXiv 1512.00567, section 7).
    """
    head = partial(cross_entropy, labels=batch["labels"], smoothing=smoothing)
    return model(batch["input_ids"], documents=batch.get("documents"), head=head)


def trained_tokens(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) of the labels that count, from their positions' hidden states alone.

    ``batch`` as for :func:`next_token`. Most tokens of a conversation are not answers, so most of the projection onto
    the vocabulary, and of a wrapped model's logits, is never made.
    """
    labels = batch["labels"]
    chosen = labels >= 0  # [B, T]
    head = partial(cross_entropy, labels=labels[chosen])
    return model(batch["input_ids"], documents=batch.get("documents"), positions=chosen, head=head)


def masked_token(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) of the hidden tokens, given both sides (BERT, arXiv 1810.04805, section 3.1).

    ``batch`` as for :func:`next_token`; ``labels`` are -100 except where ``input_ids`` were masked. Only those
    positions are projected onto the vocabulary.
    Raises :class:`UsageError` for a causal model, which sees one side only and would train something else.
    """
    if getattr(model, "causal", False):
        raise UsageError("masked-token training needs a model that sees both sides", todo="set causal: false")
    return trained_tokens(model, batch)


def classification(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) over classes: ``model(inputs)`` [B, ..., C] against ``labels`` [B, ...].

    ``batch``: ``inputs``, whatever the model takes, and ``labels``.
    """
    logits = model(batch["inputs"])  # [B, ..., C]
    return cross_entropy(logits, None, batch["labels"])
