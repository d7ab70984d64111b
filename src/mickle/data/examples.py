"""Examples as tokens with a mask of those that are trained, and batches of whole examples packed into rows.

| example | tokens | trained |
|---|---|---|
| messages | the rendered conversation; no marks but the template's | the assistant's spans (``answer_spans.py``) |
| completion | start, prompt and completion in one piece, end | the completion and the end |
| text | start, text, end | all but the start |

A token is trained if its last character stands in a trained span: the token of " answer" after "[/INST]" is,
whichever side the space is on. Special tokens are recognised in what the template wrote and never in what people
wrote: a message or text that spells an end mark gets ordinary tokens, and is counted. What is too long is cut at the
right; where nothing trained would remain, or the template refuses it, the example is dropped and counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from typing import Any

import numpy as np

from mickle.data.answer_spans import Layout, NotLaidOut, Span, lay_out
from mickle.data.chat_template import ChatTemplate, pattern_of, spellings_of
from mickle.data.conversation_forms import Example
from mickle.data.conversations import MOST_BAD
from mickle.data.example_batches import SHOWN, Encoded, ExampleBatches
from mickle.data.pieces import LONGEST
from mickle.data.tokenizer import TextTokenizer
from mickle.errors import UsageError

__all__ = ["Encoded", "ExampleBatches", "encode_examples"]

AT_A_TIME = 256  # examples tokenized together
TOO_LONG = "too long: nothing trained is left within the limit"
FORGED = "a message spells a special token, and the template changes its text"
FORGED_BESIDE = "tools or documents spell a special token"
NOT_TAKEN = "the chat template does not take it, or shows no answer that can be trained"
SPELT = "what was written spells special tokens of this model, which become letters: give conversations as `messages`"
PROMPT = "the prompt alone has other tokens than in the example: a space at its end belongs to the answer"

Pair = tuple[np.ndarray, np.ndarray]


def encode_examples(
    examples: Sequence[Example],
    tokenizer: TextTokenizer,
    template: ChatTemplate | None = None,
    *,
    longest: int,
    most_bad: float = MOST_BAD,
) -> Encoded:
    """Tokens and masks of examples, at most ``longest`` tokens each.

    template: needed for conversations. most_bad: share of examples that it may refuse. Raises UsageError showing the
    example whose mask is empty or, in a conversation, full; the first that the template refuses, where there are more;
    and for preferences, which have two answers.
    """
    found = Encoded([], [])
    refused, cut, places = list[NotLaidOut](), 0, count()
    for some in _at_a_time(examples):
        encoded = _encode(some, tokenizer, template, found.notes)
        for place, example, pair in zip(islice(places, len(some)), some, encoded, strict=True):
            if isinstance(pair, UsageError):
                refused += [pair] if isinstance(pair, NotLaidOut) else []
                _drop(found, NOT_TAKEN if isinstance(pair, NotLaidOut) else pair.what, pair.what, example)
                continue
            tokens, trained = pair
            _check_mask(example, trained, tokens, tokenizer)
            if not trained[1:longest].any():
                _drop(found, TOO_LONG, TOO_LONG, example)
                continue
            found.tokens.append(tokens[:longest])
            found.trained.append(trained[:longest])
            found.place.append(place)
            cut += len(tokens) > longest
    if len(refused) > most_bad * len(examples):
        what = f"{len(refused):,} of {len(examples):,} examples: {refused[0].what}"
        raise UsageError(what, where=refused[0].where, todo=refused[0].todo)
    return replace(found, cut=cut)


def _at_a_time(examples: Sequence[Example]) -> Iterator[list[Example]]:
    """Examples in a row: as many as have a million characters together, or AT_A_TIME."""
    some, size = list[Example](), 0
    for example in examples:
        some.append(example)
        size += sum(map(len, _texts(example)))
        if len(some) == AT_A_TIME or size > LONGEST:
            yield some
            some, size = [], 0
    if some:
        yield some


def _drop(found: Encoded, reason: str, why: str, example: Example) -> None:
    found.dropped[reason] += 1
    if len(found.first) < SHOWN:
        found.first.append(f"{example.where or 'example'}: {why}")


def _encode(
    examples: Sequence[Example], tokenizer: TextTokenizer, template: ChatTemplate | None, notes: Counter[str]
) -> list[Pair | UsageError]:
    """Tokens and mask of each example, or why it cannot be used."""
    plain, chats, found = {}, {}, dict[int, Pair | UsageError]()
    for number, example in enumerate(examples):
        if example.form == "preference":
            raise UsageError(
                "a preference has two answers; this training learns from one",
                where=example.where,
                todo="give the chosen answers as messages, or as prompt and completion",
            )
        if example.form != "messages":
            plain[number] = example
            continue
        if template is None:
            raise UsageError("a conversation needs a chat template to become text", where=example.where)
        try:
            layout = _laid_out(example, template)
        except (NotLaidOut, _Forged) as error:
            found[number] = error
            continue
        notes.update(layout.notes)
        if not marks_are_the_template_s(template, layout):
            notes.update([SPELT] if _spells(template.special_pattern, example) else [])
            found[number] = in_pieces(layout, template, tokenizer)
        else:
            chats[number] = layout
    found |= _wholes(chats, tokenizer, notes)
    found |= _documents(plain, tokenizer, notes)
    return [found[number] for number in range(len(examples))]


def _documents(examples: dict[int, Example], tokenizer: TextTokenizer, notes: Counter[str]) -> dict[int, Pair]:
    """Texts and completions, between the document's marks."""
    texts = [example.text or example.prompt + example.completion for example in examples.values()]
    prompts = [example.prompt for example in examples.values()]
    spans = [[(len(prompt), len(text))] for prompt, text in zip(prompts, texts, strict=True)]
    pattern = pattern_of(spellings_of(tokenizer))
    notes.update(SPELT for example in examples.values() if _spells(pattern, example))
    found = _masked(texts, spans, prompts, tokenizer, notes)
    marked = (
        (np.concatenate([[tokenizer.start], tokens, [tokenizer.end]]), np.concatenate([[False], inner, [True]]))
        for tokens, inner in found
    )
    return dict(zip(examples, marked, strict=True))


