"""The forms in which people keep examples for tuning, told apart by their columns, and one row of each read.

| form | columns |
|---|---|
| preference | ``chosen``, ``rejected``, ``prompt``: texts, or messages (their common beginning may be the prompt) |
| messages | ``messages``: a list of ``role`` and ``content`` |
| sharegpt | ``conversations``: a list of ``from`` and ``value`` |
| alpaca | ``instruction``, ``output`` and perhaps ``input`` (Dolly's ``context``, ``response``) |
| exchange | ``prompt``, ``completion``: lists of messages |
| completion | ``prompt``, ``completion``: texts |
| text | ``text`` |

The first form of the table that fits is taken; what other columns do is in ``conversation_columns.py``. A row that
cannot be used raises :class:`BadRow`, whose reason is one of a fixed few, so that reasons can be counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mickle.data.conversation_columns import (
    BESIDE,
    EXTRA,
    SYSTEM,
    BadRow,
    beside,
    is_given,
    list_columns_read,
    refuse_left_out,
    refuse_not_kept,
    unused,
)
from mickle.data.turns import Message, checked, first_of, is_messages, read_messages
from mickle.errors import UsageError

FORMS: dict[str, tuple[tuple[str, ...], ...]] = {  # of each column any one name
    "preference": (("chosen",), ("rejected",)),
    "messages": (("messages",),),
    "sharegpt": (("conversations", "conversation"),),
    "alpaca": (("instruction",), ("output", "response")),
    "exchange": (("prompt",), ("completion", "response")),  # both lists of messages
    "completion": (("prompt",), ("completion", "response")),
    "text": (("text",),),
}
ROLES = {"user": "instruction", "assistant": "output"}  # a question and its answer, by who says it
NAMES = (*ROLES, *dict.fromkeys(name for form in FORMS.values() for names in form for name in names), *BESIDE, *EXTRA)


@dataclass(frozen=True)
class Example:
    """One row, ready to be laid out. ``form`` says which fields are filled:

    * "messages": ``messages``, which end with an answer; ``tools`` and ``documents`` are for the chat template
    * "completion": ``prompt`` and ``completion``
    * "preference": ``messages`` (the shared beginning), and the ``chosen`` and ``rejected`` messages after it
    * "text": ``text``

    ``where`` is its place in the file; ``unused``: its columns, and keys of its messages, that nothing was done with.
    """

    form: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    prompt: str = ""
    completion: str = ""
    chosen: tuple[Message, ...] = ()
    rejected: tuple[Message, ...] = ()
    where: str = ""
    tools: tuple[Any, ...] = ()
    documents: tuple[Any, ...] = ()
    unused: tuple[str, ...] = ()

    def own_text(self) -> str:
        """All that the example says, system turns left out: many examples share them."""
        turns = (*self.messages, *self.chosen, *self.rejected)
        said = [turn.content for turn in turns if turn.role != "system"]
        return "\n".join([*said, *filter(None, (self.text, self.prompt, self.completion))])

    def as_conversation(self) -> Example:
        """A completion as a question and an answer; a conversation as it is. UsageError for what is neither."""
        if self.form == "completion":
            turns = (Message("user", self.prompt), Message("assistant", self.completion))
            return replace(self, form="messages", messages=turns, prompt="", completion="")
        if self.form != "messages":
            raise UsageError(f"an example of form {self.form} is no conversation", where=self.where)
        return self


def renamed(values: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A row by our names (``NAMES``). columns: its own -> ours. One that had such a name already is not what was meant,
    and is kept beside it under another.
    """
    named = {ROLES.get(ours, ours): values[own] for own, ours in columns.items() if own in values}
    others = {name: value for name, value in values.items() if name not in columns}
    return named | {f"{name} of the file" if name in named else name: value for name, value in others.items()}


def form_of(values: dict[str, Any]) -> str:
    """The form whose columns a row has; "" where it is none. A column that holds null counts as missing."""
    return next((form for form in FORMS if has_form(values, form)), "")


def has_form(values: dict[str, Any], form: str) -> bool:
    """Whether a row has the columns of a form."""
    found = [first_of(values, names) for names in FORMS[form]]
    return all(map(is_messages, found)) if form == "exchange" else None not in found


def read_row(values: dict[str, Any], form: str, where: str) -> Example:
    """The example that a row of a known form holds. Raises BadRow."""
    own = [next((name for name in names if values.get(name) is not None), "") for names in FORMS[form]]
    if "" in own:
        raise BadRow(f"no {' or '.join(FORMS[form][own.index('')])}")
    values = list_columns_read(values, form)
    refuse_left_out(values, form)
    return replace(_read(values, form), where=where, unused=unused(values, form, own))


