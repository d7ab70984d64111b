"""What long work says while it runs: typed events, and the few readers of them.

Work emits; it never prints. A progress bar, ``metrics.jsonl`` and TensorBoard are all plain functions of events.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from mickle import storage
from mickle.errors import printable


@dataclass(frozen=True)
class Event:
    """Something that happened."""


@dataclass(frozen=True)
class Started(Event):
    """A countable piece of work begins: ``total`` units (0 where it is not known)."""

    what: str
    total: int
    unit: str


@dataclass(frozen=True)
class Progressed(Event):
    """``done`` units of the last started work are done, counted from its beginning."""

    done: int
    note: str = ""


@dataclass(frozen=True)
class Trained(Event):
    """One optimizer step: mean loss (nats), learning rate, gradient norm before clipping, tokens and seconds so far.

    ``count``: how many terms the mean is over (of a masked model, the tokens that were hidden), or their weights' sum.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    extra: dict[str, float] = field(default_factory=dict)
    count: float = 0.0


@dataclass(frozen=True)
class Evaluated(Event):
    """Measurements on held-out data after ``step`` steps."""

    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Saving(Event):
    """A checkpoint is about to be written: what was heard until now must be as durable as it will be."""

    step: int


@dataclass(frozen=True)
class Saved(Event):
    """A checkpoint is whole on disk."""

    step: int
    path: Path


@dataclass(frozen=True)
class Warned(Event):
    """Something a person should know before trusting the result."""

    message: str


@dataclass(frozen=True)
class Noted(Event):
    """A line worth reading: a derived setting, a count."""

    message: str


@dataclass(frozen=True)
class Stopped(Noted):
    """A training ended before its last step, and why: nothing became better any more."""

    step: int


Emit = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Hear nothing."""


def as_warnings(event: Event) -> None:
    """Hear warnings alone, as Python's own: what those hear who call a verb from Python."""
    if isinstance(event, Warned):
        warnings.warn(event.message, stacklevel=3)


def several(*readers: Emit) -> Emit:
    """One emit that tells every reader."""

    def emit(event: Event) -> None:
        for reader in readers:
            reader(event)

    return emit


class JsonLines:
    """Training and evaluation events as JSON, a line each. Times stay out, so the same run gives the same bytes.

    Figures of a step have nine digits, with which a float32 is exact; those of an evaluation, which results are made
    of, have all.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, event: Event) -> None:
        if isinstance(event, Saving) and self._path.exists():
            storage.fsync_path(self._path)
        if not isinstance(event, (Trained, Evaluated)):
            return
        values = {"event": type(event).__name__.lower(), **asdict(event)}
        values.pop("seconds", None)
        if not values.get("extra", True):
            values.pop("extra")
        if isinstance(event, Trained):
            values = json.loads(json.dumps(values), parse_float=lambda number: float(f"{float(number):.9g}"))
        with open(self._path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(values, separators=(",", ":")) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what lies after ``step``: a resumed run says those lines again."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):  # the line that a kill cut in two
                break
        storage.write_text(self._path, "".join(kept))


class Console:
    """One live line per piece of work (rate, time left, loss) on a terminal; a plain line now and then elsewhere.

    quiet: no progress and no notes; warnings are said all the same.
    """

    def __init__(self, stream: IO[str] | None = None, every: float = 10.0, quiet: bool = False) -> None:
        from rich.console import Console as RichConsole

        self._console = RichConsole(file=stream or sys.stderr, highlight=False)
        self._every, self._quiet = every, quiet
        self._progress: Any = None
        self._work = Started("", 0, "")
        self._begun = self._said = time.monotonic()
        self._first = 0

    def __call__(self, event: Event) -> None:
        match event:
            case Warned():
                self._print(f"[yellow]warning:[/] {_escape(event.message)}")
            case _ if self._quiet:
                return
            case Started():
                self._start(event)
            case Progressed():
                self._advance(event.done, event.note)
            case Trained():
                rate = event.tokens / max(event.seconds, 1e-9)
                self._advance(event.step, f"loss {event.loss:.3f} · {rate:,.0f} tokens/s")
            case Evaluated():
                shown = " · ".join(f"{k} {v:.4g}" for k, v in event.values.items())
                self._print(f"  step {event.step}: {shown}")
            case Noted():
                self._print(f"  {_escape(event.message)}")

    def close(self) -> None:
        """Finish the live line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _start(self, event: Started) -> None:
        self.close()
        self._work, self._first = event, -1
        self._begun = self._said = time.monotonic()
        if self._console.is_terminal:
            from rich import progress

            self._progress = progress.Progress(
                progress.TextColumn("[bold]{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[note]}"),
                progress.TimeRemainingColumn(),
                console=self._console,
                transient=False,
            )
            self._progress.start()
            self._task = self._progress.add_task(printable(event.what), total=event.total or None, note="")
        else:
            self._print(f"{event.what}: {event.total:,} {event.unit}" if event.total else event.what)

    def _advance(self, done: int, note: str) -> None:
        now = time.monotonic()
        if self._first < 0:
            # What a resumed run reports at once was done before: rate and time left count from there.
            at_once = now - self._begun < 0.5
            self._first, self._begun = (done, now) if at_once else (0, self._begun)
        elapsed = now - self._begun
        rate = (done - self._first) / elapsed if elapsed > 0 else 0.0
        if self._progress is not None:
            shown = printable(note) or f"{rate:,.1f} {self._work.unit}/s"
            self._progress.update(self._task, completed=done, note=shown)
        elif now - self._said >= self._every or done == self._work.total:
            self._said = now
            left = f", {(self._work.total - done) / rate:,.0f} s left" if self._work.total and rate > 0 else ""
            total = f"/{self._work.total:,}" if self._work.total else ""
            pace = f" ({rate:,.1f}/s{left})" if rate > 0 else ""
            self._print(f"  {done:,}{total} {self._work.unit}{pace} {_escape(note)}".rstrip())

    def _print(self, text: str) -> None:
        (self._progress.console if self._progress is not None else self._console).print(printable(text), soft_wrap=True)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
