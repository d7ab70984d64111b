"""All stages on pages whose fate is known; the verb on disk and the call in memory agree outcome for outcome."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import small_web as web
from plain_stages import exact_duplicates, near_duplicates, repeated_text

from mickle import storage
from mickle.config import validate
from mickle.data.curate import Curate
from mickle.data.lines import Lines
from mickle.data.pages import RawPage, Skipped
from mickle.data.records import Failure, Page, Removed, domain_of, piece, read_corpus, read_removed
from mickle.data.refine import correct, page_stages, refine, refine_page, through
from mickle.data.rules import STAGES, WEB, NearDuplicates, Outcome, Rules
from mickle.data.warc import write_warc
from mickle.errors import UsageError
from mickle.events import ignore
from mickle.step import execute

RULES = Rules(stages=list(WEB))
PAGES = web.pages()


def raw(url: str, content: bytes, form: str = "html") -> RawPage:
    return RawPage(url, domain_of(url), form, content)


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two WARC files of the small web."""
    folder = tmp_path_factory.mktemp("crawl")
    half = len(PAGES) // 2
    write_warc(folder / "a.warc.gz", [(url, content) for url, content, _ in PAGES[:half]])
    write_warc(folder / "b.warc.gz", [(url, content) for url, content, _ in PAGES[half:]])
    return folder


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return list(refine([raw(url, content) for url, content, _ in PAGES], RULES))


def whole(outcomes: list[Outcome]) -> list[Page]:
    """The one outcome of each page, pieces left out."""
    pages = [o for o in outcomes if isinstance(o, Page)]
    return [page for page in pages if not (isinstance(page, Removed) and page.start >= 0)]


def test_every_page_is_taken_out_by_the_stage_it_was_planted_for(outcomes: list[Outcome]) -> None:
    fates = {page.url: page.stage if isinstance(page, Removed) else "" for page in whole(outcomes)}
    assert fates == {url: stage for url, _, stage in PAGES}


def test_twins_are_named_and_copies_counted(outcomes: list[Outcome]) -> None:
    pages = {page.url: page for page in whole(outcomes)}
    twins = {url: page.twin for url, page in pages.items() if isinstance(page, Removed) and page.twin}
    assert twins == {
        "https://c.org/near": "https://a3.org/3",
        "https://c.org/copy": "https://a5.org/5",
        "https://a1.org/1/#top": "https://a1.org/1",
    }
    assert [pages[f"https://a{i}.org/{i}"].copies for i in range(7)] == [0, 1, 0, 1, 0, 1, 0]
    near, copy = (pages[f"https://c.org/{name}"] for name in ("near", "copy"))
    assert isinstance(near, Removed)
    assert isinstance(copy, Removed)
    assert 0.7 < near.value < copy.value == 1.0
    assert near.limit == pytest.approx((1 / 450) ** (1 / 20))


def test_the_shared_paragraph_is_cut_from_both_and_each_names_the_other(outcomes: list[Outcome]) -> None:
    pieces = [o for o in outcomes if isinstance(o, Removed) and o.stage == "repeated text"]
    assert [(p.url, p.twin) for p in pieces] == [
        ("https://d.org/1", "https://d.org/2"), ("https://d.org/2", "https://d.org/1")
    ]  # fmt: skip
    assert all(p.value >= 50 and p.start > 0 for p in pieces)
    kept = {page.url: page.text for page in whole(outcomes)}
    for p in pieces:
        text = kept[p.url]
        assert web.paragraph(__import__("random").Random(999), 8)[10:-10] in p.text
        assert p.text not in text
        again = text[: p.start] + p.text + text[p.start :]
        assert again.count("\n\n") == 4


def test_the_verb_gives_the_same_outcomes(crawl: Path, outcomes: list[Outcome], tmp_path: Path) -> None:
    step = validate(Curate, {"source": {"kind": "warc", "path": str(crawl)}, "workers": 2})
    out = execute(step, tmp_path / "out", ignore)
    removed = list(read_removed(out))
    kept = list(read_corpus(out))
    assert kept == [o for o in outcomes if isinstance(o, Page) and not isinstance(o, Removed)]
    assert removed == [o for o in outcomes if isinstance(o, Removed)]


