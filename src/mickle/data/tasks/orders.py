"""Tasks on lists and chains, with scratchpads that carry no variables: sorting and LEGO.

Formats: arXiv 2305.19466, appendix on tasks; LEGO after arXiv 2206.04301, a chain of signs.
"""

import random
import string

from mickle.data.tasks.problem import Problem, WorkStep, answered, digits

ORDERED = tuple(string.ascii_uppercase + string.ascii_lowercase)[:50]
WORDS = (
    "Sort the following list [ ] . , The sorted list is If = + - Then what is the value of ? The answer"
    " in comp out re min Thinking step by step: Thus #"
)


def sort_single(rng: random.Random, length: int) -> Problem:
    """``length`` symbols of 50 that have an order (A < .. < Z < a < .. < x), one token each; one may come again."""
    return _sorting(rng.choices(range(len(ORDERED)), k=length), list(ORDERED), "sort_single")


def sort_multi(rng: random.Random, length: int) -> Problem:
    """``length`` integers of 10 to 9999, their digits apart; one may come again."""
    numbers = rng.choices(range(10, 10_000), k=length)
    return _sorting(numbers, {number: digits(number) for number in numbers}, "sort_multi")


def _sorting(ranks: list[int], names: list[str] | dict[int, str], category: str) -> Problem:
    def written(values: list[int]) -> str:
        return ", ".join(names[value] for value in values)

    steps, left = [], list(ranks)
    while left:
        smallest = min(left)
        place = left.index(smallest)  # of equal ones the first
        before, left = left, left[:place] + left[place + 1 :]
        steps.append(WorkStep(written(before), f"min = {names[smallest]}", names[smallest], written(left)))
    question, answer = f"Sort the following list [ {written(ranks)} ].", written(sorted(ranks))
    return Problem(question, f"The sorted list is [ {answer} ].", answer, category, tuple(steps))


def lego(rng: random.Random, length: int) -> Problem:
    """``length`` clauses, each variable plus or minus the one before; asked is one of the chain's second half, which
    begins after the middle where there is one.
    """
    names = rng.sample(string.ascii_lowercase, length)
    signs = [rng.choice((1, -1)) for _ in range(length)]
    clauses = [f"{names[0]} = {_sign(signs[0])}1"]
    clauses += [f"{names[i]} = {_sign(signs[i])} {names[i - 1]}" for i in range(1, length)]
    asked = rng.randrange(min((length + 1) // 2, length - 1), length)
    steps, value = [], 1
    for i in range(asked + 1):
        before, value = value, value * signs[i]
        working = f"{_sign(signs[i])} {_sign(before)}1 = {_sign(value)}1" if i else f"{_sign(value)}1"
        output, rest = f"{names[i]} = {_sign(value)}1", ", ".join(clauses[i + 1 :])
        steps.append(WorkStep(clauses[i], f"{names[i]} = {working}", output, rest))
    question = f"If {', '.join(clauses)}. Then, what is the value of {names[asked]}?"
    return answered(question, f"{_sign(value)}1", "lego", steps)


def _sign(value: int) -> str:
    return "+" if value > 0 else "-"
