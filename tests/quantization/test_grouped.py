"""The stored form: every code at every place, bytes by the formula, products from the bits."""

import copy
from typing import Any

import emulated  # noqa: F401
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from mickle.errors import UsageError
from mickle.kernels import grouped_product, grouped_strips
from mickle.kernels.dispatch import plain_kernels
from mickle.quantization.grouped import Grouped, Layout, pack, pack_codes, unpack_codes
from mickle.quantization.grouped_linear import GroupedLinear

SHAPES = some.tuples(some.integers(1, 50), some.integers(1, 140))


def matrix(layout: Layout, share: float | None = 0.02, ordered: bool = True, seed: int = 0) -> tuple[Grouped, Any]:
    """A random grouped matrix, and the dense one that it is, made without the format."""
    draw = np.random.default_rng(seed)
    rows = layout.strips * 16
    codes = draw.integers(0, 2**layout.bits, (layout.outputs, layout.inputs)).astype(np.uint8)
    second = None
    if layout.two_level:
        statistics: Any = draw.integers(0, 8, (2, layout.groups, rows)).astype(np.uint8)
        second = draw.uniform(0.1, 0.9, (layout.groups, layout.strips, 4)).astype(np.float16).astype(np.float32)
        tile = np.repeat(second, 16, axis=1)  # [groups, rows, 4]
        scales = tile[..., 0] * (statistics[0] - tile[..., 1])
        zeros = tile[..., 2] * (statistics[1] - tile[..., 3])
    else:
        statistics = draw.uniform(0.1, 2, (2, layout.groups, rows)).astype(np.float16).astype(np.float32)
        scales, zeros = statistics
    residuals = None
    dense = np.empty((layout.outputs, layout.inputs), np.float32)
    for column in range(layout.inputs):
        group = column // layout.group
        dense[:, column] = scales[group, : layout.outputs] * (codes[:, column] - zeros[group, : layout.outputs])
    if share is not None:
        residuals = np.where(draw.random(dense.shape) < share, draw.normal(size=dense.shape), 0).astype(np.float16)
        dense += residuals
    order = draw.permutation(layout.inputs) if ordered else None
    whole = np.empty_like(dense)
    whole[:, slice(None) if order is None else order] = dense
    return pack(layout, codes, statistics, second, residuals, order), torch.from_numpy(whole)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_every_code_at_every_place_comes_back(bits: int) -> None:
    for code in range(2**bits):
        for column in range(32):
            codes = torch.zeros(16, 32, dtype=torch.uint8)
            codes[:, column] = code
            codes[5] = 2**bits - 1 - codes[5]
            assert torch.equal(unpack_codes(pack_codes(codes, bits), bits).to(torch.uint8), codes)


@settings(max_examples=40, deadline=None)
@given(
    SHAPES,
    some.sampled_from([2, 3, 4]),
    some.sampled_from([8, 16, 32, 64, 128, 0]),
    some.booleans(),
    some.sampled_from([None, 0.0, 0.1]),
    some.booleans(),
    some.integers(1, 3),
)
def test_dense_and_product_are_those_of_the_definition(
    shape: Any, bits: int, group: int, two_level: bool, share: Any, ordered: bool, rows: int
) -> None:
    layout = Layout(*shape, bits, min(group or shape[1], shape[1]), two_level)
    grouped, dense = matrix(layout, share, ordered)
    torch.testing.assert_close(grouped.dequantized(), dense, atol=1e-6, rtol=1e-6)
    layer = GroupedLinear(grouped).eval()
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(0))
    exact = x.double() @ dense.double().T
    size = float((x.double().abs() @ dense.double().abs().T).max()) + 1e-9
    with torch.no_grad():
        for kind, most in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2)):
            found = layer(x.to(kind)).double()
            assert float((found - exact).abs().max()) / size < most
        few = layer.few_rows(x)
    assert (few is None) == (grouped_product.segment_of(layout.group) == 0)


