"""NF4 against the paper's derivation, pencil, the figures of its dossier, and bitsandbytes' bytes."""

import math
from contextlib import nullcontext
from statistics import NormalDist

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mickle.errors import NumericError, UsageError
from mickle.kernels.dispatch import plain_kernels
from mickle.quantization import codes
from mickle.quantization.nf4 import Blocks, dequantize_4bit, doubled, quantize_4bit
from mickle.quantization.nf4_linear import NF4Linear


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def indices(blocks: Blocks) -> list[int]:
    return [half for byte in blocks.packed.tolist() for half in (byte >> 4, byte & 15)]


# -- codes -----------------------------------------------------------------------------------------------------------


def test_the_table_is_the_papers_derivation() -> None:
    values = codes.table("nf4").tolist()
    quantile, offset = NormalDist().inv_cdf, 0.9677083  # the mean of 1 - 1/32 and 1 - 1/30
    positive = [quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    negative = [-quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    derived = [value / positive[0] for value in sorted([*positive, *negative, 0.0])]
    assert max(abs(a - b) for a, b in zip(derived, values, strict=True)) < 5e-7
    assert len(set(values)) == 16
    assert (values[0], values[7], values[15]) == (-1.0, 0.0, 1.0)


def test_thresholds_are_the_known_midpoints() -> None:
    known = [-0.8480964, -0.6106329, -0.4599953, -0.3396794, -0.2346074, -0.1379117, -0.0455250]
    known += [0.0397902, 0.1202553, 0.2035213, 0.2920138, 0.3893125, 0.5016635, 0.6427869, 0.8614785]
    assert codes.thresholds("nf4").tolist() == pytest.approx(known, abs=1e-7)


def test_fp4_by_index() -> None:
    known = [0, 0.0625 / 12, 8 / 12, 1, 4 / 12, 6 / 12, 2 / 12, 3 / 12]
    assert codes.table("fp4").tolist() == pytest.approx([*known, *(-v for v in known)], abs=1e-7)


def test_the_dynamic_map_in_its_known_places() -> None:
    values = codes.dynamic_map()
    assert len(values) == 256
    assert bool((values.diff() > 0).all())
    assert values[0].item() == pytest.approx(-0.99297, abs=1e-5)
    assert (values[127].item(), values[255].item()) == (0.0, 1.0)
    assert values[128].item() == pytest.approx(5.5e-7, rel=1e-6)


def test_straight_lines_are_the_dynamic_map() -> None:
    j = torch.arange(256) - 127
    t = j.abs() + 0.5
    place = (t.view(torch.int32) >> 23) & 15
    p, q = codes.scale_lines().split(16)
    values = (p[place] + q[place] * t) * torch.where(j < 0, -1.0, 1.0)
    torch.testing.assert_close(values, codes.dynamic_map(), rtol=1e-6, atol=1e-10)


def test_an_unknown_code_is_refused() -> None:
    with pytest.raises(UsageError, match="nf5"):
        quantize_4bit(normal(4), "nf5")


# -- by pencil -------------------------------------------------------------------------------------------------------


def test_first_bytes_by_pencil() -> None:
    weight = torch.tensor([1.0, -0.5, 0.25, 0.25] + [0.0] * 60)
    blocks = quantize_4bit(weight, double=False)
    assert blocks.packed[:3].tolist() == [0xF2, 0xAA, 0x77]
    assert blocks.absmax.tolist() == [1.0]


@pytest.mark.parametrize("double", [False, True])
def test_zeros_stay_zeros(double: bool) -> None:
    blocks = quantize_4bit(torch.zeros(100), double=double)
    assert set(blocks.packed.tolist()) == {0x77}
    assert blocks.scales().tolist() == [0.0, 0.0]
    assert not dequantize_4bit(blocks).any()


def test_odd_numbers_and_short_blocks() -> None:
    blocks = quantize_4bit(normal(101), double=False)
    assert (len(blocks.packed), len(blocks.absmax)) == (51, 2)
    assert blocks.packed[-1] & 15 == 7  # the padding is a zero
    assert dequantize_4bit(blocks).shape == (101,)
    assert len(quantize_4bit(normal(100), double=False).packed) == 50


def test_int4_rounds_seven_times_the_ratio() -> None:
    weight = normal(512)
    blocks = quantize_4bit(weight, "int4", double=False)
    scale = blocks.absmax.repeat_interleave(64)
    torch.testing.assert_close(dequantize_4bit(blocks), (7 * weight / scale).round() * scale / 7)
    assert max(indices(blocks)) <= 14


def test_stored_bytes_in_closed_form() -> None:
    weight = normal(256, 1024)
    n = weight.numel()
    tables = 64
    assert quantize_4bit(weight, double=False).stored_bytes() == n // 2 + 4 * n // 64 + tables
    double = n // 2 + n // 64 + 4 * n // (64 * 256) + tables + 1024 + 4
    assert quantize_4bit(weight).stored_bytes() == double
    assert NF4Linear.from_dense(weight).stored_bytes() == double
    assert 8 * (double - tables - 1028) / n == pytest.approx(4.126953, abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(bad: float) -> None:
    weight = normal(3, 70)
    weight[2, 69] = bad
    with pytest.raises(NumericError, match=r"layers\.3"):
        quantize_4bit(weight, name="layers.3.weight")


HARD = {
    "zeros": torch.zeros(130),
    "a block of zeros": torch.cat([torch.zeros(64), normal(66)]),
    "one value": torch.full((130,), -0.7),
    "denormals": normal(130).sign() * 1e-42,
    "just below the least scale": normal(130) * 1e-39,
    "1e38": normal(130).clamp(-1, 1) * 1e38,
    "one of 1e38": torch.cat([torch.tensor([1e38]), normal(129)]),
    "one number": torch.tensor([3.0]),
    "a block of 70 numbers": normal(70),
}


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("what", HARD)
def test_hard_blocks_come_back_within_half_a_step(what: str, plain: bool, double: bool) -> None:
    """Half the widest gap of NF4's values is 0.152; of scales in 8 bits, 0.0071 of the largest that share one."""
    weight = HARD[what]
    with plain_kernels() if plain else nullcontext():
        blocks = quantize_4bit(weight, double=double)
        back = dequantize_4bit(blocks)
    scale = torch.stack([block.abs().max() for block in weight.split(64)])
    of_number = scale.repeat_interleave(64)[: len(weight)].double()
    nested = float((scale - scale.mean()).abs().max()) * 0.0071 if double else 0.0
    allowed = 0.153 * of_number + nested + 1.1e-38 + 1e-6 * of_number
    assert torch.isfinite(back).all()
    assert bool(((back - weight).double().abs() <= allowed).all())


def test_scales_that_have_no_mean_are_refused_by_name() -> None:
    weight = torch.full((128,), 3e38)
    assert dequantize_4bit(quantize_4bit(weight, double=False)).tolist() == weight.tolist()
    with pytest.raises(NumericError, match="q_proj"):
        quantize_4bit(weight, name="q_proj.weight")


def test_wrong_blocks_and_types_are_refused() -> None:
    with pytest.raises(UsageError, match="block of 48"):
        quantize_4bit(normal(4), block=48)
    with pytest.raises(UsageError, match="int64"):
        quantize_4bit(torch.arange(4))


# -- known figures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "rms", "mean"), [("nf4", 0.09195, 0.07282), ("fp4", 0.12190, 0.09648), ("int4", 0.10756, 0.09124)]
)
def test_errors_on_a_normal_distribution(code: str, rms: float, mean: float) -> None:
    weight = normal(1 << 20)
    error = dequantize_4bit(quantize_4bit(weight, code, double=False)) - weight
    assert (error.norm() / weight.norm()).item() == pytest.approx(rms, rel=0.01)
    assert error.abs().mean().item() == pytest.approx(mean, rel=0.01)


def test_double_quantization_costs_next_to_nothing() -> None:
    weight = 0.02 * normal(1 << 21)
    single = quantize_4bit(weight, double=False)
    errors = [
        ((dequantize_4bit(blocks) - weight).norm() / weight.norm()).item() for blocks in (single, doubled(single))
    ]
    assert errors == pytest.approx([0.091989, 0.092011], rel=0.003)
    assert 0 < errors[1] - errors[0] < 1e-4


@given(st.integers(0, 2**31), st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_quantizing_what_was_quantized_changes_no_bit(seed: int, blocks: int) -> None:
    """Each block holds its own +-absmax element, so its scale comes back exactly."""
    once = quantize_4bit(normal(64 * blocks, seed=seed), double=False)
    again = quantize_4bit(dequantize_4bit(once), double=False)
    assert torch.equal(once.packed, again.packed)
    assert torch.equal(once.absmax, again.absmax)


# -- the fast way and the definition ---------------------------------------------------------------------------------


@given(
    st.integers(0, 700),
    st.sampled_from(codes.CODES),
    st.booleans(),
    st.sampled_from([32, 64, 128, 4096]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(["normal", "ties", "tiny", "huge", "mixed"]),
)
@settings(max_examples=60, deadline=None)
def test_fast_and_plain_give_the_same_bits(
    n: int, code: str, double: bool, block: int, dtype: torch.dtype, kind: str
) -> None:
    weight = normal(max(n, 1), seed=n)
    if kind == "ties":
        weight = torch.cat([codes.thresholds(code), torch.ones(1), weight.clamp(-1, 1)])
    scale = {"tiny": 1e-39, "huge": 1e35}.get(kind, 1.0)
    weight = (weight.clamp(-3, 3) * scale * (10 ** normal(len(weight), seed=1) if kind == "mixed" else 1)).to(dtype)
    weight = weight.nan_to_num(0.0, 0.0, 0.0)  # float16 has no 1e35
    fast = quantize_4bit(weight, code, double, block)
    dense = {kind: dequantize_4bit(fast, kind) for kind in (torch.float32, torch.bfloat16, torch.float16)}
    with plain_kernels():
        plain = quantize_4bit(weight, code, double, block)
        for kept, values in dense.items():
            assert torch.equal(dequantize_4bit(plain, kept), values)
    assert torch.equal(fast.packed, plain.packed)
    assert torch.equal(fast.absmax, plain.absmax)


# -- bitsandbytes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_bytes_and_scales_are_those_of_bitsandbytes(code: str, dtype: torch.dtype) -> None:
    theirs = pytest.importorskip("bitsandbytes.functional")
    generator = torch.Generator().manual_seed(3)
    for shape in [*range(1, 201), (77, 130), (96, 128), (512, 1024)]:
        weight = torch.randn(shape, generator=generator).to(dtype)
        packed, state = theirs.quantize_4bit(weight, quant_type=code, compress_statistics=False)
        ours = quantize_4bit(weight, code, double=False)
        assert torch.equal(packed.flatten(), ours.packed)
        assert torch.equal(state.absmax, ours.absmax)
        packed, state = theirs.quantize_4bit(weight, quant_type=code, compress_statistics=True)
        double = quantize_4bit(weight, code, double=True)
        assert torch.equal(state.absmax, double.absmax)
        assert torch.equal(state.state2.absmax, double.nested)
        assert state.offset.item() == double.offset
        if isinstance(shape, tuple):
            assert torch.equal(theirs.dequantize_4bit(packed, state), dequantize_4bit(double, dtype))


def test_the_dynamic_map_is_theirs() -> None:
    theirs = pytest.importorskip("bitsandbytes.functional")
    assert torch.equal(codes.dynamic_map(), theirs.create_dynamic_map())
    assert torch.equal(codes.table("fp4"), theirs.get_4bit_type("fp4", "cpu"))


def test_blocks_that_run_over_row_ends_are_read_as_they_were_written() -> None:
    """bitsandbytes 0.50.2 on a CPU with AVX-512 reads such weights wrongly: its error is as large as the weights."""
    weight = normal(64, 160)
    error = (dequantize_4bit(quantize_4bit(weight)) - weight).abs()
    assert error.max() < 0.16 * weight.abs().max()  # half of the widest gap between codes, and scales in 8 bits


# -- the layer -------------------------------------------------------------------------------------------------------


def test_gradients_are_those_of_a_dense_layer() -> None:
    layer = NF4Linear.from_dense(normal(96, 160), normal(96, seed=1))
    dense = layer.dequantized()
    x = normal(3, 17, 160, seed=2).requires_grad_()
    y = layer(x)
    expected = F.linear(x, dense, layer.bias)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    upstream = normal(*y.shape, seed=3)
    (found,) = torch.autograd.grad(y, x, upstream)
    (known,) = torch.autograd.grad(expected, x, upstream)
    assert ((found - known).abs().max() / known.abs().max()) < 1e-5


def test_second_derivatives_are_right_though_memory_is_used_again() -> None:
    layers = [NF4Linear.from_dense(normal(64, 64, seed=s)) for s in (1, 2)]
    dense = [layer.dequantized() for layer in layers]
    x = (0.1 * normal(5, 64)).requires_grad_()

    def second(product) -> Tensor:  # type: ignore[no-untyped-def]
        y = product(1, torch.tanh(product(0, x)))
        (first,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        return torch.autograd.grad((first**2).sum(), x)[0]

    found = second(lambda i, h: layers[i](h))
    torch.testing.assert_close(found, second(lambda i, h: F.linear(h, dense[i])), rtol=1e-4, atol=1e-4)


def test_no_dense_weight_is_kept_for_the_backward_pass() -> None:
    layer = NF4Linear.from_dense(normal(64, 128))
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        layer(normal(4, 128).requires_grad_())
    assert saved == []


@given(
    st.integers(1, 70),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from(["nf4", "fp4", "int4"]),
    st.integers(1, 8),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=40, deadline=None)
def test_few_rows_are_the_dense_product(
    out: int, blocks: int, double: bool, code: str, rows: int, dtype: torch.dtype
) -> None:
    layer = NF4Linear.from_dense(normal(out, 64 * blocks, seed=out), None, code, double).eval()
    dense = layer.dequantized().double()
    x = normal(rows, 64 * blocks, seed=1).to(dtype)
    found = layer(x)
    assert found.dtype == dtype
    exact = x.double() @ dense.T
    bound = (x.double().abs() @ dense.T.abs()) * (2**-22 if dtype == torch.float32 else 2**-7)
    assert bool(((found.double() - exact).abs() <= bound + 1e-6).all())


def test_rows_that_do_not_fill_blocks_are_multiplied_densely() -> None:
    layer = NF4Linear.from_dense(normal(30, 40)).eval()
    x = normal(1, 40, seed=1)
    torch.testing.assert_close(layer(x), F.linear(x, layer.dequantized()))
    assert not layer.in_strips


@pytest.mark.parametrize("double", [False, True])
def test_decoding_leaves_what_is_stored_as_it_was(double: bool) -> None:
    """bitsandbytes writes another weight after a product (its issue 2078)."""
    layer = NF4Linear.from_dense(normal(50, 192), double=double).eval()
    before = layer.tensors("x")
    x = normal(1, 192, seed=1)
    layer(x)
    for name, tensor in layer.tensors("x").items():
        assert torch.equal(tensor, before[name])
    first = layer(x)
    layer.to("cpu")
    layer.train()
    assert torch.equal(layer.packed, before["x.weight"].flatten())
    torch.testing.assert_close(layer.eval()(x), first)


def test_casting_a_model_leaves_scales_in_32_bits() -> None:
    layer = NF4Linear.from_dense(normal(32, 64), normal(32), double=False)
    before = layer.dequantized()
    layer.to(torch.bfloat16)
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16
    assert torch.equal(layer.dequantized(), before)


def test_autocast_computes_in_bfloat16() -> None:
    layer = NF4Linear.from_dense(normal(32, 64), normal(32))
    x = normal(16, 64).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    torch.testing.assert_close(y.float(), F.linear(x, layer.dequantized(), layer.bias), rtol=0.05, atol=0.2)


def test_nothing_of_the_base_goes_into_a_checkpoint() -> None:
    assert list(NF4Linear.from_dense(normal(8, 64), normal(8)).state_dict()) == ["bias"]
