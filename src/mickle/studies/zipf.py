"""A convex problem without noise whose directions differ thousandfold in curvature: rare features are flat ones."""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import torch
from torch import nn

from mickle.kernels.losses import cross_entropy


class ZipfProblem:
    """Softmax regression whose feature j occurs with probability proportional to 1/j^1.5; labels from a true model."""

    def __init__(self, seed: int, features: int, classes: int, examples: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        frequency = torch.arange(1, features + 1, dtype=torch.float32) ** -1.5
        chosen = torch.multinomial(frequency, examples, replacement=True, generator=generator)
        truth = torch.randn(classes, features, generator=generator)
        labels = torch.multinomial(truth.T[chosen].softmax(-1), 1, generator=generator).squeeze(-1)
        self.batch = {"inputs": nn.functional.one_hot(chosen, features).float(), "labels": labels}
        self.objective = lambda model, batch: cross_entropy(model(batch["inputs"]), None, batch["labels"])
        self.shape = (features, classes)
        # Every feature is a table of its own; its best loss is the entropy of its labels, smoothed by nothing.
        counts = torch.zeros(features, classes, dtype=torch.float64)
        counts.index_put_((chosen, labels), torch.ones(examples, dtype=torch.float64), accumulate=True)
        share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
        self.best = float(-(counts * share.clamp(min=1e-300).log()).sum() / examples)

    def fresh(self) -> nn.Module:
        """The model at its start, all weights 0."""
        model = nn.Linear(*self.shape, bias=False)
        nn.init.zeros_(model.weight)
        return model

    def gaps(self, model: nn.Module, method: Any, limit: int, wanted: float) -> list[float]:
        """How far the loss (nats) is above the best, before the first step and after each one that the optimizer
        ``method`` makes: until a share ``wanted`` of the first is left, ``limit`` steps are made or the numbers end.
        """
        found: list[float] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # near the optimum every coordinate is unclipped, as it should be
            for _ in range(limit + 1):
                method.zero_grad()
                total, count = self.objective(model, self.batch)
                found.append(float(total.detach()) / int(count) - self.best)
                if found[-1] <= wanted * found[0] or not math.isfinite(found[-1]):
                    break
                if getattr(method, "refresh_due", False):
                    method.refresh(model, self.batch, self.objective)
                (total / count).backward()
                method.step()
        return found


zipf_problem = cache(ZipfProblem)  # the arms share a seed's
