"""The report's section on a corpus: the funnel beside the paper's, what each rule took, by example, and its cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mickle import figures, storage
from mickle.data.card import funnel_table
from mickle.report_parts import Section, Table
from mickle.storage import Manifest

EXAMPLES = 12  # shown of what was removed
RULES = 20  # rows of the table of rules


def corpus_section(folder: Path, manifest: Manifest) -> Section:
    """Reads the card; everything in it is text that pages may have written."""
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
    headings, rows = funnel_table(card)
    tables = [Table(headings, rows, frozenset(range(1, len(headings)))), _rules(card)]
    if len(card["languages"]) > 1:
        languages = [(name or "unknown", f"{count:,}") for name, count in list(card["languages"].items())[:8]]
        tables.append(Table(("language", "pages"), languages, frozenset({1})))
    if card["domain_count"] > 1:
        tables.append(_domains(card))
    if taken := manifest.meta.get("summary", {}).get("stage_seconds"):
        tables.append(_throughput(card, taken))
    return Section("The corpus", lead, (_funnel(card),), tuple(tables), _examples(card))


def _funnel(card: dict[str, Any]) -> str:
    rows = card["funnel"]
    names = [row["stage"] for row in rows]

    def paint(axes: Any) -> None:
        places = range(len(rows), 0, -1)
        axes.barh(places, [row["share"] for row in rows], color=figures.COLOURS[0], height=0.62, label="here")
        known = [(place, row["paper"]) for place, row in zip(places, rows) if row["paper"] is not None]
        if known:
            axes.plot(
                [share for _, share in known], [place for place, _ in known], "D", markersize=5,
                color=figures.COLOURS[1], label="RefinedWeb, figure 2",
            )  # fmt: skip
            axes.legend(loc="lower right")
        for place, row in zip(places, rows):
            axes.annotate(
                f"  {row['share']:.1%}", (max(row["share"], row["paper"] or 0) + 0.012, place),
                va="center", fontsize=8,
            )  # fmt: skip
        axes.set_yticks(places, names)
        axes.set_xlim(0, 1.12)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("left after each stage (pages up to the lines, then words)")

    return figures.draw(paint, height=0.9 + 0.27 * len(rows))


def _rules(card: dict[str, Any]) -> Table:
    rows = [("reading", f"no page: {why}", count) for why, count in card["skipped"].items()]
    rows += [(stage, why, count) for stage, whys in card["removed"].items() for why, count in whys.items()]
    rows += [
        (stage, f"piece of a page that stays: {why}", count)
        for stage, whys in card["pieces"].items()
        for why, count in whys.items()
    ]
    rows.sort(key=lambda row: (-row[2], row))
    shown = [(stage, why, f"{count:,}") for stage, why, count in rows[:RULES]]
    return Table(("stage", "rule", "taken out"), shown, frozenset({2}))


def _domains(card: dict[str, Any]) -> Table:
    rows = [
        (name or "(none)", f"{d['pages']:,}", f"{d['bytes'] / 1e6:.2f}", f"{d['removed']:,}")
        for name, d in list(card["domains"].items())[:8]
    ]
    return Table(("domain", "pages", "MB", "removed"), rows, frozenset({1, 2, 3}))


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


def _examples(card: dict[str, Any]) -> tuple[tuple[str, str, str], ...]:
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in card["samples"]:
        seen.setdefault((sample["stage"], sample["reason"]), sample)
    chosen = [sample for sample in seen.values() if sample["text"]][:EXAMPLES]
    return tuple(
        (
            f"{'cut out' if s['piece'] else 'removed'} by {s['stage']}: {s['reason']} "
            f"({s['value']:.4g}, limit {s['limit']:.4g}) · {s['url'][:150]}"
            + (f" · twin {s['twin'][:150]}" if s["twin"] else ""),
            "removed",
            s["text"],
        )
        for s in chosen
    )
