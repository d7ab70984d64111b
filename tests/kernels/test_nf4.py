"""Each compiled function for 4-bit weights against its definition, by every instruction set; see `emulated.py`."""

import emulated  # noqa: F401
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.kernels import nf4 as kernels
from mickle.kernels.dispatch import plain_kernels
from mickle.quantization.codes import scale_lines, table
from mickle.quantization.nf4 import Blocks, dequantize_plain, quantize_4bit

ROWS = ["avx2", "avx512", "bf16"]
KINDS = ROWS[:2]

pytestmark = pytest.mark.skipif("avx2" not in kernels.FEATURES, reason="no AVX2")


def made(out: int, blocks: int, double: bool, code: str = "nf4", seed: int = 0) -> Blocks:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, 64 * blocks, generator=generator) * torch.rand(out, 1, generator=generator)
    with plain_kernels():
        return quantize_4bit(weight, code, double)


def multiplied(blocks: Blocks, x: torch.Tensor, kind: str, threads: int = 1) -> np.ndarray:
    """W x by the kernel of `kind`."""
    out = blocks.shape[0]
    words = kernels.interleaved(blocks.packed.numpy().view(np.uint32).reshape(out, -1))
    scales = kernels.interleaved(blocks.absmax.numpy().reshape(out, -1))
    nested = np.zeros(0, np.float32) if blocks.nested is None else blocks.nested.numpy()
    values, lines = table(blocks.code).numpy(), scale_lines().numpy()
    weight = kernels.Strips(out, words, scales, nested, blocks.offset, lines, values)
    row = x.bfloat16() if kind == "bf16" else x
    result: np.ndarray = kernels.rows_product(weight, row[None], threads, kind)[0].numpy()
    return result


@given(st.integers(1, 80), st.integers(1, 20), st.booleans(), st.sampled_from(["nf4", "fp4", "int4", "int3"]))
@settings(max_examples=60, deadline=None)
def test_rows_times_a_weight(out: int, blocks: int, double: bool, code: str) -> None:
    """20 blocks a row and 80 rows: rows come to their next 256 scales in the middle of a strip."""
    weight = made(out, blocks, double, code, seed=out)
    dense = dequantize_plain(weight).double()
    x = torch.randn(64 * blocks, generator=torch.Generator().manual_seed(1))
    for kind in ROWS:
        given_x = x.bfloat16() if kind == "bf16" else x
        exact = dense @ given_x.double()
        bound = (dense.abs() @ given_x.double().abs()) * (2**-8 if kind == "bf16" else 2**-21)
        bound += 2**-21 * weight.offset * given_x.double().abs().sum()  # a scale of 8 bits rounds where its mean does
        found = torch.from_numpy(multiplied(weight, given_x.float(), kind)).double()
        assert bool(((found - exact).abs() <= bound + 1e-6).all()), kind


@pytest.mark.parametrize("kind", ROWS)
def test_every_column_of_every_row_is_multiplied_by_its_own_number(kind: str) -> None:
    """x with a single 1 picks a column: nothing is summed, so what comes out is the weight itself."""
    weight = made(19, 3, double=False)
    values = dequantize_plain(weight)
    if kind == "bf16":
        values = table("nf4").bfloat16().float()[_indices(weight)] * weight.absmax.repeat_interleave(64).reshape(19, -1)
    for column in range(192):
        x = torch.zeros(192)
        x[column] = 1.0
        np.testing.assert_allclose(multiplied(weight, x, kind), values[:, column].numpy(), rtol=1e-6)


def _indices(blocks: Blocks) -> torch.Tensor:
    return torch.stack([blocks.packed >> 4, blocks.packed & 15], 1).reshape(blocks.shape).long()


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize("kind", ROWS)
def test_threads_share_strips(kind: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SHARED", 1)
    weight, x = made(70, 5, double=True), torch.randn(320)
    assert np.array_equal(multiplied(weight, x, kind, threads), multiplied(weight, x, kind))


@given(st.integers(1, 900), st.sampled_from([32, 64, 256]), st.integers(1, 4), st.sampled_from(KINDS))
@settings(max_examples=60, deadline=None)
def test_made_dense_bit_for_bit(n: int, block: int, threads: int, kind: str) -> None:
    weight = torch.randn(n, generator=torch.Generator().manual_seed(n)) * 10.0 ** (n % 60 - 40)
    with plain_kernels(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "SHARED", 1)
        blocks = quantize_4bit(weight, double=False, block=block)
        for dtype, bits in ((torch.float32, np.float32), (torch.bfloat16, np.uint16)):
            out = np.empty(n, bits)
            kernels.dense(blocks.packed.numpy(), blocks.absmax.numpy(), block, table("nf4").numpy(), out, threads, kind)
            expected = dequantize_plain(blocks, dtype)
            view = expected if dtype == torch.float32 else expected.view(torch.uint16)
            assert np.array_equal(out, view.numpy())


@given(st.integers(1, 50), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_interleaved_and_back(out: int, words: int) -> None:
    rows = np.random.default_rng(out).integers(0, 2**32, (out, words), dtype=np.uint32)
    there = kernels.interleaved(rows)
    assert there.shape == (kernels.strips(out), words, 16)
    assert np.array_equal(there[(out - 1) // 16, :, (out - 1) % 16], rows[out - 1])
    assert np.array_equal(kernels.canonical(there, out), rows)


def test_the_check_of_mickle_doctor() -> None:
    from mickle.quantization.nf4_linear import kernels_error

    assert kernels_error() < 1e-5


def test_a_processor_without_registers_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from mickle.quantization.nf4_linear import NF4Linear

    weight, x = torch.randn(40, 128), torch.randn(1, 128)
    with_registers = NF4Linear.from_dense(weight).eval()(x)
    monkeypatch.setattr(kernels, "FEATURES", frozenset())
    layer = NF4Linear.from_dense(weight).eval()
    torch.testing.assert_close(layer(x), with_registers, rtol=1e-5, atol=1e-5)
    assert not layer.in_strips
