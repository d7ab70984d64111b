"""Numbers that are not finite, and losses that jump, never reach weights or disk (RELIABILITY 19 to 21)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import OPTIMIZERS, classifier, distance, losses, points, steps_saved, train, weights
from torch import Tensor, nn
from torch.optim import Optimizer

from mickle.errors import NumericError
from mickle.events import Event, Saved, Trained, Warned
from mickle.training import checkpoint
from mickle.training.guard import ENOUGH, BadNumbers, LossWatch, first_not_finite
from mickle.training.objectives import Batch, classification
from mickle.training.optimizers import constant

BAD_STEP, BAD_ROW = 7, 2  # the seventh step uses batch 6


class Sour(nn.Module):
    """Passes its input on, but a row that begins with 77 gets one NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return x.index_fill(1, torch.tensor([0]), math.nan).where(x[:, :1] > 50, x)


class Network(nn.Module):
    """A classifier whose last step is sour: the bad row's first feature travels to its first logit."""

    def __init__(self) -> None:
        super().__init__()
        self.body = classifier(dropout=0.2)
        self.last = Sour()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x.clamp(max=5))  # [B, C]
        return self.last(logits + torch.where(x[:, :1] == 77, 1000.0, 0.0))


def poisoned(step: int, since: int = BAD_STEP - 1, until: int = BAD_STEP) -> Batch:
    batch = points(step)
    if since <= step < until:
        batch["inputs"][BAD_ROW, 0] = 77
    return batch


def bad_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    total, count = classification(model, {**batch, "inputs": batch["inputs"].clamp(max=5)})
    return total + torch.where((batch["inputs"] == 77).any(), math.inf, 0.0), count


