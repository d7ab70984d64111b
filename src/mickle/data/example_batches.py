"""Batches of whole examples packed into rows, without one seeing another.

A row holds whole examples, kept apart by their numbers in ``documents``; no example is cut by the packing and no
label lies across two. Each epoch shuffles the examples, takes them some at a time, the longest first, into the
first row with room (first-fit decreasing), and shuffles the rows. Batch i is a function of (seed, i).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mickle.data.packing import NOT_TRAINED
from mickle.errors import UsageError

WINDOW = 1024  # examples that are sorted by length and packed together

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Encoded:
    """``tokens`` int64 [n] and ``trained`` bool [n] of each example kept; how many were ``cut`` and why others were
    ``dropped``; ``notes``: what a person should know of the template, with how many examples it concerns.
    """

    tokens: list[np.ndarray]
    trained: list[np.ndarray]
    cut: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """Counts of tokens, and everything that was cut, dropped or is odd, for a person."""
        total, trained = sum(map(len, self.tokens)), sum(int(mask.sum()) for mask in self.trained)
        said = [f"{len(self.tokens):,} examples, {total:,} tokens, {trained:,} of them trained"]
        said += [f"{self.cut:,} examples are longer than the limit and were cut"] if self.cut else []
        said += [f"dropped {count:,}: {reason}" for reason, count in self.dropped.items()]
        return said + [f"{note} (in {count:,} examples)" for note, count in self.notes.items()]


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
        self._ends: list[int] = []  # rows of all epochs up to and including each
        self._packed: tuple[int, list[list[int]]] = (-1, [])  # the epoch looked at last

    def __call__(self, index: int) -> Batch:
        """input_ids, labels (the token after each; -100 where not trained), documents (-1 is padding), each [B, T]."""
        first = index * self.rows
        return rows_of(self.encoded, [self._row(place) for place in range(first, first + self.rows)])

    def _row(self, place: int) -> list[int]:
        """The examples of row ``place``, counted through all epochs."""
        while not self._ends or place >= self._ends[-1]:
            self._end(len(self._ends))
        epoch = bisect_right(self._ends, place)
        return self._epoch(epoch)[place - (self._ends[epoch - 1] if epoch else 0)]

    def _end(self, epoch: int) -> int:
        while len(self._ends) <= epoch:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + len(self._epoch(len(self._ends))))
        return self._ends[epoch]

    def _epoch(self, epoch: int) -> list[list[int]]:
        if self._packed[0] != epoch:
            self._packed = (epoch, packed(self.lengths, self.length, np.random.default_rng([self.seed, epoch])))
        return self._packed[1]

    @property
    def steps_an_epoch(self) -> float:
        """Batches in which the first epoch is read."""
        return self._end(0) / self.rows

    def steps(self, epochs: int) -> int:
        """Batches after which every example has been read at least ``epochs`` times."""
        return -(-self._end(epochs - 1) // self.rows)


def packed(lengths: np.ndarray, length: int, generator: np.random.Generator) -> list[list[int]]:
    """Examples of ``lengths`` in rows of at most ``length`` tokens: all of them once, in random order."""
    order = generator.permutation(len(lengths))
    rows: list[list[int]] = []
    for first in range(0, len(order), WINDOW):
        some = order[first : first + WINDOW]
        some = some[np.argsort(-lengths[some], kind="stable")]
        room = np.full(len(some), length)  # of a row for each, if need be
        filled: list[list[int]] = []
        for example in some:
            row = int(np.argmax(room >= lengths[example]))
            if row == len(filled):
                filled.append([])
            filled[row].append(int(example))
            room[row] -= lengths[example]
        rows += filled
    return [rows[place] for place in generator.permutation(len(rows))]


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
