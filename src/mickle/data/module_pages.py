"""One HTML page for one Python module, made from its source: the docstrings and signatures of its syntax tree.

Nothing is imported, so no module runs. A page shows what a reader of the module would look for: its docstring, then
its public classes and functions in the order they are defined, those too that a public module takes over from a
private one (``from ._linalg import norm``, named in its ``__all__``). What only a running Python knows is not there:
docstrings of C code, and those that a program writes when it is imported.
"""

from __future__ import annotations

import ast
import html
import importlib.util
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import PathFinder
from inspect import cleandoc
from pathlib import Path

from mickle.data.installed import parsed

LONGEST_SIGNATURE = 1000
PRIVATE_DEPTH = 4  # private modules that a name is followed through
BULLET = re.compile(r"^[-*] ")
UNDERLINE = re.compile(r"^[-=~]{3,}$")
RULE = re.compile(r"^[-=+|][-=+| ]{2,}$")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def render_module(name: str, siblings: list[str], origin: str) -> tuple[str, str]:
    """The HTML page of the module ``name``, and why there is none; one of the two is empty.

    ``siblings`` become the page's navigation and ``origin`` its footer: what a reader of pages must tell from
    main text. Names that the module only passes on from another public module are left to that module's page.
    """
    path = source_of(name)
    tree = parsed(path) if path else None
    if path is None or tree is None:
        return "", "cannot be parsed" if path else "has no Python source"
    try:
        parts = [f"<h1>{html.escape(name)}</h1>", *docstring_blocks(ast.get_docstring(tree) or "")]
        for label, node in _members(name, path, tree, _exported(tree)).items():
            if label.startswith("_"):
                continue
            parts += class_blocks(label, node) if isinstance(node, ast.ClassDef) else function_blocks(label, node, "h2")
    except RecursionError:  # an expression nested too deeply to be written
        return "", "is nested too deeply"
    links = "".join(f'<li><a href="{html.escape(other)}.html">{html.escape(other)}</a></li>' for other in siblings)
    title = html.escape(name)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title></head><body>\n'
        f"<nav><ul>{links}</ul></nav>\n<main><article>\n" + "\n".join(parts) + "\n</article></main>\n"
        f"<footer>{html.escape(origin)}</footer>\n</body></html>\n"
    ), ""


def docstrings(name: str) -> Iterator[tuple[str, str, str]]:
    """What the page of the module ``name`` documents: "module", "class" or "function"; its dotted name, with the
    signature where it can be called; its docstring. In the page's order; nothing where there is no page.
    """
    path = source_of(name)
    tree = parsed(path) if path else None
    if path is None or tree is None:
        return
    yield "module", name, ast.get_docstring(tree) or ""
    for label, node in _members(name, path, tree, _exported(tree)).items():
        if label.startswith("_"):
            continue
        if isinstance(node, Function):
            yield "function", f"{name}.{signature(label, node)}", ast.get_docstring(node) or ""
            continue
        yield "class", f"{name}.{label}", ast.get_docstring(node) or ""
        for method, inside in _methods(node).items():
            if not method.startswith("_"):
                yield "function", f"{name}.{label}.{signature(method, inside)}", ast.get_docstring(inside) or ""


@lru_cache(4096)
def source_of(name: str) -> Path | None:
    """The source file of a module by its dotted name; None for one that has none. Nothing is imported."""
    root, *inside = name.split(".")
    # The finder of paths comes first: of modules frozen into Python the other does not know the file.
    spec = PathFinder.find_spec(root) or importlib.util.find_spec(root)
    if spec is None:
        return None
    if not inside:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *inside)
        for path in (place / "__init__.py", place.with_name(place.name + ".py")):
            if path.is_file():
                return path
    return None


def _members(
    name: str, path: Path, tree: ast.Module, exported: set[str] | None, depth: int = 0
) -> dict[str, Definition]:
    """What the module defines, and of what it imports from private modules the names in ``exported`` (None: all)."""
    found: dict[str, Definition] = {}
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom) and depth < PRIVATE_DEPTH:
            taken = _taken_over(node, name, path, depth)
            found |= {label: value for label, value in taken.items() if exported is None or label in exported}
        else:
            found |= _defined(node, found)
    return found


def _taken_over(node: ast.ImportFrom, name: str, path: Path, depth: int) -> dict[str, Definition]:
    """What an import takes from a private module, by the names it gets."""
    parts = name.split(".")
    above = parts[: len(parts) - node.level + (path.name == "__init__.py")] if node.level else []
    home = ".".join([*above, *(node.module or "").split(".")]).strip(".")
    if not any(part.startswith("_") for part in home.split(".")) or (source := source_of(home)) is None:
        return {}
    inside = _private_members(home, source, depth + 1)
    named = {alias.name: alias.asname or alias.name for alias in node.names}
    if "*" in named:
        return {label: value for label, value in inside.items() if not label.startswith("_")}
    return {named[label]: value for label, value in inside.items() if label in named}


@lru_cache(256)
def _private_members(name: str, path: Path, depth: int) -> dict[str, Definition]:
    tree = parsed(path)
    return _members(name, path, tree, None, depth) if tree else {}


