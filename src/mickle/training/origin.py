"""A model folder that pretraining goes on from: any language model of ``transformers``, masked or causal.

For forecasts a model of another architecture is taken for a decoder of the same dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from mickle import machine
from mickle.errors import UsageError
from mickle.models.decoder import Decoder
from mickle.models.folder import model_config, open_model
from mickle.models.shape import DecoderConfig


@dataclass(frozen=True)
class Origin:
    """What a plan needs to know of the model: its parameters, the longest text it reads, its dimensions."""

    parameters: int
    longest: int | None
    shape: DecoderConfig


def refuse_other_objective(folder: Path, causal: bool) -> None:
    """UsageError where the model of ``folder`` is not made for the objective: next token if ``causal``, else masked.

    Reads the settings only, so that it can be asked before anything is done.
    """
    settings = model_config(folder)
    if isinstance(settings, DecoderConfig):
        one_side = settings.causal
    else:
        one_side = not any("MaskedLM" in str(name) for name in settings.get("architectures") or [])
    if one_side is not causal:
        does, task, kind = _OTHERWISE[causal]
        raise UsageError(
            f"This model {does} of a token; it cannot be trained to {task}.",
            where=f"start: {folder}",
            todo=f"set objective.kind to {kind}, or start from another model",
        )


_OTHERWISE = {
    True: ("sees both sides", "predict the next token", "masked"),
    False: ("sees one side", "fill in masked tokens", "next"),
}


def open_origin(folder: Path, vocabulary: int) -> nn.Module:
    """The model of ``folder`` on this machine's device, ready to be trained.

    Raises UsageError where the tokenizer (``vocabulary`` tokens) has more tokens than the model.
    """
    model = open_model(folder, device=machine.device())
    if vocabulary > model.vocab_size:
        raise UsageError(
            f"The tokenizer has {vocabulary:,} tokens, the model {model.vocab_size:,}.",
            where=f"start: {folder}",
            todo="use the tokenizer that belongs to the model",
        )
    return model


def origin_of(model: nn.Module) -> Origin:
    """What a plan needs of an opened model."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if isinstance(model, Decoder):
        return Origin(parameters, model.config.max_length, model.config)
    return Origin(parameters, model.length_limit, _stand_in(model))


def _stand_in(model: Any) -> DecoderConfig:
    """A decoder of the same dimensions; attributes go by the names that transformers maps others to."""
    settings = model.config.get_text_config()
    width, heads = settings.hidden_size, settings.num_attention_heads
    feed_forward = next(
        (getattr(settings, name) for name in ("intermediate_size", "n_inner", "hidden_dim") if _has(settings, name)),
        4 * width,
    )
    return DecoderConfig(
        vocab_size=model.vocab_size,
        width=width,
        layers=settings.num_hidden_layers,
        heads=heads,
        kv_heads=heads,
        head_width=max(2, width // heads),
        ffn_width=feed_forward,
        max_length=model.length_limit or 1 << 20,
        causal=model.causal,
        activation="gelu",
    )


def _has(settings: Any, name: str) -> bool:
    return isinstance(getattr(settings, name, None), int)
