"""The sweep against identities, closed forms, the published algorithm, and hard cases."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

from mickle.compression.hessian import gather
from mickle.compression.sweep import (
    SweepSettings,
    gptq,
    inverse_factor,
    prepare,
    quantize_layer,
    relative_error,
    rounding,
    spqr,
    sweep,
)
from mickle.errors import NumericError


def problem(outputs: int, inputs: int, seed: int = 0, planted: float = 0.01) -> tuple[Tensor, Tensor]:
    """Weights with a few large ones, and the Hessian of correlated inputs of different sizes; float64."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    weight = 0.05 * normal(outputs, inputs)
    weight[torch.rand(outputs, inputs, generator=draw) < planted] *= 8
    x = normal(3 * inputs, inputs) @ normal(inputs, inputs) * (0.1 + torch.rand(inputs, generator=draw).double())
    return weight, 2 * x.T @ x / len(x)


KINDS = [
    spqr(3, 0.2),
    spqr(3, math.inf),
    spqr(4, 0.05, act_order=False, damping=1.0),
    spqr(3, 0.2, leave_one_out=False),
    SweepSettings(2, 8, True, 0.5),
    SweepSettings(3, 16, False, 0.2),
    gptq(4, 32),
    gptq(3, 0),
    rounding(3, 16),
    SweepSettings(3, 16, True, 0.2, compensate=False),
]


@settings(max_examples=20, deadline=None)
@given(some.integers(1, 40), some.integers(1, 70), some.sampled_from(KINDS), some.integers(0, 1000), some.booleans())
def test_the_fast_sweep_is_the_published_one(
    outputs: int, inputs: int, kind: SweepSettings, seed: int, equal_values: bool
) -> None:
    weight, hessian = problem(outputs, inputs, seed)
    if equal_values:  # ties, constant rows and zeros
        weight = (weight * 20).round() / 20
    ready = prepare(weight, hessian, kind, torch.float64)
    fast, plain = sweep(ready, kind), sweep(ready, kind, plain=True)
    # In float64 a tie is decided by the last bit of a sum, so a rare code may differ; its error may not.
    assert (fast.parts.codes == plain.parts.codes).mean() > 0.99
    assert fast.loss == pytest.approx(plain.loss, rel=1e-5, abs=1e-12)
    if not equal_values:
        np.testing.assert_array_equal(fast.parts.codes, plain.parts.codes)
        np.testing.assert_allclose(fast.parts.residuals, plain.parts.residuals, atol=1e-12)
        np.testing.assert_allclose(fast.parts.statistics[..., :outputs], plain.parts.statistics[..., :outputs])
    for name, part in fast.grouped.tensors().items():
        assert part.shape == plain.grouped.tensors()[name].shape or name in ("values", "columns")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.compensate])
def test_what_is_left_is_e_times_u(kind: SweepSettings) -> None:
    weight, hessian = problem(48, 80)
    ready = prepare(weight, hessian, kind, torch.float64)
    found = sweep(ready, kind)
    left = ready.weight - found.parts.weight
    np.testing.assert_allclose(left, found.parts.errors @ ready.upper, rtol=0, atol=1e-12 * np.abs(left).max() * 1e3)
    order = slice(None) if ready.order is None else torch.from_numpy(ready.order)
    damped = hessian[order][:, order] + ready.damping * hessian.diagonal().mean() * torch.eye(80).double()
    trace = np.trace(left @ damped.numpy() @ left.T)
    assert found.loss == pytest.approx(trace, rel=1e-9)


@pytest.mark.parametrize("inputs", [1, 7, 64])
def test_u_is_the_factor_of_the_inverse(inputs: int) -> None:
    _, hessian = problem(4, inputs)
    upper, damping = inverse_factor(hessian, 0.01)
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(inputs).double()
    assert damping == 0.01
    assert torch.equal(upper, upper.triu())
    torch.testing.assert_close(upper.T @ upper @ damped, torch.eye(inputs).double(), atol=1e-9, rtol=0)


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    weight, hessian = problem(32, 64)
    for kind in (spqr(3, math.inf), gptq(4, 16)):
        even = sweep(prepare(weight, 3.0 * torch.eye(64).double(), kind, torch.float64), kind)
        alone = replace(kind, compensate=False)
        rounded = sweep(prepare(weight, None, alone, torch.float64), alone)
        torch.testing.assert_close(even.grouped.dequantized(), rounded.grouped.dequantized())
        once, scaled = (sweep(prepare(weight, h, kind, torch.float64), kind) for h in (hessian, 7 * hessian))
        np.testing.assert_array_equal(once.parts.codes, scaled.parts.codes)


@pytest.mark.parametrize("block", [1, 16, 64])
def test_blocks_only_batch(block: int) -> None:
    weight, hessian = problem(32, 200)
    kind = SweepSettings(3, 16, True, 0.2)
    ready = prepare(weight, hessian, kind, torch.float64)
    if block == 1:  # a group must lie in one block
        kind = SweepSettings(3, 0, True, 0.2)
    whole, parts = sweep(ready, kind, block=208), sweep(ready, kind, block=block)
    np.testing.assert_allclose(whole.parts.weight, parts.parts.weight, atol=1e-6)


