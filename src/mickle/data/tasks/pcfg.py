"""PCFG SET (arXiv 1908.08351), productivity split: nested string edits written in prefix form.

One-argument functions: copy, reverse, shift (first symbol to the end), swap_first_last, repeat (twice over),
echo (last symbol once more). Two arguments, parted by a comma: append, prepend, remove_first, remove_second.
The length is the number of functions. The published set was fitted to English sentence shapes and must be
downloaded; this generator draws trees evenly instead, with the same functions, symbols and split.
"""

import random
import string
from collections.abc import Callable, Sequence

from mickle.data.tasks.problem import Problem

LONGEST_OUTPUT = 60  # symbols: ``repeat`` doubles, and 35 functions could otherwise write billions
SYMBOLS: tuple[str, ...] = tuple(f"{letter}{i}" for letter in string.ascii_uppercase for i in range(1, 21))

Symbols = Sequence[str]
ONE: dict[str, Callable[[Symbols], Symbols]] = {
    "copy": lambda x: x,
    "reverse": lambda x: x[::-1],
    "shift": lambda x: [*x[1:], x[0]],
    "swap_first_last": lambda x: [x[-1], *x[1:-1], x[0]] if len(x) > 1 else x,
    "repeat": lambda x: [*x, *x],
    "echo": lambda x: [*x, x[-1]],
}
TWO: dict[str, Callable[[Symbols, Symbols], Symbols]] = {
    "append": lambda x, y: [*x, *y],
    "prepend": lambda x, y: [*y, *x],
    "remove_first": lambda x, y: y,
    "remove_second": lambda x, y: x,
}
WORDS = " ".join(["Solve:", "[SEP]", ",", *ONE, *TWO])


def pcfg(rng: random.Random, length: int) -> Problem:
    """A nest of exactly ``length`` functions over strings of 2 to 5 symbols, and the string it gives."""
    text, value = _draw(rng, length)
    answer = " ".join(value)
    return Problem(f"Solve: {text} [SEP]", answer, answer, "pcfg")


def _draw(rng: random.Random, functions: int) -> tuple[str, Symbols]:
    """A random tree of ``functions`` nodes as text and value; functions whose value would be too long are not drawn."""
    if functions == 0:
        symbols = rng.sample(SYMBOLS, rng.randint(2, 5))
        return " ".join(symbols), symbols
    if rng.random() < 0.5:
        text, value = _draw(rng, functions - 1)
        fitting = [name for name in ONE if len(ONE[name](value)) <= LONGEST_OUTPUT]
        name = rng.choice(fitting)
        return f"{name} {text}", ONE[name](value)
    left = rng.randint(0, functions - 1)
    (first, one), (second, two) = _draw(rng, left), _draw(rng, functions - 1 - left)
    name = rng.choice([name for name in TWO if len(TWO[name](one, two)) <= LONGEST_OUTPUT])
    return f"{name} {first} , {second}", TWO[name](one, two)
