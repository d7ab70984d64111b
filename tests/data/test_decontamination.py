"""Evaluation items hidden in pages are found by their words, and only they."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from pyarrow import Table, parquet

from mickle.data.decontamination import Decontamination, decontaminate, index_of
from mickle.data.records import Page, Removed
from mickle.errors import UsageError

WORDS = [f"{a}{b}{c}" for a in "bcdfg" for b in "aeiou" for c in "lmnrst"]


def words(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def page(text: str) -> Page:
    return Page("https://a.org/", "a.org", "en", text)


ITEM = words(40, seed=1)


@pytest.fixture
def items(tmp_path: Path) -> Path:
    rows = [
        {"question": words(30, seed=2), "choices": ["yes", "no"]},
        {"question": ITEM, "answer": {"text": words(20, seed=3)}},
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


def test_a_planted_item_is_found_a_hundred_times_of_a_hundred(items: Path) -> None:
    settings = Decontamination(against=[items])
    runs = ITEM.split()
    for seed in range(100):
        start = seed % 28
        quoted = " ".join(runs[start : start + 13])
        gone = decontaminate(page(f"{words(200, seed + 50)} so {quoted.upper()}! So {words(50, seed + 500)}"), settings)
        assert isinstance(gone, Removed)
        assert (gone.stage, gone.twin, gone.value) == ("decontamination", "test.jsonl#2", 1.0)


def test_twelve_words_are_not_enough_and_other_pages_stay(items: Path) -> None:
    settings = Decontamination(against=[items])
    near = page(f"{words(60, 7)} {' '.join(ITEM.split()[:12])} {words(60, 8)}")
    assert decontaminate(near, settings) is near
    assert decontaminate(page(""), settings).text == ""
    assert isinstance(decontaminate(near, Decontamination(against=[items], words=12)), Removed)


def test_shared_runs_can_be_asked_for(items: Path) -> None:
    text = page(f"{words(60, 7)} {' '.join(ITEM.split()[:15])} {words(60, 8)}")  # three runs of 13
    assert isinstance(decontaminate(text, Decontamination(against=[items], shared=3)), Removed)
    assert not isinstance(decontaminate(text, Decontamination(against=[items], shared=4)), Removed)


def test_every_form_of_set_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(ITEM)
    (tmp_path / "a.json").write_text(json.dumps([{"x": [{"deep": ITEM}]}]))
    parquet.write_table(Table.from_pylist([{"q": ITEM}]), tmp_path / "a.parquet")
    for name, twin in (("a.txt", "a.txt"), ("a.json", "a.json#1"), ("a.parquet", "a.parquet#1")):
        gone = decontaminate(page(ITEM), Decontamination(against=[tmp_path / name]))
        assert isinstance(gone, Removed)
        assert gone.twin == twin


def test_no_set_keeps_every_page() -> None:
    assert decontaminate(page(ITEM), Decontamination()).text == ITEM


def test_bad_sets_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        decontaminate(page("x"), Decontamination(against=[tmp_path / "none.jsonl"]))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"q": "fine"}\n{"q": \n')
    with pytest.raises(UsageError, match="not JSON") as caught:
        decontaminate(page("x"), Decontamination(against=[bad]))
    assert caught.value.where.endswith("bad.jsonl:2")
    short = tmp_path / "short.jsonl"
    short.write_text('{"q": "too few words"}\n')
    with pytest.raises(UsageError, match="no item has 5 words"):
        decontaminate(page("x"), Decontamination(against=[short]))
    binary = tmp_path / "b.txt"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        decontaminate(page("x"), Decontamination(against=[binary]))
    torn = tmp_path / "t.parquet"
    torn.write_bytes(b"PAR1")
    with pytest.raises(UsageError, match="not a whole Parquet file"):
        decontaminate(page("x"), Decontamination(against=[torn]))


def test_short_items_are_looked_for_whole_and_shorter_ones_are_told(tmp_path: Path) -> None:
    rows = [
        {"question": "Who dug the clay at Ebersby?", "answer": "Anna", "kind": "who"},
        {"question": "Which wood burns hottest in a kiln?"},
        {"question": "Why?"},
        {"question": "为什么陶工每年春天都到河边去挖土？"},
        {"question": "她的祖父用河边的旧瓦砌成了这座能烧四百个碗的窑，柴火要烧两天一夜才能停下来吗？"},
    ]
    path = tmp_path / "short.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    settings = Decontamination(against=[path], shared=3)  # a whole item is one run, and enough
    for text, row in (
        (f"{words(60, 7)} who DUG the clay, at Ebersby {words(60, 8)}", 1),
        ("Which wood burns hottest in a kiln", 2),
        ("Who dug the clay at Eastby? Which wood burns in a kiln? Why?", 0),
        ("老师问为什么陶工每年春天都到河边去挖土，没有人知道。", 4),
        ("陶工每年春天都到河边。", 0),
        ("有人说：她的祖父用河边的旧瓦砌成了这座能烧四百个碗的窑，柴火要烧两天。", 5),
        ("她的祖父用河边的旧瓦砌成了这座窑。", 0),  # 16 letters in a row are eight words
    ):
        gone = decontaminate(page(text), settings)
        assert (gone.twin if isinstance(gone, Removed) else "") == (f"short.jsonl#{row}" if row else ""), text
    assert index_of(settings).warning() == (
        "1 of 5 evaluation items are too short to be looked for, such as short.jsonl#3"
    )
