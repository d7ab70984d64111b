"""The journal of a tuning and the folders that it leads between: a base, and what was made of it.

A journal of all weights moves a model folder, opened in the type that was trained. One of a LoRA or a prefix moves
the adapter alone: it is put onto the base again as the journal's header says, by the same seed, and the base is known
by the hash of its weight files, whatever type the run held it in.

A LoRA's start is drawn by the seed, the same bits on every machine. A prefix's start is computed by the base, so
another machine may begin some bits aside; that is refused, and the way back from the tuned folder remains.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.config import validate
from mickle.errors import UsageError
from mickle.models.folder_check import is_adapter
from mickle.tuning.mezo import Mezo

if TYPE_CHECKING:
    from torch import nn

    from mickle.training.journal import Journal


def open_at(
    folder: Path, journal: Journal, to_step: int | None = None, base: Path | None = None
) -> tuple[nn.Module, str]:
    """The model or adapter at a step (None: the end), and from where: "base" or "tuned".

    folder: the base, from where the steps are replayed bit for bit; or the tuned folder, from where they are undone,
    to rounding. Its weights say which it is. base: of an adapter, where it is not where the adapter says.

    Raises UsageError where the folder is neither end of the journal.
    """
    from mickle.training.replay import replay, undo, verify

    step = journal.step(to_step)
    refuse_other_kind(folder, journal)
    model = _opened(folder, journal, base)
    try:
        end = verify(model, journal)
    except UsageError as error:
        raise UsageError(
            f"the journal is of another base than {folder}: {error.what}",
            expected=error.expected, todo=_advice(journal),
        ) from None  # fmt: skip
    if end == "base":
        replay(model, journal, step, exact=True)
    else:
        undo(model, journal, step)
    return model, end


def refuse_other_kind(folder: Path, journal: Journal) -> None:
    """UsageError where an adapter is given with a journal of all weights, or an adapter of the other kind."""
    from mickle.models.adapters import read_settings

    if not is_adapter(folder):
        return
    added = journal.runs[0].added
    if added is None:
        raise UsageError(
            f"{folder} is an adapter; this journal is of all weights",
            where="journal",
            todo="give the model that its run began with, or what it made of it",
        )
    kind = {"LORA": "lora", "PREFIX_TUNING": "prefix"}[read_settings(folder)["peft_type"]]
    if kind != added["kind"]:
        raise UsageError(f"{folder} is a {kind}; this journal is of a {added['kind']}", where="journal")


def _opened(folder: Path, journal: Journal, base: Path | None) -> nn.Module:
    """The model that the journal moves, at one of its ends if the folder is right."""
    import torch

    from mickle.models.adapters import adapter_base, open_adapter
    from mickle.models.folder import open_model

    run = journal.runs[0]
    if run.added is None:
        return open_model(folder, getattr(torch, run.tensors[0].dtype))
    if is_adapter(folder):
        beneath = base or adapter_base(folder)
        _refuse_other_weights(beneath, run.beneath)
        return open_adapter(folder, beneath)
    _refuse_other_weights(folder, run.beneath)
    return _begun(folder, run.added)


def _begun(folder: Path, added: dict[str, Any]) -> nn.Module:
    """The base with the adapter as it began."""
    from mickle.models.folder import open_model

    parameters = {name: value for name, value in added.items() if name != "seed"}
    settings = validate(Mezo, {"parameters": parameters})
    return settings.learns.prepare(open_model(folder), added["seed"])


def _refuse_other_weights(folder: Path, beneath: str) -> None:
    from mickle.models.adapters import weights_digest

    found = weights_digest(folder)
    if found != beneath:
        raise UsageError(
            f"the journal is of another base than {folder}: its weights have the hash {found[:16]}",
            expected=beneath[:16],
            todo="give the model that the run began with",
        )


def _advice(journal: Journal) -> str:
    added = journal.runs[0].added
    if added is not None and added["kind"] == "prefix":
        return "give the tuned prefix: its start is computed by the base, and another machine may round otherwise"
    return "give the folder that the run began with, or the one that it made"
