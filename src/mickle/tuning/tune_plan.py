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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle import machine
from mickle.errors import ResourceError, UsageError
from mickle.kernels.losses import CHUNK_BYTES
from mickle.models.language import Description
from mickle.training.pretrain_plan import ACTIVATION_BYTES
from mickle.tuning.methods import derived_rate

if TYPE_CHECKING:
    from mickle.tuning.tune import Tune

EPOCHS = 3
LIBRARIES = 80_000_000  # bytes that a fresh process sets up between the forecast and the first step, as measured
MEZO_EPOCHS, MEZO_STEPS = 60, 1000
MOST_EXAMPLES = 16  # of a step
LEAST_STEPS = 20  # of an epoch, as long as a step has an example
LONGEST, SHORTEST = 2048, 128  # tokens of a row, unless told otherwise
EVALUATIONS = 10
TABLES = ("embed", "lm_head", "wte", "wpe", "shared", "decoder.weight", "position")  # in names of what stays in 32 bits
FOUR_BIT_TENSORS = ("absmax", "quant_map", "quant_state", "nested_")
# Of what pretraining keeps of activations, as measured: in our decoder, and in models of transformers.
KEPT_SHARE = {"full": (0.82, 0.85), "lora": (0.68, 1.0), "qlora": (0.95, 1.2)}
LAYERS_TWICE = 2.5  # layers' activations held at once where they are computed twice, as measured
EVALUATION_TOKENS = 4096  # of one batch when examples and pages are scored, at most


@dataclass(frozen=True)
class Weights:
    """What a folder's weights come to, as its files' headers say: numbers in linear layers and in the rest, bytes,
    the linear layers' inputs and outputs in all (``sides``), and the numbers of the largest.
    """

    linear: int
    rest: int
    file_bytes: int
    sides: int
    largest: int
    linear_bytes: int  # as stored


@dataclass(frozen=True)
class Plan:
    """Every number of one tuning, resolved. ``batch_size`` counts rows of ``sequence_length`` tokens."""

    parameters: int
    learning: int
    sequence_length: int
    batch_size: int
    accumulate: int
    recompute: bool
    steps: int
    epochs: float
    learning_rate: float
    precision: str
    evaluate_every: int
    save_every: int
    examples: int

    @property
    def micro_rows(self) -> int:
        """Rows of the largest part of a batch."""
        return math.ceil(self.batch_size / self.accumulate)

    def lines(self) -> list[str]:
        """The resolved numbers for a person."""
        parts = f" in {self.accumulate} parts" if self.accumulate > 1 else ""
        parts += ", activations computed twice" if self.recompute else ""
        share = self.learning / max(1, self.parameters)
        rate = f"learning rate {self.learning_rate:.2g} at its peak; " if self.learning_rate else ""
        return [
            f"model: {self.parameters:,} parameters, {self.learning:,} learn ({share:.2%})",
            f"batch: {self.batch_size} rows of {self.sequence_length} tokens{parts}",
            f"length: {self.steps:,} steps = {self.epochs:.1f} epochs of {self.examples:,} examples",
            f"{rate}precision {self.precision}; evaluation every {self.evaluate_every} steps, "
            f"checkpoint every {self.save_every}",
        ]


def weigh(folder: Path, targets: str | list[str] = "all-linear") -> Weights:
    """Sizes of a folder's weights from its headers. ``targets``: ends of the names of layers that get adapters."""
    from mickle.models.folder_check import inspect_folder

    linear = rest = sides = largest = linear_bytes = 0
    files = inspect_folder(folder)
    for name, (_, entry) in files.tensors.items():
        shape, size = entry.shape, entry.end - entry.start
        if any(word in name for word in FOUR_BIT_TENSORS):
            linear_bytes += size
            continue
        packed = entry.dtype in ("U8", "I8", "I32")
        elements = 2 * size if packed else entry.elements
        if not packed and (len(shape) != 2 or any(word in name for word in TABLES)):
            rest += elements
            continue
        linear, linear_bytes, largest = linear + elements, linear_bytes + size, max(largest, elements)
        layer = name.removesuffix(".weight")
        if targets == "all-linear" or any(layer.endswith(end) for end in targets):
            sides += 2 * math.isqrt(elements) if packed else sum(shape)
    file_bytes = sum(entry.end - entry.start for _, entry in files.tensors.values())
    return Weights(linear, rest, file_bytes, sides, largest, linear_bytes)


def learning_parameters(method: Any, weights: Weights) -> int:
    """How many parameters a method trains."""
    adapters = getattr(method, "parameters", method)  # MeZO's own adapters
    if adapters.kind == "prefix":
        return 0  # some thousands
    if hasattr(adapters, "rank"):
        return int(adapters.rank) * weights.sides
    return weights.linear + weights.rest


def longest_row(settings: Tune, shape: Description) -> int:
    """The most tokens that one example may have. UsageError where the model reads fewer than asked for."""
    if settings.sequence_length and settings.sequence_length > shape.longest:
        raise UsageError(
            f"The model reads at most {shape.longest:,} tokens at a time, not {settings.sequence_length:,}.",
            where="sequence_length",
        )
    return settings.sequence_length or min(shape.longest, LONGEST)


def row_length(settings: Tune, longest_example: int, most: int) -> int:
    """Tokens of a row, by the rule above."""
    if settings.sequence_length:
        return settings.sequence_length
    return min(most, max(SHORTEST, 64 * math.ceil(longest_example / 64)))


