"""Many small networks with dropout before their head, trained at once as one batched matrix product.

"Dropout Drops Double Descent" (arXiv 2305.16179) trains a network for each size, rate and seed: hundreds of networks,
each too small to keep a processor busy. Here M of them, of one width, are [M, ...] tensors:

    network m:  x -> relu(x W1 + b1) -> dropout(q_m) -> W2 + b2,     loss: mean squared error

trained on all their rows at each step by Adam with weight decay of its own for each (decoupled, weights only). The
plain twin is an ``nn.Sequential`` with ``torch.optim.AdamW`` (``tests/training/test_risk.py`` holds one to the other).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Networks:
    """M networks of one shape: weights [M, d, h], [M, h, k], biases [M, 1, h], [M, 1, k]."""

    first: Tensor
    first_bias: Tensor
    last: Tensor
    last_bias: Tensor

    def __call__(self, inputs: Tensor, kept: Tensor | None = None) -> Tensor:
        """Outputs [M, n, k] for inputs [M, n, d] or [n, d]; ``kept`` [M, n, h] multiplies the hidden units."""
        inputs = inputs.expand(len(self.first), *inputs.shape[-2:])
        hidden = torch.baddbmm(self.first_bias, inputs, self.first).relu()
        return torch.baddbmm(self.last_bias, hidden if kept is None else hidden * kept, self.last)

    @property
    def parameters(self) -> list[Tensor]:
        """The four tensors."""
        return [self.first, self.first_bias, self.last, self.last_bias]


def fresh_networks(
    seeds: Sequence[int], inputs: int, width: int, outputs: int, device: torch.device | str = "cpu"
) -> Networks:
    """Initial networks, one for each seed: weights N(0, 2/d) and N(0, 1/h), biases 0. Equal seeds, equal weights."""
    first, last = torch.empty(len(seeds), inputs, width), torch.empty(len(seeds), width, outputs)
    for place, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        first[place].normal_(0, (2 / inputs) ** 0.5, generator=generator)
        last[place].normal_(0, width**-0.5, generator=generator)
    bias = (torch.zeros(len(seeds), 1, size) for size in (width, outputs))
    parts = (first, next(bias), last, next(bias))
    return Networks(*(part.to(device).requires_grad_() for part in parts))


def train_networks(
    networks: Networks,
    inputs: Tensor,
    targets: Tensor,
    rates: Sequence[float],
    *,
    steps: int,
    learning_rate: float,
    decays: Sequence[float] | None = None,
    seed: int = 0,
) -> Tensor:
    """Train in place on inputs [M, n, d] and targets [M, n, k]; the loss [M] without dropout at the end.

    ``rates`` [M] are the shares of hidden units dropped, ``decays`` [M] the weight decays. The learning rate
    falls to zero along a half cosine. Masks are drawn from ``seed``.
    """
    device = inputs.device
    keep = 1 - torch.tensor(rates, dtype=torch.float32, device=device)[:, None, None]
    least = (torch.tensor(rates, device=device) * 65536 - 32768).round().clamp(max=32767).to(torch.int16)[:, None, None]
    decay = torch.tensor(decays or [0.0] * len(rates), device=device)[:, None, None]
    generator = torch.Generator(device).manual_seed(seed)
    # Adam is elementwise, so one of it over stacked tensors is M of them.
    adam = torch.optim.Adam(networks.parameters, lr=learning_rate, fused=True)
    dropping, decaying = bool((keep < 1).any()), bool((decay > 0).any())
    shape = (*inputs.shape[:2], networks.first.shape[2])
    for step in range(steps):
        rate = learning_rate * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item())
        adam.param_groups[0]["lr"] = rate
        kept = None
        if dropping:
            kept = (bits(shape, generator, device) >= least) / keep
        adam.zero_grad()
        losses(networks(inputs, kept), targets).sum().backward()
        if decaying:
            with torch.no_grad():
                for weight in (networks.first, networks.last):
                    weight.mul_(1 - rate * decay)
        adam.step()
    with torch.no_grad():
        return losses(networks(inputs), targets)


def bits(shape: tuple[int, ...], generator: torch.Generator, device: torch.device) -> Tensor:
    """Uniform 16-bit integers of a shape: a draw of 64 bits gives four, and drawing is a third of a small step."""
    count = math.prod(shape)
    drawn = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
    # Between the limits given, all 64 bits are random; without limits 63 are.
    drawn.random_(-(1 << 63), None, generator=generator)
    return drawn.view(torch.int16)[:count].view(shape)


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Each network's mean loss [M] over rows: the squared error, summed over outputs."""
    return (outputs - targets).square().sum(2).mean(1)
