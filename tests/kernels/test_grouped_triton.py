"""The GPU's grouped kernels against the plain version: on a GPU where there is one, else under Triton's interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as some

pytest.importorskip("triton")

from mickle.kernels import grouped_triton
from mickle.kernels.dispatch import plain_kernels
from mickle.quantization.grouped import Grouped, Layout, pack, unsigned
from mickle.quantization.grouped_linear import GroupedLinear

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
FORMATS = (
    some.sampled_from([2, 3, 4]),
    some.sampled_from([8, 16, 32, 64, 0]),
    some.booleans(),
    some.sampled_from([None, 0.0, 0.1]),
    some.booleans(),
)


def matrix(
    outputs: int, inputs: int, bits: int, group: int, two_level: bool, share: float | None, ordered: bool, seed: int
) -> Grouped:  # fmt: skip
    """A random grouped matrix; group 0 is a whole row."""
    draw = np.random.default_rng(seed)
    layout = Layout(outputs, inputs, bits, min(group or inputs, inputs), two_level)
    rows, second = (2, layout.groups, 16 * layout.strips), None
    if two_level:
        second = draw.uniform(0.1, 4, (layout.groups, layout.strips, 4))
        statistics: Any = draw.integers(0, 8, rows).astype(np.uint8)
    else:
        statistics = draw.uniform(0.1, 2, rows)
    codes = draw.integers(0, 2**bits, (outputs, inputs)).astype(np.uint8)
    residuals = None
    if share is not None:
        residuals = np.where(draw.random((outputs, inputs)) < share, draw.normal(size=(outputs, inputs)), 0)
        residuals[0] = 1.5 if share else 0  # a row with more than a tile of them
    order = draw.permutation(inputs) if ordered else None
    grouped = pack(layout, codes, statistics, second, residuals, order)
    return Grouped(layout, **{name: part.to(DEVICE) for name, part in grouped.tensors().items()})


def outliers(grouped: Grouped) -> Any:
    return None if grouped.values is None else (grouped.values, grouped.columns, grouped.rows)


def rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 in `dtype` as the device has it: Triton's interpreter cuts off what bfloat16 does not hold."""
    if dtype == torch.bfloat16 and not GPU:
        exact = (exact.contiguous().view(torch.int32) & -65536).view(torch.float32)
    return exact.to(dtype)


TYPES = some.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@settings(max_examples=8, deadline=None)
@given(some.integers(1, 35), some.integers(1, 140), *FORMATS, TYPES, some.integers(0, 2**32))
@example(3, 70, 3, 8, True, 0.1, True, torch.float32, 0)
@example(18, 97, 3, 16, True, None, True, torch.bfloat16, 1)
def test_the_dense_weight_is_that_of_the_definition_bit_for_bit(
    outputs: int, inputs: int, bits: int, group: int, two_level: bool, share: Any, ordered: bool,
    dtype: torch.dtype, seed: int,
) -> None:  # fmt: skip
    grouped = matrix(outputs, inputs, bits, group, two_level, share, ordered, seed)
    found = grouped_triton.dense(
        grouped.codes, grouped.statistics, grouped.second, outliers(grouped), grouped.order, outputs, inputs,
        grouped.layout.group, dtype,
    )  # fmt: skip
    assert torch.equal(found, rounded(grouped.dequantized(), dtype))


@settings(max_examples=8, deadline=None)
@given(some.integers(1, 35), some.integers(1, 270), *FORMATS, TYPES, some.integers(1, 2), some.integers(0, 2**32))
@example(3, 270, 3, 8, True, 0.1, True, torch.float32, 1, 0)
@example(17, 97, 2, 0, False, 0.0, False, torch.bfloat16, 2, 1)
def test_few_rows(
    outputs: int, inputs: int, bits: int, group: int, two_level: bool, share: Any, ordered: bool,
    dtype: torch.dtype, rows: int, seed: int,
) -> None:  # fmt: skip
    grouped = matrix(outputs, inputs, bits, group, two_level, share, ordered, seed)
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)
    ordered_x = x if grouped.order is None else x[:, unsigned(grouped.order)]
    found = grouped_triton.few_rows(
        grouped.codes, grouped.statistics, grouped.second, outliers(grouped), outputs, grouped.layout.group, ordered_x
    )  # fmt: skip
    weight = grouped.dequantized().double()
    expected = x.double() @ weight.T
    scales, zeros = (part.double().abs() for part in grouped.scales_and_zeros())
    summed = (scales * (2**bits + zeros))[:, torch.arange(inputs) // grouped.layout.group]  # q x and z x apart
    size = ordered_x.double().abs() @ summed.T + x.double().abs() @ weight.abs().T
    unit = {torch.float32: 0.0, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    assert found.dtype == dtype
    assert bool(((found - expected).abs() <= unit * expected.abs() + 1e-6 * size).all())


def test_nothing_is_read_behind_the_statistics() -> None:
    """40 columns are 5 groups; the two chunks of their codes have room for 8."""
    grouped = matrix(16, 40, 3, 8, False, None, False, 0)
    wide = torch.full((2 * grouped.statistics.numel(),), float("nan"), dtype=torch.float16, device=DEVICE)
    statistics = wide[: grouped.statistics.numel()].view(grouped.statistics.shape)
    statistics.copy_(grouped.statistics)
    found = grouped_triton.few_rows(grouped.codes, statistics, None, None, 16, 8, torch.ones(1, 40, device=DEVICE))
    assert torch.allclose(found, grouped.dequantized().sum(1), rtol=1e-4, atol=1e-3)


def test_segments() -> None:
    assert [grouped_triton.segment_of(group, 3) for group in (8, 16, 32, 128, 24, 6)] == [8, 16, 32, 32, 8, 0]
    assert grouped_triton.segment_of(97, 1) == 32


@pytest.mark.parametrize("rows", [1, 2, 40])
def test_a_layer_on_a_gpu_takes_the_kernels(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = GroupedLinear(matrix(20, 90, 3, 16, True, 0.02, True, 0)).eval()
    x = torch.randn(rows, 90, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with plain_kernels():
        expected, dense = layer(x), layer.dequantized()
    ran = []
    for name in ("dense", "few_rows"):
        whole = getattr(grouped_triton, name)
        monkeypatch.setattr(grouped_triton, name, lambda *a, n=name, f=whole: (ran.append(n), f(*a))[1])
    if not GPU:
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert torch.equal(layer.dequantized(), dense)
    assert torch.allclose(layer(x), expected, rtol=1e-4, atol=1e-2)
    assert ran == ["dense", "dense" if rows == 40 else "few_rows"]
