"""What a model is trained to do: plain functions ``(model, batch) -> (sum of loss terms, count of terms)``.

An objective never divides: the loop divides once by the count of the whole effective batch, over all
micro-batches and processes, so padding, accumulation and data-parallel splits cannot change the result. A
label of -100 is not trained and does not count. ``labels[b, t]`` is the target of position ``t`` (already
shifted).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.kernels.losses import cross_entropy

Batch = dict[str, Tensor]
Objective = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def next_token(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) of the token that follows each position.

    ``batch``: ``input_ids`` [B, T], ``labels`` [B, T], and optionally ``documents`` [B, T], whose ids keep
    the attention inside one document. The loss is made from hidden states in chunks: logits [B, T, V] never
    exist.
    """
    return _token_cross_entropy(model, batch)


def masked_token(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) of the hidden tokens, given both sides (BERT, arXiv 1810.04805, section 3.1).

    ``batch`` as for :func:`next_token`; ``labels`` are -100 except where ``input_ids`` were masked.
    Raises :class:`UsageError` for a causal model, which sees one side only and would train something else.
    """
    if getattr(getattr(model, "config", None), "causal", False):
        raise UsageError("masked-token training needs a model that sees both sides", todo="set causal: false")
    return _token_cross_entropy(model, batch)


def classification(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) over classes: ``model(inputs)`` [B, ..., C] against ``labels`` [B, ...].

    ``batch``: ``inputs``, whatever the model takes, and ``labels``.
    """
    logits = model(batch["inputs"])  # [B, ..., C]
    return cross_entropy(logits, None, batch["labels"])


def _token_cross_entropy(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    head = partial(cross_entropy, labels=batch["labels"])
    return model(batch["input_ids"], documents=batch.get("documents"), head=head)
