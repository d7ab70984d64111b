"""Counts of a curation that add up: what was read, what each stage took out and why, with a few examples of each."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import count
from typing import Any, NamedTuple

from mickle.data.pages import Skipped
from mickle.data.records import Page, Removed
from mickle.data.rules import COMPARING, Outcome, name_of

DOMAINS_SHOWN = 50
SAMPLES = 3  # shown of each rule
SAMPLE_CHARACTERS = 300
UNLIKE = 0.5  # the likeness to its twin below which a near-duplicate was removed through a chain of others
UNREAD = ("reading", "rows")  # stages of what never was a page
# Figure 2 of RefinedWeb: share of the crawl kept after each stage, documents up to lines, tokens after.
PAPER = {
    "urls": 0.9776, "extraction": 0.9631, "language": 0.4751, "repetitions": 0.3597, "quality": 0.3015,
    "lines": 0.2334, "near duplicates": 0.1450, "repeated text": 0.1167,
}  # fmt: skip


class Left(NamedTuple):
    """What is left after a stage that took ``removed`` pages; ``share``, and the ``paper``'s, as its figure counts."""

    stage: str
    removed: int
    pages: int
    words: int | None
    share: float
    paper: float | None


class Tally:
    """Counts that add up: records = skipped + removed + kept, and words of all texts = kept + removed."""

    def __init__(self, stages: Iterable[str]) -> None:
        named = [name_of(stage) for stage in stages]
        first = ["urls"] if "urls" in named else []
        self.stages = [*UNREAD, *first, "extraction", *(name for name in named if name != "urls")]
        self.skipped: Counter[str] = Counter()
        self.removed: dict[str, Counter[str]] = {}
        self.pieces: dict[str, Counter[str]] = {}
        self.words_removed: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.domains: dict[str, Counter[str]] = defaultdict(Counter)
        self.kept = self.kept_bytes = self.kept_words = self.removed_bytes = self.chained = 0
        self.copies = self.copied = 0  # pages that left for another one, and those that they left for
        self._order = count()  # pages removed unread can be alike in all but this
        self._samples: dict[tuple[str, str], list[tuple[int, int, Removed]]] = defaultdict(list)

    @property
    def records(self) -> int:
        """All that was read."""
        return sum(self.skipped.values()) + self.removed_pages + self.kept

    @property
    def removed_pages(self) -> int:
        """Pages taken out whole."""
        return sum(sum(reasons.values()) for reasons in self.removed.values())

    def add(self, outcome: Outcome) -> None:
        """Counts one outcome; pieces cut out of a page that stays are counted apart from pages."""
        if isinstance(outcome, Skipped):
            self.skipped[outcome.reason] += 1
        elif isinstance(outcome, Removed):
            self._add_removed(outcome)
        else:
            self._add_kept(outcome)

    def _add_kept(self, page: Page) -> None:
        size = len(page.text.encode("utf-8", "replace"))
        self.kept += 1
        self.kept_bytes += size
        self.kept_words += len(page.text.split())
        self.copies += page.copies
        self.copied += page.copies > 0
        self.languages[page.language] += 1
        self.domains[page.domain].update(pages=1, bytes=size)

    def _add_removed(self, gone: Removed) -> None:
        counts = self.removed if gone.start < 0 else self.pieces
        counts.setdefault(gone.stage, Counter())[gone.reason] += 1
        self.words_removed[gone.stage] += len(gone.text.split())
        self.removed_bytes += len(gone.text.encode("utf-8", "replace"))
        self.domains[gone.domain].update(removed=1 if gone.start < 0 else 0)
        self.chained += gone.stage == "near duplicates" and gone.value < UNLIKE
        shown = self._samples[gone.stage, gone.reason]
        # The least by a hash: a fixed choice, the same whatever the order, and not the first pages of one site.
        entry = (-zlib.crc32(f"{gone.url}#{gone.start}".encode("utf-8", "replace")), -next(self._order), gone)
        if len(shown) < SAMPLES:
            heapq.heappush(shown, entry)
        elif entry[:2] > shown[0][:2]:
            heapq.heapreplace(shown, entry)

    def commonest_removals(self) -> str:
        """The three commonest reasons, with their counts."""
        pairs = Counter({f"no page: {why}": n for why, n in self.skipped.items()})
        pairs.update({f"{stage}: {why}": n for stage, reasons in self.removed.items() for why, n in reasons.items()})
        return "; ".join(f"{name} ({count:,})" for name, count in pairs.most_common(3))

    def funnel(self) -> list[dict[str, Any]]:
        """What is left after each stage: pages and words, ``share`` of the pages as the paper's figure 2 counts it
        (documents up to lines, then words), and the paper's where all of its stages ran.
        """
        paper = PAPER if PAPER.keys() <= set(self.stages) else {}
        pages = first = self.kept + self.removed_pages - sum(map(self._gone, UNREAD))
        words = before = self.kept_words + sum(self.words_removed.values())
        share = 1.0
        rows = [Left("pages read", 0, pages, None, share, 1.0 if paper else None)]
        for stage in self.stages[len(UNREAD) :]:
            gone = self._gone(stage)
            pages, words = pages - gone, words - self.words_removed[stage]
            if stage in map(name_of, COMPARING):
                share *= words / before if before else 0.0
            else:
                share = pages / first if first else 0.0
            before = words
            known = None if stage == "urls" else words
            rows.append(Left(stage, gone, pages, known, round(share, 5), paper.get(stage)))
        return [row._asdict() for row in rows]

    def _gone(self, stage: str) -> int:
        return sum(self.removed.get(stage, Counter()).values())

    def samples(self) -> list[dict[str, Any]]:
        """A few of what each rule took out, rules in the order of their stages."""
        order = {stage: place for place, stage in enumerate(self.stages)}
        rules = sorted(self._samples, key=lambda rule: (order.get(rule[0], 0), rule[1]))
        entries = (sorted(self._samples[rule], key=lambda entry: entry[:2], reverse=True) for rule in rules)
        return [_sample(gone) for some in entries for *_, gone in some]

    def preview(self) -> str:
        """Funnel and examples as plain text."""
        lines = [f"  {row['stage']:<16} {row['removed']:>6,} removed {row['pages']:>6,} left" for row in self.funnel()]
        for sample in self.samples():
            value = f"{sample['value']:.4g}, limit {sample['limit']:.4g}"
            lines += [
                f"  {sample['stage']}: {sample['reason']} ({value}): {sample['url']}",
                f"      {sample['text'][:100]}",
            ]
        return "\n".join(lines)

    def card(self, settings: dict[str, Any], undocumented: dict[str, list[str]]) -> dict[str, Any]:
        """All counts with the settings that made them; nothing in it depends on time or on the number of workers."""
        settings["source"] = {k: v for k, v in settings["source"].items() if k != "path"}
        domains = sorted(self.domains.items(), key=lambda item: (-item[1]["bytes"], item[0]))
        return {
            "records": self.records,
            "skipped": _ordered(self.skipped),
            "removed": _by_stage(self.removed),
            "pieces": _by_stage(self.pieces),
            "kept": self.kept,
            "kept_bytes": self.kept_bytes,
            "kept_words": self.kept_words,
            "removed_bytes": self.removed_bytes,
            "removed_through_chains": self.chained,
            "funnel": self.funnel(),
            "languages": _ordered(self.languages),
            "domain_count": sum(counts["pages"] > 0 for _, counts in domains),
            "domains": {
                name: {key: counts[key] for key in ("pages", "bytes", "removed")}
                for name, counts in domains[:DOMAINS_SHOWN]
                if counts["pages"]
            },
            "samples": self.samples(),
            "undocumented_modules": undocumented,
            "settings": settings,
        }


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _by_stage(reasons: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {stage: _ordered(counts) for stage, counts in sorted(reasons.items())}


def _sample(gone: Removed) -> dict[str, Any]:
    return {
        "stage": gone.stage, "reason": gone.reason, "url": gone.url, "value": gone.value,
        "limit": gone.limit, "twin": gone.twin, "piece": gone.start >= 0,
        "text": " ".join(gone.text[: 2 * SAMPLE_CHARACTERS].split())[:SAMPLE_CHARACTERS],
    }  # fmt: skip
