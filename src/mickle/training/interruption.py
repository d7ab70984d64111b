"""Ctrl-C and SIGTERM while training: finish the step, save, leave. The second one stops at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interruption:
    """A context in which the first SIGINT or SIGTERM only sets ``signalled``.

    That signal puts the former handlers back, so a second one does what it always did. Signals that were
    ignored (nohup) stay ignored. Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signalled = self._ends = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._put_back()

    @contextmanager
    def ends(self, wanted: bool = True) -> Iterator[None]:
        """Where it is wanted, the first signal ends at once what is done inside: work that can be done again."""
        self._ends = wanted
        try:
            yield
        except KeyboardInterrupt:
            if not self.signalled:
                raise
        finally:
            self._ends = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True
        self._put_back()
        if self._ends:
            raise KeyboardInterrupt

    def _put_back(self) -> None:
        if threading.current_thread() is threading.main_thread():
            while self._former:
                number, handler = self._former.popitem()
                signal.signal(number, handler)
