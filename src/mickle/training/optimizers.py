"""Optimizer and schedule settings, and what they build. Importing this file does not import torch.

A schedule is a pure function of (step, steps) that gives a factor on the peak learning rate, so resuming
needs no schedule state: ``steps`` is the length of the run and ``step`` counts finished steps, from 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mickle.config import Config

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class AdamW(Config):
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(3e-3, gt=0, description="peak learning rate")
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of the two moving averages")
    eps: float = Field(1e-8, gt=0, description="added to the root of the second average")
    weight_decay: float = Field(0.1, ge=0, description="decay of matrices; norms, biases and embeddings have none")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of a gradient")

    def build(self, groups: list[dict[str, Any]], seed: int) -> Optimizer:
        """The optimizer over parameter groups; it draws nothing."""
        import torch

        devices = {parameter.device.type for group in groups for parameter in group["params"]}
        fused = devices <= {"cpu", "cuda"}  # one pass over memory instead of a dozen
        return torch.optim.AdamW(groups, lr=self.learning_rate, betas=self.betas, eps=self.eps, fused=fused)


class Sophia(Config):
    """Clipped second-order steps (arXiv 2305.14342). Fields left out come from the preset."""

    kind: Literal["sophia"] = "sophia"
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate")
    preset: Literal["paper", "short"] = Field(
        "short", description="paper: betas .96 .99, every 10; short: betas .9 .95, every 5, bias correction"
    )
    estimator: Literal["gnb", "hutchinson"] = Field("gnb", description="estimator of the Hessian's diagonal")
    gamma: float | None = Field(
        None, gt=0, description="scale of the curvature (default: the preset's, .05 for gnb and .01 for hutchinson)"
    )
    every: int | None = Field(None, ge=1, description="steps between curvature estimates")
    betas: tuple[float, float] | None = Field(None, description="decay of the gradient's and the curvature's average")
    bias_correction: bool | None = Field(None, description="divide both moving averages by 1 - beta^t")
    eps: float = Field(1e-12, gt=0, description="least denominator")
    weight_decay: float = Field(0.2, ge=0, description="decay of matrices; norms, biases and embeddings have none")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of a gradient")

    def build(self, groups: list[dict[str, Any]], seed: int) -> Optimizer:
        """The optimizer over parameter groups; ``seed`` is for its estimators' draws."""
        from mickle.training import sophia

        names = ("estimator", "gamma", "every", "betas", "bias_correction", "eps")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        make = sophia.Sophia.short if self.preset == "short" else sophia.Sophia
        return make(groups, self.learning_rate, seed=seed, **given)


OptimizerSettings = Annotated[AdamW | Sophia, Field(discriminator="kind")]


def build_optimizer(settings: OptimizerSettings, model: nn.Module, seed: int = 0) -> Optimizer:
    """The optimizer for a model's trainable parameters, in two groups: :func:`decay_groups`."""
    return settings.build(decay_groups(model, settings.weight_decay), seed)


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay; biases, norms (one dimension) and embedding tables do not.

    Decaying a norm's scale or a bias moves the function without making it simpler, and a row of an embedding
    table gets decay at every step but a gradient only when its token occurs, so rare tokens would fade. A
    head tied to the embedding counts as embedding. Frozen parameters belong to no group.
    """
    from torch import nn

    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    tables |= {id(p) for name, p in model.named_parameters() if name.endswith(".rows")}  # of tables of tokens
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if p.ndim >= 2 and id(p) not in tables]
    others = [p for p in trainable if p.ndim < 2 or id(p) in tables]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Schedule(Config):
    """How the learning rate moves over a run; ``schedule(step, steps)`` is the factor on its peak.

    After the warm-up, constant stays at 1. The others fall to ``floor`` at the last step: linear on a straight line,
    cosine on half a cosine (arXiv 1608.03983, equation 5), wsd, warm-up, stable, decay (MiniCPM, arXiv 2404.06395), on
    a straight line over the last steps.
    """

    kind: Literal["cosine", "linear", "wsd", "constant"] = Field("cosine", description="shape after the warm-up")
    warmup: float = Field(
        0.02, ge=0, le=1, description="share of the steps in which the learning rate rises from 0 to its peak"
    )
    floor: float = Field(
        0.05, ge=0, le=1, description="factor on the learning rate at the last step (constant has none)"
    )
    decay: float = Field(0.2, gt=0, le=1, description="share of the steps in which the learning rate falls (wsd only)")

    def idle(self) -> set[str]:
        return {"constant": {"floor", "decay"}, "wsd": set[str]()}.get(self.kind, {"decay"})

    def __call__(self, step: int, steps: int) -> float:
        warmup = round(self.warmup * steps)
        rising = constant(step, steps, warmup=warmup)
        if self.kind == "constant":
            return rising
        start = steps - max(1, round(self.decay * steps)) if self.kind == "wsd" else warmup
        done = min(1.0, max(0.0, (step - start + 1) / max(1, steps - start)))  # from the peak, 0, to the last step, 1
        if self.kind == "cosine":
            return rising * (self.floor + (1 - self.floor) * (0.5 * (1 + math.cos(math.pi * done))))
        return rising * (1 - (1 - self.floor) * done)


def constant(step: int, steps: int, *, warmup: int = 0) -> float:
    """1 after a linear warm-up of ``warmup`` steps; step ``s`` of it has factor (s + 1) / warmup."""
    return min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
