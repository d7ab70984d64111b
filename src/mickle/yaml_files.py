"""YAML of settings: plain values, and the line of each. No tags, aliases or names that stand twice, within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mickle.errors import UsageError
from mickle.untrusted.values import read_text

LARGEST_FILE = 1 << 20  # bytes; settings are written by people
DEEPEST = 50  # lists and mappings inside each other
MOST_VALUES = 20_000  # names count too
# libyaml is twenty times as fast as the same in Python.
_LOADER: type[Any] = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class Lines:
    """Where each field of a YAML document stands. :class:`UsageError` for one that stands twice."""

    def __init__(self, node: yaml.Node | None = None, file: Path = Path()) -> None:
        self._lines: dict[tuple[str, ...], int] = {}
        self._file = file
        if node is not None:
            self._walk(node, ())

    def _walk(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                line, named = key.start_mark.line + 1, isinstance(key, yaml.ScalarNode)
                place = (*path, str(key.value))
                if not named or place in self._lines:
                    problem = f"field '{key.value}' stands twice" if named else "a field's name must be plain text"
                    raise UsageError(problem, where=f"{self._file}:{line}")
                self._lines[place] = line
                self._walk(value, place)
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                self._walk(value, (*path, str(index)))

    def find(self, location: tuple[Any, ...]) -> int | None:
        """The line of a field, or of the nearest enclosing one that the file has."""
        path: tuple[str, ...] = ()
        line = self._lines.get(())
        for part in location:
            if (*path, str(part)) in self._lines:
                path = (*path, str(part))
                line = self._lines[path]
        return line

    def under(self, *prefix: str) -> Lines:
        """The same map, seen from inside a field."""
        inner = Lines()
        inner._lines = {k[len(prefix) :]: v for k, v in self._lines.items() if k[: len(prefix)] == prefix}
        return inner


def read_yaml(path: Path | str) -> tuple[Any, Lines]:
    """Plain values of a YAML file and the line of each. No tags, anchors or duplicate keys."""
    path = Path(path)
    text = read_text(path, "settings file", LARGEST_FILE)
    try:
        _refuse_bombs(text, path)
        node = yaml.compose(text, Loader=_LOADER)
        lines = Lines(node, path)
        return None if node is None else _LOADER("").construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        last = text.count("\n")  # the mark of a text that ends too soon may stand past it
        where = f"{path}:{min(mark.line, last) + 1}" if mark else str(path)
        raise UsageError(f"not valid YAML: {getattr(error, 'problem', None) or error}", where=where) from None
    except (RecursionError, ValueError) as error:
        raise UsageError(f"not valid YAML: {error}", where=str(path)) from None


def _refuse_bombs(text: str, path: Path) -> None:
    """No aliases, which can unfold without end, no deep nesting, which takes quadratic time, and not too much."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_LOADER)):
        where = f"{path}:{event.start_mark.line + 1 if event.start_mark else 1}"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise UsageError("YAML aliases are not supported", where=where, todo="write the value out")
        if count > MOST_VALUES:
            raise UsageError(f"YAML of more than {MOST_VALUES:,} names and values", where=where)
        if depth > DEEPEST:
            raise UsageError(f"YAML is nested more than {DEEPEST} deep", where=where)


def as_yaml(values: dict[str, Any]) -> str:
    """Plain values as YAML, in their order."""
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
