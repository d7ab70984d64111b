"""How well each stage did on a controlled crawl: the funnel beside the paper's, precision and recall.

What counts as right:

- urls, extraction, language, repetitions, quality, lines: a removed page is right where it should be removed by any of
  them. Recall: of the pages planted for the stage that reach it, the share it removed.
- near duplicates: of m copies of one document that reach the stage, up to m - 1 removals are right and m - 1 are
  expected. Rewritten pages of one address are no copies.
- repeated text: of the words cut, those that stand in a planted passage or in another copy of the page; recall
  counts the planted passages that stood at least twice and do not any more.
- url duplicates: of m pages with one address, as near duplicates.

The funnel counts pages up to RW-Raw and words from there on, as the paper counts documents and then tokens.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mickle.data.records import Page, Removed
from mickle.data.rules import Outcome
from mickle.data.tally import PAPER
from mickle.results import Table
from mickle.studies.crawl import EDITS
from mickle.studies.planted import Planted

ONE_PAGE = ("urls", "extraction", "language", "repetitions", "quality", "lines")
STAGES = (*ONE_PAGE, "near duplicates", "repeated text", "url duplicates")
COUNTED_IN_PAGES = ("urls", "extraction", "language")  # the others in words
END = ""  # what a page reaches that no stage removed
ORDER = {stage: place for place, stage in enumerate(("reading", *STAGES, END))}
GRAM = 8  # words by which a passage is recognised
LEAST_NOISE = 0.05  # of a page's words in lines that are no text: the limit from which the page should go


class Judged:
    """One planted page, what the pipeline made of it, and the pieces it cut out."""

    def __init__(self, truth: Planted, outcome: Outcome, pieces: Sequence[Removed]) -> None:
        self.truth, self.pieces = truth, pieces
        self.stage = outcome.stage if isinstance(outcome, Removed) else ""
        self.text = outcome.text if isinstance(outcome, Page) else ""
        self.cut = Counter[str]()
        for piece in pieces:
            self.cut[piece.stage] += count_words(piece.text)

    def reaches(self, stage: str) -> bool:
        """Whether no earlier stage removed the page."""
        return not self.stage or ORDER[self.stage] >= ORDER[stage]

    def words_before(self, stage: str) -> int:
        """Words of its text when it came to the stage; 0 where it did not."""
        later = sum(n for name, n in self.cut.items() if ORDER[name] >= ORDER[stage])
        return count_words(self.text) + later if self.reaches(stage) else 0


def judge(planted: Iterable[Planted], outcomes: Iterable[Outcome]) -> list[Judged]:
    """Every page beside its outcome; the pipeline keeps their order."""
    ends: list[tuple[Outcome, list[Removed]]] = []
    pieces: list[Removed] = []
    for outcome in outcomes:
        if isinstance(outcome, Removed) and outcome.start >= 0:
            pieces.append(outcome)
        else:
            ends.append((outcome, pieces))
            pieces = []
    return [Judged(page, *end) for page, end in zip(planted, ends, strict=True)]


def scores(judged: Sequence[Judged]) -> dict[str, float]:
    """All measures by name: ``kept_STAGE`` (percent of pages, then of words), ``precision_STAGE``, ``recall_STAGE``,
    ``recall_edits_PERCENT``, ``truth_kept`` and ``kept_true``. Finite: what nothing was measured on is left out.
    """
    pages = [page for page in judged if page.truth.is_html]
    found = funnel(pages)
    for stage in ONE_PAGE:
        found |= one_page(pages, stage)
    found |= copies(pages, "near duplicates", lambda page: not_rewritten(page.truth))
    found |= copies(pages, "url duplicates", lambda page: page.truth.url)
    found |= by_edits(pages) | repeated(pages) | kept_words(pages)
    return found


def funnel(pages: Sequence[Judged]) -> dict[str, float]:
    """Percent left after each stage."""
    found = {}
    words = sum(page.words_before("repetitions") for page in pages)
    raw = 100.0 * sum(page.reaches("repetitions") for page in pages) / max(len(pages), 1)
    for stage, after in zip(STAGES, (*STAGES[1:], END), strict=True):
        pages_left = 100.0 * sum(page.reaches(after) for page in pages) / max(len(pages), 1)
        words_left = raw * sum(page.words_before(after) for page in pages) / max(words, 1)
        found[f"kept_{name(stage)}"] = pages_left if stage in COUNTED_IN_PAGES else words_left
        found[f"pages_{name(stage)}"] = pages_left
    return found


def one_page(pages: Sequence[Judged], stage: str) -> dict[str, float]:
    """Precision and recall of a stage that looks at one page."""
    removed = [page for page in pages if page.stage == stage]
    right = sum(page.truth.removed_by in ONE_PAGE for page in removed)
    reached = [page for page in pages if page.truth.removed_by == stage and page.reaches(stage)]
    if stage == "lines":  # where extraction left the buttons out, nothing is left to find
        reached = [page for page in reached if noise_left(page) > LEAST_NOISE]
    found = sum(page.stage == stage for page in reached)
    return rates(stage, right, len(removed), found, len(reached))


def noise_left(page: Judged) -> float:
    """Share of a page's words in planted lines when it comes to the line-wise corrections."""
    lines = {" ".join(line.split()) for line in page.truth.noise}
    texts = [page.text, *(piece.text for piece in page.pieces)]
    standing = [line for text in texts for line in map(str.strip, text.split("\n")) if line in lines]
    return sum(map(count_words, standing)) / max(sum(map(count_words, texts)), 1)


