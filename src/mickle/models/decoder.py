"""The small, readable transformer that Mickle pretrains: pre-norm, RMSNorm, SwiGLU, grouped-query attention.

With rotary positions it computes what a Llama of `transformers` computes, and its weights have Llama's names,
so a saved folder is a plain Llama folder (`models/folder.py`). All other position schemes are in
`models/positions.py`.

    model = Decoder(DecoderConfig.for_size("small", vocab_size=8192))
    logits = model(input_ids)                                                # [B, T, V]
    loss, count = model(input_ids, head=partial(cross_entropy, labels=labels))  # never holds all logits

Shapes: B batch, T length of this call, S length with what the cache holds, D width, H heads, G key-value
heads, K head width, F feed-forward width, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.models import positions

Head = Callable[[Tensor, Tensor | None], Any]
SIZES = {
    "tiny": 10**6,
    "small": 5 * 10**6,
    "base": 25 * 10**6,
    "medium": 10**8,
    "large": 35 * 10**7,
    "huge": 13 * 10**8,
}


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder. `for_size` derives all of it from one number.

    `position` is one scheme for all layers or a tuple with one for each. `rotary_fraction` is the share of
    each head's dimensions that rotary positions turn. `tied`: the output matrix is the embedding. `causal`
    off gives a masked encoder. `dropout` acts on the embedding and on what each block adds. `initial_std` is
    the standard deviation of fresh weights.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    max_length: int
    position: str | tuple[str, ...] = "rotary"
    rotary_fraction: float = 1.0
    rope_theta: float = 10000.0
    tied: bool = True
    norm_eps: float = 1e-5
    causal: bool = True
    dropout: float = 0.0
    activation: Literal["swiglu", "relu", "gelu"] = "swiglu"
    initial_std: float = 0.02

    def __post_init__(self) -> None:
        if isinstance(self.position, list):
            object.__setattr__(self, "position", tuple(self.position))
        for name in (
            "vocab_size",
            "width",
            "layers",
            "heads",
            "kv_heads",
            "head_width",
            "ffn_width",
            "max_length",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UsageError(
                    f"{name} is {value!r}", where="decoder shape", expected="a whole number of at least 1"
                )
        if self.heads % self.kv_heads:
            raise UsageError(
                f"{self.heads} heads cannot share {self.kv_heads} key-value heads evenly",
                where="decoder shape",
                expected="kv_heads that divides heads",
            )
        if self.activation not in ("swiglu", "relu", "gelu"):
            raise UsageError(f"unknown activation {self.activation!r}", expected="swiglu, relu or gelu")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout}", expected="at least 0 and below 1")
        if not 0 < self.rotary_fraction <= 1 or ("rotary" in self.schemes and self.rotated_width % 2):
            raise UsageError(
                f"rotary_fraction {self.rotary_fraction} of {self.head_width} is not an even, positive number",
                where="decoder shape",
            )
        if "none" in self.schemes and not self.causal:
            raise UsageError(
                "without positions and without a causal mask the model cannot see the order of its input",
                where="position: none, causal: false",
                expected="a causal model (its mask lets it count), or another position scheme",
            )

    @property
    def schemes(self) -> tuple[str, ...]:
        """The position scheme of each layer."""
        return positions.schemes_of_layers(self.position, self.layers)

    @property
    def rotated_width(self) -> int:
        """How many dimensions of each head rotary positions turn."""
        return round(self.head_width * self.rotary_fraction)

    def parameters(self) -> int:
        """The number of trained numbers, in closed form."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        feed_forward = (3 if self.activation == "swiglu" else 2) * self.width * self.ffn_width
        embeddings = self.vocab_size * self.width * (1 if self.tied else 2)
        learned = self.max_length * self.width if "learned" in self.schemes else 0
        t5 = positions.T5_BUCKETS * self.heads if "t5" in self.schemes else 0
        norms = (2 * self.layers + 1) * self.width
        return embeddings + learned + t5 + norms + self.layers * (attention + feed_forward)

    @classmethod
    def for_size(
        cls, size: str | int, vocab_size: int, max_length: int = 512, **settings: Any
    ) -> "DecoderConfig":
        """The decoder whose parameter count, embeddings included, is nearest to `size`.

        `size` is a name in SIZES or a number of parameters. The one free number is the width; from it:
        one layer for each 64 of width (at least 2); heads 32 wide below a width of 512, 64 below 2048, then
        128; key-value heads shared by up to four heads from a width of 1024; feed-forward 8/3 of the width,
        rounded up to a multiple of 32. Any field can be given in `settings` and is then not derived.
        """
        if isinstance(size, str) and size not in SIZES:
            raise UsageError(
                f"unknown size {size!r}", expected=f"{', '.join(SIZES)}, or a number of parameters"
            )
        target = SIZES[size] if isinstance(size, str) else size
        candidates = [*range(32, 512, 32), *range(512, 1024, 64), *range(1024, 16384 + 1, 128)]
        widths = [settings["width"]] if "width" in settings else candidates
        configs = [
            cls(**(_derived_shape(width) | {"vocab_size": vocab_size, "max_length": max_length} | settings))
            for width in widths
        ]
        best = min(configs, key=lambda config: abs(math.log(config.parameters() / max(target, 1))))
        if "width" not in settings and not 0.7 < best.parameters() / max(target, 1) < 1.4:
            raise UsageError(
                f"no decoder with a vocabulary of {vocab_size} has about {target:,} parameters",
                expected=f"{configs[0].parameters():,} to {configs[-1].parameters():,} parameters",
                todo="choose a larger size or a smaller vocabulary",
            )
        return best


