"""``mickle tune``: a model and examples in, a tuned model or an adapter out, in the memory there is.

Supervised fine-tuning of any language model of ``transformers`` and of ours: on conversations, prompts and completions,
or plain text; of a masked encoder on text. ``tune_plan.py`` derives what is left out and forecasts the memory,
``tune_data.py`` reads the examples, ``measures.py`` and ``outcome.py`` say what it came to: loss on held-out examples
and on general text before and after, samples, peak memory against the forecast.
"""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mickle.config import Input
from mickle.data.label_prompts import LabelPrompt
from mickle.errors import UsageError
from mickle.events import Emit, Noted, Warned
from mickle.machine import Forecast
from mickle.models.gguf_folder import Model
from mickle.results import Finding, Section
from mickle.storage import SCRATCH
from mickle.training.optimizers import Schedule
from mickle.training.run import (
    CHECKPOINTS,
    METRICS,
    Asked,
    Best,
    KeptWeights,
    Outcome,
    TrainingRun,
    TrainingStep,
    kept,
    kept_plan,
    refuse_two_lengths,
    train,
)
from mickle.tuning.data_files import Columns, DataFiles
from mickle.tuning.methods import Adam, Full, Lora, Qlora
from mickle.tuning.mezo import Mezo

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from mickle.data.records import Page
    from mickle.tuning.task import Task
    from mickle.tuning.tune_plan import TunePlan
    from mickle.tuning.tune_run import Known

QUICK_TOKENS = 16_384  # of held-out examples that an evaluation during the run reads


