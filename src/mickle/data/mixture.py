"""Which windows make up batch i: a pure function of (seed, i).

An epoch shifts the grid of windows by an offset of its own and goes through it in an order of its own. The order is a
keyed permutation (a Feistel network walked until it falls into range; Black and Rogaway 2002, "Ciphers with arbitrary
finite domains"), so any place of it is computed directly: nothing is shuffled, stored, or replayed when a run resumes.
"""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mickle.data.packing import TokenStream
from mickle.errors import UsageError

ROUNDS = 6


@dataclass(frozen=True)
class Mixture:
    """Batches of ``batch_size`` windows of ``length`` tokens. Calling it with i gives batch i."""

    stream: TokenStream
    batch_size: int
    length: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.stream) <= self.length:
            raise UsageError(
                f"The pages hold {len(self.stream):,} tokens, too few for one sequence of {self.length:,}.",
                where="sequence_length",
                expected=f"at most {max(len(self.stream) - 1, 0):,}",
                todo="give more pages, or a shorter sequence_length",
            )

    @property
    def windows(self) -> int:
        """How many windows an epoch has."""
        return len(self.stream) // self.length

    def __call__(self, index: int) -> dict[str, Tensor]:
        """input_ids, labels, documents, each [B, T]."""
        return self.stream.windows(self.positions(index), self.length)

    def positions(self, index: int) -> np.ndarray:
        """Where in the stream the windows of batch ``index`` begin, int64 [B]."""
        samples = index * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        epochs, places = np.divmod(samples, self.windows)
        positions = np.empty_like(samples)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            offset = int(_words(self.seed, int(epoch), 1)[0] % np.uint64(self.length))
            order = permute(places[rows], self.windows, self.seed, int(epoch))
            positions[rows] = (order * self.length + offset) % len(self.stream)
        return positions


def permute(places: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of ``range(size)``, keyed by (seed, epoch), sends ``places`` (int64 [n])."""
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = _words(seed, epoch, ROUNDS + 1)[1:]
    moved = places.astype(np.uint64)
    outside = np.ones(len(moved), dtype=bool)
    # The network permutes a power of four that is less than 4 x size: a walk leaves the range with probability < 3/4.
    while outside.any():
        moved[outside] = _feistel(moved[outside], half_bits, keys)
        outside = moved >= size
    return moved.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    mask, shift = np.uint64((1 << half_bits) - 1), np.uint64(half_bits)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _words(seed: int, epoch: int, count: int) -> np.ndarray:
    """``count`` 64-bit words that depend on seed and epoch; word j is the same whatever the count."""
    return np.random.Philox(key=[seed, epoch]).random_raw(count)


def _mix(words: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        words = words + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))
