"""One training run, as every verb that trains has it: its numbers, kept; a part of a batch that fits the free memory;
the training itself, written down; and the weights that are kept of it.

A run is a :class:`TrainingRun`, a value; what differs between verbs is in its fields. Alone or as one of several
processes it gives the same losses (`training/distributed.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field

from mickle import machine, storage
from mickle.config import Config
from mickle.errors import ResourceError
from mickle.events import Emit, Evaluated, Event, JsonLines, Noted, Stopped, Trained
from mickle.machine import Forecast
from mickle.step import Step, execute_alone

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from mickle.training.fit import Batches, Schedule
    from mickle.training.objectives import Objective

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"
KEPT_CHECKPOINTS = 2
PLANNED = ("steps", "accumulate", "precision", "evaluate_every", "save_every")  # what `fit` takes of a plan
OPTIONS = (
    "schedule", "clip_norm", "dropout", "patience", "checkpoints", "keep", "seed", "on_bad_numbers", "watch_loss",
    "identity",
)  # fmt: skip
Measure = Callable[["nn.Module"], dict[str, float]]


class TrainingStep(Step):
    """A verb that trains: alone, or as one of the processes that torchrun starts."""

    def fingerprint(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {name: version(name) for name in ("torch", "tokenizers")}

    def together(self, out: Path, emit: Emit) -> Path:
        """The first process does the step, the others train along and write nothing."""
        from mickle.events import ignore
        from mickle.training import distributed

        work = out.parent / f"{out.name}.partial"
        with distributed.processes() as place:
            if place.writes:
                distributed.lead(lambda: execute_alone(self, out, emit))
            else:
                distributed.follow(lambda: self.run(work, ignore))
        return out


class Best(Config):
    """The weights of the lowest held-out loss."""

    kind: Literal["best"] = "best"
    patience: int | None = Field(
        None, ge=1, description="evaluations without a lower held-out loss after which it stops (default: never)"
    )


class Last(Config):
    """The weights of the last step."""

    kind: Literal["last"] = "last"


KeptWeights = Annotated[Best | Last, Field(discriminator="kind")]


def refuse_two_lengths(steps: int | None, epochs: float | None) -> None:
    """ValueError where a run's length is given twice."""
    if steps is not None and epochs is not None:
        raise ValueError("give steps or epochs, not both")


def refuse_no_model(size: str | int, tokenizer: Path | None, vocabulary_size: int | None) -> None:
    """ValueError where these say nothing that could be built."""
    if tokenizer is not None and vocabulary_size is not None:
        raise ValueError("a given tokenizer has its own vocabulary; leave vocabulary_size out")
    if isinstance(size, int) and size < 10_000:
        raise ValueError("a size in parameters is at least 10000")


@dataclass(frozen=True)
class TrainingPlan:
    """The numbers that every training has, resolved. ``batch_size`` counts rows of ``sequence_length`` tokens."""

    parameters: int
    sequence_length: int
    batch_size: int
    accumulate: int
    steps: int
    learning_rate: float
    precision: Literal["float32", "bfloat16"]
    evaluate_every: int
    save_every: int
    short: str = field(default="", kw_only=True)  # why a batch is made in parts, where memory decided it

    @property
    def batch_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.batch_size * self.sequence_length

    @property
    def derived(self) -> dict[str, Any]:
        """The settings that a person may leave out, as they are."""
        names = [name for name in (*(f.name for f in fields(Asked)), "recompute") if name != "epochs"]
        return {name: found for name in names if (found := getattr(self, name, None)) not in (None, 0.0)}

    @property
    def micro_rows(self) -> int:
        """Rows of the largest part of a batch."""
        return math.ceil(self.batch_size / self.accumulate)

    @property
    def parts(self) -> str:
        """In how many parts a batch is made, for a person."""
        return f" in {self.accumulate} parts" if self.accumulate > 1 else ""

    @property
    def rhythm(self) -> str:
        """Precision, and how often something is measured and saved, for a person."""
        return (
            f"precision {self.precision}; evaluation every {self.evaluate_every} steps, "
            f"checkpoint every {self.save_every}"
        )


