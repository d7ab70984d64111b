"""A linear layer whose weight is stored in few bits: what all such layers share.

QLoRA: Efficient Finetuning of Quantized LLMs, arXiv 2305.14314, section 3: the weight W^ is frozen, is made dense for
the product of the forward pass and again for that of the backward pass, and is never kept between the two:

    y = x W^T + b,    dL/dx = dL/dy W^    (equations 5 and 6; no gradient for W)

so that what training holds is the few bits and one dense weight at a time, whatever the number of layers.
"""

import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEW_ROWS = 8  # up to so many rows go through the decode kernel, one by one
_memory = threading.local()


class QuantizedLinear(nn.Module):
    """y = x W^T + b of a frozen W [out, in] in few bits. What is stored and how is the subclass's part.

    Buffers are not in `state_dict`: the base never changes, so checkpoints need no copy of it; folders are written
    with `tensors`. Casting the model leaves them as they are: scales in 32 bits stay so.

    A folder says in `quantization_config` which `method` its layers are stored by; `settings()` of each layer that
    has any stand there under "layers", by the layer's name.
    """

    method: ClassVar[str] = ""
    conv1d = False  # whether the layer took the place of a Conv1D, whose dense weight is [in, out]

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in] that the layer computes with, rounded to `dtype`; a new tensor."""
        raise NotImplementedError

    def stored_bytes(self) -> int:
        """What the weight takes on disk and in memory: codes, scales and all else but the bias."""
        raise NotImplementedError

    def tensors(self, name: str) -> dict[str, Tensor]:
        """What a folder stores of the weight of the layer `name`, by the names of the folder."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What of the layer is no tensor, for `quantization_config`; empty where the tensors say all."""
        return {}

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """The layer that wrote `tensors` and `settings`, with the bias "NAME.bias" where there is one.

        Both are from a stranger's folder: UsageError names the first thing in them that is not as it should be.
        """
        raise NotImplementedError

    def transient(self, dtype: torch.dtype) -> Tensor:
        """`dequantized` for one product right away: the next call in this thread may take its memory."""
        return self.dequantized(dtype)

    def few_rows(self, x: Tensor) -> Tensor | None:
        """x W^T of x [n, in], n at most FEW_ROWS, straight from the few bits; None where no kernel can."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in the precision of x, or of autocast where it is on."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _Product.apply(x, self)
        else:
            y = self._few_or_many(x)
        bias = self._parameters["bias"]
        return y if bias is None else y + bias.to(y.dtype)

    def _few_or_many(self, x: Tensor) -> Tensor:
        """x W^T without a gradient, by the decode kernel where there is one for so many rows."""
        count = x.numel() // self.in_features
        if self.training or not 0 < count <= FEW_ROWS or x.shape[-1] != self.in_features:
            return product(x, self)
        few = self.few_rows(x.reshape(count, self.in_features))
        return product(x, self) if few is None else few.reshape(*x.shape[:-1], self.out_features)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move, never cast, what is stored."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, stored in before.items():
            after = self._buffers[name]
            if stored is not None and after is not None and after.dtype != stored.dtype:
                self._buffers[name] = stored.to(after.device)
        return self

    def extra_repr(self) -> str:
        """What `print(model)` shows of the layer."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


def product(x: Tensor, layer: QuantizedLinear) -> Tensor:
    """x W^T [..., out] by way of the dense weight in the precision of x."""
    return F.linear(x, layer.transient(x.dtype))


def scratch(numbers: int, dtype: torch.dtype) -> Tensor:
    """Memory of this thread for one dense weight, as large as the largest so far: fresh pages would take longer than
    filling them.
    """
    kept: dict[torch.dtype, Tensor] = _memory.__dict__.setdefault("kept", {})
    if dtype not in kept or len(kept[dtype]) < numbers:
        kept[dtype] = torch.empty(numbers, dtype=dtype)
    return kept[dtype]


class _Product(torch.autograd.Function):
    """x W^T that keeps the layer, never its dense weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return product(x, layer)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        kept = torch.is_grad_enabled()  # a second derivative needs the weight again
        layer = ctx.layer
        weight = layer.dequantized(gradient.dtype) if kept else layer.transient(gradient.dtype)
        return gradient @ weight, None
