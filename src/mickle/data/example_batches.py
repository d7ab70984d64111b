"""Batches of whole examples packed into rows, without one seeing another.

A row holds whole examples, kept apart by their numbers in ``documents``; no example is cut by the packing and no
label lies across two. Each epoch shuffles the examples, takes them, the longest first, into the first row with room
(first-fit decreasing), and shuffles the rows. How many rows that makes follows from the lengths alone, so every epoch
has as many, and batch i is a function of (seed, i).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mickle.data.packing import NOT_TRAINED
from mickle.errors import UsageError

SHOWN = 3  # dropped examples that are named

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Encoded:
    """``tokens`` int64 [n] and ``trained`` bool [n] of each example kept, and its ``place`` among all; how many were
    ``cut`` and why others were ``dropped``, the ``first`` of them with their places; ``notes``: what a person should
    know of the template, with how many examples it concerns.
    """

    tokens: list[np.ndarray]
    trained: list[np.ndarray]
    cut: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)
    place: list[int] = field(default_factory=list)

    def lines(self, *others: Encoded) -> list[str]:
        """Counts of tokens, and everything that was cut, dropped or is odd, for a person; in ``others`` as well."""
        total, trained = sum(map(len, self.tokens)), sum(int(mask.sum()) for mask in self.trained)
        said = [f"{len(self.tokens):,} examples, {total:,} tokens, {trained:,} of them trained"]
        every = (self, *others)
        if cut := sum(one.cut for one in every):
            said.append(f"{cut:,} examples are longer than the limit and were cut")
        dropped, notes = (sum((getattr(one, name) for one in every), Counter[str]()) for name in ("dropped", "notes"))
        said += [f"dropped {count:,}: {reason}" for reason, count in dropped.items()]
        said += [f"  {place}" for one in every for place in one.first][:SHOWN]
        return said + [f"{note} (in {count:,} examples)" for note, count in notes.items()]


class ExampleBatches:
    """Batches of ``rows`` rows of at most ``length`` tokens; calling it with i gives batch i, a function of (seed, i).

    Every example is read once an epoch; a batch may hold the end of one epoch and the beginning of the next. Raises
    UsageError for examples longer than a row, and where there are none.
    """

    def __init__(self, encoded: Encoded, length: int, rows: int, seed: int = 0) -> None:
        self.encoded, self.length, self.rows, self.seed = encoded, length, rows, seed
        self.lengths = np.array([len(tokens) for tokens in encoded.tokens], dtype=np.int64)
        if not len(self.lengths):
            raise UsageError("there are no examples to train on", todo="check what was dropped, and why")
        if self.lengths.max() > length:
            raise UsageError(
                f"an example has {self.lengths.max():,} tokens, a row holds {length:,}", where="sequence_length"
            )
        self._packed: tuple[int, list[list[int]]] = (-1, [])  # the epoch looked at last
        self.epoch_rows = len(self._epoch(0))

    def __call__(self, index: int) -> Batch:
        """input_ids, labels (the token after each; -100 where not trained), documents (-1 is padding), each [B, T]."""
        places = range(index * self.rows, (index + 1) * self.rows)  # counted through all epochs
        count = self.epoch_rows
        return rows_of(self.encoded, [self._epoch(place // count)[place % count] for place in places])

    def _epoch(self, epoch: int) -> list[list[int]]:
        if self._packed[0] != epoch:
            self._packed = (epoch, packed(self.lengths, self.length, np.random.default_rng([self.seed, epoch])))
        return self._packed[1]

    @property
    def steps_an_epoch(self) -> float:
        """Batches in which every example is read once."""
        return self.epoch_rows / self.rows


def packed(lengths: np.ndarray, length: int, generator: np.random.Generator) -> list[list[int]]:
    """Examples of ``lengths`` in rows of at most ``length`` tokens: all of them once, in random order."""
    order = generator.permutation(len(lengths))
    order = order[np.argsort(-lengths[order], kind="stable")]
    rows: list[list[int]] = []
    for example, row in zip(order.tolist(), first_fit(lengths[order].tolist(), length), strict=True):
        rows += [[]] if row == len(rows) else []
        rows[row].append(example)
    return [rows[place] for place in generator.permutation(len(rows))]


def first_fit(lengths: Sequence[int], length: int) -> Iterator[int]:
    """Of each length in turn, the first row of ``length`` with room for it; every row is opened when it is needed.

    A tree holds the most room below each node, so that the row is found in as many steps as the tree is deep.
    """
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    most = [length] * (2 * leaves)
    for needed in lengths:
        node = 1
        while node < leaves:
            node = 2 * node if most[2 * node] >= needed else 2 * node + 1
        yield node - leaves
        most[node] -= needed
        while node > 1:
            node //= 2
            most[node] = max(most[2 * node], most[2 * node + 1])


def padded(rows: Sequence[Sequence[int] | np.ndarray], filler: int = 0) -> Batch:
    """A document a row: ``input_ids`` and ``documents`` [B, T]; what pads them on the right is document -1."""
    ids = [torch.as_tensor(tokens, dtype=torch.int64) for tokens in rows]
    documents = pad_sequence([torch.zeros_like(tokens) for tokens in ids], batch_first=True, padding_value=-1)
    return {"input_ids": pad_sequence(ids, batch_first=True, padding_value=filler), "documents": documents}


def rows_of(encoded: Encoded, rows: Sequence[Sequence[int]]) -> Batch:
    """Examples side by side in each row, padded to the longest: input_ids, labels, documents, each [B, T]."""
    width = max(sum(len(encoded.tokens[example]) for example in row) for row in rows)
    inputs = np.zeros((len(rows), width), dtype=np.int64)
    labels = np.full_like(inputs, NOT_TRAINED)
    documents = np.full_like(inputs, -1)
    for row, examples in enumerate(rows):
        at = 0
        for number, example in enumerate(examples):
            tokens, trained = encoded.tokens[example], encoded.trained[example]
            end = at + len(tokens)
            inputs[row, at:end] = tokens
            labels[row, at : end - 1] = np.where(trained, tokens, NOT_TRAINED)[1:]
            documents[row, at:end] = number
            at = end
    arrays = {"input_ids": inputs, "labels": labels, "documents": documents}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
