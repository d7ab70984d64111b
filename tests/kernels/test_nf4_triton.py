"""The GPU's 4-bit kernels against the plain version: on a GPU where there is one, else under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as some

pytest.importorskip("triton")

from mickle.kernels import nf4_triton
from mickle.quantization.nf4 import dequantize_plain, gpu_parts, quantize_4bit
from mickle.quantization.nf4_linear import NF4Linear

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
CODES = some.sampled_from(["nf4", "fp4", "int4", "int3"])
TYPES = some.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def rounded(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """float32 in `dtype` as the device has it: Triton's interpreter cuts off what bfloat16 does not hold."""
    if dtype == torch.bfloat16 and not GPU:
        exact = (exact.contiguous().view(torch.int32) & -65536).view(torch.float32)
    return exact.to(dtype)


@settings(max_examples=15, deadline=None)
@given(some.integers(1, 40), some.integers(1, 5), CODES, some.booleans(), TYPES, some.integers(0, 2**32))
@example(30, 9, "nf4", True, torch.float32, 0)  # more blocks than one scale of scales serves
def test_the_dense_weight_is_that_of_the_definition_bit_for_bit(
    rows: int, blocks: int, code: str, double: bool, dtype: torch.dtype, seed: int
) -> None:
    weight = torch.randn(rows, 64 * blocks, generator=torch.Generator().manual_seed(seed))
    stored = quantize_4bit(weight.to(DEVICE), code, double)
    found = nf4_triton.dense(*gpu_parts(stored), rows, 64 * blocks, dtype)
    assert torch.equal(found, rounded(dequantize_plain(stored), dtype))


@settings(max_examples=15, deadline=None)
@given(
    some.integers(1, 40),
    some.integers(1, 5),
    some.integers(1, 3),
    CODES,
    some.booleans(),
    TYPES,
    some.integers(0, 2**32),
)
@example(30, 9, 2, "nf4", True, torch.float32, 0)
def test_few_rows(outputs: int, blocks: int, rows: int, code: str, double: bool, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    stored = quantize_4bit(torch.randn(outputs, 64 * blocks, generator=generator).to(DEVICE), code, double)
    x = torch.randn(64 * blocks, rows, generator=generator).to(DEVICE, dtype).T  # strides that are not rows
    found = nf4_triton.few_rows(*gpu_parts(stored), outputs, x)
    expected = x.double() @ dequantize_plain(stored).double().T
    assert found.dtype == dtype
    unit = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}[dtype]
    assert bool(((found - expected).abs() <= unit * expected.abs() + 1e-5).all())


@pytest.mark.skipif(not GPU, reason="needs CUDA")
def test_the_layer_on_a_gpu_takes_the_kernels() -> None:
    layer = NF4Linear.from_dense(torch.randn(70, 192)).eval()
    x = torch.randn(2, 192)
    expected = x @ layer.dequantized().T
    layer = layer.cuda()
    assert torch.equal(layer.dequantized().cpu(), dequantize_plain(layer.blocks()).cpu())
    assert torch.allclose(layer(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)
    many = torch.randn(50, 192)
    assert torch.allclose(layer(many.cuda()).cpu(), many @ layer.dequantized().cpu().T, rtol=1e-4, atol=1e-4)
