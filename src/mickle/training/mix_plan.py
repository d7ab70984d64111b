"""The numbers of a `mickle mix`: what reference and proxy are, what they need, and whether that is enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mickle.data.packing import TokenStream
from mickle.errors import UsageError
from mickle.training.pretrain_plan import Fresh, PretrainPlan, in_memory, memory, resolve
from mickle.training.run import Asked, in_parts

FEW_ROWS = 4  # sequences of a domain in a step
FEW_STEPS = 100


def plan_of(asked: Asked, model: Fresh, vocabulary: int, tokens: Sequence[int]) -> PretrainPlan:
    """The numbers of one training as pretrain's rules have them, given the tokens of each domain.

    Left out, the sequence is shorter than the shortest domain, a batch has four sequences of each domain or more (on
    average: domains are drawn alike), and the steps read the corpus once at most: the excess on what was read before is
    about memory.
    """
    total, shortest = sum(tokens), min(tokens)
    plan = resolve(asked, model, vocabulary, total)
    if asked.sequence_length is None and plan.sequence_length >= shortest > 1:
        fitting = 1 << ((shortest - 1).bit_length() - 1)
        asked = replace(asked, sequence_length=fitting)
        plan = resolve(asked, model, vocabulary, total)
    if asked.batch_tokens is None and plan.batch_size < FEW_ROWS * len(tokens):
        rows = FEW_ROWS * len(tokens)
        asked = replace(asked, batch_tokens=rows * plan.sequence_length)
        plan = resolve(asked, model, vocabulary, total)
    if asked.steps is None and asked.epochs is None and plan.epochs > 1:
        plan = resolve(replace(asked, epochs=1.0), model, vocabulary, total)
    return plan if asked.accumulate else in_memory(in_parts(plan, plan.accumulate), proxy_memory)


def proxy_memory(plan: PretrainPlan) -> int:
    """Peak bytes of a proxy's training: an ordinary one's, the kept gradients of logits, and the reference."""
    width = 2 if plan.precision == "bfloat16" else 4
    logits = plan.micro_rows * plan.sequence_length * plan.vocabulary_size * width
    return memory(plan) + logits + 4 * plan.parameters


def limited_weights(
    weights: Sequence[float],
    streams: dict[str, TokenStream],
    floor: float,
    max_repeats: float | None,
    budget_tokens: int | None,
) -> list[float]:
    """The weights, none below ``floor`` and no domain repeated more often than that within a budget of tokens.

    Raises UsageError where no weights keep these bounds.
    """
    most = [1.0] * len(streams)
    if max_repeats is not None and budget_tokens is not None:
        most = [min(1.0, max_repeats * len(s) / budget_tokens) for s in streams.values()]
    if floor == 0 and min(most) == 1:
        return list(weights)
    try:
        return limited(weights, [floor] * len(streams), most)
    except ValueError:
        tokens = sum(map(len, streams.values()))
        raise UsageError(
            f"No weights are above a floor of {floor:g} and repeat no domain more than {max_repeats or 0:g} times.",
            where="floor, max_repeats, budget_tokens",
            expected=f"floor at most {1 / len(streams):.3g}; budget_tokens at most max_repeats x {tokens:,}",
        ) from None


def limited(weights: Sequence[float], least: Sequence[float], most: Sequence[float]) -> list[float]:
    """``weights`` scaled by one factor and kept within [least, most] each, so that they sum to 1.

    Raises ValueError where no such weights exist. A bound that is met holds exactly.
    """
    wanted, low, high = (np.asarray(v, dtype=np.float64) for v in (weights, least, most))
    low = np.minimum(low, high)
    if low.sum() > 1 + 1e-12 or high.sum() < 1 - 1e-12:
        raise ValueError("no weights within these bounds sum to 1")
    wanted = np.maximum(wanted, 1e-300)
    small, large = 0.0, float(high.max() / wanted.min()) + 1
    for _ in range(2000):  # the sum grows with the factor
        middle = (small + large) / 2
        if middle in (small, large):
            break
        small, large = (middle, large) if np.clip(middle * wanted, low, high).sum() < 1 else (small, middle)
    found = np.clip(large * wanted, low, high)
    free = (found > low) & (found < high)
    if free.any():
        found[free] *= (1 - found[~free].sum()) / found[free].sum()
    return [float(value) for value in found]


def doubts(plan: PretrainPlan, streams: dict[str, TokenStream], drawn: Sequence[float]) -> list[str]:
    """What a person should know of a run before believing its weights; ``drawn``: what the proxy's batches are by."""
    found = []
    rows = min(plan.batch_size * share for share in drawn)
    if rows < FEW_ROWS:
        found.append(
            f"a domain has {rows:.1f} sequences a step; below {FEW_ROWS} its excess is mostly noise, which clipping "
            "turns into weight: raise batch_tokens, or group small domains"
        )
    if plan.steps < FEW_STEPS:
        found.append(f"{plan.steps} steps are few for weights that are a mean over steps; below {FEW_STEPS} doubt them")
    read = plan.steps * plan.batch_tokens
    epochs = {name: w * read / len(s) for (name, s), w in zip(streams.items(), drawn, strict=True)}
    repeated = [f"{name} {count:.1f}" for name, count in epochs.items() if count > 1.05]
    if repeated:
        found.append(
            f"the proxy reads {len(repeated)} domains more than once ({', '.join(repeated[:6])} epochs): their excess "
            "mixes in what it memorises"
        )
    return found
