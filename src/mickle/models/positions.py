"""Six ways to tell a decoder where a token stands, as plain functions of positions.

- `none`: nothing; a causal mask alone lets a model count (arXiv 2305.19466).
- `learned`: a trained vector for each position is added to the embedding (GPT-2).
- `sinusoidal`: a fixed vector of sines and cosines is added to the embedding (arXiv 1706.03762, section 3.5).
- `rotary`: queries and keys turn by an angle proportional to the position (arXiv 2104.09864, section 3.2).
- `alibi`: scores fall linearly with the distance, at each head's own slope (arXiv 2108.12409, section 3).
- `t5`: scores get a trained number for each bucket of distances (arXiv 1910.10683, section 2.1).

`learned` and `sinusoidal` act once, at the embedding. The other four act inside attention, so each layer may
have its own (`schemes_of_layers`): rotary layers with every fourth one at `none`, for example.

Positions are whole numbers, counted from 0 inside each document. All angles are computed in float32: float16
and bfloat16 cannot tell neighbouring positions apart past 2048 and 256.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from mickle.errors import UsageError

Position = Literal["none", "learned", "sinusoidal", "rotary", "alibi", "t5"]
AT_EMBEDDING = frozenset({"learned", "sinusoidal"})
T5_BUCKETS = 32
T5_MAX_DISTANCE = 128


def schemes_of_layers(position: str | Sequence[str], layers: int) -> tuple[str, ...]:
    """The scheme of each of `layers` layers, from one name for all or a list with one name for each.

    Raises UsageError for a name that does not exist, a list of the wrong length, or a scheme that acts at the
    embedding inside a list: it has no layer of its own.
    """
    names = (position,) * layers if isinstance(position, str) else tuple(position)
    for name in names:
        if name not in get_args(Position):
            raise UsageError(f"unknown position scheme {name!r}", expected=", ".join(get_args(Position)))
    if len(names) != layers:
        raise UsageError(
            f"{len(names)} position schemes are given for {layers} layers", expected="one name, or one for each layer"
        )
    if AT_EMBEDDING.intersection(names) and len(set(names)) > 1:
        raise UsageError(
            "learned and sinusoidal positions act once, at the embedding; a single layer cannot have them",
            expected="lists of none, rotary, alibi and t5",
        )
    return names


def sinusoidal_table(positions: Tensor, width: int, base: float = 10000.0) -> Tensor:
    """Vectors of [sin | cos]: entry k of the first half is sin(p * base^(-2k/D)), of the second half its cosine.

    positions [...] -> [..., D] float32. The halves are concatenated, not interleaved as in the paper; the two differ by
    a fixed permutation of dimensions, which a trained model cannot notice.
    """
    angles = _angles(positions, width, base)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def rotary_angles(positions: Tensor, width: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the angles p * base^(-2k/R), for k below R/2.

    positions [...], R = `width` rotated dimensions -> two tensors [..., R/2] float32. Eq. 34 of the paper.
    """
    angles = _angles(positions, width, base)
    return angles.cos(), angles.sin()


def alibi_slopes(heads: int) -> list[float]:
    """Slope of each head: 2^(-8k/H), k = 1..H, when H is a power of two.

    Otherwise the slopes of the next lower power of two, followed by every second slope of the next higher
    one, as in the paper's code and in Bloom.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * k / power) for k in range(1, power + 1)]
    return slopes + [2 ** (-4 * k / power) for k in range(1, 2 * (heads - power), 2)]


def alibi_bias(queries: Tensor, keys: Tensor, heads: int) -> Tensor:
    """-slope_h * |i - j|, to be added to attention scores.

    queries [T] and keys [S] are positions -> [H, T, S] float32. Under a causal mask this equals adding
    slope_h * j: within a row the two differ by a constant, which softmax ignores.
    """
    slopes = torch.tensor(alibi_slopes(heads), dtype=torch.float32, device=queries.device)
    distance = (queries[:, None] - keys[None, :]).abs().float()
    return -slopes[:, None, None] * distance


def t5_bucket(
    distance: Tensor, causal: bool = True, buckets: int = T5_BUCKETS, max_distance: int = T5_MAX_DISTANCE
) -> Tensor:
    """The bucket of each distance i - j (query minus key), same shape, int64.

    Half of the buckets hold one distance each, the others grow in logarithmic steps up to `max_distance`; all
    larger distances share the last. A causal model sees no negative distance (bucket 0); otherwise half of
    the buckets are for keys on the right.
    """
    if causal:
        offset, distance = torch.zeros_like(distance), distance.clamp(min=0)
    else:
        buckets //= 2
        offset, distance = torch.where(distance < 0, buckets, 0), distance.abs()
    exact = buckets // 2
    steps = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (buckets - exact)
    logarithmic = (exact + steps.long()).clamp(max=buckets - 1)
    return offset + torch.where(distance < exact, distance, logarithmic)


def t5_bias(queries: Tensor, keys: Tensor, table: Tensor, causal: bool) -> Tensor:
    """The trained number of each head for the bucket of i - j, to be added to attention scores.

    queries [T] and keys [S] are positions, table [buckets, H] -> [H, T, S] in the table's dtype. One table
    serves all layers.
    """
    bucket = t5_bucket(queries[:, None] - keys[None, :], causal, buckets=table.shape[0])
    return table[bucket].permute(2, 0, 1)


def _angles(positions: Tensor, width: int, base: float) -> Tensor:
    """positions [...] -> angles [..., width/2] float32."""
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    return positions[..., None].float() * (1.0 / base**exponent)
