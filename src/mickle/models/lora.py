"""Low-rank adapters beside a model's frozen linear layers.

LoRA: Low-Rank Adaptation of Large Language Models, arXiv 2106.09685: a model adapts about as well when each weight's
change is held to a product of two thin matrices as when every weight moves. QLoRA, arXiv 2305.14314, section 3, needs
them on all linear layers to match full fine-tuning. Of a layer with weight W [out, in] and bias b::

    y = x W^T + b + s dropout(x) A^T B^T        A [r, in], B [out, r]          (2106.09685 eq. 3; 2305.14314 eq. 3)
    s = alpha / r,  or with rslora  alpha / sqrt(r)                            (arXiv 2312.03732, section 3)
    at the start  A ~ U(-1 / sqrt(in), 1 / sqrt(in)),  B = 0

Only A and B are trained, r (in + out) numbers a layer.

Departures. A is drawn as in the authors' code and PEFT, uniform, where the paper says normal. A and B stay in float32
(or wider) whatever the base is in: without autocast the low-rank part is computed in their type and the sum rounded
once to the base's, as PEFT does; under autocast all of it in autocast's type.

Merging W' = W + s B A makes a plain model again. Beside a base in few bits, What, it can be put onto What, which the
adapter was trained on, or onto the W that What came from: outputs then differ by (W - What) x.
"""

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.kernels.low_rank import add_low_rank, low_rank_linear
from mickle.models.linear_layers import dense_weight, features, is_conv1d, linear_layers, replace_layer, stored_type
from mickle.models.trained_layers import put_rows_in

ALL_LINEAR = "all-linear"


class LoraLinear(nn.Module):
    """A frozen linear layer (`nn.Linear`, `Conv1D`, one in few bits) and what is learned beside it, A and B."""

    def __init__(
        self,
        base_layer: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = features(base_layer)
        self.rank, self.alpha, self.dropout, self.rslora = rank, alpha, dropout, rslora
        self.scaling = alpha / (math.sqrt(rank) if rslora else rank)
        bound = 1 / math.sqrt(self.in_features)  # Kaiming's uniform bound with a = sqrt(5)
        drawn = torch.empty(rank, self.in_features).uniform_(-bound, bound, generator=generator)
        device = _device(base_layer)
        self.lora_A = nn.Parameter(drawn.to(device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))

    @property
    def weight(self) -> Any:
        """The base's own weight, as stored: models ask for its dtype or device."""
        return self.base_layer.weight

    @property
    def bias(self) -> Any:
        """The base's bias, or None."""
        return getattr(self.base_layer, "bias", None)

    def dequantized(self, dtype: torch.dtype | None = None) -> Tensor:
        """The base's weight [out, in], the adapter left out."""
        weight = dense_weight(self.base_layer)
        return weight if dtype is None else weight.to(dtype)

    @torch.no_grad()
    def delta(self) -> Tensor:
        """What the adapter adds to the weight, s B A: [out, in] in A's type."""
        return self.scaling * (self.lora_B @ self.lora_A)

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}, rslora={self.rslora}"

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in] -> [..., out], in the type that the base alone would give."""
        dropout = self.dropout if self.training else 0.0
        low_rank = (self.lora_A, self.lora_B, self.scaling, dropout)
        weight = self._frozen_weight()
        if weight is None:
            return add_low_rank(self.base_layer(x), x, *low_rank)
        return low_rank_linear(x, weight, self.bias, *low_rank)

    def _frozen_weight(self) -> Tensor | None:
        """The base's weight [out, in] where it is a plain frozen matrix that nobody watches; else None."""
        base = self.base_layer
        if type(base) is not nn.Linear and not is_conv1d(base):
            return None
        weight, bias = self.weight, self.bias
        watched = base._forward_hooks or base._forward_pre_hooks
        if watched or weight.requires_grad or (bias is not None and bias.requires_grad):
            return None
        frozen: Tensor = weight.T if is_conv1d(base) else weight
        return frozen


def attach_lora(
    model: nn.Module,
    *,
    rank: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    targets: str | Sequence[str] = ALL_LINEAR,
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    rslora: bool = False,
    seed: int = 0,
) -> list[str]:
    """Put an adapter beside each targeted linear layer, freeze all else, and return the layers' folder names.

    targets: "all-linear"; or a list of names, each whole or the end of one ("q_proj", "mlp.up_proj"); or one regular
    expression for whole names. rank_pattern, alpha_pattern: other values for the layers whose names end in a match of
    the key, a regular expression; the first that matches counts. All as in PEFT. A's start depends on `seed` alone.

    Raises UsageError where no layer is targeted, or the model has adapters already.
    """
    _refuse_numbers(rank, alpha, dropout)
    layers = linear_layers(model)
    if any(isinstance(layer, LoraLinear) for layer in layers.values()):
        raise UsageError("the model has adapters already", todo="merge them first, or open the base model")
    chosen = target_names(list(layers), targets)
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in chosen:
        own_rank = matched(rank_pattern or {}, name, rank)
        own_alpha = matched(alpha_pattern or {}, name, alpha)
        _refuse_numbers(own_rank, own_alpha, dropout)
        layer = LoraLinear(layers[name], own_rank, own_alpha, dropout, rslora, generator)
        replace_layer(model, name, layer.train(model.training))
    return chosen


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The adapted layers by folder name, in the model's order."""
    return {name: layer for name, layer in linear_layers(model).items() if isinstance(layer, LoraLinear)}


