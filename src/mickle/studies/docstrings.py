"""Signature to docstring: a task with a right answer that every installation has, far from the standard library.

From the sources of packages that Mickle itself needs (NumPy, Numba, PyTorch), each documented function gives one
example: its signature as the prompt, the first line of its docstring as the completion. Files are parsed, never
imported. Every fifth file is held out whole, and a completion that stands on both sides is taken out of the training
side: what is measured was not seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mickle.errors import UsageError

PACKAGES = ("numba", "numpy", "torch")
SKIPPED = {"tests", "test", "testing", "_vendor", "__pycache__"}
HELD_OUT_OF = 5  # one file in so many
LONGEST_PROMPT = 160  # characters
SHORTEST_LINE, LONGEST_LINE = 12, 100


@dataclass(frozen=True)
class Described:
    """A function: its signature up to the opening quotes, and the first line of its docstring with the closing ones."""

    prompt: str
    completion: str


@cache
def described_functions() -> tuple[tuple[Described, ...], tuple[Described, ...]]:
    """The training side and the held-out side, each example once, in the order of packages and files."""
    sides: tuple[dict[str, Described], dict[str, Described]] = ({}, {})
    for package in PACKAGES:
        root = package_folder(package)
        for path in sorted(root.rglob("*.py")):
            inside = path.relative_to(root.parent)
            if not SKIPPED & set(inside.parts):
                side = sides[held_out(inside.as_posix())]
                for found in functions_of(path):
                    side.setdefault(found.completion, found)  # a line that many functions share counts once
    training, heldout = sides
    return tuple(e for line, e in training.items() if line not in heldout), tuple(heldout.values())


def package_folder(package: str) -> Path:
    """Where a package's sources are; :class:`UsageError` where it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UsageError(f"package {package!r} is not installed", todo=f"pip install {package}")
    return Path(spec.origin).parent


def held_out(path: str) -> bool:
    """Whether a file is never trained on; it follows from its path inside the package's folder."""
    return hashlib.sha256(path.encode()).digest()[0] % HELD_OUT_OF == 0


def functions_of(path: Path) -> Iterator[Described]:
    """The documented functions and methods of one file; a file that does not parse has none."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and (found := described(node)):
            yield found


def described(node: ast.FunctionDef) -> Described | None:
    """The example that a function makes; None where its docstring or signature is too short, too long or not a line."""
    text = (ast.get_docstring(node) or "").strip()
    line = text.partition("\n")[0].strip()
    prompt = f'{signature(node)}\n    """'
    fits = SHORTEST_LINE <= len(line) <= LONGEST_LINE and len(prompt) <= LONGEST_PROMPT
    plain = line.isascii() and not line.startswith((">>>", ":", "..", "@")) and '"' not in line
    return Described(prompt, f'{line}"""') if fits and plain else None


def signature(node: ast.FunctionDef) -> str:
    """``def name(arguments) -> result:``, without decorators."""
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){result}:"
