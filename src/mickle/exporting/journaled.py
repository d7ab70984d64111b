"""A journal of an adapter: the adapter folder of any of its steps, equal bit for bit to what was moved."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.errors import UsageError
from mickle.events import Emit, Noted
from mickle.storage import write_json

if TYPE_CHECKING:
    from mickle.exporting.source import Source

RESULTS = "export.json"


def write_adapter(source: Source, work: Path, emit: Emit) -> dict[str, Any]:
    """Write the adapter at the journal's step into `work`, in PEFT's form, with all that belongs to it."""
    from mickle.models.adapters import open_adapter, save_adapter
    from mickle.models.folder_files import keep_files
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
    step = source.journal.steps if source.to_step is None else source.to_step
    notes = [how]
    write_json(work / RESULTS, {"journal": {"step": step, "fingerprint": moved}, "notes": notes})
    return {"type": "adapter", "step": step, "fingerprint": moved}
