"""What a GGUF file says in another way than `config.json`, or leaves to llama.cpp's code: each as the other.

Positions: Llama 3.1 and later divide each frequency by a factor of its own, a tensor in the file; Phi-3 has two
such tensors, for texts up to the length of its first training and beyond; linear scaling and YaRN are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mickle.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

FACTORS = "rope_freqs.weight"  # what Llama 3.1 and later divide frequencies by
LONG, SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
SCALED_BY = (8.0, 32.0)  # Llama 3.1 and 3.2
ORIGINAL = "original_max_position_embeddings"
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
LOCAL = 10_000.0  # what the windows of Gemma 3 turn by
YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "attention_factor": None, "truncate": True}  # in llama.cpp's code


def scaling_said(
    rope: Mapping[str, Any], known: tuple[str, ...], width: int, longest: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata (without the architecture's name) and tensors that say the `rope_parameters` of a model.

    known: the kinds of scaling that the architecture has in llama.cpp. width: numbers of a head that turn. longest:
    positions of the model. UsageError that names the scaling, or the setting of it, that a file cannot say.
    """
    import torch

    kind = rope.get("rope_type", "default")
    if kind not in known:
        _refuse(f"positions scaled by {kind!r}", f"one of {', '.join(known)}")
    said: dict[str, Any] = {}
    if kind in ("linear", "yarn"):
        said = {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        odd = [name for name in rope if name not in ("rope_type", "rope_theta", "factor", ORIGINAL, *YARN)]
        odd += [name for name, value in YARN.items() if rope.get(name, value) not in (value, None)]
        if odd:
            _refuse(f"YaRN with {odd[0]} {rope[odd[0]]}", "YaRN's own settings")
        said["rope.scaling.original_context_length"] = int(rope[ORIGINAL])
    if kind == "llama3":
        return {}, {FACTORS: llama3_factors(rope, width // 2)}
    if kind == "longrope":
        tensors = {LONG: torch.tensor(rope["long_factor"]), SHORT: torch.tensor(rope["short_factor"])}
        first = int(rope[ORIGINAL])
        scale = rope.get("factor") or longest / first
        grown = math.sqrt(1 + math.log(scale) / math.log(first)) if scale > 1 else 1.0
        return {
            "rope.scaling.original_context_length": first,
            "rope.scaling.attn_factor": float(rope.get("attention_factor") or grown),
        }, tensors
    return said, {}


def score_width(kind: str, layers: int, width: int, heads: int, head_width: int) -> int:
    """What llama.cpp divides a Gemma's scores by the root of: the width of a head, of the largest another. kind: the
    architecture, as either side names it.
    """
    return width // heads if layers == (46 if kind == "gemma2" else 62) else head_width


def completed(config: dict[str, Any], metadata: Mapping[str, Any], factors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The `config.json` that transformers' reader makes of a file, with what it leaves out.

    metadata: the file's, without the architecture's name. factors: its tensors for positions.
    """
    kind, base = config["model_type"], {"rope_theta": _number(metadata, "rope.freq_base", LOCAL)}
    if kind != "gemma3_text":  # whose windows have positions of their own
        base = {**(config.get("rope_parameters") or {}), **base}
    if kind == "phi3":
        width = max(1, config["hidden_size"] // config["num_attention_heads"])
        base["partial_rotary_factor"] = _number(metadata, "rope.dimension_count", width) / width
        longest = config["max_position_embeddings"]
        config[ORIGINAL] = _number(metadata, "rope.scaling.original_context_length", longest)
    if kind in ("gemma2", "gemma3_text"):
        sizes = (config[name] for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim"))
        caps = {name: _number(metadata, name, config.get(name)) for name in CAPS}
        config = {**config, **caps, "query_pre_attn_scalar": score_width(kind, *sizes)}
    rope = scaling_read(metadata, factors, base)
    if kind == "gemma3_text":
        rope = {"full_attention": rope, "sliding_attention": {"rope_type": "default", "rope_theta": LOCAL}}
    return {**config, "rope_parameters": rope} if "rope_parameters" in config else config


def scaling_read(metadata: Mapping[str, Any], tensors: Mapping[str, Tensor], rope: dict[str, Any]) -> dict[str, Any]:
    """The `rope_parameters` that a file says. metadata: without the architecture's name. tensors: the factors in it.
    rope: with `rope_theta`. UsageError for a scaling that is not known.
    """
    kind, factor = metadata.get("rope.scaling.type", "none"), metadata.get("rope.scaling.factor")
    known = type(factor) is float and 0 < factor < math.inf
    first = metadata.get("rope.scaling.original_context_length")
    if FACTORS in tensors:
        return _llama3(tensors[FACTORS], rope["rope_theta"])
    if LONG in tensors and SHORT in tensors and type(first) is int:
        lists = {"long_factor": tensors[LONG].tolist(), "short_factor": tensors[SHORT].tolist()}
        grown = _number(metadata, "rope.scaling.attn_factor", 1.0)
        return {**rope, "rope_type": "longrope", ORIGINAL: first, "attention_factor": grown, **lists}
    if kind == "none" and not tensors:
        return {"rope_type": "default", **rope}
    if kind == "linear" and known:
        return {**rope, "rope_type": "linear", "factor": factor}
    if kind == "yarn" and known and type(first) is int:
        return {**rope, "rope_type": "yarn", "factor": factor, ORIGINAL: first}
    raise UsageError(
        f"positions of this model are scaled ({str(kind)[:40]}) in a way that is not read",
        todo="take the model's own folder",
    )


def llama3_factors(rope: Mapping[str, Any], count: int) -> Tensor:
    """What each of `count` frequencies is divided by: waves that turn often in the length of the first training stay,
    those that hardly turn are stretched by the factor, and between goes it smoothly.
    """
    import torch

    waves = 2 * math.pi * rope["rope_theta"] ** (torch.arange(count) / count)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = ((rope[ORIGINAL] / waves - low) / (high - low)).clamp(0, 1)
    return 1 / (smooth + (1 - smooth) / rope["factor"])


def _llama3(factors: Tensor, theta: float) -> dict[str, Any]:
    """The settings under which transformers divides frequencies by just these factors."""
    import torch

    for factor in (*SCALED_BY, float(factors.max())):
        rope = {"rope_type": "llama3", "rope_theta": theta, "factor": factor, **LLAMA3}
        if torch.allclose(factors, llama3_factors(rope, len(factors)), rtol=1e-4):
            return rope
    raise UsageError("positions are scaled by factors that no known Llama has")


def _number(metadata: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    """A number of the metadata; UsageError where something else stands there."""
    found = metadata.get(name)
    if found is not None and type(found) not in (int, float):
        raise UsageError(f"{name} is no number in this file", todo="fetch or write the file again")
    return otherwise if found is None else found


def _refuse(what: str, expected: str) -> None:
    raise UsageError(
        f"llama.cpp does not have {what} for this kind of model", where="rope_parameters", expected=expected
    )
