"""Turns of a conversation: one message read, and a list of them checked."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mickle.data.conversation_columns import BadRow, LeftOut, is_learnt, refuse_not_kept

ROLES = {
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "model", "chatgpt", "bing", "bard"), "assistant"),
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
}
OUT_OF_TURN = {
    ("assistant", "assistant"): "two answers in a row",
    **dict.fromkeys((("user", "user"), ("tool", "user")), "two questions in a row"),
    ("user", "tool"): "a tool speaks without having been asked",
}


@dataclass(frozen=True)
class Message:
    """One turn: ``role`` is system, user, assistant or tool. trained: whether an answer is learnt from."""

    role: str
    content: str
    trained: bool = True


def is_messages(value: Any) -> bool:
    """Whether a value is a list of messages, or the JSON text of one."""
    return isinstance(value, (list, tuple)) or (isinstance(value, str) and value.lstrip().startswith("[{"))


def read_messages(value: Any) -> list[Message]:
    """A list of messages."""
    if not isinstance(value, (list, tuple)):
        raise BadRow("messages are no list", type(value).__name__)
    return [_message(item, f"message {number}") for number, item in enumerate(value, start=1)]


def _message(item: Any, place: str) -> Message:
    if not isinstance(item, dict):
        raise BadRow("a message is no object", place)
    role = first_of(item, ("role", "from"))
    if role is None:
        raise BadRow("a message has no role", place)
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise BadRow("a message has an unknown role", f"{place}: {str(role)[:40]!r}")
    refuse_not_kept(item, "message", place)
    return Message(known, _content(first_of(item, ("content", "value")), place), is_learnt(item, known, place))


def _content(content: Any, place: str) -> str:
    """Text, or the text parts of a list joined; what is no text is refused."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        kind = "missing" if content is None else type(content).__name__
        raise BadRow("content is not text", f"{place}: {kind}")
    parts = [part if isinstance(part, dict) else {"text": part} for part in content]
    for kind in (part.get("type", "text") for part in parts):
        if kind != "text":
            raise BadRow("content holds something else than text", f"{place}: {str(kind)[:40]}")
    texts = [part.get("text") for part in parts]
    if any(not isinstance(text, str) for text in texts):
        raise BadRow("content is not text", f"{place}: a part without text")
    return "".join(map(str, texts))


def checked(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The messages, if they are a conversation: system first if at all, turns in turn, an answer last.

    An empty system turn is left out.
    """
    kept = [turn for turn in messages if turn.role != "system" or turn.content.strip()]
    for number, turn in enumerate(kept, start=1):
        if turn.role == "system" and number > 1:
            raise BadRow("a system turn stands inside the conversation", f"message {number}")
        if not turn.content.strip():
            raise BadRow(f"an empty {'answer' if turn.role == 'assistant' else 'question'}", f"message {number}")
    roles = [turn.role for turn in kept if turn.role != "system"]
    if "assistant" not in roles:
        raise BadRow("no answer")
    if roles[0] != "user":
        raise BadRow("begins with an answer")
    for number, pair in enumerate(itertools.pairwise(roles), start=2):
        if pair in OUT_OF_TURN:
            raise BadRow(OUT_OF_TURN[pair], f"turn {number}")
    if roles[-1] != "assistant":
        raise BadRow("ends without an answer")
    if not any(turn.trained for turn in kept if turn.role == "assistant"):
        raise LeftOut("every answer is marked as not learnt from")
    return tuple(kept)


def first_of(values: dict[str, Any], names: Sequence[str]) -> Any:
    """The first of the named values that is not null."""
    return next((values[name] for name in names if values.get(name) is not None), None)
