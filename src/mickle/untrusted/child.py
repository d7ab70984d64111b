"""A program of Mickle's own in a process beside this one, that a hostile text may kill but not stop.

It is a module run as a program. It says ``ready`` once it can work, or the error for which it cannot, then reads what
it is asked from its standard input and answers each time with one line. Limits are its own business: it asks the kernel
to end it (:func:`allow`).
"""

from __future__ import annotations

import atexit
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

from mickle import errors
from mickle.errors import ResourceError

READY = b"ready\n"
MEMORY_BYTES = 192 << 20  # address space of a program that needs little
_LOCK = threading.Lock()


class Child:
    """The process of ``module``, started when first asked and again after a question has ended it.

    greeting: written to every new process before it says that it is ready.
    """

    def __init__(self, module: str, greeting: bytes = b"") -> None:
        self.module, self.greeting = module, greeting
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = False

    def ask(self, write: Callable[[IO[bytes]], object]) -> bytes | int:
        """The line that answers what ``write`` writes, or the exit code of the process that died of it: below zero
        the signal that ended it.
        """
        process = self.process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            write(process.stdin)
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = b""
        except BaseException:  # Ctrl-C: an answer that comes later would be taken for that of the next question
            self._kill()
            self._close()
            raise
        if answer.endswith(b"\n"):
            return answer
        code = process.wait()
        self._close()
        return code

    def end(self) -> None:
        """Ends the process, whatever it is at; it is not started again for good."""
        self.ended = True
        self._kill()

    def _kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        import mickle

        root = str(Path(mickle.__file__).parent.parent)
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "NUMBA_NUM_THREADS": "1",
        }
        self.process = process = subprocess.Popen(
            # -P: the working folder may not shadow a module's name.
            [sys.executable, "-P", "-m", self.module],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):  # it is gone already, and the next line tells
            process.stdin.write(self.greeting)
            process.stdin.flush()
        first = process.stdout.readline()
        if first.startswith(b"["):
            process.wait()
            self._close()
            raise errors.read(first)
        if first != READY and not self.ended:
            raise ResourceError(
                f"a worker process could not start: {first.decode(errors='replace').strip() or 'it ended at once'}",
                todo="see that memory and the disk of temporary files are free and run the same command again",
            )
        return process

    def _close(self) -> None:
        if self.process is not None:
            for stream in filter(None, (self.process.stdin, self.process.stdout)):
                with suppress(OSError):  # unwritten bytes for a process that is gone
                    stream.close()
            self.process = None


def ask(module: str, question: Any) -> tuple[Any, str]:
    """The answer of :func:`serve` in ``module``, a child of this process; or why that died of the question."""
    line = json.dumps(question).encode() + b"\n"
    with _LOCK:
        answer = _child(module, os.getpid()).ask(lambda stream: stream.write(line))
    if isinstance(answer, bytes):
        return json.loads(answer), ""
    return None, "it runs for too long" if answer == -signal.SIGPROF else f"its process was {ended_by(answer)}"


@cache
def _child(module: str, owner: int) -> Child:
    """One for each process: one that was forked off must not read another's answers."""
    child = Child(module)
    atexit.register(child.end)
    return child


def ended_by(code: int) -> str:
    """How a process died that a signal ended, by its exit code."""
    return f"ended by signal {-code} ({signal.strsignal(-code)})"


def answers() -> IO[bytes]:
    """In the program: where it answers. From here on only its parent and its limits end it, without a core file."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not look like an answer
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end ends this
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    return output


def allow(seconds: float, memory: int) -> None:
    """In the program: from here on it is ended after so much processor time (0: not at all), and gets no more address
    space than ``memory`` bytes.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


def serve(answer: Callable[[Any], Any], first: Any) -> None:
    """In the program: a line of JSON in, ``answer`` of it as a line of JSON out, until there is no more.

    ``answer`` sets its own limits. It is asked ``first`` once, so that what is loaded then is no question's time.
    """
    output = answers()
    answer(first)
    said = READY
    while True:
        signal.setitimer(signal.ITIMER_PROF, 0)
        output.write(said)
        output.flush()
        if not (line := sys.stdin.buffer.readline()):
            return
        said = json.dumps(answer(json.loads(line))).encode() + b"\n"
