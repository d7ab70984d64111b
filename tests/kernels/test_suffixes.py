"""Repeated windows held to counting all windows, for any parts and threads."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.errors import UsageError
from mickle.kernels import suffixes
from mickle.kernels.suffix_sorting import suffix_array
from mickle.kernels.suffixes import link_windows, repeated, repeated_plain

WORD = st.integers(0, 2).flatmap(lambda most: st.lists(st.integers(0, most), max_size=150))


@pytest.fixture(autouse=True)
def several_threads_for_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suffixes, "SMALL", 2)


@settings(max_examples=150, deadline=None)
@given(WORD, st.integers(1, 12), st.integers(1, 3))
def test_the_walk_finds_what_a_table_of_windows_finds(word: list[int], length: int, threads: int) -> None:
    tokens = np.array(word, dtype=np.uint8)
    found = repeated(tokens, length, threads)
    assert found.tolist() == repeated_plain(tokens, length).tolist()
    windows = [tuple(word[i : i + length]) for i in range(len(word) - length + 1)]
    count = Counter(windows)
    for start, window in enumerate(windows):
        first = windows.index(window)
        if count[window] == 1:
            assert found[start] == -1
        else:
            assert found[start] == (first if first < start else windows.index(window, first + 1))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 1), max_size=12), min_size=1, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.integers(1, 6),
    st.integers(1, 3),
)
def test_parts_do_not_change_the_links(
    documents: list[list[int]], breaks: list[bool], length: int, threads: int
) -> None:
    ends, joined = [0], []
    for number, document in enumerate(documents):
        joined += [*document, (1 << 63) + number]
        ends += [len(joined)] if breaks[number] or number == len(documents) - 1 else []
    tokens = np.array(joined, dtype=np.uint64)
    order = np.concatenate([suffix_array(tokens[a:b]) for a, b in pairwise(ends)])
    others = np.zeros(len(tokens), dtype=np.uint32)
    link_windows(tokens, order, np.array(ends), length, others, threads)
    assert (others.astype(np.int64) - 1).tolist() == repeated_plain(tokens, length).tolist()


def test_a_window_of_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="at least one token"):
        repeated(np.zeros(3, dtype=np.uint8), 0)
