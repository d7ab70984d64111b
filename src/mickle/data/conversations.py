"""Examples for tuning out of a person's file: the form is seen by its columns, and every row is used or counted.

    reading = read_conversations(Path("chats.jsonl"))
    print("\\n".join(reading.lines()))

The rows that were dropped are never silent: their number, their reasons and the first three places are in the
:class:`Reading`, as are columns that nothing was done with, and more bad rows than ``most_bad`` are an error. Forms and
rules are in ``conversation_forms.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from mickle.data.conversation_columns import BadRow, LeftOut, counted
from mickle.data.conversation_forms import FORMS, Example, Message, form_of, has_form, read_row, renamed
from mickle.data.rows import Row, read_rows
from mickle.errors import UsageError
from mickle.results import json_lines
from mickle.storage import write_text

__all__ = ["Example", "Message", "Reading", "read_conversations", "write_examples", "write_messages"]

MOST_BAD = 0.1  # share of bad rows above which a file is refused
FIRST_ROWS = 100  # in which the form must be seen
SHOWN = 3  # bad rows that are named


@dataclass(frozen=True)
class Reading:
    """What a file gave. ``rows`` = examples + all that was dropped + all that ask to be left out; ``first``: the first
    bad rows with their places; ``unused``: in how many rows something stood that nothing was done with, by its name.
    """

    form: str
    examples: list[Example]
    rows: int
    dropped: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    unused: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What was detected, dropped and passed over and why, for a person."""
        columns = ", ".join(" or ".join(names) for names in FORMS[self.form])
        said = [f"form {self.form} (columns {columns}): {len(self.examples):,} of {self.rows:,} rows"]
        if self.dropped:
            said.append(f"dropped {sum(self.dropped.values()):,}: {counted(self.dropped)}")
            said += [f"  {place}" for place in self.first]
        said += [f"left out, as the rows ask: {counted(self.left_out)}"] if self.left_out else []
        return said + ([f"not used: {counted(self.unused)}"] if self.unused else [])


def read_conversations(path: Path, *, most_bad: float = MOST_BAD, columns: Mapping[str, str] | None = None) -> Reading:
    """Read every row of a file or folder (``data/rows.py``) as an example of the one form that the file has.

    Where some rows of prompt and completion have turns, tools or documents beside them, all rows are conversations.

    most_bad: share of rows that may be bad. columns: the file's names of columns -> ours (``NAMES``).

    Raises UsageError, with counts and the first three places, where more rows are bad; where the first rows have no
    known form, or none of them such a column; where a row is of another form than the file; where nothing is left.
    """
    path = Path(path)
    source = read_rows(path)
    early, rows = list(islice(source, FIRST_ROWS)), 0
    if columns:
        _refuse_no_column(early, columns, path)
        early, source = list(_renamed(early, columns)), _renamed(source, columns)
    form = next(filter(None, (form_of(row.values) for row in early)), "")
    if not form:
        raise _no_form(early, path)
    examples: list[Example] = []
    bad, left_out, unused = Counter[str](), Counter[str](), Counter[str]()
    first: list[str] = []
    for row in chain(early, source):
        rows += 1
        try:
            examples.append(_example(row, form))
        except LeftOut as asked:
            left_out[asked.reason] += 1
        except BadRow as problem:
            bad[problem.reason] += 1
            first += [f"{row.where}: {problem}"] if len(first) < SHOWN else []
        else:
            unused.update(examples[-1].unused)
    if bad.total() > most_bad * rows or not examples:
        why = "; ".join(first) or f"all ask to be left out: {counted(left_out)}"
        raise UsageError(
            f"{bad.total():,} of {rows:,} rows are bad: {why}" if bad else f"of {rows:,} rows {why}",
            where=str(path),
            expected=f"at most {most_bad:.0%}" if examples else "a row that can be used",
            todo="mend the rows, or allow more with most_bad" if examples else "mend the rows",
        )
    if form == "completion" and any(example.form == "messages" for example in examples):
        form, examples = "exchange", [example.as_conversation() for example in examples]
    dropped, asked_for, passed = (dict(counts.most_common()) for counts in (bad, left_out, unused))
    return Reading(form, examples, rows, dropped, first, asked_for, passed)


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


def _renamed(rows: Iterable[Row], columns: Mapping[str, str]) -> Iterator[Row]:
    return (replace(row, values=renamed(row.values, columns)) for row in rows)


def _refuse_no_column(early: list[Row], columns: Mapping[str, str], path: Path) -> None:
    found = dict.fromkeys(name for row in early for name in row.values)
    missing = next((name for name in columns if name not in found), None)
    if found and missing is not None:
        raise UsageError(
            f"there is no column {missing!r}",
            where=str(path),
            expected=f"one of its columns: {', '.join(map(repr, list(found)[:20]))}",
            todo="correct columns; in a settings file each of several files may have its own",
        )


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
        todo="say what they are with --columns, as in --columns question=user,answer=assistant",
    )


def write_messages(path: Path, examples: Iterable[Example]) -> int:
    """Write examples as JSON Lines of ``messages``, the one form that Mickle writes; returns how many.

    A completion becomes a question and an answer. Raises UsageError for text and preferences, which are no
    conversations.
    """
    conversations = [example.as_conversation() for example in examples]
    write_examples(path, conversations)
    return len(conversations)


def write_examples(path: Path, examples: Iterable[Example]) -> None:
    """Write examples as JSON Lines that :func:`read_conversations` reads as the same ones; none of preferences."""
    write_text(Path(path), json_lines(map(_row, examples)))


def _row(example: Example) -> dict[str, Any]:
    """The columns of an example, those that are empty left out."""
    if example.form == "completion":
        return {"prompt": example.prompt, "completion": example.completion}
    if example.form == "text":
        return {"text": example.text}
    turns = [
        {"role": turn.role, "content": turn.content} | ({} if turn.trained else {"train": False})
        for turn in example.messages
    ]
    beside = {"tools": example.tools, "documents": example.documents}
    return {"messages": turns} | {name: items for name, items in beside.items() if items}
