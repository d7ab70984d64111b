"""Which tokens of a batch are hidden, and what stands in their place: one 64-bit draw a token.

A token's draw is a function of (seed, sample, position) alone::

    key(sample) = mix(mix(seed) + sample)
    w(sample, position) = mix(key(sample) + (position + MOST_IN_A_SPAN) * GOLDEN)

with ``mix`` the finalizer of splitmix64 (Steele, Lea and Flood 2014). Its upper 32 bits are the number u in [0, 1) that
decides both whether the token is chosen (u < rate) and what becomes of it (u / rate below mask_share: the mask token;
below mask_share + random_share: a random token; else unchanged). Its lower 32 bits choose the random token.

So a mask does not depend on the other rows of a batch, on the number of workers or on where a run was resumed, and the
tokens chosen at a rate are among those chosen at any higher one.

Units: ``TOKEN``, every token by its own u; ``WORD``, all tokens of a word by the u of its first one; ``SPAN``, spans
open at positions with u < ``start_rate`` (:func:`span_start_rate`), a token goes by the nearest span that covers it.
Spans run through document marks, and into a row from before its first position, so every ordinary token is covered with
the same probability; the marks themselves are never chosen.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from mickle.errors import UsageError
from mickle.kernels.compiled import compiled, mixed, mixed_plain

TOKEN, WORD, SPAN = 0, 1, 2
NOT_TRAINED = -100
SPAN_STOP = 1 / 3  # probability that a span ends after each token: lengths are geometric of mean 3
MOST_IN_A_SPAN = 10  # tokens; longer lengths are cut to it, as in SpanBERT (arXiv 1907.10529, section 3.1)
_SCALE = 1 << 32

# P(length > j), j = 0 .. 9, for a geometric length cut at ten.
_LONGER = (1 - SPAN_STOP) ** np.arange(MOST_IN_A_SPAN)


class Vocabulary(NamedTuple):
    """What masking knows of a tokenizer. ``special`` [V]: never chosen. ``ordinary`` [n]: ids a random token may have.
    ``begins_word`` [V]: whether a token opens a word.
    """

    mask: int
    special: np.ndarray  # bool
    ordinary: np.ndarray  # int64
    begins_word: np.ndarray  # bool


class Cuts(NamedTuple):
    """Numbers from 0 to 2^32 below which u must be: to be chosen, to become the mask token, to become any other token
    than its own; and below which a second draw must be for the label to stay.
    """

    chosen: int
    masked: int
    replaced: int
    labelled: int


def cuts(rate: float, mask_share: float, random_share: float, unit: int = TOKEN, subset: float | None = None) -> Cuts:
    """The numbers for a rate in [0, 1]; with ``subset``, labels stay with probability subset / rate."""
    if not (0 <= rate <= 1 and mask_share >= 0 and random_share >= 0 and mask_share + random_share <= 1 + 1e-9):
        raise UsageError(
            f"rate {rate}, mask_share {mask_share}, random_share {random_share} are no probabilities",
            expected="a rate from 0 to 1, and shares that sum to 1 at most",
        )
    chance = span_start_rate(rate) if unit == SPAN else rate
    replaced = min(1.0, mask_share + random_share)
    kept = 1.0 if subset is None or subset >= rate else subset / rate
    shares = (chance, chance * mask_share, chance * replaced, kept)
    chosen, masked, replaced_below, labelled = (round(share * _SCALE) for share in shares)
    return Cuts(chosen, masked, replaced_below, labelled)


@lru_cache(maxsize=4096)
def span_start_rate(rate: float) -> float:
    """The probability s that a span opens at a position, so that a position is covered with probability ``rate``.

    A position stays uncovered where none of the ten before and at it opens a span that is long enough:
    1 - rate = prod_j (1 - s P(length > j)). Solved by bisection; increasing in ``rate``.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if 1 - math.prod(1 - middle * _LONGER) < rate:
            low = middle
        else:
            high = middle
    return high


