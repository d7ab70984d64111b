"""Adapter folders in PEFT's format, written and read: `adapter_config.json` and `adapter_model.safetensors`.

A's and B's are named `base_model.model.<the layer's folder name>.lora_A.weight` and `.lora_B.weight`. Our own folders
hold `base.json` too: the base's path seen from the adapter, a hash of its weights, so that another base is refused, and
in which few bits it was held. What PEFT writes is read where it is a plain LoRA, rsLoRA and patterns too; a variant
that would compute something else is refused by its name (`models/adapter_settings.py`). A folder from a stranger is
checked as a model folder is, before memory is taken.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from mickle import storage
from mickle.errors import UsageError
from mickle.models import folder_check
from mickle.models.adapter_settings import ADAPTER, AdapterSettings, plain_lora, read_settings
from mickle.models.folder import open_model
from mickle.models.linear_layers import features, folder_layer_name, is_conv1d, is_linear, linear_layers, replace_layer
from mickle.models.lora import LoraLinear, lora_layers, matched
from mickle.models.safetensors_check import TensorEntry, read_header, refuse_not_finite

WEIGHTS, BASE = "adapter_model.safetensors", "base.json"
PREFIX = "base_model.model."
ENDINGS = {"lora_A": ".lora_A.weight", "lora_B": ".lora_B.weight"}


def save_adapter(
    model: nn.Module, folder: Path, base: Path, tokenizer: Any = None, quantization: Mapping[str, Any] | None = None
) -> None:
    """Write the adapters of `model` into `folder`, as PEFT does; `base` is the folder of the model beneath.

    quantization: how the base was put into few bits when its folder holds it in 16 (arguments of
    `models.quantized.quantize_model`): it is done again when the adapter is opened. tokenizer: as `save_model` takes
    it. The caller seals the folder. Raises NumericError where a number is not finite.
    """
    folder, base = Path(folder), Path(base).resolve()
    layers = lora_layers(model)
    if not layers:
        raise UsageError("the model has no adapters to save", todo="attach them first: models.lora.attach_lora")
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{PREFIX}{name}{ENDINGS[part]}": getattr(layer, part).detach()
        for name, layer in layers.items()
        for part in ENDINGS
    }
    refuse_not_finite(tensors, folder)
    storage.save_tensors(folder / WEIGHTS, tensors, {"format": "pt"})
    beside = os.path.relpath(base, folder.resolve())
    note = {"path": beside, "weights": weights_digest(base), "quantization": dict(quantization or {}) or None}
    storage.write_json(folder / BASE, note)
    if tokenizer is not None:
        _save_tokenizer(tokenizer, folder)
    storage.write_json(folder / ADAPTER, _settings(model, layers, base))


def open_adapter(
    folder: Path,
    base: Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    trainable: bool = False,
    as_trained: bool = True,
) -> nn.Module:
    """The base model with the adapters of `folder` on it, in evaluation mode.

    base: the base's folder, where it is not where the adapter says. dtype: of the base (None: as in its files); A and B
    are float32 or wider. trainable: A and B take gradients; all else is frozen in either case. as_trained False: on
    `base` as it is, whatever the hash of its weights, and not put into few bits: the model that the base was made of.

    Raises UsageError for a folder that is not whole or not safe, for another base than the adapter was made on (naming
    the layer that does not fit), and for kinds of adapter that Mickle does not compute.
    """
    folder = Path(folder)
    values = read_settings(folder)
    base = adapter_base(folder) if base is None else _checked_base(Path(base), folder, as_trained)
    if values["peft_type"] == "PREFIX_TUNING":
        from mickle.models.prefix import open_prefix

        prefixed: nn.Module = open_prefix(folder, values, base, dtype, device)
        return prefixed
    settings = plain_lora(values, folder / ADAPTER)
    entries = _entries(read_header(folder_check.regular_file(folder, WEIGHTS)), folder / WEIGHTS)
    model = open_model(base, dtype, device)
    if as_trained:
        _quantize_as_trained(model, folder)
    _refuse_misfit(model, entries, settings, folder)
    model.requires_grad_(False)
    tensors = storage.load_tensors(folder / WEIGHTS)
    refuse_not_finite(tensors, folder)
    wide = torch.promote_types(torch.float32, dtype or torch.float32)
    layers = linear_layers(model)
    for name in entries:
        rank = len(tensors[f"{PREFIX}{name}.lora_A.weight"])
        alpha = matched(settings.alpha_pattern, name, settings.alpha)
        layer = LoraLinear(layers[name], rank, alpha, settings.dropout, settings.rslora, torch.Generator())
        for part, ending in ENDINGS.items():
            value = tensors[f"{PREFIX}{name}{ending}"].to(device=device, dtype=wide)
            setattr(layer, part, nn.Parameter(value, requires_grad=trainable))
        replace_layer(model, name, layer)
    return model.eval()


def adapter_base(folder: Path) -> Path:
    """The folder of the model that an adapter belongs to: where it says, or at the same place seen from the adapter.

    UsageError where there is none, or another model stands there. Nothing is ever fetched.
    """
    folder = Path(folder)
    values, note = read_settings(folder), _note(folder)
    named = values.get("base_model_name_or_path")
    written = [Path(named)] if isinstance(named, str) and named else []
    beside = [folder / note["path"]] if note.get("path") else []
    places = [*written, *beside, *(folder / path for path in written if not path.is_absolute())]
    for place in places:
        if (place / folder_check.CONFIG).is_file():
            return _checked_base(place, folder)
    raise UsageError(
        f"the base model of this adapter is not at {str(named)[:200]!r}"
        if named
        else "this adapter names no base model",
        where=str(folder / ADAPTER),
        todo="put the base's folder there, or give it: open_adapter(folder, base=...), on the command line base_folder",
    )


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer of a model or adapter folder is: the folder itself, or the base of an adapter without one."""
    folder = Path(folder)
    if (folder / folder_check.TOKENIZER).exists() or not (folder / ADAPTER).exists():
        return folder
    return adapter_base(folder)


