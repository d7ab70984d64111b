"""What a forward-only step does to the weights, as a pure function of seed, step, learning rate and projections.

Source: "Fine-Tuning Language Models with Just Forward Passes", arXiv 2305.17333; equations in `training/mezo.py`. The
optimizer moves the weights by it and the journal replays by it, so both are the same by construction. Draw `n t + i`
is probe i of step t.

With the mean G_t = (1/n) sum_i g_i z_i over the n probes of a step:

* plain: w <- w - lr G_t (Algorithm 1, and 2 for n > 1);
* momentum: w <- w - lr (1 - b1) sum_s b1^(t-s) G_s, recomputed from the history (section 2.3, appendix B.2), over the
  latest steps until b1^age is below 1/1000;
* adam: w <- w - lr M_t / (sqrt(v_t) + 1e-8), M_t the same sum, v_t the moving average of (1/n^2) sum_i g_i^2, both
  divided by 1 - b^t. The paper keeps v for each weight; where z is +1 or -1 and n is 1, z^2 = 1 makes all of them
  this one number;
* fzoo ("FZOO: Fast Zeroth-Order Optimizer", arXiv 2506.09034): one-sided projections g_i = (L(w + eps z_i) - L(w)) /
  eps, and w <- w - lr G_t / s, s the standard deviation of the g_i. (The paper divides by that of the losses, eps s:
  its rate is ours / eps.)

A decayed tensor is multiplied by 1 - lr weight_decay. Where all projections of a step are 0 (tied accuracies, or a
step that was skipped for numbers that are not finite) nothing moves at all, the averages neither.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from mickle.config import Config, validate
from mickle.errors import UsageError
from mickle.kernels.philox import Kind, Stream

Variant = Literal["plain", "momentum", "adam", "fzoo"]
Beta = Annotated[float, Field(ge=0, lt=1)]
FORGOTTEN = 1e-3  # a projection with less than this share of its first weight no longer counts
ADAM_EPS = 1e-8  # as in Adam itself
LONGEST_WINDOW = 7000  # steps that each step goes through again
MOST_PROBES = 1024  # a journal from elsewhere must not ask for any amount of memory
MOST_DRAWS = 1 << 32  # a draw is one word of the generator's counter


class MezoRule(Config):
    """All of a run's numbers that do not change from step to step."""

    seed: int = Field(0, ge=0, lt=1 << 63)
    eps: float = Field(1e-3, gt=0)
    draws: Kind = "rademacher"
    probes: int = Field(1, ge=1, le=MOST_PROBES)
    variant: Variant = "plain"
    betas: tuple[Beta, Beta] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.variant == "fzoo" and self.probes < 2:
            raise ValueError(f"probes: {self.probes}, not 2 to {MOST_PROBES}, which fzoo needs")
        if self.window > LONGEST_WINDOW:
            raise ValueError(f"betas: {self.betas[0]} remembers more than {LONGEST_WINDOW:,} steps; at most 0.999")
        return self

    @property
    def window(self) -> int:
        """How many steps a step's move is made of."""
        if self.variant not in ("momentum", "adam") or self.betas[0] == 0:
            return 1
        return max(1, math.ceil(math.log(FORGOTTEN) / math.log(self.betas[0])))

    @property
    def stream(self) -> Stream:
        """Where its directions come from."""
        return Stream(self.seed, self.draws)

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """A rule from plain values; UsageError where they are none or one is left out."""
        rule = validate(cls, values, where="MeZO's settings")
        if len(values) < len(cls.model_fields):
            raise UsageError(f"a rule of MeZO has the fields {', '.join(cls.model_fields)}")
        return rule


@dataclass(frozen=True)
class Update:
    """One step's move without its probes: add scale_i z(draw_i), after multiplying decayed tensors by `factor`."""

    draws: list[int]
    scales: list[float]
    factor: float = 1.0


class Updates:
    """Turns each step's rate and projections into its update; remembers what momentum and Adam need."""

    def __init__(self, rule: MezoRule) -> None:
        self.rule = rule
        self.step = 0
        self._past: deque[tuple[int, list[float]]] = deque(maxlen=rule.window)  # (step, projections), counted ones only
        self._square, self._counted = 0.0, 0

    def push(self, rate: float, projections: Sequence[float]) -> Update:
        """The next step's update."""
        step, n, rule = self.step, self.rule.probes, self.rule
        self.step += 1
        if not any(projections):
            return Update([], [])
        factor = 1.0 - rate * rule.weight_decay
        if rule.variant in ("plain", "fzoo"):
            own = [n * step + i for i in range(n)]
            scale = -rate / n
            if rule.variant == "fzoo":
                spread = float(np.std(np.asarray(projections, dtype=np.float64), ddof=1))
                if spread == 0:
                    return Update([], [])
                scale /= spread
            return Update(own, [scale * g for g in projections], factor)
        return self._from_history(step, rate, list(projections), factor)

    def _from_history(self, step: int, rate: float, projections: list[float], factor: float) -> Update:
        n, (beta, beta2) = self.rule.probes, self.rule.betas
        self._past.append((step, projections))
        self._counted += 1
        scale = -rate * (1 - beta) / n
        if self.rule.variant == "adam":
            square = math.fsum(g * g for g in projections) / n**2
            self._square = beta2 * self._square + (1 - beta2) * square
            corrected = self._square / (1 - beta2**self._counted)
            scale /= (1 - beta**self._counted) * (math.sqrt(corrected) + ADAM_EPS)
        draws: list[int] = []
        scales: list[float] = []
        for age, (past, values) in zip(range(len(self._past) - 1, -1, -1), self._past):
            draws += [n * past + i for i in range(n)]
            scales += [scale * beta**age * g for g in values]
        return Update(draws, scales, factor)


def to_codes(values: Any) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """Numbers as bfloat16 in 16 bits, rounded to the nearest, ties to even: eight significant bits, float32's range.

    Half precision would have three bits more and overflow at 65,504, which a projection on many weights may pass.
    """
    bits = np.atleast_1d(np.asarray(values, dtype=np.float32)).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)).astype(np.uint16)


def from_codes(codes: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The numbers that 16-bit codes stand for."""
    return (np.asarray(codes, dtype=np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def rounded(value: float) -> float:
    """A finite number as two bytes hold it."""
    limit = float(from_codes([0x7F7F])[0])
    return float(from_codes(to_codes([min(max(value, -limit), limit)]))[0])
