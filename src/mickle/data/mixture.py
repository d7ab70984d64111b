"""Which windows make up batch i: a pure function of (seed, i).

An epoch shifts the grid of windows by an offset of its own and goes through it in an order of its own. The order is a
keyed permutation (a Feistel network walked until it falls into range; Black and Rogaway 2002, "Ciphers with arbitrary
finite domains"), so any place of it is computed directly: nothing is shuffled, stored, or replayed when a run resumes.

With several domains, which domain each sample comes from is such a function too. Samples are numbered through the
run and cut into blocks of 256. In block b the 256 points (u_b + j) / 256, u_b uniform in [0, 1) and drawn from
(seed, b), fall into the unit interval, of which every domain holds its weight (systematic sampling: a block's count of
a domain is within 1 of 256 times its weight, and is that in expectation). A keyed permutation says which sample of the
block has which point. Counting the points of earlier blocks tells the how-many-th of its domain a sample is, and hence
its window.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mickle.data.packing import TokenStream
from mickle.errors import UsageError

ROUNDS = 6
BLOCK = 256  # samples between which the domains' counts are exact
STRIDE = 64  # blocks between which the counts of all earlier samples are kept
DOMAINS, BLOCKS, POINTS = range(3)  # what a random word is for


@dataclass(frozen=True)
class Mixture:
    """Batches of ``batch_size`` windows of ``length`` tokens. Calling it with i gives batch i."""

    stream: TokenStream
    batch_size: int
    length: int
    seed: int

    def __post_init__(self) -> None:
        _refuse_short(self.stream, self.length, "The pages hold", "give more pages, or a shorter sequence_length")

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


@dataclass(frozen=True)
class DomainMixture:
    """Batches from several streams by weight. Calling it with i gives batch i, a pure function of (seed, i).

    streams, weights: one of each for a domain; weights are shares of the tokens, and a domain of 0 is never read.
    shift: whether each epoch cuts a stream at places of its own, as :class:`Mixture` does. Without, windows repeat from
        epoch to epoch, and the batches name them, so that what was computed of a window can be kept.
    names: of the domains, for messages.
    """

    streams: Sequence[TokenStream]
    weights: Sequence[float]
    batch_size: int
    length: int
    seed: int
    shift: bool = True
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.streams) != len(self.weights):
            raise UsageError(f"{len(self.weights)} weights do not fit {len(self.streams)} domains")
        if min(self.weights) < 0 or not 0.999 <= sum(self.weights) <= 1.001:  # also where one is not a number
            raise UsageError("the domains' weights are shares: from 0 to 1, and 1 in all")
        todo = "give it more pages, put it into a group, or choose a shorter sequence_length"
        for domain, stream in enumerate(self.streams):
            if self.weights[domain] > 0:
                name = self.names[domain] if self.names else str(domain)
                _refuse_short(stream, self.length, f"The domain '{name}' holds", todo)

    @property
    def windows(self) -> list[int]:
        """How many windows an epoch of each domain has."""
        return [len(stream) // self.length for stream in self.streams]

    def __call__(self, index: int) -> dict[str, Tensor]:
        """input_ids, labels, documents, each [B, T]; ``domains`` [B], and ``windows`` [B] where windows repeat.

        ``windows`` number all domains' windows through, first those of domain 0.
        """
        domains, positions = self.positions(index)
        first = np.cumsum([0, *self.windows])
        found: dict[str, Tensor] = {}
        for domain in np.unique(domains):
            rows = torch.from_numpy(np.flatnonzero(domains == domain))
            for name, values in self.streams[domain].windows(positions[rows.numpy()], self.length).items():
                if name not in found:
                    found[name] = values.new_empty(len(domains), self.length)
                found[name][rows] = values
        found["domains"] = torch.from_numpy(domains)
        if not self.shift:
            found["windows"] = torch.from_numpy(first[domains] + positions // self.length)
        return found

    def positions(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The domain of each row of batch ``index``, and where in its stream the window begins: int64 [B] each."""
        domains, numbers = self.draws(index * self.batch_size + np.arange(self.batch_size, dtype=np.int64))
        sizes = np.array([len(stream) for stream in self.streams])[domains]
        epochs, places = np.divmod(numbers, sizes // self.length)
        keys = _hashed(self.seed, DOMAINS, domains, epochs)
        positions = self.length * permute_each(places, sizes // self.length, keys)
        if self.shift:
            positions += (keys % np.uint64(self.length)).astype(np.int64)
        return domains, positions % sizes

    def draws(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The domain of each sample [n], and the how-many-th sample of that domain it is, from 0: int64 [n] each."""
        blocks, places = np.divmod(samples, BLOCK)
        points = permute_each(places, np.full_like(places, BLOCK), _hashed(self.seed, BLOCKS, blocks))
        known, which = np.unique(blocks, return_inverse=True)
        bounds = self._bounds(known)[which]  # [n, k + 1]
        domains = (points[:, None] >= bounds[:, 1:]).sum(1)
        rows = np.arange(len(samples))
        earlier = np.stack([self._earlier(int(block)) for block in known])[which]  # [n, k]
        return domains, earlier[rows, domains] + points - bounds[rows, domains]

    def _bounds(self, blocks: np.ndarray) -> np.ndarray:
        """How many of a block's points lie before each domain, and 256: int64 [blocks, k + 1]."""
        uniform = (_hashed(self.seed, POINTS, blocks) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        inner = np.clip(np.ceil(BLOCK * self._borders - uniform[:, None]), 0, BLOCK).astype(np.int64)
        ends = np.zeros((len(blocks), 1), dtype=np.int64)
        return np.concatenate([ends, inner, ends + BLOCK], axis=1)

    @cached_property
    def _borders(self) -> np.ndarray:
        """Where the domains meet in the unit interval, [k - 1]; behind the last one that is read all of it is given."""
        sums = np.cumsum(np.asarray(self.weights, dtype=np.float64))
        borders = sums / sums[-1]
        last = int(np.flatnonzero(np.asarray(self.weights) > 0)[-1])
        borders[last:] = 1.0
        return borders[:-1]

    @cached_property
    def _kept(self) -> list[np.ndarray]:
        """Samples of each domain before block 0, STRIDE, 2 STRIDE, ...: as far as anybody has asked."""
        return [np.zeros(len(self.streams), dtype=np.int64)]

    def _earlier(self, block: int) -> np.ndarray:
        """Samples of each domain before ``block``, int64 [k]."""
        kept = self._kept
        while len(kept) <= block // STRIDE:
            begin = (len(kept) - 1) * STRIDE
            kept.append(kept[-1] + self._counts(begin, begin + STRIDE))
        begin = block // STRIDE * STRIDE
        return kept[block // STRIDE] + self._counts(begin, block)

    def _counts(self, begin: int, end: int) -> np.ndarray:
        return np.diff(self._bounds(np.arange(begin, end)), axis=1).sum(0)


def _refuse_short(stream: TokenStream, length: int, who: str, todo: str) -> None:
    if len(stream) <= length:
        raise UsageError(
            f"{who} {len(stream):,} tokens, too few for one sequence of {length:,}.",
            where="sequence_length",
            expected=f"at most {max(len(stream) - 1, 0):,}",
            todo=todo,
        )


def permute(places: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of ``range(size)``, keyed by (seed, epoch), sends ``places`` (int64 [n])."""
    keys = _words(seed, epoch, ROUNDS + 1)[1:]
    return _walk(places, np.full_like(places, size), lambda outside: keys)


def permute_each(places: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """:func:`permute` with a size (int64) and a key (uint64) of each place's own, [n] all of them."""
    return _walk(places, sizes, lambda outside: _hashed(keys[outside], np.arange(ROUNDS)[:, None]))


def _walk(places: np.ndarray, sizes: np.ndarray, rounds: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Each place through the network until it is in range; ``rounds`` gives the keys [ROUNDS] or [ROUNDS, rows]."""
    half_bits = np.maximum(1, (np.frexp(np.maximum(sizes - 1, 1))[1] + 1) // 2).astype(np.uint64)
    moved = places.astype(np.uint64)
    outside = np.arange(len(moved))
    # The network permutes a power of four that is less than 4 x size: a walk leaves the range with probability < 3/4.
    while len(outside):
        moved[outside] = _feistel(moved[outside], half_bits[outside], rounds(outside))
        outside = outside[moved[outside] >= sizes[outside]]
    return moved.astype(np.int64)


def _feistel(values: np.ndarray, shift: np.ndarray, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << shift) - np.uint64(1)
    left, right = values >> shift, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << shift) | right


def _words(seed: int, epoch: int, count: int) -> np.ndarray:
    """``count`` 64-bit words that depend on seed and epoch; word j is the same whatever the count."""
    return np.random.Philox(key=[seed, epoch]).random_raw(count)


def _hashed(*parts: int | np.ndarray) -> np.ndarray:
    """A 64-bit word for each combination of whole numbers (broadcast), in which their order counts."""
    word = np.zeros(1, dtype=np.uint64)
    for part in parts:
        word = _mix(word ^ np.asarray(part).astype(np.uint64))
    return word


def _mix(words: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): every input bit reaches every output bit."""
    with np.errstate(over="ignore"):
        words = words + np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return words ^ (words >> np.uint64(31))
