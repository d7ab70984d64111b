"""Examples as tokens with a mask of those that are trained, and batches of whole examples packed into rows.

| example | tokens | trained |
|---|---|---|
| messages | the rendered conversation; no marks but the template's | the assistant's spans (``answer_spans.py``) |
| completion | start, prompt and completion in one piece, end | the completion and the end |
| text | start, text, end | all but the start |

A token is trained if its last character stands in a trained span: the token of " answer" after "[/INST]" is,
whichever side the space is on. Special tokens are recognised in what the template wrote and never in what people
wrote: a message that spells an end mark gets ordinary tokens. What is too long is cut at the right; where nothing
trained would remain, the example is dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from mickle.data.answer_spans import Layout, lay_out
from mickle.data.chat_template import ChatTemplate
from mickle.data.conversation_forms import Example
from mickle.data.example_batches import Encoded, ExampleBatches
from mickle.data.tokenizer import TextTokenizer, coloured
from mickle.errors import UsageError

__all__ = ["Encoded", "ExampleBatches", "encode_examples", "preview"]

AT_A_TIME = 256  # examples tokenized together
TOO_LONG = "too long: nothing trained is left within the limit"
FORGED = "a message spells a special token, and the template changes its text"


def encode_examples(
    examples: Sequence[Example],
    tokenizer: TextTokenizer,
    template: ChatTemplate | None = None,
    *,
    longest: int,
    special: bool = True,
) -> Encoded:
    """Tokens and masks of examples, at most ``longest`` tokens each.

    template: needed for conversations. special: whether the template's special tokens are single tokens; else all
    of a conversation is ordinary text. Raises UsageError showing the example whose mask is empty or, in a
    conversation, full; and for preferences, which have two answers.
    """
    encoded = Encoded([], [])
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    cut = 0
    for first in range(0, len(examples), AT_A_TIME):
        some = examples[first : first + AT_A_TIME]
        for example, pair in zip(some, _encode(some, tokenizer, template, special, notes), strict=True):
            if pair is None:
                dropped[FORGED] += 1
                continue
            tokens, trained = pair
            _check_mask(example, trained, tokens, tokenizer)
            if len(tokens) > longest:
                tokens, trained = tokens[:longest], trained[:longest]
                if not trained[1:].any():
                    dropped[TOO_LONG] += 1
                    continue
                cut += 1
            encoded.tokens.append(tokens)
            encoded.trained.append(trained)
    return Encoded(encoded.tokens, encoded.trained, cut, dict(dropped), dict(notes))


Pair = tuple[np.ndarray, np.ndarray]


def _encode(
    examples: Sequence[Example],
    tokenizer: TextTokenizer,
    template: ChatTemplate | None,
    special: bool,
    notes: Counter[str],
) -> list[Pair | None]:
    """Tokens and mask of each example; None where a message forges a special token and cannot be told from template."""
    plain, chats, found = {}, {}, dict[int, Pair | None]()
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
        layout = lay_out(template, example.messages, example.where)
        notes.update(layout.notes)
        marks = _marks(template, layout) if special else []
        if marks is None:
            if layout.contents is None and _spells(template, example):
                found[number] = None
                continue
            found[number] = _in_pieces(layout, template, tokenizer)
        else:
            chats[number] = layout
    found |= _wholes(chats, tokenizer, special)
    found |= _documents(plain, tokenizer)
    return [found[number] for number in range(len(examples))]


def _documents(examples: dict[int, Example], tokenizer: TextTokenizer) -> dict[int, Pair | None]:
    """Texts and completions, between the document's marks."""
    texts = [example.text or example.prompt + example.completion for example in examples.values()]
    encodings = tokenizer.tokenizer.encode_batch(texts, add_special_tokens=False)
    found: dict[int, Pair | None] = {}
    for (number, example), text, encoding in zip(examples.items(), texts, encodings, strict=True):
        span = (0 if example.form == "text" else len(example.prompt), len(text))
        inner = _mask(encoding.offsets, [span], len(text))
        tokens = np.array([tokenizer.start, *encoding.ids, tokenizer.end], dtype=np.int64)
        found[number] = tokens, np.concatenate([[False], inner, [True]])
    return found


