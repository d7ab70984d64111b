"""Labelled rows as tokens, and batches of them: a prompt, and the word of each class where it would stand.

A causal model scores each word as what ends the text; an encoder scores it at its mask (``label_prompts.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mickle.data.example_batches import Batch, padded
from mickle.data.label_prompts import LabelledText, LabelPrompt
from mickle.data.tokenizer import TextTokenizer
from mickle.errors import UsageError

Encodings = tuple[list[tuple[int, ...]], list[tuple[tuple[int, ...], ...]]]  # of prompts; of each one's words


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
    tokens, words = (_encode_causal if causal else _encode_masked)(examples, prompt, tokenizer, longest)
    labels = tuple(example.label for example in examples)
    found = EncodedLabels(tuple(tokens), tuple(words), labels, None if causal else tokenizer.mask)
    for example, row in zip(examples, found.words):
        if len(set(row)) < len(row) or not all(row):
            what = "two classes have words of the same tokens, or a word has none"
            raise UsageError(what, where=example.where, todo="choose other words")
    return found


class LabelBatches:
    """Batch `step` of labelled examples: a function of (seed, step); every example once an epoch.

    With single words: `input_ids`, `documents`, `answers` (bool) [B, T] and `candidates` [B, C]; else, for each class
    a row, `input_ids`, `documents` and `scored` (the word's tokens where they are predicted, else -100) [B, C, T].
    `labels` [B].
    """

    def __init__(self, encoded: EncodedLabels, rows: int, seed: int) -> None:
        self.encoded, self.rows, self.seed = encoded, rows, seed

    def __call__(self, step: int) -> Batch:
        count = len(self.encoded.tokens)
        places = range(step * self.rows, (step + 1) * self.rows)
        return batch_of(self.encoded, [int(self._epoch(place // count)[place % count]) for place in places])

    def _epoch(self, number: int) -> np.ndarray:
        return np.random.default_rng([self.seed, number]).permutation(len(self.encoded.tokens))


def batch_of(encoded: EncodedLabels, chosen: Sequence[int]) -> Batch:
    """The batch of some examples, as :class:`LabelBatches` says."""
    labels = torch.tensor([encoded.labels[i] for i in chosen])
    if encoded.single:
        rows = [encoded.tokens[i] for i in chosen]
        found = padded(rows)
        found["answers"] = torch.zeros(found["input_ids"].shape, dtype=torch.bool)
        for row, tokens in enumerate(rows):
            found["answers"][row, len(tokens) - 1 if encoded.mask is None else tokens.index(encoded.mask)] = True
        found["candidates"] = torch.tensor([[word[0] for word in encoded.words[i]] for i in chosen])
        return found | {"labels": labels}
    pairs = [(encoded.tokens[i], word) for i in chosen for word in encoded.words[i]]
    found = padded([prompt + word[:-1] for prompt, word in pairs])
    found["scored"] = torch.full(found["input_ids"].shape, -100)
    for row, (prompt, word) in enumerate(pairs):
        found["scored"][row, len(prompt) - 1 : len(prompt) - 1 + len(word)] = torch.tensor(word)
    return {name: values.unflatten(0, (len(chosen), -1)) for name, values in found.items()} | {"labels": labels}


def _encode_causal(
    examples: Sequence[LabelledText], prompt: LabelPrompt, tokenizer: TextTokenizer, longest: int
) -> Encodings:
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
) -> Encodings:
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
        what = f"within {longest} tokens the words leave no room for the text"
        raise UsageError(what, where=example.where, todo="raise sequence_length")


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts begin with in common; the other keeps at least one of its own."""
    most = min(len(one), len(other) - 1)
    return next((i for i in range(most) if one[i] != other[i]), most)
