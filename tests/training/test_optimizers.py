"""Optimizer settings, parameter groups and schedules."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import pytest
import torch
from tiny_training import decoder
from torch import nn

from mickle import config
from mickle.config import Config
from mickle.errors import UsageError
from mickle.training.optimizers import (
    AdamW,
    OptimizerSettings,
    Schedule,
    Sophia,
    build_optimizer,
    constant,
    decay_groups,
)


class Holder(Config):
    optimizer: OptimizerSettings = AdamW()
    schedule: Schedule = Schedule()


def test_settings_are_a_tagged_union() -> None:
    chosen = config.validate(Holder, {"optimizer": {"kind": "sophia", "gamma": 2.0, "preset": "paper"}})
    assert isinstance(chosen.optimizer, Sophia)
    assert chosen.optimizer.gamma == 2.0
    with pytest.raises(UsageError):
        config.validate(Holder, {"optimizer": {"kind": "sofia"}})
    with pytest.raises(UsageError, match="did you mean 'gamma'"):
        config.validate(Holder, {"optimizer": {"kind": "sophia", "gama": 2.0}})


def test_importing_the_settings_does_not_import_torch() -> None:
    """Help must be quick: the verbs' settings contain these."""
    code = "import sys, mickle.training.optimizers; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (Sophia(), {"betas": (0.9, 0.95), "every": 5, "bias_correction": True, "gamma": 0.05}),
        (Sophia(preset="paper"), {"betas": (0.96, 0.99), "every": 10, "bias_correction": False, "gamma": 0.05}),
        (Sophia(preset="paper", estimator="hutchinson"), {"gamma": 0.01}),
        (Sophia(every=3, gamma=7.0, betas=(0.5, 0.6), bias_correction=False), {"every": 3, "gamma": 7.0}),
        (Sophia(bias_correction=False, betas=(0.5, 0.6)), {"bias_correction": False, "betas": (0.5, 0.6)}),
    ],
)
def test_presets_and_what_overrides_them(settings: Sophia, expected: dict[str, Any]) -> None:
    built = settings.build([{"params": [torch.nn.Parameter(torch.zeros(2))]}], seed=0)
    options = {**built.defaults, "every": built.every}
    assert {name: options[name] for name in expected} == expected


def test_build_adamw() -> None:
    model = decoder()
    optimizer = build_optimizer(AdamW(learning_rate=0.5, betas=(0.1, 0.2), eps=1e-3, weight_decay=0.3), model)
    assert isinstance(optimizer, torch.optim.AdamW)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (0.5, (0.1, 0.2), 1e-3, True)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]


def test_build_sophia() -> None:
    optimizer = build_optimizer(Sophia(learning_rate=0.5, gamma=2.0, weight_decay=0.3), decoder(), seed=4)
    assert type(optimizer).__name__ == "Sophia"
    assert [(g["lr"], g["gamma"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.5, 2.0, 0.3),
        (0.5, 2.0, 0.0),
    ]


def test_matrices_decay_and_nothing_else() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 4)
            self.norm = nn.LayerNorm(4)
            self.body = nn.Linear(4, 4)
            self.filter = nn.Conv1d(4, 4, 3)
            self.frozen = nn.Linear(4, 4).requires_grad_(False)
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.table.weight

    model = Mixed()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, others = ({names[id(p)] for p in group["params"]} for group in decay_groups(model, 0.1))
    assert decayed == {"body.weight", "filter.weight"}
    assert others == {"table.weight", "norm.weight", "norm.bias", "body.bias", "filter.bias"}


def test_no_empty_group() -> None:
    assert len(decay_groups(nn.Embedding(3, 2), 0.1)) == 1


STEPS = 100


@pytest.mark.parametrize("kind", ["cosine", "linear", "wsd", "constant"])
def test_every_schedule_rises_to_the_peak_and_falls_to_its_floor(kind: str) -> None:
    schedule = Schedule(kind=kind, warmup=0.1, floor=0.2)  # type: ignore[arg-type]
    factors = [schedule(step, STEPS) for step in range(STEPS)]
    assert factors[:10] == pytest.approx([0.1 * (s + 1) for s in range(10)])
    assert max(factors) == factors[9] == 1.0
    assert factors[9:] == sorted(factors[9:], reverse=True)
    assert factors[-1] == pytest.approx(1.0 if kind == "constant" else 0.2)


def test_schedules_by_pencil() -> None:
    cold = partial(Schedule, warmup=0.0, floor=0.0)
    assert constant(7, 10) == cold(kind="constant")(7, 10) == 1.0
    assert cold(kind="linear")(4, 10) == pytest.approx(0.5)
    assert cold(kind="linear", floor=0.2)(4, 10) == pytest.approx(0.6)
    assert cold(kind="cosine")(4, 10) == pytest.approx(0.5)
    assert cold(kind="cosine", floor=0.5)(2, 12) == pytest.approx(0.5 + 0.5 * (1 + 2**-0.5) / 2)
    wsd = cold(kind="wsd", decay=0.5)
    assert [wsd(s, 10) for s in range(4, 10)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert cold(kind="linear", warmup=0.2)(0, 10) == 0.5


@pytest.mark.parametrize("kind", ["constant", "linear", "cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_factors_too(kind: Any, steps: int) -> None:
    for warmup in (0.0, 0.5, 1.0):
        schedule = Schedule(kind=kind, warmup=warmup, floor=0.0)
        assert all(0.0 <= schedule(step, steps) <= 1.0 for step in range(steps + 2))
    assert all(0.0 <= constant(step, steps, warmup=5) <= 1.0 for step in range(steps + 2))


def test_schedule_settings_are_checked() -> None:
    with pytest.raises(UsageError, match="warmup"):
        config.validate(Schedule, {"warmup": 1.5})
