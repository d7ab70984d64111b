"""The attention of a block, and what the attention of every block shares in one forward pass.

Shapes as in `models/decoder.py`: B batch, T length of this call, S length with what the cache holds, D width, H heads,
G key-value heads, K head width, R rotated dimensions of a head.
"""

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from mickle.kernels.attention import causal_attention
from mickle.models import positions
from mickle.models.cache import KeyValueCache
from mickle.models.shape import DecoderConfig


@dataclass(frozen=True)
class Sight:
    """What every layer of one forward pass shares: who sees whom, and the positions' part in it.

    `masks` gives the attention mask of each bias scheme and, under "", of layers without a bias: boolean or
    additive, [T, S], [H, T, S] or [B, H or 1, T, S]; None with `triangular` means the plain causal triangle,
    None without it that all is seen. `documents` [B, T] says the same as the mask of layers without a bias, where
    rows hold more than one and nothing is cached.
    """

    masks: dict[str, Tensor | None]
    triangular: bool
    documents: Tensor | None
    rotation: tuple[Tensor, Tensor] | None  # cosines and sines, [T, R/2] or [B, 1, T, R/2]
    balances: list[Tensor] = field(default_factory=list)  # one scalar from each layer of experts, as they run


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
        queries = self.q_proj(x).view(batch, length, self.heads, self.head_width).transpose(1, 2)  # [B, H, T, K]
        keys = self.k_proj(x).view(batch, length, self.kv_heads, self.head_width).transpose(1, 2)  # [B, G, T, K]
        values = self.v_proj(x).view(batch, length, self.kv_heads, self.head_width).transpose(1, 2)
        if self.scheme == "rotary" and sight.rotation is not None:
            queries, keys = (positions.rotate(queries, *sight.rotation), positions.rotate(keys, *sight.rotation))
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)  # [B, G, S, K]
        mask = sight.masks.get(self.scheme, sight.masks[""])
        unbiased = mask is sight.masks[""]
        if sight.triangular and unbiased and (mask is None or sight.documents is not None):
            attended = causal_attention(queries, keys, values, sight.documents, mask)  # [B, H, T, K]
        else:
            attended = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=mask, enable_gqa=self.heads != self.kv_heads
            )
        return self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))