def not_rewritten(truth: Planted) -> object:
    """What the copies of one document have in common, and no other page."""
    alone = truth.family < 0 or truth.removed_by == "url duplicates"
    return ("alone", id(truth)) if alone else truth.family


def copies(pages: Sequence[Judged], stage: str, key: Any) -> dict[str, float]:
    """Precision and recall of a stage that leaves one of several."""
    groups: dict[object, list[Judged]] = defaultdict(list)
    for page in pages:
        if page.reaches(stage):
            groups[key(page)].append(page)
    right = removed = expected = 0
    for group in groups.values():
        gone = [page for page in group if page.stage == stage]
        removed += len(gone)
        junk = sum(page.truth.removed_by in ONE_PAGE for page in gone)
        right += max(junk, min(len(gone), len(group) - 1))
        expected += len(group) - 1
    taken = sum(min(sum(page.stage == stage for page in group), len(group) - 1) for group in groups.values())
    return rates(stage, right, removed, taken, expected)


def by_edits(pages: Sequence[Judged]) -> dict[str, float]:
    """Recall of near duplicates for each share of changed words, over copies whose document is there as well."""
    stage = "near duplicates"
    present = {p.truth.family for p in pages if p.reaches(stage) and not p.truth.removed_by}
    found = {}
    for edits in sorted(set(EDITS)):
        those = [
            page
            for page in pages
            if page.truth.removed_by == stage and page.truth.edits == edits and page.reaches(stage)
        ]
        those = [page for page in those if page.truth.family in present]
        if those:
            found[f"recall_edits_{round(100 * edits)}"] = sum(p.stage == stage for p in those) / len(those)
    return found


def repeated(pages: Sequence[Judged]) -> dict[str, float]:
    """Precision in words and recall in passages of the exact substrings."""
    stage = "repeated text"
    there = [page for page in pages if page.reaches(stage)]
    grams: Counter[tuple[str, ...]] = Counter()
    for page in there:
        grams.update(set(grams_of(text_before(page, stage))))
    right, cut = 0.0, 0
    for page in there:
        texts = [piece.text for piece in page.pieces if piece.stage == stage]
        for text in texts + ([page.text] if page.stage == stage else []):
            words = count_words(text)
            known = grams_of(text)
            cut += words
            right += words * sum(grams[gram] > 1 for gram in known) / max(len(known), 1)
    expected = taken = 0
    for passage in sorted({passage for page in there for passage in page.truth.shared}):
        marks = grams_of(passage)
        before = sum(has(text_before(page, stage), marks) for page in there if passage in page.truth.shared)
        after = sum(has(page.text, marks) for page in there if passage in page.truth.shared and not page.stage)
        expected += before > 1
        taken += before > 1 and after < 2
    return rates(stage, right, cut, taken, expected)


