"""Run many independent tasks in a few long-lived, one-thread processes; survive those that crash, hang or raise.

A fresh process per cell would pay the import of torch each time, and the standard pools can neither end one task that
ran past its time nor tell which task took its process down. Hence these lines.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

Key = TypeVar("Key")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
ONE_THREAD = dict.fromkeys(THREADS, "1")
START_SECONDS = 120.0  # a task's first time limit also covers the process's imports


@dataclass(frozen=True)
class Outcome(Generic[Key]):
    """What became of one task: its value, or in one line why there is none."""

    key: Key
    value: Any
    failure: str
    seconds: float


def run_all(
    work: Callable[[Any], Any], tasks: Mapping[Key, Any], *, workers: int = 2, limit_seconds: float = 600.0
) -> Iterator[Outcome[Key]]:
    """Yield the outcome of ``work(task)`` for every task, in the order they finish.

    ``work`` is a function at the top of an importable module. With ``workers=0`` everything runs in this process, in
    order, without a time limit (for tests and debuggers). Leaving the iteration ends all processes.
    """
    if workers == 0:
        for key, task in tasks.items():
            begun = time.monotonic()
            value, failure = attempt(work, task)
            yield Outcome(key, value, failure, time.monotonic() - begun)
        return
    waiting = list(tasks.items())
    idle: list[Worker] = []
    busy: dict[Connection, tuple[Worker, Key, float]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                key, task = waiting.pop(0)
                worker = idle.pop() if idle else Worker(work)
                worker.pipe.send(task)
                busy[worker.pipe] = (worker, key, time.monotonic())
            yield from finished(busy, idle, limit_seconds)
    finally:
        for worker in [*idle, *(entry[0] for entry in busy.values())]:
            worker.end()


def finished(
    busy: dict[Connection, tuple["Worker", Key, float]], idle: list["Worker"], limit_seconds: float
) -> Iterator[Outcome[Key]]:
    """Wait for an event; yield tasks that are done, whose process died, or that ran past the limit."""
    ready = wait(list(busy), timeout=1.0)
    for pipe in list(busy):
        worker, key, begun = busy[pipe]
        seconds = time.monotonic() - begun
        limit = limit_seconds if worker.warm else limit_seconds + START_SECONDS
        if pipe in ready:
            try:
                value, failure = pipe.recv()
                worker.warm = True
                idle.append(worker)
            except (EOFError, ConnectionError):
                worker.process.join()
                value, failure = None, f"its process ended with exit code {worker.process.exitcode}"
        elif seconds > limit:
            worker.end()
            value, failure = None, f"ended after {limit:.0f} s, the limit of one cell"
        else:
            continue
        del busy[pipe]
        yield Outcome(key, value, failure, seconds)


class Worker:
    """One spawned process that answers tasks until its pipe is closed."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=answer, args=(theirs, work), daemon=True)
        self.warm = False
        with environment(ONE_THREAD):
            self.process.start()
        theirs.close()

    def end(self) -> None:
        """Kill the process; nothing it holds needs a goodbye."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def answer(pipe: Connection, work: Callable[[Any], Any]) -> None:
    """The worker's side: receive a task, send (value, failure), until the parent is gone.

    Ctrl-C is the parent's affair: it ends the workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        while True:
            pipe.send(attempt(work, pipe.recv()))
    except (EOFError, ConnectionError):
        return


def attempt(work: Callable[[Any], Any], task: Any) -> tuple[Any, str]:
    """The task's value and "", or None and the exception in one line."""
    try:
        return work(task), ""
    except Exception as error:  # a cell is a stranger's code: whatever it raises is reported with its name
        return None, f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while (a spawned process inherits them before its first import)."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
