"""The controlled crawl: the same seed gives the same pages, shares are the paper's, every stage is scored rightly."""

from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from mickle.data.installed import docstrings
from mickle.data.pages import extract
from mickle.data.records import Failure, Page, Removed, piece, remove
from mickle.data.refine import refine
from mickle.data.rules import WEB, Rules
from mickle.data.tally import PAPER
from mickle.data.urls import UrlFilter
from mickle.errors import UsageError
from mickle.studies import crawl_scores, junk
from mickle.studies.crawl import PLANTED, SHARING, Writer, counts, crawl
from mickle.studies.crawl_scores import copies, judge, scores, text_before
from mickle.studies.planted import Planted
from mickle.studies.prose import Source, prose, sources

PAGES = 500


@pytest.fixture(scope="module")
def planted():
    return list(crawl(PAGES, 5))


@pytest.fixture(scope="module")
def judged(planted):
    return judge(planted, refine((page.raw for page in planted), Rules()))


# ------------------------------------------------------------------------------------------------------- its text


def test_prose_is_running_text_only():
    doc = "Does a thing that needs at least ten words to be prose.\n\n    code = 1\n\n>>> f(x)\n1\n\nToo short."
    assert list(prose(doc)) == ["Does a thing that needs at least ten words to be prose."]
    assert list(prose("Holds (a, b) == {c: d} and [e] -> f; x_1 <= y_2 && z_3 is half of it code.")) == []


def test_docstrings_come_in_the_order_of_the_file_and_nothing_is_run():
    import ast

    tree = ast.parse(
        '"""m"""\nclass A:\n    """a"""\n    def f(self):\n        """f"""\ndef g():\n    """g"""\nraise SystemExit'
    )
    assert list(docstrings(tree)) == ["m", "a", "f", "g"]


def test_every_paragraph_is_an_original_and_some_modules_are_held_out():
    found = sources()
    paragraphs = [" ".join(p.lower().split()) for source in found for p in source.paragraphs]
    assert len(set(paragraphs)) == len(paragraphs) > 2000
    assert 0.05 < sum(source.held_out for source in found) / len(found) < 0.15
    assert any(source.name.startswith("topic.") for source in found)


def test_no_module_that_is_held_out_gets_into_a_crawl(planted):
    outside = [p for source in sources() if source.held_out for p in source.paragraphs]
    everything = "\n".join(page.text for page in planted)
    assert not [p for p in outside if p in everything]


def test_a_package_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="not installed"):
        sources("no_such_package_here")


# ------------------------------------------------------------------------------------------------------- the world


def test_the_same_seed_gives_the_same_bytes(planted):
    assert list(crawl(PAGES, 5)) == planted
    assert [page.html for page in crawl(PAGES, 6)] != [page.html for page in planted]


def test_shares_are_those_of_the_paper(planted):
    html = [page for page in planted if page.is_html]
    assert len(html) == PAGES
    assert len(planted) == PAGES + round(0.02 * PAGES)
    found = Counter(page.removed_by for page in html)
    assert {stage: found[stage] for stage in PLANTED} == counts(PAGES)
    # Independent of PLANTED: what should be left after each stage is the paper's figure 2 to half a percent.
    left = 100.0
    for stage in ("urls", "extraction", "language", "repetitions", "quality", "lines", "near duplicates"):
        left -= 100 * found[stage] / PAGES
        assert left == pytest.approx(100 * PAPER[stage], abs=0.6), stage
    assert sum(bool(page.shared) for page in html) == round(PAGES * SHARING / 100)


def test_the_first_of_each_family_is_the_one_to_keep(planted):
    seen = set()
    for page in planted:
        if page.family >= 0:
            assert (page.family not in seen) == (page.removed_by == ""), page
            seen.add(page.family)


def test_copies_are_copies_and_edits_have_their_share(planted):
    first = {page.family: page for page in planted if page.family >= 0 and not page.removed_by}
    changed, asked = 0, 0.0
    for page in planted:
        if page.removed_by != "near duplicates":
            continue
        ours, theirs = page.text.split(), first[page.family].text.split()
        assert len(ours) == len(theirs)
        assert page.url != first[page.family].url
        differing = sum(a != b for a, b in zip(ours, theirs))
        assert differing <= round(page.edits * len(ours)) <= page.edits * len(ours) + 0.5
        assert (differing > 0) == (page.edits > 0) == (page.kind == "edited copy")
        changed, asked = changed + differing, asked + page.edits * len(ours)
    assert 0.8 * asked < changed <= 1.02 * asked  # runs may meet, and a drawn word may be the old one


