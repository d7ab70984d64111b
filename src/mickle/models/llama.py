"""The correspondence between our decoder and the Llama folders of `transformers`: settings and weight names.

A decoder with rotary positions on whole heads and SwiGLU is a Llama, number for number. Llama folders with
anything our decoder lacks (scaled rotary positions, biases, other activations) are left to the general
wrapper.
"""

from dataclasses import asdict, fields
from typing import Any

from mickle.errors import UsageError
from mickle.models.shape import DecoderConfig

MODEL_TYPE = "mickle_decoder"  # folders of decoders that are no Llama


def is_llama(config: DecoderConfig) -> bool:
    """Whether `transformers` can compute this decoder with its own Llama code."""
    return (
        set(config.schemes) == {"rotary"}
        and config.rotary_fraction == 1.0
        and config.activation == "swiglu"
        and config.causal
    )


def llama_settings(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of a Llama folder, without token ids. Both spellings of the rotary base are written:
    readers older than transformers 5, llama.cpp's converter and vLLM look for `rope_theta`.
    """
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_width,
        "max_position_embeddings": config.max_length,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": config.initial_std,
    }


def from_llama(values: dict[str, Any]) -> DecoderConfig | None:
    """The decoder that a Llama's `config.json` describes, or None where it is more than our decoder.

    Defaults are those of transformers' LlamaConfig. Raises UsageError for shapes that cannot be.
    """
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    plain = rope.get("rope_type", rope.get("type", "default")) == "default"
    if (
        values["model_type"] != "llama"
        or not plain
        or values.get("attention_bias")
        or values.get("mlp_bias")
        or values.get("hidden_act", "silu") != "silu"
        or rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0
    ):
        return None
    width, heads = values.get("hidden_size", 4096), values.get("num_attention_heads", 32)
    return DecoderConfig(
        vocab_size=values.get("vocab_size", 32000),
        width=width,
        layers=values.get("num_hidden_layers", 32),
        heads=heads,
        kv_heads=values.get("num_key_value_heads") or heads,
        head_width=values.get("head_dim") or (width // heads if heads else 0),
        ffn_width=values.get("intermediate_size", 11008),
        max_length=values.get("max_position_embeddings", 2048),
        rope_theta=float(rope.get("rope_theta", values.get("rope_theta", 10000.0))),
        tied=bool(values.get("tie_word_embeddings", False)),
        norm_eps=float(values.get("rms_norm_eps", 1e-6)),
        initial_std=float(values.get("initializer_range", 0.02)),
    )


def own_settings(config: DecoderConfig) -> dict[str, Any]:
    """The `config.json` of a decoder that is no Llama, without token ids: the fields of DecoderConfig.

    `max_length` is written as `max_position_embeddings`: transformers takes the former for a setting of
    `generate`.
    """
    shape = asdict(config)
    shape["max_position_embeddings"] = shape.pop("max_length")
    return {"architectures": ["MickleDecoderForCausalLM"], "model_type": MODEL_TYPE, **shape}


def from_own(values: dict[str, Any]) -> DecoderConfig:
    """The decoder that a `config.json` written from `own_settings` describes."""
    values = {**values, "max_length": values.get("max_position_embeddings")}
    names = [field.name for field in fields(DecoderConfig)]
    missing = [name for name in names if name not in values]
    if missing:
        raise UsageError(f"config of a {MODEL_TYPE} lacks {missing[0]!r}")
    return DecoderConfig(**{name: values[name] for name in names})


def folder_name(config: DecoderConfig, name: str) -> str:
    """How a decoder's weight is called in its folder: as in Llama folders, or inside our own type's `model`."""
    return name if name.startswith("lm_head.") and is_llama(config) else f"model.{name}"
