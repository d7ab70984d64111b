"""Repeated text: what goes and what stays of known pages, reversibly, in whole characters."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_stages import repeated_text, restore

from mickle.config import to_yaml, validate
from mickle.data.records import Page, Removed, cut
from mickle.data.repeated_spans import find_repeated
from mickle.data.repeated_text import STAGE, Range, RepeatedText
from mickle.errors import UsageError

DRAWN = random.Random(0)


def words(count: int) -> str:
    """Words that occur nowhere else, one piece each."""
    return " ".join("".join(DRAWN.choice("abcdefghijklmnopqrstuvwxyzéß") for _ in range(12)) for _ in range(count))


def page(text: str, name: str = "a") -> Page:
    return Page(f"https://a.org/{name}", "a.org", "en", text)


SHARED = " " + words(60)
A, B = words(30), words(40)


def test_a_shared_passage_is_cut_from_both_pages_and_says_where_else_it_stands() -> None:
    out = list(repeated_text([page(A + SHARED, "a"), page(B + SHARED + " " + A[:50], "b")], RepeatedText()))
    first, kept, second, rest = out
    assert isinstance(first, Removed) and isinstance(second, Removed)
    assert (first.text, first.start, first.twin) == (SHARED, len(A), "https://a.org/b")
    assert (second.text, second.start, second.twin) == (SHARED, len(B), "https://a.org/a")
    assert (first.stage, first.reason, first.value, first.limit) == (STAGE, "span occurs elsewhere", 60, 50)
    assert [type(kept), type(rest)] == [Page, Page]
    assert (kept.text, rest.text) == (A, B + " " + A[:50])


def test_the_first_occurrence_stays_if_asked() -> None:
    pages = [page(A + SHARED, "a"), page(B + SHARED, "b")]
    out = list(repeated_text(pages, RepeatedText(keep="first")))
    assert out[0] == pages[0]
    assert [(o.text, type(o)) for o in out[1:]] == [(SHARED, Removed), (B, Page)]


def test_a_page_with_too_little_left_goes_whole() -> None:
    nineteen, twenty = "x" * 19, "y" * 20
    pages = [page(nineteen + SHARED, "a"), page(twenty + SHARED, "b"), page("short", "c")]
    out = list(repeated_text(pages, RepeatedText()))
    assert [(type(o), o.text) for o in out] == [
        (Removed, nineteen + SHARED), (Removed, SHARED), (Page, twenty), (Page, "short"),
    ]  # fmt: skip
    gone = out[0]
    assert isinstance(gone, Removed)
    assert (gone.value, gone.limit, gone.start, gone.twin) == (19, 20, -1, "https://a.org/b")


def test_what_is_left_is_measured_by_its_script() -> None:
    pages = [page(left + SHARED, name) for left, name in (("柴火烧两天一夜", "a"), ("柴火烧两天一", "b"))]
    out = [one for one in repeated_text(pages, RepeatedText()) if not (isinstance(one, Removed) and one.start >= 0)]
    assert [type(one) for one in out] == [Page, Removed]  # seven letters are as 21 Latin ones, six as 18


@pytest.mark.parametrize(("above", "gone"), [(0.6, False), (0.5999, True), (0.0, True)])
def test_pages_are_dropped_by_their_share(above: float, gone: bool) -> None:
    pages = [page(B + SHARED, "a"), page(words(400) + SHARED + ".", "b"), page(A, "c")]  # 60 pieces of 100, of 461
    out = list(repeated_text(pages, RepeatedText(policy="drop", drop_above=above)))
    assert [o.text for o in out] == [p.text for p in pages]
    assert [isinstance(o, Removed) for o in out] == [gone, above == 0, False]
    if gone:
        assert isinstance(out[0], Removed)
        assert (out[0].value, out[0].limit, out[0].twin) == (0.6, above, "https://a.org/b")


def test_removed_pages_pass_untouched_and_are_not_compared() -> None:
    gone = Removed("u", "d", "en", A + SHARED, stage="length", reason="r", value=1.0)
    kept = page(B + SHARED)
    assert list(repeated_text([gone, kept, gone], RepeatedText())) == [gone, kept, gone]
    assert list(repeated_text([], RepeatedText())) == []


TEXTS = st.lists(
    st.lists(st.sampled_from(["a ", "b", " 漢", "字", "\n\n", "é", "😀", " 1"]), max_size=40).map("".join), max_size=6
)


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 6), st.sampled_from(["none", "first"]))
def test_pieces_put_back_give_every_text(texts: list[str], length: int, keep: str) -> None:
    setting = RepeatedText(length=length, keep=keep, least_left=0)  # type: ignore[arg-type]
    pieces: list[tuple[int, str]] = []
    whole = []
    for out in repeated_text([page(text) for text in texts], setting):
        if isinstance(out, Removed):
            pieces.append((out.start, out.text))
        else:
            whole.append(restore(out.text, pieces))
            pieces = []
    assert whole == texts


@given(st.text(max_size=30), st.lists(st.integers(0, 30), max_size=8))
def test_cutting_and_restoring(text: str, places: list[int]) -> None:
    ends = sorted({min(place, len(text)) for place in places})
    ranges = list(zip(ends[::2], ends[1::2]))
    left, pieces = cut(text, ranges)
    assert restore(left, pieces) == text
    assert left == "".join(c for i, c in enumerate(text) if not any(a <= i < b for a, b in ranges))
    assert pieces == [(a, text[a:b]) for a, b in ranges]


def test_parts_of_a_hundred_tokens_and_threads_find_the_same(tmp_path: Path) -> None:
    sentences = [words(9) + "." for _ in range(60)]
    texts = [" ".join(DRAWN.choices(sentences, k=DRAWN.randrange(12))) for _ in range(60)]
    found = [
        list(find_repeated(texts, RepeatedText(length=10, part_tokens=size), tmp_path / str(i), threads))
        for i, (size, threads) in enumerate([(1 << 26, 1), (100, 1), (100, 2), (1 << 26, 3)])
    ]
    assert sum(len(one.ranges) for one in found[0]) > 20
    assert found[1:] == found[:1] * 3


def test_ranges_are_characters_of_whole_pieces(tmp_path: Path) -> None:
    texts = ["x 漢字漢字 y", "z 漢字漢字"]
    found = list(find_repeated(texts, RepeatedText(length=4), tmp_path))
    assert [one.ranges for one in found] == [[Range(1, 6, 4, 1)], [Range(1, 6, 4, 0)]]
    assert [one.tokens for one in found] == [6, 5]


def test_a_cut_may_join_a_new_repetition_which_a_second_pass_finds() -> None:
    left, right = words(30), " " + words(30)
    pages = [page(left + SHARED + right, "a"), page(words(9) + SHARED, "b"), page(left + right, "c")]
    once = list(repeated_text(pages, RepeatedText(keep="first")))
    kept = [o for o in once if not isinstance(o, Removed)]
    assert [o.text for o in kept] == [pages[0].text, pages[1].text[: -len(SHARED)], left + right]
    once = list(repeated_text([pages[1], pages[0], pages[2]], RepeatedText(keep="first")))
    kept = [o for o in once if not isinstance(o, Removed)]
    assert kept[1].text == kept[2].text == left + right
    twice = list(repeated_text(kept, RepeatedText(keep="first")))
    assert [o.text for o in twice if isinstance(o, Removed)] == [left + right]


def test_settings_are_strict() -> None:
    assert "length: 50" in to_yaml(RepeatedText())
    for wrong in ({"length": 0}, {"keep": "last"}, {"drop_above": 1.5}, {"lengths": 3}):
        with pytest.raises(UsageError):
            validate(RepeatedText, wrong)
