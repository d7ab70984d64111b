"""Real English text that every Python carries: the prose of its modules' documentation strings.

Files are parsed and never imported, so no module runs. From a docstring only running text is taken: paragraphs
whose lines are not indented, that end as a sentence does and hold hardly a sign other than letters, commas and full
stops, as prose on the web; examples, tables, signatures and paragraphs full of code are left out. None of these is a
rule of the pipeline under test. A paragraph that occurred before, in any module, is left out too: these are the
originals, each once.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from mickle.data import installed
from mickle.data.installed import SITE, STDLIB, docstrings, module_name, package_files, package_folder, parsed

SKIPPED = SITE | {"test", "tests", "testing", "idle_test", "lib2to3", "ensurepip", "_vendor"}
TOPICS = "pydoc_data/topics.py"  # the language reference, as one dictionary of texts
HELD_OUT_OF = 10  # one module in so many is never part of a crawl
LAYOUT = (">>>", "-", "*", "=", "+", "|", ":", "..", "@", "#")
LEAST_WORDS = 10  # of a paragraph
SIGN = re.compile(r"[^\w\s.,]|_|\d")
MOST_SIGNS = 0.02  # of a paragraph's characters; documentation with more is half code


@dataclass(frozen=True)
class Source:
    """A module's documentation: its dotted name, and its paragraphs in the order of the file, each on one line."""

    name: str
    paragraphs: tuple[str, ...]

    @property
    def held_out(self) -> bool:
        """Whether the module belongs to the part that no crawl contains; it follows from the name alone."""
        return installed.held_out(self.name, HELD_OUT_OF)


@cache
def sources(package: str = STDLIB) -> tuple[Source, ...]:
    """The modules of a package that have prose; :class:`UsageError` where the package is not installed."""
    root = package_folder(package)
    seen: set[str] = set()
    found = []
    for path in package_files(package, SKIPPED):
        inside, tree = path.relative_to(root), parsed(path)
        if tree is None:
            continue
        texts = topics(tree) if inside.as_posix() == TOPICS else {module_name(inside): docstrings(tree)}
        for name, docs in texts.items():
            if paragraphs := tuple(p for doc in docs for p in prose(doc) if _is_new(p, seen)):
                found.append(Source(name, paragraphs))
    return tuple(found)


def topics(tree: ast.Module) -> dict[str, Iterable[str]]:
    """The texts of pydoc's dictionary of topics, by name."""
    (texts,) = (ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign))
    return {f"topic.{name}": [text] for name, text in texts.items()}


def prose(doc: str) -> Iterator[str]:
    """The paragraphs of a docstring that are running text."""
    for block in re.split(r"\n[ \t]*\n", doc):
        lines = block.strip("\n").split("\n")
        if any(line[:1].isspace() or line.startswith(LAYOUT) for line in lines):
            continue
        text = " ".join(" ".join(lines).split())
        ended = text[:1].isalpha() and text[-1] in ".:!?"
        if ended and len(text.split()) >= LEAST_WORDS and len(SIGN.findall(text)) <= MOST_SIGNS * len(text):
            yield text


def _is_new(paragraph: str, seen: set[str]) -> bool:
    key = " ".join(re.findall(r"\w+", paragraph.lower()))
    fresh = key not in seen
    seen.add(key)
    return fresh
