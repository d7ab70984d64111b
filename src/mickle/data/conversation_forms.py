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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mickle.data.conversation_columns import (
    EXTRA,
    SYSTEM,
    BadRow,
    LeftOut,
    beside,
    is_given,
    is_learnt,
    list_columns_read,
    refuse_left_out,
    refuse_not_kept,
    unused,
)
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
ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}


@dataclass(frozen=True)
class Message:
    """One turn: ``role`` is system, user, assistant or tool. trained: whether an answer is learnt from."""

    role: str
    content: str
    trained: bool = True


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


def form_of(values: dict[str, Any]) -> str:
    """The form whose columns a row has; "" where it is none. A column that holds null counts as missing."""
    return next((form for form in FORMS if has_form(values, form)), "")


def has_form(values: dict[str, Any], form: str) -> bool:
    """Whether a row has the columns of a form."""
    found = [_value(values, names) for names in FORMS[form]]
    if form == "exchange" and not all(map(_is_messages, found)):
        return False
    return all(value is not None for value in found)


def read_row(values: dict[str, Any], form: str, where: str) -> Example:
    """The example that a row of a known form holds. Raises BadRow."""
    for names in FORMS[form]:
        if _value(values, names) is None:
            raise BadRow(f"no {' or '.join(names)}")
    values = list_columns_read(values, form)
    refuse_left_out(values, form)
    own = [next(name for name in names if values.get(name) is not None) for names in FORMS[form]]
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
        prompt, answer = _text(values["prompt"], "prompt"), _text(_value(values, FORMS[form][1]), "answer")
        found = Example("completion", prompt=prompt, completion=answer)
        if not (opening or tools or documents):
            return found
        turns = list(found.as_conversation().messages)
    elif form == "alpaca":
        turns = _alpaca(values)
    else:
        turns = [turn for names in FORMS[form] for turn in _messages(_value(values, names))]
    return Example("messages", _conversation(opening + turns), tools=tools, documents=documents)


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
    answer = _text(_value(values, FORMS["alpaca"][1]), "answer")
    return [Message("user", question), Message("assistant", answer)]


def _history(values: dict[str, Any]) -> list[Message]:
    """Earlier turns: pairs of a question and an answer, or messages."""
    history = values.get("history")
    if not is_given(history):
        return []
    if not isinstance(history, (list, tuple)):
        raise BadRow("history is no list", type(history).__name__)
    if all(isinstance(item, dict) for item in history):
        return _messages(history)
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in history):
        raise BadRow("history is no list of questions with their answers")
    pairs = ((_text(question, "question"), _text(answer, "answer")) for question, answer in history)
    return [Message(role, said) for pair in pairs for role, said in zip(("user", "assistant"), pair, strict=True)]


def _preference(values: dict[str, Any], opening: list[Message]) -> Example:
    chosen, rejected, prompt = values["chosen"], values["rejected"], values.get("prompt")
    if _is_messages(chosen) and _is_messages(rejected):
        first, second = _messages(chosen), _messages(rejected)
        shared = _messages(prompt) if _is_messages(prompt) else []
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
        _conversation(shared + answer)
    return Example("preference", tuple(shared), chosen=tuple(first), rejected=tuple(second))


def _common(first: list[Message], second: list[Message]) -> list[Message]:
    """The messages that both begin with, up to the last that is no answer."""
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    while count and first[count - 1].role == "assistant":
        count -= 1
    return first[:count]


# -- messages ----------------------------------------------------------------------------------------------------------


def _is_messages(value: Any) -> bool:
    return isinstance(value, (list, tuple)) or (isinstance(value, str) and value.lstrip().startswith("[{"))


def _messages(value: Any) -> list[Message]:
    """A list of messages."""
    if not isinstance(value, (list, tuple)):
        raise BadRow("messages are no list", type(value).__name__)
    return [_message(item, f"message {number}") for number, item in enumerate(value, start=1)]


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow("a message is no object", place)
    role = _value(item, ("role", "from"))
    if role is None:
        raise BadRow("a message has no role", place)
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise BadRow("a message has an unknown role", f"{place}: {str(role)[:40]!r}")
    refuse_not_kept(item, "message", place)
    return Message(known, _content(_value(item, ("content", "value")), place), is_learnt(item, known, place))


def _content(content: Any, place: str) -> str:
    """Text, or the text parts of a list joined; what is no text is refused."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        kind = "missing" if content is None else type(content).__name__
        raise BadRow("content is not text", f"{place}: {kind}")
    for part in content:
        kind = part.get("type", "text") if isinstance(part, dict) else "text"
        if kind != "text":
            raise BadRow("content holds something else than text", f"{place}: {str(kind)[:40]}")
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    if any(not isinstance(text, str) for text in texts):
        raise BadRow("content is not text", f"{place}: a part without text")
    return "".join(map(str, texts))


def _conversation(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, if they are a conversation: system first if at all, turns in turn, an answer last.

    An empty system turn is left out.
    """
    kept = [turn for turn in messages if turn.role != "system" or turn.content.strip()]
    for number, turn in enumerate(kept, start=1):
        if turn.role == "system" and number > 1:
            raise BadRow("a system turn stands inside the conversation", f"message {number}")
        if not turn.content.strip():
            what = "an empty answer" if turn.role == "assistant" else "an empty question"
            raise BadRow(what, f"message {number}")
    roles = [turn.role for turn in kept if turn.role != "system"]
    if "assistant" not in roles:
        raise BadRow("no answer")
    if roles[0] != "user":
        raise BadRow("begins with an answer")
    for number, (before, after) in enumerate(itertools.pairwise(roles), start=2):
        if before == after == "assistant":
            raise BadRow("two answers in a row", f"turn {number}")
        if before == after == "user" or (before, after) == ("tool", "user"):
            raise BadRow("two questions in a row", f"turn {number}")
        if (before, after) == ("user", "tool"):
            raise BadRow("a tool speaks without having been asked", f"turn {number}")
    if roles[-1] != "assistant":
        raise BadRow("ends without an answer")
    if not any(turn.trained for turn in kept if turn.role == "assistant"):
        raise LeftOut("every answer is marked as not learnt from")
    return tuple(kept)


def _system(values: dict[str, Any]) -> list[Message]:
    system = _value(values, SYSTEM)
    if system is None:
        return []
    if not isinstance(system, str):
        raise BadRow("system is not text")
    return [Message("system", system)]


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRow(f"{name} is not text", type(value).__name__)
    if not value.strip():
        raise BadRow(f"an empty {name}")
    return value


def _value(values: dict[str, Any], names: Sequence[str]) -> Any:
    """The first of the named values that is not null."""
    return next((values[name] for name in names if values.get(name) is not None), None)