def test_a_passage_stands_on_several_pages(planted):
    where = Counter(passage for page in planted for passage in page.shared)
    assert min(where.values()) >= 2
    assert all(len(passage.split()) >= 90 for passage in where)
    assert all(passage in page.text for page in planted for passage in page.shared)


def test_addresses_are_refused_as_the_truth_says_and_what_is_no_page_is_not_read(planted):
    check = UrlFilter(Rules().urls).check
    assert {page.url for page in planted if check(page.url)} == {
        page.url for page in planted if page.removed_by == "urls"
    }
    reasons = Counter(extract(p.raw, 1 << 20, Rules().extraction).reason for p in planted if not p.is_html)
    assert set(reasons) == {"HTTP status is not 200", "not HTML"}


def test_addresses_come_twice_only_where_that_is_planted(planted):
    again = [url for url, count in Counter(page.url for page in planted).items() if count > 1]
    assert sorted(again) == sorted(page.url for page in planted if page.kind == "address again")


def test_too_little_text_is_said():
    writer = Writer([Source("tiny", ("One paragraph of nine words, and then no more.",))], Random(0))
    writer.document(5)
    with pytest.raises(UsageError, match="too little text"):
        writer.document(5)


@pytest.mark.parametrize("language", junk.GRAMMARS)
def test_a_grammar_writes_its_language(language):
    from mickle.data.filters import language_of

    text = "\n".join(block.text for block in junk.foreign(Random(1), language, 120))
    assert language_of(text)[0] == language


@pytest.mark.parametrize("make", [*junk.REPEATING, *junk.UNREADABLE])
def test_made_up_junk_is_what_its_stage_is_for(make):
    """Each kind fails the stage it is planted for; as text, before any template or extraction."""
    from mickle.data.quality import Quality, find_low_quality
    from mickle.data.repetitions import Repetitions, find_repetition

    vocabulary = sorted({word for s in sources()[:80] for p in s.paragraphs for word in p.split() if word.isalpha()})
    caught = 0
    for seed in range(10):
        blocks = make(Random(seed), vocabulary)
        text = "\n\n".join(b.text or "\n".join(f"- {i}" for i in b.items) for b in blocks)
        repeats = find_repetition(text, Repetitions())
        caught += bool(repeats if make in junk.REPEATING else find_low_quality(text, Quality()) and not repeats)
    assert caught >= 8


# ------------------------------------------------------------------------------------------------------- the scores


def page(kind="document", removed_by="", family=-1, url="https://a.example/1", **rest):
    return Planted(url, kind, removed_by, b"", family=family, **rest)


def outcome(text, stage="", url="https://a.example/1"):
    kept = Page(url, "a.example", "en", text)
    return remove(kept, stage, Failure("rule", 1, 0)) if stage else kept


def test_scores_of_a_crawl_counted_by_hand():
    text = "one two three four five six seven eight nine ten"
    cases = [
        (page(), outcome(text)),
        (page(removed_by="quality"), outcome(text, "quality")),
        (page(removed_by="quality"), outcome(text, "repetitions")),  # right, though another stage's
        (page(removed_by="quality"), outcome(text)),  # missed
        (page(), outcome(text, "quality")),  # wrongly removed
        (page(removed_by="language"), outcome(text, "language")),
        (page(family=1), outcome(text)),
        (page(removed_by="near duplicates", family=1), outcome(text, "near duplicates")),
        (page(removed_by="near duplicates", family=1), outcome(text)),
        (page(family=2), outcome(text, "near duplicates")),  # wrongly removed: its only copy
    ]
    found = scores(judge([a for a, _ in cases], [b for _, b in cases]))
    assert found["precision_quality"] == 1 / 2
    assert found["recall_quality"] == 1 / 2  # two reached it
    assert found["precision_repetitions"] == 1
    assert found["precision_near_duplicates"] == 1 / 2
    assert found["recall_near_duplicates"] == 1 / 2
    assert found["pages_language"] == 90
    assert found["kept_quality"] == pytest.approx(90 * 6 / 9)
    assert "recall_urls" not in found


