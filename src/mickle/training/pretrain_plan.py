"""What follows from a pretraining's settings and its pages: every number left out, memory, time, and a preview.

The rules, with P the number of parameters and N the training tokens:

- vocabulary: 2 sqrt(P), to a power of two, so that embeddings keep a quarter or less of the parameters
- sequence: 256 tokens below 4 million parameters, 512 below 50 million, then 1024; never more than N - 1
- batch: 4 sqrt(P) tokens, to a power of two
- steps: 20 tokens a parameter (Hoffmann et al. 2022, arXiv 2203.15556), but at most 8 epochs: what a repeated
  token still teaches has faded by some 16 (Muennighoff et al. 2023, arXiv 2305.16264; ``mickle plan`` says more)
- learning rate: the optimizer's own at a million parameters, and less as P^(-1/4)
- held-out share: 100 pages, between 1 % and 10 % of all

A run that goes on from a model (``start``) has that model's shape, at most 3 epochs, and a tenth of the learning rate.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mickle import machine
from mickle.errors import UsageError
from mickle.kernels.losses import CHUNK_BYTES
from mickle.models import architectures
from mickle.models.folder import describe
from mickle.models.language import Description, LanguageModel
from mickle.models.shape import SIZES, DecoderConfig
from mickle.training.closure import Closure
from mickle.training.objectives import Batch
from mickle.training.optimizers import AdamW, OptimizerSettings, build_optimizer
from mickle.training.pretrain_objectives import NextToken, PretrainObjective
from mickle.training.run import KEPT_CHECKPOINTS, Asked, TrainingPlan, fitting, in_parts

if TYPE_CHECKING:
    from torch import nn

    from mickle.models.architectures import Architecture

LARGEST_VOCABULARY = 1 << 16
TOKENS_A_PARAMETER = 20
MOST_EPOCHS = 8
MOST_EPOCHS_FURTHER = 3  # of a model that has learnt already
FURTHER_RATE = 0.1  # its learning rate, as a share of a fresh model's
EVALUATIONS = 20
ACTIVATION_BYTES = {"float32": 6.2, "bfloat16": 4.8}  # of a kept number, gaps included
LIBRARIES = 40_000_000  # what torch sets up at the first step


@dataclass(frozen=True)
class PretrainPlan(TrainingPlan):
    """Every number of one pretraining, resolved. ``batch_size`` counts sequences.

    ``shape`` is that of a model of ours; for one of transformers, a decoder's of the same dimensions.
    """

    vocabulary_size: int
    training_tokens: int
    shape: dict[str, Any]

    @property
    def config(self) -> Any:
        """The shape, as the class of its architecture has it."""
        return architectures.shape_from(self.shape)

    @property
    def epochs(self) -> float:
        """How often each training token is read."""
        return self.steps * self.batch_tokens / self.training_tokens

    def lines(self) -> list[str]:
        """The resolved numbers for a person, each with its rule's outcome."""
        return [
            f"model: {self.parameters:,} parameters: {self.config.line(self.vocabulary_size)}",
            f"batch: {self.batch_tokens:,} tokens: {self.batch_size} sequences of {self.sequence_length}{self.parts}",
            f"length: {self.steps:,} steps = {self.steps * self.batch_tokens:,} tokens = {self.epochs:.1f} epochs of "
            f"{self.training_tokens:,} tokens",
            f"learning rate: {self.learning_rate:.2g} at its peak; {self.rhythm}",
            *([self.short] if self.short else []),
        ]


def parameters_asked(size: str | int) -> int:
    """What a size means in parameters."""
    return SIZES[size] if isinstance(size, str) else size


def derived_vocabulary(size: str | int) -> int:
    """The vocabulary for a model of this size, by the rule above."""
    return min(LARGEST_VOCABULARY, max(512, _power_of_two(2 * math.sqrt(parameters_asked(size)))))


def derived_share(pages: int) -> float:
    """The held-out share for this many pages, by the rule above."""
    return min(0.1, max(0.01, 100 / max(pages, 1)))


