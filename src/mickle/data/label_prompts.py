"""Classification in words: a row becomes a prompt, each class a word that may follow it (or stand at the mask).

Source: arXiv 2305.17333, appendix E.2 (prompts), after "Making Pre-trained Language Models Better Few-shot Learners",
arXiv 2012.15723, and PET, arXiv 2001.07676. The paper finds that forward-only tuning needs such a prompt: with a fresh
head instead SST-2 stays at chance (51.9 against 89.6).

    template "{text} It was {label}", labels {"0": "terrible", "1": "great"}

A causal model scores each word as what ends the text; an encoder scores it at its mask, in whose place {label} stands.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from mickle.config import Config
from mickle.data.conversation_columns import counted, is_given
from mickle.data.rows import read_rows
from mickle.errors import UsageError

SHOWN = 3
_FIELD = re.compile(r"\{([^{}]*)\}")


class LabelPrompt(Config):
    """How a labelled row becomes a prompt with one word for each class."""

    template: str = Field(
        "{text} It was {label}", max_length=10_000,
        description="text with fields of a row in braces, and {label} where the word of the row's class goes",
    )  # fmt: skip
    labels: dict[str, str] | list[str] = Field(
        description="each class's word: by the row's label, or a list for labels 0, 1, ... or the words"
    )
    label_field: str = Field("label", min_length=1, description="the field of a row that names its class")

    @model_validator(mode="after")
    def _check(self) -> LabelPrompt:
        if self.template.count("{label}") != 1:
            raise ValueError("template: {label} must stand in it exactly once")
        words = list(self.words)
        if len(words) < 2 or len(set(words)) < len(words) or not all(word.strip() for word in words):
            raise ValueError("labels: at least two, each with a word of its own")
        if not self.fields:
            raise ValueError("template: it names no field of a row, such as {text}")
        return self

    @property
    def words(self) -> tuple[str, ...]:
        """The classes' words, in order."""
        return tuple(self.labels.values()) if isinstance(self.labels, dict) else tuple(self.labels)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a row that the template names."""
        return tuple(name for name in _FIELD.findall(self.template) if name != "label")

    def class_of(self, value: Any) -> int | None:
        """The class that a row's label means, from 0; None where it is none."""
        name = str(int(value)) if isinstance(value, (bool, int)) else str(value).strip()
        keys = list(self.labels) if isinstance(self.labels, dict) else [str(i) for i in range(len(self.labels))]
        if name in keys:
            return keys.index(name)
        return self.words.index(name) if isinstance(self.labels, list) and name in self.words else None

    def render(self, values: dict[str, Any]) -> tuple[str, str]:
        """The text before the word and the text after it."""
        before, after = self.template.split("{label}")
        return _filled(before, values), _filled(after, values)


@dataclass(frozen=True)
class LabelledText:
    """One example: the texts around the word, its class, and where its row stands."""

    before: str
    after: str
    label: int
    where: str


@dataclass(frozen=True)
class Labelled:
    """What was read: examples, rows in all, and the dropped ones by reason, the first of them in words; in how many of
    the others something stood that nothing was done with, by its name.
    """

    examples: tuple[LabelledText, ...]
    rows: int
    dropped: dict[str, int]
    first: tuple[str, ...]
    unused: dict[str, int]

    def lines(self) -> Iterator[str]:
        """What to tell a person."""
        counts = Counter(example.label for example in self.examples)
        by_class = ", ".join(str(counts[i]) for i in range(max(counts, default=-1) + 1))
        yield f"{len(self.examples):,} labelled rows, by class: {by_class}"
        if self.dropped:
            why = "; ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
            yield f"{sum(self.dropped.values()):,} of {self.rows:,} rows dropped: {why}. {' '.join(self.first)}"
        if self.unused:
            yield f"not used: {counted(self.unused)}"


def read_labelled(path: Path, prompt: LabelPrompt, *, most_bad: float = 0.1) -> Labelled:
    """The labelled rows of JSON Lines, JSON, CSV or Parquet.

    UsageError where more than the share `most_bad` of the rows is bad, where no row is good, or all are of one class.
    """
    examples: list[LabelledText] = []
    dropped, unused = Counter[str](), Counter[str]()
    read = {*prompt.fields, prompt.label_field}
    first: list[str] = []
    rows = 0
    for row in read_rows(path):
        rows += 1
        problem = row.problem or _problem(row.values, prompt)
        if problem:
            dropped[problem] += 1
            if len(first) < SHOWN:
                first.append(f"{row.where}: {problem}.")
            continue
        before, after = prompt.render(row.values)
        label = prompt.class_of(row.values[prompt.label_field])
        assert label is not None
        examples.append(LabelledText(before, after, label, row.where))
        unused.update(name for name, value in row.values.items() if name not in read and is_given(value))
    bad = sum(dropped.values())
    if bad > most_bad * rows or not examples:
        raise UsageError(
            f"{bad:,} of {rows:,} rows cannot be used. {' '.join(first)}", where=str(path),
            expected=f"fields {', '.join((*prompt.fields, prompt.label_field))}, {100 * most_bad:.0f} % bad at most",
            todo="correct prompt.template, prompt.labels or prompt.label_field, or the rows",
        )  # fmt: skip
    if len({example.label for example in examples}) < 2:
        raise UsageError("all rows are of one class: there is nothing to learn", where=str(path))
    return Labelled(tuple(examples), rows, dict(dropped), tuple(first), dict(unused))


def _problem(values: dict[str, Any], prompt: LabelPrompt) -> str:
    """What is wrong with a row, as a reason that others share."""
    for name in (*prompt.fields, prompt.label_field):
        if values.get(name) is None:
            return f"no field {name!r}"
    if prompt.class_of(values[prompt.label_field]) is None:
        return "label without a word"
    if not all(isinstance(values[name], (str, int, float)) for name in prompt.fields):
        return "a field is no text"
    return "" if any(str(values[name]).strip() for name in prompt.fields) else "empty text"


def _filled(text: str, values: dict[str, Any]) -> str:
    """Fields replaced by the row's values; nothing in a row is ever read as a field."""
    return _FIELD.sub(lambda match: str(values[match.group(1)]), text)