def test_no_threshold_no_outliers_and_threshold_zero_keeps_all() -> None:
    weight, hessian = problem(32, 64)
    none = quantize_layer(weight, hessian, spqr(3, math.inf))
    assert none.outlier_share == 0
    assert none.values is None
    every = quantize_layer(weight, hessian, spqr(3, 0.0))
    assert every.outlier_share > 0.95
    torch.testing.assert_close(every.dequantized(), weight.float(), atol=3e-4, rtol=0)


def test_outliers_are_fewer_as_the_threshold_rises() -> None:
    weight, hessian = problem(64, 128)
    shares = [quantize_layer(weight, hessian, spqr(3, tau)).outlier_share for tau in (0.02, 0.1, 0.5, 2.0, 1e9)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > shares[-1] == 0


def test_by_pencil() -> None:
    group = torch.tensor([[-1.0, 1.1, 0.0, 0.5]])
    found = sweep(prepare(group, None, rounding(3, 0), torch.float64), rounding(3, 0))
    assert found.parts.codes.tolist() == [[0, 7, 3, 5]]
    stored = found.grouped.dequantized()[0]
    torch.testing.assert_close(stored, torch.tensor([-1.0, 1.1, -0.1, 0.5]), atol=2e-3, rtol=0)
    kind = rounding(3, 0, two_level=True)
    assert sweep(prepare(group, None, kind), kind).parts.codes.tolist() == [[0, 7, 3, 5]]


def test_a_huge_weight_becomes_an_outlier_and_its_group_does_not_suffer() -> None:
    weight, hessian = problem(32, 64, planted=0)
    weight[3, 20] = 4.0
    found = quantize_layer(weight, hessian, spqr(3, 0.2, act_order=False))
    assert found.values is not None
    assert found.rows is not None
    assert int(found.rows[4] - found.rows[3]) >= 1
    without = quantize_layer(weight, hessian, spqr(3, math.inf, act_order=False))
    alone = torch.ones(64, dtype=torch.bool)
    alone[20] = False
    error, worse = (
        float((f.dequantized() - weight)[3, alone].norm() / weight[3, alone].norm()) for f in (found, without)
    )
    assert error < worse / 3
    assert abs(float(found.dequantized()[3, 20]) - 4) < 0.05


@pytest.mark.parametrize("kind", [spqr(3, 0.2), gptq(4, 16), rounding(3, 16)])
def test_constant_and_zero_rows_come_back(kind: SweepSettings) -> None:
    weight, hessian = problem(20, 40)
    weight[:] = torch.linspace(-0.3, 0.3, 20).double()[:, None]
    weight[5] = 0
    found = quantize_layer(weight, hessian, kind)
    assert relative_error(weight, found.dequantized(), hessian) < 0.12  # three bits for a tile's 16 scales
    zeros = quantize_layer(torch.zeros(20, 40), hessian, kind)
    assert not zeros.dequantized().any()


def hard(what: str) -> Tensor:
    """[20, 40], so that groups of 16 do not divide a row, nor strips of 16 the rows."""
    weight = torch.randn(20, 40, generator=torch.Generator().manual_seed(2))
    if what == "a group of zeros":
        weight[:, 16:32] = 0
    elif what == "a group of one value":
        weight[3, :16] = -0.7
    elif what == "nearly one value":
        weight = 100 + 0.05 * weight
    elif what == "denormals":
        weight = weight.sign() * 1e-42
    elif what == "below what 16 bits hold":
        weight *= 1e-8
    elif what == "one large":
        weight[5, 7] = 60_000.0
    return weight


WHATS = [
    "a group of zeros", "a group of one value", "nearly one value", "denormals", "below what 16 bits hold", "one large",
]  # fmt: skip


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize(("bits", "group"), [(3, 16), (2, 0), (4, 32)])
def test_hard_groups_come_back_within_half_a_step(what: str, bits: int, group: int) -> None:
    """Half a step of the group's range, and what 16 bits round of its scale and zero (2^-11 of the size, and below the
    smallest scale that 16 bits hold the group is lost).
    """
    weight = hard(what)
    back = quantize_layer(weight, None, rounding(bits, group)).dequantized()
    for members, found in zip(weight.split(group or 40, 1), back.split(group or 40, 1), strict=True):
        low, high = members.amin(1, keepdim=True), members.amax(1, keepdim=True)
        size = torch.maximum(low.abs(), high.abs())
        allowed = (high - low) / (2 * (2**bits - 1)) + 2**-10 * size + 2**bits * 2.0**-25
        assert bool(((found - members).abs() <= allowed).all())


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("kind", [spqr(3, 0.2), spqr(2, math.inf), gptq(4, 16), SweepSettings(3, 16, False, 0.2)])
def test_hard_groups_are_swept_to_finite_numbers(what: str, kind: SweepSettings) -> None:
    weight, (_, hessian) = hard(what), problem(4, 40)
    for plain in (False, True):
        swept = sweep(prepare(weight, hessian, kind), kind, plain=plain)
        assert torch.isfinite(swept.grouped.dequantized()).all() and math.isfinite(swept.loss)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e38, -65_505.0])
