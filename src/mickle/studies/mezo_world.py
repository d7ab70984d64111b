"""The world of the study `mezo`: words with an aspect and a strength, documents with two moods, and what is asked of
them.

Each word belongs to aspect A or B and has a strength, positive or negative. A document has a mood for each aspect,
and words that fit it are likelier. Pre-training texts are 16 words and "it was good" or "it was bad", which nine
times in ten says whether the sum of all strengths is positive. The task asks for the sum of aspect A's words alone,
in the same words. "it was" is the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from mickle.models.decoder import Decoder
from mickle.studies.training import small_decoder, train
from mickle.training.label_words import evaluate_labels
from mickle.training.objectives import Batch, next_token
from mickle.training.optimizers import AdamW, Schedule, build_optimizer

VOCABULARY, FIRST_WORD, LENGTH = 200, 8, 16
START, IT, WAS, GOOD, BAD = 0, 1, 2, 3, 4
FRESH = (5, 6)  # tokens that no text of the pre-training has: a fresh head for two classes
RIGHT = 0.9  # share of pre-training texts that end as their strengths say
MOOD = 0.7  # how much a mood shifts the odds of a word, for each unit of its strength
PRETRAIN_ROWS, PRETRAIN_RATE = 64, 3e-3


@dataclass(frozen=True, eq=False)
class World:
    """One seed's words and its pre-trained model."""

    seed: int
    aspects: np.ndarray[Any, np.dtype[np.int64]]  # [words] 0 or 1
    strengths: np.ndarray[Any, np.dtype[np.float64]]  # [words]
    weights: dict[str, Any]

    def fresh(self) -> Decoder:
        """Two layers of width 64, 101,000 weights: the decoder as pre-training begins with it."""
        return small_decoder({"width": 64, "layers": 2, "heads": 4, "ffn_width": 144}, VOCABULARY, 32, self.seed)

    def pretrained(self) -> Decoder:
        """The decoder after pre-training."""
        model = self.fresh()
        model.load_state_dict(self.weights)
        return model

    def documents(self, part: int, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Words [count, 16] and the strengths of both aspects [count, 2]; a function of (seed, part)."""
        generator = np.random.default_rng([self.seed, 1, part])
        moods = generator.choice([-MOOD, MOOD], size=(count, 2))
        odds = np.exp(moods[:, self.aspects] * self.strengths)  # [count, words]
        sums = (odds / odds.sum(1, keepdims=True)).cumsum(1)
        drawn = generator.random((count, LENGTH, 1))
        words = np.minimum((drawn > sums[:, None]).sum(2), len(self.aspects) - 1)  # [count, 16]
        by_aspect = [(self.strengths[words] * (self.aspects[words] == aspect)).sum(1) for aspect in (0, 1)]
        return words, np.stack(by_aspect, axis=1)

    def pretraining_batch(self, step: int) -> Batch:
        """Whole texts with their last word, and the tokens that follow."""
        words, strengths = self.documents(1000 + step, PRETRAIN_ROWS)
        generator = np.random.default_rng([self.seed, 2, step])
        good = (strengths.sum(1) > 0) == (generator.random(PRETRAIN_ROWS) < RIGHT)
        ends = np.where(good, GOOD, BAD)[:, None]
        text = torch.from_numpy(np.concatenate([prompted(words), ends], axis=1))
        return {"input_ids": text[:, :-1], "labels": text[:, 1:]}

    def batch(self, per_class: int, bare: bool, rows: int, step: int) -> Batch:
        """Rows of the task drawn from `per_class` labelled documents a class; bare: without the prompt."""
        words, labels = few_shot(self, per_class)
        chosen = np.random.default_rng([self.seed, 3, step]).integers(len(labels), size=rows)
        return labelled(words[chosen], labels[chosen], bare)

    def test(self, count: int, bare: bool, part: int = 1) -> Batch:
        """Documents of the task that no training has seen: part 1 for the test, 2 for choosing a point of a run."""
        words, strengths = self.documents(part, count)
        return labelled(words, (strengths[:, 0] > 0).astype(np.int64), bare)

    def measure(self, model: nn.Module, batch: Batch) -> dict[str, float]:
        """Accuracy and loss (nats); of a model that has left the finite numbers, chance and a large loss."""
        model.eval()
        found = evaluate_labels(model, [batch])
        if not np.isfinite(found["loss"]):
            return {"loss": 100.0, "accuracy": 0.5}
        return {"loss": min(found["loss"], 100.0), "accuracy": found["accuracy"]}


@cache
def few_shot(world_: World, per_class: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """The same number of labelled documents of each class."""
    words, strengths = world_.documents(0, 4 * per_class + 64)
    good = strengths[:, 0] > 0
    chosen = np.concatenate([np.flatnonzero(good)[:per_class], np.flatnonzero(~good)[:per_class]])
    return words[chosen], good[chosen].astype(np.int64)


def prompted(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Documents as tokens, with the start before and "it was" behind."""
    rows = np.ones((len(words), 1), dtype=np.int64)
    return np.concatenate([START * rows, words + FIRST_WORD, IT * rows, WAS * rows], axis=1)


def labelled(words: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], bare: bool) -> Batch:
    """A batch as `data/label_batches.py` makes them: class 0 is bad, class 1 good."""
    tokens = torch.from_numpy(prompted(words)[:, :-2] if bare else prompted(words))
    answers = torch.zeros(tokens.shape, dtype=torch.bool)
    answers[:, -1] = True
    candidates = torch.tensor(FRESH if bare else (BAD, GOOD)).expand(len(labels), 2)
    return {
        "input_ids": tokens, "documents": torch.zeros_like(tokens), "answers": answers, "candidates": candidates,
        "labels": torch.from_numpy(labels),
    }  # fmt: skip


@cache
def world_of(seed: int, steps: int) -> World:
    """The seed's world, its model pre-trained for `steps` steps; made once in a process."""
    generator = np.random.default_rng([seed, 0])
    count = VOCABULARY - FIRST_WORD
    world = World(seed, np.arange(count) % 2, generator.normal(size=count), {})
    return World(seed, world.aspects, world.strengths, pretrain(world, steps))


def pretrain(world: World, steps: int) -> dict[str, Any]:
    """Weights after `steps` steps of AdamW with a cosine."""
    model = world.fresh()
    optimizer = build_optimizer(AdamW(learning_rate=PRETRAIN_RATE), model)
    train(model, next_token, world.pretraining_batch, optimizer, steps=steps, schedule=Schedule(), seed=world.seed)
    return model.state_dict()
