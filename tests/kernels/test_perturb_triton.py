"""The GPU's perturbation against its plain definition: on a GPU where there is one, else under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

pytest.importorskip("triton")

from mickle.kernels.perturb import add_draws_plain
from mickle.kernels.perturb_triton import add_draws_triton
from mickle.kernels.philox import Kind, Moves, Stream

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DRAWS = [2**32 - 1, 0, 2**31, 7]


@settings(max_examples=12, deadline=None)
@given(
    some.sampled_from(["rademacher", "gaussian"]),
    some.sampled_from([1, 3, 31, 127, 129, 1024, 1025, 2500]),
    some.integers(1, 4),
    some.integers(0, 2**63),
)
def test_weights_are_those_of_the_definition_bit_for_bit(kind: Kind, size: int, draws: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(size, generator=generator)
    moves = Moves.of(
        DRAWS[:draws], torch.randn(draws, generator=generator), 1 + torch.randn(draws, generator=generator)
    )
    found, expected = weights.clone().to(DEVICE), weights.clone()
    add_draws_triton(found, f"layer.{seed}", Stream(seed, kind), moves)
    add_draws_plain(expected, f"layer.{seed}", Stream(seed, kind), moves)
    assert torch.equal(found.cpu(), expected)
    assert not torch.equal(expected, weights)


def test_a_draw_leaves_what_lies_behind_the_tensor() -> None:
    """The last tile is cut: of a longer tensor only the first part moves."""
    whole = torch.zeros(1500, device=DEVICE)
    add_draws_triton(whole[:1100], "w", Stream(1), Moves.of([1], [1.0]))
    assert bool((whole[:1100].abs() == 1).all())
    assert bool((whole[1100:] == 0).all())
