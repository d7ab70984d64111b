"""Questions on the documentation of installed packages, answered in its own words: conversations to tune a chat model.

Each public module, class, function and method gives one: the question names it, with its signature where it can be
called; the answer is the first paragraph of its docstring. A tenth is held out, of modules that no other question
is about, and none of those answers is, or shares eight words in a row with, one that is trained on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path

from mickle import storage
from mickle.data.heldout import content_hash, is_heldout
from mickle.data.module_pages import BULLET, UNDERLINE, docstrings, has_layout
from mickle.data.overlap import overlap
from mickle.results import json_lines

TRAINING, HELDOUT = "questions.jsonl", "questions_heldout.jsonl"
HELDOUT_SHARE = 0.1
SHARED_WORDS = 8  # in a row, that no answer held out has in common with one to learn; paraphrases have fewer
SHORTEST, LONGEST = 40, 400  # characters of an answer
LONGEST_NAME = 160  # characters of a name with its signature; of a longer one the signature is left out
ASKED = {
    "module": "What is the Python module `{}` for?",
    "class": "What is the Python class `{}` for?",
    "function": "What does `{}` do in Python?",
}
FIELD = re.compile(r"[:@]\w+.*:|\w+:$")  # ":param x: ...", "Args:"


@dataclass(frozen=True)
class Question:
    """A question on something that the module ``module`` documents, and the answer."""

    module: str
    question: str
    answer: str

    def row(self) -> dict[str, object]:
        """As a line of a file of conversations."""
        turns = [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.answer}]
        return {"messages": turns}


def write_questions(modules: Iterable[str], count: int, folder: Path) -> tuple[int, int]:
    """Write ``count`` questions on the modules, or all there are, in two files of conversations; how many are to learn
    and how many held out. Which are taken follows from hashes of their texts, so that they are spread over all modules.
    """
    training, heldout = two_sides(dict.fromkeys(modules), count)
    storage.write_text(folder / TRAINING, json_lines(item.row() for item in training))
    storage.write_text(folder / HELDOUT, json_lines(item.row() for item in heldout))
    return len(training), len(heldout)


def two_sides(modules: Iterable[str], count: int) -> tuple[list[Question], list[Question]]:
    """Questions to learn and held out, nine to one, ``count`` in all where there are so many; each answer once."""
    found = {content_hash(item.answer): item for name in modules for item in questions(name)}
    spread = [found[key] for key in sorted(found)]
    sides = ([item for item in spread if is_heldout(item.module, HELDOUT_SHARE) is side] for side in (False, True))
    training, heldout = next(sides), next(sides)
    training = training[: count - round(count * HELDOUT_SHARE)]
    shared = overlap([item.answer for item in training], [item.answer for item in heldout], SHARED_WORDS)
    clean = [item for place, item in enumerate(heldout) if place not in set(shared.places)]
    return training, clean[: round(count * HELDOUT_SHARE)]


def questions(module: str) -> Iterator[Question]:
    """What can be asked of a module's documentation."""
    for kind, name, docstring in docstrings(module):
        answer = first_paragraph(docstring)
        if SHORTEST <= len(answer) <= LONGEST:
            name = name.replace("(self, ", "(").replace("(self)", "()")  # as it is called
            short = name if len(name) <= LONGEST_NAME else name.partition("(")[0]
            yield Question(module, ASKED[kind].format(short), answer)


def first_paragraph(docstring: str) -> str:
    """The prose that a docstring begins with, in one line; "" where that is a list, a table, code or introduces one."""
    block = re.split(r"\n(?:[ \t]*\n)+", cleandoc(docstring).strip())[0]
    lines = block.split("\n")
    drawn = has_layout(lines) or any(map(UNDERLINE.match, lines)) or any(map(BULLET.match, lines))
    return "" if drawn or FIELD.match(block) or block.endswith(":") else " ".join(block.split())
