"""Folders in the forms of Hugging Face: a plain model with all that belongs to it; the adapter at a journal's step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle import storage
from mickle.errors import UsageError
from mickle.events import Emit, Noted
from mickle.exporting.source import Source, template_folder, token_settings
from mickle.models.adapters import open_adapter, save_adapter
from mickle.models.folder import end_tokens, open_tokenizer, save_model
from mickle.models.folder_check import CONFIG
from mickle.models.folder_files import keep_files

if TYPE_CHECKING:
    from torch import nn


def write_huggingface(model: nn.Module, source: Source, work: Path) -> None:
    """Write a plain model and all that belongs to it into `work`."""
    save_model(model, work)
    keep_files(source.files, work)
    written = storage.read_json(work / CONFIG)
    storage.write_json(work / CONFIG, {**written, **token_settings(source)})


def write_adapter(source: Source, work: Path, emit: Emit) -> tuple[dict[str, Any], str]:
    """Write the adapter at the journal's step into `work`, in PEFT's form, with all that belongs to it; its step and
    fingerprint, and how it came there. What was written is bit for bit what was moved.
    """
    from mickle.training.replay import fingerprint_for

    assert source.journal is not None
    run = source.journal.runs[-1]
    model, how = source.open_moved()
    emit(Noted(how))
    save_adapter(model, work, source.base)
    keep_files(source.files, work)
    moved = fingerprint_for(model, run)
    del model
    written = fingerprint_for(open_adapter(work, source.base), run)
    if written != moved:
        raise UsageError(
            "the adapter that was written holds other numbers than the one in memory",
            todo="report this with the command; nothing was written",
        )
    emit(Noted("proven: opened anew, the adapter is the same bit for bit"))
    step = source.journal.step(source.to_step)
    return {"step": step, "fingerprint": moved}, how


def refuse_other_words(source: Source, work: Path, prompts: Sequence[str]) -> None:
    """Tokenizer, chat template and end tokens of the export must be those of the source."""
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
