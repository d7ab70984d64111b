"""What a tuning learns from: a task gives batches, an objective, scores of held-out examples, samples and a preview.

A task is one class (``tune_data.py``: conversations and texts; ``tune_labels.py``: labelled rows). How its data falls
into two sides is the same for all of them and stands here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from mickle.data.arrow import split_names, split_of
from mickle.data.heldout import content_hash
from mickle.data.overlap import Overlap, overlap
from mickle.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from mickle.data.chat_template import ChatTemplate
    from mickle.data.conversation_forms import Example
    from mickle.data.example_batches import Encoded
    from mickle.data.label_batches import EncodedLabels
    from mickle.training.objectives import Batch, Objective
    from mickle.training.run import Asked
    from mickle.tuning.data_files import DataFile
    from mickle.tuning.tune_plan import Batching, TunePlan

    Lesson = tuple[Objective, Callable[[int], Batch]]  # what is trained, and on which batches

HELDOUT_SHARE, MOST_HELDOUT = 0.1, 500  # of the examples, unless told otherwise
HELDOUT_SPLITS = ("validation", "test")  # of a saved set: the first that is there, since it may choose the weights

E = TypeVar("E")
Names = Mapping[str, str]


@dataclass(frozen=True)
class Sources:
    """Where examples come from. heldout: of other files; else a share of ``data``, None for the usual one.

    most_bad: share of bad rows above which a file is refused. columns: names of columns -> ours, of files that have
    none of their own.
    """

    data: Sequence[DataFile]
    heldout: Path | None = None
    heldout_share: float | None = None
    most_bad: float = 0.1
    columns: Names = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The files, for a person."""
        return ", ".join(str(file.path) for file in self.data)

    def heldout_of(self, file: DataFile) -> Path | None:
        """Where the held-out examples beside a file's are, if some are named: in other files, or a split of its own."""
        if self.heldout is not None:
            return split_of(self.heldout, HELDOUT_SPLITS)
        names = split_names(file.path) if self.heldout_share is None else []
        return next((file.path / name for name in HELDOUT_SPLITS if name in names), None)


@dataclass(frozen=True)
class Share:
    """What an epoch reads of a file: its training ``examples`` with their weight are ``read``."""

    file: str
    examples: int
    weight: float
    read: int

    def line(self) -> str:
        """The same for a person."""
        return (
            f"{self.file}: an epoch reads {self.read:,}, each of {self.examples:,} training examples {self.weight:g} x"
        )


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Examples ready to be learnt from and measured on; ``lines`` say for a person what was found.

    overlap: how many held-out examples are among the training ones, ``exact`` and ``near``. template: the chat template
    that conversations were written with. shares: what an epoch reads of each file. heldout_examples: as they stand in
    their file, for other measures; none of labelled rows.
    """

    form: str
    lines: tuple[str, ...]
    overlap: dict[str, Any]
    training: Encoded | EncodedLabels
    heldout: Encoded | EncodedLabels
    template: ChatTemplate | None = None
    shares: tuple[Share, ...] = ()
    heldout_examples: tuple[Example, ...] = ()

    unit = "token"  # what a loss is the mean over
    leaps = False  # whether it is learnt in leaps, so that a loss that jumps is no fault

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training example."""
        return [len(tokens) for tokens in self.training.tokens]

    @property
    def heldout_lengths(self) -> list[int]:
        """Tokens of each held-out example."""
        return [len(tokens) for tokens in self.heldout.tokens]

    @property
    def ends(self) -> list[int]:
        """The tokens that are taught as the end of a text or answer."""
        return []

    @abstractmethod
    def batching(self, asked: Asked, most: int) -> Batching:
        """How examples become batches; ``most``: tokens that one example may have."""

    @abstractmethod
    def objective_and_batches(self, plan: TunePlan, seed: int, counts_answers: bool) -> Lesson:
        """What is trained, or the share of wrong answers where the method wants that; and on which batches."""

    @abstractmethod
    def scores(self, model: nn.Module, length: int, most: int = 0) -> np.ndarray:
        """(nats, terms counted, of which the best guess was right) of each held-out example, [n, 3].

        Of the first ones of about ``most`` tokens in all, 0 for every one; in rows of ``length`` tokens at most.
        """

    @abstractmethod
    def samples(self, model: nn.Module, count: int, ends: Sequence[int], limit: int) -> list[dict[str, str]]:
        """What the model makes of the first ``count`` held-out examples: prompt, reference and text of each.

        ends: tokens that end a text. limit: tokens that the model was made for.
        """

    def spelt(self) -> tuple[bytes, bytes]:
        """What a compressor may read first (all that is learnt from, and what is asked of the held-out examples), and
        what it then packs: the held-out answers, in UTF-8. Empty where answers are no running text.
        """
        return b"", b""

    @abstractmethod
    def preview(self) -> str:
        """The first training examples as Rich markup, what is trained on a coloured ground."""

    def first(self, most: int) -> int:
        """How many held-out examples, from the first on, make up about ``most`` tokens; all of them for 0."""
        lengths = self.heldout_lengths
        if not most:
            return len(lengths)
        return max(1, int(np.searchsorted(np.cumsum(lengths), most)) + 1)