def test_the_funnel_adds_up(crawl: Path, tmp_path: Path) -> None:
    step = validate(Curate, {"source": {"kind": "warc", "path": str(crawl)}, "workers": 1})
    out = execute(step, tmp_path / "out", ignore)
    card = storage.read_json(out / "card.json")
    counts = Counter(stage for _, _, stage in PAGES)
    removed = {stage: sum(reasons.values()) for stage, reasons in card["removed"].items()}
    assert removed == {stage: count for stage, count in counts.items() if stage}
    assert card["records"] == len(PAGES) + 2  # each file has a record about itself
    assert card["kept"] == counts[""]
    words = sum(len(page.text.split()) for page in [*read_corpus(out), *read_removed(out)])
    funnel = {row["stage"]: row for row in card["funnel"]}
    assert funnel["extraction"]["words"] == words
    assert funnel["url duplicates"]["pages"] == card["kept"]
    assert funnel["url duplicates"]["words"] == card["kept_words"]
    left = [row["pages"] for row in card["funnel"]]
    assert left == sorted(left, reverse=True)
    assert all(b["pages"] == a["pages"] - b["removed"] for a, b in zip(card["funnel"], card["funnel"][1:]))
    stages = {sample["stage"] for sample in card["samples"]}
    assert stages == {"repeated text", *removed}


def test_comparing_stages_equal_their_functions_one_after_the_other() -> None:
    """The arrays of the pipeline against the plain functions on iterables of pages."""
    rules = Rules(stages=["exact_duplicates", "near_duplicates", "repeated_text"])
    raws = [raw(url, content) for url, content, _ in PAGES]
    single = [o for r in raws for o in refine_page(r, rules) if isinstance(o, Page)]
    plain = repeated_text(near_duplicates(exact_duplicates(single), rules.near_duplicates), rules.repeated_text)
    fates = [(type(o), o.url, o.text, getattr(o, "stage", ""), getattr(o, "twin", "")) for o in plain]
    piped = [o for o in refine(raws, rules) if isinstance(o, Page)]
    assert fates == [(type(o), o.url, o.text, getattr(o, "stage", ""), getattr(o, "twin", "")) for o in piped]
    assert {fate[3] for fate in fates} == {"", "exact duplicates", "near duplicates", "repeated text"}
    plain = repeated_text(near_duplicates(exact_duplicates(single), rules.near_duplicates), rules.repeated_text)
    likeness = [
        [round(o.value, 4) for o in all if getattr(o, "stage", "") == "near duplicates"] for all in (plain, piped)
    ]
    assert likeness[0] == likeness[1]  # the true Jaccard similarity
    assert all(0 < value < 1 for value in likeness[0])


def test_stages_stop_at_the_first_that_removes() -> None:
    sentence = "The river runs past the old town, and nobody who lives there remembers a winter when it froze over."
    stages = page_stages(Rules(stages=["length", "language"], minimum_characters=5, language_threshold=0.0))
    seconds: dict[str, float] = {}
    (short,) = through(Page("u", "d", "", "x"), stages, seconds)
    assert isinstance(short, Removed)
    assert short.stage == "length"
    assert set(seconds) == {"length"}
    (kept,) = through(Page("u", "d", "", sentence), stages, seconds)
    assert type(kept) is Page
    assert (kept.language, kept.text) == ("en", sentence)
    assert through(short, stages, {}) == [short]


def test_pieces_come_just_before_their_page() -> None:
    def behead(page: Page) -> list[Page | Removed]:
        cut = piece(page, "lines", Failure("first letter", 1, 0), 0, page.text[:1])
        return [cut, replace(page, text=page.text[1:])]

    cut, again, kept = through(Page("u", "d", "", "abc"), [("one", behead), ("two", behead)], {})
    assert [(c.text, c.start) for c in (cut, again) if isinstance(c, Removed)] == [("a", 0), ("b", 0)]
    assert isinstance(kept, Page)
    assert kept.text == "c"


def test_what_is_refined_once_stays_as_it_is(outcomes: list[Outcome]) -> None:
    """Survivors lose nothing a second time, but for joins that cutting made (none here)."""
    kept = [o for o in outcomes if isinstance(o, Page) and not isinstance(o, Removed)]
    again = list(refine([raw(page.url, page.text.encode(), "text") for page in kept], RULES))
    assert [page.text for page in whole(again) if not isinstance(page, Removed)] == [p.text for p in kept]