def batch_rows(settings: Tune, length: int, lengths: list[int]) -> int:
    """Rows of one step, by the rule above."""
    if settings.batch_tokens:
        return max(1, round(settings.batch_tokens / length))
    examples = min(MOST_EXAMPLES, max(1, len(lengths) // LEAST_STEPS))
    return max(1, round(examples * sum(lengths) / len(lengths) / length))


def resolve(
    settings: Tune, weights: Weights, shape: Description, length: int, rows: int, epoch: float, examples: int
) -> Plan:
    """Every number of the run; ``epoch``: its steps. ResourceError where not even one row at a time fits in memory."""
    parameters = weights.linear + weights.rest
    kind = settings.method.kind
    rate = settings.learning_rate or (derived_rate(kind, parameters) if kind != "mezo" else 0.0)
    steps = settings.steps or max(1, math.ceil((settings.epochs or EPOCHS) * epoch))
    if kind == "mezo" and not (settings.steps or settings.epochs):
        steps = max(MEZO_STEPS, math.ceil(MEZO_EPOCHS * epoch))
    plan = Plan(
        parameters=parameters,
        learning=learning_parameters(settings.method, weights),
        sequence_length=length,
        batch_size=rows,
        accumulate=min(rows, settings.accumulate or 1),
        recompute=bool(settings.recompute),
        steps=steps,
        epochs=steps / epoch,
        learning_rate=rate,
        precision=settings.precision or ("bfloat16" if machine.fast_bfloat16() else "float32"),
        evaluate_every=settings.evaluate_every or max(1, steps // EVALUATIONS),
        save_every=settings.save_every or max(1, steps // EVALUATIONS),
        examples=examples,
    )
    return plan if settings.accumulate else _fitting(settings, plan, weights, shape)


def _fitting(settings: Tune, plan: Plan, weights: Weights, shape: Description) -> Plan:
    """The plan with the fewest parts a batch that fit in the free memory; activations are kept while they fit."""
    free = machine.available_memory() + machine.peak_memory()
    parts = [n for n in range(1, plan.batch_size + 1) if plan.batch_size % n == 0]
    ways = [bool(settings.recompute)] if settings.recompute is not None else [False, True]
    plans = [replace(plan, accumulate=n, recompute=way) for way in ways for n in parts]
    for candidate in plans:
        if memory(settings.method, candidate, weights, shape) < 0.9 * free:
            return candidate
    needed = memory(settings.method, plans[-1], weights, shape)
    raise ResourceError(
        f"This needs {needed / 1e9:.1f} GB even one row at a time; {free / 1e9:.1f} GB are free.",
        where=f"{plan.parameters:,} parameters, rows of {plan.sequence_length:,} tokens, method {settings.method.kind}",
        todo="choose --method qlora or mezo, or a shorter sequence_length",
    )


def memory(method: Any, plan: Plan, weights: Weights, shape: Description, base: int | None = None) -> int:
    """Peak bytes of the run in closed form; ``base`` is what the process holds without a model.

    What learns takes 16 bytes a parameter (itself, its gradient, two averages), with MeZO nothing but itself; what is
    frozen its storage. Activations are counted as in ``pretrain_plan.memory``; activations computed twice leave one
    float32 number of the stream a layer, token and dimension, and those of one layer. Opening holds the file's bytes
    beside what is made of them. Writing a checkpoint holds 12 bytes once more of what learns.
    """
    stored = _stored(method, plan, weights)
    tokens = plan.micro_rows * plan.sequence_length
    adapters = 0 if plan.learning >= plan.parameters else plan.learning
    if method.kind == "mezo":
        learning, step = 4 * adapters, _forward(tokens, shape)
    else:
        learning = 16 * adapters if adapters else 12 * plan.learning
        step = _activations(plan, tokens, shape, KEPT_SHARE[method.kind][0 if shape.ours else 1]) + _head(
            plan, tokens, shape
        )
        step += 4 * weights.largest if method.kind == "qlora" else 0
    evaluation = _forward(max(tokens, EVALUATION_TOKENS), shape)
    opening = weights.file_bytes + (stored if stored != weights.file_bytes else 0)
    saving = stored + learning + 12 * (adapters or plan.learning) * (method.kind != "mezo")
    held = machine.peak_memory() if base is None else base
    running = stored + learning + max(step, evaluation)
    return int(held + LIBRARIES + max(opening, running, saving))


def _stored(method: Any, plan: Plan, weights: Weights) -> int:
    """Bytes of the model's own weights while it is tuned."""
    if weights.linear_bytes < weights.linear:  # a folder in few bits
        return weights.linear_bytes + 4 * weights.rest
    each = {
        "full": 4.0,
        "lora": 2.0 if plan.precision == "bfloat16" else 4.0,
        "qlora": 4.127 / 8 if getattr(method, "double", True) else 4.5 / 8,
        "mezo": 4.0,
    }[method.kind]
    return int(each * weights.linear) + 4 * weights.rest


def _activations(plan: Plan, tokens: int, shape: Description, kept: float) -> int:
    """Bytes that the forward pass keeps for the backward pass of one part of a batch, attention masks included."""
    layer = kept * tokens * ACTIVATION_BYTES[plan.precision] * (shape.attention + 4 * shape.ffn)
    mask = plan.micro_rows * plan.sequence_length**2 * (6 if shape.ours else 4 * shape.heads)
    if plan.recompute:
        return int(LAYERS_TWICE * layer + shape.layers * tokens * 4 * shape.width + mask)
    return int(shape.layers * layer + mask)


def _head(plan: Plan, tokens: int, shape: Description) -> int:
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
