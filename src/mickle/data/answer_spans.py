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
answers are trained. A template that leaves out a turn, part of one, or the tools: what it shows is trained. Where a
template marks its answers (``{% generation %}``), the marks must say the same, white space aside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mickle.data.chat_template import ChatTemplate
from mickle.data.template_sandbox import CLOSES, OPENS, Failed, Refused, Rendering
from mickle.data.turns import Message
from mickle.errors import UsageError

Span = tuple[int, int]
STAND_INS = [chr(code) for code in range(0xFDD2, 0xFDF0)]  # noncharacters: no text has them by right
EARLIER = "the template shows earlier answers in another way than the last: only later ones are trained"
LEFT_OUT = "the template leaves out a turn"
CUT = "the template leaves out or changes part of an answer"
CUT_BEFORE = "the template leaves out or changes part of a turn that is no answer"
NO_END = "the template puts no end mark after an answer: the model does not learn where to stop"
MARKED = "an answer is marked as not learnt from: it is shown, and not trained"
NOT_SHOWN = "the template does not show the {}"


class NotLaidOut(UsageError):
    """An example that its template refuses, or fails with, or of which it shows no answer; others may be fine."""


@dataclass(frozen=True)
class Layout:
    """A conversation as text. ``trained``: the assistant's spans; ``contents``: what people and assistant wrote, None
    where the template changes it so that its place is not known; ``notes`` that a person should read; ``asked``: where
    the text ends that the model is given for the last trained answer, None where it is not in this text.
    """

    text: str
    trained: list[Span]
    contents: list[Span] | None
    notes: list[str]
    asked: int | None = None


def lay_out(
    template: ChatTemplate,
    messages: Sequence[Message],
    where: str = "",
    beside: Mapping[str, Sequence[Any]] | None = None,
) -> Layout:
    """Render a conversation and find what is trained in it. ``beside``: its tools and documents, by these names.

    Raises NotLaidOut, with the place ``where`` of the example, for a conversation that the template refuses or that
    leaves nothing to train; UsageError for a template that cannot be used, or whose own marks put answers elsewhere.
    """
    try:
        texts = _Renderings(template, messages, beside or {})
        text, sketch = texts.text(len(messages)), texts.sketch()
        matched = match_contents(text, sketch, messages)
        spans, notes = _spans(texts, text, matched)
        notes += texts.not_shown(text)
    except UsageError as error:
        kind = NotLaidOut if isinstance(error, (Refused, Failed)) else UsageError
        at = f"{error.where}; {where}" if where else error.where
        raise kind(error.what, where=at, todo="mend the example, or the template") from None
    trained = {number: span for number, span in spans.items() if messages[number].trained}
    if not trained:
        raise NotLaidOut(
            "no answer of this example can be trained: the template shows it in a way that its beginning does not have",
            where=f"{where or 'example'}: {text[:200]!r}",
        )
    if template.marks_answers:
        _compare_marks(texts, text, list(spans.values()), where)
    known = matched is not None and all(item.exact for item in matched)
    contents = [(item.start, item.end) for item in matched or ()] if known else None
    notes += [MARKED] if len(trained) < len(spans) else []
    notes += _losses(text, sketch, matched, messages, trained)
    prompt = texts.text(max(trained), prompt=True)
    asked = len(prompt) if text.startswith(prompt) and len(prompt) <= trained[max(trained)][0] else None
    return Layout(text, list(trained.values()), contents, list(dict.fromkeys(notes)), asked)


def _spans(texts: _Renderings, text: str, matched: list[Shown] | None) -> tuple[dict[int, Span], list[str]]:
    """Where each answer stands, also those that are marked as not learnt from, and notes on those that are."""
    spans, notes = dict[int, Span](), list[str]()
    places = {item.message: (item.start, item.end) for item in matched or ()}
    for number, turn in enumerate(texts.messages):
        place = places.get(number)
        if turn.role != "assistant" or (matched is not None and place is None):
            continue
        span, note = _span(texts, number, text, place)
        spans |= {number: span} if span else {}
        notes += [note] if note and turn.trained else []
    return spans, notes


def _losses(
    text: str, sketch: list[str], matched: list[Shown] | None, messages: Sequence[Message], trained: Mapping[int, Span]
) -> Iterator[str]:
    """Notes on what of the conversation is not in the text, white space aside; untrained answers are passed over."""
    shown = set(map(int, sketch[1::2])) if sketch else set(range(len(messages)))
    if len(shown) < len(messages):
        yield LEFT_OUT
    places = {number: trained.get(number, (0, len(text))) for number in shown}
    if matched is not None:
        places = {item.message: (item.start, item.end) for item in matched if not item.exact}
    for number, (start, end) in sorted(places.items()):
        turn = messages[number]
        passed = turn.role == "assistant" and number not in trained
        if not passed and _without_space(turn.content) not in _without_space(text[start:end]):
            yield CUT if turn.role == "assistant" else CUT_BEFORE


