"""The shape of a decoder, derived from one number: how many parameters it should have."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

from mickle.errors import UsageError
from mickle.models import positions

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
    the standard deviation of fresh weights. `drop_path` is the share of rows that skip the last layer in training,
    linearly fewer before it. `experts` above 1 replaces each feed-forward network by that many of width `ffn_width`,
    of which each token passes through `experts_per_token`; `router_loss` weighs their balance in the loss.
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
    drop_path: float = 0.0
    experts: int = 1
    experts_per_token: int = 2
    router_loss: float = 0.01

    def __post_init__(self) -> None:
        if isinstance(self.position, list):
            object.__setattr__(self, "position", tuple(self.position))
        _check_kinds(self)
        if self.heads % self.kv_heads:
            raise UsageError(
                f"{self.heads} heads cannot share {self.kv_heads} key-value heads evenly",
                where="decoder shape",
                expected="kv_heads that divides heads",
            )
        if 1 < self.experts < self.experts_per_token:
            raise UsageError(
                f"each token is to pass through {self.experts_per_token} of {self.experts} experts",
                where="decoder shape",
                expected=f"experts_per_token of at most {self.experts}",
            )
        if self.activation not in ("swiglu", "relu", "gelu"):
            raise UsageError(f"unknown activation {self.activation!r}", expected="swiglu, relu or gelu")
        if not 0 < self.rotary_fraction <= 1 or ("rotary" in self.schemes and self.rotated_width % 2):
            raise UsageError(
                f"rotary_fraction {self.rotary_fraction} of {self.head_width} is not an even number",
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
        """The number of trained numbers, in closed form, all experts included."""
        attention = 2 * self.width * self.head_width * (self.heads + self.kv_heads)
        feed_forward = self.experts * (3 if self.activation == "swiglu" else 2) * self.width * self.ffn_width
        router = self.experts * self.width if self.experts > 1 else 0
        embeddings = self.vocab_size * self.width * (1 if self.tied else 2)
        learned = self.max_length * self.width if "learned" in self.schemes else 0
        t5 = positions.T5_BUCKETS * self.heads if "t5" in self.schemes else 0
        norms = (2 * self.layers + 1) * self.width
        return embeddings + learned + t5 + norms + self.layers * (attention + feed_forward + router)

    def line(self, vocabulary: int) -> str:
        """The dimensions for a person; `vocabulary`: the tokens that are in use."""
        return (
            f"width {self.width}, {self.layers} layers of {self.heads} heads, vocabulary {vocabulary:,}, "
            f"positions {self.position}"
        )

    def refuse_fewer_tensors(self, tensors: int, where: str) -> None:
        """UsageError where a folder of so many tensors cannot hold a decoder of this shape."""
        if self.layers * self.experts > tensors:
            raise UsageError(
                f"config describes {self.layers * self.experts:,} experts in all, the weights hold {tensors:,} tensors",
                where=where,
            )

    @classmethod
    def for_size(cls, size: str | int, vocab_size: int, max_length: int = 512, **settings: Any) -> "DecoderConfig":
        """The decoder whose parameter count, embeddings included, is nearest to `size`.

        `size` is a name in SIZES or a number of parameters. The one free number is the width; from it:
        one layer for each 64 of width (at least 2); heads 32 wide below a width of 512, 64 below 2048, then
        128; key-value heads shared by up to four heads from a width of 1024; feed-forward 8/3 of the width,
        rounded up to a multiple of 32. Any field can be given in `settings` and is then not derived.
        """
        if isinstance(size, str) and size not in SIZES:
            raise UsageError(f"unknown size {size!r}", expected=f"{', '.join(SIZES)}, or a number of parameters")
        target = SIZES[size] if isinstance(size, str) else size
        candidates = [*range(32, 512, 32), *range(512, 1024, 64), *range(1024, 16384 + 1, 128)]
        widths = [settings["width"]] if "width" in settings else candidates
        configs = [
            cls(**(_derived_shape(width) | {"vocab_size": vocab_size, "max_length": max_length} | settings))
            for width in widths
        ]
        best = min(configs, key=lambda config: abs(math.log(config.parameters() / max(target, 1))))
        smallest, largest = configs[0].parameters(), configs[-1].parameters()
        if "width" not in settings and not 0.7 * smallest < target < 1.4 * largest:
            raise UsageError(
                f"no decoder with a vocabulary of {vocab_size} has about {target:,} parameters",
                expected=f"{smallest:,} to {largest:,} parameters",
                todo="choose a larger size or a smaller vocabulary",
            )
        return best


RANGES: dict[str, tuple[float, float]] = {  # of the fields that are fractions, both ends included
    "dropout": (0, 0.999),
    "drop_path": (0, 0.999),
    "router_loss": (0, 100),
    "rotary_fraction": (0, 1),
    "norm_eps": (0, 1),
    "rope_theta": (1, 1e12),
    "initial_std": (0, 100),
}


def _check_kinds(config: DecoderConfig) -> None:
    """Every field has a value of its kind, in its range: folders from strangers are read into this class.

    `type(...) is` and not `isinstance`: Python counts True among the whole numbers. All whole numbers are counts.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is int and (type(value) is not int or value < 1):
            raise _wrong(field.name, value, "a whole number of at least 1")
        if field.type is bool and type(value) is not bool:
            raise _wrong(field.name, value, "true or false")
    for name, (least, most) in RANGES.items():
        value = getattr(config, name)
        if type(value) not in (int, float) or not least <= value <= most:
            raise _wrong(name, value, f"a number from {least:g} to {most:g}")


def _wrong(name: str, value: object, expected: str) -> UsageError:
    return UsageError(f"{name} is {value!r}"[:200], where="decoder shape", expected=expected)


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
