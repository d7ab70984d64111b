"""The linear layers of a model: what adapters are attached to, what is stored in few bits, what is merged and exported.

They go by their names in the model's folder, as PEFT, bitsandbytes and `transformers` have them, whether the model is
our decoder or one of `transformers`. The output matrix and every layer that shares its weight with an embedding are
left out: they are tables, large, read once a token, and what the methods' papers leave in 16 bits.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.models.experts import Experts
from mickle.models.language import LanguageModel


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer by its folder name ("model.layers.0.self_attn.q_proj"), in the model's order.

    A layer is an `nn.Linear`, a `Conv1D` of GPT-2 (weight [in, out]), or what took a linear layer's place: a module
    with `in_features` and `out_features`. Of one inside another (an adapter's base), only the outer one counts.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    output = model.output_layer if isinstance(model, LanguageModel) else None
    read = {id(layer) for layer in _read_by_weight(model)}
    found: dict[str, nn.Module] = {}
    inside: str | None = None
    for name, module in model.named_modules():
        if inside is not None and name.startswith(inside):
            continue
        if not is_linear(module):
            continue
        inside = f"{name}."
        weight = getattr(module, "weight", None)
        if module is not output and id(module) not in read and id(weight) not in tables:
            found[folder_layer_name(model, name)] = module
    return found


def _read_by_weight(model: nn.Module) -> Iterator[nn.Module]:
    """Layers whose weight is read elsewhere and that are not, or not always, called: routers of experts, and of the
    mixers of state-space models (which have a parameter `A_log`) all but what leads in. No other layer can stand there.
    """
    for module in model.modules():
        if isinstance(module, Experts):
            yield module.gate
        if "A_log" in module._parameters:
            yield from (child for name, child in module.named_children() if not name.startswith("in_proj"))


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the linear layer that the folder calls `name`. UsageError where there is none."""
    for own, module in model.named_modules():
        if is_linear(module) and folder_layer_name(model, own) == name:
            model.set_submodule(own, layer)
            return
    raise UsageError(f"the model has no linear layer {name[:120]!r}")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, or stands for one."""
    sides = ("in_features", "out_features")  # `nn.Linear` has them too
    return is_conv1d(module) or all(isinstance(getattr(module, side, None), int) for side in sides)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is GPT-2's linear layer, whose weight is stored as [in, out]."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def features(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    if is_conv1d(layer):
        weight: Tensor = layer.weight
        return weight.shape[0], weight.shape[1]
    return int(layer.in_features), int(layer.out_features)


@torch.no_grad()
def dense_weight(layer: nn.Module) -> Tensor:
    """The weight [out, in] of a linear layer: a view of a plain one's, `dequantized()` of one in few bits."""
    if hasattr(layer, "dequantized"):
        return layer.dequantized()
    weight: Tensor = layer.weight
    return weight.T if is_conv1d(layer) else weight


def stored_type(model: nn.Module) -> torch.dtype:
    """The type of a model's embedding: what its plain weights are stored in."""
    return next((m.weight.dtype for m in model.modules() if isinstance(m, nn.Embedding)), torch.float32)


def folder_layer_name(model: nn.Module, name: str) -> str:
    """What the folder calls the module that `model` calls `name`."""
    return model.folder_name(name) if isinstance(model, LanguageModel) else name