@pytest.mark.parametrize("way", [0, 2, 3])
@pytest.mark.parametrize("two_level", [True, False])
@pytest.mark.parametrize("turns", [True, False])
def test_every_way_of_multiplying(way: int, two_level: bool, turns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_strips, "multiplies_bits", lambda: turns)
    monkeypatch.setattr(grouped_product, "way_of", lambda x: way)
    for bits, group in ((2, 8), (3, 16), (3, 128), (4, 64)):
        grouped, dense = matrix(Layout(33, 200, bits, group, two_level), ordered=False)
        x = torch.randn(2, 200, generator=torch.Generator().manual_seed(0))
        x[0, 5] = 300.0  # one large input must not spoil the others
        found = GroupedLinear(grouped).few_rows(x)
        assert found is not None
        exact = x.double() @ dense.double().T
        error = float((found - exact).norm() / exact.norm())
        assert error < (5e-4 if way == 2 else 1e-6)


def test_memory_of_one_layer_is_no_part_of_the_next() -> None:
    """Rows of 60 and of 40 columns are both made ready in two chunks: the rest of the last one is 0 again."""
    for inputs in (60, 40):
        grouped, dense = matrix(Layout(20, inputs, 3, 16, True), ordered=False)
        x = 1 + torch.rand(1, inputs)
        found = GroupedLinear(grouped).few_rows(x)
        torch.testing.assert_close(found, x @ dense.T, atol=1e-4, rtol=1e-4)


def test_rows_of_another_width_are_refused() -> None:
    layer = GroupedLinear(matrix(Layout(20, 48, 3, 16, True))[0]).eval()
    for x in (torch.ones(1, 96), torch.ones(2, 24)):
        with torch.no_grad(), pytest.raises(RuntimeError, match="shapes"):
            layer(x)


def test_threads_share_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_product, "SHARED", 0)
    grouped, dense = matrix(Layout(100, 96, 3, 16, True), ordered=False)
    assert grouped.values is not None
    x = torch.randn(2, 96)
    found = grouped_product.product(
        x,
        grouped.codes,
        grouped.statistics,
        grouped.second,
        (grouped.values, grouped.columns, grouped.rows),
        100,
        16,
        3,
    )  # type: ignore[arg-type]
    torch.testing.assert_close(found, x @ dense.T, atol=1e-4, rtol=1e-4)


def test_bits_by_the_papers_formula() -> None:
    assert Layout(64, 64, 3, 16, True).formula(0) == 3.625
    assert Layout(64, 64, 3, 16, True).formula(0.01) == pytest.approx(3.945)
    assert Layout(64, 64, 4, 16, True).formula(0.0002) == pytest.approx(4.6314)
    assert Layout(64, 64, 4, 64, False).formula(0) == 4.5


@settings(max_examples=30, deadline=None)
@given(SHAPES, some.sampled_from([2, 3, 4]), some.sampled_from([8, 16, 32, 0]), some.booleans(), some.booleans())
def test_bytes_are_what_is_said(shape: Any, bits: int, group: int, two_level: bool, ordered: bool) -> None:
    layout = Layout(*shape, bits, min(group or shape[1], shape[1]), two_level)
    for share in (None, 0.05):
        grouped, _ = matrix(layout, share, ordered)
        count = None if grouped.values is None else len(grouped.values)
        assert grouped.stored_bytes == layout.stored_bytes(count, ordered)


def test_whole_tiles_take_the_formula_and_nothing_else() -> None:
    layout = Layout(64, 128, 3, 16, True)
    grouped, _ = matrix(layout, 0.05)
    assert grouped.values is not None
    formula = layout.formula(grouped.outlier_share) * 64 * 128 / 8
    assert grouped.stored_bytes == formula + 4 * 65 + 2 * 128  # row pointers, order
    assert matrix(layout, None, ordered=False)[0].bits == 3.625


