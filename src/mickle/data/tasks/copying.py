"""Copying and reversing: the tasks in which nothing is to be computed, only the place to be found.

rsc repeats one symbol, rdc replaces one symbol by another, cmc copies random symbols, mc reverses them;
``2x`` asks for the answer twice, mcrv for the reversal and then the copy. Formats: arXiv 2305.19466,
appendix on tasks.
"""

import random
import string

from mickle.data.tasks.problem import Problem

SYMBOLS: tuple[str, ...] = tuple(string.digits + string.ascii_letters + string.punctuation + "§±µ¿éñ")
WORDS = "Copy: Reverse: Replace with in [SEP] [NEXT]"


def _join(*answers: list[str]) -> str:
    return " [NEXT] ".join(" ".join(answer) for answer in answers)


def repeat_symbol(rng: random.Random, length: int) -> Problem:
    """rsc: one symbol ``length`` times, to be written as often."""
    text = " ".join([rng.choice(SYMBOLS)] * length)
    return Problem(f"Copy: {text} [SEP]", text, text, "rsc")


def repeat_symbol_twice_as_often(rng: random.Random, length: int) -> Problem:
    """rsc2x: one symbol ``length`` times, to be written twice as often."""
    symbols = [rng.choice(SYMBOLS)] * length
    answer = " ".join(symbols * 2)
    return Problem(f"Copy: {' '.join(symbols)} [SEP]", answer, answer, "rsc2x")


def replace_symbol(rng: random.Random, length: int) -> Problem:
    """rdc: a run of one symbol, to be written with another in its place."""
    old, new = rng.sample(SYMBOLS, 2)
    answer = " ".join([new] * length)
    return Problem(f"Replace {old} with {new} in {' '.join([old] * length)} [SEP]", answer, answer, "rdc")


def copy_symbols(rng: random.Random, length: int) -> Problem:
    """cmc: random symbols, to be written again."""
    symbols = rng.choices(SYMBOLS, k=length)
    return Problem(f"Copy: {' '.join(symbols)} [SEP]", _join(symbols), _join(symbols), "cmc")


def copy_symbols_twice(rng: random.Random, length: int) -> Problem:
    """cmc2x: random symbols, to be written twice."""
    symbols = rng.choices(SYMBOLS, k=length)
    answer = _join(symbols, symbols)
    return Problem(f"Copy: {' '.join(symbols)} [SEP]", answer, answer, "cmc2x")


def reverse_symbols(rng: random.Random, length: int) -> Problem:
    """mc: random symbols, last first."""
    symbols = rng.choices(SYMBOLS, k=length)
    answer = _join(symbols[::-1])
    return Problem(f"Reverse: {' '.join(symbols)} [SEP]", answer, answer, "mc")


def reverse_symbols_twice(rng: random.Random, length: int) -> Problem:
    """mc2x: the reversal, written twice."""
    symbols = rng.choices(SYMBOLS, k=length)
    answer = _join(symbols[::-1], symbols[::-1])
    return Problem(f"Reverse: {' '.join(symbols)} [SEP]", answer, answer, "mc2x")


def reverse_then_copy(rng: random.Random, length: int) -> Problem:
    """mcrv: the reversal, then the symbols as they came."""
    symbols = rng.choices(SYMBOLS, k=length)
    answer = _join(symbols[::-1], symbols)
    return Problem(f"Reverse: {' '.join(symbols)} [SEP]", answer, answer, "mcrv")
