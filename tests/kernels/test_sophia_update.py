"""The three versions of Sophia's update agree, and agree with the equations done by hand."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.kernels.sophia_update import (
    SophiaRule,
    Tensors,
    fits_numba,
    sophia_update,
    update_foreach,
    update_numba,
    update_plain,
)

RULE = SophiaRule(lr=0.01, beta=0.9, gamma=0.05, eps=1e-12, weight_decay=0.1)


def copied(tensors: Tensors) -> Tensors:
    return Tensors(*(tensor.clone() for tensor in tensors[:4]), *tensors[4:])


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> Tensors:
    """Values over ten orders of magnitude, a tenth of them zero, curvatures of both signs.

    Gradient and momentum have one sign: where they cancel, rounding alone decides the rest.
    """
    generator = torch.Generator().manual_seed(seed)
    four = []
    for _ in range(4):
        scale = 10 ** (torch.rand(shape, generator=generator) * 10 - 5)
        kept = torch.rand(shape, generator=generator) > 0.1
        four.append((torch.randn(shape, generator=generator) * scale * kept).to(dtype))
    four[1] = four[1].abs().copysign(four[2])
    return Tensors(*four, momentum_scale=1.7, curvature_scale=3.1)


def assert_same(one: Tensors, other: Tensors) -> None:
    for name in ("parameter", "momentum", "curvature"):
        # A parameter may cancel against its step, which is at most lr.
        atol = 1e-6 * RULE.lr if name == "parameter" else 1e-30
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=2e-6, atol=atol)


def test_one_step_by_pencil() -> None:
    # m = .1 x .2 = .02; gamma h = .2, .005 and negative: ratios .1, 4 -> 1, sign -> 1; theta drops by lr
    # times these.
    rule = replace(RULE, weight_decay=0.0)
    for update in (update_plain, update_numba, lambda t, r: update_foreach([t], r)[0]):
        tensors = Tensors(torch.ones(3), torch.full((3,), 0.2), torch.zeros(3), torch.tensor([4.0, 0.1, -1.0]))
        assert int(update(tensors, rule)) == 1
        torch.testing.assert_close(tensors.parameter, 1 - torch.tensor([0.001, 0.01, 0.01]))
        torch.testing.assert_close(tensors.momentum, torch.full((3,), 0.02))


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([0, 1, 2, 7, 8, 63, 64, 65, 1000, 4097]),
    seed=st.integers(0, 10_000),
    decay=st.sampled_from([0.0, 0.1]),
    gamma=st.sampled_from([0.0, 1e-3, 1.0, 1e6]),
    eps=st.sampled_from([1e-12, 1e-3]),
)
def test_fast_versions_equal_the_plain_one(size: int, seed: int, decay: float, gamma: float, eps: float) -> None:
    rule = replace(RULE, weight_decay=decay, gamma=gamma, eps=eps)
    plain = drawn((size,), seed)
    fast, listed = copied(plain), copied(plain)
    expected = int(update_plain(plain, rule))
    # Ties at |m| = gamma h are rounding; none of the drawn values stands that near.
    assert abs(update_numba(fast, rule) - expected) <= size // 1000
    assert abs(int(update_foreach([listed], rule)[0]) - expected) <= size // 1000
    assert_same(fast, plain)
    assert_same(listed, plain)


def test_blocks_and_two_threads_change_nothing() -> None:
    plain = drawn((3 * 65536 + 17,), seed=1)
    fast = copied(plain)
    expected = int(update_plain(plain, RULE))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        count = update_numba(fast, RULE)
    finally:
        torch.set_num_threads(before)
    assert abs(count - expected) <= 2
    assert_same(fast, plain)


@pytest.mark.parametrize("extreme", [0.0, 1e-45, -1e-38, 1e38, -1e38, 3.4e38])
def test_extreme_values_stay_finite(extreme: float) -> None:
    for update in (update_plain, update_numba):
        for curvature in (0.0, 1e-45, -1.0, 1e38):
            tensors = Tensors(torch.ones(9), torch.full((9,), extreme), torch.zeros(9), torch.full((9,), curvature))
            update(tensors, RULE)
            assert torch.isfinite(tensors.parameter).all()
            assert (tensors.parameter - 1).abs().max() <= RULE.lr * (1 + RULE.weight_decay) + 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_round_once(dtype: torch.dtype) -> None:
    wide = torch.promote_types(dtype, torch.float32)
    values = torch.linspace(-1, 1, 50)
    tensors = Tensors(
        values.to(dtype), values.flip(0).to(dtype), torch.zeros(50, dtype=wide), torch.ones(50, dtype=wide)
    )
    exact = [tensor.double().clone() for tensor in (tensors.parameter, tensors.gradient)]
    assert not fits_numba(tensors)
    sophia_update([tensors], RULE)
    expected = exact[0] * (1 - 0.001) - 0.01 * (0.1 * exact[1] / 0.05).clamp(-1, 1)
    assert tensors.parameter.dtype == dtype
    torch.testing.assert_close(tensors.parameter.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_strided_tensors_take_the_plain_path_and_scalars_the_fast_one() -> None:
    plain = drawn((6, 10), seed=3)
    strided = Tensors(*(tensor.t().contiguous().t() for tensor in plain[:4]), *plain[4:])
    point = drawn((), seed=4)
    reference = copied(point)
    assert not fits_numba(strided)
    assert fits_numba(point)
    counts = sophia_update([strided, point, drawn((0,), seed=0)], RULE)
    assert int(counts[0]) == int(update_plain(plain, RULE))
    assert int(counts[1]) == int(update_plain(reference, RULE))
    assert counts[2] == 0
    assert_same(strided, plain)
    assert_same(point, reference)


def test_the_update_is_in_place() -> None:
    tensors = drawn((100,), seed=5)
    places = [getattr(tensors, n).data_ptr() for n in ("parameter", "momentum", "curvature")]
    gradient, curvature = tensors.gradient.clone(), tensors.curvature.clone()
    sophia_update([tensors], RULE)
    assert places == [getattr(tensors, n).data_ptr() for n in ("parameter", "momentum", "curvature")]
    assert torch.equal(tensors.gradient, gradient)
    assert torch.equal(tensors.curvature, curvature)