@dataclass(frozen=True)
class Sides(Generic[E]):
    """Training and held-out examples, and what was found on the way there."""

    training: list[E]
    heldout: list[E]
    lines: list[str]
    shared: Overlap
    shares: tuple[Share, ...]

    @property
    def overlap(self) -> dict[str, Any]:
        """How many held-out examples are among the training ones."""
        return {"exact": self.shared.exact, "near": self.shared.near}


def two_sides(
    sources: Sources, read: Callable[[Path, Names], tuple[Sequence[E], Iterable[str]]], said: Callable[[E], str]
) -> Sides[E]:
    """Both sides of a task's examples. ``read``: the examples of a file, given what its columns are, in its order, and
    what was found there, for a person. ``said``: an example's text.

    Of the files beside which no held-out examples are named, a share of the examples is held out, of all together.
    """
    several, lines = len(sources.data) > 1, list[str]()

    def told(path: Path, columns: Names, mark: str) -> Sequence[E]:
        examples, found = read(path, columns or sources.columns)
        lines.extend(f"{mark}{line}" for line in found)
        return examples

    parts = [told(file.path, file.columns, f"{file.path.name}: " if several else "") for file in sources.data]
    named = [sources.heldout_of(file) for file in sources.data]
    asked = {path: {} if sources.heldout else file.columns for path, file in zip(named, sources.data) if path}
    heldout = [example for path, columns in asked.items() for example in told(path, columns, "held out: ")]
    if None in named:
        pool = [example for part, path in zip(parts, named, strict=True) if path is None for example in part]
        left, chosen = split(pool, sources.heldout_share, sources.where, said)
        copies = len(pool) - len(left) - len(chosen)
        merged = f"; copies merged into them: {copies:,}" if copies else ""
        lines.append(f"held out: {len(chosen):,} of {len(pool):,} examples, by their texts{merged}")
        heldout, hidden = heldout + chosen, {content_hash(said(example)) for example in chosen}
        parts = [
            part if path else [example for example in part if content_hash(said(example)) not in hidden]
            for part, path in zip(parts, named, strict=True)
        ]
    again = [repeated(part, file.weight, said) for part, file in zip(parts, sources.data, strict=True)]
    shares = tuple(
        Share(str(file.path), len(part), file.weight, len(some))
        for file, part, some in zip(sources.data, parts, again, strict=True)
    )
    lines += [share.line() for share in shares] if several or sources.data[0].weight != 1 else []
    texts = [said(example) for part in parts for example in part]
    return Sides([*chain(*again)], heldout, lines, overlap(texts, list(map(said, heldout))), shares)


def repeated(examples: Sequence[E], weight: float, said: Callable[[E], str]) -> list[E]:
    """Each example as often as ``weight`` says; of a fraction those with the lowest hashes once more."""
    whole = int(weight)
    more = round((weight - whole) * len(examples)) or int(whole == 0)
    places = sorted(range(len(examples)), key=lambda place: content_hash(said(examples[place])))[:more]
    return [*examples] * whole + [examples[place] for place in sorted(places)]


def split(examples: Sequence[E], share: float | None, where: str, said: Callable[[E], str]) -> tuple[list[E], list[E]]:
    """Training and held-out examples; the same text is never on both sides, and whether it is held out depends on the
    hashes of all texts alone, whatever their order. ``said``: an example's text.

    UsageError where one side would be empty although a share is held out.
    """
    if share == 0:
        return list(examples), []
    keys = [content_hash(said(example)) for example in examples]
    distinct = sorted(set(keys))
    if len(distinct) < 2:
        raise UsageError(
            "All examples say the same: none can be held out." if distinct else "There is no example here.",
            where=where,
            expected="two different examples at the least",
            todo="give more, name others with --heldout, or set --heldout-share 0",
        )
    most = MOST_HELDOUT if share is None else len(distinct) - 1
    count = min(most, len(distinct) - 1, max(1, round((HELDOUT_SHARE if share is None else share) * len(distinct))))
    chosen = set(distinct[:count])
    training = [example for example, key in zip(examples, keys, strict=True) if key not in chosen]
    heldout = {key: example for example, key in zip(examples, keys, strict=True) if key in chosen}
    return training, list(heldout.values())
