"""Adapter folders in PEFT's format, written and read: `adapter_config.json` and `adapter_model.safetensors`.

A's and B's are named `base_model.model.<the layer's folder name>.lora_A.weight` and `.lora_B.weight`, rows of tables
`.token_adapter.trainable_tokens_delta`, layers trained whole as in the model's folder. Our own folders
hold a note on their base too (`models/adapter_folder.py`), so that another base is refused. What PEFT writes is read
where it is a plain LoRA, rsLoRA and patterns too; a variant that would compute something else is refused by its name
(`models/adapter_folder.py`). A folder from a stranger is checked as a model folder is, before memory is taken.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mickle import storage
from mickle.errors import UsageError
from mickle.models import folder_check
from mickle.models.adapter_folder import (
    WEIGHTS,
    AdapterSettings,
    adapter_base,
    base_in_few_bits,
    base_note,
    checked_base,
    plain_lora,
    read_settings,
    tokenizer_folder,
    weights_digest,
    write_adapter,
)
from mickle.models.folder_check import ADAPTER
from mickle.models.language import LanguageModel
from mickle.models.linear_layers import features, folder_layer_name, is_conv1d, is_linear, linear_layers, replace_layer
from mickle.models.lora import LoraLinear, lora_layers, matched
from mickle.models.prefix import PrefixedModel, open_prefix, save_prefix
from mickle.models.quantized import open_base, quantize_model
from mickle.models.safetensors_check import TensorEntry, read_header, refuse_not_finite
from mickle.models.trained_layers import train_rows, train_whole, trained_rows, trained_whole

__all__ = ["adapter_base", "base_in_few_bits", "open_adapter", "read_settings", "save_adapter", "tokenizer_folder"]
__all__ += ["weights_digest"]
PREFIX = "base_model.model."
ENDINGS = {"lora_A": ".lora_A.weight", "lora_B": ".lora_B.weight"}
ROWS = ".token_adapter.trainable_tokens_delta"


def save_adapter(
    model: nn.Module, folder: Path, base: Path, tokenizer: Any = None, quantization: Mapping[str, Any] | None = None
) -> None:
    """Write the adapters or the prefix of `model` into `folder`, as PEFT does; `base` is the folder of the model below.

    quantization: how the base was put into few bits when its folder holds it in 16 (arguments of
    `models.quantized.quantize_model`): it is done again when the adapter is opened. tokenizer: as `save_model` takes
    it. The caller seals the folder. Raises NumericError where a number is not finite.
    """
    if isinstance(model, PrefixedModel):
        save_prefix(model, folder, base, tokenizer)
        return
    folder, base = Path(folder), Path(base).resolve()
    layers = lora_layers(model)
    if not layers:
        raise UsageError("the model has no adapters to save", todo="attach them first: models.lora.attach_lora")
    tensors = {
        f"{PREFIX}{name}{ENDINGS[part]}": getattr(layer, part).detach()
        for name, layer in layers.items()
        for part in ENDINGS
    }
    tensors |= {f"{PREFIX}{name}{ROWS}": table.rows.detach() for name, table in trained_rows(model).items()}
    for name, whole in trained_whole(model).items():
        tensors |= {f"{PREFIX}{name}.{own}": value.detach() for own, value in whole.state_dict().items()}
    write_adapter(folder, base, tensors, _settings(model, layers, base), tokenizer, quantization)


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
    are float32 or wider. trainable: what was trained takes gradients; all else is frozen in either case. as_trained
    False: on `base` as it is, whatever the hash of its weights, and not put into few bits: the model that the base was
    made of.

    Raises UsageError for a folder that is not whole or not safe, for another base than the adapter was made on (naming
    the layer that does not fit), and for kinds of adapter that Mickle does not compute.
    """
    folder = Path(folder)
    values = read_settings(folder)
    base = adapter_base(folder) if base is None else checked_base(Path(base), folder, as_trained)
    if values["peft_type"] == "PREFIX_TUNING":
        return open_prefix(folder, values, base, dtype, device)
    settings = plain_lora(values, folder / ADAPTER)
    header = read_header(folder_check.regular_file(folder, WEIGHTS))
    beside = {key: entry for key, entry in header.items() if _is_beside(key, settings)}
    entries = _entries({key: entry for key, entry in header.items() if key not in beside}, folder / WEIGHTS)
    model = open_base(base, dtype, device)
    how = base_note(folder).get("quantization")
    if as_trained and how:
        quantize_model(model, **how)
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
    try:
        _put_beside(model, {key: tensors[key].to(device) for key in beside}, settings, trainable)
    except UsageError as error:
        raise UsageError(error.what, where=str(folder / WEIGHTS), expected=error.expected) from None
    return model.eval()


