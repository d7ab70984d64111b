"""The corpus's card: what was read, what was kept, what each stage took out and why; as JSON, as a page, in reports."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any

from mickle import figures, storage
from mickle.data.pages import Skipped
from mickle.data.records import Page, Removed
from mickle.data.rules import Outcome, name_of
from mickle.results import Section, Table, markdown

DOMAINS_SHOWN = 50
SAMPLES = 3  # shown of each rule
SAMPLE_CHARACTERS = 300
EXAMPLES, RULES = 12, 20  # of what was removed, and rows of the table of rules, in a report
UNLIKE = 0.5  # the likeness to its twin below which a near-duplicate was removed through a chain of others
UNREAD = ("reading", "rows")  # stages of what never was a page
# Figure 2 of RefinedWeb: share of the crawl kept after each stage, documents up to lines, tokens after.
PAPER = {
    "urls": 0.9776, "extraction": 0.9631, "language": 0.4751, "repetitions": 0.3597, "quality": 0.3015,
    "lines": 0.2334, "near duplicates": 0.1450, "repeated text": 0.1167,
}  # fmt: skip


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
        pages = self.kept + self.removed_pages - sum(self._gone(stage) for stage in UNREAD)
        words = self.kept_words + sum(self.words_removed.values())
        rows = [
            {
                "stage": "pages read",
                "removed": 0,
                "pages": pages,
                "words": None,
                "share": 1.0,
                "paper": 1.0 if paper else None,
            }
        ]
        first, last_share, last_words = pages, 1.0, words
        for stage in self.stages:
            if stage in UNREAD:
                continue
            pages -= self._gone(stage)
            words -= self.words_removed[stage]
            if stage in ("near duplicates", "repeated text", "exact duplicates", "url duplicates"):
                share = last_share * (words / last_words if last_words else 0.0)
            else:
                share = pages / first if first else 0.0
            last_share, last_words = share, words
            rows.append(
                {
                    "stage": stage, "removed": self._gone(stage), "pages": pages,
                    "words": None if stage == "urls" else words,
                    "share": round(share, 5), "paper": paper.get(stage),
                }
            )  # fmt: skip
        return rows

    def _gone(self, stage: str) -> int:
        return sum(self.removed.get(stage, Counter()).values())

    def samples(self) -> list[dict[str, Any]]:
        """A few of what each rule took out, rules in the order of their stages."""
        found = []
        order = {stage: place for place, stage in enumerate(self.stages)}
        for stage, reason in sorted(self._samples, key=lambda key: (order.get(key[0], 0), key[1])):
            for *_, gone in sorted(self._samples[stage, reason], key=lambda entry: entry[:2], reverse=True):
                found.append(
                    {
                        "stage": stage, "reason": reason, "url": gone.url, "value": gone.value,
                        "limit": gone.limit, "twin": gone.twin, "piece": gone.start >= 0,
                        "text": " ".join(gone.text[: 2 * SAMPLE_CHARACTERS].split())[:SAMPLE_CHARACTERS],
                    }
                )  # fmt: skip
        return found

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
            "removed": {stage: _ordered(reasons) for stage, reasons in sorted(self.removed.items())},
            "pieces": {stage: _ordered(reasons) for stage, reasons in sorted(self.pieces.items())},
            "kept": self.kept,
            "kept_bytes": self.kept_bytes,
            "kept_words": self.kept_words,
            "removed_bytes": self.removed_bytes,
            "removed_through_chains": self.chained,
            "funnel": self.funnel(),
            "languages": _ordered(self.languages),
            "domain_count": sum(1 for _, counts in domains if counts["pages"]),
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


# -- the card as a page, and as a part of a report -----------------------------------------------------------------


def funnel_table(card: dict[str, Any]) -> Table:
    """What each stage left; beside the paper's where all of its stages ran."""
    headings = ["stage", "pages removed", "pages left", "words left", "share left"]
    rows = [
        [
            row["stage"], f"{row['removed']:,}", f"{row['pages']:,}",
            "" if row["words"] is None else f"{row['words']:,}", f"{row['share']:.1%}",
        ]
        for row in card["funnel"]
    ]  # fmt: skip
    if card["funnel"][0]["paper"] is not None:
        headings.append("RefinedWeb")
        for row, cells in zip(card["funnel"], rows):
            cells.append("" if row["paper"] is None else f"{row['paper']:.1%}")
    return Table(headings, rows, frozenset(range(1, len(headings))))