@dataclass(frozen=True)
class Origin:
    """A model that pretraining goes on from, as a plan needs to know it: any language model of ``transformers``.

    longest: tokens of the longest text it reads. shape: its dimensions; a model of another architecture is taken for a
    decoder of the same.
    """

    parameters: int
    longest: int | None
    shape: DecoderConfig


@dataclass(frozen=True)
class Fresh:
    """The model that is trained: of about ``size`` parameters, of an architecture, for an objective.

    rate: the optimizer's peak learning rate for a model of a million parameters.
    """

    size: str | int
    architecture: Architecture
    causal: bool = True
    dropout: float = 0.0
    rate: float = AdamW().learning_rate

    def shape(self, vocabulary_size: int, length: int) -> Any:
        """Its dimensions, for a vocabulary and sequences of ``length`` tokens."""
        return self.architecture.shape(self.size, vocabulary_size, length, self.causal, self.dropout)

    def build(self, plan: PretrainPlan, seed: int) -> nn.Module:
        """A fresh one of a plan, on this machine's device."""
        return self.architecture.build(plan.shape, seed).to(machine.device())


def refuse_other_objective(folder: Path, causal: bool) -> None:
    """UsageError where the model of ``folder`` is not made for the objective: next token if ``causal``, else masked.

    Reads the settings only, so that it can be asked before anything is done.
    """
    if describe(folder).causal is not causal:
        does, task, kind = (
            ("sees both sides", "predict the next token", "masked")
            if causal
            else ("sees one side", "fill in masked tokens", "next")
        )
        raise UsageError(
            f"This model {does} of a token; it cannot be trained to {task}.",
            where=f"start: {folder}",
            todo=f"set objective.kind to {kind}, or start from another model",
        )