def _exported(tree: ast.Module) -> set[str] | None:
    """The names in what the module does to ``__all__``; None, which means all, where other modules say what they are
    (``__all__ = _linalg.__all__.copy()``, or ``from _decimal import *`` alone).
    """
    told: list[ast.AST] = []
    for node in _statements(tree.body):
        parts = list(ast.walk(node)) if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.Expr) else []
        if any(isinstance(part, ast.Name) and part.id == "__all__" for part in parts):
            told += parts
    passes_on = any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in _statements(tree.body))
    if (passes_on and not told) or any(isinstance(part, ast.Attribute) and part.attr == "__all__" for part in told):
        return None
    return {part.value for part in told if isinstance(part, ast.Constant) and isinstance(part.value, str)}


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements in order, with those under conditions; what is done only when a module is a program is left out."""
    for node in body:
        if isinstance(node, ast.If):
            if not ast.unparse(node.test).startswith("__name__"):
                yield from _statements(node.body + node.orelse)
        elif isinstance(node, ast.Try | ast.TryStar):
            handled = [statement for handler in node.handlers for statement in handler.body]
            yield from _statements(node.body + handled + node.orelse + node.finalbody)
        elif isinstance(node, ast.With):
            yield from _statements(node.body)
        else:
            yield node


def _defined(node: ast.stmt, known: dict[str, Definition]) -> dict[str, Definition]:
    """What a statement defines: a class, a function, or another name for one of those ``known``."""
    if isinstance(node, Definition):
        # A setter of a property that stands before it is left out.
        setter = any(isinstance(d, ast.Attribute) and d.attr in ("setter", "deleter") for d in node.decorator_list)
        return {} if setter else {node.name: node}
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id in known:
        same = known[node.value.id]
        return {target.id: same for target in node.targets if isinstance(target, ast.Name)}
    return {}


def class_blocks(label: str, node: ast.ClassDef) -> list[str]:
    """Heading, docstring and documented public methods and properties of a class (those it defines itself)."""
    bases = ", ".join(name for base in node.bases if (name := _last_name(base)) != "object")
    parts = [f"<h2>class {html.escape(label)}{'(' + html.escape(bases) + ')' if bases else ''}</h2>"]
    parts += docstring_blocks(ast.get_docstring(node) or "")
    for name, method in _methods(node).items():
        if not name.startswith("_") or name in ("__init__", "__call__"):
            parts += function_blocks(name, method, "h3")
    return parts if len(parts) > 1 else []


def _methods(node: ast.ClassDef) -> dict[str, Function]:
    """Methods and properties that a class defines itself."""
    found: dict[str, Definition] = {}
    for statement in _statements(node.body):
        found |= _defined(statement, found)
    return {name: method for name, method in found.items() if isinstance(method, Function)}


def function_blocks(label: str, node: Function, level: str) -> list[str]:
    """Heading and docstring of a function or property; nothing without a docstring."""
    blocks = docstring_blocks(ast.get_docstring(node) or "")
    return [f"<{level}>{html.escape(signature(label, node))}</{level}>", *blocks] if blocks else []


def signature(label: str, node: Function) -> str:
    """``name(arguments) -> result`` as the source has it; of a property the name alone."""
    if any(_last_name(decorator).endswith("property") for decorator in node.decorator_list):
        return label
    text = f"({ast.unparse(node.args)})" + (f" -> {ast.unparse(node.returns)}" if node.returns else "")
    return label + (text if len(text) <= LONGEST_SIGNATURE else "(...)")


def _last_name(node: ast.expr) -> str:
    """``ABC`` of ``abc.ABC``, ``Generic`` of ``Generic[T]``, ``wraps`` of ``functools.wraps(f)``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.id if isinstance(node, ast.Name) else ast.unparse(node)


def docstring_blocks(text: str) -> list[str]:
    """HTML of a docstring: paragraphs, lists and headings where it has them, ``pre`` where its layout carries
    meaning.
    """
    blocks: list[str] = []
    verbatim: list[str] = []
    for block in [*re.split(r"\n(?:[ \t]*\n)+", cleandoc(text).strip()), ""]:
        lines = block.rstrip().split("\n")
        if block.strip() and has_layout(lines):
            verbatim.append(block.rstrip())
            continue
        if verbatim:
            blocks.append("<pre>" + html.escape("\n\n".join(verbatim)) + "</pre>")
            verbatim = []
        if not block.strip():
            continue
        if len(lines) > 1 and UNDERLINE.match(lines[1]):
            blocks.append(f"<h4>{html.escape(lines[0])}</h4>")
            lines = lines[2:]
        if lines and all(BULLET.match(line) for line in lines):
            blocks.append("<ul>" + "".join(f"<li>{html.escape(line[2:])}</li>" for line in lines) + "</ul>")
        elif lines:
            blocks.append(f"<p>{html.escape(' '.join(lines))}</p>")
    return blocks


def has_layout(lines: list[str]) -> bool:
    """Whether line breaks and spaces mean something: indented lines, interpreter sessions, tables drawn with rules."""
    drawn = sum(bool(RULE.match(line)) for line in lines) > 1
    return drawn or any(line[:1].isspace() or line.startswith(">>>") for line in lines)
