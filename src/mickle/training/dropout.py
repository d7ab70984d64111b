"""Dropout whose rate is a function of the step: on from the start, on late, or rising.

"To Repeat or Not To Repeat" (arXiv 2305.13230, section 5): dropout that begins in the second part of a run ends
as well as dropout from the start and is faster before. With s the step and S the steps of the run::

    p(s) = 0                                        for s < start S
    p(s) = rate min(1, (s - start S) / (ramp S))    after that, at once with ramp 0

While the rate is 0 no random number is drawn, so until then a run is, bit for bit, the run without dropout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from mickle.config import Config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

HELD_BY_CONFIG = ("attention_dropout", "dropout", "dropout_p", "activation_dropout", "hidden_dropout")


class Dropout(Config):
    """How much dropout a run has, and from when."""

    rate: float = Field(0.0, ge=0, lt=1, description="share of activations left out in training")
    start: float = Field(0.0, ge=0, lt=1, description="share of the run before dropout begins")
    ramp: float = Field(0.0, ge=0, le=1, description="share of the run over which dropout then rises to its rate")

    @model_validator(mode="after")
    def _agree(self) -> Dropout:
        if self.start + self.ramp > 1:
            raise ValueError("start and ramp are shares of one run: together at most 1")
        return self

    def idle(self) -> set[str]:
        return set() if self.rate else {"start", "ramp"}

    def __call__(self, step: int, steps: int) -> float:
        """The rate at ``step`` (finished steps, from 0) of ``steps``."""
        begun = step - self.start * steps
        if begun < 0:
            return 0.0
        return self.rate * min(1.0, begun / (self.ramp * steps)) if self.ramp else self.rate


def set_dropout(model: nn.Module, rate: float) -> None:
    """Give every dropout of ``model`` the same rate: modules, and the numbers that blocks hold themselves.

    Models of transformers hold some rates (of attention weights, say) as plain numbers read at each call.
    """
    for module, name in _rates(model):
        setattr(module, name, rate)


def has_dropout(model: nn.Module) -> bool:
    """Whether any dropout of ``model`` has a rate above 0: parts of a batch then draw units of their own."""
    return any(getattr(module, name) for module, name in _rates(model))


def _rates(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Modules that drop units, and the names of the numbers that say how many."""
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            yield module, "p"
        else:
            held = (name for name in HELD_BY_CONFIG if isinstance(module.__dict__.get(name), (int, float)))
            yield from ((module, name) for name in held)
