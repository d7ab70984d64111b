"""Why is this address gone, and which kept page is its twin: answered by the command that a person types."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_web as web

from mickle import cli
from mickle.config import validate
from mickle.data.curate import Curate
from mickle.data.lookup import explain_url
from mickle.data.warc import write_warc
from mickle.errors import UsageError
from mickle.events import ignore
from mickle.report import render
from mickle.step import execute


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_warc(folder / "crawl.warc.gz", [(url, content) for url, content, _ in web.pages()])
    step = validate(Curate, {"source": {"kind": "warc", "path": str(folder / "crawl.warc.gz")}, "workers": 1})
    return execute(step, folder / "out", ignore)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://b.org/de", ["removed by language: other language", "limit 0.65", "text      Der Fluss"]),
        (
            "https://c.org/copy",
            ["removed by near duplicates", "value     1, limit 0.73678", "twin      https://a5.org/5 (kept)"],
        ),
        (
            "https://a5.org/5",
            ["kept,", "1 other pages were removed as its duplicates", "https://c.org/copy (near duplicates, 1)"],
        ),
        ("https://d.org/1", ["kept,", "1 pieces of it were cut out", "repeated text", "(also in https://d.org/2)"]),
        ("https://en.wikipedia.org/wiki/River", ["removed by urls: curated source"]),
    ],
)
def test_an_address_is_explained(url: str, words: list[str], corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["show", str(corpus), "--url", url])
    said = capsys.readouterr().out
    assert all(word in said for word in words), said


def test_an_address_that_was_never_seen_is_one_sentence(corpus: Path) -> None:
    with pytest.raises(UsageError, match="no page of .* has the address https://nowhere.org/"):
        explain_url(corpus, "https://nowhere.org/")


def test_a_folder_that_is_no_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a finished Mickle folder"):
        explain_url(tmp_path, "https://a.org/")


def test_the_report_shows_funnel_rules_domains_and_speed(corpus: Path) -> None:
    page = render("A crawl", {"corpus": corpus})
    for words in (
        "near duplicates", "RefinedWeb", "pages a second and core", "curated source", "removed by repetitions",
        "data:image/svg+xml", "twin https://a5.org/5", "cut out by repeated text",
    ):  # fmt: skip
        assert words in page, words
