"""Which characters of a rendered conversation the assistant writes: found by rendering prefixes, exact or refused.

For every answer i the conversation is rendered three times: whole (W), up to before i with the generation prompt (P_i),
and up to and including i (U_i). What the model must write is what stands in W after P_i, down to the end of turn:

    span_i = W[len(P_i) : end_i],   where P_i and U_i[: end_i] must both be beginnings of W

``end_i`` is after the first special token that follows the answer's content; where the template has none there,
after the text that U_i and W share, without white space at its end. Content is found exactly by rendering the same
conversation with stand-ins for what people wrote, so that what is template and what is content is known for every
character, and a content that spells a special token cannot be taken for one (``examples.py``).

Departures, each counted and said. A template without a generation prompt of its own (Llama 2), or one whose prompt
is not in the text (reasoning models open a thought in it): the span begins with the content. A template that shows
earlier answers otherwise than the last (it drops their reasoning): U_i is no beginning of W, and only the later
answers are trained. Where a template marks its answers (``{% generation %}``), the marks must say the same, white
space aside.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mickle.data.chat_template import ChatTemplate
from mickle.data.conversation_forms import Message
from mickle.data.template_sandbox import CLOSES, OPENS, Rendering
from mickle.errors import UsageError

Span = tuple[int, int]
STAND_INS = [chr(code) for code in range(0xFDD2, 0xFDF0)]  # noncharacters: no text has them by right
EARLIER = "the template shows earlier answers in another way than the last: only later ones are trained"
LEFT_OUT = "the template leaves out a turn"
NO_END = "the template puts no end mark after an answer: the model does not learn where to stop"


@dataclass(frozen=True)
class Layout:
    """A conversation as text. ``trained``: the assistant's spans; ``contents``: what people and assistant wrote, None
    where the template changes it so that its place is not known; ``notes`` that a person should read.
    """

    text: str
    trained: list[Span]
    contents: list[Span] | None
    notes: list[str]


def trained_spans(template: ChatTemplate, messages: Sequence[Message]) -> tuple[str, list[Span]]:
    """The rendered text and the spans [start, end) of it that are trained. Errors as :func:`lay_out`."""
    found = lay_out(template, messages)
    return found.text, found.trained


def lay_out(template: ChatTemplate, messages: Sequence[Message], where: str = "") -> Layout:
    """Render a conversation and find what is trained in it.

    Raises UsageError, with the place ``where`` of the example, for a conversation that the template refuses, that
    leaves nothing to train, or whose answers the template's own marks put elsewhere.
    """
    texts = _Renderings(template, messages)
    try:
        text = texts.text(len(messages))
    except UsageError as error:
        raise UsageError(
            error.what,
            where=f"{error.where}; {where}" if where else error.where,
            todo="mend the example, or the template",
        ) from None
    contents: list[Span] | None = None
    places: list[Span | None] = [None] * len(messages)
    notes: list[str] = []
    matched = _match(text, texts.sketch(), messages)
    if matched is not None:
        contents = [(start, end) for _, start, end in matched]
        places = [_only(matched, number) for number in range(len(messages))]
        if len({number for number, _, _ in matched}) < len(messages):
            notes.append(LEFT_OUT)
    spans = []
    for number, turn in enumerate(messages):
        if turn.role == "assistant" and (matched is None or places[number] is not None):
            span = _span(texts, number, text, places[number], notes)
            spans += [] if span is None else [span]
    if not spans:
        raise UsageError(
            "no answer of this example can be trained: the template shows it in a way that its beginning does not have",
            where=f"{where or 'example'}: {text[:200]!r}",
        )
    if template.marks_answers:
        _compare_marks(texts, text, spans, where)
    return Layout(text, spans, contents, notes)


class _Renderings:
    """The texts that a conversation's layout is found from, all asked of the template at once."""

    def __init__(self, template: ChatTemplate, messages: Sequence[Message]) -> None:
        self.template, self.messages = template, messages
        whole = len(messages)
        free = [mark for mark in STAND_INS if not any(mark in turn.content for turn in messages)]
        self.marks = free[:2] if len(free) > 1 else []
        sketched = [Message(turn.role, str(number).join(self.marks)) for number, turn in enumerate(messages)]
        asked = [Rendering(0, whole), Rendering(1, whole)]
        if template.marks_answers:
            asked.append(Rendering(0, whole, marking=True))
        for number, turn in enumerate(messages):
            if turn.role == "assistant":
                asked += [Rendering(0, number, prompt=True), Rendering(0, number + 1)]
        asked = list(dict.fromkeys(asked))  # up to the last answer is often the whole
        self.found = dict(zip(asked, template.render_all([messages, sketched], asked), strict=True))

    def text(self, turns: int, prompt: bool = False, marking: bool = False) -> str:
        """The text of the first turns; what the template has against it is raised."""
        found = self.found[Rendering(0, turns, prompt, marking)]
        if isinstance(found, UsageError):
            raise found
        return found

    def sketch(self) -> list[str]:
        """The text with numbered stand-ins for the contents: template, number, template, number, ..., template; nothing
        where the template wants something of the contents.
        """
        drawn = self.found[Rendering(1, len(self.messages))]
        return [] if isinstance(drawn, UsageError) or not self.marks else re.split("(\\d+)".join(self.marks), drawn)