def _derived_shape(width: int) -> dict[str, int]:
    """Every other dimension, by the rules of `DecoderConfig.for_size`."""
    head_width = 32 if width < 512 else 64 if width < 2048 else 128
    heads = max(1, width // head_width)
    sharing = next(group for group in (4, 3, 2, 1) if heads % group == 0) if width >= 1024 else 1
    return {
        "width": width,
        "layers": max(2, round(width / 64)),
        "heads": heads,
        "kv_heads": heads // sharing,
        "head_width": head_width,
        "ffn_width": math.ceil(width * 8 / 3 / 32) * 32,
    }


def logits(hidden: Tensor, weight: Tensor | None) -> Tensor:
    """hidden [B, T, D] and the output matrix [V, D] -> [B, T, V]. With no matrix, `hidden` are logits
    already.
    """
    return hidden if weight is None else F.linear(hidden, weight)


class KeyValueCache:
    """Keys and values of the tokens seen so far, so that generation reads each token once. Made by
    `new_cache()`.
    """

    def __init__(self) -> None:
        self.length = 0
        self.documents: Tensor | None = None  # [B, S]; None: one document a row
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, G, T, K] to what `layer` holds and return all of it: [B, G, S, K]."""
        if layer in self._layers:
            before = self._layers[layer]
            keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
        self._layers[layer] = keys, values
        return keys, values

    def extend_documents(
        self, documents: Tensor | None, rows: int, new: int, device: torch.device
    ) -> Tensor | None:
        """Append the document ids [B, T] of `new` tokens and return all: [B, S], or None for one document a
        row.

        Tokens that come without ids go on with the last document of their row.
        """
        before = self.documents
        if documents is None and before is not None:
            documents = before[:, -1:].expand(-1, new)
        if documents is not None and before is None:
            before = torch.zeros(rows, self.length, dtype=documents.dtype, device=device)
        if documents is not None and before is not None:
            self.documents = torch.cat([before, documents], dim=1)
        self.length += new
        return self.documents


@dataclass(frozen=True)
class Sight:
    """What every layer of one forward pass shares: who sees whom, and the positions' part in it.

    `masks` gives the attention mask of each bias scheme and, under "", of layers without a bias: boolean or
    additive, [T, S], [H, T, S] or [B, H or 1, T, S]; None with `triangular` means the plain causal triangle,
    None without it that all is seen.
    """

    masks: dict[str, Tensor | None]
    triangular: bool
    rotation: tuple[Tensor, Tensor] | None  # cosines and sines, [T, R/2] or [B, 1, T, R/2]


class Attention(nn.Module):
    """Grouped-query attention (arXiv 2305.13245): H queries share G keys and values."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.scheme = layer, config.schemes[layer]
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        self.q_proj = nn.Linear(config.width, config.heads * config.head_width, bias=False)
        self.k_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.v_proj = nn.Linear(config.width, config.kv_heads * config.head_width, bias=False)
        self.o_proj = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def forward(self, x: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        batch, length, _ = x.shape
        queries = (
            self.q_proj(x).view(batch, length, self.heads, self.head_width).transpose(1, 2)
        )  # [B, H, T, K]
        keys = (
            self.k_proj(x).view(batch, length, self.kv_heads, self.head_width).transpose(1, 2)
        )  # [B, G, T, K]
        values = self.v_proj(x).view(batch, length, self.kv_heads, self.head_width).transpose(1, 2)
        if self.scheme == "rotary" and sight.rotation is not None:
            queries, keys = (
                positions.rotate(queries, *sight.rotation),
                positions.rotate(keys, *sight.rotation),
            )
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)  # [B, G, S, K]
        mask = sight.masks.get(self.scheme, sight.masks[""])
        attended = F.scaled_dot_product_attention(
            queries,
            keys,
            values,
            attn_mask=mask,
            is_causal=sight.triangular and mask is None,
            enable_gqa=self.heads != self.kv_heads,
        )  # [B, H, T, K]
        return self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202, eq. 6): down(silu(gate(x)) * up(x)); or down(relu(up(x))), or with gelu."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation = config.activation
        if config.activation == "swiglu":
            self.gate_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.up_proj = nn.Linear(config.width, config.ffn_width, bias=False)
        self.down_proj = nn.Linear(config.ffn_width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        if self.activation == "swiglu":
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        activate = F.relu if self.activation == "relu" else F.gelu
        return self.down_proj(activate(self.up_proj(x)))


class Block(nn.Module):
    """Attention, then the feed-forward network; each reads a normalised stream and adds to it."""

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.input_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        x = x + self._drop(self.self_attn(self.input_layernorm(x), sight, cache))
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Decoder(nn.Module):
    """A decoder-only transformer. Fresh weights depend on `seed` alone, not on torch's global generator."""

    def __init__(self, config: DecoderConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.RMSNorm(config.width, eps=config.norm_eps)
        if not config.tied:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        if "learned" in config.schemes:
            self.embed_positions = nn.Embedding(config.max_length, config.width)
        if "t5" in config.schemes:
            self.distance_bias = nn.Embedding(positions.T5_BUCKETS, config.heads)
        if not self.embed_tokens.weight.is_meta:
            self.initialise(seed)

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fresh weights: normal with `initial_std`; what writes to the stream is divided by sqrt(2 * layers),
        as GPT-2.

        Position tables come last, so that models that differ only in the position scheme start from equal
        weights. Norm weights are 1 and T5's distances 0: no preference.
        """
        generator = torch.Generator(self.embed_tokens.weight.device).manual_seed(seed)
        for name, weight in self.named_parameters():
            if name.endswith(("norm.weight", "layernorm.weight")):
                weight.fill_(1.0)
            elif name == "distance_bias.weight":
                weight.zero_()
            else:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 1 / math.sqrt(2 * self.config.layers) if writes else 1.0
                weight.normal_(0.0, self.config.initial_std * scale, generator=generator)

    @property
    def output_weight(self) -> Tensor:
        """The matrix [V, D] that turns the last hidden state into logits."""
        return self.embed_tokens.weight if self.config.tied else self.lm_head.weight

    def new_cache(self) -> KeyValueCache:
        """An empty cache for one batch of texts."""
        return KeyValueCache()

    def forward(
        self,
        input_ids: Tensor,
        *,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
        head: Head = logits,
    ) -> Any:
        """Run the decoder and hand the last hidden state to `head(hidden [B, T, D], output matrix [V, D])`.

        input_ids [B, T] int64. documents [B, T] int: a token sees only tokens of its own document, and
        positions restart at 0 in each; a document must be one unbroken run of its row. Left padding is a
        document of its own (-1 by custom), so it never changes what stands after it. Without `documents` each
        row is one document. cache: what the earlier calls for the same rows have seen; this call's tokens go
        after it and are added to it.

        Returns what `head` returns: by default the logits [B, T, V].
        """
        sight, positions_now = self._look(input_ids, documents, cache)
        x = self._embed(input_ids, positions_now)  # [B, T, D]
        for block in self.layers:
            x = block(x, sight, cache)
        return head(self.norm(x), self.output_weight)

    def _embed(self, input_ids: Tensor, at: Tensor) -> Tensor:
        """Token embeddings, with what is added for the positions `at` ([T] or [B, T]): [B, T, D].

        The sinusoids are scaled by `initial_std`: positions and fresh embeddings then have about the same
        size, as in the NoPE paper, where embeddings start at a standard deviation of 1.
        """
        config = self.config
        x = self.embed_tokens(input_ids)
        if "learned" in config.schemes:
            if at.shape[-1] > config.max_length or (at.shape[0] and int(at.max()) >= config.max_length):
                raise UsageError(
                    f"a text of {int(at.max()) + 1} tokens exceeds the table of {config.max_length} positions",
                    where="position: learned",
                    expected=f"at most {config.max_length} tokens in a document",
                )
            x = x + self.embed_positions(at)
        elif "sinusoidal" in config.schemes:
            x = x + (config.initial_std * positions.sinusoidal_table(at, config.width)).to(x.dtype)
        return F.dropout(x, config.dropout, self.training) if config.dropout else x

    def _look(
        self, input_ids: Tensor, documents: Tensor | None, cache: KeyValueCache | None
    ) -> tuple[Sight, Tensor]:
        """What all layers share, computed once, and the position of each token: [T] or [B, T]."""
        config, device = self.config, input_ids.device
        batch, length = input_ids.shape
        seen = cache.length if cache is not None else 0
        if documents is not None and not seen and _one_document_a_row(documents):
            documents = None
        if cache is not None:
            documents = cache.extend_documents(documents, batch, length, device)  # [B, S]
        places = torch.arange(seen + length, device=device)  # [S]
        at = (places if documents is None else _restarted(places, documents))[..., seen:]
        plain = documents is None and (not seen or length == 1)
        masks: dict[str, Tensor | None] = {
            "": None if plain else self._visible(places[seen:], places, documents)
        }
        for scheme in {"alibi", "t5"}.intersection(config.schemes):
            bias = self._bias(scheme, places[seen:], places)  # [H, T, S]
            masks[scheme] = bias.masked_fill(~self._visible(places[seen:], places, documents), -math.inf)
        rotation = None
        if "rotary" in config.schemes:
            rotation = positions.rotary_angles(at, config.rotated_width, config.rope_theta)
            if at.dim() == 2:
                rotation = rotation[0][:, None], rotation[1][:, None]  # [B, 1, T, R/2]
        return Sight(masks, triangular=config.causal and length > 1, rotation=rotation), at

    def _visible(self, queries: Tensor, keys: Tensor, documents: Tensor | None) -> Tensor:
        """Which key places [S] each query place [T] sees: [T, S], or [B, 1, T, S] with documents [B, S]."""
        visible = (
            keys <= queries[:, None] if self.config.causal else torch.ones_like(keys <= queries[:, None])
        )
        if documents is not None:
            same = documents[:, -len(queries) :, None] == documents[:, None, :]  # [B, T, S]
            visible = (visible & same)[:, None]
        return visible

    def _bias(self, scheme: str, queries: Tensor, keys: Tensor) -> Tensor:
        """The bias [H, T, S] of one scheme. Inside a document places differ by as much as positions do."""
        if scheme == "alibi":
            bias = positions.alibi_bias(queries, keys, self.config.heads)
        else:
            bias = positions.t5_bias(queries, keys, self.distance_bias.weight, self.config.causal)
        device = queries.device.type
        autocast = torch.is_autocast_enabled(device)
        return bias.to(torch.get_autocast_dtype(device) if autocast else self.embed_tokens.weight.dtype)


def _one_document_a_row(documents: Tensor) -> bool:
    """Whether every row is a single document, so that the plain causal triangle will do.

    On an accelerator reading the answer would make the host wait for it, so there the mask is always built.
    """
    return documents.device.type == "cpu" and bool((documents == documents[:, :1]).all())


def _restarted(places: Tensor, documents: Tensor) -> Tensor:
    """Positions that restart at 0 wherever the document changes. places [S], documents [B, S] -> [B, S]."""
    starts = torch.zeros_like(documents, dtype=places.dtype)
    starts[:, 1:] = torch.where(documents[:, 1:] != documents[:, :-1], places[1:], 0)
    return places - starts.cummax(dim=1).values
