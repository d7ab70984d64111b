"""The part of ``mickle evaluate`` that asks at which length a model breaks.

For any model folder, and a named task (``mickle.data.length_tasks``) or JSON Lines with ``source``,
``target`` and perhaps ``length``. Writes ``results.json``, ``table.md``, ``length.csv``, ``length.svg``.
How an answer is judged stands in ``length_scores.py``. Accuracy at the lengths of training always stands
beside the rest: a model that never learned its task looks like one that does not extrapolate.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mickle.config import Input
from mickle.data import length_tasks
from mickle.data.length_tasks import Example, Task
from mickle.data.tasks.copying import SYMBOLS
from mickle.errors import UsageError
from mickle.evaluation.length_scores import (
    Encode,
    LengthScore,
    encode_examples,
    holds_to,
    mean_accuracy,
    score,
)
from mickle.evaluation.measure import Measure, learned_table
from mickle.events import Emit, Warned
from mickle.figures import Figure, Line, Panel
from mickle.results import Result, Table
from mickle.step import command

if TYPE_CHECKING:
    from torch import nn

PROBE = 10  # how often each symbol is repeated to see whether the tokenizer keeps it apart


class Length(Measure):
    """Accuracy per length of a task's instances, inside and beyond the lengths of training."""

    kind: Literal["length"] = "length"
    task: str = Field("", description="a named task, such as rsc, cmc, mc, addition, parity, lego, scan")
    data: Input | None = Field(None, description="instead: JSON Lines with source, target and perhaps length")
    trained: int | None = Field(
        None, ge=0, description="longest length that the model was trained on (a named task knows its own)"
    )
    longest: int | None = Field(
        None, ge=1, description="longest length that is tested (default for a named task: all of its lengths)"
    )
    per_length: int = Field(64, ge=1, description="how many instances of each length are asked")
    scratchpad: str = Field("none", description="none, minimal, full, or 'without' and a part's name")
    holds_at: float = Field(0.9, gt=0, le=1, description="accuracy below which a length counts as broken")

    def run(self, folder: Path, emit: Emit, seed: int = 0) -> Result:
        """Measure a model folder at every length.

        Raises UsageError where the question has no meaning: no task and no data, a tokenizer that merges the
        task's symbols, a model that sees both sides, a model without positions and without a first token.
        """
        from mickle.data.tokenizer import open_text_tokenizer
        from mickle.models.adapters import tokenizer_folder
        from mickle.models.folder import open_to_run

        tokenizer = open_text_tokenizer(tokenizer_folder(folder))
        examples, trained = chosen_examples(self, tokenizer.encode, seed)
        model = open_to_run(folder)
        check_model(model, tokenizer.start is not None)
        instances = encode_examples(examples, tokenizer.encode, tokenizer.start, tokenizer.end)
        largest = max(max(instance.ids) for instance in instances)
        vocabulary = getattr(model.config, "vocab_size", None)
        if vocabulary is not None and largest >= vocabulary:
            raise UsageError(
                f"the tokenizer gives id {largest:,}, the model has {vocabulary:,} tokens", where=str(folder)
            )
        scores = score(model, instances, tokenizer.end, trained, emit)
        if trained is None:
            emit(Warned("the longest length of training is not known; `trained` gives it"))
        summary = summarise(self, scores, learned_table(model))
        return Result(
            summary,
            {"task": "length", **summary, "scores": [asdict(s) for s in scores]},
            [as_table(scores)],
            {"length.svg": picture(folder.name, scores, self.task or "own data")},
            texts={"length.csv": as_csv(scores)},
            notes=[sentence(self, scores)],
        )

    def after(self, folder: Path, out: Path) -> str:
        """See what it writes."""
        return command("sample", folder, "--prompts", "Return the")


def chosen_examples(settings: Length, encode: Encode, seed: int) -> tuple[list[Example], int | None]:
    """The instances that the settings ask for, and the longest length of training where it is known."""
    if bool(settings.task) == (settings.data is not None):
        raise UsageError("exactly one of `task` and `data` is needed", expected="a named task, or JSON Lines")
    if settings.data is not None:
        examples = length_tasks.read_examples(settings.data, lambda text: len(encode([text])[0]))
        examples = _at_most(examples, settings.per_length, settings.longest)
        return examples, settings.trained
    if settings.scratchpad not in length_tasks.SCRATCHPADS:
        raise UsageError(
            f"there is no scratchpad {settings.scratchpad!r}", expected=", ".join(length_tasks.SCRATCHPADS)
        )
    task = length_tasks.open_task(settings.task)
    check_symbols(task, encode)
    lengths = [n for n in task.train + task.test if settings.longest is None or n <= settings.longest]
    if not lengths:
        raise UsageError(f"task {task.name} has no length up to {settings.longest}", where="longest")
    parts = length_tasks.SCRATCHPADS[settings.scratchpad]
    # "test" keeps these instances apart from any that a training seed can draw.
    found = list(length_tasks.buckets(task, f"test {seed}", lengths, settings.per_length, parts))
    return found, task.train[-1] if settings.trained is None else settings.trained