def test_gradients_of_inputs_are_those_of_the_dense_layer() -> None:
    grouped, dense = matrix(Layout(20, 48, 3, 16, True))
    bias = torch.randn(20)
    layer = GroupedLinear(grouped, bias)
    x = torch.randn(3, 5, 48, requires_grad=True)
    other = x.detach().clone().requires_grad_()
    layer(x).square().sum().backward()
    torch.nn.functional.linear(other, dense, bias).square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad, atol=1e-2, rtol=1e-4)


def test_the_plain_way_is_there() -> None:
    grouped, dense = matrix(Layout(20, 48, 3, 16, True))
    with plain_kernels(), torch.no_grad():
        assert GroupedLinear(grouped).few_rows(torch.ones(1, 48)) is None
        torch.testing.assert_close(GroupedLinear(grouped).eval()(torch.ones(1, 48)), dense.sum(1)[None])


def test_a_layer_goes_through_its_tensors() -> None:
    layer = GroupedLinear(matrix(Layout(20, 48, 3, 16, True))[0], torch.randn(20))
    again = GroupedLinear.from_tensors("a.b", {**layer.tensors("a.b"), "a.b.bias": layer.bias}, layer.settings())  # type: ignore[dict-item]
    assert torch.equal(again.dequantized(), layer.dequantized())
    assert again.stored_bytes() == layer.stored_bytes() == sum(t.nbytes for t in layer.tensors("x").values())
    assert layer.half().second.dtype == torch.float16  # type: ignore[union-attr]


def test_a_row_without_outliers_is_sound() -> None:
    layer = GroupedLinear(matrix(Layout(20, 48, 3, 16, True), 0.01)[0])
    assert bool((layer.rows[1:] == layer.rows[:-1]).any()) and len(layer.values)  # type: ignore[arg-type]
    again = GroupedLinear.from_tensors("l", layer.tensors("l"), layer.settings())
    assert torch.equal(again.dequantized(), layer.dequantized())


SPOILED: list[tuple[str, Any]] = [
    ("codes", lambda t: t.pop("l.codes")),
    ("codes", lambda t: t.update({"l.codes": t["l.codes"][:1]})),
    ("statistics", lambda t: t.update({"l.statistics": t["l.statistics"].float()})),
    ("second", lambda t: t.pop("l.second")),
    ("rows", lambda t: t.update({"l.rows": t["l.rows"].flip(0)})),
    ("outliers", lambda t: t["l.rows"].__setitem__(-1, 10**6)),
    ("outliers", lambda t: t["l.rows"].__setitem__(0, 1)),
    ("outliers", lambda t: t["l.rows"].__setitem__(3, t["l.rows"][5] + 1)),
    ("outliers", lambda t: t["l.columns"].fill_(48)),
    ("order", lambda t: t["l.order"].fill_(0)),
]


@pytest.mark.parametrize(("said", "spoil"), SPOILED)
def test_a_strangers_tensors_are_checked(said: str, spoil: Any) -> None:
    layer = GroupedLinear(matrix(Layout(20, 48, 3, 16, True), 0.1)[0])
    tensors = {name: tensor.clone() for name, tensor in layer.tensors("l").items()}
    spoil(tensors)
    with pytest.raises(UsageError, match=said if said != "rows" else "outliers"):
        GroupedLinear.from_tensors("l", tensors, layer.settings())


@pytest.mark.parametrize(
    "change",
    [{"bits": 5}, {"group": 3}, {"inputs": 0}, {"outputs": 10**9}, {"two_level": 1}, {"bits": "3"}, {"inputs": 64}],
)
def test_a_strangers_settings_are_checked(change: dict[str, Any]) -> None:
    layer = GroupedLinear(matrix(Layout(20, 48, 3, 16, True))[0])
    with pytest.raises(UsageError, match="'l"):
        GroupedLinear.from_tensors("l", layer.tensors("l"), {**copy.copy(layer.settings()), **change})
