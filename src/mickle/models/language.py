"""What a language model offers, whatever it is made of, and what its settings say of it before its weights are opened.

`Decoder`, `WrappedModel` (any model of transformers) and `PrefixedModel` are such models. Nothing above `models/` asks
which of them it has: it asks the model, or the `Description` that `models/folder.py:describe` reads of a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

Head = Callable[[Tensor, Tensor | None], Any]
# What transformers' settings call the sizes of a model, the usual name first.
NAMES = {
    "vocab_size": ("vocab_size",),
    "width": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "hidden_dim"),
    "longest": ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"),
}
UNKNOWN_LENGTH = 1 << 20  # where settings do not say how long a text may be


def logits(hidden: Tensor, weight: Tensor | None) -> Tensor:
    """hidden [B, T, D] and the output matrix [V, D] -> [B, T, V]. With no matrix, `hidden` are logits
    already.
    """
    return hidden if weight is None else F.linear(hidden, weight)


class LanguageModel(Protocol):
    """What every opened model offers beside what an `nn.Module` does."""

    config: Any

    @property
    def causal(self) -> bool:
        """Whether the model continues texts; one made for filling in masks does not."""

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows."""

    @property
    def length_limit(self) -> int | None:
        """The longest text that the model can read at all; None where there is no such limit or it is not known."""

    @property
    def trained_length(self) -> int | None:
        """Tokens of the longest text that the model was made for, whatever it can read; None where it is not known."""

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated layers, in order."""

    @property
    def output_layer(self) -> nn.Module | None:
        """The layer that makes the logits, where it is a layer of its own."""

    def description(self) -> Description:
        """As `describe` has it of the model's folder."""

    def new_cache(self) -> Any:
        """An empty cache for one batch of texts."""

    def forward(
        self,
        input_ids: Tensor,
        *,
        documents: Tensor | None = None,
        cache: Any = None,
        positions: Tensor | None = None,
        head: Head = logits,
    ) -> Any:
        """What `head` makes of the last hidden states, or logits, of a batch: see `Decoder.forward`."""

    def folder_name(self, name: str) -> str:
        """What the model's folder calls its weight or layer `name`."""

    def untrained(self, seed: int) -> nn.Module:
        """A model of the same shape with fresh weights that depend on `seed` alone, in evaluation mode."""

    def recompute_activations(self) -> None:
        """Keep only what goes into each block; compute the rest again in the backward pass (arXiv 1604.06174)."""

    def save(self, folder: Path, tokenizer: Any = None) -> None:
        """Write settings and weights into `folder`; `tokenizer` names the marks. See `models/folder.py:save_model`."""


@dataclass(frozen=True)
class Description:
    """A model as its settings describe it: what it does, and the dimensions that its memory depends on.

    model_type: the architecture, as its folder names it. longest: tokens of the longest text that it was made for.
    attention: numbers an attention keeps for the backward pass, a token. ffn: width of all feed-forward networks that
    a token passes through. shape: of a model that is ours (`models/architectures.py`), all of it.
    """

    model_type: str
    causal: bool
    vocab_size: int
    width: int
    layers: int
    heads: int
    ffn: int
    attention: int
    longest: int
    shape: Any = None

    @property
    def ours(self) -> bool:
        """Whether one of our own architectures computes it."""
        return self.shape is not None


def described(settings: Mapping[str, Any]) -> Description:
    """What the `config.json` of a model of transformers says of it, by the names that are in use."""
    values = {**settings, **(settings.get("text_config") or {})}

    def size(what: str, otherwise: int) -> int:
        found = named_size(values.get, what)
        return otherwise if found is None else found

    width = size("width", 768)
    return Description(
        model_type=str(settings.get("model_type")),
        causal=not fills_masks(settings.get("architectures")),
        vocab_size=size("vocab_size", 32_000),
        width=width,
        layers=size("layers", 12),
        heads=size("heads", 12),
        ffn=size("ffn", 4 * width),
        attention=11 * width,
        longest=size("longest", UNKNOWN_LENGTH),
    )


def named_size(look: Callable[[str], Any], what: str) -> int | None:
    """The first whole number that settings hold under a name of `what`, a key of `NAMES`. look: name -> value."""
    return next((value for name in NAMES[what] if type(value := look(name)) is int), None)


def fills_masks(architectures: Any) -> bool:
    """Whether the classes that a `config.json` names fill in masks rather than continue texts."""
    return any("MaskedLM" in str(name) for name in architectures or [])