def test_a_document_and_all_its_copies_gone_counts_one_wrong():
    gone = [
        (page(family=1), outcome("x", "near duplicates")),
        (page(removed_by="near duplicates", family=1), outcome("x", "near duplicates")),
    ]
    found = copies(judge([a for a, _ in gone], [b for _, b in gone]), "near duplicates", lambda p: p.truth.family)
    assert found["precision_near_duplicates"] == 1 / 2
    assert found["recall_near_duplicates"] == 1


def test_passages_cut_are_scored_in_words_and_places():
    passage = " ".join(f"p{i}" for i in range(20))
    own = [" ".join(f"o{k}{i}" for i in range(20)) for k in range(2)]
    truths, ends = [], []
    for k in range(2):
        whole = f"{own[k]}\n{passage}"
        cut = piece(outcome(whole), "repeated text", Failure("repeated", 20, 20), len(own[k]), f"\n{passage}")
        truths.append(page(shared=(passage,), text=whole))
        ends += [cut, outcome(own[k])]
    found = crawl_scores.repeated(judge(truths, ends))
    assert (found["precision_repeated_text"], found["recall_repeated_text"]) == (1, 1)
    kept_first = [outcome(f"{own[0]}\n{passage}"), *ends[2:]]
    assert crawl_scores.repeated(judge(truths, kept_first))["recall_repeated_text"] == 1
    nothing = [outcome(f"{o}\n{passage}") for o in own]
    assert crawl_scores.repeated(judge(truths, nothing))["recall_repeated_text"] == 0


def test_outcomes_must_be_those_of_the_pages():
    with pytest.raises(ValueError):
        judge([page(), page()], [outcome("x")])


# ---------------------------------------------------------------------------------------------- the real stages on it


def test_every_stage_takes_out_what_is_planted_for_it(judged):
    found = scores(judged)
    least = {
        "urls": (1.0, 1.0),
        "extraction": (0.9, 1.0),
        "language": (0.98, 0.98),
        "repetitions": (0.8, 0.85),
        "quality": (0.75, 0.75),
        "lines": (0.85, 0.85),
        "near_duplicates": (0.95, 0.4),  # a third of the copies have every tenth word changed, or more
        "repeated_text": (0.9, 0.9),
        "url_duplicates": (1.0, 0.5),
    }
    for stage, (precision, recall) in least.items():
        assert found.get(f"precision_{stage}", 1.0) >= precision, stage
        assert found.get(f"recall_{stage}", 1.0) >= recall, stage
    assert found["recall_edits_0"] > 0.8 > 0.3 > found["recall_edits_15"]
    assert found["kept_url_duplicates"] == pytest.approx(100 * PAPER["repeated text"], abs=4)


def test_nothing_is_found_where_no_stage_runs(planted):
    """The scores can fail: without stages nothing is removed but what is no page."""
    few = planted[:60]
    found = scores(judge(few, refine((p.raw for p in few), Rules(stages=[]))))
    assert found["recall_language"] == 0
    assert found["pages_url_duplicates"] > 90
    assert found["kept_true"] < 0.6


def test_pieces_put_back_give_the_text_as_it_came(planted, judged):
    """Oracle: the same pages through the stages up to the one asked for."""
    chosen = [s for s in WEB if s in ("urls", "language", "repetitions", "quality")]
    before = judge(planted, refine((p.raw for p in planted), Rules(stages=chosen)))
    same = 0
    for early, late in zip(before, judged):
        if not early.stage and late.reaches("near duplicates"):
            assert text_before(late, "lines") == early.text
            same += bool(late.pieces)
    assert same > 10


def test_the_table_shows_every_stage(judged):
    table = crawl_scores.funnel_table([scores(judged), scores(judged)])
    for stage in crawl_scores.STAGES:
        assert f"| {stage} |" in table
    assert "11.67 %" in table and "15 %" in table


def test_removed_is_a_page_to_the_judge():
    one = judge([page()], [replace(outcome("x", "lines"), url="https://b.example")])[0]
    assert isinstance(outcome("x", "lines"), Removed)
    assert (one.stage, one.reaches("lines"), one.reaches("near duplicates")) == ("lines", True, False)