def _is_beside(key: str, settings: AdapterSettings) -> bool:
    """Whether a tensor is trained rows of a table, or of a layer that is trained whole."""
    layer = key.removeprefix(PREFIX).rpartition(".")[0]
    ours = key.startswith(PREFIX) and ".lora_" not in key
    return ours and (key.endswith(ROWS) or any(f".{layer}.".find(f".{name}.") >= 0 for name in settings.whole))


@torch.no_grad()
def _put_beside(model: LanguageModel, tensors: dict[str, Tensor], settings: AdapterSettings, trainable: bool) -> None:
    """Trained rows and whole layers into the model. UsageError names what does not fit."""
    found = {key.removeprefix(PREFIX).removesuffix(ROWS): value for key, value in tensors.items() if key.endswith(ROWS)}
    for name, rows in found.items():
        tokens = next((some for end, some in settings.tokens.items() if not end or f".{name}".endswith(f".{end}")), [])
        train_rows(model, {name: tokens})
        table = trained_rows(model)[name]
        _refuse_other_shape(name + ROWS, rows, table.rows)
        table.rows.copy_(rows[torch.tensor(tokens).argsort()]).requires_grad_(trainable)
    train_whole(model, settings.whole)
    own = {f"{PREFIX}{name}.{key}": p for name, m in trained_whole(model).items() for key, p in m.state_dict().items()}
    given = {key: value for key, value in tensors.items() if not key.endswith(ROWS)}
    if own.keys() != given.keys() or len(found) < len(settings.tokens):
        odd = min([*(own.keys() ^ given.keys()), *(settings.tokens.keys() - found.keys())])
        raise UsageError(f"adapter has not the tensors that its settings name: {odd[:120]!r}")
    for key, value in given.items():
        _refuse_other_shape(key, value, own[key])
        own[key].copy_(value)
    for layer in trained_whole(model).values():
        layer.requires_grad_(trainable)


def _refuse_other_shape(name: str, found: Tensor, expected: Tensor) -> None:
    if found.shape != expected.shape or not found.is_floating_point():
        raise UsageError(
            f"{name[:120]!r} is {found.dtype} of shape {list(found.shape)}",
            expected=f"floats of {list(expected.shape)}",
        )


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
    """Every tensor must belong to a linear layer of the base with its sizes, and a target that names layers have some.

    A target may name none (lists are made for many architectures at once), or only layers that are left out.
    """
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
        named = [name for name in layers if name == target or name.endswith(f".{target}")]
        if named and not settings.some_left_out and not entries.keys() & named:
            raise UsageError(f"adapter has no tensors for its target {target[:80]!r}", where=where)


def _settings(model: nn.Module, layers: dict[str, LoraLinear], base: Path) -> dict[str, Any]:
    """`adapter_config.json` with the fields that PEFT 0.21 and vLLM read."""
    ranks, alphas = ([getattr(layer, key) for layer in layers.values()] for key in ("rank", "alpha"))
    (rank, _), (alpha, _) = (Counter(values).most_common(1)[0] for values in (ranks, alphas))
    first = next(iter(layers.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if model.causal else None,
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
        "modules_to_save": list(trained_whole(model)) or None,
        "trainable_token_indices": {n: table.tokens.tolist() for n, table in trained_rows(model).items()} or None,
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
