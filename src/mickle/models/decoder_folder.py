"""The correspondence between our decoder and the folders of `transformers`: settings and weight names.

A decoder with SwiGLU and rotary positions on whole heads is a Llama, number for number. One whose layers have
rotary positions or none is a SmolLM3, one with experts a Mixtral, one that sees both sides a EuroBERT. Any other is
written as our own type. Folders that hold more than our decoder can do (scaled rotary positions, biases, other
activations, sliding windows) are left to the general wrapper.

`router_loss` is written as Mixtral's `router_aux_loss_coef`, but the two weigh different sums: transformers takes one
balance over all layers' tokens together, which is k (the experts of a token) where ours is 1 for each layer.
"""

from dataclasses import asdict, fields
from typing import Any

from mickle.errors import UsageError
from mickle.models.language import Description
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
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "eurobert": "EuroBertForMaskedLM",
}
EXPERTS = {  # ours -> Mixtral's
    "experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
    "router_loss": "router_aux_loss_coef",
}
EXPERT_WEIGHTS = {".mlp.": ".block_sparse_moe.", "gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
LATER = ("drop_path", "experts", "experts_per_token", "router_loss")  # fields that older folders of ours lack
ROPE_IN_LAYERS = "no_rope_layers"  # SmolLM3's list, 1 for layers that do have rotary positions


def model_type(config: DecoderConfig) -> str:
    """Which `model_type` a decoder is saved as: the plainest that computes it."""
    if config.rotary_fraction != 1.0 or config.activation != "swiglu":
        return MODEL_TYPE
    schemes = set(config.schemes)
    if not config.causal:  # EuroBERT's settings refuse a width that heads do not divide
        plain = schemes == {"rotary"} and config.experts == 1 and config.width % config.heads == 0
        return "eurobert" if plain else MODEL_TYPE
    if config.experts > 1:
        return "mixtral" if schemes == {"rotary"} else MODEL_TYPE
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
        "architectures": [ARCHITECTURES[kind]],
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
    if kind == "mixtral":
        settings |= {theirs: getattr(config, ours) for ours, theirs in EXPERTS.items()}
        settings["sliding_window"] = None
    return settings


def from_settings(values: dict[str, Any]) -> DecoderConfig | None:
    """The decoder that a `config.json` describes, or None where it is another model, or more than our decoder.

    Raises UsageError for shapes that cannot be, and what Python raises for values of a wrong kind.
    """
    kind = values["model_type"]
    if kind == MODEL_TYPE:
        return _from_own(values)
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    if kind not in ARCHITECTURES or _more_than_ours(values, rope):
        return None
    if kind != "llama" and not set(NAMES.values()) - {"head_dim"} <= values.keys():
        return None  # relies on defaults of its own
    more: dict[str, Any] = {"position": "rotary", "causal": kind != "eurobert"}
    if kind == "smollm3":
        if ROPE_IN_LAYERS not in values:
            return None
        more["position"] = tuple("rotary" if has else "none" for has in values[ROPE_IN_LAYERS])
    elif kind != "llama" and "rope_theta" not in values | rope:
        return None
    if kind == "mixtral":
        if not set(EXPERTS.values()) <= values.keys() or values[EXPERTS["experts"]] == 1:
            return None
        more |= {ours: values[theirs] for ours, theirs in EXPERTS.items()}
    values = LLAMA_DEFAULTS | values
    heads = values["num_attention_heads"]
    derived = {
        "num_key_value_heads": values.get("num_key_value_heads") or heads,
        "head_dim": values.get("head_dim") or (values["hidden_size"] // heads if heads else 0),
    }
    shape = {ours: (values | derived)[theirs] for ours, theirs in NAMES.items()}
    return DecoderConfig(**shape, **more, rope_theta=(values | rope)["rope_theta"])


def folder_name(config: DecoderConfig, name: str) -> str:
    """How a decoder's weight or layer is called in its folder: as in Llama or Mixtral folders, or inside our own
    type's `model`.
    """
    kind = model_type(config)
    if kind == "mixtral":
        for ours, theirs in EXPERT_WEIGHTS.items():
            name = name.replace(ours, theirs)
    outside = name.split(".")[0] == "lm_head" and kind != MODEL_TYPE
    return name if outside else f"model.{name}"


def ignored_tensors(config: DecoderConfig) -> set[str]:
    """Tensors older folders carry beside the weights: a tied head's copy and rotary frequencies."""
    frequencies = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(config.layers)}
    return frequencies | ({"lm_head.weight"} if config.tied else set())


def description(config: DecoderConfig) -> Description:
    """What there is to know of a decoder before its weights are opened."""
    return Description(
        model_type=model_type(config),
        causal=config.causal,
        vocab_size=config.vocab_size,
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        ffn=config.ffn_width * (config.experts_per_token if config.experts > 1 else 1),
        attention=6 * config.width + (3 * config.heads + 2 * config.kv_heads) * config.head_width,
        longest=config.max_length,
        shape=config,
    )


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
        or (values["model_type"] == "mixtral" and (values.get("sliding_window") or values.get("router_jitter_noise")))
    )


def _from_own(values: dict[str, Any]) -> DecoderConfig:
    """The decoder that a `config.json` of our own type describes."""
    values = {**values, "max_length": values.get("max_position_embeddings")}
    values = {f.name: f.default for f in fields(DecoderConfig) if f.name in LATER} | values
    names = [field.name for field in fields(DecoderConfig)]
    missing = [name for name in names if name not in values]
    if missing:
        raise UsageError(f"config of a {MODEL_TYPE} lacks {missing[0]!r}")
    return DecoderConfig(**{name: values[name] for name in names})
