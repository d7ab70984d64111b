"""The verbs and where each lives. Only names here: a verb's module is imported when the verb is used."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mickle.errors import UsageError

if TYPE_CHECKING:
    from mickle.events import Emit
    from mickle.step import Step

STEPS = {
    "curate": ("mickle.data.curate:Curate", "pages -> corpus"),
    "mix": ("mickle.training.mix:Mix", "corpus with domains -> weights to sample them by"),
    "plan": ("mickle.planning.plan:Plan", "data and a budget -> size, epochs, dropout, memory, hours"),
    "pretrain": ("mickle.training.pretrain:Pretrain", "corpus -> model"),
    "tune": ("mickle.tuning.tune:Tune", "model and examples -> tuned model or adapter, in the memory there is"),
    "compress": ("mickle.compression.compress:Compress", "model -> the same in 2 to 4 bits a weight"),
    "evaluate": (
        "mickle.evaluation.evaluate:Evaluate",
        "model -> how good: loss, length, hidden tokens, pairs, beside another",
    ),
    "export": ("mickle.exporting.export:Export", "model or adapter -> a folder for other tools, proven equal"),
    "sample": ("mickle.sampling.sample:Sample", "model -> text"),
    "study": ("mickle.studies.study:RunStudy", "a paper's claim, measured here, with a verdict"),
}


def step_class(name: str, where: str = "") -> type[Step]:
    """The settings class of a verb; :class:`UsageError` with the nearest name where there is none."""
    if name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "verbs: " + ", ".join(STEPS)
        raise UsageError(f"unknown verb '{name}'; {hint}", where=where)
    module, attribute = STEPS[name][0].split(":")
    found: type[Step] = getattr(importlib.import_module(module), attribute)
    return found


def made_by(identity: dict[str, Any]) -> type[Step]:
    """The class that made a folder, by the identity in its manifest; the plain one where it is not known here."""
    from mickle.step import Step

    names = {place.rpartition(":")[2].lower(): name for name, (place, _) in STEPS.items()}
    verb = identity.get("verb")
    return step_class(names[verb]) if verb in names else Step


def default_out(name: str, step: Step) -> Path:
    """Where a verb writes when no folder is named: the same settings always give the same name."""
    from mickle.step import identity_hash

    return Path("runs") / f"{name}-{identity_hash(step.identity())}"


def call(
    name: str,
    *,
    out: Path | str | None = None,
    config: Path | str | None = None,
    emit: Emit | None = None,
    **settings: Any,
) -> Path:
    """Run a verb from Python: settings by name, the folder back. Without ``emit``, warnings are Python's own."""
    from mickle.config import Config, load, validate
    from mickle.events import as_warnings
    from mickle.step import execute

    cls = step_class(name)
    given = {key: value.model_dump() if isinstance(value, Config) else value for key, value in settings.items()}
    if config is not None:
        given = {**load(cls, config).model_dump(exclude_unset=True), **given}
    step = validate(cls, given, where=f"mickle.{name}(...)")
    return execute(step, Path(out) if out is not None else default_out(name, step), emit or as_warnings)