def _without_space(text: str) -> str:
    return "".join(text.split())


def stand_ins(messages: Sequence[Message]) -> tuple[list[str], list[Message]]:
    """Two marks that no message holds, none where all are taken, and the messages with their numbers between these."""
    free = [mark for mark in STAND_INS if not any(mark in turn.content for turn in messages)]
    marks = free[:2] if len(free) > 1 else []
    return marks, [Message(turn.role, str(number).join(marks)) for number, turn in enumerate(messages)]


def sketched_parts(drawn: str, marks: list[str], count: int) -> list[str]:
    """A text rendered from stand-ins, cut at them: template, number, template, ..., template; [] for other numbers."""
    found = re.split("([0-9]{1,9})".join(marks), drawn)
    return found if all(int(number) < count for number in found[1::2]) else []


class _Renderings:
    """The texts that a conversation's layout is found from, all asked of the template at once."""

    def __init__(
        self, template: ChatTemplate, messages: Sequence[Message], beside: Mapping[str, Sequence[Any]]
    ) -> None:
        self.template, self.messages, self.beside = template, messages, beside
        whole = len(messages)
        self.marks, sketched = stand_ins(messages)
        asked = [Rendering(0, whole), Rendering(1, whole)]
        if template.marks_answers:
            asked.append(Rendering(0, whole, marking=True))
        for number, turn in enumerate(messages):
            if turn.role == "assistant":
                asked += [Rendering(0, number, prompt=True), Rendering(0, number + 1)]
        asked = list(dict.fromkeys(asked))  # up to the last answer is often the whole
        self.found = dict(zip(asked, template.render_all([messages, sketched], asked, beside), strict=True))

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
        if isinstance(drawn, UsageError) or not self.marks:
            return []
        return sketched_parts(drawn, self.marks, len(self.messages))

    def not_shown(self, text: str) -> list[str]:
        """Notes on tools and documents without which the text is the same."""
        whole, found = [Rendering(0, len(self.messages))], []
        for name in (name for name, items in self.beside.items() if items):
            (other,) = self.template.render_all([self.messages], whole, {**self.beside, name: ()})
            found += [NOT_SHOWN.format(name)] if other == text else []
        return found


def _span(texts: _Renderings, number: int, text: str, place: Span | None) -> tuple[Span | None, str]:
    """Where answer ``number`` stands in the text, from what the model is given to the end of turn; a note on it."""
    template, prompt, upto = texts.template, texts.text(number, prompt=True), texts.text(number + 1)
    agreed = _agreement(upto, text)
    begins = text.startswith(prompt) and (place is None or len(prompt) <= place[0])
    if place is None and not begins:
        return None, EARLIER
    start = len(prompt) if begins and (place is None or template.prompts) else place[0]  # type: ignore[index]
    after = start if place is None else place[1]
    if agreed < after:
        return None, EARLIER
    end, marked = _end(template, text[after:agreed])
    if place is None and not marked and agreed < len(upto.rstrip()):
        return None, EARLIER
    written = text[start : after + end] if place is None else text[slice(*place)]
    if place is None and template.special_pattern:
        written = template.special_pattern.sub("", written)
    if not written.strip():
        return None, CUT
    return (start, after + end), "" if marked else NO_END


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


# -- which characters are content --------------------------------------------------------------------------------


class Shown(NamedTuple):
    """Where a message's content stands in the text; exact: as it was written, white space at its ends aside."""

    message: int
    start: int
    end: int
    exact: bool


def match_contents(text: str, sketch: list[str], messages: Sequence[Message]) -> list[Shown] | None:
    """Every content in the text; None where text and sketch do not go together.

    Templates may strip white space from contents. One that is changed in another way ends where the template goes on
    with something that was not in it.
    """
    if not sketch or not text.startswith(sketch[0]):
        return None
    at, found = len(sketch[0]), list[Shown]()
    for number, part in zip(map(int, sketch[1::2]), sketch[2::2], strict=True):
        content = messages[number].content
        forms = (content, content.strip(), content.rstrip(), content.lstrip(), content.strip("\n"))
        shown = next((form for form in forms if text.startswith(form + part, at)), None)
        if shown is not None:
            end = at + len(shown)
        else:  # where the template goes on, if that is certain
            end = text.find(part, at) if part.strip() and part.strip() not in content else -1
        if end < 0:
            return None
        found.append(Shown(number, at, end, shown is not None))
        at = end + len(part)
    return found if at == len(text) else None


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
