"""At which length does a model break? Accuracy per length, those of training beside those never seen.

An answer counts when every token of it is right and it ends where it should, as in arXiv 2305.19466.

One pass with the true answer as input finds this: where every argmax is right, greedy decoding would have
written the same tokens, and at the first wrong one it would have left the answer. So a length costs one
pass, not one pass for each token, and gives the same number. The first error also tells how an answer
failed: a wrong symbol, or the right symbols and a wrong stop (too early, or not at all), which is where most
failures beyond training are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from mickle.data.length_tasks import Example
from mickle.errors import UsageError
from mickle.evaluation.measure import in_batches, learned_table
from mickle.events import Emit, Progressed, Started

if TYPE_CHECKING:
    from torch import Tensor, nn

Encode = Callable[[Sequence[str]], Sequence[Any]]  # TextTokenizer.encode: texts -> token ids of each
Kind = Literal["exact", "stopped_early", "ran_on", "wrong_symbol"]
LARGEST_LOGITS = 1 << 25  # numbers in the logits of one pass: 128 MiB in float32


@dataclass(frozen=True)
class Encoded:
    """One instance as tokens: BOS, source, target, EOS. ``prompt`` tokens come before the first to be predicted."""

    ids: tuple[int, ...]
    prompt: int
    length: int


@dataclass(frozen=True)
class LengthScore:
    """What came of ``count`` instances of one length. The four outcomes are shares that sum to 1.

    ``exact``: all right. ``stopped_early`` and ``ran_on``: the symbols right, the stop wrong.
    ``wrong_symbol``: the rest. ``tokens``: share of target tokens predicted right, given the true ones
    before them.
    """

    length: int
    count: int
    exact: float
    stopped_early: float
    ran_on: float
    wrong_symbol: float
    tokens: float
    seen: bool


def encode_examples(examples: Sequence[Example], encode: Encode, start: int | None, end: int) -> list[Encoded]:
    """Instances as tokens. Source and target are tokenised apart, parted by a space where the source ends in none."""
    gaps = ["" if not e.source or e.source[-1].isspace() else " " for e in examples]
    sources = encode([record.source for record in examples])
    targets = encode([gap + record.target for gap, record in zip(gaps, examples)])
    first = [] if start is None else [start]
    found = []
    for record, source, target in zip(examples, sources, targets):
        prompt = [*first, *map(int, source)]
        if not prompt:
            raise UsageError("an instance has no prompt: there is nothing to predict its answer from")
        found.append(Encoded((*prompt, *map(int, target), end), len(prompt), record.length))
    return found


def score(
    model: nn.Module, instances: Sequence[Encoded], end: int, trained: int | None, emit: Emit | None = None
) -> list[LengthScore]:
    """One score for each length, shortest first. ``trained`` is the longest length of training, if known.

    Instances longer than a table of learned positions count as wrong symbols: the model has no place for them.
    """
    groups: dict[int, list[Encoded]] = {}
    for instance in instances:
        groups.setdefault(instance.length, []).append(instance)
    if emit:
        emit(Started("evaluating lengths", len(groups), "lengths"))
    scores = []
    for done, length in enumerate(sorted(groups), 1):
        outcomes = judge(model, groups[length], end)
        scores.append(_summarise(length, outcomes, trained is not None and length <= trained))
        if emit:
            emit(Progressed(done, f"length {length}: {scores[-1].exact:.0%}"))
    return scores


@dataclass(frozen=True)
class Outcome:
    """How one instance went: its kind, and the share of its target tokens that were right."""

    kind: Kind
    tokens: float


def judge(model: nn.Module, instances: Sequence[Encoded], end: int) -> list[Outcome]:
    """The outcome of each instance, by one pass with the true answer as input (see the module's first lines)."""
    import torch

    table = learned_table(model)
    fits = [table is None or len(row.ids) - 1 <= table for row in instances]
    device = next(model.parameters()).device
    vocabulary = getattr(model.config, "vocab_size", 1 << 15)
    outcomes: dict[int, Outcome] = {}
    was_training = model.training

    def predicted(rows: list[int]) -> list[list[int]]:
        tokens = [torch.tensor(instances[row].ids) for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=end)
        found: list[list[int]] = _predict(model, ids[:, :-1].to(device)).tolist()
        return found

    model.eval()
    try:
        fitting = [row for row, fit in enumerate(fits) if fit]
        most = LARGEST_LOGITS // vocabulary
        for rows, answers in in_batches(fitting, lambda row: len(instances[row].ids), most, predicted):
            outcomes |= {row: _outcome(instances[row], answer, end) for row, answer in zip(rows, answers, strict=True)}
    finally:
        model.train(was_training)
    return [outcomes.get(row, Outcome("wrong_symbol", 0.0)) for row in range(len(instances))]


def _predict(model: nn.Module, ids: Tensor) -> Tensor:
    """The likeliest next token at every position: [B, T] -> [B, T]."""
    import torch

    def likeliest(hidden: Tensor, weight: Tensor | None) -> Tensor:
        logits = hidden if weight is None else hidden @ weight.T  # [B, T, V]
        return logits.argmax(-1)

    with torch.inference_mode():
        return model(ids, head=likeliest).cpu()


def _outcome(row: Encoded, predicted: list[int], end: int) -> Outcome:
    """``predicted[t]`` is what the model would write after token t of the row."""
    wanted = row.ids[row.prompt :]
    written = predicted[row.prompt - 1 : len(row.ids) - 1]
    right = [a == b for a, b in zip(written, wanted)]
    share = sum(right) / len(right)
    if all(right):
        return Outcome("exact", share)
    first = right.index(False)
    if written[first] == end:
        return Outcome("stopped_early", share)
    return Outcome("ran_on" if first == len(wanted) - 1 else "wrong_symbol", share)


def _summarise(length: int, outcomes: Sequence[Outcome], seen: bool) -> LengthScore:
    count = len(outcomes)
    shares = {kind: sum(outcome.kind == kind for outcome in outcomes) / count for kind in get_args(Kind)}
    return LengthScore(
        length=length, count=count, **shares, tokens=sum(outcome.tokens for outcome in outcomes) / count, seen=seen
    )


def mean_accuracy(scores: Sequence[LengthScore], seen: bool) -> float | None:
    """Mean exact-match accuracy over the lengths of training, or over those beyond; None where there are none."""
    chosen = [score.exact for score in scores if score.seen is seen]
    return sum(chosen) / len(chosen) if chosen else None


def holds_to(scores: Sequence[LengthScore], least: float) -> int | None:
    """The longest length up to which every length tested has at least this accuracy; None where the first fails."""
    held = None
    for found in scores:
        if found.exact < least:
            break
        held = found.length
    return held


def mean_reciprocal_rank(accuracies: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean over (task, seed) of 1/rank of each arm, rank 1 the most accurate; equals share the mean of their ranks.

    The paper's code breaks ties by its table's order, which favours rotary where all are at zero. A mean
    reciprocal rank says nothing of magnitudes: show accuracies with it.
    """
    if not accuracies:
        raise UsageError("ranks were asked of no accuracies", expected="at least one task and seed")
    totals = dict.fromkeys(accuracies[0], 0.0)
    for table in accuracies:
        for arm, value in table.items():
            better = sum(other > value for other in table.values())
            equal = sum(other == value for other in table.values())
            totals[arm] += 1 / (better + (equal + 1) / 2)
    return {arm: total / len(accuracies) for arm, total in totals.items()}
