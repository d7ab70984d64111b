"""What a piece of work found, as data: figures, tables and sentences, and the one place where they are written.

A verb returns or writes a :class:`Result`. A report page is made of :class:`Section` and :class:`Finding`, which each
verb gives of its own finished folders (:meth:`mickle.step.Step.section`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mickle import storage
from mickle.events import Emit, Noted, Warned
from mickle.figures import Figure

TABLE = "table.md"
LONGEST_CELL = 200  # characters
FIGURES = 3  # of a folder, shown in a report
LEFT_OUT = "text"  # the name in a summary of what is a page of its own


@dataclass(frozen=True)
class Table:
    """Rows under headings; ``numbers`` says which columns are aligned right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()

    def markdown(self) -> str:
        """The table as lines of Markdown, its cells escaped."""
        rule = "".join("---:|" if place in self.numbers else "---|" for place in range(len(self.headings)))
        return "\n".join([_row(self.headings), f"|{rule}", *map(_row, self.rows)])

    def left(self) -> Table:
        """The same, every column aligned left."""
        return replace(self, numbers=frozenset())


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escaped, cells)) + " |"


def escaped(text: str) -> str:
    """Text that cannot break out of a table's cell or become markup: it may come from a hostile page."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")[:LONGEST_CELL]


def markdown(parts: Iterable[str | Table]) -> str:
    """Paragraphs and tables as a page of Markdown, an empty line between two."""
    return "\n\n".join(part.markdown() if isinstance(part, Table) else part for part in parts) + "\n"


@dataclass(frozen=True)
class Result:
    """What was measured: numbers for programs, a page for people, pictures by their file's name.

    ``summary`` goes into the folder's manifest, ``values`` into ``file``; ``page`` is the parts of ``table.md``.
    ``texts`` are other files. ``notes`` and ``warnings`` are sentences for who waits.
    """

    summary: dict[str, Any]
    values: dict[str, Any]
    page: Sequence[str | Table]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    file: str = "results.json"
    texts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    told: bool = True  # whether the page is said, too

    def write(self, work: Path, emit: Emit) -> dict[str, Any]:
        """All files into ``work``; what there is to say is said. Returns the summary."""
        storage.write_json(work / self.file, self.values)
        page = markdown(self.page)
        storage.write_text(work / TABLE, page)
        for name, figure in self.figures.items():
            storage.write_text(work / name, figure.svg())
        for name, text in self.texts.items():
            storage.write_text(work / name, text)
        for line in [*(page.splitlines() if self.told else ()), *self.notes]:
            emit(Noted(line))
        for line in self.warnings:
            emit(Warned(line))
        return self.summary


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# -- what a report is made of --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One number to see first."""

    value: str
    label: str


@dataclass(frozen=True)
class Section:
    """A part of a report: a sentence, figures (SVG), tables, and texts with a heading each."""

    title: str
    lead: str
    figures: Sequence[str] = ()
    tables: Sequence[Table] = ()
    texts: Sequence[tuple[str, str, str]] = ()  # heading, class, text


def drawn(folder: Path) -> list[str]:
    """The first figures of a folder, as SVG."""
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.svg"))[:FIGURES]]


def facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and value of all in a summary that fits a line."""
    plain = {
        name: value for name, value in summary.items() if isinstance(value, (str, int, float)) and name != LEFT_OUT
    }
    return [(name.replace("_", " "), cell(value)) for name, value in plain.items()]


def cell(value: str | float) -> str:
    """A plain value as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return value[:LONGEST_CELL]
