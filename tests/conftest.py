"""Fixtures that several test files share."""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("untimed", deadline=None)  # no test measures time
hypothesis.settings.load_profile("untimed")

sys.path.insert(0, str(Path(__file__).parent))  # for `faults`

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job ignores what tests of Ctrl-C send
    signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when Triton is imported, which peers in other tests do too


@pytest.fixture(autouse=True, scope="module")
def old_objects_are_not_looked_over_again() -> None:
    """A worker of the tests gathers millions of objects; every run that gives memory back would look at all of them."""
    gc.freeze()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Two toy verbs, `write` and `count`, known to the command line while the test runs."""
    from mickle import verbs

    spec = importlib.util.spec_from_file_location("mickle_toy", Path(__file__).parent / "toy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "mickle_toy", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(verbs.STEPS, "write", ("mickle_toy:Write", "words"))
    monkeypatch.setitem(verbs.STEPS, "count", ("mickle_toy:Count", "letters"))
    return module


@pytest.fixture
def in_bounds() -> Callable[[Callable[[], object]], str]:
    """Runs `work` in a process that the kernel ends after three seconds of work, with less than 200 MB of memory more
    than this one has, and gives what it returns or raises as text.
    """

    def run(work: Callable[[], object]) -> str:
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            resource.setrlimit(resource.RLIMIT_CPU, (3, 3))
            try:
                said = str(work())
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(writing, said.encode()[:4000])
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as stream:
            said = stream.read().decode()
        _, status, used = os.wait4(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "it was ended by its limit of three seconds"
        assert used.ru_maxrss * 1024 - before < 200 << 20
        return said

    return run


@pytest.fixture
def bounded(in_bounds: Callable[[Callable[[], object]], str]) -> Callable[[Callable[[], object]], str]:
    """Runs what must end in an error for a person, in bounds; its words, in which nothing is that a terminal obeys."""

    def refused(work: Callable[[], object]) -> str:
        said = in_bounds(work)
        kind, _, words = said.partition(": ")
        assert kind in ("UsageError", "NumericError", "SpoiledError"), said
        assert len(words.splitlines()) <= 4
        assert len(words) < 1500
        assert words.replace("\n", "").isprintable(), words
        return words

    return refused


WORDS = "The reader opens the file and returns its {0} lines, or None where there is no file called {0}. "


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `pages` of text, a `corpus` made of them and a `model` trained for two steps; made offline."""
    import mickle

    folder = tmp_path_factory.mktemp("made")
    (folder / "pages").mkdir()
    for number in range(40):
        text = "".join(WORDS.format(f"{number}{letter}") for letter in "abcdef")
        (folder / "pages" / f"{number}.txt").write_text(text)

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"mickle wanted the network: {address}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        source = {"kind": "files", "path": folder / "pages"}
        corpus = mickle.curate(source=source, workers=1, out=folder / "corpus")
        mickle.pretrain(data=corpus, size=40_000, steps=2, out=folder / "model")
    return folder
