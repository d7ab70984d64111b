"""What a forward-only run (``tuning/mezo.py``) needs beside the others: its optimizer, whose rate is measured once and
kept, and its journal, which alone turns the base into the tuned model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mickle import storage
from mickle.training.closure import Closure
from mickle.training.objectives import Batch, Objective
from mickle.tuning.mezo import Mezo, build_mezo, set_rate

if TYPE_CHECKING:
    from mickle.training.mezo import MeZO
    from mickle.tuning.tune import Tune
    from mickle.tuning.tune_plan import Plan

JOURNAL = "journal.mezo"


def settled(settings: Tune, plan: Plan) -> Mezo:
    """MeZO's settings with the rate that was given, if any, in its own place."""
    method = settings.method
    assert isinstance(method, Mezo)
    return method.model_copy(update={"learning_rate": method.learning_rate or plan.learning_rate or None})


def kept_rate(
    settings: Tune,
    plan: Plan,
    file: Path,
    open_model: Callable[[], nn.Module],
    objective: Objective,
    batches: Callable[[int], Batch],
) -> Mezo:
    """MeZO's settings with a learning rate: the given one, that in ``file``, or one measured now and written there.

    It is measured on a model of its own, which is dropped: probing leaves weights where they were only to rounding.
    """
    method = settled(settings, plan)
    if method.learning_rate is None and not file.is_file():
        model = open_model()
        optimizer = build_mezo(method, model, settings.seed, plan.steps)

        def closure(index: int) -> Closure:
            return Closure(
                model, objective, batches(index), step=index, seed=settings.seed, accumulate=plan.accumulate,
                precision=plan.precision,
            )  # fmt: skip

        found = set_rate(method, optimizer, closure)
        assert found is not None
        storage.write_json(file, {"rate": found.rate})
    if method.learning_rate is None:
        method = method.model_copy(update={"learning_rate": float(storage.read_json(file)["rate"])})
    return method


def write_journal_of(optimizer: MeZO, model: nn.Module, kept: int, path: Path) -> dict[str, Any]:
    """The journal up to the step whose weights were kept; its bytes and steps."""
    from mickle.training.journal import cut, journal_of, write_journal
    from mickle.training.replay import fingerprint

    journal = journal_of(optimizer, fingerprint(model))
    if kept < journal.steps:
        journal = cut(journal, kept)
    write_journal(journal, path)
    return {"steps": journal.steps, "bytes": path.stat().st_size}