def test_order_decides_who_stays_and_not_how_many(outcomes: list[Outcome]) -> None:
    backwards = list(refine([raw(url, content) for url, content, _ in PAGES[::-1]], RULES))
    texts = [
        sorted(p.url for p in whole(o) if isinstance(p, Removed) and p.stage == "near duplicates")
        for o in (outcomes, backwards)
    ]
    assert texts == [["https://c.org/copy", "https://c.org/near"], ["https://a3.org/3", "https://a5.org/5"]]


def test_earlier_corpora_take_out_what_they_hold_and_are_not_written(crawl: Path, tmp_path: Path) -> None:
    first = execute(
        validate(Curate, {"source": {"kind": "warc", "path": str(crawl / "a.warc.gz")}, "workers": 1}),
        tmp_path / "first", ignore,
    )  # fmt: skip
    urls = {page.url for page in read_corpus(first)}
    both = execute(
        validate(
            Curate, {"source": {"kind": "warc", "path": str(crawl)}, "earlier": [str(first)], "workers": 1}
        ),
        tmp_path / "both", ignore,
    )  # fmt: skip
    kept = {page.url for page in read_corpus(both)}
    assert urls
    assert not kept & urls
    gone = {page.url: page for page in read_removed(both) if page.start < 0}
    assert {gone[url].twin for url in urls} == urls
    assert gone["https://c.org/near"].twin == "https://a3.org/3"


def test_decontamination_takes_out_a_page_that_holds_an_item(tmp_path: Path) -> None:
    (tmp_path / "items.txt").write_text(web.article(2).split("\n\n")[1])
    rules = validate(Rules, {"stages": list(WEB), "decontamination": {"against": [str(tmp_path / "items.txt")]}})
    found = whole(list(refine([raw(url, content) for url, content, _ in PAGES], rules)))
    assert [p.url for p in found if isinstance(p, Removed) and p.stage == "decontamination"] == ["https://a2.org/2"]


@pytest.mark.parametrize("name", ["lines", "quality"])
def test_removing_by_one_stage_keeps_the_whole_text(name: str) -> None:
    text = "\n".join(["CLICK NOW AND BUY"] * 40)
    (gone,) = refine_page(raw("u", text.encode(), "text"), Rules(stages=[name]))  # type: ignore[list-item]
    assert isinstance(gone, Removed)
    assert (gone.stage, gone.text, gone.start) == (name, text, -1)


def test_a_page_of_which_nothing_is_left_is_removed() -> None:
    page = Page("u", "", "", "3 likes\n12 comments\n")
    (gone,) = correct(page, Lines(flagged_words=1.0))
    assert isinstance(gone, Removed)
    assert (gone.reason, gone.text) == ("no text is left", page.text)


def test_skipped_and_removed_pass_and_no_pages_are_no_trouble() -> None:
    gone = replace(Removed("u", "", "", "t", "reading", "x", 0.0))
    assert list(refine([], RULES)) == []
    assert list(refine([Skipped("request record"), gone], RULES)) == [Skipped("request record"), gone]


def test_verified_likeness_keeps_what_bands_took(outcomes: list[Outcome]) -> None:
    near = NearDuplicates(verify=0.999)
    rules = RULES.model_copy(update={"near_duplicates": near})
    found = whole(list(refine([raw(url, content) for url, content, _ in PAGES], rules)))
    gone = [p.url for p in found if isinstance(p, Removed) and p.stage == "near duplicates"]
    assert gone == ["https://c.org/copy"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"stages": ["urls", "dedup"]}, "stages"),
        ({"stages": ["language"], "decontamination": {"against": ["x"]}}, "not among the stages"),
        ({"near_duplicates": {"bands": 0}}, "bands"),
        ({"repetitions": {"nonsense": 1}}, "nonsense"),
        ({"language_threshold": 1.5}, "language_threshold"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        validate(Curate, settings)


def test_stages_run_in_the_papers_order_whatever_theirs() -> None:
    assert Rules(stages=["lines", "urls"]).chosen() == ("urls", "lines")
    assert set(WEB) < set(STAGES)
    assert Curate().chosen() == ("length", "language", "exact_duplicates")


def test_pages_without_an_address_are_not_one_another() -> None:
    texts = [web.article(i) for i in range(3)]
    pages = [raw("", text.encode(), "text") for text in texts]
    found = list(refine(pages, Rules(stages=["url_duplicates"])))
    assert [type(o) for o in found] == [Page] * 3