@pytest.mark.parametrize("kind", [spqr(3, 0.2), gptq(4, 16), rounding(3, 16)])
def test_one_number_that_16_bits_do_not_hold_is_an_error(value: float, kind: SweepSettings) -> None:
    weight, (_, hessian) = hard("one large"), problem(4, 40)
    weight[5, 7] = value
    with pytest.raises(NumericError, match="not finite|65,504"):
        quantize_layer(weight, hessian, kind)


def test_the_published_sweep_leaves_what_it_is_given_as_it_was() -> None:
    weight, hessian = problem(20, 40)
    prepared = prepare(weight, hessian, spqr())
    before = prepared.weight.copy(), prepared.upper.copy()
    sweep(prepared, spqr(), plain=True)
    assert np.array_equal(prepared.weight, before[0]) and np.array_equal(prepared.upper, before[1])


def test_a_hessian_is_twice_the_mean_of_its_inputs_products() -> None:
    first, second, other = (torch.nn.Linear(3, 2) for _ in range(3))
    x = torch.tensor([[[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]], [[2.0, 0.0, 0.0], [0.0, 0.0, 4.0]]])
    with gather({"first": first, "second": second, "other": other}) as found:
        first(x), second(x)
        first(y := 2 * x), second(y)
    expected = torch.tensor([[5.0, 2.0, 0.0], [2.0, 5.0, 1.0], [0.0, 1.0, 17.0]]).double() * (1 + 4) * 2 / 8
    assert torch.equal(found.hessian("first"), expected) and torch.equal(found.hessian("second"), expected)  # type: ignore[arg-type]
    assert found.leader["second"] == "first" and found.hessian("other") is None


def test_dead_inputs_singular_hessians_and_few_tokens() -> None:
    weight, _ = problem(32, 64)
    x = torch.randn(10, 64, generator=torch.Generator().manual_seed(1)).double()
    x[:, 7] = 0
    found = sweep(prepare(weight, x.T @ x, spqr(3, 0.2)), spqr(3, 0.2))
    assert found.prepared.dead == 1
    stored = found.grouped.dequantized()
    assert torch.isfinite(stored).all()
    constant = torch.ones(10, 64).double()
    assert torch.isfinite(quantize_layer(weight, constant.T @ constant, spqr(3, 0.2)).dequantized()).all()


def test_damping_is_raised_where_there_is_no_factor() -> None:
    hessian = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.05]).double())  # what rounding can make of a singular one
    _, damping = inverse_factor(hessian, 0.01)
    assert damping == 0.1
    with pytest.raises(NumericError, match="no Cholesky factor"):
        inverse_factor(torch.diag(torch.tensor([1.0, -5.0]).double()), 0.01)


@pytest.mark.parametrize(
    ("spoil", "said"), [("weight", "weights are not finite"), ("hessian", "Hessian"), ("large", "65,504")]
)
def test_numbers_that_cannot_be_are_refused(spoil: str, said: str) -> None:
    weight, hessian = problem(16, 32)
    if spoil == "hessian":
        hessian[3, 3] = math.inf
    else:
        weight[2, 2] = math.nan if spoil == "weight" else 1e6
    with pytest.raises(NumericError, match=said):
        quantize_layer(weight, hessian, spqr())


def test_float32_is_the_float64_answer_but_for_ties() -> None:
    weight, hessian = problem(128, 256)
    kind = spqr(3, 0.2)
    single, double = (sweep(prepare(weight, hessian, kind, t), kind) for t in (torch.float32, torch.float64))
    assert (single.parts.codes == double.parts.codes).mean() > 0.99
    assert single.loss == pytest.approx(double.loss, rel=1e-2)
    plain = sweep(prepare(weight, hessian, kind, torch.float32), kind, plain=True)
    assert (single.parts.codes == plain.parts.codes).mean() >= 0.999
    assert single.loss == pytest.approx(plain.loss, rel=1e-4)


def test_compensation_small_groups_and_outliers_each_help() -> None:
    """The order of the dossier's ablation: 3 bits, relative output error."""
    weight, hessian = problem(64, 256)
    kinds: list[Any] = [
        SweepSettings(3, 16, True, math.inf, compensate=False),
        spqr(3, math.inf),
        spqr(3, 0.2),
        spqr(4, 0.2),
    ]
    errors = [relative_error(weight, quantize_layer(weight, hessian, kind).dequantized(), hessian) for kind in kinds]
    assert errors == sorted(errors, reverse=True)
    assert errors[1] < 0.75 * errors[0]
