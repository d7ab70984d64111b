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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from mickle.config import Config
from mickle.data.conversation_columns import counted, is_given
from mickle.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from mickle.data.tokenizer import TextTokenizer

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
    from mickle.data.rows import read_rows

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


@dataclass(frozen=True)
class EncodedLabels:
    """Examples as tokens, for one kind of model.

    `tokens[i]` are the tokens of example i up to the word (causal) or with the mask (encoder). `words[i][c]` are the
    tokens of class c's word as they stand there: one token each where `single` is true.
    """

    tokens: tuple[tuple[int, ...], ...]
    words: tuple[tuple[tuple[int, ...], ...], ...]
    labels: tuple[int, ...]
    mask: int | None

    @property
    def single(self) -> bool:
        """Whether every word is one token, so that one pass of a prompt scores all of its classes."""
        return all(len(word) == 1 for words in self.words for word in words)

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.words[0])


def encode_labelled(
    examples: Sequence[LabelledText],
    prompt: LabelPrompt,
    tokenizer: TextTokenizer,
    *,
    longest: int,
    causal: bool = True,
) -> EncodedLabels:
    """Tokens of at most `longest` an example; the beginning of a text that is too long is left out.

    UsageError where a template does not fit the kind of model, two words have the same tokens, or a word has none.
    """
    encode = _encode_causal if causal else _encode_masked
    tokens, words = encode(examples, prompt, tokenizer, longest)
    found = EncodedLabels(
        tuple(tokens), tuple(words), tuple(e.label for e in examples), None if causal else tokenizer.mask
    )
    for example, row in zip(examples, found.words):
        if len(set(row)) < len(row) or not all(row):
            raise UsageError(
                "two classes have words of the same tokens, or a word has none",
                where=example.where,
                todo="choose other words",
            )
    return found


class LabelBatches:
    """Batch `step` of labelled examples: a function of (seed, step); every example once an epoch.

    With single words: `input_ids`, `documents`, `answers` (bool) [B, T] and `candidates` [B, C]; else, for each class
    a row, `input_ids`, `documents` and `scored` (the word's tokens where they are predicted, else -100) [B, C, T].
    `labels` [B].
    """

    def __init__(self, encoded: EncodedLabels, rows: int, seed: int) -> None:
        self.encoded, self.rows, self.seed = encoded, rows, seed

    def __call__(self, step: int) -> dict[str, Any]:
        count = len(self.encoded.tokens)
        places = range(step * self.rows, (step + 1) * self.rows)
        return batch_of(self.encoded, [int(self._epoch(place // count)[place % count]) for place in places])

    def _epoch(self, number: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        import numpy as np

        return np.random.default_rng([self.seed, number]).permutation(len(self.encoded.tokens))


def batch_of(encoded: EncodedLabels, chosen: Sequence[int]) -> dict[str, Any]:
    """The batch of some examples, as :class:`LabelBatches` says."""
    import torch

    labels = torch.tensor([encoded.labels[i] for i in chosen])
    if encoded.single:
        rows = [encoded.tokens[i] for i in chosen]
        ids, documents = _padded(rows)
        answers = torch.zeros(ids.shape, dtype=torch.bool)
        for row, tokens in enumerate(rows):
            answers[row, len(tokens) - 1 if encoded.mask is None else tokens.index(encoded.mask)] = True
        candidates = torch.tensor([[word[0] for word in encoded.words[i]] for i in chosen])
        return {
            "input_ids": ids,
            "documents": documents,
            "answers": answers,
            "candidates": candidates,
            "labels": labels,
        }
    pairs = [(encoded.tokens[i], word) for i in chosen for word in encoded.words[i]]
    ids, documents = _padded([prompt + word[:-1] for prompt, word in pairs])
    scored = torch.full(ids.shape, -100)
    for row, (prompt, word) in enumerate(pairs):
        scored[row, len(prompt) - 1 : len(prompt) - 1 + len(word)] = torch.tensor(word)
    shape = (len(chosen), encoded.classes, ids.shape[1])
    return {
        "input_ids": ids.view(shape),
        "documents": documents.view(shape),
        "scored": scored.view(shape),
        "labels": labels,
    }


def _encode_causal(
    examples: Sequence[LabelledText], prompt: LabelPrompt, tokenizer: TextTokenizer, longest: int
) -> tuple[list[tuple[int, ...]], list[tuple[tuple[int, ...], ...]]]:
    """The word's tokens are what follows the tokens that the text alone and the text with the word have in common."""
    if prompt.template.split("{label}")[1]:
        raise UsageError(
            "text follows {label}, which this model reads only afterwards", where="prompt.template",
            todo="put {label} at the end, or tune an encoder",
        )  # fmt: skip
    alone = [list(map(int, ids)) for ids in tokenizer.encode([e.before.rstrip() for e in examples])]
    texts = [e.before + word for e in examples for word in prompt.words]
    whole = [list(map(int, ids)) for ids in tokenizer.encode(texts)]
    tokens, words = [], []
    for place, before in enumerate(alone):
        full = whole[place * len(prompt.words) : (place + 1) * len(prompt.words)]
        shared = min(_shared(before, ids) for ids in full)
        found = tuple(tuple(ids[shared:]) for ids in full)
        room = longest - 1 - max(map(len, found))
        _refuse_no_room(room, examples[place], longest)
        tokens.append((tokenizer.start, *before[max(0, shared - room) : shared]))
        words.append(found)
    return tokens, words


def _encode_masked(
    examples: Sequence[LabelledText], prompt: LabelPrompt, tokenizer: TextTokenizer, longest: int
) -> tuple[list[tuple[int, ...]], list[tuple[tuple[int, ...], ...]]]:
    """The word is one token at the mask, with the space before it where the template has one."""
    if tokenizer.mask is None:
        raise UsageError("the tokenizer has no mask token", where="prompt", todo="use the encoder's own tokenizer")
    spaced = prompt.template.split("{label}")[0].endswith(" ")
    found = []
    for word in prompt.words:
        ways = tokenizer.encode([f" {word}" if spaced else word, word])
        ids = next((ids for ids in ways if len(ids) == 1), None)
        if ids is None:
            raise UsageError(
                f"the word {word[:60]!r} is {len(ways[0])} tokens of this encoder, and a mask holds one",
                where="prompt.labels",
                todo="choose a shorter, commoner word",
            )
        found.append((int(ids[0]),))
    before = tokenizer.encode([e.before.rstrip() if spaced else e.before for e in examples])
    after = tokenizer.encode([e.after for e in examples])
    tokens = []
    for example, left, right in zip(examples, before, after, strict=True):
        room = longest - 3 - len(right)
        _refuse_no_room(room, example, longest)
        kept = [int(t) for t in left[max(0, len(left) - room) :]]
        tokens.append((tokenizer.start, *kept, tokenizer.mask, *map(int, right), tokenizer.end))
    return tokens, [tuple(found)] * len(tokens)


def _refuse_no_room(room: int, example: LabelledText, longest: int) -> None:
    if room < 1:
        raise UsageError(
            f"within {longest} tokens the words leave no room for the text",
            where=example.where,
            todo="raise sequence_length",
        )


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with in common; the other keeps at least one of its own."""
    most = min(len(one), len(other) - 1)
    return next((i for i in range(most) if one[i] != other[i]), most)


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
    """`input_ids` and `documents` [B, T]; padding on the right is token 0 of document -1."""
    import torch

    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    documents = torch.full((len(rows), longest), -1)
    for row, tokens in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        documents[row, : len(tokens)] = 0
    return ids, documents


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
