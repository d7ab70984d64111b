"""What a task's generator returns, and the text it becomes, with or without a scratchpad.

The scratchpad is that of arXiv 2305.19466: the work is cut into steps, and a step has five parts, each of
which can be left out: the input it reads, the computation, its output, the intermediate variables, and what
remains to be read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from mickle.errors import UsageError

Part = Literal["input", "computation", "output", "variables", "remaining"]
PARTS: tuple[Part, ...] = ("input", "computation", "output", "variables", "remaining")
FULL: frozenset[Part] = frozenset(PARTS)
MINIMAL: frozenset[Part] = frozenset({"computation", "output"})
OPENING, CLOSING, JOINT = "Thinking step by step: ", ". Thus, ", " # "


@dataclass(frozen=True)
class WorkStep:
    """One step of a scratchpad. ``variables`` is empty for the tasks that carry no state (sort, LEGO)."""

    input: str
    computation: str
    output: str
    remaining: str
    variables: str = ""

    def text(self, parts: frozenset[Part]) -> str:
        """The step as ``in .. comp .. out .. [ .. ] re ..``, with the wanted parts only."""
        written = {
            "input": f"in {self.input}",
            "computation": f"comp {self.computation}",
            "output": f"out {self.output}",
            "variables": f"[ {self.variables} ]" if self.variables else "",
            "remaining": f"re {self.remaining}".rstrip(),
        }
        return " ".join(written[part] for part in PARTS if part in parts and written[part])


@dataclass(frozen=True)
class Problem:
    """A prompt, the text that must follow it, and the bare answer in it; ``steps`` is empty where no
    scratchpad exists.
    """

    source: str
    target: str
    answer: str
    category: str
    steps: tuple[WorkStep, ...] = ()

    def target_with_work(self, parts: frozenset[Part]) -> str:
        """The target with the steps in front of it; the bare target when ``parts`` is empty.

        Raises UsageError for a task without a scratchpad.
        """
        if not parts:
            return self.target
        if not self.steps:
            raise UsageError(
                f"the task {self.category!r} has no scratchpad",
                todo="ask for no scratchpad, or take addition, summation, polynomial, parity, sort or lego",
            )
        return OPENING + JOINT.join(step.text(parts) for step in self.steps) + CLOSING + self.target


def answered(question: str, answer: str, category: str, steps: Iterable[WorkStep]) -> Problem:
    """A question with its scratchpad, and the sentence that says its answer."""
    return Problem(question, f"The answer is {answer}.", answer, category, tuple(steps))


def digits(number: int) -> str:
    """A number as the paper writes it: digits apart, a minus sign apart: ``-12`` is ``- 1 2``."""
    return ("- " if number < 0 else "") + " ".join(str(abs(number)))
