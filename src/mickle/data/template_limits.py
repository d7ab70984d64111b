"""What a chat template may use up while it is rendered: processor time, and text made or held."""

from __future__ import annotations

import time
from collections.abc import ItemsView, KeysView, ValuesView
from typing import Any

from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

SECONDS = 0.1  # of processor time for a rendering, and as much again for each megabyte of text in it
LARGEST = 1 << 20  # characters of output, four times the conversation's own text aside


class TooMuch(TemplateError):
    """A template that does not end, or makes more text than it may."""


class Budget:
    """What is left for one rendering."""

    def __init__(self, text: int = 0) -> None:
        self.largest = LARGEST + 4 * text
        self.until = time.thread_time() + SECONDS * (1 + text / 1e6)

    def check_time(self) -> None:
        if time.thread_time() > self.until:
            raise TooMuch("it runs for too long")

    def check_size(self, size: int) -> None:
        if size > self.largest:
            raise TooMuch("it makes more than 1 MB of text")

    def measure(self, *values: Any) -> int:
        """Characters and elements of values and of all inside them, every occurrence counted; stops at the limit."""
        waiting, size, seen = list(values), 0, 0
        while waiting:
            value, seen = waiting.pop(), seen + 1
            if isinstance(value, str):
                size += len(value)
            elif isinstance(value, Namespace):
                waiting += value._Namespace__attrs.values()
            elif isinstance(value, dict):
                waiting += [*value.keys(), *value.values()]
            elif isinstance(value, (list, tuple, set, frozenset, KeysView, ValuesView, ItemsView)):
                waiting += value
            elif isinstance(value, int):
                size += value.bit_length() // 3  # its digits
            self.check_size(size + seen)
            if seen % 4096 == 0:
                self.check_time()
        return size + seen


class Space(Namespace):
    """``namespace()`` of templates; names that begin with an underscore are not theirs to set."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        for name in (values := dict(*rest, **kwargs)):
            _own_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _own_name(name)
        Namespace.__setitem__(self, name, value)


def _own_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError("a name that begins with an underscore cannot be set")