def _wholes(layouts: dict[int, Layout], tokenizer: TextTokenizer, special: bool) -> dict[int, Pair | None]:
    """Conversations in which only the template spells special tokens: tokenized in one piece, as the model is asked."""
    texts = [layout.text for layout in layouts.values()]
    with _special_tokens(tokenizer, special):
        encodings = tokenizer.tokenizer.encode_batch(texts, add_special_tokens=False)
    return {
        number: (np.array(encoding.ids, dtype=np.int64), _mask(encoding.offsets, layout.trained, len(layout.text)))
        for (number, layout), encoding in zip(layouts.items(), encodings, strict=True)
    }


@contextmanager
def _special_tokens(tokenizer: TextTokenizer, wanted: bool) -> Iterator[None]:
    """Special tokens' spellings are recognised inside, as they are nowhere else (``data/tokenizer.py``)."""
    before = tokenizer.tokenizer.encode_special_tokens
    tokenizer.tokenizer.encode_special_tokens = not wanted
    try:
        yield
    finally:
        tokenizer.tokenizer.encode_special_tokens = before


def _mask(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], length: int) -> np.ndarray:
    """Which tokens are trained: those whose last character is. A token of no characters takes that before it."""
    characters = np.zeros(length + 1, dtype=bool)  # the last stands for "none"
    for start, end in spans:
        characters[start:end] = True
    ends = np.array([end for _, end in offsets], dtype=np.int64).reshape(-1)
    return characters[ends - 1]


# -- contents that spell special tokens ------------------------------------------------------------------------------


def _marks(template: ChatTemplate, layout: Layout) -> list[tuple[int, int]] | None:
    """Where the template spells special tokens; None where a content spells one, alone or with what is beside it."""
    if template.special_pattern is None:
        return []
    marks = [match.span() for match in template.special_pattern.finditer(layout.text)]
    if layout.contents is None:
        return None
    inside = np.zeros(len(layout.text), dtype=bool)
    for start, end in layout.contents:
        inside[start:end] = True
    return None if any(inside[start:end].any() for start, end in marks) else marks


def _spells(template: ChatTemplate, example: Example) -> bool:
    pattern = template.special_pattern
    return pattern is not None and any(pattern.search(turn.content) for turn in example.messages)


def _in_pieces(layout: Layout, template: ChatTemplate, tokenizer: TextTokenizer) -> Pair:
    """The tokens of a conversation in which a content spells a special token: the template's own marks are special
    tokens, and what stands between them is ordinary text. With contents unknown, no content has spelt any.
    """
    pattern, text = template.special_pattern, layout.text
    assert pattern is not None
    templates, at = [], 0
    for start, end in [*(layout.contents or []), (len(text), len(text))]:
        templates.append((at, start))
        at = end
    marks = [match.span() for start, end in templates for match in pattern.finditer(text, start, end)]
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    at = 0
    for start, end in [*marks, (len(text), len(text))]:
        piece = tokenizer.tokenizer.encode(text[at:start], add_special_tokens=False)
        ids += piece.ids
        offsets += [(at + first, at + last) for first, last in piece.offsets]
        mark = tokenizer.tokenizer.token_to_id(text[start:end])
        if mark is not None:
            ids.append(mark)
            offsets.append((start, end))
        at = end
    return np.array(ids, dtype=np.int64), _mask(offsets, layout.trained, len(text))


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


def preview(encoded: Encoded, tokenizer: TextTokenizer, most: int = 3, longest: int = 400) -> str:
    """The first examples as Rich markup: trained tokens on a coloured ground, the others dim."""
    shown = []
    for tokens, trained in list(zip(encoded.tokens, encoded.trained, strict=True))[:most]:
        counts = trained.copy()
        counts[:1] = False  # nothing stands before the first token, so it is never predicted
        rest = "" if len(tokens) <= longest else f"[dim] ... {len(tokens) - longest:,} more tokens[/]"
        shown.append("".join(coloured(tokenizer, tokens[:longest].tolist(), counts[:longest].tolist())) + rest)
    return "\n\n".join(shown)
