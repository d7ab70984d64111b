"""The correspondence between our decoder and the folders of `transformers`: settings and weight names.

A decoder with SwiGLU and rotary positions on whole heads is a Llama, number for number. One whose layers have
rotary positions or none is a SmolLM3. Any other is written as our own type. Folders that hold more than our
decoder can do (scaled rotary positions, biases, other activations, sliding windows) are left to the general
wrapper.
"""

from dataclasses import asdict, fields
from typing import Any

from mickle.errors import UsageError
from mickle.models.shape import DecoderConfig

MODEL_TYPE = "mickle_decoder"  # folders of decoders that no architecture of transformers computes
NAMES = {  # ours -> Llama's
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "ffn_width": "intermediate_size",
    "max_length": "max_position_embeddings",
    "tied": "tie_word_embeddings",
    "norm_eps": "rms_norm_eps",
    "initial_std": "initializer_range",
}
LLAMA_DEFAULTS = {  # those of transformers' LlamaConfig, for folders that leave a field out
    "vocab_size": 32000,
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "rope_theta": 10000.0,
}
ROPE_IN_LAYERS = "no_rope_layers"  # SmolLM3's list, 1 for layers that do have rotary positions


def model_type(config: DecoderConfig) -> str:
    """Which `model_type` a decoder is saved as: the plainest that computes it."""
    if config.rotary_fraction != 1.0 or config.activation != "swiglu" or not config.causal:
        return MODEL_TYPE
    schemes = set(config.schemes)
    if schemes == {"rotary"}:
        return "llama"
    return "smollm3" if schemes <= {"rotary", "none"} else MODEL_TYPE


def to_settings(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of a decoder, without token ids.

    Both spellings of the rotary base are written: readers older than transformers 5, vLLM and llama.cpp's
    converter look for `rope_theta`. In our own type `max_length` is written as `max_position_embeddings`:
    transformers takes the former for a setting of `generate`.
    """
    kind = model_type(config)
    if kind == MODEL_TYPE:
        shape = asdict(config)
        shape["max_position_embeddings"] = shape.pop("max_length")
        return {"architectures": ["MickleDecoderForCausalLM"], "model_type": kind, **shape}
    settings = {
        "architectures": ["LlamaForCausalLM" if kind == "llama" else "SmolLM3ForCausalLM"],
        "model_type": kind,
        **{theirs: getattr(config, ours) for ours, theirs in NAMES.items()},
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "pad_token_id": None,
    }
    if kind == "smollm3":
        settings[ROPE_IN_LAYERS] = [int(scheme == "rotary") for scheme in config.schemes]
        settings["layer_types"] = ["full_attention"] * config.layers
        settings["use_sliding_window"] = False
    return settings


def from_settings(values: dict[str, Any]) -> DecoderConfig | None:
    """The decoder that a `config.json` describes, or None where it is another model, or more than our
    decoder.

    Raises UsageError for shapes that cannot be, and what Python raises for values of a wrong kind.
    """
    kind = values["model_type"]
    if kind == MODEL_TYPE:
        return _from_own(values)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if kind not in ("llama", "smollm3") or _more_than_ours(values, rope):
        return None
    position: str | tuple[str, ...] = "rotary"
    if kind == "smollm3":
        if not set(NAMES.values()) - {"head_dim"} <= values.keys() or ROPE_IN_LAYERS not in values:
            return None  # relies on defaults of its own
        position = tuple("rotary" if has else "none" for has in values[ROPE_IN_LAYERS])
    values = LLAMA_DEFAULTS | values
    heads = values["num_attention_heads"]
    derived = {
        "num_key_value_heads": values.get("num_key_value_heads") or heads,
        "head_dim": values.get("head_dim") or (values["hidden_size"] // heads if heads else 0),
    }
    shape = {ours: (values | derived)[theirs] for ours, theirs in NAMES.items()}
    return DecoderConfig(**shape, position=position, rope_theta=(values | rope)["rope_theta"])


def folder_name(config: DecoderConfig, name: str) -> str:
    """How a decoder's weight is called in its folder: as in Llama folders, or inside our own type's `model`."""
    outside = name.startswith("lm_head.") and model_type(config) != MODEL_TYPE
    return name if outside else f"model.{name}"


def _more_than_ours(values: dict[str, Any], rope: dict[str, Any]) -> bool:
    """Whether a Llama-like configuration asks for something our decoder does not do."""
    return bool(
        rope.get("rope_type", rope.get("type", "default")) != "default"
        or rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0
        or values.get("attention_bias")
        or values.get("mlp_bias")
        or values.get("use_sliding_window")
        or set(values.get("layer_types") or []) - {"full_attention"}
        or values.get("hidden_act", "silu") != "silu"
    )


def _from_own(values: dict[str, Any]) -> DecoderConfig:
    """The decoder that a `config.json` of our own type describes."""
    values = {**values, "max_length": values.get("max_position_embeddings")}
    names = [field.name for field in fields(DecoderConfig)]
    missing = [name for name in names if name not in values]
    if missing:
        raise UsageError(f"config of a {MODEL_TYPE} lacks {missing[0]!r}")
    return DecoderConfig(**{name: values[name] for name in names})
