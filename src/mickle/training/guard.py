"""Numbers that must not reach the weights: not finite, or a loss that jumped; and where they come from."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from mickle.errors import NumericError
from mickle.training.distributed import local

WINDOW = 128
ENOUGH = 32
SIGMAS = 6.0
LEAST_DEVIATION = 0.01  # of the mean, and in the loss's own unit


class BadNumbers(NumericError):
    """A step that must not change the weights.

    ``step``: finished steps before it, which is also the number of its batch; ``rows`` of that batch whose loss is not
    finite by themselves; ``module``: the first one with a non-finite output. Both are empty where unknown.
    """

    def __init__(self, what: str, *, where: str, step: int, rows: tuple[int, ...], module: str | None) -> None:
        todo = "look at these rows; or lower the learning rate; or set on_bad_numbers to skip or back"
        super().__init__(what, where=where, todo=todo)
        self.step, self.rows, self.module = step, rows, module


class LossWatch:
    """Says when the loss jumps: twice in a row above mean + 6 deviations of the last 128 accepted steps.

    It says nothing before 32 accepted steps. The deviation is taken as at least 1 % of the mean and 0.01, so a
    loss that has become flat, or nearly nothing, does not make every ripple an alarm. A loss above the bound is
    not accepted into the window.
    """

    def __init__(self, accepted: Iterable[float] = (), suspicious: bool = False) -> None:
        self._accepted = deque(accepted, maxlen=WINDOW)
        self._suspicious = suspicious

    def bound(self) -> float:
        """The largest loss that is not suspicious."""
        if len(self._accepted) < ENOUGH:
            return math.inf
        mean = math.fsum(self._accepted) / len(self._accepted)
        variance = math.fsum((x - mean) ** 2 for x in self._accepted) / len(self._accepted)
        return mean + SIGMAS * max(math.sqrt(variance), LEAST_DEVIATION * max(1.0, abs(mean)))

    def spikes(self, loss: float) -> bool:
        """Take the next loss; True when it and the one before it are above the bound."""
        if loss <= self.bound():
            self._accepted.append(loss)
            self._suspicious = False
            return False
        spiked, self._suspicious = self._suspicious, True
        return spiked

    def state(self) -> dict[str, Any]:
        """What the constructor needs to go on exactly."""
        return {"accepted": list(self._accepted), "suspicious": self._suspicious}


def first_not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first floating tensor with a NaN or an infinity, in one pass over memory."""
    named = [(name, local(t).detach()) for name, t in tensors if t.is_floating_point() and t.numel()]
    named = [(name, t) for name, t in named if t.numel()]  # this process may hold no row of it
    if not named:
        return None
    # A norm is cheap (vectorised, one number a tensor) and finite only if every entry is; large finite entries
    # can overflow it, so a norm that is not finite is looked at entry by entry.
    norms = torch.stack([norm.double().to(named[0][1].device) for norm in torch._foreach_norm([t for _, t in named])])
    suspects = (~norms.isfinite()).nonzero().flatten().tolist()
    return next((named[i][0] for i in suspects if not bool(named[i][1].isfinite().all())), None)


def refuse_not_finite(tensors: Iterable[tuple[str, Tensor]], what: str) -> None:
    """:class:`NumericError` naming the first tensor that is not finite."""
    name = first_not_finite(tensors)
    if name is not None:
        raise NumericError(f"{what} is not finite: {name}", todo="go back to an earlier checkpoint")


class OutputWatch(ExitStack):
    """While open, remembers the first module of a model whose output is not finite."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found: str | None = None
        for name, module in model.named_modules():
            self.callback(module.register_forward_hook(self._hook(name or type(model).__name__)).remove)

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if self.found is None and first_not_finite((name, t) for t in _tensors(output)):
                self.found = name

        return hook


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)
