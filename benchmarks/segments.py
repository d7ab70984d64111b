"""Arms that train in processes of their own, and run short segments in turn when the parent asks.

So a machine that slows down slows all of them, and each pays for its own imports, threads and memory.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WARM_UP_STEPS = 3


class Gate:
    """Lets the training loop of this process run only the segments that the parent asks for.

    After the warm-up and after each segment it writes a line and waits for the next number of steps; 0 ends.
    """

    def __init__(self, answers: int) -> None:
        self.answers = os.fdopen(answers, "w", buffering=1)
        self.left = WARM_UP_STEPS
        self.begun = time.perf_counter(), time.process_time()

    def step_done(self) -> bool:
        """Count a finished step; True when training is to end."""
        self.left -= 1
        if self.left:
            return False
        self.tell(wall=time.perf_counter() - self.begun[0], processor=time.process_time() - self.begun[1])
        self.left = int(sys.stdin.readline() or 0)
        self.begun = time.perf_counter(), time.process_time()
        return self.left == 0

    def tell(self, **values: Any) -> None:
        """One line to the parent."""
        self.answers.write(json.dumps(values) + "\n")


class Arm:
    """A process that trains on demand: ``script`` started again with ``--arm NAME``."""

    def __init__(self, script: str, name: str, shape: str, precision: str, weights: Path, threads: int) -> None:
        answers, ours = os.pipe()
        command = [sys.executable, script, "--arm", name, "--shapes", shape, "--precisions", precision]
        command += ["--weights", str(weights), "--answers", str(ours), "--threads", str(threads)]
        # All arms have the same number of threads; nothing else differs from a user's shell.
        environment = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[ours], env=environment, text=True
        )  # fmt: skip
        os.close(ours)
        self.lines, self.name = os.fdopen(answers), name

    def ask(self, steps: int) -> None:
        """Let it run; 0 ends it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Its next line."""
        line = self.lines.readline()
        if not line:
            raise SystemExit(f"the {self.name} arm ended early (exit code {self.process.wait()})")
        found: dict[str, Any] = json.loads(line)
        return found


@contextmanager
def beside(processes: int) -> Iterator[None]:
    """As many other processes that never rest, as long as this lasts: people's machines are not quiet."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def alternate(arms: dict[str, Arm], steps: int, pairs: int) -> tuple[dict[str, list[dict[str, float]]], dict[str, Any]]:
    """Segments of ``steps`` of all arms in turn, the order turned around in every other round: each arm's seconds, and
    what it says at its end.
    """
    for arm in arms.values():
        arm.hear()  # the warm-up
    segments: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    for pair in range(pairs):
        for name in list(arms) if pair % 2 == 0 else list(arms)[::-1]:
            arms[name].ask(steps)
            segments[name].append(arms[name].hear())
    ends = {}
    for name, arm in arms.items():
        arm.ask(0)
        ends[name] = arm.hear()
        arm.process.wait()
    return segments, ends
