"""What a folder of a quantized model holds, read and checked: layers in few bits, and everything else.

`models/quantized.py` builds models of it. The folder itself has been checked before (`models/folder_check.py`).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mickle.errors import UsageError
from mickle.models.folder_check import CONFIG, GROUPED_TYPE, SETTINGS, WEIGHTS, ModelFiles
from mickle.models.folder_files import read_tensors
from mickle.models.safetensors_check import TensorEntry, refuse_not_finite
from mickle.quantization.bitsandbytes_format import stored_names
from mickle.quantization.layer import QuantizedLinear
from mickle.quantization.nf4_linear import NF4Linear

GROUPED = "mickle-grouped"


def with_few_bits(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a folder whose layers are stored by `settings`, which become its `quantization_config`.

    Where only Mickle can read the layers, `model_type` is one that transformers refuses, and the model's own stands in
    the settings: it would ignore a method that it does not know, and fill the layers with random numbers.
    """
    if settings["quant_method"] == GROUPED:
        config, settings = {**config, "model_type": GROUPED_TYPE}, {**settings, "model_type": config["model_type"]}
    return {**config, SETTINGS: dict(settings)}


def read_layers(files: ModelFiles) -> tuple[dict[str, QuantizedLinear], dict[str, Tensor], ModelFiles]:
    """The layers in few bits by folder name, all other tensors, and what the folder would be if it were dense.

    UsageError and NumericError name the setting or tensor that is not as it should be.
    """
    settings = _checked_settings(files)
    tensors = _read(files, settings)
    where = str(files.folder)
    layers = {name: _layer(name, tensors, settings, where) for name in _stored_layers(tensors, settings)}
    if not layers:
        raise UsageError(f"config says {settings['quant_method']}, but no weight is stored so", where=where)
    rest = _without_parts(tensors, layers)
    config = {name: value for name, value in files.config.items() if name != SETTINGS}
    return layers, rest, replace(files, config=config, tensors=_as_dense(files, layers, rest))


def _checked_settings(files: ModelFiles) -> dict[str, Any]:
    """`quantization_config`, refused where it asks for what we cannot open."""
    where = f"{files.folder / CONFIG}, {SETTINGS}"
    settings = files.config[SETTINGS]
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    if method == "bitsandbytes":
        if settings.get("load_in_8bit") or not settings.get("load_in_4bit", settings.get("_load_in_4bit", True)):
            raise UsageError("weights in 8 bits cannot be opened", where=where, todo="use the unquantized folder")
    elif method != GROUPED:
        raise UsageError(
            f"weights stored by the method {str(method)[:60]!r} cannot be opened",
            where=where,
            expected="bitsandbytes or mickle-grouped",
            todo="use the unquantized folder",
        )
    elif not isinstance(settings.get("layers"), dict) or not all(
        isinstance(layer, dict) for layer in settings["layers"].values()
    ):
        raise UsageError("quantization_config has no table of layers", where=where)
    return dict(settings)


def _read(files: ModelFiles, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors; what is a number must be finite, what is packed bits is bytes whatever the folder calls it."""
    tensors = read_tensors(files)
    if settings["quant_method"] == "bitsandbytes":
        for name in stored_names(tensors):
            if name in tensors:
                tensors[name] = tensors[name].contiguous().reshape(-1).view(torch.uint8)
    refuse_not_finite(tensors, files.folder)
    return tensors


def _stored_layers(tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> list[str]:
    if settings["quant_method"] == "bitsandbytes":
        return [name.removesuffix(".weight") for name in stored_names(tensors)]
    return list(settings["layers"])


def _layer(name: str, tensors: Mapping[str, Tensor], settings: dict[str, Any], where: str) -> QuantizedLinear:
    try:
        if settings["quant_method"] == "bitsandbytes":
            return NF4Linear.from_tensors(name, tensors, settings)
        from mickle.quantization.grouped_linear import GroupedLinear

        layer: QuantizedLinear = GroupedLinear.from_tensors(name, tensors, settings["layers"][name])
        return layer
    except UsageError as error:
        raise UsageError(
            error.what, where=f"{where}, {error.where}", expected=error.expected, todo=error.todo
        ) from None


def _without_parts(tensors: dict[str, Tensor], layers: Mapping[str, QuantizedLinear]) -> dict[str, Tensor]:
    """The tensors that are no part of a weight in few bits; biases stay."""
    parts = {part for name, layer in layers.items() for part in layer.tensors(name)}
    return {name: tensor for name, tensor in tensors.items() if name not in parts}


def _as_dense(
    files: ModelFiles, layers: Mapping[str, QuantizedLinear], rest: Mapping[str, Tensor]
) -> dict[str, tuple[Path, TensorEntry]]:
    """The entries that the folder would have if all its weights were dense: what its config is compared with."""
    entries = {name: files.tensors[name] for name in rest}
    for name, layer in layers.items():
        shape = layer.out_features, layer.in_features
        entries[f"{name}.weight"] = (files.folder / WEIGHTS, TensorEntry("F32", shape, 0, 4 * shape[0] * shape[1]))
    return entries
