"""Any language model of `transformers` behind the decoder's own call: `model(input_ids, documents=, cache=,
positions=, head=)`.

Documents are kept apart by laying each out as a row of its own, so the answer is right for every
architecture, whatever masks it understands. The head gets `(logits, None)`: these models make their logits
themselves. With `positions`, only those tokens' hidden states reach the layer that makes them: of a masked model,
whose loss is on some 15 in 100 tokens, and whose vocabulary is large, that layer is a good part of the work.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.models.documents import rows_apart
from mickle.models.language import Head, LanguageModel, fills_masks, logits, named_size
from mickle.models.safetensors_check import refuse_not_finite


class WrappedCache:
    """What a wrapped model remembers: its own cache where it has one, and the tokens and mask so far."""

    def __init__(self) -> None:
        self.past: Any = None
        self.input_ids: Tensor | None = None  # [B, S]
        self.mask: Tensor | None = None  # [B, S] 1 for text, 0 for left padding

    @property
    def length(self) -> int:
        """How many tokens of each row have been seen, padding included."""
        return 0 if self.mask is None else self.mask.shape[1]

    def extend(self, input_ids: Tensor, documents: Tensor | None) -> None:
        """Append tokens [B, T]. `documents` may mark left padding (below 0) and one document a row."""
        new = torch.ones_like(input_ids) if documents is None else (documents >= 0).long()
        if documents is not None and bool(((documents >= 0) & (documents != documents.amax(1, keepdim=True))).any()):
            raise UsageError(
                "with a cache each row holds one document", expected="document ids -1 (padding) and one other"
            )
        self.input_ids = input_ids if self.input_ids is None else torch.cat([self.input_ids, input_ids], dim=1)
        self.mask = new if self.mask is None else torch.cat([self.mask, new], dim=1)

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [B, G, S, K] of each layer; none where the model keeps others, or not all that it read."""
        layers = getattr(self.past, "layers", None) or []
        pairs = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in layers]
        found = [(k, v) for k, v in pairs if isinstance(k, Tensor) and isinstance(v, Tensor) and k.dim() == 4]
        sliding = any("Sliding" in type(layer).__name__ for layer in layers)
        return found if len(found) == len(pairs) and not sliding else []

    def fill(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Begin with these keys and values [B, G, S, K] of each layer, as if S tokens had been read."""
        from transformers import DynamicCache

        rows, _, tokens, _ = pairs[0][0].shape
        self.past = DynamicCache(pairs)
        self.input_ids = torch.zeros(rows, tokens, dtype=torch.long, device=pairs[0][0].device)
        self.mask = torch.ones_like(self.input_ids)


class WrappedModel(LanguageModel):
    """A model of `transformers` (`.model`) that takes the same call as our decoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.config = model, model.config
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self.takes_cache = "past_key_values" in accepted
        self.causal = not fills_masks([type(model).__name__])
        self.vocab_size = int(model.get_input_embeddings().num_embeddings)
        settings = model.config.get_text_config()
        limit = named_size(lambda name: getattr(settings, name, None), "longest")
        self.length_limit = None if limit is None else limit - self._positions_before_text()
        self.trained_length = self.length_limit

    @property
    def blocks(self) -> nn.ModuleList:
        lists = [module for module in self.modules() if isinstance(module, nn.ModuleList)]
        if not lists:
            raise UsageError("the model is not made of blocks", expected="a list of layers")
        return max(lists, key=len)

    @property
    def output_layer(self) -> nn.Module | None:
        return self.model.get_output_embeddings()

    def folder_name(self, name: str) -> str:
        return name.removeprefix("model.")

    def untrained(self, seed: int) -> LanguageModel:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return WrappedModel(type(self.model)(self.config)).eval()

    def recompute_activations(self) -> None:
        if not getattr(self.model, "supports_gradient_checkpointing", False):
            raise UsageError(
                "This architecture of transformers cannot compute activations twice.",
                where="recompute",
                todo="leave recompute out, and set accumulate higher or sequence_length lower",
            )
        self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def save(self, folder: Path, tokenizer: Any = None) -> None:
        refuse_not_finite(dict(self.named_parameters()), folder)
        self.model.save_pretrained(folder)

    def _positions_before_text(self) -> int:
        """Rows of a table of positions that no token of a text has: RoBERTa's begins after its padding id."""
        tables = (m for name, m in self.named_modules() if name.endswith("embeddings.position_embeddings"))
        padding = getattr(next(tables, None), "padding_idx", None)
        return 0 if padding is None else padding + 1

    def new_cache(self) -> WrappedCache:
        return WrappedCache()

    def forward(
        self,
        input_ids: Tensor,
        *,
        documents: Tensor | None = None,
        cache: WrappedCache | None = None,
        positions: Tensor | None = None,
        head: Head = logits,
    ) -> Any:
        """As `LanguageModel.forward`; tokens of documents below 0 are padding, and their logits are 0.

        input_ids, documents, positions [B, T] -> what `head(logits [B, T, V], None)` returns; with positions, the
        logits are [n, V].
        """
        if cache is not None:
            scores = self._continue(input_ids, documents, cache)
            return head(scores if positions is None else scores[positions], None)
        if documents is None or bool((documents == documents[:, :1]).all()):
            return head(self._logits(positions, input_ids=input_ids), None)
        return head(self._one_row_each(input_ids, documents, positions), None)

    def _logits(self, positions: Tensor | None, **inputs: Tensor) -> Tensor:
        """The model's logits [B, T, V], or [n, V] of the chosen positions [B, T] alone.

        The rows are chosen before the output layer where the model has one that reads [B, T, D], and else after it.
        """
        settings = {"use_cache": False} if self.takes_cache else {}
        layer = self.model.get_output_embeddings()
        if positions is None or layer is None:
            scores = self.model(**inputs, **settings).logits
            return scores if positions is None else scores[positions]
        gathered = []

        def gather(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
            hidden = arguments[0] if arguments else None
            if not isinstance(hidden, Tensor) or hidden.shape[:-1] != positions.shape:
                return None
            gathered.append(True)
            return hidden[positions], *arguments[1:]

        with layer.register_forward_pre_hook(gather):
            scores = self.model(**inputs, **settings).logits
        return scores if gathered else scores[positions]

    def _one_row_each(self, input_ids: Tensor, documents: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits [B, T, V], or [n, V] of the positions, with every document in a row of its own: [N, L], padded on
        the right.
        """
        apart = rows_apart(documents)
        inputs = {"input_ids": apart.of(input_ids), "attention_mask": apart.mask.long()}
        chosen = None if positions is None else apart.of(positions)
        return apart.back(self._logits(chosen, **inputs), positions)

    def _continue(self, input_ids: Tensor, documents: Tensor | None, cache: WrappedCache) -> Tensor:
        """Logits [B, T, V] of tokens that follow what the cache holds."""
        cache.extend(input_ids, documents)
        new = input_ids.shape[1]
        assert cache.mask is not None
        assert cache.input_ids is not None
        if not self.takes_cache:
            own = torch.where(cache.mask > 0, 0, -1)
            return self._one_row_each(cache.input_ids, own)[:, -new:]
        extra = {}
        if self._takes_positions:
            extra["position_ids"] = (cache.mask.cumsum(dim=1) - 1).clamp(min=0)[:, -new:]
        out = self.model(
            input_ids=input_ids, attention_mask=cache.mask, past_key_values=cache.past, use_cache=True, **extra
        )
        cache.past = out.past_key_values
        return out.logits
