"""Real English text that every Python carries: the prose of its modules' documentation strings.

Files are parsed and never imported, so no module runs. From a docstring only running text is taken: paragraphs
whose lines are not indented, that end as a sentence does and hold hardly a sign other than letters, commas and full
stops, as prose on the web; examples, tables, signatures and paragraphs full of code are left out. None of these is a
rule of the pipeline under test. A paragraph that occurred before, in any module, is left out too: these are the
originals, each once.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mickle.errors import UsageError

STDLIB = "stdlib"
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "__pycache__", "lib2to3",
           "ensurepip", "_vendor"}  # fmt: skip
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
        return hashlib.sha256(self.name.encode()).digest()[0] % HELD_OUT_OF == 0


@cache
def sources(package: str = STDLIB) -> tuple[Source, ...]:
    """The modules of a package that have prose; :class:`UsageError` where the package is not installed."""
    root = folder_of(package)
    seen: set[str] = set()
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if SKIPPED & set(inside.parts):
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue
        texts = topics(tree) if inside.as_posix() == TOPICS else {_dotted(inside): docstrings(tree)}
        for name, docs in texts.items():
            if paragraphs := tuple(p for doc in docs for p in prose(doc) if _is_new(p, seen)):
                found.append(Source(name, paragraphs))
    return tuple(found)


def folder_of(package: str) -> Path:
    """Where a package's files lie; nothing of it is run."""
    if package == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(f"package {package!r} is not installed", expected="a package of this Python")
    return Path(next(iter(spec.submodule_search_locations)))


def docstrings(tree: ast.Module) -> list[str]:
    """The documentation strings of a module, its classes and functions, in order."""
    waiting: list[ast.AST] = [tree]
    found = []
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.append(ast.get_docstring(node) or "")
            inner = (n for n in node.body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))
            waiting[:0] = inner
    return found


def topics(tree: ast.Module) -> dict[str, list[str]]:
    """The texts of pydoc's dictionary of topics, by name."""
    pairs = (
        pair
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for pair in zip(node.keys, node.values, strict=True)
    )
    return {
        f"topic.{key.value}": [value.value]
        for key, value in pairs
        if isinstance(key, ast.Constant)
        and isinstance(key.value, str)
        and isinstance(value, ast.Constant)
        and isinstance(value.value, str)
    }


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


def _dotted(path: Path) -> str:
    return ".".join(part for part in path.with_suffix("").parts if part != "__init__")


def _is_new(paragraph: str, seen: set[str]) -> bool:
    key = " ".join(re.findall(r"\w+", paragraph.lower()))
    fresh = key not in seen
    seen.add(key)
    return fresh
