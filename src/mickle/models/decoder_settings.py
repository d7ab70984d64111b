"""What a fresh decoder is made of, beside its size: the settings of `mickle pretrain` under `architecture`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mickle.config import Config

if TYPE_CHECKING:
    from mickle.models.decoder import Decoder
    from mickle.models.shape import DecoderConfig


class DecoderArchitecture(Config):
    """A transformer with the position scheme and the experts that are asked for (`models/decoder.py`)."""

    kind: Literal["decoder"] = "decoder"
    position: Literal["rotary", "none", "learned", "sinusoidal", "alibi", "t5"] = Field(
        "rotary", description="how the model knows positions; rotary saves as a plain Llama or EuroBERT folder"
    )
    experts: int = Field(
        1,
        ge=1,
        le=256,
        description="feed-forward networks (experts) of a layer; with more than 1 the model saves as a Mixtral folder",
    )
    experts_per_token: int = Field(2, ge=1, description="how many experts each token passes through")
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="share of rows that skip the last block; blocks before it are skipped by fewer"
    )

    def idle(self) -> set[str]:
        return {"experts_per_token"} if self.experts == 1 else set()

    def shape(self, size: str | int, vocabulary: int, length: int, causal: bool, dropout: float) -> DecoderConfig:
        """The shape of about `size` parameters, for texts of `length` tokens out of `vocabulary`."""
        from mickle.models.shape import DecoderConfig

        return DecoderConfig.for_size(
            size,
            vocabulary,
            length,
            position=self.position,
            causal=causal,
            dropout=dropout,
            drop_path=self.drop_path,
            experts=self.experts,
            experts_per_token=min(self.experts, self.experts_per_token),
        )

    def build(self, shape: dict[str, Any], seed: int) -> Decoder:
        """A fresh model of a shape as `dataclasses.asdict` has it."""
        from mickle.models.shape import DecoderConfig

        return self.model_class()(DecoderConfig(**shape), seed=seed)

    @staticmethod
    def model_class() -> type[Decoder]:
        """What is built, and what opens folders of this architecture."""
        from mickle.models.decoder import Decoder

        return Decoder
