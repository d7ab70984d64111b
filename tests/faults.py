"""A disk that fails: every change that a test's process asks for under a folder is counted, and the n-th is refused.

Calls through `storage` are counted one by one; whatever Python itself opens, renames or removes beside it is seen by
an audit hook, so that no verb can write past the count. Libraries that write by themselves count when their file gets
its name.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mickle import storage

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.symlink", "os.link"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Killed(BaseException):
    """The end of a process, as far as an exception can be it: nothing that cleans up may change the disk either."""


class Faults:
    """While entered, call number ``fails_at`` fails with an I/O error; ``lasting``, it and all after it with Killed."""

    armed: list[Faults] = []  # an audit hook cannot be taken off, so it looks here
    hooked = False

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, fails_at: int = 0, lasting: bool = False) -> None:
        self.folder, self.fails_at, self.lasting = str(folder), fails_at, lasting
        self.calls: list[str] = []
        self._inside = False
        self._real = storage._call
        patch.setattr(storage, "_call", self._call)

    def __enter__(self) -> Faults:
        if not Faults.hooked:
            Faults.hooked = True
            sys.addaudithook(_hook)
        Faults.armed.append(self)
        return self

    def __exit__(self, *problem: object) -> None:
        Faults.armed.remove(self)

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.count(f"storage {getattr(function, '__name__', '?')}")
        outer, self._inside = self._inside, True
        try:
            return self._real(function, *arguments)
        finally:
            self._inside = outer

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        """One of Python's audit events."""
        changes = event in CHANGES or (event == "open" and arguments[2] & WRITING)
        if changes and not self._inside and os.fsdecode(arguments[0]).startswith(self.folder):
            self.count(f"{event} {Path(os.fsdecode(arguments[0])).name}")

    def count(self, what: str) -> None:
        """One more change of the disk, refused if it is its turn."""
        self.calls.append(what)
        if self.lasting and 0 < self.fails_at <= len(self.calls):
            raise Killed(what)
        if len(self.calls) == self.fails_at:
            raise OSError(errno.EIO, "injected", what)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    for disk in Faults.armed:
        if (event in CHANGES or event == "open") and not isinstance(arguments[0], int):
            disk.heard(event, arguments)
