"""Two texts for masked encoders: documentation of installed packages, and an invented language (``agreement``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from torch import Tensor, nn

from mickle.data.installed import SITE, STDLIB, all_docstrings, package_files, parsed
from mickle.data.masking import Masking, fixed_masks, vocabulary_of
from mickle.data.packing import TokenStream, stream_of
from mickle.data.tokenizer import TextTokenizer, train_tokenizer
from mickle.errors import UsageError
from mickle.evaluation.pairs import Pair, accuracies, score_pairs
from mickle.studies import agreement
from mickle.studies.own import own_texts

SKIPPED = SITE | {"test", "tests", "testing", "idlelib"}
SHORTEST = 80  # characters of a docstring
HELD_OUT_OF = 10  # one file in so many
ROWS = 64  # of a batch that is only measured


@dataclass(frozen=True, eq=False)
class World:
    """A tokenizer with its training text and its held-out text."""

    tokenizer: TextTokenizer
    training: TokenStream
    held_out: TokenStream


@cache
def grammar(sentences: int) -> World:
    """So many sentences to train on, and a tenth of that held out."""
    texts = agreement.sentences(sentences + sentences // 10)
    return world_of(agreement.tokenizer(), texts[:sentences], texts[sentences:])


@cache
def documentation(vocabulary: int, packages: tuple[str, ...]) -> World:
    """Docstrings of the standard library and of installed packages; every tenth file is held out. The tokenizer learns
    from training files.
    """
    training: list[str] = []
    held_out: list[str] = []
    files = (texts for package in (STDLIB, *packages) for texts in docstrings(package))
    for number, texts in enumerate(files):
        (training if number % HELD_OUT_OF else held_out).extend(texts)
    return world_of(train_tokenizer(training, vocabulary, mask=True), training, held_out)


@cache
def own_world(vocabulary: int, data: str, length: int) -> World:
    """A person's own texts, in a tokenizer that learns from their training side; each side at least one window."""
    training, held_out = map(list, own_texts(data))
    world = world_of(train_tokenizer(training, vocabulary, or_fewer=True, mask=True), training, held_out)
    if (least := min(len(world.training), len(world.held_out))) <= length:
        raise UsageError(f"There is too little text: a side of it has {least:,} tokens", where=data)
    return world


def world_of(tokenizer: TextTokenizer, training: list[str], held_out: list[str]) -> World:
    """Both texts as streams of tokens."""
    first, second = (stream_of(tokenizer.encode_documents(texts), tokenizer) for texts in (training, held_out))
    return World(tokenizer, first, second)


def docstrings(package: str) -> Iterator[list[str]]:
    """Of every source file of a package, tests left out, its docstrings of 80 characters at least."""
    for path in package_files(package, SKIPPED):
        if tree := parsed(path):
            yield [text for text in all_docstrings(tree) if len(text) >= SHORTEST]


@cache
def fixed_batches(world: World, length: int, rows: int) -> list[dict[str, Tensor]]:
    """Windows spread evenly over the held-out text, 64 rows at a time, and masks at 15 % that never change."""
    starts = np.linspace(0, len(world.held_out) - length, rows).astype(np.int64)
    vocabulary = vocabulary_of(world.tokenizer)
    return [
        fixed_masks(world.held_out.windows(starts[first : first + ROWS], length), first, Masking(), vocabulary)
        for first in range(0, rows, ROWS)
    ]


def pair_accuracies(model: nn.Module, count: int) -> dict[str, float]:
    """Share of minimal pairs whose possible sentence is preferred: all kinds, and each."""
    pairs = [Pair(good, bad, kind, "") for good, bad, kind in agreement.minimal_pairs(count)]
    scores = score_pairs(model, agreement.tokenizer(), pairs)
    return {f"pairs_{found['kind']}": found["accuracy"] for found in accuracies(pairs, scores)}
