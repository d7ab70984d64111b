"""A plain Hugging Face folder: weights, settings, tokenizer, chat template and the tokens that end a text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle import storage
from mickle.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from mickle.exporting.source import Source


def write_huggingface(model: nn.Module, source: Source, work: Path) -> None:
    """Write a plain model and all that belongs to it into `work`."""
    from mickle.exporting.source import token_settings
    from mickle.models.folder import save_model
    from mickle.models.folder_check import CONFIG
    from mickle.models.folder_files import keep_files

    save_model(model, work)
    keep_files(source.files, work)
    written = storage.read_json(work / CONFIG)
    storage.write_json(work / CONFIG, {**written, **token_settings(source)})


def refuse_other_words(source: Source, work: Path, prompts: Sequence[str]) -> None:
    """Tokenizer, chat template and end tokens of the export must be those of the source."""
    from mickle.exporting.source import template_folder
    from mickle.models.folder import end_tokens, open_tokenizer

    if source.tokenizer_home is not None:
        before, after = open_tokenizer(source.tokenizer_home), open_tokenizer(work)
        for prompt in prompts:
            if before.encode(prompt).ids != after.encode(prompt).ids:
                raise UsageError("the export's tokenizer gives other tokens", where=f"prompt {prompt[:60]!r}")
        _refuse_other_template(template_folder(source), work)
    ends = source.home_of("generation_config.json")
    if ends is not None and end_tokens(ends) != end_tokens(work):
        raise UsageError(f"the export ends texts at {end_tokens(work)}", expected=str(end_tokens(ends)))


def _refuse_other_template(home: Path | None, work: Path) -> None:
    """One conversation must be rendered alike, or refused alike, by both folders' templates."""
    from mickle.data.chat_template import open_template

    if home is not None and _rendered(open_template(home)) != _rendered(open_template(work)):
        raise UsageError("the export renders a conversation differently", where=str(home))


def _rendered(template: Any) -> str:
    from mickle.data.conversation_forms import Message

    try:
        text: str = template.render(
            [Message("user", "What is a mickle?"), Message("assistant", "Much."), Message("user", "Thanks")],
            add_generation_prompt=True,
        )
    except UsageError as error:
        return f"refused: {error.what}"
    return text
