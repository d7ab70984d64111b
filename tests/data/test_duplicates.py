"""Exact duplicates: the first stays, every later one names it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from plain_stages import exact_duplicates

from mickle.data.comparing import content_hash, page_keys
from mickle.data.records import Failure, Page, Removed, remove


def pages(texts: list[str]) -> list[Page]:
    return [Page(f"u{i}", "d", "en", text) for i, text in enumerate(texts)]


def test_by_example() -> None:
    found = list(exact_duplicates(pages(["a b", "c", "a  b\n", "a b"])))
    assert [type(page) for page in found] == [Page, Page, Removed, Removed]
    twins = [(page.twin, page.value) for page in found if isinstance(page, Removed)]
    assert twins == [("u0", 1.0), ("u0", 2.0)]


@given(st.lists(st.sampled_from("abcdef")))
def test_one_page_of_every_text_stays_and_it_is_the_first(texts: list[str]) -> None:
    kept = [page for page in exact_duplicates(pages(texts)) if not isinstance(page, Removed)]
    assert [page.text for page in kept] == list(dict.fromkeys(texts))
    assert list(exact_duplicates(kept)) == kept


def test_a_page_removed_before_is_nobodys_twin() -> None:
    first, second = pages(["a", "a"])
    gone = remove(first, "length", Failure("text is too short", 1.0, 2.0))
    assert list(exact_duplicates([gone, second])) == [gone, second]


def test_the_hash_has_128_bits_and_ignores_layout_only() -> None:
    assert len(content_hash("x")) == 16
    assert content_hash("a b") == content_hash(" a\n b ") != content_hash("ab")


def test_names_that_are_no_addresses_are_not_taken_for_one() -> None:
    """Rows without an address are FILE#ROW, files in folders such as C# have their path, rows of other tools an id."""
    names = [
        "rows.jsonl#1",
        "rows.jsonl#2",
        "C#/kiln.md",
        "C#/wheel.md",
        "id?x#1",
        "id?x#2",
        "README.md",
        "readme.md",
        "",
        "",
    ]
    addresses = ["https://a.org/x#1", "http://www.A.org/x/", "www.a.org/x#2", "//a.org/x"]
    keys = page_keys([Page(name, "", "en", f"text {i}") for i, name in enumerate([*names, *addresses])])
    assert len({tuple(key) for key in keys[: len(names), 2:].tolist()}) == len(names)
    assert len({tuple(key) for key in keys[len(names) :, 2:].tolist()}) == 1
