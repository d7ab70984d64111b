"""What follows from a tuning's settings, its examples and the model's headers: every number left out, and the memory.

The rules, with n training examples:

- sequence: the longest example, to a multiple of 64, at least 128 and at most 2,048 or what the model was made for
- batch: whole rows of sequences, for about n / 20 examples and never more than 16
- steps: 3 epochs; with MeZO, whose steps are small, 60, and at least 1,000 steps
- learning rate: by method and size (``methods.py``)
- precision: bfloat16 where the processor has it

Memory is known before the model is loaded: shapes and dtypes stand in the headers of its files. If one step does not
fit in the memory that is free, its batch is made in parts, and at last activations are computed twice (``recompute``);
neither changes the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mickle import machine
from mickle.errors import UsageError
from mickle.kernels.losses import CHUNK_BYTES
from mickle.models.language import Description
from mickle.training.pretrain_plan import ACTIVATION_BYTES
from mickle.training.run import KEPT_CHECKPOINTS, Asked, TrainingPlan, fitting, in_parts
from mickle.tuning.methods import TuningMethod
from mickle.tuning.weights import Weights

LIBRARIES = 120_000_000  # bytes that a fresh process sets up after the forecast, as measured: 82 to open, 37 to measure
NUMBA = 67_000_000  # bytes of the compiler that MeZO's kernels bring
READER = 50_000_000  # bytes that transformers' `generate` sets up when it is asked with what was written
PARTS_DIFFER = "dropout: each part of a batch draws units of its own, so another number of parts is another run"
MOST_EXAMPLES = 16  # of a step
LEAST_STEPS = 20  # of an epoch, as long as a step has an example
LONGEST, SHORTEST = 2048, 128  # tokens of a row, unless told otherwise
EVALUATIONS = 10
EFFICIENCY = 0.5  # of a training step's products against one large product
LAYERS_TWICE = 2.5  # layers' activations held at once where they are computed twice, as measured
EVALUATION_TOKENS = 4096  # of one batch when examples and pages are scored, at most


@dataclass(frozen=True)
class TunePlan(TrainingPlan):
    """Every number of one tuning, resolved."""

    learning: int
    recompute: bool
    epochs: float
    examples: int
    dropout: bool = False

    def lines(self) -> list[str]:
        """The resolved numbers for a person."""
        twice = ", activations computed twice" if self.recompute else ""
        share = self.learning / max(1, self.parameters)
        rate = f"learning rate {self.learning_rate:.2g} at its peak; " if self.learning_rate else ""
        return [
            f"model: {self.parameters:,} parameters, {self.learning:,} learn ({share:.2%})",
            f"batch: {self.batch_size} rows of {self.sequence_length} tokens{self.parts}{twice}",
            f"length: {self.steps:,} steps = {self.epochs:.1f} epochs of {self.examples:,} examples",
            f"{rate}{self.rhythm}",
            *([self.short] if self.short else []),
            *([PARTS_DIFFER] if self.dropout else []),
        ]


@dataclass(frozen=True)
class Batching:
    """How a task's examples become batches: tokens of a row, rows of a step, steps of an epoch, and examples."""

    length: int
    rows: int
    epoch: float
    examples: int


def longest_row(asked: int | None, shape: Description) -> int:
    """The most tokens that one example may have. UsageError where the model reads fewer than asked for."""
    if asked and asked > shape.longest:
        raise UsageError(
            f"The model reads at most {shape.longest:,} tokens at a time, not {asked:,}.", where="sequence_length"
        )
    return asked or min(shape.longest, LONGEST)


def row_length(asked: int | None, longest_example: int, most: int) -> int:
    """Tokens of a row, by the rule above."""
    return asked or min(most, max(SHORTEST, 64 * math.ceil(longest_example / 64)))


