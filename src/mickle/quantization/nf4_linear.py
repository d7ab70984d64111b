"""A linear layer in 4 bits, stored as bitsandbytes stores it (`quantization/nf4.py`).

At the first few rows in evaluation mode its indices and scales are put in the order that the decode kernel reads
(`kernels/nf4.py`), in place of the order of folders: there is one copy. Whatever looks at them otherwise, training,
saving, moving to a device, finds them as they were, bit for bit.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from mickle.kernels.dispatch import plain_kernels, use_plain
from mickle.kernels.strips import STRIP
from mickle.quantization.bitsandbytes_format import from_tensors, to_tensors
from mickle.quantization.codes import scale_lines, table
from mickle.quantization.layer import QuantizedLinear, scratch
from mickle.quantization.nf4 import BLOCK, Blocks, dequantize_4bit, gpu_parts, on_gpu, quantize_4bit

if TYPE_CHECKING:
    from mickle.kernels.nf4 import Strips

_NONE = np.zeros(0, np.float32)


class NF4Linear(QuantizedLinear):
    """y = x W^T + b with W in 4 bits of any code, scales in 32 or 8 bits."""

    method = "bitsandbytes"
    packed: Tensor
    absmax: Tensor
    nested: Tensor | None

    def __init__(self, blocks: Blocks, bias: Tensor | None = None) -> None:
        out_features, in_features = blocks.shape
        super().__init__(in_features, out_features, bias)
        self.code, self.block, self.dtype, self.offset = (blocks.code, blocks.block, blocks.dtype, blocks.offset)
        self._strips: Strips | None = None
        self.in_strips = False  # whether `packed` and `absmax` lie as the decode kernel reads them
        self.register_buffer("packed", blocks.packed, persistent=False)
        self.register_buffer("absmax", blocks.absmax, persistent=False)
        self.register_buffer("nested", blocks.nested, persistent=False)

    @classmethod
    def from_dense(
        cls,
        weight: Tensor,
        bias: Tensor | None = None,
        code: str = "nf4",
        double: bool = True,
        block: int = BLOCK,
        name: str = "weight",
    ) -> Self:
        """The layer of a dense weight [out, in]; NumericError names `name` where it is not finite."""
        return cls(quantize_4bit(weight, code, double, block, name), bias)

    def blocks(self) -> Blocks:
        """The weight as it is stored."""
        shape = (self.out_features, self.in_features)
        packed, absmax = (self.packed, self.absmax) if not self.in_strips else self._rows()
        return Blocks(packed, absmax, shape, self.code, self.block, self.dtype, self.nested, self.offset)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in] that the layer computes with."""
        return dequantize_4bit(self.blocks(), dtype)

    def transient(self, dtype: torch.dtype) -> Tensor:
        """The same in memory that this thread uses again."""
        if self.packed.device.type != "cpu":
            return self.dequantized(dtype)
        return dequantize_4bit(self.blocks(), dtype, scratch(self.in_features * self.out_features, dtype))

    def stored_bytes(self) -> int:
        """Bytes of indices, scales and the tables they are read by."""
        return self.blocks().stored_bytes()

    def few_rows(self, x: Tensor) -> Tensor | None:
        """x W^T of a few rows by the decode kernel; None where the processor or the shape does not allow it."""
        if x.device.type == "cuda" and on_gpu(self.blocks()):
            from mickle.kernels import nf4_triton

            return nf4_triton.few_rows(*gpu_parts(self.blocks()), self.out_features, x)
        kind = self._kernel(x)
        if kind is None:
            return None
        from mickle.kernels import nf4 as kernels

        given = x.detach() if kind == "bf16" else x.detach().float()
        out = kernels.rows_product(self._as_read(), given, torch.get_num_threads(), kind)
        return out.to(x.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Copies make views of their own memory."""
        return {**self.__dict__, "_strips": None}

    def train(self, mode: bool = True) -> Self:
        """For training the weight lies as it is stored."""
        if mode:
            self._to_rows()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._to_rows()
        return super()._apply(fn, recurse)

    def _kernel(self, x: Tensor) -> str | None:
        """Which kernel multiplies rows like these."""
        fits = self.block == BLOCK and self.in_features % BLOCK == 0
        if x.device.type != "cpu" or self.packed.device.type != "cpu" or not fits or use_plain():
            return None
        from mickle.kernels import nf4 as kernels

        if x.dtype == torch.bfloat16 and "bf16" in kernels.FEATURES:
            return "bf16"
        return next((kind for kind in ("avx512", "avx2") if kind in kernels.FEATURES), None)

    def _as_read(self) -> "Strips":
        """The weight as the kernel takes it."""
        from mickle.kernels.nf4 import Strips

        if self._strips is None:
            self._to_strips()
            strips = -(-self.out_features // STRIP)
            self._strips = Strips(
                outputs=self.out_features,
                words=self.packed.numpy().view(np.uint32).reshape(strips, self.in_features // 8, STRIP),
                scales=self.absmax.numpy().reshape(strips, self.in_features // BLOCK, STRIP),
                nested=_NONE if self.nested is None else self.nested.numpy(),
                offset=self.offset,
                lines=scale_lines().numpy(),
                table=table(self.code).numpy(),
            )
        return self._strips

    def _to_strips(self) -> None:
        """Put indices and scales in the order that the decode kernel reads, in place of the order of folders."""
        if self.in_strips:
            return
        from mickle.kernels.nf4 import interleaved

        words = self.packed.numpy().view(np.uint32).reshape(self.out_features, -1)
        self.packed = torch.from_numpy(interleaved(words).view(np.uint8).reshape(-1))
        scales = self.absmax.numpy().reshape(self.out_features, -1)
        self.absmax = torch.from_numpy(interleaved(scales).reshape(-1))
        self.in_strips = True

    def _to_rows(self) -> None:
        if self.in_strips:
            self.packed, self.absmax = self._rows()
            self.in_strips, self._strips = False, None

    def _rows(self) -> tuple[Tensor, Tensor]:
        """Indices and scales in the order of folders, bit for bit what `_to_strips` began with."""
        from mickle.kernels.nf4 import canonical

        shape = -(-self.out_features // STRIP), -1, STRIP
        words = canonical(self.packed.numpy().view(np.uint32).reshape(shape), self.out_features)
        scales = canonical(self.absmax.numpy().reshape(shape), self.out_features)
        return torch.from_numpy(words.view(np.uint8).reshape(-1)), torch.from_numpy(scales.reshape(-1))

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What a folder of bitsandbytes stores of the weight; UsageError for a code it does not know."""
        return to_tensors(self.blocks(), f"{name}.weight")

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """The layer that a folder of bitsandbytes stores; UsageError names the tensor that is not as it should be."""
        return cls(from_tensors(tensors, f"{name}.weight"), tensors.get(f"{name}.bias"))


def kernels_error() -> float:
    """How far the kernels of this processor are from their definitions, relative; infinite where bytes differ.

    For `mickle doctor`.
    """
    weight = torch.randn(40, 192, generator=torch.Generator().manual_seed(0))
    x = torch.randn(2, 192, generator=torch.Generator().manual_seed(1))
    layer = NF4Linear.from_dense(weight).eval()
    with plain_kernels():
        plain = NF4Linear.from_dense(weight).eval()
        expected, dense = plain(x), plain.dequantized()
    same = torch.equal(layer.packed, plain.packed) and torch.equal(layer.dequantized(), dense)
    rough = torch.allclose(layer(x.bfloat16()).float(), expected, rtol=0.05, atol=0.3)
    return float((layer(x) - expected).norm() / expected.norm()) if same and rough else float("inf")
