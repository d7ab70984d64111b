"""A run that is stopped and resumed has, bit for bit, the weights of one that never was (RELIABILITY 9 and 10)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import (
    CASES,
    FORWARD_ONLY,
    GRADIENT_CASES,
    OPTIMIZERS,
    classifier,
    distance,
    losses,
    points,
    steps_saved,
    still,
    train,
)

from mickle.errors import UsageError
from mickle.events import Progressed, Trained
from mickle.training import checkpoint
from mickle.training.optimizers import Schedule

STOPS = (3, 10, 13, 20)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("optimizer", sorted({*OPTIMIZERS, *FORWARD_ONLY} - {"sophia_paper"}))
@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_stopped_four_times_equals_never(case: str, optimizer: str, accumulate: int, tmp_path: Path) -> None:
    never, told = train(case, optimizer, accumulate=accumulate)
    told_again = []
    for stop in (*STOPS, None):
        torch.manual_seed(stop or 99)  # what else the process drew must not matter
        resumed, events = train(case, optimizer, accumulate=accumulate, stop_at=stop, checkpoints=tmp_path)
        told_again += losses(events)
    assert distance(never, resumed) == 0.0
    assert told_again == losses(told)
    assert distance(never, CASES[case].model()) > 0.0


def test_a_run_that_is_over_does_nothing(tmp_path: Path) -> None:
    first, _ = train(steps=4, checkpoints=tmp_path)
    again, events = train(steps=4, checkpoints=tmp_path)
    assert distance(first, again) == 0.0
    assert losses(events) == []
    assert Progressed(4, "going on from a checkpoint") in events


def test_counters_go_on(tmp_path: Path) -> None:
    _, whole = train(case="next_token", steps=6)
    train(case="next_token", steps=6, stop_at=3, checkpoints=tmp_path)
    _, rest = train(case="next_token", steps=6, checkpoints=tmp_path)
    last = [e for e in whole if isinstance(e, Trained)][-1]
    last_resumed = [e for e in rest if isinstance(e, Trained)][-1]
    assert last_resumed.tokens == last.tokens == 6 * 5 * 10
    assert last_resumed.learning_rate == last.learning_rate


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"optimizer": "sgd"}, "optimizer.kind: 'AdamW' -> 'SGD'"),
        ({"schedule": Schedule(floor=0.5)}, "schedule.floor: 0.05 -> 0.5"),
        ({"clip_norm": 0.5}, "clip_norm: 1.0 -> 0.5"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"precision": "bfloat16"}, "precision: 'float32' -> 'bfloat16'"),
        ({"identity": {"data": "b"}}, "given.data: 'a' -> 'b'"),
        ({"identity": {"data": "a", "size": 3}}, "given.size: '(not set)' -> 3"),
    ],
)
def test_another_run_is_refused(changed: dict[str, Any], named: str, tmp_path: Path) -> None:
    train(steps=2, checkpoints=tmp_path, identity={"data": "a"})
    with pytest.raises(UsageError, match="another run") as caught:
        train(steps=4, checkpoints=tmp_path, **{"identity": {"data": "a"}, **changed})
    assert named in str(caught.value)


def test_all_differences_are_listed(tmp_path: Path) -> None:
    train(steps=2, checkpoints=tmp_path)
    with pytest.raises(UsageError, match=r"clip_norm: .*; seed: "):
        train(steps=4, checkpoints=tmp_path, seed=3, clip_norm=None)


def test_length_saving_and_accumulation_may_change(tmp_path: Path) -> None:
    train(steps=2, checkpoints=tmp_path)
    train(steps=4, checkpoints=tmp_path, save_every=1, keep=3, accumulate=2, evaluate=lambda _: {"x": 0.0})
    assert steps_saved(tmp_path) == [2, 3, 4]


def test_a_changed_learning_rate_is_another_run(tmp_path: Path) -> None:
    model = classifier()
    train(model=model, steps=2, checkpoints=tmp_path, optimizer="sophia_g")
    with pytest.raises(UsageError, match="gamma"):
        train(steps=4, checkpoints=tmp_path, optimizer="sophia_paper")


def test_missing_optimizer_is_refused(tmp_path: Path) -> None:
    train(steps=4, save_every=2, checkpoints=tmp_path)
    (tmp_path / "step-00000004" / checkpoint.OPTIMIZER).unlink()
    with pytest.raises(UsageError, match="no optimizer state") as caught:
        train(steps=6, checkpoints=tmp_path)
    assert "step-00000004" in str(caught.value)


def test_another_model_is_refused(tmp_path: Path) -> None:
    train(steps=2, checkpoints=tmp_path)
    wider = torch.nn.Sequential(torch.nn.Linear(4, 9), torch.nn.Tanh(), torch.nn.Linear(9, 3))
    with pytest.raises(UsageError, match="does not fit the model: 0.bias is \\[8\\]"):
        train(model=wider, steps=4, checkpoints=tmp_path)


def test_the_generator_of_the_caller_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(steps=2, batches=points)
    assert torch.equal(torch.rand(3), expected)


def test_another_split_of_the_batches_goes_on_along_the_same_path(tmp_path: Path) -> None:
    """RELIABILITY 11: stopped with one micro-batch, resumed with three; float32 rounding is all that differs."""
    _, told = train("next_token", model=still("next_token"), steps=12)
    train("next_token", model=still("next_token"), steps=12, stop_at=5, checkpoints=tmp_path)
    _, rest = train("next_token", model=still("next_token"), steps=12, checkpoints=tmp_path, accumulate=3)
    assert losses(rest) == pytest.approx(losses(told)[5:], rel=1e-6)