def base_in_few_bits(folder: Path, base: Path) -> Literal["", "stored", "made"]:
    """Whether an adapter's base is in few bits: in its folder ("stored"), or put there when opened ("made")."""
    if folder_check.read_config(base).get("quantization_config"):
        return "stored"
    return "made" if _note(folder).get("quantization") else ""


def weights_digest(folder: Path) -> str:
    """One hash for the weights of a model folder: names, sizes and hashes of its safetensors files."""
    manifest = storage.read_manifest(folder)
    known = {} if manifest is None else {name: file.xxh3 for name, file in manifest.files.items()}
    return _digest(
        f"{path.name} {path.stat().st_size} {known.get(path.name) or storage.hash_file(path)}"
        for path in sorted(folder.glob("*.safetensors"))
    )


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _checked_base(base: Path, folder: Path, by_hash: bool = True) -> Path:
    """`base`, refused where the adapter was made on other weights, or where it is an adapter itself."""
    if (base / ADAPTER).exists():
        raise UsageError(
            "the base of this adapter is an adapter itself", where=str(base), todo="export it merged first"
        )
    wanted = _note(folder).get("weights") if by_hash else None
    if wanted and base.is_dir() and weights_digest(base) != wanted:
        raise UsageError(
            f"this adapter was made on another model than {base}: its weights have another hash",
            where=str(folder / BASE),
            todo=f"give the base it was made on; to use it on this one all the same, remove {BASE}",
        )
    return base


def _note(folder: Path) -> dict[str, Any]:
    """What our own adapters say of their base; nothing for those of others."""
    if not (folder / BASE).exists():
        return {}
    path = folder_check.regular_file(folder, BASE)
    note = storage.read_json(path, folder_check.LARGEST_CONFIG)
    kinds: dict[str, Any] = {"path": str, "weights": str, "quantization": (dict, type(None))}
    if not isinstance(note, dict) or not all(isinstance(note.get(key), kind) for key, kind in kinds.items()):
        raise UsageError("this file does not say what the adapter's base is", where=str(path))
    return note


