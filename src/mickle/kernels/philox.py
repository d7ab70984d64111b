"""Random directions that are a function of a counter: Philox4x32-10, and signs and normal numbers made of it.

Source: "Parallel Random Numbers: As Easy as 1, 2, 3", Salmon, Moraes, Dror, Shaw, SC 2011, section 3.3 (no arXiv id).
Ten rounds turn a counter of four 32-bit words and a key of two into four words; with M0 = d2511f53, M1 = cd9e8d57:

    c' = (high(M1 c2) ^ c1 ^ k0, low(M1 c2), high(M0 c0) ^ c3 ^ k1, low(M0 c0)),   k' = k + (9e3779b9, bb67ae85)

Nothing is drawn in an order, so a direction has the same bits on every machine and device, in whatever tiles and on
however many threads it is made, and another tensor more or less changes no other's. The counter of the numbers of one
tensor is (block, two words of a hash of the tensor's name, draw); the key is a hash of the seed and of the kind of
draw.

* Signs (Rademacher): element e is bit e mod 32 of word (e mod 128) / 32 of block e / 128; 1 is +1 and 0 is -1.
* Normal numbers (Gaussian, by Box and Muller): block e / 4 gives two pairs of words (x, y), each two numbers r cos a
  and r sin a, with r = sqrt(-2 ln u), u = (x / 2^8 + 1) / 2^24, and the angle a = (y / 2^30 + y' - 1/2) pi / 2, y'
  being the next 24 bits of y. Logarithm, sine and cosine are short series in float32, so that every processor without
  fused multiply-adds gives the same bits; |z| is at most 5.77.

The functions here are the plain definition, in NumPy; `kernels/perturb.py` holds the fast versions.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["rademacher", "gaussian"]

ROUNDS = 10  # seven pass the tests of the paper, ten are its choice, with a margin
M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
SIGNS_A_BLOCK, NORMALS_A_BLOCK = 128, 4
MOST_ELEMENTS = NORMALS_A_BLOCK << 32  # of one tensor: blocks are counted in 32 bits

# Rounded once and here, so that no library of mathematics comes between two machines.
SQUARE_ROOT_OF_HALF = np.float32(0.70710677)
LOG_2 = np.float32(0.6931472)
HALF_PI = np.float32(1.5707964)
# Of the series of ln((1 + s) / (1 - s)) / 2, sine and cosine, by their powers.
L3, L5, L7, L9 = (np.float32(1 / n) for n in (3, 5, 7, 9))
S3, S5, S7, S9 = (np.float32(c) for c in (-1 / 6, 1 / 120, -1 / 5040, 1 / 362880))
C2, C4, C6, C8 = (np.float32(c) for c in (-1 / 2, 1 / 24, -1 / 720, 1 / 40320))


@dataclass(frozen=True)
class Stream:
    """The directions of one seed: key and kind of draw. `draw` (0 to 2^32 - 1) says which of them."""

    seed: int
    kind: Kind = "rademacher"

    @property
    def key(self) -> tuple[int, int]:
        """Two words from the seed and the kind."""
        return two_words(f"mickle {self.kind} {self.seed}")


@dataclass(frozen=True)
class Moves:
    """What is added: draws [n] uint32, scales [n] and factors [n] float32."""

    draws: NDArray[np.uint32]
    scales: NDArray[np.float32]
    factors: NDArray[np.float32]

    @staticmethod
    def of(draws: object, scales: object, factors: object = None) -> "Moves":
        """From lists or arrays; factors are 1 where they are left out."""
        draws = np.atleast_1d(np.asarray(draws, dtype=np.uint32))
        scales = np.atleast_1d(np.asarray(scales, dtype=np.float64)).astype(np.float32)
        ones = np.ones(len(draws)) if factors is None else factors
        return Moves(draws, scales, np.atleast_1d(np.asarray(ones, dtype=np.float64)).astype(np.float32))


def two_words(text: str) -> tuple[int, int]:
    """A text as two words of 32 bits; what tensor names become."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def philox4x32(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Four words for each counter: [..., 4] -> [..., 4]."""
    c0, c1, c2, c3 = (counters[..., i].astype(np.uint32) for i in range(4))
    k0, k1 = key
    low, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(ROUNDS):
        first = np.uint64(M0) * c0.astype(np.uint64)
        second = np.uint64(M1) * c2.astype(np.uint64)
        c0, c1, c2, c3 = (
            (second >> half).astype(np.uint32) ^ c1 ^ np.uint32(k0),
            (second & low).astype(np.uint32),
            (first >> half).astype(np.uint32) ^ c3 ^ np.uint32(k1),
            (first & low).astype(np.uint32),
        )
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def direction(stream: Stream, name: str, draw: int, start: int, count: int) -> NDArray[np.float32]:
    """Elements `start` to `start + count` of draw `draw` for the tensor called `name`: float32 [count]."""
    each = SIGNS_A_BLOCK if stream.kind == "rademacher" else NORMALS_A_BLOCK
    first, last = start // each, (start + count + each - 1) // each
    counters = np.empty((last - first, 4), dtype=np.uint32)
    counters[:, 0] = np.arange(first, last, dtype=np.uint64).astype(np.uint32)
    counters[:, 1], counters[:, 2] = two_words(name)
    counters[:, 3] = draw
    words = philox4x32(counters, stream.key)
    made = _signs(words) if stream.kind == "rademacher" else _normals(words)
    return made[start - first * each :][:count]


