"""Texts that every machine has: the source files of installed packages and of Python's standard library.

The one reader of them: files are found by their place and parsed, so no module of a package is imported or run.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path

from mickle.errors import UsageError

STDLIB = "stdlib"  # stands for the standard library where a package is named
SITE = frozenset(
    {"site-packages", "dist-packages", "__pycache__"}
)  # inside the standard library's folder, no part of it

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef  # what can have a docstring


def package_folder(package: str) -> Path:
    """Where the files of a package lie, given by its import name, or of the standard library; ``UsageError`` where it
    is not installed as a folder.
    """
    if package == STDLIB:
        return Path(sysconfig.get_paths()["stdlib"])
    # With a dot in the name, find_spec would import the parent.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UsageError(
            f"package {package!r} is not installed",
            expected=f"{STDLIB!r} or a package of this Python",
            todo=f"pip install {package}",
        )
    return Path(next(iter(spec.submodule_search_locations)))


def package_files(package: str, skipped: Collection[str] = SITE, pattern: str = "*.py") -> list[Path]:
    """The files of a package, or of ``stdlib``, whose names match ``pattern``, in the order of their paths.

    skipped: names of folders and files inside the package that are passed over, with all below them.
    """
    folder, names = package_folder(package), set(skipped)
    return sorted(path for path in folder.rglob(pattern) if not names & set(path.relative_to(folder).parts))


def module_name(inside: Path) -> str:
    """The dotted name of the module whose file has the path ``inside`` its package's folder (the package's own name is
    not in it): ``json/__init__.py`` is ``json``, ``json/encoder.py`` is ``json.encoder``.
    """
    return ".".join(part for part in inside.with_suffix("").parts if part != "__init__")


def held_out(name: str, one_in: int) -> bool:
    """Whether a module or file is never trained on, as ``one_in`` so many are; it follows from its name alone."""
    return hashlib.sha256(name.encode()).digest()[0] % one_in == 0


def parsed(path: Path) -> ast.Module | None:
    """The syntax tree of a source file; None where it is none that this Python reads, as a package's test of another
    version's syntax.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old escapes in others' texts: nothing the reader could mend
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError, OSError):
        return None


def docstrings(tree: ast.Module) -> Iterator[str]:
    """The documentation strings of a module, its classes and functions and theirs, in the order of the file.

    Left out: functions and classes that stand under an ``if`` or ``try``; see :func:`all_docstrings`.
    """
    waiting: list[Documented] = [tree]
    while waiting:
        node = waiting.pop(0)
        if text := ast.get_docstring(node):
            yield text
        waiting[:0] = (n for n in node.body if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef))


def all_docstrings(tree: ast.Module) -> Iterator[str]:
    """Every documentation string of a module, wherever it stands, outermost first."""
    for node in ast.walk(tree):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)):
            yield text