def _entries(header: dict[str, TensorEntry], path: Path) -> dict[str, dict[str, TensorEntry]]:
    """The tensors of an adapter by layer and part, lora_A and lora_B. Refuses any other tensor, and half a pair."""
    found: dict[str, dict[str, TensorEntry]] = {}
    for key, entry in header.items():
        part = next((part for part, ending in ENDINGS.items() if key.endswith(ending)), None)
        if part is None or not key.startswith(PREFIX):
            raise UsageError(
                f"adapter holds a tensor that is no part of a LoRA: {key[:120]!r}",
                where=str(path),
                expected=f"{PREFIX}LAYER{ENDINGS['lora_A']} and lora_B",
            )
        found.setdefault(key.removeprefix(PREFIX).removesuffix(ENDINGS[part]), {})[part] = entry
    for name, parts in found.items():
        for part in ENDINGS:
            if part not in parts:
                raise UsageError(f"adapter lacks tensor {PREFIX + name + ENDINGS[part]!r}", where=str(path))
    if not found:
        raise UsageError("adapter holds no tensors", where=str(path))
    return found


def _refuse_misfit(
    model: nn.Module, entries: dict[str, dict[str, TensorEntry]], settings: AdapterSettings, folder: Path
) -> None:
    """Every tensor must belong to a linear layer of the base with its sizes, and every targeted layer have its own."""
    layers = linear_layers(model)
    where = str(folder / WEIGHTS)
    unknown = next((name for name in entries if name not in layers), None)
    if unknown is not None:
        raise UsageError(
            f"the base model has no linear layer {unknown[:120]!r} to adapt",
            where=where,
            expected=f"layers as {next(iter(layers), 'none')!r}; the output matrix is not adapted",
            todo="give the base that the adapter was made on",
        )
    for name in (name for name in layers if name in entries):
        parts = entries[name]
        inputs, outputs = features(layers[name])
        rank = matched(settings.rank_pattern, name, settings.rank)
        for part, shape in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))):
            if parts[part].shape != shape or parts[part].dtype not in ("F32", "F16", "BF16", "F64"):
                raise UsageError(
                    f"{part} of {name[:120]!r} is {parts[part].dtype} of shape {list(parts[part].shape)}",
                    where=where,
                    expected=f"floats of {list(shape)}: the layer maps {inputs} to {outputs}, the rank is {rank}",
                    todo="give the base that the adapter was made on",
                )
    for target in settings.targets or []:
        if not any(name == target or name.endswith(f".{target}") for name in entries):
            raise UsageError(f"adapter has no tensors for its target {target[:80]!r}", where=where)


def _quantize_as_trained(model: nn.Module, folder: Path) -> None:
    """Put the base into few bits where the adapter was trained so on a folder of 16 bits."""
    settings = _note(folder).get("quantization")
    if settings:
        from mickle.models.quantized import quantize_model

        quantize_model(model, **settings)


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    if hasattr(tokenizer, "start"):
        tokenizer.save(folder)
    else:
        storage.write_text(folder / folder_check.TOKENIZER, tokenizer.to_str(pretty=True))


def _settings(model: nn.Module, layers: dict[str, LoraLinear], base: Path) -> dict[str, Any]:
    """`adapter_config.json` with the fields that PEFT 0.21 and vLLM read."""
    ranks, alphas = ([getattr(layer, key) for layer in layers.values()] for key in ("rank", "alpha"))
    (rank, _), (alpha, _) = (Counter(values).most_common(1)[0] for values in (ranks, alphas))
    first = next(iter(layers.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if getattr(model, "causal", True) else None,
        "base_model_name_or_path": str(base),
        "r": rank,
        "lora_alpha": _short(alpha),
        "lora_dropout": first.dropout,
        "target_modules": _targets(model, list(layers)),
        "bias": "none",
        "fan_in_fan_out": any(is_conv1d(layer.base_layer) for layer in layers.values()),
        "use_rslora": first.rslora,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "rank_pattern": {name: layer.rank for name, layer in layers.items() if layer.rank != rank},
        "alpha_pattern": {n: _short(layer.alpha) for n, layer in layers.items() if layer.alpha != alpha},
    }


def _short(number: float) -> float:
    """32 rather than 32.0, as PEFT writes it."""
    return int(number) if float(number).is_integer() else number


def _targets(model: nn.Module, adapted: list[str]) -> list[str]:
    """The ends of the adapted names ("q_proj") where they mean these layers and no other module; else whole names."""
    ends = sorted({name.rpartition(".")[2] for name in adapted})
    meant = {
        folder_layer_name(model, name)
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ends and (is_linear(module) or not list(module.children()))
    }
    return ends if meant == set(adapted) and not any(end.isdigit() for end in ends) else adapted
