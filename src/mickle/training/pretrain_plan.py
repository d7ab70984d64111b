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

import math
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from mickle import machine
from mickle.errors import ResourceError, UsageError
from mickle.kernels.losses import CHUNK_BYTES
from mickle.models.shape import SIZES, DecoderConfig
from mickle.training.closure import Closure
from mickle.training.objectives import Batch, masked_token, next_token
from mickle.training.optimizers import build_optimizer

if TYPE_CHECKING:
    from torch import nn

    from mickle.training.origin import Origin
    from mickle.training.pretrain import Pretrain

LARGEST_VOCABULARY = 1 << 16
TOKENS_A_PARAMETER = 20
MOST_EPOCHS = 8
MOST_EPOCHS_FURTHER = 3  # of a model that has learnt already
FURTHER_RATE = 0.1  # its learning rate, as a share of a fresh model's
EVALUATIONS = 20
KEPT_CHECKPOINTS = 2
ACTIVATION_BYTES = {"float32": 6.2, "bfloat16": 4.8}  # of a kept number, gaps included
LIBRARIES = 40_000_000  # what torch sets up at the first step


@dataclass(frozen=True)
class Plan:
    """Every number of one pretraining, resolved. ``batch_size`` counts sequences.

    ``shape`` is the decoder's; for a model of another architecture, a decoder's of the same dimensions.
    """

    parameters: int
    vocabulary_size: int
    sequence_length: int
    batch_size: int
    accumulate: int
    steps: int
    learning_rate: float
    precision: str
    evaluate_every: int
    save_every: int
    training_tokens: int
    shape: dict[str, Any]

    @property
    def config(self) -> DecoderConfig:
        """The decoder's shape."""
        return DecoderConfig(**self.shape)

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_size * self.sequence_length

    @property
    def epochs(self) -> float:
        """How often each training token is read."""
        return self.steps * self.batch_tokens / self.training_tokens

    def lines(self) -> list[str]:
        """The resolved numbers for a person, each with its rule's outcome."""
        shape = self.config
        return [
            f"model: {self.parameters:,} parameters: width {shape.width}, {shape.layers} layers of "
            f"{shape.heads} heads, vocabulary {self.vocabulary_size:,}, positions {shape.position}",
            f"batch: {self.batch_tokens:,} tokens: {self.batch_size} sequences of {self.sequence_length}"
            + (f" in {self.accumulate} parts" if self.accumulate > 1 else ""),
            f"length: {self.steps:,} steps = {self.steps * self.batch_tokens:,} tokens = {self.epochs:.1f} epochs of "
            f"{self.training_tokens:,} tokens",
            f"learning rate: {self.learning_rate:.2g} at its peak; precision {self.precision}; "
            f"evaluation every {self.evaluate_every} steps, checkpoint every {self.save_every}",
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


def resolve(settings: "Pretrain", vocabulary_size: int, training_tokens: int, origin: "Origin | None" = None) -> Plan:
    """Every number of the run, given the vocabulary, the training tokens and the model it goes on from, if any.

    Raises UsageError where a given number does not fit the pages, ResourceError where no batch fits the memory.
    """
    if training_tokens < 2:
        raise UsageError(f"The training pages hold {training_tokens} tokens; there is nothing to learn from them.")
    target = origin.parameters if origin else parameters_asked(settings.size)
    length = settings.sequence_length or _derived_length(target, training_tokens, origin)
    _refuse_length(length, training_tokens, origin)
    batch_tokens = settings.batch_tokens or _power_of_two(4 * math.sqrt(target))
    rows = max(1, round(batch_tokens / length))
    causal, dropout = settings.objective.kind == "next", settings.dropout.rate
    fresh = settings.architecture.shape
    shape = origin.shape if origin else fresh(settings.size, vocabulary_size, length, causal, dropout)
    parameters = origin.parameters if origin else shape.parameters()
    most_epochs = MOST_EPOCHS_FURTHER if origin else MOST_EPOCHS
    tokens = min(TOKENS_A_PARAMETER * parameters, most_epochs * training_tokens)
    if settings.epochs:
        tokens = round(settings.epochs * training_tokens)
    steps = settings.steps or max(1, math.ceil(tokens / (rows * length)))
    rate = settings.optimizer.learning_rate * (1e6 / parameters) ** 0.25 * (FURTHER_RATE if origin else 1)
    plan = Plan(
        parameters=parameters,
        vocabulary_size=vocabulary_size,
        sequence_length=length,
        batch_size=rows,
        accumulate=settings.accumulate or 1,
        steps=steps,
        learning_rate=settings.learning_rate or rate,
        precision=settings.precision or ("bfloat16" if machine.fast_bfloat16() else "float32"),
        evaluate_every=settings.evaluate_every or max(1, steps // EVALUATIONS),
        save_every=settings.save_every or max(1, steps // EVALUATIONS),
        training_tokens=training_tokens,
        shape=asdict(shape),
    )
    return plan if settings.accumulate else _fitting(plan)


def _refuse_length(length: int, training_tokens: int, origin: "Origin | None") -> None:
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


def _derived_length(target: int, training_tokens: int, origin: "Origin | None") -> int:
    wanted = 256 if target < 4_000_000 else 512 if target < 50_000_000 else 1024
    if origin and origin.longest:
        wanted = min(wanted, origin.longest)
    return wanted if wanted < training_tokens else 1 << ((training_tokens - 1).bit_length() - 1)


def _power_of_two(number: float) -> int:
    return 1 << max(0, round(math.log2(number)))


def _fitting(plan: Plan) -> Plan:
    """The plan with the fewest parts a batch that fit in the free memory; the effective batch stays."""
    free = machine.available_memory() + machine.peak_memory()
    parts = [n for n in range(1, plan.batch_size + 1) if plan.batch_size % n == 0]
    plans = [Plan(**{**plan.__dict__, "accumulate": n}) for n in parts]
    for candidate in plans:
        if memory(candidate) < 0.9 * free:
            return candidate
    raise ResourceError(
        f"This model needs {memory(plans[-1]) / 1e9:.1f} GB even one sequence at a time; {free / 1e9:.1f} GB are free.",
        where=f"{plan.parameters:,} parameters, sequences of {plan.sequence_length:,}",
        todo="choose a smaller size or a shorter sequence_length",
    )


def memory(plan: Plan, base: int | None = None) -> int:
    """Peak bytes of the run in closed form; ``base`` is what the process holds without a model.

    Weights, gradients and two averages of the optimizer take 16 bytes a parameter. Activations of one micro-batch: per
    token and layer the backward pass needs about 11 widths and 4 feed-forward widths. With several documents in a row
    every layer shares a mask of T x T. A checkpoint in the making holds 12 bytes a parameter once more, when the
    activations are gone. ACTIVATION_BYTES and LIBRARIES were fitted to five measured runs (docs/pretrain.md).
    """
    shape = plan.config
    rows = math.ceil(plan.batch_size / plan.accumulate)
    tokens = rows * plan.sequence_length
    attention = 6 * shape.width + 3 * shape.heads * shape.head_width + 2 * shape.kv_heads * shape.head_width
    layers = shape.layers * tokens * ACTIVATION_BYTES[plan.precision] * (attention + 4 * shape.ffn_width)
    mask = rows * plan.sequence_length**2 * 6
    chunk = 3 * CHUNK_BYTES + tokens * shape.width * 8 + shape.vocab_size * shape.width * 4
    step = 16 * plan.parameters + layers + mask + chunk
    held = machine.peak_memory() if base is None else base
    return int(held + LIBRARIES + max(step, 28 * plan.parameters))


def disk(plan: Plan, text_bytes: int) -> int:
    """Bytes that the run writes at most at one time: checkpoints, the token stream twice, and the model."""
    checkpoints = (KEPT_CHECKPOINTS + 2) * 12 * plan.parameters
    return int(checkpoints + 2 * text_bytes + 4 * plan.parameters)


def step_seconds(settings: "Pretrain", plan: Plan, model: "nn.Module | None" = None, repeats: int = 3) -> float:
    """Seconds of one optimizer step, measured on random tokens (median after one to warm up).

    ``model`` is trained by it; None measures a fresh one of the plan's shape.
    """
    if model is None:
        model = settings.architecture.build(plan.shape, settings.seed).to(machine.device())
    optimizer = build_optimizer(settings.optimizer, model)
    batch = _random_batch(settings, plan)
    objective = next_token if settings.objective.kind == "next" else masked_token
    times = []
    for step in range(repeats + 1):
        begun = time.perf_counter()
        closure = partial(Closure, model, objective, batch, step=step, seed=0, accumulate=plan.accumulate)
        optimizer.step(closure(clip_norm=settings.optimizer.clip_norm, precision=plan.precision))
        times.append(time.perf_counter() - begun)
    return sorted(times[1:])[repeats // 2]


def _random_batch(settings: "Pretrain", plan: Plan) -> Batch:
    """A batch of the plan's size, two documents a row; a masked one has labels at its first rate of positions."""
    tokens = torch.randint(0, plan.vocabulary_size, (plan.batch_size, plan.sequence_length))
    documents = (torch.arange(plan.sequence_length) > plan.sequence_length // 2).long().expand_as(tokens)
    labels = tokens
    if settings.objective.kind == "masked":
        rate = settings.objective.rate(0, plan.steps)
        labels = tokens.where(torch.arange(plan.sequence_length) % max(1, round(1 / rate)) == 0, -100)
    return {"input_ids": tokens, "labels": labels, "documents": documents}
