"""Tasks on numbers, each with a scratchpad: addition, summation, polynomial, parity. Digits are written apart.

Formats: arXiv 2305.19466, appendix on tasks. Sums and polynomials are asked modulo 10, so that the answer stays one
digit however long the problem is.
"""

import random

from mickle.data.tasks.problem import Problem, WorkStep, answered, digits

WORDS = (
    "Compute Compute: The answer is . ? + Evaluate at x = in * ** - Is the number of 1 's even sequence [ ] ,"
    " Yes No in comp out re Thinking step by step: Thus odd -> C A P #"
)


def addition(rng: random.Random, length: int) -> Problem:
    """Two numbers, the longer of ``length`` digits, on either side; most significant digit first."""
    short = rng.randint(1, length)
    counts = [length, short] if rng.random() < 0.5 else [short, length]
    first, second = (rng.randint(10 ** (count - 1) if count > 1 else 0, 10**count - 1) for count in counts)
    question = f"Compute {digits(first)} + {digits(second)} ?"
    return answered(question, digits(first + second), "addition", _addition_steps(str(first), str(second)))


def _addition_steps(first: str, second: str) -> list[WorkStep]:
    """Column by column from the right; an operand that has run out counts as 0."""
    steps, carry = [], 0
    while first or second or carry:
        a, b = int(first[-1:] or 0), int(second[-1:] or 0)
        column, total = f"{a} + {b} + {carry}", a + b + carry
        first, second, carry = first[:-1], second[:-1], total // 10
        rest = f"{' '.join(first)} + {' '.join(second)}".strip()
        steps.append(WorkStep(column, f"{column} = {digits(total)}", digits(total % 10), rest, f"C = {carry}"))
    return steps


def summation(rng: random.Random, length: int) -> Problem:
    """``length`` numbers of 1 to 9, their sum modulo 10."""
    numbers = [rng.randint(1, 9) for _ in range(length)]
    steps, total = [], 0
    for i, number in enumerate(numbers):
        computation, rest = f"{total} + {number} = {digits(total + number)}", " + ".join(map(str, numbers[i + 1 :]))
        total = (total + number) % 10
        steps.append(WorkStep(str(number), computation, str(total), rest, f"A = {total}"))
    return Problem(
        f"Compute: {' + '.join(map(str, numbers))} .", f"The answer is {total} .", str(total), "summation", tuple(steps)
    )


def polynomial(rng: random.Random, length: int) -> Problem:
    """``length`` terms, coefficients -3 to 3, degrees 0 to 3, x of -2 to 2; the value modulo 10."""
    x = rng.randint(-2, 2)
    terms = [(rng.randint(-3, 3), rng.randint(0, 3)) for _ in range(length)]
    texts = [f"{digits(coefficient)} * x ** {degree}" for coefficient, degree in terms]
    steps, total = [], 0
    for i, (coefficient, degree) in enumerate(terms):
        value = coefficient * x**degree
        total = (total + value) % 10
        computation = f"{digits(coefficient)} * {digits(x)} ** {degree} = {digits(value)}"
        steps.append(WorkStep(texts[i], computation, digits(value), " + ".join(texts[i + 1 :]), f"A = {total}"))
    return answered(f"Evaluate at x = {digits(x)} in {' + '.join(texts)} ?", str(total), "polynomial", steps)


def parity(rng: random.Random, length: int) -> Problem:
    """``length`` random bits: is the number of ones even?"""
    bits = [rng.randint(0, 1) for _ in range(length)]
    steps, even = [], True
    for i, bit in enumerate(bits):
        before, even = even, even ^ bool(bit)
        state, rest = _parity_word(even), ", ".join(map(str, bits[i + 1 :]))
        steps.append(WorkStep(str(bit), f"{_parity_word(before)} , {bit} -> {state}", state, rest, f"P = {state}"))
    question = f"Is the number of 1's even in the sequence [ {', '.join(map(str, bits))} ] ?"
    return answered(question, "Yes" if even else "No", "parity", steps)


def _parity_word(even: bool) -> str:
    return "even" if even else "odd"
