"""Repeated spans of documents held to counting all windows; parts, threads and a killed run change nothing."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.data import repeated_spans
from mickle.data.repeated_spans import Span, find_spans
from mickle.data.repeated_text import PART_TOKENS, RepeatedText
from mickle.errors import UsageError

CORPUS = st.lists(st.lists(st.integers(0, 1), max_size=30), max_size=8)
DRAWN = np.random.default_rng(0)


def search(length: int = 50, first: bool = False, part_tokens: int = PART_TOKENS) -> RepeatedText:
    return RepeatedText(length=length, keep="first" if first else "none", part_tokens=part_tokens)


def spans_of(documents: list[list[int]], settings: RepeatedText, threads: int = 1) -> list[list[Span]]:
    with TemporaryDirectory() as scratch:
        return list(find_spans([np.array(d, np.uint32) for d in documents], settings, Path(scratch), threads))


def windows_of(documents: list[list[int]], length: int) -> list[list[tuple[int, ...]]]:
    return [[tuple(d[i : i + length]) for i in range(len(d) - length + 1)] for d in documents]


@settings(max_examples=80, deadline=None)
@given(CORPUS, st.integers(1, 8), st.integers(1, 40), st.integers(1, 3))
def test_spans_are_the_tokens_of_all_windows_seen_twice(
    documents: list[list[int]], length: int, part_tokens: int, threads: int
) -> None:
    windows = windows_of(documents, length)
    count = Counter(window for own in windows for window in own)
    found = spans_of(documents, search(length, False, part_tokens), threads)
    assert len(found) == len(documents)
    for own, spans in zip(windows, found):
        covered = {i + d for i, window in enumerate(own) if count[window] > 1 for d in range(length)}
        assert covered == {token for span in spans for token in range(span.start, span.end)}
        assert all(a.end < b.start for a, b in pairwise(spans))


@settings(max_examples=80, deadline=None)
@given(CORPUS, st.integers(1, 8), st.integers(1, 40))
def test_twins_hold_the_window_and_keep_first_keeps_the_first(
    documents: list[list[int]], length: int, part_tokens: int
) -> None:
    windows = windows_of(documents, length)
    for first in (False, True):
        for number, spans in enumerate(spans_of(documents, search(length, first, part_tokens))):
            for span in spans:
                assert not first or span.twin <= number
                if not first:
                    own = windows[number][span.start]
                    elsewhere = [n for n, of in enumerate(windows) for w in of if w == own]
                    assert span.twin == (elsewhere[1] if windows[elsewhere[0]].index(own) == span.start
                                         and elsewhere[0] == number else elsewhere[0])  # fmt: skip


@pytest.mark.parametrize(("shared", "found"), [(49, 0), (50, 50), (51, 51)])
@pytest.mark.parametrize("first", [False, True])
def test_a_span_of_fifty_tokens_counts_and_one_of_49_does_not(shared: int, found: int, first: bool) -> None:
    tokens = DRAWN.permutation(10_000).tolist()  # all different
    common = tokens[:shared]
    documents = [tokens[100:130] + common + tokens[130:140], [], tokens[200:210] + common, tokens[300:320]]
    spans = spans_of(documents, search(50, first, 70))
    kept = [] if first or not found else [Span(30, 30 + found, 2)]
    assert spans == [kept, [], [Span(10, 10 + found, 0)] if found else [], []]


def test_one_document_over_and_over() -> None:
    document = DRAWN.integers(0, 1000, 60).tolist()
    assert spans_of([document] * 3, search(50)) == [[Span(0, 60, n)] for n in (1, 0, 0)]
    assert spans_of([document] * 3, search(50, True)) == [[], [Span(0, 60, 0)], [Span(0, 60, 0)]]
    assert spans_of([[1] * 100], search(50, True)) == [[Span(50, 100, 0)]]
    assert spans_of([], search(50)) == []
    assert spans_of([[], []], search(50)) == [[], []]


def test_a_killed_search_goes_on_with_its_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [DRAWN.integers(0, 2, 30) for _ in range(10)]
    parts = search(10, part_tokens=31)
    link, linked = repeated_spans.link_windows, []

    def killed_in_the_fourth(*given: Any) -> None:
        link(*given)  # it had come far
        if len(linked) == 3:
            raise KeyboardInterrupt
        linked.append(given)

    monkeypatch.setattr(repeated_spans, "link_windows", killed_in_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        list(find_spans(documents, parts, tmp_path))
    linked.clear()
    monkeypatch.setattr(repeated_spans, "link_windows", lambda *given: linked.append(given) or link(*given))
    heard: list[int] = []
    found = list(find_spans(documents, parts, tmp_path, 1, heard.append))
    assert (len(linked), sum(heard)) == (7, 310)
    assert found == spans_of([d.tolist() for d in documents], parts)
    # Other documents in the same folder, as many tokens: nothing of the first search is taken for theirs.
    others = [d[::-1].copy() for d in documents]
    assert list(find_spans(others, parts, tmp_path)) == spans_of([d.tolist() for d in others], parts)


def test_tokens_that_look_like_separators_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="below 2"):
        list(find_spans([np.array([1 << 63], np.uint64)], search(), tmp_path))
