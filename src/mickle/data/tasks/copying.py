"""Copying and reversing: the tasks in which nothing is to be computed, only the place to be found.

rsc repeats one symbol, rdc replaces one symbol by another, cmc copies random symbols, mc reverses them;
``2x`` asks for the answer twice (of rsc for twice as many), mcrv for the reversal and then the copy. Formats: arXiv
2305.19466, appendix on tasks.
"""

import random
import string
from collections.abc import Callable, Sequence
from functools import partial

from mickle.data.tasks.problem import Problem

SYMBOLS: tuple[str, ...] = tuple(string.digits + string.ascii_letters + string.punctuation + "§±µ¿éñ")
WORDS = "Copy: Reverse: Replace with in [SEP] [NEXT]"
# What is to be written of the symbols shown, one answer after the other.
ANSWERS: dict[str, Callable[[list[str]], list[list[str]]]] = {
    "rsc": lambda shown: [shown],
    "rsc2x": lambda shown: [shown * 2],
    "cmc": lambda shown: [shown],
    "cmc2x": lambda shown: [shown, shown],
    "mc": lambda shown: [shown[::-1]],
    "mc2x": lambda shown: [shown[::-1]] * 2,
    "mcrv": lambda shown: [shown[::-1], shown],
}


def copying(rng: random.Random, length: int, symbols: Sequence[str] = SYMBOLS, *, category: str) -> Problem:
    """``length`` symbols, of rsc all the same, to be written as the category says."""
    one = category.startswith("rsc")
    shown = [rng.choice(symbols)] * length if one else rng.choices(symbols, k=length)
    asked = "Reverse" if category.startswith("mc") else "Copy"
    answer = " [NEXT] ".join(map(" ".join, ANSWERS[category](shown)))
    return Problem(f"{asked}: {' '.join(shown)} [SEP]", answer, answer, category)


def replacing(rng: random.Random, length: int, symbols: Sequence[str] = SYMBOLS) -> Problem:
    """A run of one symbol, to be written with another in its place."""
    old, new = rng.sample(symbols, 2)
    answer = " ".join([new] * length)
    return Problem(f"Replace {old} with {new} in {' '.join([old] * length)} [SEP]", answer, answer, "rdc")


NAMES = ("rsc", "rsc2x", "rdc", "cmc", "cmc2x", "mc", "mc2x", "mcrv")
TASKS = {name: replacing if name == "rdc" else partial(copying, category=name) for name in NAMES}
