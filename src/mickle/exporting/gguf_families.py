"""What llama.cpp is told of a model, by family: the architecture that computes it there, sizes, positions, windows.

Some settings of a family stand in llama.cpp's code and not in the file (`built_in`): a model that has others is
refused by the setting's name. Windows that all layers of a model have are not computed there: up to their length
attention is the same, so that is the length of texts that the file names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mickle.errors import UsageError
from mickle.models.gguf_settings import CAPS, LOCAL, scaling_said, score_width

SIZES = {  # llama.cpp's -> transformers'
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    **{name: name for name in CAPS},
}
GEMMA = ("attention.sliding_window", *CAPS)  # said of Gemma alone
UNBIASED = {"attention_bias": False, "mlp_bias": False}
PLAIN = {"hidden_act": "silu", **UNBIASED}


@dataclass(frozen=True)
class Family:
    """How llama.cpp has the models of one of transformers' types.

    architecture: its name there. paired: it turns neighbouring pairs of a head's numbers, where folders turn the first
    half against the second. shifted: its norms multiply by the weight, where folders have the weight less one. scaled:
    the kinds of scaling of positions that it has.
    """

    architecture: str
    paired: bool = False
    shifted: bool = False
    scaled: tuple[str, ...] = ("default", "linear", "yarn")


FAMILIES = {
    "llama": Family("llama", paired=True, scaled=("default", "linear", "yarn", "llama3")),
    "mistral": Family("llama", paired=True),
    "smollm3": Family("smollm3", paired=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma2": Family("gemma2", shifted=True, scaled=("default",)),
    "gemma3_text": Family("gemma3", shifted=True, scaled=("default", "linear")),
    "phi3": Family("phi3", scaled=("default", "longrope")),
}


@dataclass(frozen=True)
class Told:
    """What a file says of a model beside its weights. values: metadata; tensors: factors of positions; note: what a
    user should know, "" where nothing.
    """

    family: Family
    values: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    note: str = ""


def family_of(kind: str) -> Family:
    """How llama.cpp has the models of a type; UsageError where no file is written of it."""
    if kind not in FAMILIES:
        raise UsageError(
            f"GGUF is not written of a {kind[:60]}",
            where="model_type",
            expected=", ".join(FAMILIES),
            todo="export with --format huggingface and use llama.cpp's own converter on that folder",
        )
    return FAMILIES[kind]


def told(settings: Mapping[str, Any]) -> Told:
    """What llama.cpp is told of the model of a whole `config.json`. UsageError that names the setting, or the family,
    that it cannot be told.
    """
    kind = settings["model_type"]
    family, gemma = family_of(kind), kind.startswith("gemma")
    for name, wanted in built_in(settings).items():
        found = settings.get(name, wanted)
        if found != wanted and (found or wanted):
            _refuse(f"{name} is {found}", where="config.json", expected=str(wanted))
    if kind == "gemma2" and not all(settings[name] for name in CAPS):
        _refuse("scores are not capped", "config.json", f"{' and '.join(CAPS)}, numbers")
    width = settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"]
    ropes = settings["rope_parameters"]
    rope = ropes.get("full_attention", ropes)
    turned = int(width * (rope.get("partial_rotary_factor") or 1))
    _refuse_other_turns(settings, turned == width)
    values = {theirs: settings[ours] for theirs, ours in SIZES.items() if gemma or theirs not in GEMMA}
    values |= {"attention.key_length": width, "attention.value_length": width}
    values |= {"rope.dimension_count": turned, "rope.freq_base": float(rope["rope_theta"])}
    longest = settings["max_position_embeddings"]
    scaling, tensors = scaling_said(rope, family.scaled, turned, longest)
    window, note = None if gemma else settings.get("sliding_window"), ""
    if window and window < longest:
        values["context_length"] = window
        note = (
            f"llama.cpp has no window for a {kind}: the file is for texts of up to {window:,} tokens, where it is none"
        )
    return Told(family, {name: value for name, value in (values | scaling).items() if value is not None}, tensors, note)


def built_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a family that llama.cpp has in its code, with the values that they have there."""
    layers = settings["num_hidden_layers"]
    match settings["model_type"]:
        case "gemma2":
            each = {"tie_word_embeddings": True, "layer_types": _windows(layers, 2)}
            return _gemma(settings) | each
        case "gemma3_text":
            each = {"attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": _windows(layers, 6)}
            return _gemma(settings) | each
        case "smollm3":
            return PLAIN | {"no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(layers)]}
        case _:
            return PLAIN


def _gemma(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What both Gemmas have."""
    sizes = (settings[name] for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"))
    scale = {"query_pre_attn_scalar": score_width(settings["model_type"], *sizes)}
    return scale | {"hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False, **UNBIASED}


def _windows(layers: int, every: int) -> list[str]:
    """Windows in all layers but every so manieth."""
    return ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]


def _refuse_other_turns(settings: Mapping[str, Any], whole: bool) -> None:
    """Heads of which a part turns are Phi-3's alone; the windows of Gemma 3 turn by one base."""
    if not whole and settings["model_type"] != "phi3":
        _refuse("only a part of each head turns (partial_rotary_factor)", "config.json", "1.0")
    local = settings["rope_parameters"].get("sliding_attention") or {}
    if local and (local.get("rope_type", "default"), local["rope_theta"]) != ("default", LOCAL):
        _refuse(f"windows turn by {local}", "rope_parameters", f"rope_theta {LOCAL:g}, not scaled")


def as_told(family: Family, name: str, weight: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """A weight or bias of a folder as llama.cpp has it; `name`: the folder's.

    Inside a head of a paired family the rows of queries and keys are 0, n/2, 1, n/2 + 1, ...
    """
    if family.shifted and name.endswith("norm.weight"):
        return weight + 1
    found = re.search(r"\.([qk])_proj\.", name)
    if not family.paired or found is None:
        return weight
    heads = settings["num_attention_heads" if found[1] == "q" else "num_key_value_heads"]
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def _refuse(what: str, where: str, expected: str) -> None:
    todo = "export with --format huggingface, for tools that compute it"
    raise UsageError(f"{what}, which llama.cpp does not compute", where=where, expected=expected, todo=todo)
