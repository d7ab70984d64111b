"""Suffix arrays held to sorting by definition, and where that would take too long to what makes an order right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.errors import UsageError
from mickle.kernels import suffix_sorting
from mickle.kernels.ranks import ranks, ranks_plain
from mickle.kernels.suffix_sorting import suffix_array, suffix_array_plain


def fibonacci(size: int) -> list[int]:
    """A word with as many repetitions as a word can have: 0, 01, 010, 01001, ..."""
    before, word = [0], [0, 1]
    while len(word) < size:
        before, word = word, word + before
    return word[:size]


def thue_morse(size: int) -> list[int]:
    return [bin(i).count("1") % 2 for i in range(size)]


WORDS = {
    "empty": [],
    "one token": [7],
    "all equal": [3] * 300,
    "falling": list(range(200, 0, -1)),
    "rising": list(range(200)),
    "two letters by turns": [0, 1] * 150,
    "one valley": [2, 1, 2],
    "Fibonacci": fibonacci(377),
    "Thue-Morse": thue_morse(512),
    "mississippi": list(b"mississippi"),
    "extremes": [255, 0, 255, 0, 0, 255],
}


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS.keys())
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_words_that_are_hard_to_sort(word: list[int], dtype: type) -> None:
    tokens = np.array(word, dtype=dtype)
    assert suffix_array(tokens).tolist() == suffix_array_plain(tokens).tolist()


def test_a_known_suffix_array() -> None:
    assert suffix_array(np.frombuffer(b"banana", dtype=np.uint8)).tolist() == [5, 3, 1, 0, 4, 2]


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4).flatmap(lambda most: st.lists(st.integers(0, most), max_size=200)))
def test_random_words_of_few_letters(word: list[int]) -> None:
    expected = sorted(range(len(word)), key=lambda start: word[start:])
    assert suffix_array(np.array(word, dtype=np.uint8)).tolist() == expected
    assert suffix_array(np.array(word, dtype=np.uint64) << np.uint64(40)).tolist() == expected


@pytest.mark.parametrize("word", [fibonacci(200_000), thue_morse(131_072), [1] * 100_000])
def test_long_words_sort_themselves_level_by_level(word: list[int]) -> None:
    check_order(np.array(word, dtype=np.uint8))


@pytest.mark.parametrize("most", [2, 256, 100_000])
def test_long_random_words(most: int) -> None:
    drawn = np.random.default_rng(most).integers(0, most, 150_000)
    drawn[100_000:] = drawn[:50_000]  # suffixes that agree for very long
    check_order(drawn.astype(np.uint8) if most <= 256 else drawn)


def check_order(tokens: np.ndarray) -> None:
    """A permutation is the suffix array if neighbours' first tokens do not fall, and where these agree the rests of
    both are in order: linear, where comparing suffixes is quadratic.
    """
    order, size = suffix_array(tokens).astype(np.int64), len(tokens)
    rank = np.full(size + 1, -1)  # the empty suffix comes first
    rank[order] = np.arange(size)
    assert (np.bincount(order, minlength=size) == 1).all()
    left, right = order[:-1], order[1:]
    assert (tokens[left] <= tokens[right]).all()
    equal = tokens[left] == tokens[right]
    assert (rank[left + 1] < rank[right + 1])[equal].all()


def test_ranks_given_are_used_as_they_are_and_read_only_bytes_will_do() -> None:
    tokens = np.frombuffer(b"abracadabra", dtype=np.uint8)
    numbers, alphabet = ranks(tokens.astype(np.uint64))
    assert alphabet == 5
    assert suffix_array(numbers, alphabet).tolist() == suffix_array(tokens).tolist() == [
        10, 7, 0, 3, 5, 8, 1, 4, 6, 9, 2,
    ]  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1)), max_size=100))
def test_ranks_are_places_among_the_distinct_values(values: list[int]) -> None:
    tokens = np.array(values, dtype=np.uint64)
    fast, plain = ranks(tokens), ranks_plain(tokens)
    distinct = sorted(set(values))
    assert fast[0].tolist() == plain[0].tolist() == [distinct.index(value) for value in values]
    assert fast[1] == plain[1] == len(distinct)


def test_the_table_of_ranks_grows() -> None:
    tokens = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    tokens[10_000:] = tokens[9_999::-1]
    assert np.array_equal(ranks(tokens)[0], ranks_plain(tokens)[0])


def test_what_is_no_sequence_of_tokens_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in (np.zeros((2, 2), dtype=np.uint8), np.zeros(3), np.array([1, -1])):
        with pytest.raises(UsageError):
            suffix_array(wrong)
    monkeypatch.setattr(suffix_sorting, "LONGEST", 4)
    with pytest.raises(UsageError, match="5 tokens are too many"):
        suffix_array(np.zeros(5, dtype=np.uint8))