def text_before(page: Judged, stage: str) -> str:
    """The text when the page came to a stage: what this stage and later ones cut is put back, last stage first."""
    text = page.text
    for later in reversed(STAGES):
        if ORDER[later] >= ORDER[stage]:
            for piece in page.pieces:
                if piece.stage == later:
                    text = text[: piece.start] + piece.text + text[piece.start :]
    return text


def kept_words(pages: Sequence[Judged]) -> dict[str, float]:
    """Of the words that should be kept those that are, and of those that are kept the ones that should be."""
    should = [page for page in pages if not page.truth.removed_by]
    wanted: Counter[tuple[str, ...]] = Counter()
    for page in should:
        wanted.update(set(grams_of(page.truth.text, 4)))
    kept = [gram for page in pages if not page.stage for gram in grams_of(page.text, 4)]
    found = set(kept)
    return {
        "kept_true": sum(gram in wanted for gram in kept) / max(len(kept), 1),
        "truth_kept": sum(gram in found for gram in wanted) / max(len(wanted), 1),
    }


def rates(stage: str, right: float, removed: float, found: float, expected: float) -> dict[str, float]:
    """Both rates, with how many they are made of; a rate of nothing is left out."""
    named = name(stage)
    rates = {f"removed_by_{named}": float(removed), f"planted_{named}": float(expected)}
    if removed:
        rates[f"precision_{named}"] = right / removed
    if expected:
        rates[f"recall_{named}"] = found / expected
    return rates


def grams_of(text: str, size: int = GRAM) -> list[tuple[str, ...]]:
    """Successive runs of words."""
    words = text.split()
    return [tuple(words[place : place + size]) for place in range(len(words) - size + 1)]


def has(text: str, marks: Sequence[tuple[str, ...]]) -> bool:
    """Whether most of a passage stands in a text."""
    known = set(grams_of(text))
    return 2 * sum(mark in known for mark in marks) > len(marks)


def count_words(text: str) -> int:
    """Words between white space."""
    return len(text.split())


def name(stage: str) -> str:
    """A stage in the name of a measure."""
    return stage.replace(" ", "_")


COLUMNS = {  # of the funnel's table: a measure's name before the stage's, and how it is written
    "left, here": ("kept", "{:.2f} %"),
    "pages left, here": ("pages", "{:.2f} %"),
    "precision": ("precision", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "removed": ("removed_by", "{:.0f}"),
    "planted": ("planted", "{:.0f}"),
}


def funnel_table(measured: Sequence[Mapping[str, float]]) -> str:
    """The funnel beside the paper's, precision and recall: means over seeds of :func:`scores`, as Markdown."""

    def mean(key: str) -> float | None:
        values = [row[key] for row in measured if key in row]
        return sum(values) / len(values) if values else None

    def shown(value: float | None, pattern: str) -> str:
        return "" if value is None else pattern.format(value)

    rows = []
    for stage in STAGES:
        paper = PAPER.get(stage)
        cells = [shown(mean(f"{measure}_{name(stage)}"), pattern) for measure, pattern in COLUMNS.values()]
        rows.append([stage, shown(paper and 100 * paper, "{:.2f} %"), *cells])
    changed = [round(100 * share) for share in sorted(set(EDITS))]
    found = [shown(mean(f"recall_edits_{share}"), "{:.2f}") for share in changed]
    tables = (
        Table(["stage", "left, paper", *COLUMNS], rows),
        Table(
            ["words changed in a copy", *(f"{share} %" for share in changed)], [["found by near duplicates", *found]]
        ),
    )
    return "\n\n".join(table.markdown() for table in tables)
