"""The GPU's kernels for 4-bit weights against their definitions; needs CUDA."""

import pytest
import torch

from mickle.kernels.dispatch import plain_kernels
from mickle.quantization.codes import dynamic_map, table
from mickle.quantization.nf4 import dequantize_4bit, dequantize_plain, quantize_4bit
from mickle.quantization.nf4_linear import NF4Linear

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
SHAPES = [(1, 64), (17, 128), (300, 192), (256, 1024)]


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_made_dense(shape: tuple[int, int], double: bool, dtype: torch.dtype) -> None:
    with plain_kernels():
        blocks = quantize_4bit(torch.randn(shape, generator=torch.Generator().manual_seed(0)), double=double)
    layer = NF4Linear(blocks).cuda()
    torch.testing.assert_close(
        layer.dequantized(dtype).cpu(), dequantize_plain(blocks, dtype), rtol=1e-6, atol=1e-7
    )
    ragged = quantize_4bit(torch.randn(9, 40), double=double)
    torch.testing.assert_close(NF4Linear(ragged).cuda().dequantized().cpu(), dequantize_4bit(ragged))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [1, 5])
def test_few_rows(shape: tuple[int, int], double: bool, rows: int) -> None:
    layer = NF4Linear.from_dense(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), double=double
    )
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(1))
    expected = x @ layer.dequantized().T
    found = layer.cuda().eval()(x.cuda()).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [16, 70])
def test_many_rows(shape: tuple[int, int], rows: int) -> None:
    from mickle.kernels import nf4_triton

    layer = NF4Linear.from_dense(torch.randn(shape, generator=torch.Generator().manual_seed(0))).cuda()
    x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(1)).bfloat16().cuda()
    expected = x.float() @ layer.dequantized(torch.bfloat16).float().T
    found = nf4_triton.many_rows(
        layer.packed,
        layer.absmax,
        dynamic_map().cuda(),
        layer.nested,
        layer.offset,
        table("nf4").cuda(),
        shape[0],
        x,
    )
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
