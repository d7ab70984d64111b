"""MeZO: training with forward passes only, in the memory of inference.

Source: "Fine-Tuning Language Models with Just Forward Passes", Malladi, Gao, Nichani, Damian, Lee, Chen, Arora, arXiv
2305.17333. Claim: two losses a step, on both sides of the weights along one random direction, tune a pre-trained
model with a prompt to within a point or so of Adam, in up to 12 times less memory.

One step (Algorithm 1), with z a direction of +1 and -1 or of normal numbers, B the step's batch:

    L+ = L(w + eps z; B),  L- = L(w - eps z; B),  g = (L+ - L-) / (2 eps),  w <- w - lr g z

g is one number. z is never stored: it is a function of (seed, step, tensor, element) (`kernels/philox.py`) and is
added in place, so a step needs nothing beside the two forward passes. `training/mezo_rule.py` has the update and its
variants.

Where this departs from the paper's code, and why:

* Three passes over the weights a step, not four: the restore and the update are one pass, w <- w + (eps - lr g) z.
* z is +1 or -1 by default: a bit a weight, and the second moment of g z is d |grad|^2 where a Gaussian has (d + 2)
  |grad|^2.
* g and lr are rounded to two bytes (bfloat16) *before* they are used, so the journal (`training/journal.py`), which
  holds nothing else, gives the trained weights back.
* |g| is cut at `clip` times the median of the latest hundred, once there are ten: one bad direction then cannot throw
  the weights.
* Weights must be float32 (float64 works, slowly). In bfloat16 an update of lr g, some 1e-6, falls below the spacing
  of weights of .02, 6e-5, and is lost, and w + eps z - 2 eps z + eps z is not w. The paper's own runs are float16 on
  the edge of this. Frozen weights may have any type: LoRA or a prefix in float32 on a half-precision or 4-bit base is
  the way to save more memory.
* Weight decay is off, as there. On, it decays the tensors of the groups that have it (`training/optimizers.py`).
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mickle.config import validate
from mickle.errors import UsageError
from mickle.kernels.perturb import add_draws
from mickle.kernels.philox import Moves
from mickle.training.mezo_rule import MOST_DRAWS, MezoRule, Update, Updates, from_codes, rounded, to_codes

RECENT, ENOUGH = 100, 10  # projections the clipping bound is made of


class MeZO(torch.optim.Optimizer):
    """SGD along random directions. `step(closure)` wants `closure.mean_loss()`, or a plain function that returns the
    loss.

    parameters: (name, parameter) pairs, as of `model.named_parameters()`, or groups of them; frozen ones are left
    out. A
        tensor's name is part of its random numbers.
    lr: step size; may be changed between steps, it is rounded to two bytes when used.
    clip: bound of |g| as a multiple of its recent median; 0 for none.
    base: the fingerprint of the weights it begins at (`training/replay.py`), for the journal.
    rule: fields of `MezoRule`, with its defaults. seed, betas, weight_decay. eps: how far the probes go. probes:
        directions a step, whose mean is taken (raise lr with their number). draws: rademacher or gaussian. variant:
        plain, momentum, adam or fzoo.

    Dropout is off in all forward passes: the model that a `Closure` carries is put in evaluation mode for the step. A
    step whose loss raises leaves the weights where they were (to float32 rounding), is journaled as g = 0, and raises.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-4,
        *,
        clip: float = 5.0,
        base: str = "",
        **rule: Any,
    ) -> None:
        self.rule = validate(MezoRule, rule, where="MeZO's settings")
        if not (lr >= 0 and clip >= 0):
            raise UsageError(f"MeZO's settings: lr {lr} and clip {clip} must not be negative")
        super().__init__(_trainable(parameters), {"lr": lr, "clip": clip, **self.rule.model_dump()})
        self.base = base
        self.projections: list[int] = []  # codes of two bytes, `probes` of them a step
        self.rates: list[int] = []  # one a step
        self.measured = 0  # directions that were tried for a learning rate before the first step
        self._updates = Updates(self.rule)
        self._last: dict[str, float] = {}
        for name, parameter in self.named_tensors():
            _refuse_unfit(name, parameter)
        if any(group["weight_decay"] not in (0.0, self.rule.weight_decay) for group in self.param_groups):
            raise UsageError("MeZO's groups have the weight decay of the optimizer, or none")

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The trained tensors by name."""
        for group in self.param_groups:
            yield from zip(group["param_names"], group["params"], strict=True)

    def decayed(self) -> set[str]:
        """Names of tensors that weight decay applies to."""
        groups = (g for g in self.param_groups if g["weight_decay"] > 0)
        return {name for group in groups for name in group["param_names"]}

    @torch.no_grad()
    def step(self, closure: Any) -> float:
        """One step; the mean of the losses it saw. Raises what the loss raises, after the weights are restored."""
        if (self._updates.step + 1) * self.rule.probes > MOST_DRAWS:
            raise UsageError(
                f"MeZO has drawn all its {MOST_DRAWS:,} directions", todo="begin a new run with another seed"
            )
        rate = rounded(self.param_groups[0]["lr"])
        losses = _Losses(closure)
        with evaluating(getattr(closure, "model", None)):
            found, left = self._probe(losses)
        projections = [0.0] * self.rule.probes if losses.failure else [rounded(g) for g in self._clipped(found)]
        update = self._updates.push(rate, projections)
        self._finish(left, update)
        self.projections += to_codes(projections).tolist()
        self.rates += to_codes([rate]).tolist()
        if losses.failure is not None:
            raise losses.failure
        loss = math.fsum(losses.seen) / len(losses.seen)
        if hasattr(closure, "mean_loss"):
            closure.loss = loss  # both sides together are closer to the loss at the weights than either
        self._last = {
            "projection": statistics.fmean(abs(g) for g in found),
            "spread": max(losses.seen) - min(losses.seen),
        }
        return loss

    def statistics(self) -> dict[str, float]:
        """Of the last step: mean |g| before clipping, and the difference between the largest and the least loss."""
        return self._last

    def state_dict(self) -> dict[str, Any]:
        """torch's, and the history: all that is needed to go on bit for bit."""
        codes = {"projections": list(self.projections), "rates": list(self.rates)}
        return {**super().state_dict(), "history": {"base": self.base, "measured": self.measured, **codes}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take a history over; averages are made of it again."""
        super().load_state_dict({k: v for k, v in state_dict.items() if k != "history"})
        history = state_dict["history"]
        self.base, self.measured = history["base"], history["measured"]
        self._updates = Updates(self.rule)
        self.projections, self.rates = list(history["projections"]), list(history["rates"])
        for rate, projections in history_of(self.rule.probes, self.rates, self.projections):
            self._updates.push(rate, projections)

    def move(self, draws: list[int], scales: list[float]) -> None:
        """Add directions to the trained tensors."""
        moves = Moves.of(draws, scales)
        for name, parameter in self.named_tensors():
            add_draws(parameter, name, self.rule.stream, moves)

    def _finish(self, left: tuple[int, float], update: Update) -> None:
        """The update and the restore of the last probe, in one pass."""
        both = [Moves.of(*_merged(left, update, factor)) for factor in (1.0, update.factor)]
        for group in self.param_groups:
            moves = both[group["weight_decay"] > 0]
            for name, parameter in zip(group["param_names"], group["params"], strict=True):
                add_draws(parameter, name, self.rule.stream, moves)

    def _probe(self, losses: _Losses) -> tuple[list[float], tuple[int, float]]:
        """Projections of this step's directions, and where the weights were left: (draw, scale) that restores them."""
        n, eps, one_sided = self.rule.probes, self.rule.eps, self.rule.variant == "fzoo"
        centre = losses() if one_sided else 0.0
        projections = []
        left: list[tuple[int, float]] = []
        for draw in range(n * self._updates.step, n * (self._updates.step + 1)):
            self.move(*_columns([*left, (draw, eps)]))
            plus = losses()
            if one_sided:
                projections.append((plus - centre) / eps)
                left = [(draw, -eps)]
                continue
            self.move([draw], [-2 * eps])
            projections.append((plus - losses()) / (2 * eps))
            left = [(draw, eps)]
        return projections, left[0]

    def _clipped(self, projections: list[float]) -> list[float]:
        """Cut at a multiple of the recent median; FZOO's own normalisation does it there."""
        clip = self.param_groups[0]["clip"]
        recent = [abs(g) for g in from_codes(self.projections[-RECENT:]).tolist() if g]
        if clip == 0 or self.rule.variant == "fzoo" or len(recent) < ENOUGH:
            return projections
        bound = clip * statistics.median(recent)
        return [min(max(g, -bound), bound) for g in projections]


class _Losses:
    """Calls the loss until it fails once, and remembers. So a failing step makes the same moves as any other."""

    def __init__(self, closure: Any) -> None:
        self._loss: Callable[[], Any] = getattr(closure, "mean_loss", closure)
        self._unwatched = hasattr(closure, "mean_loss")
        self.seen: list[float] = []
        self.failure: BaseException | None = None

    def __call__(self) -> float:
        if self.failure is not None:
            return math.nan
        try:
            # The first loss of a step stands for it: both sides of one bad batch are not two jumps.
            again = {"watched": False} if self._unwatched and self.seen else {}
            loss = float(self._loss(**again))
            if not math.isfinite(loss):
                raise UsageError(f"the loss is {loss}", todo="lower the learning rate, or look at the data")
        except BaseException as failure:
            self.failure = failure
            return math.nan
        self.seen.append(loss)
        return loss


def moves_of_step(
    rule: MezoRule, step: int, update: Update, decayed: bool
) -> tuple[list[int], list[float], list[float]]:
    """All that one step adds to a tensor, probes included, in order: draws, scales, factors. Exact replay is made
    of it.
    """
    n, eps = rule.probes, rule.eps
    sides = [-1.0] if rule.variant == "fzoo" else [-2.0, 1.0]
    probes = [(n * step + i, side * eps) for i in range(n) for side in (1.0, *sides)]
    draws, scales = _columns(probes[:-1])
    last = _merged(probes[-1], update, update.factor if decayed else 1.0)
    return draws + last[0], scales + last[1], [1.0] * len(draws) + last[2]


def moves_of_measuring(rule: MezoRule, directions: int) -> tuple[list[int], list[float]]:
    """What measuring a learning rate adds before the first step (`training/mezo_rate.py`): the seed's last draws."""
    draws = [MOST_DRAWS - 1 - number for number in range(directions) for _ in range(3)]
    return draws, [rule.eps, -2 * rule.eps, rule.eps] * directions


def history_of(probes: int, rates: list[int], projections: list[int]) -> Iterator[tuple[float, list[float]]]:
    """Codes -> (rate, projections) of each step."""
    values = from_codes(projections).reshape(len(rates), probes).tolist()
    return zip(from_codes(rates).tolist(), values, strict=True)


def _merged(left: tuple[int, float], update: Update, factor: float) -> tuple[list[int], list[float], list[float]]:
    """The update of a tensor that is multiplied by `factor` first, with the restore of the last probe in the same
    number as that probe's share of it: draws, scales, factors.
    """
    draw, restore = left
    draws, scales = list(update.draws), list(update.scales)
    if draw in draws:
        scales[draws.index(draw)] += restore * factor
    else:
        draws, scales = [draw, *draws], [restore * factor, *scales]
    return draws, scales, [factor] + [1.0] * (len(draws) - 1)


def _columns(pairs: list[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [draw for draw, _ in pairs], [scale for _, scale in pairs]


def _trainable(parameters: Iterable[Any]) -> list[dict[str, Any]]:
    """Groups of named, trained parameters."""
    given = list(parameters)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    found = []
    for group in groups:
        named = [p if isinstance(p, tuple) else (str(i), p) for i, p in enumerate(group["params"])]
        trained = [(name, p) for name, p in named if p.requires_grad]
        if trained:
            found.append({**group, "params": trained})
    if not found:
        raise UsageError("no parameter is to be trained", todo="give model.named_parameters()")
    return found


def _refuse_unfit(name: str, parameter: Tensor) -> None:
    """Weights that cannot be moved in place without loss are named."""
    if isinstance(parameter, DTensor):
        raise UsageError("MeZO trains whole tensors, not shards", where=name, todo="run it in one process")
    if parameter.is_meta or parameter.layout != torch.strided:
        raise UsageError("MeZO trains dense tensors that are in memory", where=name)
    if parameter.dtype not in (torch.float32, torch.float64):
        raise UsageError(
            f"MeZO's updates are lost in weights of {str(parameter.dtype).removeprefix('torch.')}",
            where=name,
            expected="float32",
            todo="open the model in float32, or train LoRA or a prefix in float32 on it",
        )


@contextlib.contextmanager
def evaluating(model: nn.Module | None) -> Iterator[None]:
    """The model in evaluation mode inside, and each module as it was outside."""
    modules = [] if model is None else [m for m in model.modules() if m.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True
