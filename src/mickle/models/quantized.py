"""Model folders opened and saved, their linear layers plain or in few bits; and how layers are put into few bits.

A folder says by `quantization_config` in its `config.json` how: `quant_method` "bitsandbytes" is the format of
bitsandbytes and `transformers` (4 bits, NF4 or FP4), "mickle-grouped" our own (`quantization/grouped_linear.py`), whose
folders have a `model_type` that other tools refuse.
Quantizing a folder of several shards, or opening one, never holds the dense model and the small one at once.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mickle import storage
from mickle.errors import UsageError
from mickle.models.architectures import checked_frame
from mickle.models.folder_check import CONFIG, SETTINGS, WEIGHTS, ModelFiles, inspect_folder
from mickle.models.folder_files import read_tensors, write_tokenizer
from mickle.models.language import LanguageModel
from mickle.models.linear_layers import (
    dense_weight,
    folder_layer_name,
    is_conv1d,
    is_linear,
    linear_layers,
    replace_layer,
)
from mickle.models.quantized_files import read_layers, with_few_bits
from mickle.models.safetensors_check import refuse_not_finite
from mickle.quantization.layer import QuantizedLinear
from mickle.quantization.nf4 import BLOCK
from mickle.quantization.nf4_linear import NF4Linear


def quantize_model(
    model: nn.Module,
    code: str = "nf4",
    double: bool = True,
    skip: Iterable[str] = (),
    block: int = BLOCK,
    errors: dict[str, float] | None = None,
) -> list[str]:
    """Put every linear layer of `model` in 4 bits, in place; returns their folder names.

    Embeddings, norms and the output matrix stay (`models/linear_layers.py`), and layers whose folder name ends in one
    of `skip`. A Conv1D is stored as the linear layer that it is, [out, in]. `errors` gets |W - W^| / |W| of each layer,
    some 0.09 where weights are normal; one far above has outliers that flatten the rest of their blocks. Layers go one
    by one, and the dense weight of one is let go before the next. NumericError names the weight that is not finite.
    """
    done = []
    layers = linear_layers(model)
    for name in list(layers):
        layer = layers.pop(name)
        if isinstance(layer, QuantizedLinear) or name.endswith(tuple(skip)):
            continue
        bias: Tensor | None = getattr(layer, "bias", None)
        new = NF4Linear.from_dense(dense_weight(layer), bias, code, double, block, f"{name}.weight")
        if errors is not None:
            errors[name] = _relative_error(dense_weight(layer), new)
        _put(model, name, layer, new)
        done.append(name)
    return done


def quantized_layers(model: nn.Module) -> dict[str, QuantizedLinear]:
    """The layers in few bits by folder name; of one inside an adapter, the name of the adapter's place."""
    found = {}
    for name, layer in linear_layers(model).items():
        inner = next((m for m in layer.modules() if isinstance(m, QuantizedLinear)), None)
        if inner is not None:
            found[name] = inner
    return found


def linear_bytes(model: nn.Module) -> int:
    """Stored bytes of all layers in few bits, biases left out."""
    return sum(layer.stored_bytes() for layer in quantized_layers(model).values())


def bits_per_weight(model: nn.Module) -> float:
    """Stored bits for each weight of the layers in few bits; 0 where there are none."""
    weights = sum(layer.in_features * layer.out_features for layer in quantized_layers(model).values())
    return 8 * linear_bytes(model) / weights if weights else 0.0