def _signs(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """[blocks, 4] words -> [128 blocks] of +1 and -1."""
    bits = (words.reshape(-1, 1) >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    return (bits.astype(np.float32) * np.float32(2) - np.float32(1)).reshape(-1)


def _normals(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """[blocks, 4] words -> [4 blocks] normal numbers."""
    radius = np.sqrt(np.float32(-2) * _log(words[:, 0::2]))  # [blocks, 2]
    sine, cosine = _sine_and_cosine(words[:, 1::2])
    return np.stack([radius * cosine, radius * sine], axis=-1).reshape(-1)


def _log(x: NDArray[np.uint32]) -> NDArray[np.float32]:
    """ln((x / 2^8 + 1) / 2^24): exponent, and the series of ln((1 + s) / (1 - s)) for the rest."""
    mantissa, exponent = np.frexp(((x >> np.uint32(8)) + np.uint32(1)).astype(np.float32))  # in [1/2, 1)
    below = mantissa < SQUARE_ROOT_OF_HALF
    mantissa = np.where(below, mantissa + mantissa, mantissa)
    exponent = (exponent - below - 24).astype(np.float32)
    s = (mantissa - np.float32(1)) / (mantissa + np.float32(1))
    q = s * s  # at most .03: what the series leaves out is below float32's last bit
    series = q * (L3 + q * (L5 + q * (L7 + q * L9)))
    return np.asarray(exponent * LOG_2 + (s + s) * (np.float32(1) + series), dtype=np.float32)


def _sine_and_cosine(y: NDArray[np.uint32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of the angle that `y` stands for: Taylor series within an eighth of a turn, then the quarter."""
    quarter = y >> np.uint32(30)
    share = ((y >> np.uint32(6)) & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)
    t = (share - np.float32(0.5)) * HALF_PI
    q = t * t
    sine = t + t * (q * (S3 + q * (S5 + q * (S7 + q * S9))))
    cosine = np.float32(1) + q * (C2 + q * (C4 + q * (C6 + q * C8)))
    odd, turned = (quarter & np.uint32(1)) == 1, (quarter & np.uint32(2)) == 2
    sine, cosine = np.where(odd, cosine, sine), np.where(odd, -sine, cosine)
    return np.where(turned, -sine, sine), np.where(turned, -cosine, cosine)
