"""The verbs and where each lives. Only names here: a verb's module is imported when the verb is used."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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


def step_class(name: str, where: str = "", others: Iterable[str] = ()) -> type[Step]:
    """The settings class of a verb; :class:`UsageError` with the nearest name, of `others` too, where there is none."""
    if name not in STEPS:
        known = [*STEPS, *others]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UsageError(f"unknown verb '{name}'{hint}", where=where, expected=", ".join(known))
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


@contextmanager
def prepared(name: str, step: Step, device: str | None) -> Iterator[None]:
    """On the device that was asked for; settings that do nothing are told as Python's warnings."""
    from mickle.config import without_effect
    from mickle.machine import computing_on

    for setting in without_effect(step):
        warnings.warn(f"{setting} does nothing beside the other settings", stacklevel=3)
    if step.cpu_only and device not in (None, "auto", "cpu"):
        raise UsageError(f"{name} computes on the CPU", where="device", todo="leave --device out")
    with computing_on(device):
        yield


def call(
    name: str,
    *first: Any,
    out: Path | str | None = None,
    config: Path | str | None = None,
    emit: Emit | None = None,
    device: str | None = None,
    **settings: Any,
) -> Path:
    """Run a verb from Python: settings by name, the folder back. Without ``emit``, warnings are Python's own.

    first: the one setting that may stand without its name, as on the command line.
    """
    from mickle.config import Config, load, validate
    from mickle.events import as_warnings
    from mickle.step import execute

    cls = step_class(name)
    if len(first) > bool(cls.positional) or (first and cls.positional in settings):
        raise UsageError(
            f"mickle.{name} takes {len(first)} values without a name",
            where=f"mickle.{name}(...)",
            expected=f"{cls.positional or 'none'} at most, once; all other settings by their names",
        )
    settings |= dict(zip((cls.positional,), first, strict=False))
    given = {key: value.model_dump() if isinstance(value, Config) else value for key, value in settings.items()}
    if config is not None:
        given = {**load(cls, config).model_dump(exclude_unset=True), **given}
    step = validate(cls, given, where=f"mickle.{name}(...)")
    with prepared(name, step, device):
        return execute(step, Path(out) if out is not None else default_out(name, step), emit or as_warnings)


def function(name: str) -> Any:
    """A verb as a Python function, with the settings as its signature and their descriptions as its documentation."""
    import inspect

    from mickle.machine import DEVICES

    cls = step_class(name)

    def run(*first: Any, **settings: Any) -> Path:
        return call(name, *first, **settings)

    fields = cls.model_fields.items()
    ordered = sorted(fields, key=lambda item: item[0] != cls.positional)
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter(
            field_name,
            inspect.Parameter.POSITIONAL_OR_KEYWORD if field_name == cls.positional else kind,
            default=inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True),
            annotation=field.annotation,
        )
        for field_name, field in ordered
    ]
    common = [inspect.Parameter(more, kind, default=None) for more in ("out", "config", "emit", "device")]
    said = {field_name: field.description for field_name, field in ordered} | {
        "out": "the folder (default: runs/VERB-HASH)",
        "config": "settings as a YAML file",
        "emit": "is told every event of the work (mickle.events)",
        "device": f"where to compute: {DEVICES} (default: auto, the fastest)",
    }
    lines = "\n".join(f"    {field_name}: {text}" for field_name, text in said.items())
    run.__name__ = run.__qualname__ = name
    run.__module__ = "mickle"
    run.__doc__ = f"{(cls.__doc__ or '').strip()}\n\nReturns the folder that was made.\n\n{lines}"
    run.__signature__ = inspect.Signature([*parameters, *common], return_annotation=Path)  # type: ignore[attr-defined]
    return run