def _taken(card: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Stage, rule and count of all that was taken out: records that are no pages, pages, pieces of pages."""
    return [
        *(("reading", f"no page: {why}", n) for why, n in card["skipped"].items()),
        *((stage, why, n) for stage, reasons in card["removed"].items() for why, n in reasons.items()),
        *(
            (stage, f"piece of a page that stays: {why}", n)
            for stage, reasons in card["pieces"].items()
            for why, n in reasons.items()
        ),
    ]


def _languages(card: dict[str, Any], most: int | None = None) -> Table:
    rows = [(name or "unknown", f"{n:,}") for name, n in list(card["languages"].items())[:most]]
    return Table(("language", "pages"), rows, frozenset({1}))


def readable(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    source = card["settings"]["source"]
    described = (
        f"documentation of {', '.join(source['packages'])}" if source["kind"] == "documentation" else source["kind"]
    )
    funnel = funnel_table(card)
    raw = " Its figures are for a raw crawl; a clean source loses less." if "RefinedWeb" in funnel.headings else ""
    taken = [(stage, why, f"{n:,}") for stage, why, n in _taken(card)]
    domains = [
        (name or "(none)", f"{d['pages']:,}", f"{d['bytes']:,}", f"{d['removed']:,}")
        for name, d in card["domains"].items()
    ]
    short = card["evaluation_items"]["too_short"]
    parts: list[str | Table] = [
        "# Corpus card",
        f"{card['kept']:,} pages of main text, {card['kept_bytes'] / 1e6:,.2f} MB in UTF-8, from {described}.\n"
        f"Of {card['records']:,} records read, {sum(card['skipped'].values()):,} were no pages and "
        f"{sum(sum(r.values()) for r in card['removed'].values()):,} were removed; those are in `removed/`.",
        *([f"{short:,} of the evaluation items were too short to be looked for."] if short else []),
        funnel.left(),
        f"Shares count pages up to the lines and words after, as figure 2 of the RefinedWeb paper does.{raw}",
        Table(("stage", "reason", "records"), [*taken, ("", "**kept**", f"**{card['kept']:,}**")]),
        _languages(card).left(),
        Table(("domain", "pages", "bytes", "removed"), domains),
    ]
    if card["domain_count"] > len(card["domains"]):
        parts.append(f"The {len(card['domains'])} largest of {card['domain_count']:,} domains.")
    if card["samples"]:
        rows = [
            (s["stage"], s["reason"], f"{s['value']:.4g}", f"{s['limit']:.4g}", s["url"], s["text"][:120])
            for s in card["samples"]
        ]
        parts += [
            "## What was removed, by example",
            Table(("stage", "reason", "value", "limit", "address", "text"), rows),
        ]
    if card["undocumented_modules"]:
        names = [f"- {reason}: {', '.join(names)}" for reason, names in card["undocumented_modules"].items()]
        parts += ["## Modules that could not be documented", "\n".join(names)]
    return markdown(parts)


def corpus_section(folder: Path, stage_seconds: dict[str, float]) -> Section:
    """A corpus's part of a report: the funnel beside the paper's, what each rule took, by example, and its cost.

    Everything in it is text that pages may have written.
    """
    card = storage.read_json(folder / "card.json")
    lead = (
        f"{card['records']:,} records were read, {sum(card['skipped'].values()):,} of them no pages; "
        f"{card['kept']:,} pages of main text were kept ({card['kept_bytes'] / 1e6:.2f} MB, "
        f"{card['kept_words']:,} words). What was removed is kept beside them, with its reason: "
        f"mickle show {folder.name} --url ADDRESS says why a page is gone and which kept page is its twin."
    )
    undocumented = sum(len(names) for names in card.get("undocumented_modules", {}).values())
    if undocumented:
        lead += f" {undocumented} modules could not be documented; the card names them."
    largest = sorted(_taken(card), key=lambda row: (-row[2], row))[:RULES]
    rules = [(stage, why, f"{n:,}") for stage, why, n in largest]
    tables = [funnel_table(card), Table(("stage", "rule", "taken out"), rules, frozenset({2}))]
    if len(card["languages"]) > 1:
        tables.append(_languages(card, 8))
    if card["domain_count"] > 1:
        domains = [
            (name or "(none)", f"{d['pages']:,}", f"{d['bytes'] / 1e6:.2f}", f"{d['removed']:,}")
            for name, d in list(card["domains"].items())[:8]
        ]
        tables.append(Table(("domain", "pages", "MB", "removed"), domains, frozenset({1, 2, 3})))
    if stage_seconds:
        tables.append(_throughput(card, stage_seconds))
    return Section("The corpus", lead, [_picture(card)], tables, _examples(card))


def corpus_lines(folder: Path) -> list[str]:
    """What each stage left, of a corpus; how to ask for one address."""
    rows = storage.read_json(folder / "card.json").get("funnel", [])
    lines = [f"  {row['stage']:<18}{row['pages']:>12,} pages left, {row['share']:7.1%}" for row in rows]
    return [*lines, f"  why is a page gone, which is its twin: mickle show {folder} --url ADDRESS"]


def _picture(card: dict[str, Any]) -> str:
    rows = card["funnel"]

    def paint(axes: Any) -> None:
        places = range(len(rows), 0, -1)
        axes.barh(places, [row["share"] for row in rows], color=figures.COLOURS[0], height=0.62, label="here")
        known = [(row["paper"], place) for place, row in zip(places, rows) if row["paper"] is not None]
        if known:
            named = {"color": figures.COLOURS[1], "label": "RefinedWeb, figure 2"}
            axes.plot(*zip(*known), "D", markersize=5, **named)
            axes.legend(loc="lower right")
        for place, row in zip(places, rows):
            beside = (max(row["share"], row["paper"] or 0) + 0.012, place)
            axes.annotate(f"  {row['share']:.1%}", beside, va="center", fontsize=8)
        axes.set_yticks(places, [row["stage"] for row in rows])
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("left after each stage (pages up to the lines, then words)")

    return figures.draw(paint, height=0.9 + 0.27 * len(rows))


def _throughput(card: dict[str, Any], taken: dict[str, float]) -> Table:
    """CPU seconds of each stage, and pages a second on one core, over the pages that reached it."""
    left = {row["stage"]: row["pages"] for row in card["funnel"]}
    rows: list[tuple[str, ...]] = []
    reached = left.get("urls", left.get("pages read", 0))
    for stage in ("extraction", *(row["stage"] for row in card["funnel"])):
        seconds = taken.get(stage, 0.0)
        if seconds > 0 and stage not in [name for name, *_ in rows]:
            rows.append((stage, f"{seconds:.2f}", f"{reached / seconds:,.0f}"))
        reached = left.get(stage, reached)
    return Table(("stage", "CPU seconds", "pages a second and core"), rows, frozenset({1, 2}))


def _examples(card: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Of each rule one page that it took, under its reason, value and limit."""
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in card["samples"]:
        seen.setdefault((sample["stage"], sample["reason"]), sample)
    return [
        (
            f"{'cut out' if s['piece'] else 'removed'} by {s['stage']}: {s['reason']} "
            f"({s['value']:.4g}, limit {s['limit']:.4g}) · {s['url'][:150]}"
            + (f" · twin {s['twin'][:150]}" if s["twin"] else ""),
            "removed",
            s["text"],
        )
        for s in [sample for sample in seen.values() if sample["text"]][:EXAMPLES]
    ]
