"""The corpus's card as a page, and as a part of reports: what was read, what was kept, what each stage took and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mickle import figures, storage
from mickle.results import Section, Table, markdown

EXAMPLES, RULES = 12, 20  # of what was removed, and rows of the table of rules, in a report


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
    found = [("reading", f"no page: {why}", n) for why, n in card["skipped"].items()]
    for kind, before in (("removed", ""), ("pieces", "piece of a page that stays: ")):
        for stage, reasons in card[kind].items():
            found += [(stage, before + why, n) for why, n in reasons.items()]
    return found


def _languages(card: dict[str, Any], most: int | None = None) -> Table:
    rows = [(name or "unknown", f"{n:,}") for name, n in list(card["languages"].items())[:most]]
    return Table(("language", "pages"), rows, frozenset({1}))


def readable(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    source, unread = card["settings"]["source"], sum(card["skipped"].values())
    described = f"documentation of {', '.join(source['packages'])}" if "packages" in source else source["kind"]
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
        f"Of {card['records']:,} records read, {unread:,} were no pages and "
        f"{card['records'] - unread - card['kept']:,} were removed; those are in `removed/`.",
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
            figures.legend_above(axes)
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
    shown = []
    for s in [sample for sample in seen.values() if sample["text"]][:EXAMPLES]:
        told = f"{'cut out' if s['piece'] else 'removed'} by {s['stage']}: {s['reason']} "
        told += f"({s['value']:.4g}, limit {s['limit']:.4g}) · {s['url'][:150]}"
        shown.append((told + (f" · twin {s['twin'][:150]}" if s["twin"] else ""), "removed", s["text"]))
    return shown
