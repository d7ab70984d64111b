"""A model folder that pretraining goes on from: any language model of ``transformers``, masked or causal.

For forecasts a model of another architecture is taken for a decoder of the same dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mickle.errors import UsageError
from mickle.models.folder import describe
from mickle.models.language import Description, LanguageModel
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
    if describe(folder).causal is not causal:
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


def origin_of(folder: Path, model: LanguageModel) -> Origin:
    """What a plan needs of an opened model."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    described = describe(folder)
    return Origin(parameters, model.trained_length, described.shape or _stand_in(described))


def _stand_in(model: Description) -> DecoderConfig:
    """A decoder of the same dimensions."""
    return DecoderConfig(
        vocab_size=model.vocab_size,
        width=model.width,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.heads,
        head_width=max(2, model.width // model.heads),
        ffn_width=model.ffn,
        max_length=model.longest,
        causal=model.causal,
        activation="gelu",
    )
