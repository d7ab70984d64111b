"""Examples for tuning out of a person's file: the form is seen by its columns, and every row is used or counted.

    reading = read_conversations(Path("chats.jsonl"))
    print("\\n".join(reading.lines()))

The rows that were dropped are never silent: their number, their reasons and the first three places are in the
:class:`Reading`, and more bad rows than ``most_bad`` are an error. Forms and rules are in ``conversation_forms.py``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mickle.data.conversation_forms import FORMS, BadRow, Example, Message, form_of, has_form, read_row
from mickle.data.rows import Row, read_rows
from mickle.errors import UsageError
from mickle.storage import write_text

__all__ = ["Example", "Message", "Reading", "read_conversations", "write_messages"]

MOST_BAD = 0.1  # share of bad rows above which a file is refused
FIRST_ROWS = 100  # in which the form must be seen
SHOWN = 3  # bad rows that are named


@dataclass(frozen=True)
class Reading:
    """What a file gave. ``rows`` = examples + all that was dropped; ``first``: the first bad rows with their places."""

    form: str
    examples: list[Example]
    rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What was detected and what was dropped and why, for a person."""
        columns = ", ".join(" or ".join(names) for names in FORMS[self.form])
        said = [f"form {self.form} (columns {columns}): {len(self.examples):,} of {self.rows:,} rows"]
        if self.dropped:
            reasons = "; ".join(f"{reason} ({count:,})" for reason, count in self.dropped.items())
            said.append(f"dropped {sum(self.dropped.values()):,}: {reasons}")
            said += [f"  {place}" for place in self.first]
        return said


def read_conversations(path: Path, *, most_bad: float = MOST_BAD) -> Reading:
    """Read every row of a file or folder (``data/rows.py``) as an example of the one form that the file has.

    most_bad: share of rows that may be bad. Raises UsageError, with counts and the first three places, where more
    are; where the first rows have no known form; where a row is of another form than the file; where nothing is left.
    """
    path = Path(path)
    form, early, rows = "", list[Row](), 0
    examples: list[Example] = []
    reasons: Counter[str] = Counter()
    first: list[str] = []

    def take(row: Row) -> None:
        try:
            examples.append(_example(row, form))
        except BadRow as bad:
            reasons[bad.reason] += 1
            if len(first) < SHOWN:
                first.append(f"{row.where}: {bad}")

    for row in read_rows(path):
        rows += 1
        if not form:
            early.append(row)
            form = form_of(row.values)
            if not form and rows >= FIRST_ROWS:
                raise _no_form(early, path)
            for waiting in early if form else []:
                take(waiting)
        else:
            take(row)
    if not form:
        raise _no_form(early, path)
    bad = rows - len(examples)
    dropped = dict(reasons.most_common())
    if bad > most_bad * rows or not examples:
        raise UsageError(
            f"{bad:,} of {rows:,} rows are bad: {'; '.join(first)}",
            where=str(path),
            expected=f"at most {most_bad:.0%}" if examples else "a row that can be used",
            todo="mend the rows, or allow more with most_bad" if examples else "mend the rows",
        )
    return Reading(form, examples, rows, dropped, first)


def _example(row: Row, form: str) -> Example:
    if row.problem:
        reason, _, detail = row.problem.partition(": ")
        raise BadRow(reason, detail)
    other = form_of(row.values)
    if other and other != form and not has_form(row.values, form):
        raise UsageError(
            f"the file mixes forms: this row has the columns of {other}, those before it of {form}",
            where=row.where,
            expected="one form in a file",
            todo="put each form in a file of its own",
        )
    return read_row(row.values, form, row.where)


def _no_form(rows: list[Row], path: Path) -> UsageError:
    if not rows:
        return UsageError("there are no rows to read", where=str(path), todo="check the file")
    sound = [row for row in rows if not row.problem]
    if not sound:
        places = "; ".join(f"{row.where}: {row.problem}" for row in rows[:SHOWN])
        return UsageError(f"no row of the first {len(rows)} can be read: {places}", where=str(path))
    columns = ", ".join(map(repr, list(sound[0].values)[:20])) or "none"
    known = "; ".join(" + ".join(names[0] for names in columns) for columns in FORMS.values())
    return UsageError(
        f"the columns are of no known form: {columns}",
        where=sound[0].where,
        expected=f"one of: {known}",
        todo="rename the columns",
    )


def write_messages(path: Path, examples: Iterable[Example]) -> int:
    """Write examples as JSON Lines of ``messages``, the one form that Mickle writes; returns how many.

    A completion becomes a question and an answer. Raises UsageError for text and preferences, which are no
    conversations.
    """
    lines = []
    for example in examples:
        turns = example.messages
        if example.form == "completion":
            turns = (Message("user", example.prompt), Message("assistant", example.completion))
        elif example.form != "messages":
            raise UsageError(f"an example of form {example.form} is no conversation", where=example.where)
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    write_text(Path(path), "".join(f"{line}\n" for line in lines))
    return len(lines)
