"""Tuning on labelled rows by label words (``data/label_prompts.py``): what is read, trained and measured.

One row is one term of the loss, the cross-entropy over the classes' words; rows are not packed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from mickle.data.label_batches import EncodedLabels, LabelBatches, batch_of, encode_labelled
from mickle.data.label_prompts import LabelledText, LabelPrompt, read_labelled
from mickle.data.tokenizer import TextTokenizer
from mickle.errors import NumericError
from mickle.evaluation.measure import in_batches
from mickle.training.label_words import class_scores, label_words, wrong_labels
from mickle.tuning.task import Names, Sources, Task, two_sides
from mickle.tuning.tune_plan import EVALUATION_TOKENS, LEAST_STEPS, MOST_EXAMPLES, Batching, TunePlan

if TYPE_CHECKING:
    from mickle.training.run import Asked
    from mickle.tuning.task import Lesson

SHOWN = 3  # examples of a preview


@dataclass(frozen=True, kw_only=True)
class LabelTask(Task):
    """Labelled rows of which the label's word is trained."""

    training: EncodedLabels
    heldout: EncodedLabels
    prompt: LabelPrompt
    training_texts: tuple[LabelledText, ...]
    heldout_texts: tuple[LabelledText, ...]

    unit = "label"
    leaps = True

    def batching(self, asked: Asked, most: int) -> Batching:
        """A row is the longest example with its longest word, to a multiple of 8: what memory is forecast for."""
        lengths = self.lengths
        rows = min(MOST_EXAMPLES, max(1, len(lengths) // LEAST_STEPS))  # fewer where an epoch would have too few steps
        if asked.batch_tokens:
            rows = max(1, min(len(lengths), round(asked.batch_tokens * len(lengths) / sum(lengths))))
        word = max((len(w) for words in self.training.words for w in words), default=1)
        return Batching(8 * math.ceil((max(lengths) + word) / 8), rows, len(lengths) / rows, len(lengths))

    def objective_and_batches(self, plan: TunePlan, seed: int, counts_answers: bool) -> Lesson:
        """Cross-entropy over the label words, or the share of wrong ones."""
        return wrong_labels if counts_answers else label_words, LabelBatches(self.training, plan.batch_size, seed)

    def scores(self, model: nn.Module, length: int, most: int = 0) -> np.ndarray:
        """(nats, 1, whether the best word was right)."""
        scores = _scores(model, self.heldout, self.first(most))
        labels = torch.tensor(self.heldout.labels[: len(scores)])
        nats = F.cross_entropy(scores, labels, reduction="none")
        right = scores.argmax(1) == labels
        if not bool(nats.isfinite().all()):
            raise NumericError("The model's answer is not finite.", where="held-out examples")
        return np.stack([nats.double().numpy(), np.ones(len(nats)), right.double().numpy()], axis=1)

    def samples(self, model: nn.Module, count: int, ends: Sequence[int], limit: int) -> list[dict[str, str]]:
        """The likeliest word, with its probability among the classes."""
        chances = _scores(model, self.heldout, count).softmax(1)
        words = self.prompt.words
        return [
            {
                "prompt": f"{example.before}{{label}}{example.after}",
                "reference": words[example.label],
                "text": f"{words[int(row.argmax())]} ({float(row.max()):.0%})",
            }
            for example, row in zip(self.heldout_texts, chances, strict=False)
        ]

    def preview(self) -> str:
        from rich.markup import escape

        shown = [
            f"[dim]{escape(example.before)}[/][black on green]{escape(self.prompt.words[example.label])}[/]"
            f"[dim]{escape(example.after)}[/]"
            for example in self.training_texts[:SHOWN]
        ]
        return "\n\n".join(shown)


def read_labels(
    sources: Sources, prompt: LabelPrompt, tokenizer: TextTokenizer, longest: int, causal: bool
) -> LabelTask:
    """The labelled rows as tokens, at most ``longest`` of each."""

    def read(path: Path, columns: Names) -> tuple[Sequence[LabelledText], Iterable[str]]:
        found = read_labelled(path, prompt=prompt, most_bad=sources.most_bad)
        return found.examples, found.lines()

    sides = two_sides(sources, read, lambda example: f"{example.before} {example.after}")  # its class left out
    encode = partial(encode_labelled, prompt=prompt, tokenizer=tokenizer, longest=longest, causal=causal)
    training = encode(sides.training)
    unknown = tokenizer.unknown_line([np.array(ids) for ids in training.tokens], sources.where)
    return LabelTask(
        form="labels",
        lines=(*sides.lines, sides.shared.line(), *filter(None, [unknown])),
        overlap=sides.overlap,
        training=training,
        heldout=encode(sides.heldout),
        prompt=prompt,
        training_texts=tuple(sides.training),
        heldout_texts=tuple(sides.heldout),
        shares=sides.shares,
    )


@torch.no_grad()
def _scores(model: nn.Module, encoded: EncodedLabels, count: int) -> torch.Tensor:
    """Scores of the classes [n, C], on the CPU."""
    device = next(model.parameters()).device
    length = max(map(len, encoded.tokens), default=1) * (1 if encoded.single else encoded.classes)
    rows = max(1, EVALUATION_TOKENS // length)
    whole = min(len(encoded.tokens), rows * math.ceil(count / rows))  # the last rows padded as when all are measured

    def scored(some: list[int]) -> torch.Tensor:
        batch = batch_of(encoded, some)
        return class_scores(model, {name: tensor.to(device) for name, tensor in batch.items()}).float().cpu()

    found = [scores for _, scores in in_batches(range(whole), lambda _: length, EVALUATION_TOKENS, scored)]
    return torch.cat(found)[:count] if found else torch.empty(0, 1)
