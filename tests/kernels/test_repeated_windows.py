"""Repeated windows held to counting all windows, for any parts, in any order and again."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.errors import UsageError
from mickle.kernels import repeated_windows
from mickle.kernels.repeated_windows import link_windows, repeated, repeated_plain

WORD = st.integers(0, 2).flatmap(lambda most: st.lists(st.integers(0, most), max_size=150))


def fibonacci(size: int) -> list[int]:
    """A word with as many repetitions as a word can have: 0, 01, 010, 01001, ..."""
    before, word = [0], [0, 1]
    while len(word) < size:
        before, word = word, word + before
    return word[:size]


WORDS = {
    "empty": [],
    "one token": [7],
    "all equal": [3] * 300,
    "rising": list(range(200)),
    "two letters by turns": [0, 1] * 150,
    "Fibonacci": fibonacci(377),
    "Thue-Morse": [bin(i).count("1") % 2 for i in range(4096)],  # its hash is even-handed for any base
    "extremes": [255, 0, 255, 0, 0, 255],
}


@settings(max_examples=150, deadline=None)
@given(WORD, st.integers(1, 12))
def test_the_table_of_hashes_finds_what_a_table_of_windows_finds(word: list[int], length: int) -> None:
    tokens = np.array(word, dtype=np.uint8)
    found = repeated(tokens, length)
    assert found.tolist() == repeated_plain(tokens, length).tolist()
    windows = [tuple(word[i : i + length]) for i in range(len(word) - length + 1)]
    count = Counter(windows)
    for start, window in enumerate(windows):
        first = windows.index(window)
        if count[window] == 1:
            assert found[start] == -1
        else:
            assert found[start] == (first if first < start else windows.index(window, first + 1))


@pytest.mark.parametrize("length", [1, 2, 50, 1024])
@pytest.mark.parametrize("name", WORDS)
def test_awkward_words(name: str, length: int) -> None:
    for dtype in (np.uint8, np.uint64):
        tokens = np.array(WORDS[name], dtype=dtype)
        assert repeated(tokens, length).tolist() == repeated_plain(tokens, length).tolist()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), max_size=12), min_size=1, max_size=12),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(0, 1 << 64),
    st.randoms(),
)
def test_parts_do_not_change_the_links(
    documents: list[list[int]], length: int, parts: int, seed: int, random: np.random.Generator
) -> None:
    joined = [token for number, document in enumerate(documents) for token in [*document, (1 << 63) + number]]
    tokens = np.array(joined, dtype=np.uint64)
    others = np.zeros(len(tokens), dtype=np.uint32)
    turns = [*range(parts), *range(parts)]  # each part twice: one that was killed is done again
    random.shuffle(turns)
    for part in turns:
        link_windows(tokens, length, others, part, parts, seed)
    wanted = repeated_plain(tokens, length)
    if length == 1:  # a separator is a token of its own, and no window
        wanted[tokens >= 1 << 63] = -1
    assert (others.astype(np.int64) - 1).tolist() == wanted.tolist()


def test_windows_with_equal_hashes_are_told_apart_and_a_full_table_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated_windows, "SPARE", 0.01)
    monkeypatch.setattr(repeated_windows, "LEAST", 8)
    tokens = np.random.default_rng(0).integers(0, 2, 5000).astype(np.uint64)
    assert repeated(tokens, 12).tolist() == repeated_plain(tokens, 12).tolist()


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one token"):
        repeated(np.zeros(3, dtype=np.uint8), 0)
