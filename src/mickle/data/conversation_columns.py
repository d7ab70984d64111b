"""Columns and keys that stand beside a conversation's texts, and what each does: obeyed, refused by name, or counted.

- ``system``, ``history``, ``tools``, ``functions``, ``documents`` belong to the conversation.
- Marks of a row or a message say whether it is learnt from: ``LEARNT``, ``MASKED`` and, of rows, ``JUDGED``.
- What is lost with the names of ``NOT_KEPT`` would change what is learnt: such a row is a bad one.
- Whatever else stands there is not used, and counted.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SYSTEM, EXTRA = ("system", "system_prompt"), ("input", "context")
SHOWN = ("tools", "functions", "documents")  # to a chat template
BESIDE = (*SYSTEM, "history", *SHOWN)  # columns that belong to a conversation
LEARNT = ("train", "training", "trainable", "train_on_turn", "loss", "loss_mask", "weight")  # marks: false, or 0
MASKED = ("masked", "ignore")  # marks: true
JUDGED = ("label", "kto_tag")  # of rows alone; false: a bad answer
REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking", "thinking_blocks")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
NOT_KEPT = {  # of a message, of a row; what is lost with them changes what is learnt
    "message": ("tool_calls", "function_call", "prefix", "train_detail", *REASONING, *MEDIA),
    "row": ("context", "chat_template_kwargs", "tool_calls", *REASONING, *MEDIA),
}
CONTENT = ("content", "value")  # of a message, any one
LISTS = ("messages", "conversations", "conversation", "history", *SHOWN)
MESSAGES = {"exchange": ("prompt", "completion", "response"), "preference": ("prompt", "chosen", "rejected")}


class BadRow(Exception):
    """A row that cannot be used: ``reason`` is what is counted, ``detail`` what this row has."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


class LeftOut(BadRow):
    """A row that says of itself that it is not to be learnt from: nothing is wrong with it."""


def is_given(value: Any) -> bool:
    """Whether there is something in a column."""
    return value is not None and value not in ("", [], {}, ())


def list_columns_read(values: dict[str, Any], form: str) -> dict[str, Any]:
    """A row whose lists are lists: a table holds them as JSON text."""
    names = (*LISTS, *MESSAGES.get(form, ()))
    return {name: _parsed(value) if name in names else value for name, value in values.items()}


def _parsed(value: Any) -> Any:
    if not (isinstance(value, str) and value.lstrip().startswith(("[{", "[[", "[]"))):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


# -- what is learnt from -----------------------------------------------------------------------------------------------


def refuse_left_out(values: dict[str, Any], form: str) -> None:
    """Raise LeftOut for a row that is marked as not learnt from, BadRow for one with a weight of its own."""
    marks = _row_marks(values, form)
    for name, learnt in marks.items():
        if not learnt:
            raise LeftOut(f"{name} is {str(values[name]).lower()}")
    if type(values.get("weight")) in (int, float) and "weight" not in marks:
        raise BadRow("a weight other than 0 and 1 is not kept", str(values["weight"]))


def is_learnt(item: dict[str, Any], role: str, place: str) -> bool:
    """Whether a message is learnt from; without any mark an answer is. Raises BadRow for a mark that is not clear."""
    marks = _marks(item, LEARNT + MASKED)
    for name in (*LEARNT, *MASKED):
        if item.get(name) is not None and name not in marks:
            raise BadRow("a mark of what is learnt from is neither true nor false", f"{place}: {name}")
        if marks.get(name) and role != "assistant" and name != "weight":  # which in some files all turns have
            raise BadRow("a turn that is no answer is marked as learnt from", f"{place}: {name}")
    return role != "assistant" or all(marks.values())


def _row_marks(values: dict[str, Any], form: str) -> dict[str, bool]:
    """A text's label is a class, and not whether it is good."""
    return _marks(values, LEARNT + MASKED + (() if form == "text" else JUDGED))


def _marks(values: dict[str, Any], names: Iterable[str]) -> dict[str, bool]:
    """Whether a row or message is to be learnt from, by each mark that says so or denies it."""
    flags = {name: _flag(values[name], numbers=name != "label") for name in names if values.get(name) is not None}
    return {name: flag != (name in MASKED) for name, flag in flags.items() if flag is not None}


def _flag(value: Any, numbers: bool) -> bool | None:
    """True or false, also as a table spells them. numbers: 0 and 1 too, which a column of classes has as well."""
    known = {"true": True, "false": False} | ({"1": True, "1.0": True, "0": False, "0.0": False} if numbers else {})
    return known.get(str(value).strip().lower()) if isinstance(value, (bool, int, float, str)) else None


# -- what else stands there --------------------------------------------------------------------------------------------


def refuse_not_kept(values: dict[str, Any], kind: str, place: str = "", allowed: Sequence[str] = ()) -> None:
    """Raise BadRow where a "row" or "message" has one of ``NOT_KEPT``."""
    for name in NOT_KEPT[kind]:
        if values.get(name) and name not in allowed:
            raise BadRow(f"a {kind} with {name}, which is not kept", place)


def beside(values: dict[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Tools and documents, as templates take them: functions of OpenAI's older kind are tools of type function."""
    found = {name: values.get(name) or () for name in SHOWN}
    for name, items in found.items():
        if not isinstance(items, (list, tuple)) or not all(isinstance(item, dict) for item in items):
            raise BadRow(f"{name} are no list of objects")
    wrapped = [{"type": "function", "function": function} for function in found["functions"]]
    return (*found["tools"], *wrapped), tuple(found["documents"])


def unused(values: dict[str, Any], form: str, own: Sequence[str]) -> tuple[str, ...]:
    """What stands in a row and was not read; ``own``: the form's columns.

    Keys of messages are named "name of a message", those of the parts of a content "name of a content".
    """
    more = {"text": (), "alpaca": BESIDE + EXTRA, "preference": (*BESIDE, "prompt")}.get(form, BESIDE)
    read = {*own, *more, *_row_marks(values, form)}
    columns = [name for name, value in values.items() if is_given(value) and name not in read]
    lists = [value for name in sorted(read) if isinstance(value := values.get(name), list) and name not in SHOWN]
    keys = _keys(itertools.chain(*lists)) - {"role", "from", *CONTENT, *LEARNT, *MASKED}
    contents = [item.get(name) for items in lists for item in items if isinstance(item, dict) for name in CONTENT]
    parts = _keys(part for content in contents if isinstance(content, list) for part in content) - {"type", "text"}
    return (
        *columns,
        *(f"{key} of a message" for key in sorted(keys)),
        *(f"{key} of a content" for key in sorted(parts)),
    )


def _keys(items: Iterable[Any]) -> set[str]:
    return {key for item in items if isinstance(item, dict) for key in item if is_given(item[key])}


def counted(found: Mapping[str, int]) -> str:
    """Reasons or names with their counts."""
    return "; ".join(f"{name} ({count:,})" for name, count in found.items())
