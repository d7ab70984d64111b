"""What is exported: a model, an adapter on its base, a model in few bits, or one of them moved along a journal."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mickle.errors import UsageError
from mickle.models.adapters import adapter_base, base_in_few_bits, open_adapter, read_settings
from mickle.models.folder import end_tokens, open_model, open_tokenizer
from mickle.models.folder_check import TEMPLATE, TOKENIZER, TOKENIZER_SETTINGS, is_adapter, read_values
from mickle.models.folder_files import GENERATION
from mickle.storage import no_such

if TYPE_CHECKING:
    from torch import nn

    from mickle.data.chat_template import ChatTemplate
    from mickle.training.journal import Journal


@dataclass(frozen=True)
class Source:
    """A model to export. `base`: the model folder beneath; `files`: folders that may hold its tokenizer, best first."""

    folder: Path
    base: Path
    original: Path | None
    journal: Journal | None
    to_step: int | None

    @property
    def moves_adapter(self) -> bool:
        """Whether a journal moves an adapter, so that an adapter comes out."""
        return self.journal is not None and self.journal.runs[0].added is not None

    @property
    def adapter(self) -> bool:
        """Whether the folder is an adapter's."""
        return is_adapter(self.folder)

    @property
    def files(self) -> list[Path]:
        """Where tokenizer, chat template and generation settings may stand."""
        return [self.folder, self.base] if self.adapter else [self.folder]

    def home_of(self, name: str) -> Path | None:
        """The first of these folders that has a file of this name."""
        return next((folder for folder in self.files if (folder / name).exists()), None)

    @property
    def ends(self) -> list[int]:
        """The tokens that end a text."""
        return end_tokens(self.home_of(GENERATION) or self.base)

    @property
    def tokenizer_home(self) -> Path | None:
        """The folder with the tokenizer, where there is one."""
        return self.home_of(TOKENIZER)

    def open(self) -> nn.Module:
        """The model as it computes, adapters still beside their layers, in the types of its files."""
        if self.journal is not None:
            return self.open_moved()[0]
        if self.adapter:
            return open_adapter(self.folder, self.original or self.base, as_trained=self.original is None)
        return open_model(self.folder)

    def open_moved(self) -> tuple[nn.Module, str]:
        """The model or adapter at the journal's step, and a sentence on how it came there."""
        from mickle.training.replay import fingerprint_for
        from mickle.tuning.mezo_journal import open_at

        assert self.journal is not None
        model, end = open_at(self.folder, self.journal, self.to_step, self.base if self.adapter else None)
        steps, last = self.journal.steps, self.journal.runs[-1]
        step = self.journal.step(self.to_step)
        place = f"step {step:,} of {steps:,}"
        if end == "tuned":
            undone = steps - step
            return (
                model,
                f"{place}: the last {undone:,} undone, right to rounding" if undone else f"{place}: as given",
            )
        exact = step < steps or not last.tuned or fingerprint_for(model, last) == last.tuned
        how = "bit for bit" if exact else "right to rounding: this machine adds otherwise"
        return model, f"{place}: replayed from the base, {how}"

    def trained_on(self) -> nn.Module | None:
        """The adapter on the base in few bits that it was trained on, where it is put onto the original instead."""
        return None if self.original is None else open_adapter(self.folder, self.base)


def find_source(
    folder: Path,
    onto: Literal["dequantized", "original"],
    base: Path | None,
    original: Path | None,
    journal: Path | None,
    to_step: int | None,
) -> Source:
    """The source that the settings mean; UsageError where they do not fit the folder. Reads no weights."""
    if not folder.is_dir():
        raise no_such(folder, "model folder")
    if to_step is not None and journal is None:
        raise UsageError("to_step needs a journal", where="to_step")
    if journal is not None:
        return _journaled(folder, base, original, journal, to_step)
    return _plain(folder, onto, base, original)


