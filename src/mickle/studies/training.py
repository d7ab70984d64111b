"""One trainer for the studies: a small decoder, one whole run of it, and what the run told on its way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mickle.data.mixture import permute
from mickle.errors import NumericError
from mickle.evaluation.masked import token_scores
from mickle.events import Evaluated, Trained
from mickle.models.decoder import Decoder
from mickle.models.shape import DecoderConfig
from mickle.training.loop import fit

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from mickle.training.fit import Batches
    from mickle.training.objectives import Batch, Objective


@dataclass
class Course:
    """What a run told: the steps at which it was ``evaluated``, what was ``measured`` there, the training ``losses`` of
    all steps, the ``seconds`` that steps took, the optimizer's ``statistics`` at the last step, and whether it
    ``diverged``.
    """

    evaluated: list[int] = field(default_factory=list)
    measured: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    statistics: Mapping[str, Any] = field(default_factory=dict)
    diverged: bool = False

    def curve(self, name: str) -> list[float]:
        """One measure at all evaluations that have it."""
        return [values[name] for values in self.measured if name in values]


def small_shape(sizes: Mapping[str, Any], vocabulary: int, length: int, **others: Any) -> DecoderConfig:
    """A decoder's shape of a study's dials: ``width``, ``layers``, ``heads`` and ``ffn_width``; more dials are left
    alone. ``others`` are further settings of the shape.
    """
    width, heads = sizes["width"], sizes["heads"]
    return DecoderConfig(
        vocab_size=vocabulary,
        width=width,
        layers=sizes["layers"],
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        ffn_width=sizes["ffn_width"],
        max_length=length,
        **others,
    )


def small_decoder(sizes: Mapping[str, Any], vocabulary: int, length: int, seed: int, **others: Any) -> Decoder:
    """A decoder with a seed's fresh weights; see :func:`small_shape`."""
    return Decoder(small_shape(sizes, vocabulary, length, **others), seed=seed)


def train(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    optimizer: Optimizer,
    *,
    steps: int,
    worst: Mapping[str, float] | None = None,
    until: Callable[[dict[str, float]], bool] | None = None,
    **options: Any,
) -> Course:
    """Train ``model`` in place and tell what happened; ``options`` are those of :func:`mickle.training.loop.fit`.

    worst: what a run that leaves the finite numbers is said to have measured after all its steps, so that it counts as
        the worst; without it the NumericError is raised.
    until: whether what was measured is enough; the run ends there, before its steps are spent.
    """
    course = Course()
    try:
        for event in fit(model, objective, batches, optimizer, steps=steps, **options):
            if isinstance(event, Evaluated):
                course.evaluated.append(event.step)
                course.measured.append(event.values)
                if until is not None and until(event.values):
                    break
            elif isinstance(event, Trained):
                course.losses.append(event.loss)
                course.seconds, course.statistics = event.seconds, event.extra
    except NumericError:
        if worst is None:
            raise
        course.diverged = True
        course.evaluated.append(steps)
        course.measured.append(dict(worst))
    return course


def predicted(model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
    """How a model predicts batches: ``loss`` (nats) and ``accuracy`` (share right), means over all labels from 0 on."""
    model.eval()
    with torch.no_grad():
        nats, right = (np.concatenate(part) for part in zip(*(token_scores(model, batch) for batch in batches)))
    return {"loss": float(nats.mean()), "accuracy": float(right.mean())}


def in_epochs(index: int, rows: int, count: int, seed: int, first: int = 0) -> np.ndarray:
    """Which of ``count`` samples batch ``index`` of ``rows`` reads, int64 [rows]: every one once an epoch, each epoch
    in its own order, which follows from the seed and the epoch's number, counted from ``first``.
    """
    epochs, places = np.divmod(index * rows + np.arange(rows), count)
    chosen = np.empty_like(places)
    for epoch in np.unique(epochs):
        now = epochs == epoch
        chosen[now] = permute(places[now], count, seed, first + int(epoch))
    return chosen
