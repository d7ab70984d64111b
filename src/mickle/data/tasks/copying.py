"""Copying and reversing: the tasks in which nothing is to be computed, only the place to be found.

rsc repeats one symbol, rdc replaces one symbol by another, cmc copies random symbols, mc reverses them;
``2x`` asks for the answer twice, mcrv for the reversal and then the copy. Formats: arXiv 2305.19466,
appendix on tasks.
"""

import random
import string
from collections.abc import Sequence

from mickle.data.tasks.problem import Problem

SYMBOLS: tuple[str, ...] = tuple(string.digits + string.ascii_letters + string.punctuation + "§±µ¿éñ")
WORDS = "Copy: Reverse: Replace with in [SEP] [NEXT]"


def _join(*answers: list[str]) -> str:
    return " [NEXT] ".join(" ".join(answer) for answer in answers)


def repeat_symbol(rng: random.Random, length: int, symbols: Sequence[str] = SYMBOLS) -> Problem:
    """rsc: one symbol ``length`` times, to be written as often."""
    text = " ".join([rng.choice(symbols)] * length)
    return Problem(f"Copy: {text} [SEP]", text, text, "rsc")


def repeat_symbol_twice_as_often(rng: random.Random, length: int, symbols: Sequence[str] = SYMBOLS) -> Problem:
    """rsc2x: one symbol ``length`` times, to be written twice as often."""
    drawn = [rng.choice(symbols)] * length
    answer = " ".join(drawn * 2)
    return Problem(f"Copy: {' '.join(drawn)} [SEP]", answer, answer, "rsc2x")


def replace_symbol(rng: random.Random, length: int, symbols: Sequence[str] = SYMBOLS) -> Problem:
    """rdc: a run of one symbol, to be written with another in its place."""
    old, new = rng.sample(symbols, 2)
    answer = " ".join([new] * length)
    return Problem(f"Replace {old} with {new} in {' '.join([old] * length)} [SEP]", answer, answer, "rdc")


def copy_symbols(rng: random.Random, length: int, symbols: Sequence[str] = SYMBOLS) -> Problem:
    """cmc: random symbols, to be written again."""
    drawn = rng.choices(symbols, k=length)
    return Problem(f"Copy: {' '.join(drawn)} [SEP]", _join(drawn), _join(drawn), "cmc")


def copy_symbols_twice(rng: random.Random, length: int, symbols: Sequence[str] = SYMBOLS) -> Problem:
    """cmc2x: random symbols, to be written twice."""
    drawn = rng.choices(symbols, k=length)
    answer = _join(drawn, drawn)
    return Problem(f"Copy: {' '.join(drawn)} [SEP]", answer, answer, "cmc2x")


def reverse_symbols(rng: random.Random, length: int, symbols: Sequence[str] = SYMBOLS) -> Problem:
    """mc: random symbols, last first."""
    drawn = rng.choices(symbols, k=length)
    answer = _join(drawn[::-1])
    return Problem(f"Reverse: {' '.join(drawn)} [SEP]", answer, answer, "mc")


def reverse_symbols_twice(rng: random.Random, length: int, symbols: Sequence[str] = SYMBOLS) -> Problem:
    """mc2x: the reversal, written twice."""
    drawn = rng.choices(symbols, k=length)
    answer = _join(drawn[::-1], drawn[::-1])
    return Problem(f"Reverse: {' '.join(drawn)} [SEP]", answer, answer, "mc2x")


def reverse_then_copy(rng: random.Random, length: int, symbols: Sequence[str] = SYMBOLS) -> Problem:
    """mcrv: the reversal, then the symbols as they came."""
    drawn = rng.choices(symbols, k=length)
    answer = _join(drawn[::-1], drawn)
    return Problem(f"Reverse: {' '.join(drawn)} [SEP]", answer, answer, "mcrv")
