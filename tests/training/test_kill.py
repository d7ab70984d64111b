"""Nothing that ends a run can cost more than the steps since the last checkpoint (RELIABILITY 1, 2, 4, 5)."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import OPTIMIZERS, classifier, distance, points, steps_saved, train
from torch import nn

from mickle import storage
from mickle.errors import LockedError, ResourceError
from mickle.training import checkpoint
from mickle.training.closure import Closure
from mickle.training.objectives import classification


def fail_calls(patch: pytest.MonkeyPatch, fails: Callable[[int], bool]) -> list[int]:
    """Let the n-th change of the disk fail where ``fails(n)``; the list grows by one with each."""
    calls: list[int] = []

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        calls.append(len(calls) + 1)
        if fails(calls[-1]):
            raise OSError("injected")
        return function(*arguments)

    patch.setattr(storage, "_call", call)
    return calls


@pytest.mark.parametrize("dead", [False, True], ids=["one call fails", "all from then on"])
def test_failure_at_every_disk_call(dead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save step 3 and delete step 1, ended at call n for every n: step 2 or step 3 is whole and chosen.

    With all calls failing from the n-th on, nothing is tidied up: the state of a killed process.
    """
    model = classifier()
    optimizer = OPTIMIZERS["adamw"](model)
    optimizer.step(Closure(model, classification, points(0), step=0))
    before = tmp_path / "before"
    for step in (1, 2):
        checkpoint.save(before, step, model, optimizer, {}, {})

    def save(folder: Path) -> None:
        checkpoint.save(folder, 3, model, optimizer, {}, {})
        checkpoint.prune(folder, 2)

    shutil.copytree(before, tmp_path / "probe")
    with monkeypatch.context() as patch:
        calls = fail_calls(patch, lambda n: False)
        save(tmp_path / "probe")
    total = len(calls)
    assert 30 < total < 90
    for n in range(1, total + 1):
        folder = tmp_path / str(n)
        shutil.copytree(before, folder)
        with monkeypatch.context() as patch:
            fail_calls(patch, lambda m, n=n: m >= n if dead else m == n)
            with pytest.raises(OSError, match="injected"):
                save(folder)
        found, problems = checkpoint.newest(folder)
        assert found is not None
        assert found.step in (2, 3)
        assert problems == []
        checkpoint.save(folder, 4, model, optimizer, {}, {})
        checkpoint.prune(folder, 2)
        assert len(checkpoint.saved(folder)) == 2
        shutil.rmtree(folder)


def in_child(work: Callable[[], object]) -> int:
    """The process id of a fork that does ``work``: torch is imported already, so it starts at once."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except LockedError:
            code = 4
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def ended(pid: int) -> int:
    """The exit code of a child; a negative number is the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_kills_at_random_moments(tmp_path: Path) -> None:
    """Twenty SIGKILLs into runs that save at every step; each run ends with the bytes of one never killed."""
    settings: dict[str, Any] = {"steps": 16, "save_every": 1}
    train(checkpoints=tmp_path / "quiet", **settings)
    expected = storage.hash_file(tmp_path / "quiet" / "step-00000016" / checkpoint.MODEL)
    draw = random.Random(7)
    kills = runs = 0
    while kills < 20:
        runs += 1
        folder = tmp_path / str(runs)
        code = -1
        while code != 0:
            pid = in_child(lambda folder=folder: train(checkpoints=folder, **settings))
            if kills < 20:
                time.sleep(draw.uniform(0.0, 0.3))
                os.kill(pid, signal.SIGKILL)
            code = ended(pid)
            kills += code == -signal.SIGKILL
            assert code in (0, -signal.SIGKILL)
        assert storage.hash_file(folder / "step-00000016" / checkpoint.MODEL) == expected


def test_a_full_disk_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk: one sentence, exit code 3, and later it goes on exactly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        template = nn.Sequential(nn.Linear(4, 4000), nn.Tanh(), nn.Linear(4000, 3))

    def model() -> nn.Module:
        fresh = nn.Sequential(nn.Linear(4, 4000), nn.Tanh(), nn.Linear(4000, 3))
        fresh.load_state_dict(template.state_dict())
        return fresh

    never, _ = train(model=model(), steps=4)
    train(model=model(), steps=4, stop_at=2, checkpoints=tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(ResourceError, match="the disk refused a write") as caught:
            train(model=model(), steps=4, checkpoints=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 3
    assert "MB free" in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    resumed, _ = train(model=model(), steps=4, checkpoints=tmp_path)
    assert distance(never, resumed) == 0.0


def test_too_little_space_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
    with pytest.raises(ResourceError, match=r"not enough disk space: .* needed, .* free"):
        train(steps=2, checkpoints=tmp_path, on_event=lambda event: pytest.fail("it started"))


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    """The second one exits with code 4 at once; when the first is killed, its lock is no obstacle."""
    holder = in_child(lambda: train(steps=10**6, checkpoints=tmp_path, on_event=lambda e: time.sleep(0.01)))
    try:
        while not (tmp_path / ".lock").exists() or not (tmp_path / ".lock").read_text():
            time.sleep(0.005)
        assert ended(in_child(lambda: train(steps=2, checkpoints=tmp_path))) == 4
        with pytest.raises(LockedError, match="another process") as caught:
            train(steps=2, checkpoints=tmp_path)
        assert str(holder) in str(caught.value)
    finally:
        os.kill(holder, signal.SIGKILL)
        ended(holder)
    train(steps=2, checkpoints=tmp_path)
    assert steps_saved(tmp_path) == [2]


def test_sigterm_ends_the_process_with_a_checkpoint(tmp_path: Path) -> None:
    child = in_child(lambda: train(steps=10**6, checkpoints=tmp_path, on_event=lambda e: time.sleep(0.01)))
    while not (tmp_path / ".lock").exists() or not (tmp_path / ".lock").read_text():
        time.sleep(0.005)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    ended(child)
    found, problems = checkpoint.newest(tmp_path)
    assert found is not None
    assert problems == []
