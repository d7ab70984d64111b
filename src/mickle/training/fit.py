"""What the training loop is given: the arguments of ``loop.fit``, checked, and what makes two runs the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from mickle.config import Config
from mickle.errors import UsageError
from mickle.training import checkpoint, distributed
from mickle.training.objectives import Batch, Objective
from mickle.training.optimizers import constant

Batches = Callable[[int], Batch]
Schedule = Callable[[int, int], float]
_NO_IDENTITY = ("params", "param_names", "lr", "steps", *checkpoint.WAYS)  # of a parameter group


@dataclass
class Fit:
    """What :func:`mickle.training.loop.fit` trains, and how.

    batches: step ``i``, from 0 -> the whole effective batch, tensors with rows first. It is split over the
        processes and then into ``accumulate`` micro-batches, which changes memory and speed, never the result.
    optimizer: any ``torch.optim.Optimizer`` whose ``step`` takes a closure; it gets a
        :class:`~mickle.training.closure.Closure`. What its method ``statistics()``, if it has one, returns
        goes into the events.
    steps: optimizer steps of the whole run.
    schedule: (step, steps) -> factor on the learning rate that each parameter group came with.
    dropout: (step, steps) -> the rate that every dropout of the model has in this step; None leaves them alone.
    clip_norm: largest norm of the gradient, None for no clipping.
    precision: "bfloat16" runs forward passes under autocast; weights, gradients and state stay as they are.
    evaluate: model (in eval mode, without gradients) -> values; run every ``evaluate_every`` steps and at the
        end. The first value decides which checkpoint is the best: lower is better.
    patience: evaluations in a row without a new best after which the run stops; None goes on to the end.
    checkpoints: a folder; the newest whole checkpoint in it is gone on from. Saved every ``save_every`` steps
        (0: never), at the end, at each best evaluation and on SIGINT or SIGTERM. The newest ``keep`` and the
        best one stay.
    on_bad_numbers: what to do when a number is not finite or the loss jumps, before it touches the weights.
        "stop" raises; "skip" leaves the step out; "back" returns to the last checkpoint and goes on without
        that batch. Three bad batches in a row stop the run in any case.
    watch_loss: whether a finite loss that jumps is a bad number. Off for tasks that are learned in leaps, where a
        loss near zero jumps without harm; numbers that are not finite stay bad.
    compile: run the model through torch.compile.
    identity: anything the result depends on besides these arguments, say hashes of the data. A checkpoint
        with another identity is refused. Steps, evaluation, saving, accumulation, device and number of
        processes may change.
    """

    model: nn.Module
    objective: Objective
    batches: Batches
    optimizer: Optimizer
    _: KW_ONLY
    steps: int
    schedule: Schedule = constant
    dropout: Schedule | None = None
    accumulate: int = 1
    clip_norm: float | None = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    evaluate_every: int = 0
    patience: int | None = None
    checkpoints: Path | None = None
    save_every: int = 0
    keep: int = 2
    seed: int = 0
    on_bad_numbers: Literal["stop", "skip", "back"] = "stop"
    watch_loss: bool = True
    compile: bool = False
    identity: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        least = {"steps": 0, "accumulate": 1, "evaluate_every": 0, "save_every": 0, "keep": 1}
        if small := [name for name, value in least.items() if getattr(self, name) < value]:
            raise UsageError(f"{small[0]} is too small")
        if self.patience is not None and (self.patience < 1 or self.evaluate is None):
            raise UsageError(
                f"patience is {self.patience}, and "
                + ("nothing is measured" if self.evaluate is None else "too small"),
                where="weights.patience",
                expected="at least 1, and held-out examples to measure on",
            )
        if self.on_bad_numbers == "back" and self.checkpoints is None:
            raise UsageError(
                "on_bad_numbers: back needs checkpoints to return to", todo="give a folder for checkpoints"
            )
        sharded = any(isinstance(parameter, DTensor) for parameter in self.model.parameters())
        if distributed.current().world > 1 and not sharded:
            raise UsageError("several processes train an unsharded model", todo="call distributed.shard(model) first")
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        if self.compile:
            self.model.compile()
        self.identity = {
            "given": dict(self.identity),
            "optimizer": _describe_optimizer(self.optimizer),
            "schedule": _describe(self.schedule),
            "dropout": None if self.dropout is None else _describe(self.dropout),
            "objective": _describe(self.objective),
            "clip_norm": self.clip_norm,
            "precision": self.precision,
            "seed": self.seed,
        }


def _describe_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    """Kind and settings, group by group, less what moves during a run."""
    groups = [
        {name: value for name, value in group.items() if name not in _NO_IDENTITY} for group in optimizer.param_groups
    ]
    return {"kind": type(optimizer).__name__, **{str(i): group for i, group in enumerate(groups)}}


def _describe(function: Any) -> Any:
    """A function as something that can be compared after it was written to disk."""
    if isinstance(function, Config):
        return function.model_dump(mode="json")
    if isinstance(function, partial):
        return {"function": _describe(function.func), "arguments": list(function.args), **function.keywords}
    return getattr(function, "__qualname__", type(function).__name__)
