"""Pages through extraction and the rules for one page, in worker processes that a hostile page may kill but
not stop.

A worker is this file run as a program: it takes a page (one line of JSON, then the bytes) and answers one
line of JSON. Nothing is pickled and nobody's ``__main__`` is imported again. Results come in the order of the
pages, whatever the number of workers. A page has a CPU time limit kept by the kernel, which ends even a loop
inside C code.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO

from mickle.data.filters import apply, identify_language, language_of, long_enough
from mickle.data.pages import RawPage, Skipped, extract, removed_raw
from mickle.data.records import Page, Removed
from mickle.errors import MickleError, ResourceError

Outcome = Page | Removed | Skipped

AHEAD = 4  # pages in flight per worker


@dataclass(frozen=True)
class Rules:
    """Settings of what happens to one page on its own."""

    largest_page: int = 10 << 20
    languages: tuple[str, ...] = ("en",)
    language_threshold: float = 0.65
    minimum_characters: int = 200
    page_seconds: float = 20.0
    memory_bytes: int = 3 << 30


def process(raw: RawPage, rules: Rules) -> Outcome:
    """Extraction, length, language."""
    page = extract(raw, rules.largest_page)
    if isinstance(page, Skipped):
        return page
    language = partial(identify_language, languages=rules.languages, threshold=rules.language_threshold)
    length = partial(long_enough, minimum=rules.minimum_characters)
    return next(apply([page], length, language))


def process_all(
    found: Iterable[RawPage | Removed | Skipped], rules: Rules, workers: int
) -> Iterator[Outcome]:
    """:func:`process` of every page, in order; what was removed or skipped before passes through."""
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    crew = [_Worker(rules) for _ in range(workers)]
    for worker in crew:
        idle.put(worker)

    def task(raw: RawPage) -> Outcome:
        worker = idle.get()
        try:
            return worker.process(raw)
        finally:
            idle.put(worker)

    pending: deque[Outcome | Future[Outcome]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for item in found:
            pending.append(pool.submit(task, item) if isinstance(item, RawPage) else item)
            while len(pending) > AHEAD * workers:
                yield _result(pending.popleft())
        while pending:
            yield _result(pending.popleft())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in crew:
            worker.end()
        pool.shutdown(wait=True)
        for worker in crew:  # one that a thread was just starting
            worker.end()


def _result(item: Outcome | Future[Outcome]) -> Outcome:
    return item.result() if isinstance(item, Future) else item


class _Worker:
    """A worker process, started when first needed and again after a page has killed it."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.child: subprocess.Popen[bytes] | None = None
        self.ended = False

    def process(self, raw: RawPage) -> Outcome:
        if self.child is None:
            self._start()
        assert self.child is not None
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        try:
            send(self.child.stdin, raw)
            answer = self.child.stdout.readline()
        except OSError:
            answer = b""
        if answer.endswith(b"\n"):
            return read_outcome(answer)
        return removed_raw(raw, self._cause_of_death(), float(len(raw.content)), "extraction")

    def _start(self) -> None:
        import mickle

        root = str(Path(mickle.__file__).parent.parent)
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        self.child = subprocess.Popen(
            [sys.executable, "-P", "-m", "mickle.data.workers", json.dumps(asdict(self.rules))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        assert self.child.stdout is not None
        first = self.child.stdout.readline()
        if first != b"ready\n" and not self.ended:
            raise ResourceError(
                f"a worker process could not start: {first.decode(errors='replace').strip() or 'it ended at once'}",
                todo="see that memory and the disk of temporary files are free and run the same command again",
            )

    def _cause_of_death(self) -> str:
        assert self.child is not None
        code = self.child.wait()
        self._close()
        if code == -signal.SIGPROF:
            return "ran out of time"
        if code > 0 and not self.ended:  # no page's doing: pages are ended by signals
            raise MickleError(
                f"a worker process failed with exit code {code}", todo="run again with --workers 1 --debug"
            )
        return f"ended by signal {-code} ({signal.strsignal(-code)})"

    def _close(self) -> None:
        if self.child is not None:
            for stream in (self.child.stdin, self.child.stdout):
                try:
                    if stream is not None:
                        stream.close()
                except OSError:  # unwritten bytes for a process that is gone
                    pass
            self.child = None

    def end(self) -> None:
        self.ended = True
        if self.child is not None:
            self.child.kill()
            self.child.wait()


def send(stream: IO[bytes], raw: RawPage) -> None:
    """Writes a page to a worker."""
    head = {
        "url": raw.url,
        "domain": raw.domain,
        "form": raw.form,
        "charset": raw.charset,
        "bytes": len(raw.content),
    }
    stream.write(json.dumps(head).encode() + b"\n" + raw.content)
    stream.flush()


def receive(stream: IO[bytes]) -> RawPage | None:
    """Reads a page in a worker; None at the end."""
    line = stream.readline()
    if not line:
        return None
    head = json.loads(line)
    content = stream.read(head.pop("bytes"))
    return RawPage(content=content, **head)


KINDS = {"Page": Page, "Removed": Removed, "Skipped": Skipped}


def read_outcome(line: bytes) -> Outcome:
    """The worker's answer."""
    kind, fields = json.loads(line)
    return KINDS[kind](**fields)


def _prepare() -> bytes:
    """Loads what every page needs; the line to say first."""
    try:
        language_of("the language model unpacks itself into a temporary file")
    except (OSError, MemoryError) as error:
        return f"{type(error).__name__}: {error}\n".encode()
    return b"ready\n"


def serve(rules: Rules) -> None:
    """The worker: pages from standard input, outcomes to standard output, one at a time."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    resource.setrlimit(resource.RLIMIT_AS, (rules.memory_bytes, rules.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    answers.write(_prepare())
    answers.flush()
    while (raw := receive(sys.stdin.buffer)) is not None:
        signal.setitimer(signal.ITIMER_PROF, rules.page_seconds)
        try:
            outcome = process(raw, rules)
        except MemoryError:
            outcome = removed_raw(raw, "ran out of memory", float(len(raw.content)), "extraction")
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps([type(outcome).__name__, asdict(outcome)]).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    settings["languages"] = tuple(settings.get("languages", Rules.languages))
    serve(Rules(**settings))
