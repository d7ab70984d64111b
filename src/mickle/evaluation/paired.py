"""Two models over the same tokens: their nats, the KL between them, and where the likeliest token is another.

The texts are pages, or the answers of conversations, in the tokens of one tokenizer. The figures are defined in
``comparison.py``. Logits of both models are made some positions at a time from their hidden states, and worked with in
double precision, so that a model beside itself has KL 0 and a nearly equal one a true figure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mickle.data.tokenizer import TextTokenizer
from mickle.errors import NumericError, UsageError
from mickle.evaluation.loss import Window, window_batch, windows_of
from mickle.evaluation.measure import in_batches
from mickle.evaluation.texts import ScoredText
from mickle.events import Emit, Started, as_warnings

BATCH_TOKENS = 4096
LOGITS_BYTES = 128 << 20  # of one model's float32 logits in a batch, where the model makes them all itself
CHUNK_BYTES = 16 << 20  # of one model's float64 logits held at a time


def refuse_other_tokens(first: TextTokenizer, second: TextTokenizer, folder: Path, other: Path) -> None:
    """UsageError where two tokenizers cut a text in different tokens. Special tokens, which no text has, may differ."""
    if _cutting(first) != _cutting(second):
        raise UsageError(
            "the two models read text in different tokens, so their predictions do not compare",
            where=f"{folder} and {other}",
            expected="the same tokenizer.json",
            todo="compare their bits per byte with --task loss",
        )


def _cutting(tokenizer: TextTokenizer) -> list[Any]:
    """All that decides which tokens a text becomes."""
    settings = json.loads(tokenizer.tokenizer.to_str())
    added = [token for token in settings["added_tokens"] if not token["special"]]
    return [tokenizer.start, added, *(settings.get(part) for part in ("model", "normalizer", "pre_tokenizer"))]


@dataclass(frozen=True)
class Sums:
    """Of each text, [n]: nats of the reference and of the other, KL, changed best guesses, tokens scored."""

    reference: np.ndarray
    other: np.ndarray
    divergence: np.ndarray
    changed: np.ndarray
    tokens: np.ndarray


def compare(
    reference: nn.Module, other: nn.Module, texts: Sequence[ScoredText], *, length: int, emit: Emit = as_warnings
) -> Sums:
    """Both models over the same windows of at most ``length`` tokens, which slide by half of it.

    Raises NumericError where an answer is not finite.
    """
    stride = max(1, length // 2)
    windows = [w for n, text in enumerate(texts) for w in windows_of(n, text.tokens, length, stride)]
    totals = np.zeros((4, len(texts)))

    def counted(window: Window) -> int:
        return int(texts[window.document].scored[window.at : window.at + window.scored].sum())

    counts = np.array([int(text.scored.sum()) for text in texts])
    emit(Started("scoring both models", int(counts.sum()), "tokens"))
    reference.eval()
    other.eval()
    most = max(1, min(BATCH_TOKENS, LOGITS_BYTES // (4 * reference.vocab_size)))
    work = partial(_score_batch, reference, other, texts=texts)
    for _, (documents, values) in in_batches(windows, lambda w: len(w.tokens), most, work, emit, counted):
        for total, part in zip(totals, values, strict=True):
            np.add.at(total, documents, part)
    if not np.isfinite(totals).all():
        raise NumericError("A model's answer is not finite.", where="comparison")
    return Sums(totals[0], totals[1], totals[2], totals[3], counts)


def _score_batch(
    reference: nn.Module, other: nn.Module, windows: Sequence[Window], texts: Sequence[ScoredText]
) -> tuple[np.ndarray, np.ndarray]:
    """Of every scored token: the text it is of, and [4, n]: nats of both, KL, whether the best guess changed."""
    inputs, labels = window_batch(windows, texts)
    chosen = labels >= 0
    documents = np.array([window.document for window in windows])[chosen.nonzero()[:, 0].numpy()]
    device = next(reference.parameters()).device
    with torch.no_grad():
        answers = [
            model(inputs.to(device), positions=chosen.to(device), head=lambda hidden, weight: (hidden, weight))
            for model in (reference, other)
        ]
        values = torch.cat(list(_token_figures(answers[0], answers[1], labels[chosen].to(device))), dim=1)
    return documents, values.cpu().numpy()


Answer = tuple["Tensor", "Tensor | None"]  # hidden states [n, D] and the output matrix [V, D], or logits and None


def _token_figures(first: Answer, second: Answer, labels: Tensor) -> Iterator[Tensor]:
    """[4, part] of some tokens at a time: nats of both, KL(first || second), changed best guess."""
    vocabulary = first[0].shape[-1] if first[1] is None else len(first[1])
    part = max(1, CHUNK_BYTES // (8 * vocabulary))
    yield labels.new_zeros((4, 0), dtype=torch.float64)
    for at in range(0, len(labels), part):
        ours, theirs = (_logits(answer, slice(at, at + part)) for answer in (first, second))
        changed = ours.argmax(-1) != theirs.argmax(-1)
        p, q = ours.double().log_softmax(-1), theirs.double().log_softmax(-1)
        wanted = labels[at : at + part, None]
        nats = [-scores.gather(1, wanted)[:, 0] for scores in (p, q)]
        yield torch.stack([*nats, (p.exp() * (p - q)).sum(-1), changed.double()])


def _logits(answer: Answer, part: slice) -> Tensor:
    hidden, weight = answer
    return hidden[part] if weight is None else hidden[part] @ weight.T
