"""``mickle plan``: what to train, before training it.

The task ``repeats`` answers the person whose text is what is scarce: from unique tokens and a budget to a model size, a
number of epochs, what these are worth in fresh text, dropout, memory and hours, and the command that trains it
(``repeats.py``; the law is in ``training/repetition.py``). The task ``rate`` chooses a dropout rate for a regression.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mickle.config import Config, Input
from mickle.errors import UsageError
from mickle.events import Emit, ignore
from mickle.machine import Forecast
from mickle.planning.rate import Rate
from mickle.results import Result, markdown
from mickle.step import Step
from mickle.storage import read_json

if TYPE_CHECKING:
    from mickle.training.repetition import Law

PLAN = "plan.json"


class Repeats(Config):
    """How large a model, and how many epochs of the text that there is."""

    kind: Literal["repeats"] = "repeats"
    tokens: float | None = Field(None, ge=2, description="unique training tokens, where there is no corpus yet")
    size: Literal["tiny", "small", "base"] | int | None = Field(
        None, description="tiny, small, base or a number of parameters (default: best for the budget)"
    )
    flops: float | None = Field(None, gt=0, description="compute budget in FLOP: 6 x parameters x tokens read")
    hours: float | None = Field(
        None, gt=0, description="time budget in hours of this machine, by its measured speed (default: 1)"
    )
    epochs: float | None = Field(None, gt=0, description="instead of a budget: how often to read the text")
    runs: Input | None = Field(
        None,
        description="your own runs to fit: CSV, JSON or JSON Lines with N, D, U, loss, or a folder of models",
    )
    refit: Literal["all", "scale"] = Field(
        "all",
        description="what is fitted to the runs: all constants of the law, or only the scale of the loss (two runs do)",
    )
    law: Input | None = Field(
        None, description="plan.json of an earlier plan, whose law to use (default: the paper's, for C4)"
    )
    least: float = Field(
        0.1, gt=0, lt=1, description="share of a fresh token's worth that a repeated one must keep for its epoch to pay"
    )

    @model_validator(mode="after")
    def _agree(self) -> Repeats:
        budgets = [name for name in ("flops", "hours", "epochs") if getattr(self, name) is not None]
        if len(budgets) > 1:
            raise ValueError(f"give one budget, not {' and '.join(budgets)}")
        if self.epochs is not None and self.size is None:
            raise ValueError("epochs say nothing of the size; give size too, or flops or hours instead")
        if isinstance(self.size, int) and self.size < 10_000:
            raise ValueError("a size in parameters is at least 10000")
        return self

    def refuse(self, data: Path | None) -> None:
        """ValueError where the text to read is named twice, or not at all."""
        if data is not None and self.tokens is not None:
            raise ValueError("give data or task.tokens, not both: the corpus has its own tokens")
        if data is None and self.tokens is None:
            raise ValueError("give a corpus as data, or the number of its tokens as task.tokens")

    def run(self, data: Path | None, emit: Emit, seed: int) -> Result:
        """The plan: numbers, tables, curves and sentences."""
        from mickle.planning.report import page, picture

        found = self._plan(data, emit, seed)
        return Result(
            {name: found[name] for name in ("recommended", "command", "notes", "warnings")},
            found,
            page(found),
            {"plan.svg": picture(found)},
            file=PLAN,
            notes=found["notes"],
            warnings=found["warnings"],
        )

    def dry_run(self, data: Path | None, seed: int) -> tuple[Forecast, str]:
        """The same, said and not written."""
        from mickle.planning.report import page

        found = self._plan(data, ignore, seed)
        return Forecast(notes=(*found["notes"], *found["warnings"])), markdown(page(found))

    def after(self, out: Path) -> str:
        """The command that trains what is planned."""
        return str(read_json(out / PLAN)["command"])

    def _plan(self, data: Path | None, emit: Emit, seed: int) -> dict[str, Any]:
        from mickle.planning.repeats import Budget, fitted, make_plan
        from mickle.planning.supply import counted, of_corpus
        from mickle.training.repetition_runs import read_runs

        runs = read_runs(self.runs) if self.runs else []
        law, others = fitted(opened_law(self.law), runs, self.refit, seed)
        read = of_corpus(data, emit) if data else counted(self.tokens or 0.0)
        budget = Budget(self.size, self.epochs, self.flops, self.hours or 1.0, self.least)
        return make_plan(budget, read, law, others, runs, data)


class Plan(Step):
    """Say what to train before training it: size, epochs, dropout, memory and hours."""

    kind: ClassVar[str] = "plan"
    title: ClassVar[str] = "The plan"
    lead: ClassVar[str] = "What this much data and this budget can give, before any of it is spent."
    positional: ClassVar[str] = "data"
    example: ClassVar[str] = "mickle plan corpus --task.hours 2 --out plan"

    data: Input | None = Field(None, description="corpus folder, or Parquet files with a column `text`")
    task: Annotated[Repeats | Rate, Field(discriminator="kind")] = Field(
        default_factory=Repeats, description="repeats or rate, and its settings"
    )

    @model_validator(mode="after")
    def _agree(self) -> Plan:
        self.task.refuse(self.data)
        return self

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        return self.task.run(self.data, emit, self.seed).write(work, emit)

    def dry_run(self) -> tuple[Forecast, str]:
        return self.task.dry_run(self.data, self.seed)

    def after(self, out: Path) -> str:
        return self.task.after(out)


def opened_law(source: Path | None) -> Law:
    """The law that an earlier plan used, from its plan.json or folder; the paper's where none is named."""
    from mickle.training.repetition import C4, Law

    if source is None:
        return C4
    file = source / PLAN if source.is_dir() else source
    found = read_json(file)
    constants = found.get("law") if isinstance(found, dict) else None
    names = {field.name for field in fields(Law)}
    if not isinstance(constants, dict) or set(constants) != names:
        raise UsageError("There is no law in this file.", where=str(file), expected="plan.json of `mickle plan`")
    for name, value in constants.items():
        if name != "origin" and type(value) not in (int, float):
            raise UsageError(f"{name} of this law is {str(value)[:40]!r}", where=str(file), expected="a number")
    return Law(**{**constants, "origin": str(constants["origin"])})