@torch.no_grad()
def merge_lora(
    model: nn.Module,
    onto: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    only_adapted: bool = False,
) -> dict[str, dict[str, float]]:
    """Add every adapter to its layer's weight, in place: a plain model again, layers in few bits made dense.

    onto: by folder name, weights [out, in] to take instead of the base's own: of a base in few bits, the ones it was
    made of. dtype: of the new weights (None: that of the weight they are put onto; of a dequantized one, that of the
    model's embedding). Sums are made in float32 or wider and rounded once. only_adapted: layers in few bits that have
    no adapter stay as they are.

    Returns by layer Frobenius norms: `change` |s B A|, `weight` |W|, `base` |W - What| of the weight it is put onto and
    the one it was trained on (0 where they are one), and `rounding`, how far `dtype` moved the result. A `base` or
    `rounding` above `change` drowns what was learned. Raises UsageError for a weight that does not fit its layer.
    """
    figures = {}
    plain = dtype or stored_type(model)
    for name, layer in linear_layers(model).items():
        adapted = isinstance(layer, LoraLinear)
        inner: nn.Module = layer.base_layer if isinstance(layer, LoraLinear) else layer
        few_bits = hasattr(inner, "dequantized")
        if not adapted and (only_adapted or not few_bits):
            continue
        trained_on = dense_weight(inner)
        weight = trained_on if onto is None else _fitting(onto, name, trained_on)
        kept = dtype or (plain if few_bits and onto is None else weight.dtype)
        wide = torch.promote_types(torch.float32, weight.dtype)
        change = layer.delta().to(wide) if isinstance(layer, LoraLinear) else torch.zeros((), dtype=wide)
        exact = weight.to(wide) + change
        merged = exact.to(kept)
        if adapted:
            figures[name] = {
                "change": float(change.norm()),
                "weight": float(weight.to(wide).norm()),
                "base": float((weight.to(wide) - trained_on.to(wide)).norm()) if onto is not None else 0.0,
                "rounding": float((merged.to(wide) - exact).norm()),
            }
        replace_layer(model, name, _plain_layer(inner, merged))
    put_rows_in(model)
    return figures


def _fitting(onto: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """The weight of a layer among `onto`, on the device of the one it stands for."""
    if name not in onto or onto[name].shape != like.shape:
        found = f"of shape {list(onto[name].shape)}" if name in onto else "missing"
        raise UsageError(f"weight of {name[:120]!r} to merge onto is {found}", expected=f"of {list(like.shape)}")
    return onto[name].to(like.device)


def _plain_layer(layer: nn.Module, weight: Tensor) -> nn.Module:
    """An `nn.Linear`, or a `Conv1D` where `layer` is or was one, with this weight [out, in] and the bias of `layer`."""
    bias: Any = getattr(layer, "bias", None)
    outputs, inputs = weight.shape
    if is_conv1d(layer) or getattr(layer, "conv1d", False):
        from transformers.pytorch_utils import Conv1D

        plain: Any = Conv1D(outputs, inputs)
        weight = weight.T.contiguous()
    else:
        plain = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        plain.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return plain.train(layer.training)


def target_names(names: list[str], targets: str | Sequence[str]) -> list[str]:
    """Which of the linear layers `names` are meant by `targets` (see `attach_lora`). UsageError where none is."""
    if targets == ALL_LINEAR:
        chosen = names
    elif isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise UsageError(f"targets is no regular expression: {error}", where=targets[:100]) from None
        chosen = [name for name in names if pattern.fullmatch(name)]
    else:
        ends = tuple(f".{target}" for target in targets)
        chosen = [name for name in names if name in targets or name.endswith(ends)]
    if not chosen:
        last = sorted({name.rpartition(".")[2] for name in names})
        raise UsageError(
            f"no linear layer is called {str(targets)[:100]!r}",
            where="targets",
            expected=f"one of {', '.join(last[:20])}" if last else "a model with linear layers",
        )
    return chosen


@lru_cache(4096)
def _ends_in(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def matched(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of `name`, from the beginning of a part of it."""
    for pattern, value in patterns.items():
        try:
            if _ends_in(pattern).match(name):
                return value
        except re.error as error:
            raise UsageError(f"pattern is no regular expression: {error}", where=pattern[:100]) from None
    return default


def _refuse_numbers(rank: Any, alpha: Any, dropout: Any) -> None:
    if type(rank) is not int or rank < 1:
        raise UsageError(f"rank is {rank!r}", expected="a whole number, at least 1")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise UsageError(f"alpha is {alpha!r}", expected="a number")
    if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout < 1:
        raise UsageError(f"dropout is {dropout!r}", expected="at least 0, below 1")


def _device(layer: nn.Module) -> torch.device:
    """Where the layer stands; one in few bits may hold buffers only."""
    return next((tensor.device for tensor in (*layer.parameters(), *layer.buffers())), torch.device("cpu"))
