"""The house's imports hold no circle: imports inside functions and for types alone count too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import mickle

ROOT = Path(mickle.__file__).parent


def module_name(path: Path) -> str:
    """src/mickle/data/card.py -> mickle.data.card, and a package's __init__.py -> the package."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def parsed() -> dict[str, ast.Module]:
    """Each module of the package by its name."""
    return {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}


def imports(tree: ast.Module, modules: dict[str, ast.Module]) -> Iterator[str]:
    """Modules of the package that one imports anywhere in its text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "this package imports by full names"
            for alias in node.names:  # `from mickle.data import card` imports a module, `... import Card` a name of one
                full = f"{node.module}.{alias.name}"
                yield from (name for name in [full if full in modules else node.module] if name in modules)


def reached(start: str, edges: dict[str, set[str]]) -> set[str]:
    """Modules to which imports lead from one."""
    found: set[str] = set()
    waiting = list(edges[start])
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(edges[name])
    return found


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules each of which leads to all of its group."""
    leads = {name: reached(name, edges) for name in edges}
    groups = {frozenset(b for b in leads[a] if a in leads[b]) for a in edges}
    return sorted((set(group) for group in groups if group), key=sorted)


def test_no_circle_of_imports() -> None:
    modules = parsed()
    found = circles({name: set(imports(tree, modules)) for name, tree in modules.items()})
    names = [sorted(group) for group in found]
    assert not names, f"These import each other in a circle: {names}. Pass values instead, or move what both need."


def test_a_circle_is_found_through_a_third_module_and_in_functions() -> None:
    texts = {
        "a": "import b",
        "b": "def f():\n    from c import x",
        "c": "if TYPE_CHECKING:\n    import a",
        "d": "import a",
    }
    modules = {name: ast.parse(text) for name, text in texts.items()}
    assert circles({name: set(imports(tree, modules)) for name, tree in modules.items()}) == [{"a", "b", "c"}]


def test_no_study_imports_a_study() -> None:
    modules = parsed()
    pages = {name for name, tree in modules.items() if name.startswith("mickle.studies.") and declares_study(tree)}
    assert len(pages) >= 10
    found = [(page, other) for page in sorted(pages) for other in imports(modules[page], modules) if other in pages]
    assert not found, f"What two studies need belongs in a module of its own: {found}"


def declares_study(tree: ast.Module) -> bool:
    """Whether a module has a value `study` at its top."""
    names = [
        target
        for node in tree.body
        for target in (node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)])
    ]
    return any(isinstance(name, ast.Name) and name.id == "study" for name in names)