def mask_tokens_plain(
    tokens: np.ndarray, samples: np.ndarray, seed: int, vocabulary: Vocabulary, limits: Cuts, unit: int = TOKEN
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, int64 [B, T]; labels are -100 where a token is not chosen.

    tokens [B, T] int64, within the vocabulary; samples [B] int64, the rows' numbers in the whole run.
    """
    draws = _draws(samples, tokens.shape[1], seed)  # [B, before + T]
    own = draws[:, MOST_IN_A_SPAN:]
    upper, lower = own >> np.uint64(32), own & np.uint64(_SCALE - 1)
    if unit == WORD:
        upper = np.take_along_axis(upper, _word_starts(tokens, vocabulary), axis=1)
    elif unit == SPAN:
        upper = _nearest_span(draws, limits.chosen)
    chosen = (upper < np.uint64(limits.chosen)) & ~vocabulary.special[tokens]
    masked = chosen & (upper < np.uint64(limits.masked))
    replaced = chosen & (upper < np.uint64(limits.replaced)) & ~masked
    count = np.uint64(len(vocabulary.ordinary))
    random = vocabulary.ordinary[((lower * count) >> np.uint64(32)).astype(np.int64)]
    inputs = np.where(masked, vocabulary.mask, np.where(replaced, random, tokens))
    labelled = chosen & ((mixed_plain(own) >> np.uint64(32)) < np.uint64(limits.labelled))
    return inputs, np.where(labelled, tokens, NOT_TRAINED)


def _draws(samples: np.ndarray, length: int, seed: int) -> np.ndarray:
    """w(sample, position), positions from ten before the row on: uint64 [B, 10 + T]."""
    keys = mixed_plain(mixed_plain(np.array([seed], np.uint64)) + samples.astype(np.uint64))
    places = np.arange(length + MOST_IN_A_SPAN, dtype=np.uint64) * _golden
    return mixed_plain(keys[:, None] + places)


def _word_starts(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """For each token the position of its word's first one, int64 [B, T]; after a special token a word begins."""
    opens = vocabulary.begins_word[tokens] | vocabulary.special[tokens]
    opens[:, 1:] |= vocabulary.special[tokens[:, :-1]]
    opens[:, :1] = True
    return np.maximum.accumulate(np.where(opens, np.arange(tokens.shape[1]), 0), axis=1)


def _nearest_span(draws: np.ndarray, start: int) -> np.ndarray:
    """The u of the nearest span that covers each position, or 2^32: uint64 [B, T]."""
    upper = draws >> np.uint64(32)
    lengths = np.where(upper < np.uint64(start), _lengths(draws), 0)  # 0: no span opens here
    covering = np.full((len(draws), draws.shape[1] - MOST_IN_A_SPAN), _SCALE, np.uint64)
    for back in range(MOST_IN_A_SPAN - 1, -1, -1):  # the nearest comes last
        at = slice(MOST_IN_A_SPAN - back, draws.shape[1] - back)
        covering = np.where(lengths[:, at] > back, upper[:, at], covering)
    return covering


def _lengths(draws: np.ndarray) -> np.ndarray:
    """Lengths 1 to 10 of the spans that would open, by a second draw."""
    second = mixed_plain(draws) >> np.uint64(32)
    return 1 + (second[..., None] < _LONGER_CUTS).sum(axis=-1)


def mask_tokens(
    tokens: np.ndarray, samples: np.ndarray, seed: int, vocabulary: Vocabulary, limits: Cuts, unit: int = TOKEN
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`mask_tokens_plain`, compiled. Raises UsageError for a token that the vocabulary does not have."""
    tokens = np.ascontiguousarray(tokens, np.int64)
    if tokens.size and tokens.view(np.uint64).max() >= len(vocabulary.special):  # a negative one is huge
        raise UsageError(
            f"Tokens {tokens.min():,} to {tokens.max():,} do not belong to this vocabulary.",
            expected=f"ids from 0 to {len(vocabulary.special) - 1:,}",
        )
    inputs, labels = np.empty_like(tokens), np.empty_like(tokens)
    numbers = np.array([seed, vocabulary.mask, *limits, unit], np.uint64)
    kernel = _mask_spans if unit == SPAN else _mask_units
    kernel(tokens, samples.astype(np.uint64), numbers, *vocabulary[1:], inputs, labels)
    return inputs, labels


# -- compiled: unsigned 64-bit numbers wrap around, as they are meant to -----------------------------------------------

_golden = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64: 2^64 over the golden ratio
_low, _half = np.uint64(_SCALE - 1), np.uint64(32)
_LONGER_CUTS = np.round(_LONGER[1:] * _SCALE).astype(np.uint64)  # [9]
_before = np.uint64(MOST_IN_A_SPAN)


@compiled
def _put(token, upper, word, numbers, ordinary):  # type: ignore[no-untyped-def]
    """Input and label of a token that is not special, by the u of its unit and its own draw."""
    if upper >= numbers[2]:
        return token, NOT_TRAINED
    label = token
    if numbers[5] < _SCALE and (mixed(word) >> _half) >= numbers[5]:
        label = NOT_TRAINED
    if upper < numbers[3]:
        return np.int64(numbers[1]), label
    if upper < numbers[4]:
        # The upper half of a product instead of a remainder: no division, and even to n / 2^32.
        return ordinary[((word & _low) * np.uint64(ordinary.size)) >> _half], label
    return token, label


@compiled
def _mask_units(tokens, samples, numbers, special, ordinary, begins_word, inputs, labels):  # type: ignore[no-untyped-def]
    """Words, or tokens where numbers[6] says that each is a unit of its own."""
    seed, alone = mixed(numbers[0]), numbers[6] == TOKEN
    for row in range(tokens.shape[0]):
        state = mixed(seed + samples[row]) + _before * _golden
        opens, upper = True, np.uint64(0)
        for at in range(tokens.shape[1]):
            token = tokens[row, at]
            word = mixed(state)
            state += _golden
            if alone or opens or begins_word[token]:
                upper = word >> _half
            opens = not alone and special[token]
            if upper >= numbers[2] or special[token]:
                inputs[row, at], labels[row, at] = token, NOT_TRAINED
            else:
                inputs[row, at], labels[row, at] = _put(token, upper, word, numbers, ordinary)


@compiled
def _mask_spans(tokens, samples, numbers, special, ordinary, begins_word, inputs, labels):  # type: ignore[no-untyped-def]
    seed = mixed(numbers[0])
    uppers = np.empty(MOST_IN_A_SPAN, np.uint64)  # of the spans opened at the last ten positions, a ring
    ends = np.empty(MOST_IN_A_SPAN, np.int64)
    for row in range(tokens.shape[0]):
        state = mixed(seed + samples[row])
        ends[:] = -MOST_IN_A_SPAN
        for at in range(-MOST_IN_A_SPAN, tokens.shape[1]):  # spans that opened before the row reach into it
            word = mixed(state)
            state += _golden
            slot = (at + MOST_IN_A_SPAN) % MOST_IN_A_SPAN
            uppers[slot], ends[slot] = word >> _half, at
            if (word >> _half) < numbers[2]:
                second = mixed(word) >> _half
                ends[slot] += 1
                for longer in _LONGER_CUTS:
                    ends[slot] += second < longer
            if at < 0:
                continue
            token, upper = tokens[row, at], np.uint64(_SCALE)
            for back in range(MOST_IN_A_SPAN):
                earlier = (slot - back) % MOST_IN_A_SPAN
                if ends[earlier] > at:
                    upper = uppers[earlier]
                    break
            if special[token]:
                inputs[row, at], labels[row, at] = token, NOT_TRAINED
            else:
                inputs[row, at], labels[row, at] = _put(token, upper, word, numbers, ordinary)