def read_question(values: dict[str, Any], where: str) -> tuple[tuple[Message, ...], str]:
    """The messages of a row up to before its last answer, and that answer; "" where the row waits for one.

    Raises BadRow, also for tools and documents, which nobody shows to a model yet that is asked.
    """
    try:
        example, answered = read_row(values, "messages", where), True
    except BadRow as problem:
        if problem.reason not in ("no answer", "ends without an answer"):
            raise
        turns = list_columns_read(values, "messages")["messages"]
        waiting = {**values, "messages": [*turns, {"role": "assistant", "content": "?"}]}
        example, answered = read_row(waiting, "messages", where), False
    if example.tools or example.documents:
        raise BadRow("tools or documents beside it")
    return example.messages[:-1], example.messages[-1].content if answered else ""


def _read(values: dict[str, Any], form: str) -> Example:
    if form == "text":
        return Example("text", text=_text(values["text"], "text"))
    refuse_not_kept(values, "row", allowed=EXTRA if form == "alpaca" else ())
    opening = _system(values) + _history(values)
    tools, documents = beside(values)
    if form == "preference":
        return replace(_preference(values, opening), tools=tools, documents=documents)
    if form == "completion":
        prompt, answer = _text(values["prompt"], "prompt"), _text(first_of(values, FORMS[form][1]), "answer")
        found = Example("completion", prompt=prompt, completion=answer)
        if not (opening or tools or documents):
            return found
        turns = list(found.as_conversation().messages)
    elif form == "alpaca":
        turns = _alpaca(values)
    else:
        turns = [turn for names in FORMS[form] for turn in read_messages(first_of(values, names))]
    return Example("messages", checked(opening + turns), tools=tools, documents=documents)


def _alpaca(values: dict[str, Any]) -> list[Message]:
    """Instruction, an empty line and the input, where there is one, are the question."""
    question = _text(values["instruction"], "instruction")
    extras = [(name, values[name]) for name in EXTRA if is_given(values.get(name))]
    for name, extra in extras:
        if not isinstance(extra, str):
            raise BadRow(f"{name} is not text")
    if len(extras) > 1:
        raise BadRow("an input and a context")
    question = "\n\n".join([question, *(extra for _, extra in extras if extra.strip())])
    answer = _text(first_of(values, FORMS["alpaca"][1]), "answer")
    return [Message("user", question), Message("assistant", answer)]


def _history(values: dict[str, Any]) -> list[Message]:
    """Earlier turns: pairs of a question and an answer, or messages."""
    history = values.get("history")
    if not is_given(history):
        return []
    if not isinstance(history, (list, tuple)):
        raise BadRow("history is no list", type(history).__name__)
    if all(isinstance(item, dict) for item in history):
        return read_messages(history)
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history):
        raise BadRow("history is no list of questions with their answers")
    pairs = ((_text(question, "question"), _text(answer, "answer")) for question, answer in history)
    return [Message(role, said) for pair in pairs for role, said in zip(("user", "assistant"), pair, strict=True)]


def _preference(values: dict[str, Any], opening: list[Message]) -> Example:
    chosen, rejected, prompt = values["chosen"], values["rejected"], values.get("prompt")
    if is_messages(chosen) and is_messages(rejected):
        first, second = read_messages(chosen), read_messages(rejected)
        shared = read_messages(prompt) if is_messages(prompt) else []
        if not shared:  # the prompt is what both begin with, down to the last question
            shared = _common(first, second)
            first, second = first[len(shared) :], second[len(shared) :]
        shared = opening + shared
    else:
        if prompt is None:
            raise BadRow("no prompt")
        shared = [*opening, Message("user", _text(prompt, "prompt"))]
        first = [Message("assistant", _text(chosen, "answer"))]
        second = [Message("assistant", _text(rejected, "answer"))]
    if first == second:
        raise BadRow("chosen and rejected are the same")
    for answer in (first, second):
        checked(shared + answer)
    return Example("preference", tuple(shared), chosen=tuple(first), rejected=tuple(second))


def _common(first: list[Message], second: list[Message]) -> list[Message]:
    """The messages that both begin with, up to the last that is no answer."""
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second))
    shared = [turn for turn, _ in alike]
    while shared and shared[-1].role == "assistant":
        shared.pop()
    return shared


def _system(values: dict[str, Any]) -> list[Message]:
    system = first_of(values, SYSTEM)
    if not isinstance(system, str | None):
        raise BadRow("system is not text")
    return [] if system is None else [Message("system", system)]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text", type(value).__name__)
    if not value.strip():
        raise BadRow(f"an empty {name}")
    return value
