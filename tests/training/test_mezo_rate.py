"""The measured learning rate on quadratics whose Hessian is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.training.closure import Closure
from mickle.training.mezo import MeZO
from mickle.training.mezo_rate import SHARE, find_rate, rate_of


class Quadratic(nn.Module):
    """w' diag(curvature) w / 2, with the batch's noise added to the slope."""

    def __init__(self, curvature: Tensor) -> None:
        super().__init__()
        self.curvature = curvature
        self.w = nn.Parameter(torch.ones(len(curvature), dtype=torch.float64))

    def loss(self, noise: Tensor) -> Tensor:
        return (self.curvature * self.w**2).sum() / 2 + (noise.mean(0) * self.w).sum()


def closure(model: Quadratic, spread: float) -> Callable[[int], Closure]:
    def at(step: int) -> Closure:
        noise = torch.randn(4, len(model.w), generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        objective = lambda m, batch: (m.loss(batch["noise"]), torch.tensor(1))  # noqa: E731
        return Closure(model, objective, {"noise": spread * noise}, step=step)

    return at


def best_rate(model: Quadratic) -> float:
    """|d|^2 / E[g^2 z'Hz] for signs: E = |d|^2 tr H + 2 d'Hd - 2 sum d_i^2 H_ii, and H is diagonal: |d|^2 tr H."""
    return 1 / float(model.curvature.sum())


@pytest.mark.parametrize("curvature", [torch.full((50,), 3.0), torch.logspace(-2, 1, 60)])
def test_rate_is_a_share_of_the_best(curvature: Tensor) -> None:
    model = Quadratic(curvature.double())
    optimizer = MeZO(model.named_parameters(), lr=0.0)
    before = model.w.detach().clone()
    found = find_rate(optimizer, closure(model, 0.0), directions=200)
    assert found.curvature == pytest.approx(float(curvature.sum()), rel=1e-3)  # z'Hz = tr H exactly for a diagonal H
    assert found.rate == pytest.approx(SHARE * best_rate(model), rel=1e-2)
    assert found.gradient == pytest.approx(float((curvature.double() * before).norm()), rel=0.25)
    assert torch.allclose(model.w.detach(), before, atol=1e-12)
    assert optimizer.measured == 200
    assert optimizer.projections == []


def test_the_best_rate_is_where_one_step_gains_most() -> None:
    """By brute force: mean loss after a step at half, once and twice the best rate."""
    curvature = torch.logspace(-2, 1, 60).double()
    model = Quadratic(curvature)
    means = []
    for times in (0.5, 1.0, 2.0):
        after = []
        for seed in range(400):
            with torch.no_grad():
                model.w.fill_(1.0)
            optimizer = MeZO(model.named_parameters(), lr=times * best_rate(model), seed=seed)
            optimizer.step(closure(model, 0.0)(0))
            after.append(float(model.loss(torch.zeros(1, 60, dtype=torch.float64)).detach()))
        means.append(float(np.mean(after)))
    start = float(curvature.sum() / 2)
    assert means[1] < means[0] < start
    assert means[2] == pytest.approx(start, rel=0.05)  # twice the best gains nothing


def test_noise_of_the_batches_lowers_it() -> None:
    model = Quadratic(torch.full((50,), 3.0).double())
    quiet, noisy = (
        find_rate(MeZO(model.named_parameters(), lr=0.0, seed=1), closure(model, spread), directions=100).rate
        for spread in (0.0, 12.0)
    )
    assert 0.05 * quiet < noisy < 0.6 * quiet


def test_variants_and_probes() -> None:
    g, c = np.full((3, 2), 4.0), np.full((3, 2), 10.0)
    p = [("w", nn.Parameter(torch.zeros(2)))]
    plain = rate_of(MeZO(p), g, c).rate
    assert plain == pytest.approx(SHARE / 10)
    assert rate_of(MeZO(p, probes=3), g, c).rate == pytest.approx(3 * plain)
    assert rate_of(MeZO(p, variant="adam"), g, c).rate == pytest.approx(4 * plain)
    assert rate_of(MeZO(p, variant="fzoo", probes=2), g, c).rate == pytest.approx(8 * plain)


def test_downhill_and_flat() -> None:
    p = [("w", nn.Parameter(torch.zeros(2)))]
    g = np.full((3, 2), 4.0)
    assert rate_of(MeZO(p), g, np.full((3, 2), -10.0)).rate == pytest.approx(SHARE / 10)
    assert 0 < rate_of(MeZO(p), g, np.zeros((3, 2))).rate < math.inf
    with pytest.raises(UsageError, match="the same along every direction"):
        rate_of(MeZO(p), 0 * g, g)
