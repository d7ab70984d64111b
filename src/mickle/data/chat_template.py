"""The chat template of a model folder: messages to text, as ``transformers`` renders them, in a sandbox with limits.

    template = open_template(folder)
    text = template.render([Message("user", "Hi"), Message("assistant", "Hello")])
    layout = lay_out(template, messages)  # with what the assistant writes (``answer_spans.py``)

Where a folder has none, a plain one is used that any reader understands; ``source`` is then to be stored as
``chat_template.jinja`` beside the tuned weights, so that the model is asked as it was trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mickle.data.template_sandbox import Failed, Refused, Rendering, render
from mickle.data.tokenizer import TextTokenizer, marks_of, open_text_tokenizer
from mickle.data.turns import Message
from mickle.errors import UsageError
from mickle.storage import read_json
from mickle.untrusted.values import read_text

FILE, SETTINGS = "chat_template.jinja", "tokenizer_config.json"
LARGEST = 64 << 10  # bytes of a template; those in use have up to 20 kB
LARGEST_SETTINGS = 4 << 20
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
PLAIN = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- 'Assistant:\\n' + message['content'] + eos_token }}
    {%- elif message['role'] == 'user' %}
        {{- 'User:\\n' + message['content'] }}
    {%- else %}
        {{- message['role'] | capitalize + ':\\n' + message['content'] }}
    {%- endif %}
    {{- '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:\\n' }}
{%- endif %}
"""


@dataclass(frozen=True)
class ChatTemplate:
    """A template's ``source``; ``where`` it comes from; ``builtin``: it is Mickle's plain one, the folder had none.

    ``variables``: the marks it may use by name (bos_token, eos_token, ...). ``specials``: spellings of the tokenizer's
    special tokens, of which the first after an answer ends it.
    """

    source: str
    where: str = "chat template"
    builtin: bool = False
    variables: dict[str, str] = field(default_factory=dict)
    specials: tuple[str, ...] = ()

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False, *, marking: bool = False) -> str:
        """The text of a conversation. UsageError, naming the template's file, where it refuses, fails or does not end.

        marking: put ``template_sandbox.OPENS`` and ``CLOSES`` around the template's generation blocks.
        """
        (found,) = self.render_all([messages], [Rendering(0, len(messages), add_generation_prompt, marking)])
        if isinstance(found, UsageError):
            raise found
        return found

    def render_all(
        self,
        chats: Sequence[Sequence[Message]],
        asked: list[Rendering],
        beside: Mapping[str, Sequence[Any]] | None = None,
    ) -> list[str | UsageError]:
        """Many texts at once, which is quicker: beginnings of ``chats``, in the order ``asked``, or their errors.

        beside: the conversation's tools and documents, by these names.
        """
        shown = {name: list(items) for name, items in (beside or {}).items() if items}
        variables: dict[str, Any] = {**self.variables, "tools": None, "documents": None, **shown}
        turns = [[{"role": turn.role, "content": turn.content} for turn in messages] for messages in chats]
        return render(self.source, self.where, variables, turns, asked)

    @property
    def marks_answers(self) -> bool:
        """Whether the template has ``{% generation %}`` blocks."""
        return _GENERATION.search(self.source) is not None

    @cached_property
    def prompts(self) -> bool:
        """Whether ``add_generation_prompt`` makes a difference: else the text before an answer is part of its turn."""
        question = [Message("user", "?")]
        try:
            return self.render(question, add_generation_prompt=True) != self.render(question)
        except (Refused, Failed):  # a template that wants more than a question
            return True

    @cached_property
    def special_pattern(self) -> re.Pattern[str] | None:
        """Finds special tokens' spellings, the longest first; None where there are none."""
        return pattern_of(self.specials)


def pattern_of(spellings: Iterable[str]) -> re.Pattern[str] | None:
    """Finds any of the spellings, the longest first; None where there are none."""
    ordered = sorted(filter(None, set(spellings)), key=lambda mark: (-len(mark), mark))
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def open_template(folder: Path, tokenizer: TextTokenizer | None = None, name: str = "default") -> ChatTemplate:
    """The chat template of a model folder, or the built-in plain one.

    ``chat_template.jinja`` comes first, then ``chat_template`` in ``tokenizer_config.json``: a text, or a list of
    named ones. tokenizer: the folder's, where it is open already. Raises UsageError, naming the file, for what is
    no template.
    """
    folder = Path(folder)
    tokenizer = tokenizer or open_text_tokenizer(folder)
    source, where = _find(folder, name)
    built_in = source is None
    if source is None:
        source, where = PLAIN, "Mickle's plain chat template"
    if len(source.encode("utf-8", "replace")) > LARGEST:
        raise UsageError("chat template is too large to be one", where=where, expected=f"at most {LARGEST:,} bytes")
    spellings = tuple(sorted(spellings_of(tokenizer)))
    template = ChatTemplate(source, where, built_in, marks_of(tokenizer.configuration), spellings)
    template.prompts  # noqa: B018 - what is wrong with a template is said when it is opened
    return template


def has_template(folder: Path, tokenizer: TextTokenizer) -> bool:
    """Whether a model folder brings a chat template of its own, whatever it is worth."""
    return (folder / FILE).is_file() or bool(tokenizer.configuration.get("chat_template"))


def _find(folder: Path, name: str) -> tuple[str | None, str]:
    file = folder / FILE
    if file.is_file():
        return read_text(file, "chat template", LARGEST), str(file)
    file = folder / SETTINGS
    settings = read_json(file, LARGEST_SETTINGS) if file.is_file() else {}
    found = settings.get("chat_template") if isinstance(settings, dict) else None
    if isinstance(found, list):
        named = {
            item["name"]: item["template"]
            for item in found
            if isinstance(item, dict) and isinstance(item.get("name"), str) and "template" in item
        }
        if name not in named:
            raise UsageError(
                f"there is no chat template {name!r}", where=str(file), expected=", ".join(map(str, named)) or "one"
            )
        found = named[name]
    if found is not None and not isinstance(found, str):
        raise UsageError("chat_template is no text", where=str(file), expected="Jinja, or a list of named ones")
    return found, str(file)


def spellings_of(tokenizer: TextTokenizer) -> set[str]:
    """How a tokenizer's special tokens are spelt."""
    added = tokenizer.tokenizer.get_added_tokens_decoder()
    found = {token.content for token in added.values() if token.special}
    marks = (tokenizer.tokenizer.id_to_token(mark) for mark in (tokenizer.start, tokenizer.end))
    return found | {mark for mark in marks if mark}
