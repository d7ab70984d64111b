"""The tasks of "The Impact of Positional Encoding on Length Generalization in Transformers" (arXiv 2305.19466).

Each task has instances of every length: those of ``train`` are learned from, those of ``test`` are longer and never
seen. An instance is a pure function of (task, seed, length, index). Records are ``{source, target, category, answer}``
and the length; a file of them is JSON Lines, and any file with ``source`` and ``target`` can stand in a task's place.

Departures from the paper's generators: in addition the shorter operand's digits are drawn evenly below the longer's
(the paper steps through all pairs); our symbols beyond ASCII are six Latin letters and signs (the paper takes whatever
else its tokenizer keeps whole); PCFG trees are drawn, not taken from the published set (see ``tasks/pcfg.py``); LEGO
draws one question of a chain's second half (the paper asks them all); a step of sorting reads the whole rest and takes
its minimum out (the paper's swaps it with the front).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mickle.data.rows import LARGEST_JSON
from mickle.data.tasks import copying, numbers, orders, pcfg, scan
from mickle.data.tasks.problem import FULL, MINIMAL, Part, Problem
from mickle.errors import UsageError
from mickle.untrusted.values import good_lines

if TYPE_CHECKING:
    from mickle.data.tokenizer import TextTokenizer

NO_WORK: frozenset[Part] = frozenset()
SCRATCHPADS: dict[str, frozenset[Part]] = {
    "none": NO_WORK,
    "minimal": MINIMAL,
    "full": FULL,
    **{f"without {part}": FULL - {part} for part in sorted(FULL)},
}
PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"

# One piece is one symbol: a marker, a PCFG symbol or word, one digit, "**", "->", or any other visible
# character.
PIECE = r"\[SEP\]|\[NEXT\]|[A-Z](?:1[0-9]|20|[1-9])|[A-Za-z_]+:?|[0-9]|\*\*|->|'s|[^\s]"


@dataclass(frozen=True)
class Example:
    """One record. ``length`` is the task's own measure: symbols, digits, terms, clauses, actions or functions."""

    source: str
    target: str
    category: str
    answer: str
    length: int


@dataclass(frozen=True)
class Task:
    """A generator with its training and test lengths; ``share`` weighs lengths in training (even where None)."""

    name: str
    make: Callable[[random.Random, int], Problem]
    train: tuple[int, ...]
    test: tuple[int, ...]
    words: str
    symbols: tuple[str, ...] = ()
    share: Callable[[int], float] | None = None

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Every piece that the task's texts can hold, each once, in a fixed order."""
        return tuple(dict.fromkeys([*self.symbols, *pieces(self.words)]))


def _lengths(first: int, last: int) -> tuple[int, ...]:
    return tuple(range(first, last + 1))


NUMERIC = {
    "addition": numbers.addition,
    "summation": numbers.summation,
    "polynomial": numbers.polynomial,
    "parity": numbers.parity,
}
ORDERED = {"sort_single": orders.sort_single, "sort_multi": orders.sort_multi, "lego": orders.lego}
TASK_NAMES: tuple[str, ...] = (*copying.TASKS, *NUMERIC, *ORDERED, "scan", "pcfg")


def open_task(name: str) -> Task:
    """One task by its name. Raises UsageError for an unknown one."""
    if name in copying.TASKS:
        return Task(name, copying.TASKS[name], _lengths(2, 20), _lengths(21, 40), copying.WORDS, copying.SYMBOLS)
    if name in NUMERIC:
        return Task(name, NUMERIC[name], _lengths(1, 8), _lengths(9, 16), numbers.WORDS, tuple("0123456789xCAP"))
    if name in ORDERED:
        symbols = tuple(dict.fromkeys([*orders.ORDERED, *"abcdefghijklmnopqrstuvwxyz0123456789"]))
        return Task(name, ORDERED[name], _lengths(2, 8), _lengths(9, 16), orders.WORDS, symbols)
    if name == "pcfg":
        return Task(name, pcfg.pcfg, _lengths(1, 8), _lengths(9, 35), pcfg.WORDS, pcfg.SYMBOLS)
    if name != "scan":
        raise UsageError(f"there is no task {name!r}", expected=", ".join(TASK_NAMES))
    # SCAN is finite: training draws every command of up to 25 actions alike, so lengths by their share of commands.
    counts = {length: len(found) for length, found in scan.commands_by_length().items()}
    shorter, longer = (tuple(n for n in counts if low <= n <= high) for low, high in ((0, 25), (26, 48)))
    return Task(name, scan.scan, shorter, longer, scan.WORDS, share=counts.__getitem__)


