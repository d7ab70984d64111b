"""Repeated n-grams: the compiled functions equal their definition, and both equal what can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.kernels.repetitions import join, most_frequent, most_frequent_plain, repeated, repeated_plain

OVERLAPS = ("greedy", "mask")
# Words that run together to the same text, that hold a space, nothing, or what is no character of a valid text.
WORDS = st.sampled_from(["a", "b", "ab", "ba", "aa", "a b", "", " ", "é", "\u0301", "\ud800", "\0", "𝒳", "w" * 40])


def fast_most_frequent(words: list[str], n: int) -> int:
    return most_frequent(join(words, " "), n)


def fast_repeated(words: list[str], n: int, overlap: str) -> int:
    return repeated(join(words), n, overlap)


@settings(max_examples=400, deadline=None)
@given(words=st.lists(WORDS, max_size=60) | st.lists(st.sampled_from("ab"), max_size=200), n=st.integers(1, 12))
def test_fast_versions_equal_the_plain_ones(words: list[str], n: int) -> None:
    assert fast_most_frequent(words, n) == most_frequent_plain(words, n)
    for overlap in OVERLAPS:
        assert fast_repeated(words, n, overlap) == repeated_plain(words, n, overlap)


@settings(max_examples=200, deadline=None)
@given(words=st.lists(st.sampled_from(["a", "b", "ab", "c"]), max_size=40), n=st.integers(1, 6))
def test_mask_is_every_word_of_a_window_that_stood_earlier(words: list[str], n: int) -> None:
    windows = ["".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    covered = {j for i, window in enumerate(windows) if window in windows[:i] for j in range(i, i + n)}
    masked = repeated_plain(words, n, "mask")
    assert masked == sum(len(words[j]) for j in covered)
    assert repeated_plain(words, n, "greedy") <= masked


def test_by_pencil() -> None:
    # "p q r" comes back at word 4; "q r s" at word 5, inside the jump.
    words = ["p", "q", "r", "s", "p", "q", "r", "s"]
    for count in (repeated_plain, fast_repeated):
        assert count(words, 3, "greedy") == 3
        assert count(words, 3, "mask") == 4
    # "a bb" twice and "bb a" twice: the one that comes first is taken, 4 characters with its space.
    for count in (most_frequent_plain, fast_most_frequent):
        assert count(["a", "bb", "a", "bb", "a"], 2) == 8
        assert count(["a", "bbbb", "c", "dd"], 2) == 6  # all stand once: the first
        assert count(["word"], 2) == 0


@pytest.mark.parametrize("n", [1, 2, 5, 10])
@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 12, 3000])
def test_one_word_again_and_again(size: int, n: int) -> None:
    words = ["word"] * size
    assert fast_most_frequent(words, n) == max(0, size - n + 1) * (5 * n - 1)
    assert fast_repeated(words, n, "greedy") == max(0, size - 1) // n * n * 4
    assert fast_repeated(words, n, "mask") == (4 * (size - 1) if size > n else 0)


def test_ngrams_are_the_same_where_their_characters_are() -> None:
    for count in (repeated_plain, fast_repeated):
        assert count(["can", "not", "cannot", ""], 2, "greedy") == 6
    for count in (most_frequent_plain, fast_most_frequent):
        assert count(["can", "not", "cannot", ""], 2) == len("can not")


def test_texts_whose_hashes_agree_are_told_apart() -> None:
    # The sequence of Thue and Morse and its complement have one hash modulo 2^64 whatever the odd base.
    bits = np.array([bin(i).count("1") % 2 for i in range(2048)])
    words = ["".join("ab"[bit] for bit in bits), "".join("ba"[bit] for bit in bits)]
    joined = join(words)
    hashes = np.diff(joined.sums) * joined.inverses[:2]
    assert hashes[0] == hashes[1]
    assert words[0] != words[1]
    assert fast_repeated(words, 1, "mask") == 0
    assert fast_repeated([*words, words[1]], 1, "mask") == 2048


def test_many_words_take_linear_time() -> None:
    # Quadratic work would be 10^11 steps here.
    words = [f"w{i % 150_000}" for i in range(300_000)]
    assert fast_repeated(words, 5, "greedy") == sum(map(len, words[150_000:]))