def _wholes(layouts: dict[int, Layout], tokenizer: TextTokenizer, notes: Counter[str]) -> dict[int, Pair]:
    """Conversations in which only the template spells special tokens: tokenized in one piece, as the model is asked."""
    texts = [layout.text for layout in layouts.values()]
    prompts = [layout.text[: layout.asked or 0] for layout in layouts.values()]
    with special_tokens(tokenizer):
        found = _masked(texts, [layout.trained for layout in layouts.values()], prompts, tokenizer, notes)
    return dict(zip(layouts, found, strict=True))


def _masked(
    texts: list[str], spans: list[list[Span]], prompts: list[str], tokenizer: TextTokenizer, notes: Counter[str]
) -> list[Pair]:
    """Tokens of each text, and which of them its spans train; a note where its prompt alone has other tokens."""
    encoded = tokenizer.encode_with_ends(texts)
    begun = zip(encoded, tokenizer.encode(prompts), strict=True)
    notes.update(PROMPT for (ids, _), prompt in begun if not np.array_equal(ids[: len(prompt)], prompt))
    return [
        (ids, _mask(ends, trained, len(text))) for text, trained, (ids, ends) in zip(texts, spans, encoded, strict=True)
    ]


@contextmanager
def special_tokens(tokenizer: TextTokenizer) -> Iterator[None]:
    """Special tokens' spellings are recognised inside, as they are nowhere else (``data/tokenizer.py``)."""
    before = tokenizer.tokenizer.encode_special_tokens
    tokenizer.tokenizer.encode_special_tokens = False
    try:
        yield
    finally:
        tokenizer.tokenizer.encode_special_tokens = before


def _mask(ends: np.ndarray, spans: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """Which tokens are trained, by their ends: those whose last character is. One without any takes that before it."""
    characters = np.zeros(length + 1, dtype=bool)  # the last stands for "none"
    for start, end in spans:
        characters[start:end] = True
    return characters[ends - 1]


# -- contents that spell special tokens ------------------------------------------------------------------------------


class _Forged(UsageError):
    """What was written spells a special token, and cannot be told from what the template wrote."""


def _laid_out(example: Example, template: ChatTemplate) -> Layout:
    """The conversation as text. Raises NotLaidOut and _Forged."""
    beside = {"tools": example.tools, "documents": example.documents}
    layout = lay_out(template, example.messages, example.where, beside)
    pattern = template.special_pattern
    if layout.contents is None and _spells(pattern, example):
        raise _Forged(FORGED, where=example.where)
    if pattern and any(pattern.search(json.dumps(items, ensure_ascii=False)) for items in beside.values() if items):
        raise _Forged(FORGED_BESIDE, where=example.where)
    return layout


def marks_are_the_template_s(template: ChatTemplate, layout: Layout) -> bool:
    """Whether no content spells a special token, alone or with what is beside it."""
    if template.special_pattern is None:
        return True
    if layout.contents is None:
        return False
    inside = np.zeros(len(layout.text), dtype=bool)
    for start, end in layout.contents:
        inside[start:end] = True
    return not any(inside[mark.start() : mark.end()].any() for mark in template.special_pattern.finditer(layout.text))


def _texts(example: Example) -> Iterator[str]:
    """What people wrote in an example."""
    yield from (example.text, example.prompt, example.completion, *(turn.content for turn in example.messages))


def _spells(pattern: re.Pattern[str] | None, example: Example) -> bool:
    return pattern is not None and any(map(pattern.search, _texts(example)))


def in_pieces(layout: Layout, template: ChatTemplate, tokenizer: TextTokenizer) -> Pair:
    """The tokens of a conversation in which a content spells a special token: the template's own marks are special
    tokens, and what stands between them is ordinary text. With contents unknown, no content has spelt any.
    """
    pattern, text, contents = template.special_pattern, layout.text, layout.contents or []
    assert pattern is not None
    templates = zip([0, *(end for _, end in contents)], [*(start for start, _ in contents), len(text)])
    marks = [match.span() for start, end in templates for match in pattern.finditer(text, start, end)]
    marks.append((len(text), len(text)))
    begins = [0, *(end for _, end in marks[:-1])]
    encoded = tokenizer.encode_with_ends([text[at:start] for at, (start, _) in zip(begins, marks, strict=True)])
    ids, ends = list[Any](), list[Any]()
    for at, (start, end), (piece, places) in zip(begins, marks, encoded, strict=True):
        ids.append(piece)
        ends.append(at + places)
        mark = tokenizer.tokenizer.token_to_id(text[start:end])
        if mark is not None:
            ids.append([mark])
            ends.append([end])
    return np.concatenate(ids, dtype=np.int64), _mask(np.concatenate(ends, dtype=np.int64), layout.trained, len(text))


def _check_mask(example: Example, trained: np.ndarray, tokens: np.ndarray, tokenizer: TextTokenizer) -> None:
    """The first token has nothing before it, so it never counts."""
    counts = trained[1:]
    if counts.any() and not (example.form == "messages" and counts.all()):
        return
    what = "every token of this conversation" if counts.any() else "no token of this example"
    shown = tokenizer.decode(tokens[:100])
    raise UsageError(
        f"{what} would be trained: {shown[:200]!r}",
        where=example.where or "example",
        expected="the answers trained, the questions not",
        todo="check the row and the chat template",
    )
