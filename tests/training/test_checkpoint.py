"""Checkpoints: every bit comes back, a torn one is noticed and passed over (RELIABILITY 3 and 6)."""

from __future__ import annotations

import os
import random
import shutil
import stat
from pathlib import Path

import pytest
import torch
from tiny_training import CASES, OPTIMIZERS, classifier, decoder, distance, steps_saved, train
from torch import nn

from mickle import storage
from mickle.errors import UsageError
from mickle.events import Warned
from mickle.training import checkpoint
from mickle.training.closure import Closure
from mickle.training.objectives import next_token
from mickle.training.optimizers import AdamW, build_optimizer


def flat(value: object, prefix: str = "") -> dict[str, object]:
    """Every leaf of nested state, tensors as (dtype, numbers)."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}/{key}").items()}
    if isinstance(value, list):
        return {k: v for i, inner in enumerate(value) for k, v in flat(inner, f"{prefix}/{i}").items()}
    if isinstance(value, torch.Tensor):
        return {prefix: (value.dtype, value.tolist())}
    return {prefix: value}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_comes_back_bit_for_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Sophia's counter and its float32 averages of bfloat16 weights included."""
    model = decoder(dropout=0.0).to(dtype)
    optimizer = OPTIMIZERS[name](model)
    for step in range(6):
        optimizer.step(Closure(model, next_token, CASES["next_token"].batches(step), step=step))
    checkpoint.save(tmp_path, 6, model, optimizer, {"tokens": 5}, {"size": (1, 2)})
    found, problems = checkpoint.newest(tmp_path)
    assert problems == []
    assert found is not None
    assert (found.step, found.counters, found.identity) == (6, {"tokens": 5}, {"size": [1, 2]})
    other = decoder(dropout=0.0).to(dtype)
    fresh = OPTIMIZERS[name](other)
    checkpoint.restore(found, other, fresh)
    assert distance(model, other) == 0.0
    assert flat(fresh.state_dict()) == flat(optimizer.state_dict())
    assert flat(fresh.state_dict()) != flat(OPTIMIZERS[name](decoder().to(dtype)).state_dict())


def test_tied_weights_and_buffers(tmp_path: Path) -> None:
    """A tensor under two names is written once, and is one tensor again afterwards; buffers come along."""

    class Tied(nn.Module):
        def __init__(self, fill: float) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 2)
            self.head = nn.Linear(2, 3, bias=False)
            self.head.weight = self.table.weight
            self.norm = nn.BatchNorm1d(2)
            nn.init.constant_(self.table.weight, fill)
            self.norm.running_mean.fill_(fill)

    one, other = Tied(1.5), Tied(0.0)
    checkpoint.save(tmp_path, 1, one, build_optimizer(AdamW(), one), {}, {})
    checkpoint.load_weights(tmp_path / "step-00000001", other)
    assert other.head.weight is other.table.weight
    assert other.head.weight.tolist() == [[1.5, 1.5]] * 3
    assert other.norm.running_mean.tolist() == [1.5, 1.5]
    assert "head.weight" not in storage.load_tensors(tmp_path / "step-00000001" / checkpoint.MODEL)


def test_files_follow_the_umask(tmp_path: Path) -> None:
    train(steps=1, checkpoints=tmp_path)
    umask = os.umask(0)
    os.umask(umask)
    files = list((tmp_path / "step-00000001").iterdir())
    assert {file.name for file in files} == {
        checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE, storage.MANIFEST,
    }  # fmt: skip
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o666 & ~umask}


def test_every_torn_file_is_noticed_and_named(tmp_path: Path) -> None:
    """A page of zeros, 50 cut tails and 200 flipped bits, over all four files."""
    train(case="next_token", steps=2, checkpoints=tmp_path)
    path = tmp_path / "step-00000002"
    draw = random.Random(0)
    files = sorted(path.iterdir())
    for number in range(254):
        file = files[number % 4]
        content = file.read_bytes()
        spoiled = bytearray(content)
        if number < 4:
            page = 4096 * draw.randrange(-(-len(content) // 4096))
            spoiled[page : page + 4096] = bytes(len(spoiled[page : page + 4096]))
        elif number < 54:
            del spoiled[draw.randrange(len(content)) :]
        else:
            spoiled[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(spoiled)
        with pytest.raises(UsageError) as caught:
            checkpoint.load(path)
        if file.name != storage.MANIFEST:
            assert file.name in str(caught.value)
        file.write_bytes(content)
    checkpoint.load(path)


@pytest.mark.parametrize("file", [checkpoint.MODEL, checkpoint.OPTIMIZER, checkpoint.STATE, storage.MANIFEST])
def test_a_torn_checkpoint_is_passed_over_with_one_line(file: str, tmp_path: Path) -> None:
    never, _ = train(steps=9)
    train(steps=9, stop_at=6, save_every=4, checkpoints=tmp_path)
    torn = tmp_path / "step-00000006" / file
    torn.write_bytes(torn.read_bytes()[:-10])
    resumed, events = train(steps=9, checkpoints=tmp_path, keep=1)
    warnings = [e.message for e in events if isinstance(e, Warned)]
    assert len(warnings) == 1
    assert "step-00000006 is not whole" in warnings[0]
    assert file in warnings[0]
    assert distance(never, resumed) == 0.0
    assert steps_saved(tmp_path) == [9]
    assert (tmp_path / "torn-step-00000006").is_dir()


def test_folders_without_a_manifest_are_not_trusted_for_their_number(tmp_path: Path) -> None:
    train(steps=2, checkpoints=tmp_path)
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-00000007")
    (tmp_path / "step-00000007" / storage.MANIFEST).unlink()
    _, events = train(steps=3, checkpoints=tmp_path)
    assert sum(isinstance(e, Warned) for e in events) == 1


def test_when_all_are_torn_nothing_starts_anew(tmp_path: Path) -> None:
    train(steps=4, save_every=2, checkpoints=tmp_path)
    for path in checkpoint.saved(tmp_path):
        (path / checkpoint.MODEL).write_bytes(b"")
    with pytest.raises(UsageError, match="no checkpoint is whole"):
        train(steps=6, checkpoints=tmp_path)
    assert steps_saved(tmp_path) == [2, 4]


def test_the_newest_and_the_best_stay(tmp_path: Path) -> None:
    model = classifier()
    optimizer = OPTIMIZERS["sgd"](model)
    for step in (1, 2, 30, 100_000_001):
        checkpoint.save(tmp_path, step, model, optimizer, {}, {})
    checkpoint.prune(tmp_path, 2, also=1)
    assert steps_saved(tmp_path) == [1, 30, 100_000_001]
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 100_000_001


def test_expected_size_is_near(tmp_path: Path) -> None:
    """The space asked for before the first step: weights and two averages, here within 5 % of the files."""
    model = nn.Linear(300, 300)
    optimizer = OPTIMIZERS["adamw"](model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = checkpoint.save(tmp_path, 1, model, optimizer, {}, {})
    real = sum(file.stat().st_size for file in path.iterdir())
    assert checkpoint.size(model) == pytest.approx(real, rel=0.05)
