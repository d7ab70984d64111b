"""Tuning on labelled rows by label words (``data/label_prompts.py``): what is read, trained and measured.

One row is one term of the loss, the cross-entropy over the classes' words; rows are not packed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mickle.data.label_prompts import (
    EncodedLabels,
    LabelBatches,
    LabelledText,
    LabelPrompt,
    encode_labelled,
    in_order,
    read_labelled,
)
from mickle.data.overlap import overlap
from mickle.data.tokenizer import TextTokenizer
from mickle.errors import NumericError
from mickle.training.label_words import class_scores, label_words, wrong_labels
from mickle.training.objectives import Batch, Objective
from mickle.tuning.tune_data import split
from mickle.tuning.tune_plan import EVALUATION_TOKENS, LEAST_STEPS, MOST_EXAMPLES

if TYPE_CHECKING:
    from mickle.tuning.tune import Tune


@dataclass(frozen=True)
class LabelTask:
    """Labelled examples ready to be learnt from and measured on."""

    prompt: LabelPrompt
    training: EncodedLabels
    heldout: EncodedLabels
    lines: tuple[str, ...]
    overlap: dict[str, Any]
    training_texts: tuple[LabelledText, ...]
    heldout_texts: tuple[LabelledText, ...]
    form: str = "labels"
    template: None = None  # of conversations

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training example."""
        return [len(tokens) for tokens in self.training.tokens]


def read_labels(settings: Tune, tokenizer: TextTokenizer, longest: int, causal: bool) -> LabelTask:
    """The labelled rows of ``data`` and ``heldout`` as tokens, at most ``longest`` of each."""
    prompt = settings.prompt
    assert prompt is not None
    found = read_labelled(settings.data, prompt, most_bad=settings.most_bad)
    lines = list(found.lines())
    if settings.heldout is not None:
        other = read_labelled(settings.heldout, prompt, most_bad=settings.most_bad)
        training, heldout = list(found.examples), list(other.examples)
        lines += [f"held out: {line}" for line in other.lines()]
    else:
        training, heldout = split(found.examples, settings.heldout_share, settings.data, text_of)
        lines.append(f"held out: {len(heldout):,} of {len(training) + len(heldout):,} examples, by their texts")
    shared = overlap([text_of(e) for e in training], [text_of(e) for e in heldout])
    lines.append(shared.line())

    def encode(some: Sequence[LabelledText]) -> EncodedLabels:
        return encode_labelled(some, prompt, tokenizer, longest=longest, causal=causal)

    return LabelTask(
        prompt,
        encode(training),
        encode(heldout),
        tuple(lines),
        {"exact": shared.exact, "near": shared.near},
        tuple(training),
        tuple(heldout),
    )


def text_of(example: LabelledText) -> str:
    """What an example says, its class left out."""
    return f"{example.before} {example.after}"


def rows_of_labels(batch_tokens: int | None, lengths: Sequence[int]) -> int:
    """Examples of one step: 16, fewer where an epoch would have less than 20 steps, or what so many tokens hold."""
    if batch_tokens:
        return max(1, min(len(lengths), round(batch_tokens * len(lengths) / sum(lengths))))
    return min(MOST_EXAMPLES, max(1, len(lengths) // LEAST_STEPS))


def label_objective(task: LabelTask, method: Any, rows: int, seed: int) -> tuple[Objective, Callable[[int], Batch]]:
    """Cross-entropy over the label words, or, for MeZO where it asks, the share of wrong ones; and the batches."""
    counts = getattr(method, "objective", "loss") == "accuracy"
    return wrong_labels if counts else label_words, LabelBatches(task.training, rows, seed)


def label_scores(model: nn.Module, task: LabelTask, count: int) -> np.ndarray:
    """(nats, 1, whether the best word was right) of the first ``count`` held-out examples: [n, 3]."""
    scores = _scores(model, task.heldout, count)
    labels = torch.tensor(task.heldout.labels[: len(scores)])
    nats = F.cross_entropy(scores, labels, reduction="none")
    right = scores.argmax(1) == labels
    if not bool(nats.isfinite().all()):
        raise NumericError("The model's answer is not finite.", where="held-out examples")
    return np.stack([nats.double().numpy(), np.ones(len(nats)), right.double().numpy()], axis=1)


@torch.no_grad()
def _scores(model: nn.Module, encoded: EncodedLabels, count: int) -> torch.Tensor:
    """Scores of the classes [n, C], on the CPU."""
    device = next(model.parameters()).device
    longest = max(map(len, encoded.tokens), default=1)
    rows = max(1, EVALUATION_TOKENS // (longest * (1 if encoded.single else encoded.classes)))
    found, done = [], 0
    for batch in in_order(encoded, rows):
        if done >= count:
            break
        found.append(class_scores(model, {name: tensor.to(device) for name, tensor in batch.items()}).float().cpu())
        done += len(batch["labels"])
    return torch.cat(found)[:count] if found else torch.empty(0, 1)


def label_samples(model: nn.Module, task: LabelTask, count: int) -> list[dict[str, str]]:
    """The likeliest word of the first held-out examples, with its probability among the classes."""
    chances = _scores(model, task.heldout, count).softmax(1)
    words = task.prompt.words
    return [
        {
            "prompt": f"{example.before}{{label}}{example.after}",
            "reference": words[example.label],
            "text": f"{words[int(row.argmax())]} ({float(row.max()):.0%})",
        }
        for example, row in zip(task.heldout_texts, chances, strict=False)
    ]


def label_preview(task: LabelTask, most: int = 3) -> str:
    """The first examples as Rich markup: the class's word, which is trained, on a coloured ground."""
    from rich.markup import escape

    shown = [
        f"[dim]{escape(example.before)}[/][black on green]{escape(task.prompt.words[example.label])}[/]"
        f"[dim]{escape(example.after)}[/]"
        for example in task.training_texts[:most]
    ]
    return "\n\n".join(shown)


def steps_an_epoch_of_labels(task: LabelTask, rows: int) -> float:
    """Optimizer steps in which every example is read once."""
    return len(task.training.tokens) / rows


def longest_of_labels(task: LabelTask) -> int:
    """Tokens of the longest example with its longest word, to a multiple of 8: what memory is forecast for."""
    word = max((len(w) for words in task.training.words for w in words), default=1)
    return 8 * math.ceil((max(task.lengths) + word) / 8)
