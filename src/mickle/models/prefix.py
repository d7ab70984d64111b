"""Prefix tuning: a frozen model, and keys and values of tokens that never were, before every text, that are trained.

Source: "Prefix-Tuning: Optimizing Continuous Prompts for Generation", arXiv 2101.00190: tuning some tokens' keys and
values in all layers, 0.1 % of the parameters, comes near to tuning all. As arXiv 2305.17333 uses it (appendix E.5):
without a network that makes the prefix, begun as the keys and values of random real tokens, without which forward-only
tuning is clearly worse.

The prefix is one matrix P [tokens, 2 layers x width of the keys], in PEFT's order: keys and values of layer 0, of layer
1, and so on. It is put into the model's own cache before a text is read, so text has positions after it and every
architecture with such a cache takes it. Documents are laid out as rows of their own, each with the prefix before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mickle import storage
from mickle.errors import UsageError
from mickle.models import folder_check
from mickle.models.adapter_folder import WEIGHTS, write_adapter
from mickle.models.documents import rows_apart
from mickle.models.language import Head, LanguageModel, logits
from mickle.models.quantized import open_base
from mickle.models.safetensors_check import read_header, refuse_not_finite

TENSOR = "prompt_embeddings"
MOST_TOKENS = 1024


class PrefixCache:
    """What a prefixed model remembers while it generates: one cache of the base, or one a row where rows begin
    unequally.
    """

    def __init__(self) -> None:
        self.caches: list[Any] = []


class PrefixedModel(LanguageModel):
    """A frozen model (`.base`) with a trained prefix [tokens, 2 layers x width] (`.prefix`); takes the same call."""

    def __init__(self, base: LanguageModel, prefix: Tensor, heads: int, layers: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.prefix = nn.Parameter(prefix)
        self.heads, self.layers_of_keys = heads, layers
        self.config, self.causal, self.vocab_size = base.config, base.causal, base.vocab_size
        self.length_limit, self.trained_length = base.length_limit, base.trained_length
        if self.length_limit is not None:  # the prefix takes of the places there are
            self.length_limit -= len(prefix)
            self.trained_length = min(self.length_limit, base.trained_length or self.length_limit)

    def new_cache(self) -> PrefixCache:
        return PrefixCache()

    @property
    def blocks(self) -> nn.ModuleList:
        return self.base.blocks

    @property
    def output_layer(self) -> nn.Module | None:
        return self.base.output_layer

    def folder_name(self, name: str) -> str:
        return self.base.folder_name(name.removeprefix("base."))

    def untrained(self, seed: int) -> LanguageModel:
        return attach_prefix(self.base.untrained(seed), len(self.prefix), seed)

    def recompute_activations(self) -> None:
        self.base.recompute_activations()

    def save(self, folder: Path, tokenizer: Any = None) -> None:
        raise UsageError("a prefix is saved without its base", where=str(folder), todo="save it with save_prefix")

    def forward(
        self,
        input_ids: Tensor,
        *,
        documents: Tensor | None = None,
        cache: PrefixCache | None = None,
        positions: Tensor | None = None,
        head: Head = logits,
    ) -> Any:
        """As `LanguageModel.forward`. A head sees hidden states (or logits) of all documents' rows in the order they
        stand in.
        """
        if cache is not None:
            return self._continue(input_ids, documents, cache, positions, head)
        if documents is None or bool((documents == documents[:, :1]).all() & (documents >= 0).all()):
            return self._read(input_ids, torch.zeros_like(input_ids), positions, head)
        apart = rows_apart(documents)
        ids, text = apart.of(input_ids), torch.where(apart.mask, 0, -1)
        chosen = None if positions is None else apart.of(positions)
        # The head gets the states in the order of the batch: as they stand there, row by row.
        return self._read(ids, text, chosen, lambda hidden, weight: head(apart.back(hidden, positions), weight))

    def _read(self, ids: Tensor, documents: Tensor, positions: Tensor | None, head: Head) -> Any:
        return self.base(ids, documents=documents, cache=self._filled(len(ids)), positions=positions, head=head)

    def _continue(
        self, ids: Tensor, documents: Tensor | None, cache: PrefixCache, positions: Tensor | None, head: Head
    ) -> Any:
        """Left padding would part a text from its prefix, so rows of unequal prompts are read one by one."""
        unequal = documents is not None and bool((documents != documents[:, :1]).any())
        if unequal and positions is not None:
            raise UsageError("with a cache and padding, a prefixed model takes no positions")
        if not cache.caches:
            cache.caches = [self._filled(1) for _ in ids] if unequal else [self._filled(len(ids))]
        if len(cache.caches) == 1:
            return self.base(ids, cache=cache.caches[0], positions=positions, head=head)
        answers = []
        for row, one in enumerate(cache.caches):
            text = ids[row : row + 1] if documents is None else ids[row : row + 1, documents[row] >= 0]
            answer = self.base(text, cache=one, head=head)
            short = ids.shape[1] - text.shape[1]
            answers.append(F.pad(answer, (0, 0, short, 0)) if answer.dim() == 3 and short else answer)
        return torch.cat(answers)

    def _filled(self, rows: int) -> Any:
        """A cache of the base that has read the prefix, for so many rows."""
        tokens, width = self.prefix.shape
        kind = next(self.base.parameters()).dtype
        if torch.is_autocast_enabled(self.prefix.device.type):
            kind = torch.get_autocast_dtype(self.prefix.device.type)
        head_width = width // (2 * self.layers_of_keys * self.heads)
        parts = self.prefix.to(kind).view(tokens, 2 * self.layers_of_keys, self.heads, head_width)
        parts = parts.permute(1, 2, 0, 3)[:, None].expand(-1, rows, -1, -1, -1)  # [2 L, B, G, P, K]
        pairs = [(parts[2 * layer], parts[2 * layer + 1]) for layer in range(self.layers_of_keys)]
        cache = self.base.new_cache()
        cache.fill(pairs)
        return cache


@torch.no_grad()
def attach_prefix(model: nn.Module, tokens: int = 5, seed: int = 0, ids: Tensor | None = None) -> PrefixedModel:
    """The model, frozen, with a fresh prefix: the keys and values of `ids` [tokens], or of tokens drawn by `seed`.

    UsageError where the architecture keeps no keys and values of all layers alike.
    """
    if isinstance(model, PrefixedModel) or not isinstance(model, LanguageModel):
        raise UsageError(f"a {type(model).__name__} takes no prefix", todo="tune the plain model")
    if not 1 <= tokens <= MOST_TOKENS:
        raise UsageError(f"a prefix of {tokens} tokens", expected=f"1 to {MOST_TOKENS}")
    limit = model.length_limit
    if limit is not None and tokens >= limit:
        raise UsageError(f"a prefix of {tokens} tokens leaves no room for text", expected=f"fewer than {limit}")
    device = next(model.parameters()).device
    if ids is None:
        ids = torch.randint(model.vocab_size, (tokens,), generator=torch.Generator().manual_seed(seed))
    cache = model.new_cache()
    model.eval()(ids[None].to(device), cache=cache)
    pairs = cache.pairs()
    shapes = {part.shape for pair in pairs for part in pair}
    if len(shapes) != 1:
        raise UsageError(
            f"{type(getattr(model, 'model', model)).__name__} keeps no keys and values of the same shape in all "
            "layers: it takes no prefix",
            where="method.parameters",
            todo="tune LoRA or all weights",
        )
    _, heads, _, width = shapes.pop()
    flat = torch.stack([part[0] for pair in pairs for part in pair])  # [2 L, G, P, K]
    prefix = flat.permute(2, 0, 1, 3).reshape(len(ids), 2 * len(pairs) * heads * width)
    return PrefixedModel(model, prefix.float().contiguous(), heads, len(pairs)).eval()


def save_prefix(model: PrefixedModel, folder: Path, base: Path, tokenizer: Any = None) -> None:
    """Write the prefix as PEFT's PREFIX_TUNING adapter; `base` is the folder of the model beneath.

    `tokenizer` as `save_model` takes it. The caller seals the folder. Raises NumericError where a number is not finite.
    """
    prefix, base = model.prefix.detach(), Path(base).resolve()
    width = prefix.shape[1] // (2 * model.layers_of_keys)
    settings = {
        "peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base),
        "inference_mode": True, "num_virtual_tokens": len(prefix), "token_dim": width,
        "num_transformer_submodules": 1, "num_attention_heads": model.heads, "num_layers": model.layers_of_keys,
        "encoder_hidden_size": width, "prefix_projection": False,
    }  # fmt: skip
    write_adapter(Path(folder), base, {TENSOR: prefix}, settings, tokenizer)


def open_prefix(
    folder: Path,
    values: dict[str, Any],
    base: Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> PrefixedModel:
    """The model of `base` with the prefix of PEFT's folder; `values` is its checked `adapter_config.json`.

    UsageError where the prefix is made by a network or does not fit the base.
    """
    folder = Path(folder)
    where = str(folder / folder_check.ADAPTER)
    if values.get("prefix_projection"):
        raise UsageError("this prefix is made by a network (prefix_projection)", where=where, todo="save it without")
    numbers = [values.get(name) for name in ("num_virtual_tokens", "num_layers", "num_attention_heads", "token_dim")]
    if any(type(n) is not int or not 1 <= n <= 1 << 20 for n in numbers):
        raise UsageError("this prefix has no whole numbers of tokens, layers, heads and width", where=where)
    tokens, layers, heads, width = (int(n) for n in numbers if n is not None)
    if tokens > MOST_TOKENS or values.get("num_transformer_submodules", 1) != 1:
        raise UsageError("this prefix is too long, or is for an encoder with a decoder", where=where)
    path = folder_check.regular_file(folder, WEIGHTS)
    found, shape = read_header(path).get(TENSOR), (tokens, 2 * layers * width)
    if found is None or found.shape != shape or found.dtype not in ("F32", "F16", "BF16"):
        raise UsageError(f"this adapter holds no prefix of shape {list(shape)}", where=str(path), expected=TENSOR)
    tensors = storage.load_tensors(path)
    refuse_not_finite(tensors, folder)
    model = open_base(base, dtype, device)
    fresh = attach_prefix(model, tokens)
    if fresh.prefix.shape != shape or (fresh.heads, fresh.layers_of_keys) != (heads, layers):
        raise UsageError(
            f"the prefix is of {layers} layers and {heads} heads of {width // heads}, which the base has not",
            where=where,
            expected=f"{fresh.layers_of_keys} layers, {fresh.heads} heads",
            todo="give the base that it was made on",
        )
    with torch.no_grad():
        fresh.prefix.copy_(tensors[TENSOR])
    return fresh