def open_base(path: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu") -> LanguageModel:
    """The model of a folder that is no adapter's, its weights plain or in few bits, in evaluation mode.

    `dtype` is that of everything but stored bits and their scales; None keeps the files'. A weight in few bits that is
    no linear layer's (an output matrix) is made dense. UsageError names the tensor or setting that is not as it should
    be, NumericError the tensor that is not finite.
    """
    files = inspect_folder(path)
    layers: dict[str, QuantizedLinear] = {}
    if SETTINGS in files.config:
        layers, tensors, files = read_layers(files)
    model = checked_frame(files)
    if not layers:
        tensors = read_tensors(files)
        refuse_not_finite(tensors, files.folder)
    if model is None:
        model = _wrapped(files, layers, tensors)
    else:
        tensors |= _place(model, layers, str(files.folder))
        model.load_state_dict({name: tensors[model.folder_name(name)] for name in model.state_dict()}, assign=True)
    return model.to(device=device, dtype=dtype).eval()


def save_model(model: Any, folder: Path, tokenizer: Any = None) -> None:
    """Write `config.json`, `model.safetensors`, `generation_config.json` and the tokenizer's files into `folder`.

    `tokenizer` has `save(folder)`, `start`, `end` and `mask` (`data/tokenizer.py`), or is a plain
    `tokenizers.Tokenizer`. The folder is made if need be; the caller seals it. Layers in few bits are written as they
    are stored. Raises NumericError where a weight is not finite, UsageError for a model with adapters, for layers of
    several methods, and for codes that the format does not have.
    """
    if any(name.endswith(".lora_A") for name, _ in model.named_parameters()):
        raise UsageError(
            "the model has adapters", todo="save them with save_adapter, or merge them with merge_lora first"
        )
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        save_quantized(model, folder, tokenizer)
    else:
        _save_plain(model, Path(folder), tokenizer)


def save_quantized(model: Any, path: Path, tokenizer: Any = None) -> None:
    """As `save_model`, of a model with layers in few bits: UsageError where there are none."""
    settings, path = quantization_settings(model), Path(path)
    layers = quantized_layers(model)
    stored = [layer.tensors(name) for name, layer in layers.items()]  # first: a code may be none of the format's
    _save_plain(model, path, tokenizer)  # everything else: stored weights are in no `state_dict`
    tensors = storage.load_tensors(path / WEIGHTS)
    for parts in stored:
        tensors |= {part: tensor.cpu() for part, tensor in parts.items()}
    storage.save_tensors(path / WEIGHTS, tensors, {"format": "pt"})
    storage.write_json(path / CONFIG, with_few_bits(storage.read_json(path / CONFIG), settings))


def _save_plain(model: LanguageModel, folder: Path, tokenizer: Any) -> None:
    """All but the weights of layers in few bits, which are no parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder, tokenizer)
    write_tokenizer(tokenizer, folder)
    if tokenizer is not None and not hasattr(tokenizer, "start"):
        storage.write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})


def quantization_settings(model: nn.Module) -> dict[str, Any]:
    """The `quantization_config` of a model's folder. UsageError where its layers are stored in several ways."""
    layers = quantized_layers(model)
    kinds = {
        (layer.method, *((layer.code, layer.nested is not None) if isinstance(layer, NF4Linear) else ())): layer
        for layer in layers.values()
    }
    if len(kinds) != 1:
        raise UsageError(
            "the model has no layers in few bits" if not kinds else "layers are stored in several ways",
            expected="one code for all layers of a folder",
        )
    first = next(iter(kinds.values()))
    if not isinstance(first, NF4Linear):
        return {"quant_method": first.method, "layers": {name: layer.settings() for name, layer in layers.items()}}
    compute = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {
        "quant_method": first.method,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": first.code,
        "bnb_4bit_use_double_quant": first.nested is not None,
        "bnb_4bit_compute_dtype": compute,
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": _dense_layers(model, layers),
    }


@torch.no_grad()
def _relative_error(weight: Tensor, layer: QuantizedLinear) -> float:
    size = weight.float().norm()
    return float((layer.dequantized() - weight.float()).norm() / size) if size else 0.0


def _dense_layers(model: nn.Module, layers: Mapping[str, QuantizedLinear]) -> list[str]:
    """Folder names of the linear layers that are not in few bits, the output layer among them."""
    names = [folder_layer_name(model, own) for own, module in model.named_modules() if is_linear(module)]
    left = [name for name in names if name not in layers]
    return left if "lm_head" in left else [*left, "lm_head"]  # a tied one is a layer in transformers' eyes


def _put(model: nn.Module, name: str, old: nn.Module, new: QuantizedLinear) -> None:
    new.conv1d = is_conv1d(old)
    replace_layer(model, name, new.train(old.training))


def _place(model: nn.Module, layers: Mapping[str, QuantizedLinear], where: str) -> dict[str, Tensor]:
    """Put the layers into a model; returns the dense weights of those that are no linear layer there."""
    homes = linear_layers(model) if layers else {}
    dense = {}
    for name, layer in layers.items():
        home = homes.get(name)
        if home is None:
            dense[f"{name}.weight"] = layer.dequantized(next(iter(model.parameters())).dtype)
            continue
        bias = getattr(home, "bias", None)
        shape = home.weight.T.shape if is_conv1d(home) else home.weight.shape
        fits = tuple(shape) == (layer.out_features, layer.in_features) and (bias is None) == (layer.bias is None)
        if not fits or (bias is not None and layer.bias is not None and bias.shape != layer.bias.shape):
            raise UsageError(
                f"layer {name[:120]!r} is stored as {layer.out_features} x {layer.in_features}",
                where=where,
                expected=f"{' x '.join(map(str, shape))}, {'no ' if bias is None else 'with '}bias",
            )
        _put(model, name, home, layer)
    return dense


def _wrapped(files: ModelFiles, layers: dict[str, QuantizedLinear], rest: dict[str, Tensor]) -> LanguageModel:
    """The transformers model, built with one zero, seen many times, where the weights of layers will stand."""
    from mickle.models.transformers_bridge import empty_frame, open_wrapped

    homes = linear_layers(empty_frame(files)) if layers else {}
    dtype = next((t.dtype for t in rest.values() if t.is_floating_point()), torch.float32)
    for name, layer in layers.items():
        shape = layer.out_features, layer.in_features
        if name not in homes:
            rest[f"{name}.weight"] = layer.dequantized(dtype)
        else:
            seen = shape[::-1] if is_conv1d(homes[name]) else shape
            rest[f"{name}.weight"] = torch.zeros((), dtype=dtype).expand(seen)
    model = open_wrapped(files, rest)
    _place(model, layers, str(files.folder))
    return model