def origin_of(folder: Path, model: LanguageModel) -> Origin:
    """What a plan needs of an opened model."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    described = describe(folder)
    return Origin(parameters, model.trained_length, described.shape or _stand_in(described))


def _stand_in(model: Description) -> DecoderConfig:
    """A decoder of the same dimensions."""
    return DecoderConfig(
        vocab_size=model.vocab_size,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.heads,
        head_width=max(2, model.width // model.heads),
        ffn_width=model.ffn,
        max_length=model.longest,
        causal=model.causal,
        activation="gelu",
    )


def resolve(
    asked: Asked, model: Fresh, vocabulary_size: int, training_tokens: int, origin: Origin | None = None
) -> PretrainPlan:
    """Every number of the run, given the vocabulary, the training tokens and the model it goes on from, if any.

    Raises UsageError where a given number does not fit the pages, ResourceError where no batch fits the memory.
    """
    if training_tokens < 2:
        raise UsageError(f"The training pages hold {training_tokens} tokens; there is nothing to learn from them.")
    target = origin.parameters if origin else parameters_asked(model.size)
    length = asked.sequence_length or _derived_length(target, training_tokens, origin)
    _refuse_length(length, training_tokens, origin)
    batch_tokens = asked.batch_tokens or _power_of_two(4 * math.sqrt(target))
    rows = max(1, round(batch_tokens / length))
    shape = origin.shape if origin else model.shape(vocabulary_size, length)
    parameters = origin.parameters if origin else shape.parameters()
    most_epochs = MOST_EPOCHS_FURTHER if origin else MOST_EPOCHS
    tokens = min(TOKENS_A_PARAMETER * parameters, most_epochs * training_tokens)
    if asked.epochs:
        tokens = round(asked.epochs * training_tokens)
    plan = PretrainPlan(
        **asked.numbers(
            parameters=parameters,
            length=length,
            rows=rows,
            steps=asked.steps or max(1, math.ceil(tokens / (rows * length))),
            rate=model.rate * (1e6 / parameters) ** 0.25 * (FURTHER_RATE if origin else 1),
            evaluations=EVALUATIONS,
        ),
        vocabulary_size=vocabulary_size,
        training_tokens=training_tokens,
        shape=asdict(shape),
    )
    return plan if asked.accumulate else in_memory(in_parts(plan), memory)


def in_memory(plans: list[PretrainPlan], needed: Callable[[PretrainPlan], int]) -> PretrainPlan:
    """The first plan that fits in the free memory."""
    where = f"{plans[0].parameters:,} parameters, sequences of {plans[0].sequence_length:,}"
    return fitting(plans, needed, where, todo="choose a smaller size or a shorter sequence_length")


def _refuse_length(length: int, training_tokens: int, origin: Origin | None) -> None:
    if length >= training_tokens:
        raise UsageError(
            f"The training pages hold {training_tokens:,} tokens, too few for one sequence of {length:,}.",
            where="sequence_length",
            expected=f"at most {training_tokens - 1:,}",
            todo="give more pages, or leave sequence_length out",
        )
    if origin and origin.longest and length > origin.longest:
        raise UsageError(
            f"The model reads at most {origin.longest:,} tokens at a time, not {length:,}.", where="sequence_length"
        )


def _derived_length(target: int, training_tokens: int, origin: Origin | None) -> int:
    wanted = 256 if target < 4_000_000 else 512 if target < 50_000_000 else 1024
    if origin and origin.longest:
        wanted = min(wanted, origin.longest)
    return wanted if wanted < training_tokens else 1 << ((training_tokens - 1).bit_length() - 1)


def _power_of_two(number: float) -> int:
    return 1 << max(0, round(math.log2(number)))


def memory(plan: PretrainPlan, base: int | None = None) -> int:
    """Peak bytes of the run in closed form; ``base`` is what the process holds without a model.

    Weights, gradients and two averages of the optimizer take 16 bytes a parameter. Activations of one micro-batch: per
    token and layer the backward pass needs about 11 widths and 4 feed-forward widths. With several documents in a row
    every layer shares a mask of T x T. A checkpoint in the making holds 12 bytes a parameter once more, when the
    activations are gone. ACTIVATION_BYTES and LIBRARIES were fitted to five measured runs (docs/pretrain.md).
    """
    shape = plan.config
    rows = plan.micro_rows
    tokens = rows * plan.sequence_length
    kept = architectures.description_of(shape).attention + 4 * shape.ffn_width
    layers = shape.layers * tokens * ACTIVATION_BYTES[plan.precision] * kept
    mask = rows * plan.sequence_length**2 * 6
    chunk = 3 * CHUNK_BYTES + tokens * shape.width * 8 + shape.vocab_size * shape.width * 4
    step = 16 * plan.parameters + layers + mask + chunk
    held = machine.peak_memory() if base is None else base
    return int(held + LIBRARIES + max(step, 28 * plan.parameters))


def disk(plan: PretrainPlan, text_bytes: int) -> int:
    """Bytes that the run writes at most at one time: checkpoints, the token stream twice, and the model."""
    checkpoints = (KEPT_CHECKPOINTS + 2) * 12 * plan.parameters
    return int(checkpoints + 2 * text_bytes + 4 * plan.parameters)


def step_seconds(
    plan: PretrainPlan,
    model: nn.Module,
    optimizer: OptimizerSettings | None = None,
    objective: PretrainObjective | None = None,
    repeats: int = 3,
) -> float:
    """Seconds of one optimizer step, measured on random tokens (median after one to warm up), which train ``model``."""
    settings, trained = optimizer or AdamW(), objective or NextToken()
    built = build_optimizer(settings, model)
    batch = _random_batch(plan, trained)
    times = []
    for step in range(repeats + 1):
        begun = time.perf_counter()
        closure = partial(Closure, model, trained.measured_loss(), batch, step=step, seed=0, accumulate=plan.accumulate)
        built.step(closure(clip_norm=settings.clip_norm, precision=plan.precision))
        times.append(time.perf_counter() - begun)
    return sorted(times[1:])[repeats // 2]


def _random_batch(plan: PretrainPlan, objective: PretrainObjective) -> Batch:
    """A batch of the plan's size, two documents a row."""
    tokens = torch.randint(0, plan.vocabulary_size, (plan.batch_size, plan.sequence_length))
    documents = (torch.arange(plan.sequence_length) > plan.sequence_length // 2).long().expand_as(tokens)
    return {"input_ids": tokens, "labels": objective.labels(tokens, plan.steps), "documents": documents}
