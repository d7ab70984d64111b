"""The small, readable transformer that Mickle pretrains: pre-norm, RMSNorm, SwiGLU, grouped-query attention.

With rotary positions it computes what a Llama of `transformers` computes, and its weights have Llama's names, so a
saved folder is a plain Llama folder (`models/folder.py`). All other position schemes are in `models/positions.py`.

    model = Decoder(DecoderConfig.for_size("small", vocab_size=8192))
    logits = model(input_ids)                                                # [B, T, V]
    loss, count = model(input_ids, head=partial(cross_entropy, labels=labels))  # never holds all logits
    some = model(input_ids, positions=labels >= 0)                           # [n, V], of the chosen tokens only

Shapes: B batch, T length of this call, S length with what the cache holds, D width, H heads, G key-value heads, K head
width, F feed-forward width, V vocabulary.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.kernels.losses import labels_are_drawn
from mickle.kernels.norms import rms_norm
from mickle.models import decoder_folder, positions
from mickle.models.attention import Attention, KeyValueCache, Sight
from mickle.models.experts import Experts, FeedForward, with_balance
from mickle.models.language import Head, OwnModel, logits
from mickle.models.shape import DecoderConfig

__all__ = ["Attention", "Decoder", "DecoderConfig", "Head", "KeyValueCache", "Sight", "logits"]


class RMSNorm(nn.RMSNorm):
    """Root-mean-square normalisation, in the precision of the products that read it (`kernels/norms.py`)."""

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        return rms_norm(x, self.weight, self.eps)


class Block(nn.Module):
    """Attention, then the feed-forward network; each reads a normalised stream and adds to it.

    In training a share `drop_path` of the rows skips each of the two (stochastic depth, arXiv 1603.09382), and what
    the other rows get is scaled up by as much. The share rises linearly over the layers, from 0 at the first (the
    paper's first layer of L has 1 / L of the last one's) to the config's at the last; a single layer drops nothing.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.drop_path = config.drop_path * layer / max(1, config.layers - 1)
        self.input_layernorm = RMSNorm(config.width, eps=config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.width, eps=config.norm_eps)
        self.mlp = Experts(config) if config.experts > 1 else FeedForward(config)

    def forward(self, x: Tensor, sight: Sight, cache: KeyValueCache | None) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        x = x + self._drop(self.self_attn(self.input_layernorm(x), sight, cache))
        normalised = self.post_attention_layernorm(x)
        if isinstance(self.mlp, Experts):
            return x + self._drop(self.mlp(normalised, sight.documents, sight.balances))
        return x + self._drop(self.mlp(normalised))

    def _drop(self, x: Tensor) -> Tensor:
        if self.dropout:
            x = F.dropout(x, self.dropout, self.training)
        if self.drop_path and self.training:
            kept = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop_path)
            x = x * (kept / (1 - self.drop_path))
        return x


class Decoder(OwnModel):
    """A decoder-only transformer. Fresh weights depend on `seed` alone, not on torch's global generator."""

    folders: ClassVar[Any] = decoder_folder
    shape_class: ClassVar[Any] = DecoderConfig

    def __init__(self, config: DecoderConfig, seed: int = 0) -> None:
        super().__init__()
        self.config, self.causal, self.vocab_size = config, config.causal, config.vocab_size
        self.trained_length = config.max_length  # whatever the positions would allow; only learned ones have an end
        self.length_limit = config.max_length if "learned" in config.schemes else None
        self.dropout = config.dropout  # of the embedding; each block has its own
        with torch.random.fork_rng(devices=[]):  # the weights torch draws here are drawn again below
            self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
            self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
            self.norm = RMSNorm(config.width, eps=config.norm_eps)
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
        """Fresh weights: normal with `initial_std`; what writes to the stream is divided by sqrt(2 * layers), as GPT-2.

        Position tables come last, so that models that differ only in the position scheme start from equal weights. Norm
        weights are 1 and T5's distances 0: no preference.
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

    @property
    def blocks(self) -> nn.ModuleList:
        return self.layers

    @property
    def output_layer(self) -> nn.Module | None:
        return None if self.config.tied else self.lm_head

    def new_cache(self) -> KeyValueCache:
        return KeyValueCache()

    def forward(
        self,
        input_ids: Tensor,
        *,
        documents: Tensor | None = None,
        cache: KeyValueCache | None = None,
        positions: Tensor | None = None,
        head: Head = logits,
    ) -> Any:
        """Run the decoder and hand the last hidden state to `head(hidden [B, T, D], output matrix [V, D])`.

        As `LanguageModel.forward` says. In training, where `head` returns a
        sum and a count, the sum of a decoder with experts carries the gradient of their balance (`models/experts.py`).
        """
        sight, at = self._look(input_ids, documents, cache)
        x = self._embed(input_ids, at)  # [B, T, D]
        for block in self.layers:
            x = block(x, sight, cache)
        if positions is not None:
            x = x[positions]  # [n, D]
        answer = head(self.norm(x), self.output_weight)
        if self.training and sight.balances and not labels_are_drawn():
            answer = with_balance(answer, sight.balances, self.config.router_loss)
        return answer

    def _embed(self, input_ids: Tensor, at: Tensor) -> Tensor:
        """Token embeddings, with what is added for the positions `at` ([T] or [B, T]): [B, T, D].

        The sinusoids are scaled by `initial_std`: positions and fresh embeddings then have about the same
        size, as in the NoPE paper, where embeddings start at a standard deviation of 1.
        """
        config = self.config
        x = self.embed_tokens(input_ids)
        if "learned" in config.schemes:
            if at.numel() and int(at.max()) >= config.max_length:
                raise UsageError(
                    f"a text of {int(at.max()) + 1} tokens exceeds the {config.max_length} learned positions",
                    where="position: learned",
                    expected=f"at most {config.max_length} tokens in a document",
                )
            x = x + self.embed_positions(at)
        elif "sinusoidal" in config.schemes:
            x = x + (config.initial_std * positions.sinusoidal_table(at, config.width)).to(x.dtype)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x

    def _look(self, input_ids: Tensor, documents: Tensor | None, cache: KeyValueCache | None) -> tuple[Sight, Tensor]:
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
        masks: dict[str, Tensor | None] = {"": None if plain else self._visible(places[seen:], places, documents)}
        for scheme in {"alibi", "t5"}.intersection(config.schemes):
            bias = self._bias(scheme, places[seen:], places)  # [H, T, S]
            masks[scheme] = bias.masked_fill(~self._visible(places[seen:], places, documents), -math.inf)
        rotation = None
        if "rotary" in config.schemes:
            rotation = positions.rotary_angles(at, config.rotated_width, config.rope_theta)
            if at.dim() == 2:
                rotation = rotation[0][:, None], rotation[1][:, None]  # [B, 1, T, R/2]
        triangular = config.causal and length > 1
        return Sight(masks, triangular, documents if cache is None else None, rotation), at

    def _visible(self, queries: Tensor, keys: Tensor, documents: Tensor | None) -> Tensor:
        """Which key places [S] each query place [T] sees: [T, S], or [B, 1, T, S] with documents [B, S]."""
        visible = keys <= queries[:, None] if self.config.causal else torch.ones_like(keys <= queries[:, None])
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