@dataclass(frozen=True)
class Asked:
    """What a person set of these numbers; None where the verb derives it."""

    sequence_length: int | None = None
    batch_tokens: int | None = None
    steps: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    precision: Literal["float32", "bfloat16"] | None = None
    accumulate: int | None = None
    evaluate_every: int | None = None
    save_every: int | None = None

    @classmethod
    def of(cls, settings: Config) -> Asked:
        """Those that a verb's settings have, by their names."""
        return cls(**{field.name: getattr(settings, field.name, None) for field in fields(Asked)})

    def numbers(
        self, *, parameters: int, length: int, rows: int, steps: int, rate: float, evaluations: int
    ) -> dict[str, Any]:
        """The fields of a plan: what was asked for, and beside it what the verb derived."""
        every = max(1, steps // evaluations)
        return {
            "parameters": parameters,
            "sequence_length": length,
            "batch_size": rows,
            "accumulate": min(rows, self.accumulate or 1),
            "steps": steps,
            "learning_rate": self.learning_rate or rate,
            "precision": self.precision or ("bfloat16" if machine.fast_bfloat16() else "float32"),
            "evaluate_every": self.evaluate_every or every,
            "save_every": self.save_every or every,
        }


P = TypeVar("P", bound=TrainingPlan)


def in_parts(plan: P, least: int = 1) -> list[P]:
    """The plan with its batch in ever more parts of equal size, ``least`` at the least; the effective batch stays."""
    counts = [n for n in range(least, plan.batch_size + 1) if plan.batch_size % n == 0]
    return [replace(plan, accumulate=count) for count in counts]


def fitting(candidates: Sequence[P], memory: Callable[[P], int], where: str, todo: str) -> P:
    """The first plan whose peak ``memory`` fits in what is free; ResourceError where not even the last one does."""
    free = machine.available_memory() + machine.peak_memory()
    found = next((plan for plan in candidates if memory(plan) < 0.9 * free), None)
    if found is None:
        raise ResourceError(
            f"This needs {memory(candidates[-1]) / 1e9:.1f} GB even one row at a time; {free / 1e9:.1f} GB are free.",
            where=where,
            todo=todo,
        )
    if found is candidates[0]:
        return found
    short = (
        f"memory: {found.batch_size} rows at once need {memory(candidates[0]) / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
        f"free: {found.micro_rows} rows at a time in {found.accumulate} parts"
    )
    return replace(found, short=short)


def kept(file: Path, make: Callable[[], Any]) -> Any:
    """What ``make`` gave the first time, as JSON keeps it: much is measured, and a restart must not measure again."""
    if not file.is_file():
        storage.write_json(file, make())
    return storage.read_json(file)


def kept_plan(file: Path, kind: type[P], make: Callable[[], tuple[P, Forecast]]) -> tuple[P, Forecast]:
    """A run's plan and forecast, made once. ResourceError where the disk has no room for it."""

    def written() -> dict[str, Any]:
        plan, forecast = make()
        storage.check_space(file.parent, forecast.disk_bytes)
        return {"plan": asdict(plan), "forecast": asdict(forecast)}

    found = kept(file, written)
    notes = tuple(found["forecast"].pop("notes"))
    return kind(**found["plan"]), Forecast(**found["forecast"], notes=notes)


@dataclass(frozen=True)
class TrainingRun:
    """What a training is made of beside the model and the optimizer over it; fields as those of ``loop.fit``.

    log: the file of its events. measure: of held-out data, for the evaluations of the run.
    weights: which are kept, the best by ``measure``, and with what patience, or the last; None where nobody asks.
    start: what ``measure`` gives before the first step, where that is known; the best may then be the weights as they
    came.
    """

    plan: TrainingPlan
    objective: Objective
    batches: Batches
    schedule: Schedule
    clip_norm: float
    checkpoints: Path
    log: Path
    seed: int
    identity: Mapping[str, Any]
    dropout: Schedule | None = None
    measure: Measure | None = None
    weights: Best | Last | None = None
    start: float = math.inf
    keep: int = KEPT_CHECKPOINTS
    on_bad_numbers: Literal["stop", "skip", "back"] = "stop"
    watch_loss: bool = True

    @property
    def patience(self) -> int | None:
        """Evaluations without a better one after which it stops."""
        return self.weights.patience if isinstance(self.weights, Best) else None

    def events(self, model: nn.Module, optimizer: Optimizer) -> Generator[Event, None, None]:
        """Train the model in place, event by event."""
        from mickle.training.loop import fit

        options = {name: getattr(self, name) for name in OPTIONS} | {name: getattr(self.plan, name) for name in PLANNED}
        return fit(model, self.objective, self.batches, optimizer, evaluate=self.measure, **options)


@dataclass(frozen=True)
class Outcome:
    """A trained model with the weights that are kept, whole; their step; what the last evaluation measured; how many
    steps were made, and why no more, where it stopped early.
    """

    model: nn.Module
    optimizer: Optimizer
    step: int
    last: dict[str, float]
    steps: int
    stopped: str = ""

    @property
    def summary(self) -> dict[str, Any]:
        """The same for a folder's summary."""
        told = {"kept_step": self.step, "last_evaluation": self.last}
        return told | ({"steps_made": self.steps, "stopped": self.stopped} if self.stopped else {})


def train(
    run: TrainingRun,
    model: nn.Module,
    optimizer_of: Callable[[nn.Module], Optimizer],
    again: Callable[[], nn.Module],
    emit: Emit,
) -> Outcome:
    """Train ``model`` in place, or what is left of it. One of several processes trains its share of it, and has the
    weights back in a model that ``again`` makes.
    """
    from mickle.training import checkpoint, distributed

    machine.seed_everything(run.seed)
    optimizer = optimizer_of(distributed.shard(model))
    with closing(run.events(model, optimizer)) as events:  # however it ends, its lock goes at once
        last, stopped = record(events, run.log, emit)
    steps = stopped.step if stopped else run.plan.steps
    machine.release_memory()  # that of activations, before the best weights are read beside all that trained
    best = isinstance(run.weights, Best) and run.measure is not None
    found = checkpoint.best(run.checkpoints) if best else None
    chosen, lowest = found or (None, math.inf)
    untouched = best and run.start < math.inf and run.start <= lowest
    if distributed.current().world > 1 or untouched:
        model, chosen = again(), chosen or checkpoint.saved(run.checkpoints)[-1]
    if chosen is not None and not untouched:
        checkpoint.load_weights(chosen, model)
    distributed.wait_for_all()  # the first process will delete the checkpoints: not before all have read theirs
    step = 0 if untouched else steps if chosen is None else checkpoint.step_of(chosen)
    if run.weights is not None:
        emit(Noted(f"weights of step {step:,} of {run.plan.steps:,} are kept ({run.weights.kind} by held-out loss)"))
    return Outcome(model, optimizer, step, last, steps, stopped.message if stopped else "")


def record(events: Iterable[Event], file: Path, emit: Emit) -> tuple[dict[str, float], Stopped | None]:
    """Run the training; pass its events on and write them down, each step once. Returns the last evaluation, and where
    it stopped early.
    """
    from mickle.training import distributed

    write, newest, values, stopped = JsonLines(file), None, {}, None
    writes = distributed.current().writes
    for event in events:
        if isinstance(event, Trained):
            if writes and (newest is None or event.step <= newest):
                write.rewind(event.step - 1)  # a resumed run says these lines again
            newest = event.step
        elif isinstance(event, Evaluated):
            values = event.values
        elif isinstance(event, Stopped):
            stopped = event
        if writes:
            write(event)
        emit(event)
    if values or not file.is_file():
        return values, stopped
    # An earlier try of this run was killed after its last step: what it measured then.
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return next((line["values"] for line in reversed(lines) if line["event"] == "evaluated"), {}), stopped
