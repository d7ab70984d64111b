"""The split of training from held-out pages: by content, stable, without overlap; and pages from files of all kinds."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mickle.data import heldout
from mickle.data.heldout import content_hash, is_heldout, read_pages, split, training_texts, write_pages
from mickle.data.pieces import pieces, single_spaced
from mickle.data.records import Page
from mickle.data.tokenizer import train_tokenizer
from mickle.errors import UsageError
from mickle.training import pretrain_data
from mickle.training.pretrain_data import split_pages

PAGES = [Page(f"u{i}", f"d{i % 2}", "en", f"page {i} has its own words {i * 7}") for i in range(400)]


def test_the_share_is_about_what_was_asked_and_counts_add_up():
    sides = split([PAGES], 0.1)
    assert sides.training_pages + len(sides.heldout) == 400
    assert 20 <= len(sides.heldout) <= 60  # 40 expected, standard deviation 6
    assert sides.training_bytes + sides.heldout_bytes == sum(len(p.text.encode()) for p in PAGES)


def test_adding_pages_moves_none():
    few = {page.url for page in split([PAGES[:200]], 0.1).heldout}
    more = {page.url for page in split([PAGES], 0.1).heldout}
    assert few == {url for url in more if int(url[1:]) < 200}


def test_a_larger_share_holds_out_a_superset():
    assert {p.url for p in split([PAGES], 0.05).heldout} < {p.url for p in split([PAGES], 0.2).heldout}


@pytest.mark.parametrize("count", [2, 3, 8, 40])
def test_of_few_pages_one_is_held_out_where_no_share_is_given(tmp_path, count):
    for first in range(0, 200, count):  # at a share of 0.1 none of 8 pages is held out in 43 of 100 cases
        write_pages(PAGES[first : first + count], tmp_path / "pages.parquet")
        if not 0 < len(split(read_pages(tmp_path), 0.1).heldout) < count:
            sides, share = split_pages(tmp_path, None)
            assert len(sides.heldout) == 1
            assert sides.training_pages == count - 1
            assert len([text for batch in training_texts(tmp_path, share) for text in batch]) == count - 1
            break
    else:
        assert count == 40


def test_copies_of_a_text_fall_on_one_side_even_with_other_white_space():
    copies = [Page(f"c{i}", "d", "en", page.text.replace(" ", "  \n")) for i, page in enumerate(PAGES)]
    sides = split([PAGES, copies], 0.1)
    assert {content_hash(p.text) for p in sides.heldout} == {content_hash(p.text) for p in split([PAGES], 0.1).heldout}
    assert sides.distinct == 400


def test_copies_are_told_by_side():
    from mickle.training.pretrain_data import count_line

    pages = [Page("", "", "en", f"the text of page {i}") for i in range(60)]
    sides = split([pages, pages, pages[:30]], 0.3)
    assert sides.distinct == 60
    assert sides.training_copies + sides.merged == 90
    line = count_line(sides, 0.3)
    assert f"copies of others among them: {sides.training_copies}; {len(sides.heldout)} held out" in line
    assert f"copies merged into them: {sides.merged};" in line
    assert "cop" not in count_line(split([pages], 0.3), 0.3)


def test_a_giant_page_is_trained_on_and_another_held_out(tmp_path, monkeypatch):
    """Of 50.2 MB the one page of 50 would be nearly all, on the wrong side."""
    giant = Page("", "", "", "many words " * 20)
    monkeypatch.setattr(heldout, "LONGEST_HELDOUT", 100)
    assert not is_heldout(giant.text, 1.0)
    write_pages([PAGES[0], giant], tmp_path / "pages.parquet")
    sides, _ = split_pages(tmp_path, None)
    assert (sides.heldout, sides.training_pages) == ((PAGES[0],), 1)
    write_pages([giant, replace(giant, text=giant.text + "more")], tmp_path / "pages.parquet")
    with pytest.raises(UsageError, match="None of the 2 pages") as caught:
        split_pages(tmp_path, None)
    assert "none of more than" in caught.value.expected


def test_a_measure_during_the_run_reads_a_bounded_text(monkeypatch):
    tokenizer = train_tokenizer(["word words " * 40], 262, or_fewer=True)
    monkeypatch.setattr(pretrain_data, "QUICK_PAGE", 60)
    stream, size = pretrain_data._quick_stream((Page("", "", "", "words " * 10_000),), tokenizer)
    assert tokenizer.decode(stream.tokens) == tokenizer.tokenizer.id_to_token(tokenizer.start) + " ".join(
        ["words"] * 10
    )
    assert size == 59


@pytest.mark.parametrize("longest", [1, 2, 7])
@given(text=st.text("ab \n\u00a0,", max_size=60))
def test_white_space_does_not_count_however_a_text_is_cut(longest, text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "__defaults__", (longest,))
        assert "".join(single_spaced(text)) == " ".join(text.split())
        assert content_hash(text) == content_hash(" ".join(text.split()))


def test_training_texts_are_the_other_side(tmp_path):
    write_pages(PAGES, tmp_path / "pages.parquet")
    texts = [text for batch in training_texts(tmp_path, 0.1) for text in batch]
    held = {page.text for page in split([PAGES], 0.1).heldout}
    assert held.isdisjoint(texts)
    assert len(held) + len(texts) == 400


def test_pages_come_back_and_bytes_repeat(tmp_path):
    write_pages(PAGES, tmp_path / "a.parquet")
    write_pages(PAGES, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert [page for batch in read_pages(tmp_path / "a.parquet") for page in batch] == PAGES


def test_columns_that_are_missing_are_empty_and_blank_pages_are_left_out(tmp_path):
    pq.write_table(pa.table({"text": ["one", "  ", None, "two"], "score": [1, 2, 3, 4]}), tmp_path / "x.parquet")
    assert [p for batch in read_pages(tmp_path) for p in batch] == [Page("", "", "", "one"), Page("", "", "", "two")]


def _corrupt(path):
    write_pages(PAGES, path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "no pages in"),
        (lambda folder: (folder / "x.parquet").write_bytes(b""), "not a whole Parquet file"),
        (lambda folder: (folder / "x.parquet").write_bytes(b"PAR1" * 9), "not a whole Parquet file"),
        (lambda folder: _corrupt(folder / "x.parquet"), "not a whole Parquet file"),
        (lambda folder: pq.write_table(pa.table({"body": ["a"]}), folder / "x.parquet"), "no column `text`"),
        (lambda folder: pq.write_table(pa.table({"text": [1]}), folder / "x.parquet"), "no column `text`"),
        (lambda folder: (folder / "card.json").write_text("{}"), "not a finished"),
    ],
)
def test_bad_sources(tmp_path, make, said):
    make(tmp_path)
    with pytest.raises(UsageError, match=said):
        list(read_pages(tmp_path))


def test_a_missing_source():
    with pytest.raises(UsageError, match="nothing at"):
        list(read_pages(Path("nowhere")))