class Tune(TrainingStep):
    """Teach a model from examples: all its weights, or adapters beside them, on a base in 16, 32 or 4 bits."""

    # 4: step 0 may be the best; 5: columns are obeyed; 6: nine digits in metrics; 7: heldout.jsonl; 8: bits per byte
    version: ClassVar[int] = 8
    kind: ClassVar[str] = "tuned"
    positional: ClassVar[str] = "model"
    example: ClassVar[str] = "mickle tune model --data conversations.jsonl --method lora --out tuned"
    reported: ClassVar[bool] = True

    model: Model = Field(
        description="model folder, Mickle's or any other, or GGUF file, also one whose weights are stored in few bits"
    )
    data: DataFiles = Field(
        description="examples to learn from: JSON Lines, JSON, Parquet, CSV or saved sets of datasets, each perhaps "
        "with a weight, how often it is read; the form is found by the columns"
    )
    columns: Columns = Field(
        default_factory=dict, description="what columns of other names are, such as question=user,answer=assistant"
    )
    heldout: Input | None = Field(None, description="examples to measure on (default: some of data)")
    heldout_share: float | None = Field(
        None, ge=0, lt=1, description="share of data never trained on (default: 10 %, 500 examples at most)"
    )
    general: Input | None = Field(
        None,
        description="texts for the forgetting figure (default: the model's own held-out pages, else documentation)",
    )
    prompt: LabelPrompt | None = Field(
        None,
        description="for labelled rows: a template, and a word for each label (default: rows are examples to write)",
    )
    method: Annotated[Full | Lora | Qlora | Mezo, Field(discriminator="kind")] = Field(
        default_factory=Lora, description="full, lora, qlora or mezo, and its settings"
    )
    optimizer: Adam = Field(default_factory=Adam, description="AdamW's settings")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="learning rate at its peak (default: by method and size; at 7 billion parameters 2e-4, full 2e-5)",
    )
    schedule: Schedule = Field(
        default_factory=lambda: Schedule(warmup=0.03, floor=0.0), description="how the learning rate moves"
    )
    steps: int | None = Field(None, ge=1, description="optimizer steps (default: 3 epochs)")
    epochs: float | None = Field(None, gt=0, description="instead of steps: how often to read the examples")
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens of an optimizer step (default: those of some 16 examples)"
    )
    sequence_length: int | None = Field(
        None,
        ge=8,
        le=1 << 20,
        description="tokens of a row; longer examples are cut (default: the longest example, 2048 at most)",
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None,
        description="precision of matrix products and of a frozen base (default: bfloat16 where the processor has it)",
    )
    accumulate: int | None = Field(
        None, ge=1, description="parts in which a batch is computed (default: as few as fit in memory)"
    )
    recompute: bool | None = Field(
        None, description="compute activations twice instead of keeping them (default: where memory is short)"
    )
    on_bad_numbers: Literal["stop", "skip", "back"] = Field(
        "stop", description="what to do when a loss or gradient is not finite, or the loss jumps"
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="optimizer steps between evaluations (default: 10 evaluations in a run)"
    )
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints (default: 10 in a run)")
    weights: KeptWeights = Field(
        default_factory=Best,
        description="which weights to keep: best by held-out loss, perhaps with a patience to stop early, or last",
    )
    most_bad: float = Field(0.1, ge=0, le=1, description="share of bad rows above which the data is refused")
    samples: int = Field(4, ge=0, le=100, description="held-out examples that the model answers before and after")

    @model_validator(mode="after")
    def _agree(self) -> Tune:
        refuse_two_lengths(self.steps, self.epochs)
        if self.heldout is not None and self.heldout_share is not None:
            raise ValueError("held-out examples are given; leave heldout_share out")
        if self.prompt is not None and (self.columns or any(file.columns for file in self.data)):
            raise ValueError("prompt names its columns itself; leave columns out")
        if self.method.counts_answers and self.prompt is None:
            raise ValueError("method.objective: accuracy needs a prompt with labels")
        return self

    def idle(self) -> set[str]:
        return {"optimizer", "recompute"} if self.method.kept is None else set()

    @classmethod
    def section(cls, folder: Path, summary: dict[str, Any]) -> Section:
        """What it gave and what it broke, its curve, and answers before and after."""
        from mickle.tuning.outcome import tuning_section

        return tuning_section(folder, summary)

    @classmethod
    def findings(cls, summary: dict[str, Any]) -> list[Finding]:
        """Losses before and after, and a compressor's."""
        from mickle.tuning.outcome import tuning_findings

        return tuning_findings(summary)

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        from mickle.training import distributed
        from mickle.tuning import measures, outcome
        from mickle.tuning.general import general_pages
        from mickle.tuning.tune_run import mean_scores, measure, open_model_to_tune, round_as_given, runs_on, save_tuned

        scratch, writes = work / SCRATCH, distributed.current().writes
        if (why := self.method.one_process) and distributed.current().world > 1:
            raise UsageError(
                f"{self.method.kind} tunes in one process: {why}.",
                where="method",
                todo="leave torchrun out, or take --method lora or full",
            )
        known, plan, forecast = distributed.after_first(lambda: self._ready(scratch, emit))
        pages, whence = general_pages(self.general, self.model) if writes else ([], "")
        emit(Noted(f"general text: {len(pages):,} pages, {whence}"))
        model = open_model_to_tune(known, plan, self.seed)

        def measured(when: str, model: nn.Module) -> dict[str, Any]:
            """Kept, so that a restart need not measure again."""
            found: dict[str, Any] = kept(
                scratch / f"{when}.json", lambda: measure(known, plan, model, pages, self.samples)
            )
            return found

        before = distributed.after_first(lambda: measured("before", model))
        scored = measures.from_lists(before["task"])[: known.task.first(QUICK_TOKENS)]
        start = mean_scores(scored)["heldout_loss"] if len(scored) else math.inf
        done = self._train(model, known, plan, start, work, emit)
        if not writes:
            return {}
        dtype = round_as_given(known, done.model) if self.method.stored_as_given else None
        after = measured(f"after-{done.step}", done.model)
        results = self._results(before, after, known.task, pages, forecast)
        results |= {"heldout_loss_at_start": start} if math.isfinite(start) else {}
        save_tuned(known, done.model.to(dtype), work)
        checkpoints = scratch / CHECKPOINTS
        journal = self.method.journal(done.optimizer, done.model, done.step, self.model, checkpoints, work)
        pairs = zip(before["samples"], after["samples"], strict=True)
        texts = [{**one, "text": two["text"], "untrained": one["text"]} for one, two in pairs]
        outcome.write(work, results, work / METRICS, texts)
        for line in outcome.lines(results):
            emit(Noted(line))
        warnings = outcome.warnings(results, done.step, self.method)
        warnings += [message] if (message := runs_on(known, work)) else []
        for message in warnings:
            emit(Warned(message))
        return {
            "method": self.method.kind,
            "form": known.task.form,
            "parameters": plan.parameters,
            "trained_parameters": sum(p.numel() for p in done.model.parameters() if p.requires_grad),
            "data": list(known.task.lines),
            "shares": [asdict(share) for share in known.task.shares],
            "training_examples": len(known.task.lengths),
            "heldout_examples": len(known.task.heldout_lengths),
            "overlap": known.task.overlap,
            "general_text": whence,
            "tokens_read": done.steps * plan.batch_tokens,
            **done.summary,
            "warnings": warnings,
            **results,
            **journal,
            "forecast": asdict(forecast),
            "plan": asdict(plan),
        }

    def dry_run(self) -> tuple[Forecast, str]:
        known = self._inputs()
        plan, forecast = known.plan(Asked.of(self), self.recompute)
        notes = (*known.task.lines, *plan.lines())
        return replace(forecast, notes=notes, derived=plan.derived), known.task.preview()

    def after(self, out: Path) -> str:
        return self.method.learns.next_command(out)

    def _inputs(self) -> Known:
        """Model folder and data, read and checked; what is wrong with the model is said before the data is read."""
        from mickle.tuning.task import Sources
        from mickle.tuning.tune_run import read_inputs

        sources = Sources(self.data, self.heldout, self.heldout_share, self.most_bad, self.columns)
        return read_inputs(self.model, self.method, sources, self.prompt, self.sequence_length)

    def _ready(self, scratch: Path, emit: Emit) -> tuple[Known, TunePlan, Forecast]:
        """What the run needs before the model is opened; the plan is kept in ``scratch``."""
        from mickle.tuning.tune_plan import TunePlan

        known = self._inputs()
        made = partial(known.plan, Asked.of(self), self.recompute)
        plan, forecast = kept_plan(scratch / "plan.json", TunePlan, made)
        for line in (*known.task.lines, *plan.lines(), f"forecast: {forecast}"):
            emit(Noted(line))
        if known.task.overlap["exact"] and self.heldout is not None:
            emit(Warned("held-out examples are among the training examples: their loss says little"))
        return known, plan, forecast

    def _train(self, model: nn.Module, known: Known, plan: TunePlan, start: float, work: Path, emit: Emit) -> Outcome:
        """Train in place. ``start``: the held-out loss before the first step."""
        from mickle.tuning.tune_run import open_model_to_tune, quick_measure

        task, scratch = known.task, work / SCRATCH
        objective, batches = task.objective_and_batches(plan, self.seed, self.method.counts_answers)
        run = TrainingRun(
            plan=plan,
            objective=objective,
            batches=batches,
            schedule=self.schedule,
            clip_norm=self.optimizer.clip_norm or self.method.largest_norm,
            checkpoints=scratch / CHECKPOINTS,
            log=work / METRICS,
            seed=self.seed,
            identity=self.identity(),
            measure=quick_measure(task, plan.sequence_length, QUICK_TOKENS) if task.heldout_lengths else None,
            weights=self.weights,
            start=start,
            on_bad_numbers=self.on_bad_numbers,
            watch_loss=not task.leaps,
        )
        again = partial(open_model_to_tune, known, plan, self.seed)
        rate = self.method.found_rate(plan.learning_rate, scratch / "rate.json", again, run)

        def optimizer_of(model: nn.Module) -> Optimizer:
            return self.method.optimizer(model, rate, self.optimizer, scratch, self.seed, plan.steps)

        return train(run, model, optimizer_of, again, emit)

    def _results(
        self, before: dict[str, Any], after: dict[str, Any], task: Task, pages: list[Page], forecast: Forecast
    ) -> dict[str, Any]:
        """Before against after, beside a compressor, and memory against the forecast."""
        from mickle.tuning.measures import from_lists
        from mickle.tuning.outcome import add_bits, compared
        from mickle.tuning.tune_run import peak_memory

        results: dict[str, Any] = {}
        for name in ("task", "general"):
            scores = from_lists(before[name]), from_lists(after[name])
            results[name] = compared(*scores, self.seed) if len(scores[0]) and scores[0][:, 1].sum() else None
        add_bits(results, *task.spelt(), pages)
        results["unit"] = task.unit
        results["memory"] = {"peak_bytes": peak_memory(), "forecast_bytes": forecast.memory_bytes}
        return results
