"""Masks: the compiled kernel equals its definition, and both have the shares and independence they should."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.errors import UsageError
from mickle.kernels.masking import (
    MOST_IN_A_SPAN,
    SPAN,
    TOKEN,
    WORD,
    Vocabulary,
    cuts,
    mask_tokens,
    mask_tokens_plain,
    span_start_rate,
)

UNITS = {"token": TOKEN, "word": WORD, "span": SPAN}


def vocabulary(size: int, special: list[int], openers: float = 0.6) -> Vocabulary:
    marks = np.zeros(size, bool)
    marks[special] = True
    begins = np.random.default_rng(1).random(size) < openers
    return Vocabulary(special[-1], marks, np.flatnonzero(~marks).astype(np.int64), begins)


WORDS = vocabulary(500, [0, 3, 7])
TEXT = np.random.default_rng(2).choice(WORDS.ordinary, (500, 128))
ROWS = np.arange(500)
N = TEXT.size


def within(count: int, n: int, p: float) -> bool:
    """Whether a count of n independent events is within 4 standard deviations of n p."""
    return abs(count - n * p) <= 4 * math.sqrt(n * p * (1 - p)) + 1e-9


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(0, 4),
    length=st.integers(0, 30),
    seed=st.integers(0, 2**33),
    rate=st.sampled_from([0.0, 0.02, 0.15, 0.5, 0.9, 1.0]),
    shares=st.sampled_from([(0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.5, 0.5)]),
    subset=st.sampled_from([None, 0.1, 0.5]),
    unit=st.sampled_from(sorted(UNITS.values())),
    draw=st.integers(0, 2**31),
)
def test_the_kernel_equals_its_definition(rows, length, seed, rate, shares, subset, unit, draw):
    generator = np.random.default_rng(draw)
    words = vocabulary(12, [0, 5], 0.4)
    tokens = generator.integers(0, 12, (rows, length))
    samples = generator.integers(0, 2**40, rows)
    limits = cuts(rate, *shares, unit, subset)
    fast = mask_tokens(tokens, samples, seed, words, limits, unit)
    for ours, defined in zip(fast, mask_tokens_plain(tokens, samples, seed, words, limits, unit), strict=True):
        assert np.array_equal(ours, defined)
        assert ours.dtype == np.int64


@pytest.mark.parametrize("rate", [0.15, 0.3])
def test_counts_are_binomial_and_split_80_10_10(rate):
    inputs, labels = mask_tokens(TEXT, ROWS, 3, WORDS, cuts(rate, 0.8, 0.1))
    chosen = labels >= 0
    n = int(chosen.sum())
    assert within(n, N, rate)
    assert np.array_equal(labels[chosen], TEXT[chosen])
    assert np.array_equal(inputs[~chosen], TEXT[~chosen])
    assert within(int((inputs == WORDS.mask).sum()), n, 0.8)
    # A random token is the token itself once in a vocabulary: then it looks unchanged.
    same = 0.1 + 0.1 / len(WORDS.ordinary)
    assert within(int((chosen & (inputs == TEXT)).sum()), n, same)


def test_random_tokens_are_uniform_over_the_ordinary_ones():
    inputs, _ = mask_tokens(TEXT, ROWS, 4, WORDS, cuts(1.0, 0.0, 1.0))
    counts = np.bincount(inputs.ravel(), minlength=500)
    assert counts[[0, 3, 7]].sum() == 0
    expected = N / len(WORDS.ordinary)
    chi = ((counts[WORDS.ordinary] - expected) ** 2 / expected).sum()
    degrees = len(WORDS.ordinary) - 1
    assert abs(chi - degrees) < 4 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_special_tokens_never(unit):
    tokens = np.random.default_rng(5).integers(0, 500, (300, 64))
    tokens[:, ::3] = 0
    inputs, labels = mask_tokens(tokens, np.arange(300), 5, WORDS, cuts(1.0, 0.5, 0.5, unit), unit)
    marks = WORDS.special[tokens]
    assert np.array_equal(inputs[marks], tokens[marks])
    assert (labels[marks] == -100).all()
    assert (labels[~marks] == tokens[~marks]).all()
    assert not np.isin(inputs[~marks], [0, 3]).any()  # 7 is the mask


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_what_a_lower_rate_chooses_a_higher_one_chooses_too(unit):
    before = np.zeros(TEXT.shape, bool)
    for rate in (0.05, 0.15, 0.2, 0.3, 0.6, 1.0):
        chosen = mask_tokens(TEXT, ROWS, 6, WORDS, cuts(rate, 0.8, 0.1, unit), unit)[1] >= 0
        assert (chosen >= before).all()
        before = chosen
    assert before.all()


@pytest.mark.parametrize("unit", UNITS.values(), ids=UNITS)
def test_nothing_at_rate_zero_and_every_unit_has_the_asked_share(unit):
    nothing = mask_tokens(TEXT, ROWS, 7, WORDS, cuts(0.0, 0.8, 0.1, unit), unit)
    assert np.array_equal(nothing[0], TEXT)
    assert (nothing[1] == -100).all()
    chosen = mask_tokens(TEXT, ROWS, 7, WORDS, cuts(0.2, 0.8, 0.1, unit), unit)[1] >= 0
    rows = chosen.mean(axis=1)  # rows are independent, tokens of a word or a span are not
    assert abs(rows.mean() - 0.2) < 4 * rows.std() / math.sqrt(len(rows))
    columns = chosen[:, :3].mean()  # spans reach into a row from before it: the first tokens fare no better
    assert abs(columns - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 500)


def test_a_word_is_hidden_as_a_whole():
    inputs, labels = mask_tokens(TEXT, ROWS, 8, WORDS, cuts(0.3, 0.5, 0.2, WORD), WORD)
    inside = ~WORDS.begins_word[TEXT[:, 1:]]  # goes on with the word before it
    chosen, masked = labels >= 0, inputs == WORDS.mask
    assert (chosen[:, 1:] == chosen[:, :-1])[inside].all()
    assert (masked[:, 1:] == masked[:, :-1])[inside].all()
    assert (chosen[:, 1:] != chosen[:, :-1])[~inside].any()


def test_spans_have_the_length_of_a_geometric_cut_at_ten():
    # So rare that two spans hardly ever touch; the longest is ten, the mean sum_j (2/3)^j, j < 10.
    tokens = np.random.default_rng(9).choice(WORDS.ordinary, (40, 8000))
    chosen = mask_tokens(tokens, np.arange(40), 9, WORDS, cuts(0.01, 0.8, 0.1, SPAN), SPAN)[1] >= 0
    edges = np.diff(np.pad(chosen.astype(int), ((0, 0), (1, 1))), axis=1)
    lengths = np.concatenate([np.flatnonzero(row < 0) - np.flatnonzero(row > 0) for row in edges])
    assert MOST_IN_A_SPAN in lengths
    expected = sum((2 / 3) ** j for j in range(10))
    assert abs(lengths.mean() - expected) < 4 * lengths.std() / math.sqrt(len(lengths)) + 0.05
    assert (lengths > 10).mean() < 0.02


def test_the_span_rate_by_pencil():
    # At a tiny rate no spans overlap: the rate is s times the mean length.
    assert span_start_rate(1e-6) == pytest.approx(1e-6 / sum((2 / 3) ** j for j in range(10)), rel=1e-4)
    for rate in (0.15, 0.4, 0.9):
        s = span_start_rate(rate)
        assert math.prod(1 - s * (2 / 3) ** j for j in range(10)) == pytest.approx(1 - rate)


def test_the_subset_has_the_inputs_of_the_whole_and_its_share_of_labels():
    whole = mask_tokens(TEXT, ROWS, 10, WORDS, cuts(0.3, 0.8, 0.1))
    part = mask_tokens(TEXT, ROWS, 10, WORDS, cuts(0.3, 0.8, 0.1, TOKEN, 0.15))
    assert np.array_equal(whole[0], part[0])
    kept, chosen = part[1] >= 0, whole[1] >= 0
    assert (kept <= chosen).all()
    assert within(int(kept.sum()), N, 0.15)
    # A kept label says nothing of what stands in the token's place.
    assert within(int((kept & (part[0] == WORDS.mask)).sum()), int(kept.sum()), 0.8)
    assert np.array_equal(mask_tokens(TEXT, ROWS, 10, WORDS, cuts(0.1, 0.8, 0.1, TOKEN, 0.15))[1],
                          mask_tokens(TEXT, ROWS, 10, WORDS, cuts(0.1, 0.8, 0.1))[1])  # fmt: skip


def test_a_mask_belongs_to_its_sample_and_position():
    limits = cuts(0.3, 0.8, 0.1)
    whole = mask_tokens(TEXT, ROWS, 11, WORDS, limits)
    for unit in UNITS.values():
        some = cuts(0.3, 0.8, 0.1, unit)
        every = mask_tokens(TEXT, ROWS, 11, WORDS, some, unit)
        part = mask_tokens(TEXT[100:105], ROWS[100:105], 11, WORDS, some, unit)
        assert all(np.array_equal(a[100:105], b) for a, b in zip(every, part, strict=True))
    cut = mask_tokens(TEXT[:, :50], ROWS, 11, WORDS, limits)
    assert np.array_equal(whole[1][:, :50], cut[1])
    # Neighbouring samples, seeds and positions have nothing to do with each other.
    chosen = whole[1] >= 0
    other = mask_tokens(TEXT, ROWS, 12, WORDS, limits)[1] >= 0
    for pair in (chosen & other, chosen[1:] & chosen[:-1], chosen[:, 1:] & chosen[:, :-1]):
        assert within(int(pair.sum()), pair.size, 0.09)


def test_shares_that_are_no_probabilities():
    for wrong in ((1.5, 0.8, 0.1), (-0.1, 0.8, 0.1), (0.3, 0.8, 0.3), (0.3, -0.1, 0.3)):
        with pytest.raises(UsageError, match="no probabilities"):
            cuts(*wrong)


@pytest.mark.parametrize("wrong", [-1, 500])
def test_tokens_of_another_vocabulary(wrong):
    tokens = TEXT[:2, :5].copy()
    tokens[1, 3] = wrong
    with pytest.raises(UsageError, match="do not belong"):
        mask_tokens(tokens, ROWS[:2], 0, WORDS, cuts(0.3, 0.8, 0.1))
