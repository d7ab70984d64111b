"""The attention of a block, what all blocks share in one forward pass, and what they remember of the passes before.

Shapes as in `models/decoder.py`: B batch, T length of this call, S length with what the cache holds, D width, H heads,
G key-value heads, K head width, R rotated dimensions of a head.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mickle.kernels.attention import causal_attention
from mickle.kernels.rotary import rotate_pairs
from mickle.models.shape import DecoderConfig


class KeyValueCache:
    """Keys and values of the tokens seen so far, so that generation reads each token once."""

    def __init__(self) -> None:
        self.length = 0
        self.documents: Tensor | None = None  # [B, S]; None: one document a row
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._room: dict[int, tuple[Tensor, Tensor]] = {}  # what the layers' keys and values lie in, longer than they

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append [B, G, T, K] to what `layer` holds and return all of it: [B, G, S, K]."""
        if layer in self._layers:
            before = self._layers[layer]
            if torch.is_grad_enabled():
                keys, values = torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)
            else:
                keys, values = self._appended(layer, before, (keys, values))
        self._layers[layer] = keys, values
        return keys, values

    def _appended(self, layer: int, before: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The same without copying all that went before with every token: room is made for half as many again."""
        seen, length = before[0].shape[2], before[0].shape[2] + new[0].shape[2]
        if layer not in self._room or self._room[layer][0].shape[2] < length:
            batch, groups, _, width = before[0].shape
            made = [part.new_empty(batch, groups, length + max(64, length // 2), width) for part in before]
            for room, part in zip(made, before, strict=True):
                room[:, :, :seen] = part
            self._room[layer] = made[0], made[1]
        keys, values = self._room[layer]
        keys[:, :, seen:length], values[:, :, seen:length] = new
        return keys[:, :, :length], values[:, :, :length]

    def pairs(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [B, G, S, K] that each layer holds."""
        return [self._layers[number] for number in sorted(self._layers)]

    def fill(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Begin with these keys and values [B, G, S, K] of each layer, as if S tokens had been read."""
        for number, (keys, values) in enumerate(pairs):
            self.extend(number, keys, values)
        rows, _, tokens, _ = pairs[0][0].shape
        self.extend_documents(None, rows, tokens, pairs[0][0].device)

    def extend_documents(self, documents: Tensor | None, rows: int, new: int, device: torch.device) -> Tensor | None:
        """Append the document ids [B, T] of `new` tokens and return all: [B, S], or None for one document a row.

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
            queries, keys = rotate_pairs(queries, *sight.rotation), rotate_pairs(keys, *sight.rotation)
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
