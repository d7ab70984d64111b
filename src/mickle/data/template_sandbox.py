"""Chat templates are rendered in a process of their own (``template_program.py``), which a hostile one may kill but
not stop; what goes wrong there is said here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mickle.errors import UsageError
from mickle.untrusted.child import ask

# Noncharacters that stand around {% generation %} blocks where they are looked for.
OPENS, CLOSES = "\ufdd0", "\ufdd1"
MOST_STOPS = 20  # by the kernel; then no further text is asked of such a template
_STOPPED: dict[str, int] = {}


class Refused(UsageError):
    """What a template says with ``raise_exception``: it is not made for such a conversation."""


class Failed(UsageError):
    """A template that meets something in a conversation that it cannot work with."""


PROBLEMS: dict[str, tuple[type[UsageError], str]] = {
    "refused": (Refused, "refuses the conversation"),
    "stopped": (UsageError, "was stopped"),
    "forbidden": (UsageError, "asks for what it may not"),
    "failed": (Failed, "fails"),
}


class Rendering(NamedTuple):
    """One text that is asked of a template: ``turns`` of chat number ``chat``, with the generation prompt or without.

    marking: put OPENS and CLOSES around what stands in generation blocks.
    """

    chat: int
    turns: int
    prompt: bool = False
    marking: bool = False


def render(
    source: str, where: str, variables: dict[str, Any], chats: list[list[dict[str, str]]], asked: list[Rendering]
) -> list[str | UsageError]:
    """The texts of the template ``source`` for turns of ``chats`` (role and content each) and ``variables``, in the
    order ``asked``; in their place the UsageError where the template is none, refuses, fails, asks for what it may
    not, or asks for too much time, memory or text. ``where`` names its file. It is raised where a template was stopped
    for too many texts.

    All renderings are asked for at once, since the way to the other process takes longer than most of them.
    """
    question = {"source": source, "variables": variables, "chats": chats, "asked": asked}
    answers, cause = ask("mickle.data.template_program", question)
    if cause:
        _STOPPED[source] = _STOPPED.get(source, 0) + 1
        if _STOPPED[source] > MOST_STOPS:
            raise UsageError(f"chat template was stopped {MOST_STOPS} times before: {cause}", where=where)
        return [UsageError(f"chat template was stopped: {cause}", where=where)] * len(asked)
    return [said if kind == "text" else _problem(kind, said[:300], where) for kind, said in answers]


def _problem(kind: str, said: str, where: str) -> UsageError:
    """What went wrong in the other process, for the person."""
    error, does = PROBLEMS.get(kind, (UsageError, "cannot be read"))
    return error(f"chat template {does}: {said}", where=where if kind in PROBLEMS else f"{where}, {kind}")
