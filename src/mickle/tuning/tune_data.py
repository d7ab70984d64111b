"""Tuning on conversations, prompts and completions, or text: what is read, trained and measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from mickle.data.chat_template import open_template
from mickle.data.conversations import Example, Reading, read_conversations
from mickle.data.example_batches import Encoded, ExampleBatches
from mickle.data.examples import encode_examples
from mickle.data.masking import MaskedBatches, vocabulary_of
from mickle.data.preview import preview
from mickle.data.records import Page
from mickle.data.tokenizer import TextTokenizer
from mickle.errors import UsageError
from mickle.training.objectives import masked_token, trained_tokens
from mickle.tuning import measures
from mickle.tuning.task import Names, Sources, Task, two_sides
from mickle.tuning.tune_plan import Batching, TunePlan, batch_rows, row_length

if TYPE_CHECKING:
    from mickle.training.run import Asked
    from mickle.tuning.task import Lesson

LEAST_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class ExampleTask(Task):
    """Examples of which the answers' tokens are trained; of a text all of them."""

    training: Encoded
    heldout: Encoded
    tokenizer: TextTokenizer

    @property
    def ends(self) -> list[int]:
        return measures.ends_taught(self.training, self.tokenizer)

    def batching(self, asked: Asked, most: int) -> Batching:
        lengths = self.lengths
        length = row_length(asked.sequence_length, max(lengths), most)
        rows = batch_rows(asked.batch_tokens, length, lengths)
        return Batching(length, rows, ExampleBatches(self.training, length, rows).steps_an_epoch, len(lengths))

    def objective_and_batches(self, plan: TunePlan, seed: int, counts_answers: bool) -> Lesson:
        return trained_tokens, ExampleBatches(self.training, plan.sequence_length, plan.batch_size, seed)

    def scores(self, model: nn.Module, length: int, most: int = 0) -> np.ndarray:
        return measures.answer_scores(model, self.heldout, self.first(most))

    def samples(self, model: nn.Module, count: int, ends: Sequence[int], limit: int) -> list[dict[str, str]]:
        rows = measures.written(model, self.heldout, self.tokenizer, count, ends, limit)
        for row, place in zip(rows, self.heldout.place):
            if turns := self.heldout_examples[place].messages:
                asked = next((turn.content for turn in reversed(turns) if turn.role != "assistant"), "")
                row |= {"question": asked, "reference": turns[-1].content}
        return rows

    def spelt(self) -> tuple[bytes, bytes]:
        learnt = measures.spelt(self.training, self.tokenizer, (False, True))
        asked, answered = (measures.spelt(self.heldout, self.tokenizer, (side,)) for side in (False, True))
        return learnt + asked, answered

    def preview(self) -> str:
        return preview(self.training, self.tokenizer)


class HiddenTask(ExampleTask):
    """Texts for a model that sees both sides: it fills in hidden tokens."""

    @property
    def ends(self) -> list[int]:
        return []  # it continues nothing

    def spelt(self) -> tuple[bytes, bytes]:
        return b"", b""  # most of a text stands before its eyes

    def objective_and_batches(self, plan: TunePlan, seed: int, counts_answers: bool) -> Lesson:
        _, batches = super().objective_and_batches(plan, seed, counts_answers)
        vocabulary = vocabulary_of(self.tokenizer)
        return masked_token, MaskedBatches(batches, vocabulary, measures.MASKING, plan.steps, seed)

    def scores(self, model: nn.Module, length: int, most: int = 0) -> np.ndarray:
        pages = [Page("", "", "", example.text) for example in self.heldout_examples[: self.first(most)]]
        return measures.hidden_scores(model, pages, self.tokenizer, length)

    def samples(self, model: nn.Module, count: int, ends: Sequence[int], limit: int) -> list[dict[str, str]]:
        return measures.filled(model, self.heldout, self.tokenizer, count)


def read_task(sources: Sources, model: Path, tokenizer: TextTokenizer, longest: int, causal: bool) -> ExampleTask:
    """The examples as tokens, at most ``longest`` of each; ``model``: the folder whose chat template they are written
    with. ``causal``: whether it continues texts.

    Raises UsageError for data of which too much is bad, too little is left, or that is not for such a model.
    """
    forms: list[tuple[str, str]] = []  # of each file, and of its examples

    def read(path: Path, columns: Names) -> tuple[Sequence[Example], Iterable[str]]:
        reading = _read(path, columns, sources.most_bad, causal)
        forms.append((reading.form, reading.examples[0].form))
        if forms[-1][1] != forms[0][1]:
            raise UsageError(
                f"These examples are of another form ({reading.form}) than those of {sources.data[0].path} "
                f"({forms[0][0]}).",
                where=str(path),
                expected="conversations, prompts with completions, or texts, in all files alike",
            )
        return reading.examples, reading.lines()

    sides = two_sides(sources, read, Example.own_text)
    lines = sides.lines
    form, kind = forms[0]
    template = open_template(model, tokenizer) if kind == "messages" else None
    if template is not None and template.builtin:
        lines.append("the model has no chat template: a plain one is used, and written beside the weights")
    encode = partial(encode_examples, tokenizer=tokenizer, template=template, longest=longest)
    found = encode(sides.training, most_bad=sources.most_bad)
    held = encode(sides.heldout, most_bad=sources.most_bad if sources.heldout else 1.0)
    _refuse_empty(found, sources.where, longest)
    lines += [*found.lines(held), sides.shared.line()]
    answers = [ids[mask] for ids, mask in zip(found.tokens, found.trained, strict=True)]
    tokenizer.unknown_line(answers, sources.where)
    lines += filter(None, [tokenizer.unknown_line(found.tokens, sources.where)])
    made = ExampleTask if causal else HiddenTask
    return made(
        form=form,
        lines=tuple(lines),
        overlap=sides.overlap,
        training=found,
        heldout=held,
        heldout_examples=tuple(sides.heldout),
        tokenizer=tokenizer,
        template=template,
        shares=sides.shares,
    )


def _read(path: Path, columns: Names, most_bad: float, causal: bool) -> Reading:
    reading = read_conversations(path, most_bad=most_bad, columns=columns)
    if reading.form == "preference":
        raise UsageError(
            "These are preferences (chosen and rejected answers); tune learns from answers.",
            where=str(path),
            todo="give the chosen answers alone, as prompt and completion or as messages",
        )
    if not causal and reading.form != "text":
        raise UsageError(
            f"This model sees both sides of a token; it cannot learn to answer ({reading.form}).",
            where=str(path),
            expected="rows with `text`, or labelled rows and --prompt.template",
        )
    return reading


def _refuse_empty(found: Encoded, where: str, longest: int) -> None:
    if sum(map(len, found.tokens)) < LEAST_TOKENS or not any(trained.any() for trained in found.trained):
        raise UsageError(
            "There is nothing to learn here: no token of an answer is left.",
            where=where,
            expected=f"examples with an answer within {longest:,} tokens",
            todo="give more or shorter examples, or raise sequence_length",
        )
