"""Page templates: the main text is in every page, whole and in order, and so is what is not main text."""

from __future__ import annotations

import html
import re

import pytest
from known_articles import articles

from mickle.studies.blocks import Block, truth
from mickle.studies.templates import HELDOUT, TUNING, wrap

BLOCKS = (
    Block("heading", "Rivers & bridges"),
    Block("paragraph", "The Rhine <flows> from the Alps to the sea, past nine castles."),
    Block("list", items=("first thing", "second thing")),
    Block("code", "a = 1\nif a < 3:\n    b = 2"),
    Block("table", items=("river\tlength", "Rhine\t1233")),
    Block("heading", "Second part"),
    Block("paragraph", "A barge needs three days from the mill to the harbour."),
)
FAMILIES = TUNING + HELDOUT


def words(page: str) -> str:
    """A page's visible words, apart by single spaces."""
    page = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def test_truth_by_example() -> None:
    assert truth(BLOCKS) == (
        "Rivers & bridges\n\nThe Rhine <flows> from the Alps to the sea, past nine castles.\n\n"
        "- first thing\n- second thing\n\n"
        "a = 1\nif a < 3:\n    b = 2\n\nriver | length\nRhine | 1233\n\nSecond part\n\n"
        "A barge needs three days from the mill to the harbour."
    )


def test_families_are_many_and_apart() -> None:
    assert len(set(FAMILIES)) == len(FAMILIES) >= 12
    assert not set(TUNING) & set(HELDOUT)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_all_of_the_text_is_in_the_page_in_order(family: str, seed: int) -> None:
    page = words(wrap(BLOCKS, seed, family))
    place = 0
    for block in BLOCKS[1:]:
        for piece in (block.text, *block.items):
            for word in " ".join(piece.split("\t")).split():
                place = page.index(word, place) + len(word)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_page_is_a_function_of_its_seed_and_more_than_its_text(family: str) -> None:
    page = wrap(BLOCKS, 1, family)
    assert page == wrap(BLOCKS, 1, family)
    assert page != wrap(BLOCKS, 2, family)
    assert len(words(page).split()) > 1.3 * len(truth(BLOCKS).split())


def test_no_two_families_share_the_names_of_their_elements() -> None:
    names = {}
    for family in FAMILIES:
        page = wrap(BLOCKS, 3, family)
        names[family] = frozenset(re.findall(r'(?:class|id)="([^"]{4,})"', page))
    for one in FAMILIES:
        for other in FAMILIES:
            shared = names[one] & names[other] - {"data", "content", "search", "comments", "footer"}
            assert one == other or len(shared) <= 2, (one, other, shared)


def test_pages_without_heading_and_without_text_are_pages() -> None:
    assert "Untitled" in wrap([], 0, "portal")
    with pytest.raises(ValueError, match="no family 'x'"):
        wrap([], 0, "x")


def test_articles_are_deterministic_and_of_all_kinds() -> None:
    some = list(articles(60, seed=1))
    assert some == list(articles(60, seed=1))
    assert {block.kind for blocks in some for block in blocks} == {"heading", "paragraph", "list", "code", "table"}
    assert all(len(blocks) >= 3 for blocks in some)
    plain = [block for blocks in articles(60, seed=1, technical=0.0) for block in blocks]
    assert not {"code", "table"} & {block.kind for block in plain}
