"""What a language model offers, whatever it is made of, and what its settings say of it before its weights are opened.

`Decoder`, `WrappedModel` (any model of transformers) and `PrefixedModel` are such models. Nothing above `models/` asks
which of them it has: it asks the model, or the `Description` that `models/folder.py:describe` reads of a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mickle.errors import UsageError
from mickle.models.folder_files import write_model

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
    """hidden [B, T, D] and the output matrix [V, D] -> [B, T, V]. With no matrix, `hidden` are logits already."""
    return hidden if weight is None else F.linear(hidden, weight)


class LanguageModel(nn.Module):
    """What every opened model offers beside what an `nn.Module` does.

    config: its settings. causal: whether it continues texts; one made for filling in masks does not. vocab_size: how
    many tokens it knows. length_limit: the longest text that it can read at all; None where there is no such limit or
    it is not known. trained_length: tokens of the longest text that it was made for, whatever it can read.
    """

    config: Any
    causal: bool
    vocab_size: int
    length_limit: int | None
    trained_length: int | None

    def forward(
        self,
        input_ids: Tensor,
        *,
        documents: Tensor | None = None,
        cache: Any = None,
        positions: Tensor | None = None,
        head: Head = logits,
    ) -> Any:
        """Hand the last hidden state to `head(hidden [B, T, D], output matrix [V, D])`, or `(logits [B, T, V], None)`
        where the model makes them itself.

        input_ids [B, T] int64. documents [B, T] int: a token sees only tokens of its own document, and
        positions restart at 0 in each; a document must be one unbroken run of its row. Left padding is a
        document of its own (-1 by custom), so it never changes what stands after it. Without `documents` each
        row is one document. cache: what the earlier calls for the same rows have seen; this call's tokens go
        after it and are added to it. positions [B, T] bool: the head gets the hidden states of these n tokens alone,
        [n, D], row by row; n may be 0.

        Returns what `head` returns: by default the logits [B, T, V] or [n, V].
        """
        raise NotImplementedError

    def new_cache(self) -> Any:
        """An empty cache for one batch of texts; `pairs` and `fill` of it are the keys and values of each layer."""
        raise NotImplementedError

    @property
    def blocks(self) -> nn.ModuleList:
        """The repeated layers, in order. UsageError where there are none."""
        raise NotImplementedError

    @property
    def output_layer(self) -> nn.Module | None:
        """The layer that makes the logits, where it is a layer of its own."""
        raise NotImplementedError

    def folder_name(self, name: str) -> str:
        """What the model's folder calls its weight or layer `name`."""
        raise NotImplementedError

    def untrained(self, seed: int) -> LanguageModel:
        """A model of the same shape with fresh weights that depend on `seed` alone, in evaluation mode."""
        raise NotImplementedError

    def recompute_activations(self) -> None:
        """Keep only what goes into each block; compute the rest again in the backward pass (arXiv 1604.06174)."""
        raise NotImplementedError

    def save(self, folder: Path, tokenizer: Any = None) -> None:
        """Write settings and weights into `folder`; `tokenizer` names the marks. See `models/folder.py:save_model`."""
        raise NotImplementedError


class OwnModel(LanguageModel):
    """A model of an architecture of ours: a class that is made of a shape and a seed.

    folders: the module that knows this architecture's folders (`from_settings`, `to_settings`, `folder_name`,
    `ignored_tensors`, `description`, as in `models/decoder_folder.py`).
    """

    folders: ClassVar[Any]
    shape_class: ClassVar[Any]  # its shape: a dataclass with what `training/pretrain_plan.py` forecasts by

    def folder_name(self, name: str) -> str:
        return self.folders.folder_name(self.config, name)

    def untrained(self, seed: int) -> LanguageModel:
        return type(self)(self.config, seed=seed).eval()

    def recompute_activations(self) -> None:
        for block in self.blocks:
            block.forward = _twice(block.forward)

    def save(self, folder: Path, tokenizer: Any = None) -> None:
        tensors = {self.folder_name(name): tensor for name, tensor in self.state_dict().items()}
        write_model(folder, tensors, self.folders.to_settings(self.config), tokenizer, next(self.parameters()).dtype)


def _twice(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's forward pass that keeps its inputs only."""

    def run(*arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*arguments)
        return checkpoint(forward, *arguments, use_reentrant=False)

    return run


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


def check_vocabulary(model: LanguageModel | Description, tokens: int, where: Path | str) -> None:
    """UsageError for a tokenizer that has more ``tokens`` than the model knows."""
    if tokens > model.vocab_size:
        raise UsageError(
            f"The tokenizer has {tokens:,} tokens, the model {model.vocab_size:,}.",
            where=str(where),
            todo="use the tokenizer that belongs to the model",
        )


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
