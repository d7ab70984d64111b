"""What a forward-only run (``tuning/mezo.py``) needs beside the others: its optimizer, whose rate is measured once and
kept, and its journal, which alone turns the base into the tuned model.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mickle import storage
from mickle.training.checkpoint import STATE
from mickle.training.closure import Closure
from mickle.training.objectives import Batch, Objective
from mickle.tuning.mezo import Mezo, build_mezo, set_rate
from mickle.tuning.mezo_journal import journal_of_tuning

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


def write_journal_of(
    settings: Tune, optimizer: MeZO, model: nn.Module, kept: int, checkpoints: Path, path: Path
) -> dict[str, Any]:
    """The journal up to the step ``kept``, whose weights the model has; its bytes and steps.

    A batch that was left out (``on_bad_numbers: back``) is a step of the run and none of the journal, so how far the
    journal was is read from the checkpoint of that step.
    """
    from mickle.training.journal import cut, write_journal

    assert isinstance(settings.method, Mezo)
    journal = journal_of_tuning(settings.method, optimizer, model, settings.seed, settings.model)
    state = checkpoints / f"step-{kept:08d}" / STATE
    if state.is_file():
        steps = len(storage.read_json(state)["optimizer"]["rest"]["history"]["rates"])
        journal = cut(journal, steps, journal.runs[-1].tuned)
    write_journal(journal, path)
    return {"steps": journal.steps, "bytes": path.stat().st_size}
