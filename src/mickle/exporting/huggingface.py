"""Folders in the forms of Hugging Face: a plain model with all that belongs to it; the adapter at a journal's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle import storage
from mickle.errors import UsageError
from mickle.events import Emit, Noted, Warned
from mickle.exporting.source import Source, chat_template, open_source_template, template_folder
from mickle.models.adapters import open_adapter, save_adapter
from mickle.models.folder import describe, end_tokens, open_tokenizer, save_model
from mickle.models.folder_check import CONFIG, TEMPLATE, TOKENIZER_SETTINGS, read_config
from mickle.models.folder_files import KEPT, keep_files, write_end_tokens

if TYPE_CHECKING:
    from torch import nn


def write_huggingface(model: nn.Module, source: Source, work: Path) -> None:
    """Write a plain model and all that belongs to it into `work`."""
    save_model(model, work)
    keep_words(source, work)
    marks = {name: value for name, value in read_config(source.base).items() if name.endswith("_token_id")}
    storage.write_json(work / CONFIG, {**storage.read_json(work / CONFIG), **marks})
    if source.ends != end_tokens(work):  # a folder without generation settings ends texts as its config says
        write_end_tokens(work, source.ends)


def keep_words(source: Source, work: Path) -> None:
    """The small files of the first folder that has each; of chat templates the first folder's, in whichever file: one
    in a file of its own would win over one in a tokenizer's settings.
    """
    keep_files(source.files, work, [name for name in KEPT if name != TEMPLATE])
    home = template_folder(source)
    if home is None:
        return
    if (home / TEMPLATE).exists():
        keep_files([home], work, [TEMPLATE])
    elif home != source.home_of(TOKENIZER_SETTINGS):
        storage.write_text(work / TEMPLATE, chat_template(source))


def refuse_missing_rows(vocabulary: Mapping[str, int], size: int, where: Path) -> None:
    """UsageError that names the tokens of a tokenizer for which a model of ``size`` tokens has no row."""
    rowless = sorted((number, token) for token, number in vocabulary.items() if number >= size)
    if rowless:
        named = ", ".join(repr(token[:40]) for _, token in rowless[:5]) + (", ..." if len(rowless) > 5 else "")
        raise UsageError(
            f"the model has no row for {len(rowless):,} of the tokenizer's tokens: {named}",
            where=str(where),
            expected=f"ids below {size:,}",
            todo="use the tokenizer that belongs to the model, or take what names them out of its files",
        )


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
    keep_words(source, work)
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


def refuse_other_words(source: Source, work: Path, prompts: Sequence[str], emit: Emit) -> None:
    """Tokenizer, chat template and end tokens of the export must be those of the source, and every token that
    transformers reads in the tokenizer's files have a row.
    """
    if source.tokenizer_home is not None:
        _refuse_marks_without_rows(work, emit)
        before, after = open_tokenizer(source.tokenizer_home), open_tokenizer(work)
        for prompt in prompts:
            if before.encode(prompt).ids != after.encode(prompt).ids:
                raise UsageError("the export's tokenizer gives other tokens", where=f"prompt {prompt[:60]!r}")
        _refuse_other_template(source, work)
    if source.ends != end_tokens(work):
        raise UsageError(f"the export ends texts at {end_tokens(work)}", expected=str(source.ends))


def _refuse_marks_without_rows(work: Path, emit: Emit) -> None:
    """As `refuse_missing_rows`, of the vocabulary that transformers reads, which adds the marks that any file names."""
    from mickle.models.transformers_bridge import vocabulary_by_transformers

    try:
        vocabulary = vocabulary_by_transformers(work)
    except UsageError as error:
        emit(Warned(f"transformers does not open this tokenizer: {error.what}"))
        return
    refuse_missing_rows(vocabulary, describe(work).vocab_size, work)


def _refuse_other_template(source: Source, work: Path) -> None:
    """One conversation must be rendered alike, or refused alike, by both folders' templates."""
    from mickle.data.chat_template import open_template

    template = open_source_template(source)
    if template is not None and _rendered(template) != _rendered(open_template(work)):
        raise UsageError("the export renders a conversation differently", where=template.where)


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