def _journaled(folder: Path, base: Path | None, original: Path | None, file: Path, to_step: int | None) -> Source:
    """A folder that is one end of a journal."""
    from mickle.training.journal import read_journal
    from mickle.tuning.mezo_journal import refuse_other_kind

    if original is not None:
        raise UsageError("original_folder is not read with a journal", where="original_folder")
    adapter = is_adapter(folder)
    if base is not None and not adapter:
        raise UsageError(f"{folder} is no adapter", where="base_folder", todo="leave base_folder out")
    journal = read_journal(file)
    journal.step(to_step)  # refused before anything is opened
    refuse_other_kind(folder, journal)
    beneath = (base or adapter_base(folder)) if adapter else folder
    return Source(folder, beneath, None, journal, to_step)


def _plain(folder: Path, onto: Literal["dequantized", "original"], base: Path | None, original: Path | None) -> Source:
    """A model or an adapter."""
    if not is_adapter(folder):
        refused = {"base_folder": base, "original_folder": original}
        for name, value in refused.items():
            if value is not None:
                raise UsageError(f"{folder} is no adapter", where=name, todo=f"leave {name} out")
        return Source(folder, folder, None, None, None)
    if read_settings(folder)["peft_type"] != "LORA":
        raise UsageError("a prefix is no change of weights: it cannot be merged", where=str(folder))
    found = base or adapter_base(folder)
    if onto == "dequantized" and original is not None:
        raise UsageError("original_folder is not read", where="original_folder", todo="add --base original")
    bits = base_in_few_bits(folder, found)
    if onto == "dequantized" or not bits:
        return Source(folder, found, None, None, None)
    if bits == "stored" and original is None:
        raise UsageError(
            f"the base {found} holds few bits only; the weights it was made of are not in it",
            where="base",
            todo="give their folder with --original-folder, or merge with --base dequantized",
        )
    return Source(folder, found, original or found, None, None)


def end_marks(source: Source, size: int) -> dict[str, int]:
    """The ids of the marks `bos`, `eos`, `pad` as the tokenizer's files name them, of those that a model of ``size``
    tokens has; `eot`: another special token that ends a text (`generation_config.json`), where there is one.
    """
    from mickle.data.tokenizer import mark_of, open_text_tokenizer

    assert source.tokenizer_home is not None
    words = open_text_tokenizer(source.tokenizer_home)
    spelt = {name: mark_of(words.configuration, f"{name}_token") for name in ("bos", "eos", "pad")}
    ids = {name: words.tokenizer.token_to_id(mark) for name, mark in spelt.items() if mark is not None}
    others = [token for token in source.ends if token in words.special and token != ids.get("eos")]
    ids |= {"eot": others[0]} if others else {}
    return {name: number for name, number in ids.items() if number is not None and 0 <= number < size}


def runs_on(source: Source) -> str:
    """A sentence where the mark that the chat template puts after an answer ends no text; "" where it does."""
    from mickle.data.answer_spans import lay_out
    from mickle.data.conversation_forms import Message

    template = open_source_template(source)
    if template is None or source.tokenizer_home is None:
        return ""
    try:
        layout = lay_out(template, [Message("user", "Hello"), Message("assistant", "Much")])
    except UsageError:  # a template that wants more than a question and an answer
        return ""
    told = layout.text[: layout.trained[-1][1]].rstrip() if layout.trained else ""
    mark = next((mark for mark in template.specials if told.endswith(mark)), None)
    if mark is None or open_tokenizer(source.tokenizer_home).token_to_id(mark) in source.ends:
        return ""
    return (
        f"the chat template ends an answer with {mark!r}, which is not among the tokens that end a text "
        f"({source.ends}): models write on past it; add it to eos_token_id in generation_config.json"
    )


def chat_template(source: Source) -> str:
    """The source of the template that counts: the first folder's that has one; "" where none has."""
    template = open_source_template(source)
    return "" if template is None else template.source


def open_source_template(source: Source) -> ChatTemplate | None:
    """The template that counts, with the marks of the tokenizer; None where no folder has one."""
    from mickle.data.chat_template import open_template
    from mickle.data.tokenizer import open_text_tokenizer

    home = template_folder(source)
    return None if home is None else open_template(home, open_text_tokenizer(source.tokenizer_home or home))


def template_folder(source: Source) -> Path | None:
    """The first folder with a chat template of its own, in a file or in its tokenizer's settings."""
    for folder in source.files:
        if (folder / TEMPLATE).exists() or read_values(folder, TOKENIZER_SETTINGS).get("chat_template"):
            return folder
    return None
