"""``mickle tune``: a model and examples in, a tuned model or an adapter out, in the memory there is.

Supervised fine-tuning of any language model of ``transformers`` and of ours: on conversations, prompts and completions,
or plain text; of a masked encoder on text. ``tune_plan.py`` derives what is left out and forecasts the memory,
``tune_data.py`` reads the examples, ``measures.py`` and ``outcome.py`` say what it came to: loss on held-out examples
and on general text before and after, samples, peak memory against the forecast.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mickle.config import Input
from mickle.data.label_prompts import LabelPrompt
from mickle.events import Emit, Noted, Warned
from mickle.machine import Forecast
from mickle.results import Finding, Section
from mickle.step import Step
from mickle.storage import SCRATCH
from mickle.training.optimizers import Schedule
from mickle.tuning.methods import Adam, Full, Lora, Qlora, refuse_adapter
from mickle.tuning.mezo import Mezo

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from mickle.data.records import Page
    from mickle.tuning.tune_run import Ready

QUICK_TOKENS = 16_384  # of held-out examples that an evaluation during the run reads


class Tune(Step):
    """Teach a model from examples: all its weights, or adapters beside them, on a base in 16, 32 or 4 bits."""

    version: ClassVar[int] = 2  # 2: the documentation that general text falls back on is read, not imported
    kind: ClassVar[str] = "tuned"
    positional: ClassVar[str] = "model"
    example: ClassVar[str] = "mickle tune model --data conversations.jsonl --method lora --out tuned"
    reported: ClassVar[bool] = True

    model: Input = Field(description="model folder, Mickle's or any other, also one in few bits")
    data: Input = Field(description="examples: JSON Lines, JSON, Parquet or CSV; the form is found by its columns")
    heldout: Input | None = Field(None, description="examples to measure on (default: some of data)")
    heldout_share: float | None = Field(
        None, ge=0, lt=1, description="share of data never trained on (default: 10 %, 500 examples at most)"
    )
    general: Input | None = Field(
        None,
        description="pages for the forgetting figure (default: the model's own held-out pages, else documentation)",
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
        description="at its peak (default: by method and size: 2e-4, for full 2e-5, at 7 billion parameters)",
    )
    schedule: Schedule = Field(
        default_factory=lambda: Schedule(warmup=0.03, floor=0.0), description="how the learning rate moves"
    )
    steps: int | None = Field(None, ge=1, description="optimizer steps (default: 3 epochs)")
    epochs: float | None = Field(None, gt=0, description="instead of steps: how often to read the examples")
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens an optimizer step (default: those of some 16 examples)"
    )
    sequence_length: int | None = Field(
        None, ge=8, le=1 << 20, description="tokens a row; longer examples are cut (default: the longest, 2048 at most)"
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="of products, and of a frozen base (default: bfloat16 where the processor has it)"
    )
    accumulate: int | None = Field(None, ge=1, description="parts of a batch (default: as few as fit in memory)")
    recompute: bool | None = Field(
        None, description="compute activations twice instead of keeping them (default: where memory is short)"
    )
    on_bad_numbers: Literal["stop", "skip", "back"] = Field(
        "stop", description="when a loss or gradient is not finite or jumps"
    )
    evaluate_every: int | None = Field(None, ge=1, description="steps (default: 10 times in a run)")
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints (default: 10 in a run)")
    weights: Literal["best", "last"] = Field("best", description="which weights to keep, best by held-out loss")
    most_bad: float = Field(0.1, ge=0, le=1, description="share of bad rows above which the data is refused")
    samples: int = Field(4, ge=0, le=100, description="held-out examples that the model answers before and after")

    @model_validator(mode="after")
    def _agree(self) -> Tune:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.heldout is not None and self.heldout_share is not None:
            raise ValueError("held-out examples are given; leave heldout_share out")
        if isinstance(self.method, Mezo) and self.method.objective == "accuracy" and self.prompt is None:
            raise ValueError("method.objective: accuracy needs a prompt with labels")
        return self

    def fingerprint(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {name: version(name) for name in ("torch", "tokenizers")}

    @classmethod
    def section(cls, folder: Path, summary: dict[str, Any]) -> Section:
        """What it gave and what it broke, its curve, and answers before and after."""
        from mickle.tuning.outcome import tuning_section

        return tuning_section(folder, summary)

    @classmethod
    def findings(cls, summary: dict[str, Any]) -> list[Finding]:
        """Losses before and after."""
        names = {"task": "nats a token on the task, before and after", "general": "on general text: what it forgot"}
        found = {label: summary[name] for name, label in names.items() if summary.get(name)}
        return [Finding(f"{loss['before']:.2f} → {loss['after']:.2f}", label) for label, loss in found.items()]

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        from mickle.tuning import outcome
        from mickle.tuning.general import general_pages
        from mickle.tuning.tune_run import open_model_to_tune, save_tuned

        scratch = work / SCRATCH
        self._refuse_inputs()
        ready = self._ready(scratch / "plan.json", emit)
        pages, whence = general_pages(self.general, self.model)
        emit(Noted(f"general text: {len(pages):,} pages, {whence}"))
        model = open_model_to_tune(self, ready)
        before = self._measured(scratch / "before.json", model, ready, pages)
        last, optimizer = self._train(model, ready, work, emit)
        kept = self._choose_weights(model, scratch / "checkpoints", ready)
        emit(Noted(f"weights of step {kept:,} of {ready.plan.steps:,} are kept ({self.weights} by held-out loss)"))
        after = self._measured(scratch / f"after-{kept}.json", model, ready, pages)
        results = self._results(before, after, ready)
        save_tuned(self, model, work, ready)
        journal = self._journal(optimizer, model, kept, work)
        texts = [
            {**one, "text": two["text"], "untrained": one["text"]} for one, two in zip(*self._texts(before, after))
        ]
        outcome.write(work, results, work / "metrics.jsonl", texts)
        for line in outcome.lines(results):
            emit(Noted(line))
        if message := outcome.warning(results["general"], self.method):
            emit(Warned(message))
        return {
            "method": self.method.kind,
            "form": ready.task.form,
            "parameters": ready.plan.parameters,
            "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "training_examples": len(ready.task.training.tokens),
            "heldout_examples": len(ready.task.heldout.tokens),
            "overlap": ready.task.overlap,
            "general_text": whence,
            "tokens_read": ready.plan.steps * ready.plan.batch_size * ready.plan.sequence_length,
            "kept_step": kept,
            "last_evaluation": last,
            **results,
            **journal,
            "forecast": asdict(ready.forecast),
            "plan": asdict(ready.plan),
        }

    def dry_run(self) -> tuple[Forecast, str]:
        from mickle.data.examples import preview
        from mickle.tuning.tune_labels import LabelTask, label_preview
        from mickle.tuning.tune_run import get_ready

        self._refuse_inputs()
        ready = get_ready(self)
        f = ready.forecast
        task = ready.task
        shown = label_preview(task) if isinstance(task, LabelTask) else preview(task.training, ready.tokenizer)
        notes = (*ready.task.lines, *ready.plan.lines())
        return Forecast(f.memory_bytes, f.seconds, f.disk_bytes, notes), shown

    def after(self, out: Path) -> str:
        if isinstance(self.method, Mezo) and self.method.parameters.kind == "prefix":
            return f"mickle sample {out}"  # a prefix is no change of weights that could be merged
        whole = self.method.kind == "full" or (isinstance(self.method, Mezo) and self.method.parameters.kind == "full")
        return f"mickle export {out} --out {out}-{'exported' if whole else 'merged'}"

    def _refuse_inputs(self) -> None:
        """What is wrong with the model is said before the data is read."""
        from mickle.models.folder import describe

        refuse_adapter(self.model)
        describe(self.model)

    def _ready(self, file: Path, emit: Emit) -> Ready:
        """What the run needs before the model is opened. The plan is kept: a restart must not measure otherwise."""
        from mickle.storage import check_space, read_json, write_json
        from mickle.tuning.tune_plan import Plan
        from mickle.tuning.tune_run import get_ready

        kept = read_json(file) if file.is_file() else None
        ready = get_ready(self, Plan(**kept["plan"]) if kept else None)
        if kept:
            notes = tuple(kept["forecast"].pop("notes"))
            ready = ready.with_forecast(Forecast(**kept["forecast"], notes=notes))
        else:
            check_space(file.parent, ready.forecast.disk_bytes)
            write_json(file, {"plan": asdict(ready.plan), "forecast": asdict(ready.forecast)})
        for line in (*ready.task.lines, *ready.plan.lines(), f"forecast: {ready.forecast}"):
            emit(Noted(line))
        if ready.task.overlap["exact"] and self.heldout is not None:
            emit(Warned("held-out examples are among the training examples: their loss says little"))
        return ready

    def _train(self, model: nn.Module, ready: Ready, work: Path, emit: Emit) -> tuple[dict[str, float], Optimizer]:
        """Train in place; what the last evaluation measured, and the optimizer."""
        from mickle import machine
        from mickle.training.loop import fit
        from mickle.training.pretrain import METRICS, record
        from mickle.tuning.methods import clip_norm
        from mickle.tuning.tune_run import build_optimizer, objective_and_batches, quick_measure

        machine.seed_everything(self.seed)
        plan = ready.plan
        objective, batches = objective_and_batches(self, ready)
        optimizer = build_optimizer(self, ready, model, work / SCRATCH, objective, batches)
        events = fit(
            model,
            objective,
            batches,
            optimizer,
            steps=plan.steps,
            schedule=self.schedule,
            accumulate=plan.accumulate,
            clip_norm=clip_norm(self.method, self.optimizer),
            precision=plan.precision,  # type: ignore[arg-type]
            evaluate=quick_measure(ready, QUICK_TOKENS) if ready.task.heldout.tokens else None,
            evaluate_every=plan.evaluate_every,
            checkpoints=work / SCRATCH / "checkpoints",
            save_every=plan.save_every,
            seed=self.seed,
            on_bad_numbers=self.on_bad_numbers,
            watch_loss=self.prompt is None,  # labels are learnt in leaps
            identity=self.identity(),
        )
        return record(events, work / METRICS, emit), optimizer

    def _journal(self, optimizer: Optimizer, model: nn.Module, kept: int, work: Path) -> dict[str, Any]:
        """A forward-only run's journal into ``work``, and its size; of other runs nothing."""
        if self.method.kind != "mezo":
            return {}
        from mickle.tuning.tune_mezo import JOURNAL, write_journal_of

        checkpoints = work / SCRATCH / "checkpoints"
        return {"journal": write_journal_of(self, optimizer, model, kept, checkpoints, work / JOURNAL)}

    def _measured(self, file: Path, model: nn.Module, ready: Ready, pages: list[Page]) -> dict[str, Any]:
        """Scores of every held-out example and page, and samples; kept, so that a restart need not measure again."""
        from mickle.storage import read_json, write_json
        from mickle.tuning.tune_run import measure

        if not file.is_file():
            write_json(file, measure(self, model, ready, pages))
        found: dict[str, Any] = read_json(file)
        return found

    def _texts(
        self, before: dict[str, Any], after: dict[str, Any]
    ) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        return before["samples"], after["samples"]

    def _results(self, before: dict[str, Any], after: dict[str, Any], ready: Ready) -> dict[str, Any]:
        """Before against after, and memory against the forecast."""
        from mickle.tuning.measures import from_lists
        from mickle.tuning.outcome import compared
        from mickle.tuning.tune_run import peak_memory

        results: dict[str, Any] = {}
        for name in ("task", "general"):
            scores = from_lists(before[name]), from_lists(after[name])
            results[name] = compared(*scores, self.seed) if len(scores[0]) and scores[0][:, 1].sum() else None
        results["unit"] = "label" if self.prompt else "token"
        results["memory"] = {"peak_bytes": peak_memory(), "forecast_bytes": ready.forecast.memory_bytes}
        return results

    def _choose_weights(self, model: nn.Module, checkpoints: Path, ready: Ready) -> int:
        """Put the weights to keep into the model; returns their step."""
        from mickle.training import checkpoint

        best = checkpoint.best(checkpoints) if self.weights == "best" and ready.task.heldout.tokens else None
        if best is None:
            return ready.plan.steps
        checkpoint.load_weights(best, model)
        return checkpoint.step_of(best)
