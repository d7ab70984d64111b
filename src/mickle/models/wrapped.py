"""Any language model of `transformers` behind the decoder's own call: `model(input_ids, documents=, cache=,
positions=, head=)`.

Documents are kept apart by laying each out as a row of its own, so the answer is right for every
architecture, whatever masks it understands. The head gets `(logits, None)`: these models make their logits
themselves. With `positions`, only those tokens' hidden states reach the layer that makes them: of a masked model,
whose loss is on some 15 in 100 tokens, and whose vocabulary is large, that layer is a good part of the work.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.models.decoder import Head, logits


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


class WrappedModel(nn.Module):
    """A model of `transformers` (`.model`) that takes the same call as our decoder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self.takes_cache = "past_key_values" in accepted

    @property
    def config(self) -> Any:
        """The settings of the wrapped model, as `transformers` has them."""
        return self.model.config

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def causal(self) -> bool:
        """Whether the model continues texts; one made for filling in masks does not."""
        return "MaskedLM" not in type(self.model).__name__

    @property
    def length_limit(self) -> int | None:
        """The longest text its settings allow; None where they do not say."""
        settings = self.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"):
            if isinstance(getattr(settings, name, None), int):
                return int(getattr(settings, name)) - self._positions_before_text()
        return None

    def _positions_before_text(self) -> int:
        """Rows of a table of positions that no token of a text has: RoBERTa's begins after its padding id."""
        tables = (m for name, m in self.named_modules() if name.endswith("embeddings.position_embeddings"))
        padding = getattr(next(tables, None), "padding_idx", None)
        return 0 if padding is None else padding + 1

    def new_cache(self) -> WrappedCache:
        """An empty cache for one batch of texts."""
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
        """As `Decoder.forward`; tokens of documents below 0 are padding, and their logits are 0.

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

        The rows are chosen before the output layer where the model has one that reads [B, T, D], and else
        after it.
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

        hook = layer.register_forward_pre_hook(gather)
        try:
            scores = self.model(**inputs, **settings).logits
        finally:
            hook.remove()
        return scores if gathered else scores[positions]

    def _one_row_each(self, input_ids: Tensor, documents: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits [B, T, V], or [n, V] of the positions, with every document in a row of its own: [N, L], padded on
        the right.
        """
        rows, columns = lay_out(documents)  # [N, L] each; columns is -1 for padding
        mask = columns >= 0
        columns = columns.clamp(min=0)
        inputs = {"input_ids": input_ids[rows, columns] * mask, "attention_mask": mask.long()}
        if positions is None:
            answer = self._logits(None, **inputs)  # [N, L, V]
            result = answer.new_zeros(*input_ids.shape, answer.shape[-1])
            return result.index_put((rows[mask], columns[mask]), answer[mask])
        # Documents follow each other row by row, so the chosen tokens of all keep their order; padding has none.
        answer = self._logits(positions[rows, columns] & mask, **inputs)
        text = documents[positions] >= 0  # [n]
        return answer.new_zeros(len(text), answer.shape[-1]).index_put((text.nonzero().squeeze(1),), answer)

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


def lay_out(documents: Tensor) -> tuple[Tensor, Tensor]:
    """For each document of a batch [B, T], where its tokens stand: rows and columns, [N, L] each, columns
    padded by -1.
    """
    table = documents.tolist()
    runs = []
    for row, ids in enumerate(table):
        starts = [0] + [t for t in range(1, len(ids)) if ids[t] != ids[t - 1]]
        runs += [(row, start, end) for start, end in zip(starts, [*starts[1:], len(ids)]) if ids[start] >= 0]
    longest = max((end - start for _, start, end in runs), default=0)
    rows = torch.tensor([[row] * longest for row, _, _ in runs], dtype=torch.long)
    columns = torch.tensor(
        [[*range(start, end), *[-1] * (longest - end + start)] for _, start, end in runs], dtype=torch.long
    )
    return rows.to(documents.device), columns.to(documents.device)
