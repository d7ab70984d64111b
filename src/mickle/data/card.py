"""The corpus's card: what was read, what was kept, what was removed and why, as JSON and as a page to read."""

from __future__ import annotations

from collections import Counter
from typing import Any

from mickle.data.pages import Skipped
from mickle.data.records import Page, Removed

DOMAINS_SHOWN = 50


class Tally:
    """Counts that add up: records = skipped + removed + kept."""

    def __init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.removed: dict[str, Counter[str]] = {}
        self.languages: Counter[str] = Counter()
        self.domains: Counter[str] = Counter()
        self.domain_bytes: Counter[str] = Counter()
        self.kept = self.kept_bytes = self.removed_bytes = 0

    @property
    def records(self) -> int:
        """All that was read."""
        return (
            sum(self.skipped.values())
            + sum(sum(reasons.values()) for reasons in self.removed.values())
            + self.kept
        )

    def skip(self, skipped: Skipped) -> None:
        self.skipped[skipped.reason] += 1

    def add(self, page: Page | Removed) -> None:
        size = len(page.text.encode("utf-8", "replace"))
        if isinstance(page, Removed):
            self.removed.setdefault(page.stage, Counter())[page.reason] += 1
            self.removed_bytes += size
        else:
            self.kept += 1
            self.kept_bytes += size
            self.languages[page.language] += 1
            self.domains[page.domain] += 1
            self.domain_bytes[page.domain] += size

    def commonest_removals(self) -> str:
        """The three commonest reasons, with their counts."""
        pairs = Counter(
            {f"{stage}: {why}": n for stage, reasons in self.removed.items() for why, n in reasons.items()}
        )
        return "; ".join(f"{name} ({count:,})" for name, count in pairs.most_common(3))

    def card(self, settings: dict[str, Any], undocumented: dict[str, list[str]]) -> dict[str, Any]:
        """All counts with the settings that made them; nothing in it depends on time or on the number of
        workers.
        """
        settings["source"] = {k: v for k, v in settings["source"].items() if k != "path"}
        domains = {
            name: {"pages": count, "bytes": self.domain_bytes[name]}
            for name, count in _ordered(self.domains).items()
        }
        return {
            "records": self.records,
            "skipped": _ordered(self.skipped),
            "removed": {stage: _ordered(reasons) for stage, reasons in sorted(self.removed.items())},
            "kept": self.kept,
            "kept_bytes": self.kept_bytes,
            "removed_bytes": self.removed_bytes,
            "languages": _ordered(self.languages),
            "domain_count": len(domains),
            "domains": dict(list(domains.items())[:DOMAINS_SHOWN]),
            "undocumented_modules": undocumented,
            "settings": settings,
        }


def _ordered(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def readable(card: dict[str, Any]) -> str:
    """The card as Markdown."""
    source = card["settings"]["source"]
    described = (
        f"documentation of {', '.join(source['packages'])}"
        if source["kind"] == "documentation"
        else source["kind"]
    )
    lines = [
        "# Corpus card",
        "",
        f"{card['kept']:,} pages of main text, {card['kept_bytes'] / 1e6:,.2f} MB in UTF-8, from {described}.",
        f"Of {card['records']:,} records read, {sum(card['skipped'].values()):,} were no pages and "
        f"{sum(sum(r.values()) for r in card['removed'].values()):,} were removed; those are in `removed/`.",
        "",
        "| stage | reason | records |",
        "|---|---|---:|",
        *(f"| reading | no page: {_cell(reason)} | {count:,} |" for reason, count in card["skipped"].items()),
        *(
            f"| {_cell(stage)} | {_cell(reason)} | {count:,} |"
            for stage, reasons in card["removed"].items()
            for reason, count in reasons.items()
        ),
        f"| | **kept** | **{card['kept']:,}** |",
        "",
        "| language | pages |",
        "|---|---:|",
        *(f"| {_cell(name) or 'unknown'} | {count:,} |" for name, count in card["languages"].items()),
        "",
        "| domain | pages | bytes |",
        "|---|---:|---:|",
        *(
            f"| {_cell(name) or '(none)'} | {d['pages']:,} | {d['bytes']:,} |"
            for name, d in card["domains"].items()
        ),
    ]
    if card["domain_count"] > len(card["domains"]):
        lines.append(f"\nThe {len(card['domains'])} largest of {card['domain_count']:,} domains.")
    if card["undocumented_modules"]:
        lines += ["", "## Modules that could not be documented", ""]
        lines += [f"- {reason}: {', '.join(names)}" for reason, names in card["undocumented_modules"].items()]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that cannot break out of a table's cell or become markup: it may come from a hostile page."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")[:200]