def batch_rows(batch_tokens: int | None, length: int, lengths: Sequence[int]) -> int:
    """Rows of one step, by the rule above."""
    if batch_tokens:
        return max(1, round(batch_tokens / length))
    examples = min(MOST_EXAMPLES, max(1, len(lengths) // LEAST_STEPS))
    return max(1, round(examples * sum(lengths) / len(lengths) / length))


def resolve(
    asked: Asked,
    method: TuningMethod,
    weights: Weights,
    shape: Description,
    batching: Batching,
    recompute: bool | None = None,
) -> TunePlan:
    """Every number of the run. ResourceError where not even one row at a time fits in memory."""
    derived = method.steps(batching.epoch) if asked.epochs is None else math.ceil(asked.epochs * batching.epoch)
    steps = asked.steps or max(1, derived)
    plan = TunePlan(
        **asked.numbers(
            parameters=weights.parameters,
            length=batching.length,
            rows=batching.rows,
            steps=steps,
            rate=method.rate(weights.parameters),
            evaluations=EVALUATIONS,
        ),
        learning=method.learns.count(weights),
        recompute=bool(recompute),
        epochs=steps / batching.epoch,
        examples=batching.examples,
    )
    if asked.accumulate:
        return plan
    ways = [False, True] if recompute is None else [recompute]
    return fitting(
        [candidate for way in ways for candidate in in_parts(replace(plan, recompute=way))],
        lambda candidate: memory(method, candidate, weights, shape),
        where=f"{plan.parameters:,} parameters, rows of {plan.sequence_length:,} tokens, method {method.kind}",
        todo="choose --method qlora or mezo, or a shorter sequence_length",
    )


def seconds(method: TuningMethod, plan: TunePlan) -> float:
    """Seconds of the training: its products at half the rate of one large product, which is measured now.

    A token costs 2 FLOP a parameter forward, as many for the gradient of what goes in, and as many for that of the
    weights where they learn (Kaplan et al., arXiv 2001.08361, section 2.1); activations computed twice, 2 more.
    """
    passes = method.passes + (2 if plan.recompute else 0)
    tokens = plan.steps * plan.batch_tokens
    return passes * plan.parameters * tokens / (EFFICIENCY * machine.matmul_flops(plan.precision))


def disk(plan: TunePlan, weights: Weights) -> int:
    """Bytes that the run writes at most at one time: checkpoints of what learns, and the model."""
    return (KEPT_CHECKPOINTS + 2) * 12 * plan.learning + 4 * plan.learning + weights.file_bytes


def memory(method: TuningMethod, plan: TunePlan, weights: Weights, shape: Description, base: int | None = None) -> int:
    """Peak bytes of the run in closed form; ``base`` is what the process holds without a model.

    What learns takes 16 bytes a parameter (itself, its gradient, two averages), without a backward pass nothing but
    itself; what is frozen its storage. Activations are counted as in ``pretrain_plan.memory``; activations computed
    twice leave one float32 number of the stream a layer, token and dimension, and those of one layer. Opening holds the
    file's bytes beside what is made of them. In the end the best weights are read beside all that trained, and what was
    written is opened once more where it is a whole model.
    """
    stored = _stored(method, plan, weights)
    tokens = plan.micro_rows * plan.sequence_length
    adapters = 0 if plan.learning >= plan.parameters else plan.learning
    step = moving = 0
    if method.kept is not None:
        moving = 12 * plan.learning
        step = _activations(plan, tokens, shape, method.kept[0 if shape.ours else 1]) + _head(tokens, shape)
    learning = 4 * adapters + moving
    evaluation = _forward(max(tokens, EVALUATION_TOKENS), shape)
    opening = weights.file_bytes + (stored if stored != weights.file_bytes else 0)
    ending = 4 * plan.learning
    if method.learns.whole and shape.causal:
        ending = max(ending, weights.file_bytes + READER)
    held = machine.peak_memory() if base is None else base
    running = stored + learning + max(step + method.unpacked_bytes(weights), evaluation)
    return int(held + libraries(method) + max(opening, running, stored + learning + ending))


def libraries(method: TuningMethod) -> int:
    """Bytes that a fresh process sets up after the forecast."""
    return LIBRARIES + (NUMBA if method.kept is None else 0)


def _stored(method: TuningMethod, plan: TunePlan, weights: Weights) -> int:
    """Bytes of the model's own weights while it is tuned."""
    if weights.linear_bytes < weights.linear:  # a folder in few bits
        return weights.linear_bytes + 4 * weights.rest
    return int(method.bytes_a_number(plan.precision) * weights.linear) + 4 * weights.rest


def _activations(plan: TunePlan, tokens: int, shape: Description, kept: float) -> int:
    """Bytes that the forward pass keeps for the backward pass of one part of a batch, attention masks included."""
    layer = kept * tokens * ACTIVATION_BYTES[plan.precision] * (shape.attention + 4 * shape.ffn)
    mask = plan.micro_rows * plan.sequence_length**2 * (6 if shape.ours else 4 * shape.heads)
    if plan.recompute:
        return int(LAYERS_TWICE * layer + shape.layers * tokens * 4 * shape.width + mask)
    return int(shape.layers * layer + mask)


def _head(tokens: int, shape: Description) -> int:
    """Bytes of the loss: chunks of logits and hidden states of ours, all trained positions' logits elsewhere."""
    if shape.ours:
        matrix = shape.vocab_size * shape.width * 4
        return 3 * min(CHUNK_BYTES, 4 * tokens * shape.vocab_size) + tokens * shape.width * 8 + matrix
    return tokens * shape.vocab_size * 12 + CHUNK_BYTES


def _forward(tokens: int, shape: Description) -> int:
    """Bytes of a pass without gradients: one layer's, and logits some at a time."""
    logits = 4 * tokens * shape.vocab_size
    logits = min(2 * CHUNK_BYTES, logits) if shape.ours else logits + min(2 * CHUNK_BYTES, logits)
    return int(tokens * 4 * (6 * shape.width + 3 * shape.ffn) + logits)
