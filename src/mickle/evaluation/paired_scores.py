"""Two models over the same tokens: their nats, the KL between them, and where the likeliest token is another.

The figures are defined in ``comparison.py``. Logits of both models are made some positions at a time from their
hidden states, and worked with in double precision, so that a model beside itself has KL 0 and a nearly equal one a
true figure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mickle.errors import NumericError
from mickle.evaluation.loss import Window, window_batch, windows_of
from mickle.evaluation.measure import batches
from mickle.evaluation.paired_texts import ScoredText
from mickle.events import Emit, Progressed, Started, ignore

BATCH_TOKENS = 4096
LOGITS_BYTES = 128 << 20  # of one model's float32 logits in a batch, where the model makes them all itself
CHUNK_BYTES = 16 << 20  # of one model's float64 logits held at a time


@dataclass(frozen=True)
class Sums:
    """Of each text, [n]: nats of the reference and of the other, KL, changed best guesses, tokens scored."""

    reference: np.ndarray
    other: np.ndarray
    divergence: np.ndarray
    changed: np.ndarray
    tokens: np.ndarray


def compare(
    reference: nn.Module, other: nn.Module, texts: Sequence[ScoredText], *, length: int, emit: Emit = ignore
) -> Sums:
    """Both models over the same windows of at most ``length`` tokens, which slide by half of it.

    Raises NumericError where an answer is not finite.
    """
    stride = max(1, length // 2)
    windows = [w for n, text in enumerate(texts) for w in windows_of(n, text.tokens, length, stride)]
    totals = np.zeros((4, len(texts)))
    counts = np.array([int(text.scored.sum()) for text in texts])
    emit(Started("scoring both models", int(counts.sum()), "tokens"))
    reference.eval()
    other.eval()
    done = 0
    most = max(1, min(BATCH_TOKENS, LOGITS_BYTES // (4 * reference.vocab_size)))
    for rows in batches(windows, lambda window: len(window.tokens), most):
        documents, values = _score_batch(reference, other, rows, texts)
        for total, part in zip(totals, values, strict=True):
            np.add.at(total, documents, part)
        done += len(documents)
        emit(Progressed(done))
    if not np.isfinite(totals).all():
        raise NumericError("A model's answer is not finite.", where="comparison")
    return Sums(totals[0], totals[1], totals[2], totals[3], counts)


def _score_batch(
    reference: nn.Module, other: nn.Module, windows: Sequence[Window], texts: Sequence[ScoredText]
) -> tuple[np.ndarray, np.ndarray]:
    """Of every scored token: the text it is of, and [4, n]: nats of both, KL, whether the best guess changed."""
    inputs, labels = window_batch(windows)
    for row, window in enumerate(windows):
        end = len(window.tokens) - 1
        counts = torch.from_numpy(texts[window.document].scored[window.at : window.at + window.scored])
        labels[row, end - window.scored : end].masked_fill_(~counts, -100)
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