def smaller(name: str, train: Sequence[int], test: Sequence[int], symbols: int) -> Task:
    """A task of the copy and reverse families with other lengths and the first ``symbols`` of its symbols."""
    task = open_task(name)
    if task.symbols != copying.SYMBOLS:
        raise UsageError(f"task {name} has a fixed set of symbols", expected="a copy or reverse task")
    kept = copying.SYMBOLS[:symbols]
    return replace(
        task, make=partial(cast(Any, task.make), symbols=kept), train=tuple(train), test=tuple(test), symbols=kept
    )


def example(task: Task, seed: int | str, length: int, index: int = 0, scratchpad: frozenset[Part] = NO_WORK) -> Example:
    """The ``index``-th instance of one length: a function of its arguments alone, on any machine."""
    # Seeding with text hashes it (SHA-512), so that neighbouring seeds and lengths share nothing.
    problem = task.make(random.Random(f"{task.name}/{seed}/{length}/{index}"), length)
    return Example(problem.source, problem.target_with_work(scratchpad), problem.category, problem.answer, length)


def buckets(
    task: Task, seed: int | str, lengths: Sequence[int], count: int, scratchpad: frozenset[Part] = NO_WORK
) -> Iterator[Example]:
    """``count`` instances of each length, shortest first: equal numbers, so that no length speaks louder."""
    for length in lengths:
        yield from (example(task, seed, length, index, scratchpad) for index in range(count))


def training_examples(task: Task, seed: int | str, step: int, count: int) -> list[Example]:
    """The fresh examples of one optimizer step, lengths drawn evenly (SCAN: by share of commands)."""
    rng = random.Random(f"{task.name}/{seed}/lengths/{step}")
    weights = [task.share(length) for length in task.train] if task.share else None
    drawn = rng.choices(task.train, weights, k=count)
    return [example(task, f"{seed}/{step}", length, i) for i, length in enumerate(drawn)]


def read_examples(path: Path, count: Callable[[str], int] | None = None) -> list[Example]:
    """Read JSON Lines with ``source`` and ``target``, and ``length``, or else the source's length as
    ``count`` gives it.

    Raises UsageError naming the line that is wrong, and for a file without records.
    """
    lines = good_lines(path, "file of examples", LARGEST_JSON, "source and target")
    found = [_record(value, f"{path}:{number}", count) for number, value in lines]
    if not found:
        raise UsageError("the file holds no records", where=str(path), expected="JSON Lines with source and target")
    return found


def _record(value: Any, where: str, count: Callable[[str], int] | None) -> Example:
    texts = ("source", "target")
    if not isinstance(value, dict) or not all(isinstance(value.get(name), str) for name in texts):
        raise UsageError("the record lacks a source or a target", where=where, expected="two fields of text")
    length = value.get("length")
    if length is None and count is not None:
        length = count(value["source"])
    if not isinstance(length, int) or isinstance(length, bool) or length < 0:
        raise UsageError(f"the record's length is {length!r}", where=where, expected="a whole number, 0 or more")
    answer = str(value.get("answer", value["target"]))
    return Example(value["source"], value["target"], str(value.get("category", "")), answer, length)


def pieces(text: str) -> list[str]:
    """A text cut into symbols, as the symbol tokenizer cuts it."""
    return re.findall(PIECE, text)


def symbol_tokenizer(*chosen: Task) -> TextTokenizer:
    """A tokenizer with one token for each symbol of the tasks given; it saves as a Hugging Face tokenizer.

    Ids: pad 0, BOS 1, EOS 2, unknown 3, then the symbols in the tasks' own order.
    """
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

    from mickle.data.tokenizer import TextTokenizer, configuration_of

    symbols = dict.fromkeys(symbol for task in chosen for symbol in task.vocabulary)
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, EOS, UNKNOWN, *symbols])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.Split(Regex(PIECE), "isolated")]
    )
    tokenizer.add_special_tokens([PAD, BOS, EOS, UNKNOWN])
    tokenizer.encode_special_tokens = True  # a text cannot forge a mark by spelling it
    start = vocabulary[BOS]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, start)])
    configuration = configuration_of(BOS, EOS, pad_token=PAD, unk_token=UNKNOWN)
    return TextTokenizer(tokenizer, start, vocabulary[EOS], configuration)
