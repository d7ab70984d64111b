"""Spans held to covering token by token; what keep-first leaves is unique."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.kernels.repeated_windows import repeated, spans, spans_plain

WORD = st.integers(0, 2).flatmap(lambda most: st.lists(st.integers(0, most), max_size=150))


@settings(max_examples=200, deadline=None)
@given(WORD, st.integers(1, 12), st.booleans(), st.data())
def test_spans_cover_what_single_tokens_do(word: list[int], length: int, first: bool, data: st.DataObject) -> None:
    others = repeated(np.array(word, dtype=np.uint8), length) + 1
    start = data.draw(st.integers(0, len(word)))
    end = data.draw(st.integers(start, len(word)))
    found = [tuple(span) for span in spans(others, start, end, length, first).tolist()]
    assert found == spans_plain(others, start, end, length, first)


@settings(max_examples=200, deadline=None)
@given(WORD, st.integers(1, 8))
def test_what_keep_first_leaves_is_unique_but_for_joins(word: list[int], length: int) -> None:
    others = repeated(np.array(word, dtype=np.uint8), length) + 1
    left = list(range(len(word)))
    for start, end, _ in reversed(spans(others, 0, len(word), length, True).tolist()):
        del left[start:end]
    windows = [left[i : i + length] for i in range(len(left) - length + 1)]
    whole = [tuple(word[i] for i in window) for window in windows if window[-1] - window[0] == length - 1]
    assert len(whole) == len(set(whole))


def test_an_overlap_with_itself_leaves_the_first_window() -> None:
    others = repeated(np.zeros(100, dtype=np.uint8), 50) + 1
    assert spans(others, 0, 100, 50, True).tolist() == [[50, 100, 0]]
    assert spans(others, 0, 100, 50, False).tolist() == [[0, 100, 1]]
