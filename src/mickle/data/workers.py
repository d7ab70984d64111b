"""Pages through extraction and the stages for one page, in worker processes that a hostile page may kill but not stop.

A worker is this file run as a program: it takes a page (one line of JSON, then the bytes) and answers one line of JSON.
Nothing is pickled and nobody's ``__main__`` is imported again. Results come in the order of the pages, whatever the
number of workers. A page has a CPU time limit kept by the kernel, which ends even a loop inside C code.
"""

from __future__ import annotations

import json
import queue
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import IO

from mickle import errors
from mickle.config import validate
from mickle.data.pages import RawPage, Skipped, extract, removed_raw
from mickle.data.parallel import taken_ahead
from mickle.data.records import Page, Removed
from mickle.data.refine import page_stages, refine_page
from mickle.data.rules import Outcome, Rules
from mickle.errors import MickleError
from mickle.untrusted.child import READY, Child, allow, answers, ended_by

AHEAD = 8  # pages in flight per worker
MEMORY_BYTES = 4 << 30  # address space of a worker

Answer = tuple[list[Outcome], dict[str, float]]  # what became of one page, and seconds by stage


class Crew:
    """Worker processes for pages; they end with the ``with`` block."""

    def __init__(self, rules: Rules, workers: int) -> None:
        self.rules, self.workers = rules, workers
        self.seconds: dict[str, float] = defaultdict(float)
        self.crew: list[_Worker] = []

    def __enter__(self) -> Crew:
        self.idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self.pool = ThreadPoolExecutor(self.workers)
        self.crew = [_Worker(self.rules) for _ in range(self.workers)]
        for worker in self.crew:
            self.idle.put(worker)
        return self

    def __exit__(self, *problem: object) -> None:
        self.pool.shutdown(wait=False, cancel_futures=True)
        for worker in self.crew:
            worker.end()
        self.pool.shutdown(wait=True)
        for worker in self.crew:  # one that a thread was just starting
            worker.end()

    def process(self, found: Iterable[RawPage | Removed | Skipped]) -> Iterator[list[Outcome]]:
        """What becomes of every page, in order: pieces cut out of it, then the page. What was removed or
        skipped before passes through.
        """
        for begun in taken_ahead(map(self._begun, found), AHEAD * self.workers):
            yield self._result(begun)

    def taken_seconds(self) -> dict[str, float]:
        """Seconds by stage since this was last asked."""
        taken, self.seconds = self.seconds, defaultdict(float)
        return taken

    def _begun(self, item: RawPage | Removed | Skipped) -> list[Outcome] | Future[Answer]:
        return self.pool.submit(self._task, item) if isinstance(item, RawPage) else [item]

    def _task(self, raw: RawPage) -> Answer:
        worker = self.idle.get()
        try:
            return worker.process_page(raw)
        finally:
            self.idle.put(worker)

    def _result(self, item: list[Outcome] | Future[Answer]) -> list[Outcome]:
        if not isinstance(item, Future):
            return item
        outcomes, seconds = item.result()
        for stage, taken in seconds.items():
            self.seconds[stage] += taken
        return outcomes


class _Worker(Child):
    """A worker process, started when first needed and again after a page has killed it."""

    def __init__(self, rules: Rules) -> None:
        super().__init__("mickle.data.workers", rules.model_dump_json().encode() + b"\n")

    def process_page(self, raw: RawPage) -> Answer:
        answer = self.ask(lambda stream: send(stream, raw))
        if isinstance(answer, bytes):
            if answer.startswith(b'["'):
                raise errors.read(answer)
            return read_answer(answer)
        if answer > 0 and not self.ended:  # no page's doing: pages are ended by signals
            raise MickleError(
                f"a worker process failed with exit code {answer}", todo="run again with --workers 1 --debug"
            )
        cause = "ran out of time" if answer == -signal.SIGPROF else ended_by(answer)
        return [removed_raw(raw, cause, float(len(raw.content)), "extraction")], {}


def send(stream: IO[bytes], raw: RawPage) -> None:
    """Writes a page to a worker."""
    head = {**vars(raw), "content": len(raw.content)}
    stream.write(json.dumps(head).encode() + b"\n" + raw.content)


def receive(stream: IO[bytes]) -> RawPage | None:
    """Reads a page in a worker; None at the end."""
    line = stream.readline()
    if not line:
        return None
    head = json.loads(line)
    return RawPage(**head | {"content": stream.read(head["content"])})


KINDS = {"Page": Page, "Removed": Removed, "Skipped": Skipped}


def read_answer(line: bytes) -> Answer:
    """The worker's answer."""
    outcomes, seconds = json.loads(line)
    return [KINDS[kind](**fields) for kind, fields in outcomes], seconds


def write_answer(answer: Answer) -> bytes:
    """The line that :func:`read_answer` reads."""
    outcomes, seconds = answer
    return json.dumps([[[type(o).__name__, asdict(o)] for o in outcomes], seconds]).encode() + b"\n"


def _prepare(rules: Rules) -> bytes:
    """Takes a page through every stage, so that no page's time goes into loading and bad settings are found; what to
    say first.
    """
    text = "The language model unpacks itself into a temporary file and the reader compiles what it needs. " * 20
    page = RawPage("", "", "html", f"<main><p>{text}</p><p>{text}</p></main>".encode())
    try:
        extract(page, rules.largest_page, rules.extraction)
        for _, stage in page_stages(rules):
            stage(Page("", "", "en", text))
    except (OSError, MemoryError) as error:
        return f"{type(error).__name__}: {error}\n".encode()
    except Exception as error:
        return errors.written(error).encode() + b"\n"
    return READY


def serve(rules: Rules) -> None:
    """The worker: pages from standard input, outcomes to standard output, one at a time."""
    output = answers()
    allow(0, MEMORY_BYTES)
    output.write(said := _prepare(rules))
    output.flush()
    if said != READY:
        return
    while (raw := receive(sys.stdin.buffer)) is not None:
        allow(rules.page_seconds, MEMORY_BYTES)
        seconds: dict[str, float] = {}
        try:
            answer = write_answer((refine_page(raw, rules, seconds), seconds))
        except MemoryError:
            gone = removed_raw(raw, "ran out of memory", float(len(raw.content)), "extraction")
            answer = write_answer(([gone], seconds))
        except Exception as error:
            answer = errors.written(error).encode() + b"\n"
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write(answer)
        output.flush()


if __name__ == "__main__":
    serve(validate(Rules, json.loads(sys.stdin.buffer.readline())))