def _at_most(examples: list[Example], per_length: int, longest: int | None) -> list[Example]:
    """The first ``per_length`` records of each length, lengths up to ``longest``."""
    counts: dict[int, int] = {}
    kept = []
    for record in examples:
        counts[record.length] = counts.get(record.length, 0) + 1
        if counts[record.length] <= per_length and (longest is None or record.length <= longest):
            kept.append(record)
    if not kept:
        raise UsageError(f"no record has a length up to {longest}", where="longest")
    return kept


def summarise(settings: Length, scores: Sequence[LengthScore], table: int | None) -> dict[str, Any]:
    """The headline numbers; those that are not known are left out."""
    values = {
        "instances": settings.task or str(settings.data),
        "accuracy_in_training_lengths": mean_accuracy(scores, seen=True),
        "accuracy_beyond": mean_accuracy(scores, seen=False),
        "holds_to_length": holds_to(scores, settings.holds_at),
        "right_symbols_wrong_stop": sum(found.stopped_early + found.ran_on for found in scores) / len(scores),
        "learned_positions": table,
    }
    return {name: value for name, value in values.items() if value is not None}


def sentence(settings: Length, scores: Sequence[LengthScore]) -> str:
    """The answer in one line."""
    held, longest = holds_to(scores, settings.holds_at), scores[-1].length
    if held is None:
        return f"below {settings.holds_at:.0%} already at length {scores[0].length}: the task is not learned"
    if held == longest:
        return f"holds at {settings.holds_at:.0%} up to length {longest}, the longest tested"
    broken = next(found for found in scores if found.length > held)
    wrong_stop = broken.stopped_early + broken.ran_on
    return (
        f"holds at {settings.holds_at:.0%} up to length {held}; {broken.exact:.0%} at {broken.length}"
        f" ({wrong_stop:.0%} right symbols with a wrong stop, {broken.wrong_symbol:.0%} wrong symbols)"
    )


def as_table(scores: Sequence[LengthScore]) -> Table:
    """One row for each length."""
    rows = [
        (
            str(s.length), "yes" if s.seen else "no",
            *(f"{share:.1%}" for share in (s.exact, s.stopped_early, s.ran_on, s.wrong_symbol, s.tokens)),
        )
        for s in scores
    ]  # fmt: skip
    headings = ("length", "in training", "exact", "stopped early", "ran on", "wrong symbol", "tokens right")
    return Table(headings, rows, frozenset({0, 2, 3, 4, 5, 6}))


def as_csv(scores: Sequence[LengthScore]) -> str:
    """One row for each length."""
    text = io.StringIO()
    writer = csv.DictWriter(text, ["name", *LengthScore.__dataclass_fields__], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"name": "model", **asdict(found)} for found in scores)
    return text.getvalue()


def picture(name: str, scores: Sequence[LengthScore], title: str) -> Figure:
    """Exact-match accuracy over length; lengths of training are shaded."""
    seen = [found.length for found in scores if found.seen]
    line = Line([s.length for s in scores], [s.exact for s in scores], name, "o-", size=3)
    panel = Panel(
        "length",
        "exact-match accuracy",
        [line],
        span=(min(seen) - 0.5, max(seen) + 0.5, "lengths of training") if seen else None,
        title=title,
        title_size=10.8,
        y_limits=(-0.03, 1.03),
        legend="small",
    )
    return Figure((panel,), height=3.2)


def check_symbols(task: Task, encode: Encode) -> None:
    """Refuse a tokenizer that merges a task's symbols or takes one for another: it would make another task of it.

    Each symbol, written ``PROBE`` and twice ``PROBE`` times with spaces between, must cost one token a time.
    """
    symbols = task.symbols or SYMBOLS[:PROBE]
    once, twice = (encode([" ".join([symbol] * n) for symbol in symbols]) for n in (PROBE, 2 * PROBE))
    merged = [symbol for symbol, a, b in zip(symbols, once, twice) if len(b) - len(a) != PROBE]
    names: dict[tuple[int, ...], str] = {}
    words = zip(task.vocabulary, encode(task.vocabulary))
    mixed = [word for word, tokens in words if names.setdefault(tuple(tokens), word) != word]
    if merged or mixed:
        problem = "does not give one token to each symbol" if merged else "does not tell the symbols apart"
        shown = merged or mixed
        raise UsageError(
            f"the tokenizer {problem}: {len(shown)} of {len(symbols if merged else task.vocabulary)},"
            f" such as {' '.join(shown[:5])}",
            expected=f"one token for every symbol of the task {task.name}",
            todo="train with length_tasks.symbol_tokenizer, or evaluate on JSON Lines of your own",
        )


def check_model(model: nn.Module, first_token: bool) -> None:
    """Refuse what cannot be measured or cannot work: a model that sees ahead; no positions and no first token."""
    config = model.config
    if not model.causal:
        raise UsageError(
            "this model sees both sides, so it has read the answer that it should predict",
            expected="a causal model; without positions a model that is not causal sees a bag of words",
        )
    schemes = set(getattr(config, "schemes", ()))
    if schemes == {"none"} and not first_token:
        raise UsageError(
            "a model without positions needs a first token (BOS) to count from, and the tokenizer has none",
            expected="bos_token in tokenizer_config.json",
        )
