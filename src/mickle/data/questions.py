"""A conversation that waits for an answer, as the tokens that a chat model is asked with."""

from __future__ import annotations

from collections.abc import Sequence

from mickle.data.answer_spans import Layout, match_contents, sketched_parts, stand_ins
from mickle.data.chat_template import ChatTemplate
from mickle.data.conversation_forms import Message
from mickle.data.examples import in_pieces, marks_are_the_template_s, special_tokens
from mickle.data.template_sandbox import Rendering
from mickle.data.tokenizer import TextTokenizer
from mickle.errors import UsageError


def question_tokens(template: ChatTemplate, tokenizer: TextTokenizer, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation and of the template's generation prompt, after which the answer begins.

    The same ids as in training (``examples.py``): the template's marks are special tokens, and a message that spells
    one gets ordinary tokens. Raises UsageError for a conversation that the template refuses, or changes so that a mark
    spelt in it could not be told from the template's own.
    """
    layout = _lay_out(template, messages)
    pattern = template.special_pattern
    if layout.contents is None and pattern and any(pattern.search(turn.content) for turn in messages):
        raise UsageError(
            "a message spells a special token, and the template changes its text",
            where=template.where,
            todo="write it otherwise",
        )
    if layout.contents is not None and not marks_are_the_template_s(template, layout):
        return in_pieces(layout, template, tokenizer)[0].tolist()
    with special_tokens(tokenizer):
        return tokenizer.encode([layout.text])[0].tolist()


def _lay_out(template: ChatTemplate, messages: Sequence[Message]) -> Layout:
    """The text with the generation prompt, and where in it the messages' contents stand: found by stand-ins."""
    marks, sketched = stand_ins(messages)
    asked = [Rendering(chat, len(messages), prompt=True) for chat in (0, 1)]
    text, drawn = template.render_all([messages, sketched], asked)
    if isinstance(text, UsageError):
        raise text
    parts = [] if isinstance(drawn, UsageError) or not marks else sketched_parts(drawn, marks, len(messages))
    found = match_contents(text, parts, messages)
    exact = found is not None and all(item.exact for item in found)
    return Layout(text, [], [(item.start, item.end) for item in found or ()] if exact else None, [])
