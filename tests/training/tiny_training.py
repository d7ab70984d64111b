"""Models of some hundred weights and pure batches for the tests of the training loop."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from mickle.events import Event, Trained
from mickle.models.decoder import Decoder
from mickle.models.shape import DecoderConfig
from mickle.training import objectives
from mickle.training.label_words import label_words, wrong_labels
from mickle.training.loop import fit
from mickle.training.mezo import MeZO
from mickle.training.objectives import Batch, Objective, trained_tokens
from mickle.training.optimizers import AdamW, Schedule, Sophia, build_optimizer, decay_groups
from mickle.training.paged import paged_adamw

VOCABULARY, LENGTH, CLASSES = 13, 10, 3
MASK = VOCABULARY - 1


def decoder(causal: bool = True, dropout: float = 0.2, layers: int = 1) -> Decoder:
    shape = DecoderConfig(
        vocab_size=VOCABULARY, width=8, layers=layers, heads=2, kv_heads=1, head_width=4, ffn_width=12,
        max_length=16, dropout=dropout, causal=causal, initial_std=0.2,
    )  # fmt: skip
    return Decoder(shape, seed=1)


def classifier(dropout: float = 0.2) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout), nn.Tanh(), nn.Linear(8, CLASSES))


def packed(step: int, rows: int = 5) -> Batch:
    """Windows over several documents each; some labels are not trained, more in the first rows than in the last."""
    draw = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(0, MASK, (rows, LENGTH + 1), generator=draw)
    documents = (torch.rand(rows, LENGTH, generator=draw) < 0.2).cumsum(1)
    labels = tokens[:, 1:].clone()
    untrained = torch.rand(rows, LENGTH, generator=draw) < torch.linspace(0.6, 0.0, rows)[:, None]
    labels[untrained] = -100
    return {"input_ids": tokens[:, :-1], "labels": labels, "documents": documents}


def masked(step: int, rows: int = 5) -> Batch:
    """Each token hidden with chance 0.3; only hidden ones are trained."""
    draw = torch.Generator().manual_seed(2000 + step)
    tokens = torch.randint(0, MASK, (rows, LENGTH), generator=draw)
    hidden = torch.rand(rows, LENGTH, generator=draw) < 0.3
    return {"input_ids": tokens.masked_fill(hidden, MASK), "labels": tokens.masked_fill(~hidden, -100)}


def points(step: int, rows: int = 7) -> Batch:
    draw = torch.Generator().manual_seed(3000 + step)
    inputs = torch.randn(rows, 4, generator=draw)
    return {"inputs": inputs, "labels": inputs[:, :CLASSES].argmax(1)}


def labelled(step: int, rows: int = 5) -> Batch:
    """Texts whose last place is answered by one of three words."""
    draw = torch.Generator().manual_seed(4000 + step)
    tokens = torch.randint(0, MASK, (rows, LENGTH), generator=draw)
    answers = torch.zeros(rows, LENGTH, dtype=torch.bool)
    answers[:, -1] = True
    return {
        "input_ids": tokens, "documents": torch.zeros_like(tokens), "answers": answers,
        "candidates": torch.tensor([[2, 5, 7]]).repeat(rows, 1), "labels": tokens[:, 0] % CLASSES,
    }  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An objective with a model and batches it can train on."""

    objective: Objective
    model: Callable[..., nn.Module]
    batches: Callable[[int], Batch]
    leaves_out: bool = True  # terms whose label is -100
    differentiable: bool = True


CASES = {
    "trained_tokens": Case(trained_tokens, decoder, packed),
    "label_words": Case(label_words, decoder, labelled, leaves_out=False),
    "wrong_labels": Case(wrong_labels, decoder, labelled, leaves_out=False, differentiable=False),
    "next_token": Case(objectives.next_token, decoder, packed),
    "masked_token": Case(objectives.masked_token, lambda **k: decoder(causal=False, **k), masked),
    "classification": Case(objectives.classification, classifier, points),
}


def still(case: str) -> nn.Module:
    """The case's model without dropout: its draws belong to a micro-batch, so they change with the split."""
    return CASES[case].model(dropout=0.0)


GRADIENT_CASES = [name for name, case in CASES.items() if case.differentiable]

OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "adamw": lambda model: build_optimizer(AdamW(learning_rate=0.01), model),
    "sophia_g": lambda model: build_optimizer(Sophia(learning_rate=0.01, every=4), model),
    "sophia_h": lambda model: build_optimizer(Sophia(learning_rate=0.01, estimator="hutchinson"), model),
    "sophia_paper": lambda model: build_optimizer(Sophia(preset="paper", gamma=2.0), model),
    "paged": lambda model: paged_adamw(decay_groups(model, 0.1), Path(tempfile.mkdtemp()), lr=0.01),
    "sgd": lambda model: SGD(model.parameters(), lr=0.1, momentum=0.9),
}
# Those that move weights of float32 and float64 alone.
FORWARD_ONLY: dict[str, Callable[[nn.Module], Optimizer]] = {
    "mezo": lambda model: MeZO(model.named_parameters(), lr=0.02, variant="momentum")
}


def train(
    case: str = "classification",
    optimizer: str | Callable[[nn.Module], Optimizer] = "adamw",
    *,
    steps: int = 24,
    stop_at: int | None = None,
    model: nn.Module | None = None,
    on_event: Callable[[Event], None] | None = None,
    **options: Any,
) -> tuple[nn.Module, list[Event]]:
    """A run by names. At ``stop_at`` it gets a SIGINT, as from Ctrl-C, and ends there."""
    chosen = CASES[case]
    model = model if model is not None else chosen.model()
    built = {**OPTIMIZERS, **FORWARD_ONLY}[optimizer](model) if isinstance(optimizer, str) else optimizer(model)
    options = {"schedule": Schedule(), "batches": chosen.batches, "objective": chosen.objective, **options}
    events: list[Event] = []
    try:
        for event in fit(model=model, optimizer=built, steps=steps, **options):
            events.append(event)
            if on_event:
                on_event(event)
            if isinstance(event, Trained) and event.step == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        assert stop_at is not None
    return model, events


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, Trained)]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def distance(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between two models' weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def steps_saved(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in folder.glob("step-*"))