def _span(texts: _Renderings, number: int, text: str, place: Span | None, notes: list[str]) -> Span | None:
    """Where answer ``number`` stands in the text, from what the model is given to the end of turn."""
    template, prompt, upto = texts.template, texts.text(number, prompt=True), texts.text(number + 1)
    agreed = _agreement(upto, text)
    begins = text.startswith(prompt) and (place is None or len(prompt) <= place[0])
    if place is None and not begins:
        _note(notes, EARLIER)
        return None
    start = len(prompt) if begins and (place is None or template.prompts) else place[0]  # type: ignore[index]
    after = start if place is None else place[1]
    if agreed < after:
        _note(notes, EARLIER)
        return None
    end, marked = _end(template, text[after:agreed])
    if place is None and not marked and agreed < len(upto.rstrip()):
        _note(notes, EARLIER)
        return None
    if not marked:
        _note(notes, NO_END)
    return (start, after + end) if after + end > start else None


def _end(template: ChatTemplate, tail: str) -> tuple[int, bool]:
    """How much of what follows an answer belongs to it, and whether there is an end mark in it."""
    first = template.special_pattern.search(tail) if template.special_pattern else None
    if first is not None:
        return first.end(), True
    kept = len(tail.rstrip())
    return kept, kept > 0


def _agreement(one: str, other: str) -> int:
    """How many characters two texts have in common from their beginning; by bisection, for they may be long."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low


def _note(notes: list[str], note: str) -> None:
    if note not in notes:
        notes.append(note)


# -- which characters are content --------------------------------------------------------------------------------


def _match(text: str, sketch: list[str], messages: Sequence[Message]) -> list[tuple[int, int, int]] | None:
    """(message, start, end) of every content in the text; None where text and sketch do not go together.

    Templates may strip white space from contents; whatever else they do to them is not followed.
    """
    if not sketch or not text.startswith(sketch[0]):
        return None
    at, found = len(sketch[0]), []
    for number, part in zip(map(int, sketch[1::2]), sketch[2::2], strict=True):
        content = messages[number].content if number < len(messages) else ""
        forms = (content, content.strip(), content.rstrip(), content.lstrip(), content.strip("\n"))
        shown = next((form for form in forms if text.startswith(form + part, at)), None)
        if shown is None:
            return None
        found.append((number, at, at + len(shown)))
        at += len(shown) + len(part)
    return found if at == len(text) else None


def _only(matched: list[tuple[int, int, int]], number: int) -> Span | None:
    places = [(start, end) for message, start, end in matched if message == number]
    return places[0] if len(places) == 1 else None


# -- the template's own marks --------------------------------------------------------------------------------


def _compare_marks(texts: _Renderings, text: str, spans: list[Span], where: str) -> None:
    """Refuse a template whose generation marks cover other characters than ``spans``; white space does not count."""
    if any(mark in turn.content for turn in texts.messages for mark in (OPENS, CLOSES)):
        return
    marked, at = list[Span](), 0
    pieces = re.split(f"([{OPENS}{CLOSES}])", texts.text(len(texts.messages), marking=True))
    opened = 0
    for piece in pieces:
        if piece == OPENS:
            opened = at
        elif piece == CLOSES:
            marked.append((opened, at))
        else:
            at += len(piece)
    first = min(start for start, _ in spans)  # earlier answers may have been left out on purpose
    ours, theirs = _inked(text, spans, first), _inked(text, marked, first)
    if ours != theirs:
        raise UsageError(
            "the template's generation marks do not cover what the assistant writes: "
            f"{_shown(text, marked)} is marked, {_shown(text, spans)} is what follows the prompt",
            where=f"{texts.template.where}; {where}" if where else texts.template.where,
            todo="mend the template's {% generation %} blocks, or take them out",
        )


def _inked(text: str, spans: Sequence[Span], first: int) -> set[int]:
    """Places of the characters in the spans, white space left out."""
    return {at for start, end in spans for at in range(max(first, start), end) if not text[at].isspace()}


def _shown(text: str, spans: Sequence[Span]) -> str:
    return repr(" | ".join(text[start:end][:40] for start, end in spans[-2:]))
