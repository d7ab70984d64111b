"""Corpora on disk: what is written is read back, in order, in the same bytes every time."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle import storage
from mickle.data import records
from mickle.data.records import (
    Failure,
    Page,
    Removed,
    domain_of,
    read_corpus,
    read_removed,
    read_shards,
    remove,
    write_shards,
)
from mickle.errors import UsageError

PAGES = [Page(f"https://a.org/{i}", "a.org", "en", f"text {i} " * 50) for i in range(25)]


def test_pages_come_back_in_order_from_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "GROUP_ROWS", 4)
    monkeypatch.setattr(records, "SHARD_ROWS", 8)
    assert write_shards(PAGES, tmp_path / "a", Page) == 25
    assert [path.name for path in sorted((tmp_path / "a").iterdir())] == [f"{i:05d}.parquet" for i in range(4)]
    assert list(read_shards(tmp_path / "a", Page)) == PAGES


def test_the_same_pages_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shards(PAGES, tmp_path / name, Page)
    first, second = ((tmp_path / name / "00000.parquet").read_bytes() for name in ("a", "b"))
    assert first == second


def test_removed_pages_keep_their_reason(tmp_path: Path) -> None:
    gone = remove(PAGES[3], "length", Failure("text is too short", 12.0, 200.0), twin="https://a.org/1")
    write_shards([gone], tmp_path / "a", Removed)
    assert list(read_shards(tmp_path / "a", Removed)) == [gone]
    assert [field.name for field in fields(Removed)][:4] == ["url", "domain", "language", "text"]


def test_no_pages_still_make_a_readable_shard(tmp_path: Path) -> None:
    write_shards([], tmp_path / "a", Page)
    assert list(read_shards(tmp_path / "a", Page)) == []
    assert len(list((tmp_path / "a").iterdir())) == 1


@settings(max_examples=30, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_survives(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    write_shards([Page("u", "d", "en", text)], folder / "a", Page)
    assert next(read_shards(folder / "a", Page)).text == text


def test_a_lone_surrogate_becomes_a_question_mark(tmp_path: Path) -> None:
    write_shards([Page("u", "d", "en", "a\ud800b")], tmp_path / "a", Page)
    assert next(read_shards(tmp_path / "a", Page)).text == "a?b"


def test_only_a_whole_corpus_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write_shards(PAGES, folder / "pages", Page)
    write_shards([], folder / "removed", Removed)
    with pytest.raises(UsageError):
        read_corpus(folder)
    storage.seal(folder, kind="corpus")
    assert list(read_corpus(folder)) == PAGES
    assert list(read_removed(folder)) == []
    shard = folder / "pages" / "00000.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(UsageError, match="not whole"):
        read_corpus(folder)


def test_other_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "00000.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UsageError, match="not a whole Parquet file"):
        list(read_shards(tmp_path, Page))


@pytest.mark.parametrize(
    ("url", "domain"),
    [("https://A.org:80/x", "a.org"), ("file.txt", ""), ("http://[::1", ""), ("", ""), ("https://u@b.org/", "b.org")],
)
def test_domains(url: str, domain: str) -> None:
    assert domain_of(url) == domain
