"""The Hessian of a layer's inputs, H = 2 / n sum of x x^T, gathered while a block runs on calibration text.

Layers of a block that are called with the same tensor (queries, keys and values; gate and up) share one. Products
are in float32, their sum over batches in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Gathered:
    """Per layer name, whose inputs it shares (`leader`); per leader the sum of x x^T [in, in] and how many x."""

    leader: dict[str, str]
    total: dict[str, Tensor]
    count: dict[str, int]

    def hessian(self, name: str) -> Tensor | None:
        """H of a layer; None where it was never given a token."""
        leader = self.leader.get(name, name)
        if not self.count.get(leader):
            return None
        return self.total[leader] * (2 / self.count[leader])


@contextmanager
def gather(layers: dict[str, nn.Module]) -> Iterator[Gathered]:
    """While the context lasts, calls of `layers` add to their Hessians. The first call settles who shares whose."""
    found = Gathered({}, {}, {})
    seen: dict[str, Tensor] = {}  # kept, so that no other tensor can take its place in memory

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
            x: Tensor = arguments[0]
            if name not in found.leader:
                same = (leader for leader, other in seen.items() if other is x)
                found.leader[name] = next(same, name)
                if found.leader[name] == name:
                    seen[name] = x
            if found.leader[name] != name:
                return
            rows = x.detach().reshape(-1, x.shape[-1]).float()
            if name not in found.total:
                found.total[name] = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
                found.count[name] = 0
            if len(rows):
                found.total[name] += (rows.T @ rows).double().cpu()
                found.count[name] += len(rows)

        return hook

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.enter_context(layer.register_forward_pre_hook(watch(name)))
        yield found