def bad_gradient(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The loss is right, but the square root of zero has an infinite slope."""
    total, count = classification(model, {**batch, "inputs": batch["inputs"].clamp(max=5)})
    weight = next(model.parameters())[0, 0]
    if (batch["inputs"] == 77).any():
        total = total + (weight - weight.detach()).abs().sqrt()
    return total, count


DATA_FAULTS: dict[str, dict[str, Any]] = {
    "loss": {"objective": bad_loss},
    "gradient": {"objective": bad_gradient},
    "logit": {},
}
SAID = {
    "loss": "the loss is inf",
    "gradient": "the gradient is not finite: body.0.weight",
    "logit": "the loss is nan",
    "weight": "not finite: body.3.weight",
    "state": "not finite: body.0.weight/exp_avg",
}


def run(fault: str, policy: str, folder: Path, **options: Any) -> tuple[nn.Module, list[Event]]:
    """24 steps with one fault at step 7."""
    built: list[Optimizer] = []
    model = Network()
    events: list[Event] = []
    done = []

    def batches(step: int) -> Batch:
        if step == BAD_STEP - 1 and not done:
            done.append(True)
            with torch.no_grad():
                if fault == "weight":
                    model.body[3].weight[0, 0] = math.inf
                if fault == "state":
                    built[0].state[model.body[0].weight]["exp_avg"][0, 0] = math.nan
        return poisoned(step) if fault in DATA_FAULTS else points(step)

    def build(model: nn.Module) -> Optimizer:
        built.append(OPTIMIZERS["adamw"](model))
        return built[0]

    settings = {"batches": batches, "schedule": constant}
    settings |= {"checkpoints": folder, "save_every": 3, "keep": 9, "on_bad_numbers": policy}
    settings |= {**DATA_FAULTS.get(fault, {}), **options}
    try:
        train(model=model, optimizer=build, on_event=events.append, **settings)
    except NumericError as error:
        error.seen = model, events  # type: ignore[attr-defined]
        raise
    return model, events


@pytest.mark.parametrize("fault", SAID)
def test_stop_before_the_update(fault: str, tmp_path: Path) -> None:
    with pytest.raises(BadNumbers) as caught:
        run(fault, "stop", tmp_path)
    error = caught.value
    assert error.exit_code == 5
    assert SAID[fault] in str(error)
    assert f"step {BAD_STEP}" in str(error)
    assert "batch 6" in str(error)
    model, events = error.seen  # type: ignore[attr-defined]
    # What was last good is whole on disk; an update would have moved the weights.
    assert steps_saved(tmp_path) == [3, 6]
    good = Network()
    checkpoint.load_weights(tmp_path / "step-00000006", good)
    if fault == "weight":
        good.body[3].weight.data[0, 0] = model.body[3].weight.data[0, 0] = 0.0
    assert distance(model, good) == 0.0
    # The log has the true loss of the bad step.
    last = [e for e in events if isinstance(e, Trained)][-1]
    assert last.step == BAD_STEP
    assert math.isfinite(last.loss) == (fault in ("gradient", "state"))


@pytest.mark.parametrize("fault", ["loss", "logit"])
def test_the_report_names_the_row(fault: str, tmp_path: Path) -> None:
    with pytest.raises(BadNumbers) as caught:
        run(fault, "stop", tmp_path, accumulate=2)
    assert caught.value.rows == (BAD_ROW,)
    assert caught.value.step == BAD_STEP - 1


def test_the_report_names_the_first_bad_module(tmp_path: Path) -> None:
    with pytest.raises(BadNumbers) as caught:
        run("logit", "stop", tmp_path)
    assert caught.value.module == "last"
    with pytest.raises(BadNumbers) as caught:
        run("weight", "stop", tmp_path / "weight")
    assert caught.value.module == "body.3"


@pytest.mark.parametrize("fault", DATA_FAULTS)
def test_skip_and_back_leave_out_the_same_batch(fault: str, tmp_path: Path) -> None:
    """Both end as a run that never had batch 6, from whichever checkpoint "back" starts again."""
    skipped, events = run(fault, "skip", tmp_path / "skip")
    assert [e.message for e in events if isinstance(e, Warned) and "skipped, 1 so far" in e.message]
    assert len(losses(events)) == 24
    for save_every in (3, 4):
        back, told = run(fault, "back", tmp_path / f"back-{save_every}", save_every=save_every)
        assert distance(skipped, back) == 0.0
        assert any("back to step" in e.message for e in told if isinstance(e, Warned))
    assert first_not_finite(weights(skipped).items()) is None


@pytest.mark.parametrize("fault", ["weight", "state"])
def test_back_restores_a_spoiled_model(fault: str, tmp_path: Path) -> None:
    """Saved every 4 steps: the fault comes after the checkpoint of step 4, which is gone back to."""
    model, events = run(fault, "back", tmp_path, save_every=4)
    assert first_not_finite(weights(model).items()) is None
    assert [e.step for e in events if isinstance(e, Trained)][6:8] == [7, 5]
    left_out, _ = run("logit", "skip", tmp_path / "other")
    assert distance(model, left_out) == 0.0


@pytest.mark.parametrize("fault", ["weight", "state"])
def test_skip_stops_after_three_in_a_row(fault: str, tmp_path: Path) -> None:
    with pytest.raises(BadNumbers) as caught:
        run(fault, "skip", tmp_path, save_every=5)
    assert caught.value.step == BAD_STEP - 1 + 2
    assert steps_saved(tmp_path) == [5]


def test_back_stops_when_it_leads_nowhere(tmp_path: Path) -> None:
    with pytest.raises(BadNumbers) as caught:
        run("logit", "back", tmp_path, batches=lambda step: poisoned(step, until=99))
    assert caught.value.step == BAD_STEP - 1 + 2


def test_back_needs_something_to_return_to(tmp_path: Path) -> None:
    """A bad first batch: the weights that the run began with were saved."""
    _, events = run("logit", "back", tmp_path, batches=lambda step: poisoned(step, 0, 1))
    assert isinstance(events[2], Saved)
    assert events[1].step == 0


@pytest.mark.parametrize("policy", ["skip", "back"])
def test_resume_remembers_what_was_left_out(policy: str, tmp_path: Path) -> None:
    never, _ = run("logit", policy, tmp_path / "never")
    run("logit", policy, tmp_path / "stopped", stop_at=10)
    resumed, _ = run("logit", policy, tmp_path / "stopped")
    assert distance(never, resumed) == 0.0


def test_a_checkpoint_is_scanned(tmp_path: Path) -> None:
    model = classifier()
    optimizer = OPTIMIZERS["adamw"](model)
    with torch.no_grad():
        model[3].bias[1] = math.nan
    with pytest.raises(NumericError, match=r"a weight is not finite: 3\.bias"):
        checkpoint.save(tmp_path, 1, model, optimizer, {}, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_entry_anywhere_is_found(bad: float, dtype: torch.dtype) -> None:
    for place in (0, 1, 37, 4095, 4999):
        tensors = {"whole": torch.full((7,), 3e38, dtype=dtype), "counts": torch.ones(3, dtype=torch.int64)}
        tensors |= {"none": torch.ones(0), "spoiled": torch.randn(5000).to(dtype)}
        assert first_not_finite(tensors.items()) is None
        tensors["spoiled"][place] = bad
        assert first_not_finite(tensors.items()) == "spoiled"


def test_watch_needs_two_in_a_row() -> None:
    watch = LossWatch([1.0, 3.0] * ENOUGH)  # mean 2, deviation 1: the bound is 8
    assert watch.bound() == pytest.approx(8.0)
    assert not watch.spikes(8.0 - 1e-9)
    assert not watch.spikes(100.0)
    assert not watch.spikes(2.0)
    assert not watch.spikes(100.0)
    assert watch.spikes(100.0)


def test_watch_is_silent_before_it_knows_enough() -> None:
    watch = LossWatch([1.0] * (ENOUGH - 1))
    assert not watch.spikes(1e6)


def test_ripples_of_a_flat_loss_are_no_spikes() -> None:
    for level, ripple in ((3.0, 0.15), (0.001, 0.05)):
        watch = LossWatch([level] * ENOUGH)
        assert not any(watch.spikes(level + ripple) for _ in range(5))


def test_watch_goes_on_from_its_state() -> None:
    watch = LossWatch([1.0, 3.0] * ENOUGH)
    watch.spikes(100.0)
    assert LossWatch(**watch.state()).spikes(100.0)


def test_healthy_runs_raise_no_alarm() -> None:
    """20 runs of 1,000 steps whose loss falls as language models' do, with noise of light and heavy tails."""
    draw = np.random.default_rng(0)
    alarms = 0
    for number in range(20):
        steps = np.arange(1000)
        level = 2.5 + 8.0 / (1 + steps / 5) ** draw.uniform(0.4, 0.9)
        noise = draw.standard_t(4, 1000) if number % 2 else draw.standard_normal(1000)
        watch = LossWatch()
        alarms += sum(watch.spikes(loss) for loss in level * (1 + draw.uniform(0.005, 0.08) * noise))
    assert alarms <= 1


@pytest.mark.parametrize("policy", ["stop", "skip", "back"])
def test_a_spike_is_stopped_before_the_second_update(policy: str, tmp_path: Path) -> None:
    """From batch 40 the labels are turned and the inputs huge; "back" leaves out what "skip" only skips."""

    def spiking(step: int) -> Batch:
        batch = points(step)
        if step in (40, 41):
            batch = {"inputs": batch["inputs"] * 100, "labels": (batch["labels"] + 1) % 3}
        return batch

    options: dict[str, Any] = {"batches": spiking, "steps": 60, "schedule": constant, "checkpoints": tmp_path}
    options |= {"save_every": 20, "on_bad_numbers": policy}
    if policy == "stop":
        with pytest.raises(BadNumbers, match=r"step 42: the loss jumped to .* was the limit"):
            train(**options)
        assert steps_saved(tmp_path) == [20, 40]
        return
    _, events = train(**options)
    assert sum(isinstance(e, Warned) for e in events) == 1
    _, unwatched = train(**{**options, "checkpoints": tmp_path / "unwatched", "watch_loss": False})
    assert not any(isinstance(e, Warned) for e in unwatched)
    assert [e.step for e in events if isinstance(e, Trained)][-1] == 60
    assert len(losses(events)) == (60 if policy == "skip" else 61)
