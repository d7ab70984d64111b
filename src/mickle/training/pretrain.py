"""``mickle pretrain``: pages in, a small language model out, as a plain Hugging Face folder.

The one dial is ``size``; ``pretrain_plan.py`` derives what is left out, and the run prints it. Tokenizer, token
streams and checkpoints are kept in ``.scratch`` while the run lasts, so that a run killed at any moment goes on
where it was. With ``start`` a model that exists is trained further, whatever its architecture.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mickle.config import Config, Input
from mickle.data.masking import Masking
from mickle.events import Emit, Evaluated, Event, JsonLines, Noted, Trained, Warned
from mickle.machine import Forecast
from mickle.models.architectures import Architecture
from mickle.models.decoder_settings import DecoderArchitecture
from mickle.results import Finding, Section
from mickle.step import Step
from mickle.storage import SCRATCH
from mickle.training.curves import training_findings, training_section
from mickle.training.dropout import Dropout
from mickle.training.optimizers import AdamW, OptimizerSettings, Schedule

if TYPE_CHECKING:
    from torch import nn

    from mickle.data.heldout import Split
    from mickle.data.tokenizer import TextTokenizer
    from mickle.training.origin import Origin
    from mickle.training.pretrain_data import Text
    from mickle.training.pretrain_plan import Plan

METRICS = "metrics.jsonl"
HELDOUT = "heldout.parquet"


class NextToken(Config):
    """Predict each token from those before it."""

    kind: Literal["next"] = "next"
    smoothing: float = Field(0.0, ge=0, lt=1, description="share of each target spread over the vocabulary")


class Pretrain(Step):
    """Train a small language model on pages, from nothing or from a model folder."""

    kind: ClassVar[str] = "model"
    positional: ClassVar[str] = "data"
    example: ClassVar[str] = "mickle pretrain corpus --size tiny --out model"

    data: Input = Field(description="corpus folder, or Parquet files with a column `text`")
    mixture: Input | None = Field(
        None, description="domain weights, the weights.yaml of `mickle mix` (default: pages as they are)"
    )
    objective: Annotated[NextToken | Masking, Field(discriminator="kind")] = Field(
        default_factory=NextToken, description="next (a decoder) or masked (an encoder), and its settings"
    )
    start: Input | None = Field(
        None, description="model folder to go on from, with its tokenizer (default: a fresh model)"
    )
    size: Literal["tiny", "small", "base"] | int = Field(
        "tiny", description="tiny (10^6 parameters), small (5 x 10^6), base (25 x 10^6), or a number of parameters"
    )
    tokenizer: Input | None = Field(None, description="tokenizer.json or a folder with one (default: train one)")
    vocabulary_size: int | None = Field(None, ge=257, le=1 << 20, description="tokens (default: from size)")
    sequence_length: int | None = Field(None, ge=1, le=1 << 20, description="tokens a sequence (default: from size)")
    batch_tokens: int | None = Field(None, ge=1, description="tokens an optimizer step (default: from size)")
    steps: int | None = Field(
        None, ge=1, description="optimizer steps (default: 20 tokens a parameter, 8 epochs at most)"
    )
    epochs: float | None = Field(None, gt=0, description="instead of steps: how often to read the pages")
    optimizer: OptimizerSettings = Field(default_factory=AdamW, description="adamw or sophia, and its settings")
    learning_rate: float | None = Field(
        None, gt=0, description="at its peak (default: optimizer.learning_rate x (10^6 / parameters)^(1/4))"
    )
    schedule: Schedule = Field(default_factory=Schedule, description="how the learning rate moves")
    architecture: Architecture = Field(
        default_factory=DecoderArchitecture, description="decoder: what a fresh model is made of, and its settings"
    )
    dropout: Dropout = Field(default_factory=Dropout, description="how much of it, and from when")
    heldout_share: float | None = Field(
        None, ge=0, lt=1, description="share of pages never trained on (default: 100 pages, within 1 % to 10 %)"
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="of products in training (default: bfloat16 where the processor has it)"
    )
    accumulate: int | None = Field(None, ge=1, description="parts of a batch (default: as few as fit in memory)")
    on_bad_numbers: Literal["stop", "skip", "back"] = Field(
        "stop", description="when a loss or gradient is not finite or jumps"
    )
    evaluate_every: int | None = Field(None, ge=1, description="steps (default: 20 times in a run)")
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints (default: 20 in a run)")
    weights: Literal["best", "last"] = Field("best", description="which weights to keep, best by held-out loss")

    @model_validator(mode="after")
    def _agree(self) -> Pretrain:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.tokenizer is not None and self.vocabulary_size is not None:
            raise ValueError("a given tokenizer has its own vocabulary; leave vocabulary_size out")
        if isinstance(self.size, int) and self.size < 10_000:
            raise ValueError("a size in parameters is at least 10000")
        fresh = self.model_fields_set & {"size", "architecture", "vocabulary_size", "tokenizer"}
        if self.start is not None and fresh:
            raise ValueError(f"the model of start has its own {', '.join(sorted(fresh))}; leave that out")
        return self

    def fingerprint(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {name: version(name) for name in ("torch", "tokenizers")}

    @classmethod
    def section(cls, folder: Path, summary: dict[str, Any]) -> Section:
        """What it read, and its curves."""
        return training_section(folder, summary)

    @classmethod
    def findings(cls, summary: dict[str, Any]) -> list[Finding]:
        """Parameters and tokens."""
        return training_findings(summary)

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        from mickle.models.folder import save_model
        from mickle.training.pretrain_data import kept_tokenizer, read_text, split_pages

        scratch = work / SCRATCH
        self._refuse_inputs()
        split, share = split_pages(self.data, self.heldout_share)
        emit(Noted(_count_line(split, share)))
        tokenizer = kept_tokenizer(self, scratch / "tokenizer", share, emit)
        text = read_text(self, scratch / "stream", tokenizer, split, share, emit)
        plan, forecast = self._plan(scratch / "plan.json", tokenizer, text, split)
        for line in [*plan.lines(), *text.lines(plan), _forecast_line(forecast)]:
            emit(Noted(line))
        for line in self.objective.remarks() if isinstance(self.objective, Masking) else []:
            emit(Warned(line))
        if split.heldout:
            _write_heldout(split, work / HELDOUT)
        model, last = self._train(plan, text, tokenizer, split, work, emit)
        step = self._choose_weights(model, scratch / "checkpoints", plan.steps, bool(split.heldout))
        emit(Noted(f"weights of step {step:,} of {plan.steps:,} are kept ({self.weights} by held-out loss)"))
        save_model(model, work, tokenizer)
        return {
            "parameters": plan.parameters,
            "objective": self.objective.kind,
            "training_pages": split.training_pages,
            "heldout_pages": len(split.heldout),
            "heldout_overlap": 0,  # split() has checked it, by content
            "training_tokens": plan.training_tokens,
            "tokens_read": plan.steps * plan.batch_tokens,
            "kept_step": step,
            "last_evaluation": last,
            "forecast": asdict(forecast),
            "plan": asdict(plan),
        }

    def dry_run(self) -> tuple[Forecast, str]:
        from mickle.training.pretrain_data import look_at, split_pages
        from mickle.training.pretrain_plan import resolve

        self._refuse_inputs()
        split, share = split_pages(self.data, self.heldout_share)
        tokenizer, documents, tokens_a_byte = look_at(self, share)
        tokens = round(tokens_a_byte * split.training_bytes)
        model = self._model_to_go_on_from(tokenizer)
        plan = resolve(self, tokenizer.size, tokens, _origin(self.start, model))
        forecast = _forecast(self, plan, split, model)
        notes = (_count_line(split, share), *plan.lines(), *forecast.notes)
        return Forecast(forecast.memory_bytes, forecast.seconds, forecast.disk_bytes, notes), self._preview(
            tokenizer, documents[0], plan
        )

    def after(self, out: Path) -> str:
        if self.objective.kind == "masked":
            return f"mickle evaluate {out} --task masked"
        return f"mickle evaluate {out} --task loss --task.baselines-from {self.data}"

    def _refuse_inputs(self) -> None:
        """What is wrong with small inputs is said before anything is done with the large ones."""
        from mickle.data.domains import read_weights
        from mickle.training.origin import refuse_other_objective

        if self.mixture is not None:
            read_weights(self.mixture)
        if self.start is not None:
            refuse_other_objective(self.start, self.objective.kind == "next")

    def _model_to_go_on_from(self, tokenizer: TextTokenizer) -> nn.Module | None:
        from mickle.training.origin import open_origin

        if self.start is None:
            return None
        return open_origin(self.start, tokenizer.size)

    def _plan(self, file: Path, tokenizer: TextTokenizer, text: Text, split: Split) -> tuple[Plan, Forecast]:
        """The run's numbers. They are kept: some are measured, and a restart must not measure otherwise."""
        from mickle.storage import check_space, read_json, write_json
        from mickle.training.pretrain_plan import Plan, resolve

        if file.is_file():
            kept = read_json(file)
            notes = tuple(kept["forecast"].pop("notes"))
            return Plan(**kept["plan"]), Forecast(**kept["forecast"], notes=notes)
        model = self._model_to_go_on_from(tokenizer)
        plan = resolve(self, tokenizer.size, text.tokens, _origin(self.start, model))
        text.batches(plan, self.seed)  # refuses streams that are too short
        forecast = _forecast(self, plan, split, model)
        check_space(file.parent, forecast.disk_bytes)
        write_json(file, {"plan": asdict(plan), "forecast": asdict(forecast)})
        return Plan(**read_json(file)["plan"]), forecast

    def _train(
        self, plan: Plan, text: Text, tokenizer: TextTokenizer, split: Split, work: Path, emit: Emit
    ) -> tuple[nn.Module, dict[str, float]]:
        """The trained model and what the last evaluation measured."""
        from mickle import machine
        from mickle.training.loop import fit
        from mickle.training.optimizers import build_optimizer
        from mickle.training.pretrain_data import heldout_measure, objective_and_batches

        machine.seed_everything(self.seed)
        model = self._model_to_go_on_from(tokenizer)
        if model is None:
            model = self.architecture.build(plan.shape, self.seed).to(machine.device())
        objective, batches = objective_and_batches(self, text, plan, tokenizer)
        settings = self.optimizer.model_copy(update={"learning_rate": plan.learning_rate})
        events = fit(
            model,
            objective,
            batches,
            build_optimizer(settings, model),
            steps=plan.steps,
            schedule=self.schedule,
            dropout=self.dropout if self.dropout.rate else None,
            accumulate=plan.accumulate,
            clip_norm=self.optimizer.clip_norm,
            precision=plan.precision,  # type: ignore[arg-type]
            evaluate=heldout_measure(self, split.heldout, tokenizer, plan) if split.heldout else None,
            evaluate_every=plan.evaluate_every,
            checkpoints=work / SCRATCH / "checkpoints",
            save_every=plan.save_every,
            seed=self.seed,
            on_bad_numbers=self.on_bad_numbers,
            identity=self.identity(),
        )
        return model, record(events, work / METRICS, emit)

    def _preview(self, tokenizer: TextTokenizer, document: Any, plan: Plan) -> str:
        """The first sequence with its trained tokens coloured: all but the mark that opens the text, or the masked."""
        from mickle.data.tokenizer import coloured

        ids = [int(token) for token in document[: min(plan.sequence_length, 200) + 1]]
        trained = [position > 0 for position in range(len(ids))]
        if self.objective.kind == "masked":
            ids, trained = _masked_example(self, tokenizer, ids, plan)
        return "first example; coloured tokens are trained:\n" + "".join(coloured(tokenizer, ids, trained))

    def _choose_weights(self, model: nn.Module, checkpoints: Path, steps: int, measured: bool) -> int:
        """Put the weights to keep into the model; returns their step."""
        from mickle.training import checkpoint

        best = checkpoint.best(checkpoints) if self.weights == "best" and measured else None
        if best is None:
            return steps
        checkpoint.load_weights(best, model)
        return checkpoint.step_of(best)


def record(events: Iterator[Event], file: Path, emit: Emit) -> dict[str, float]:
    """Run the training; pass its events on and write them down, each step once. Returns the last evaluation."""
    write, newest, values = JsonLines(file), None, {}
    for event in events:
        if isinstance(event, Trained):
            if newest is None or event.step <= newest:
                write.rewind(event.step - 1)  # a resumed run says these lines again
            newest = event.step
        elif isinstance(event, Evaluated):
            values = event.values
        write(event)
        emit(event)
    return values or _last_evaluation(file)


def _last_evaluation(file: Path) -> dict[str, float]:
    """What an earlier try of this run measured last, when it was killed after its last step."""
    import json

    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    return next((line["values"] for line in reversed(lines) if line["event"] == "evaluated"), {})


def _write_heldout(split: Split, file: Path) -> None:
    from mickle.data.heldout import write_pages
    from mickle.storage import disk_errors

    with disk_errors(file):
        write_pages(split.heldout, file)


def _origin(folder: Path | None, model: nn.Module | None) -> Origin | None:
    from mickle.training.origin import origin_of

    return None if folder is None else origin_of(folder, model)


def _forecast(settings: Pretrain, plan: Plan, split: Split, model: nn.Module | None) -> Forecast:
    """Memory in closed form; time from some measured steps, which train ``model``."""
    from mickle.training.pretrain_plan import disk, memory, step_seconds

    needed = memory(plan)
    seconds = step_seconds(settings, plan, model) * plan.steps * 1.05  # evaluations and checkpoints
    forecast = Forecast(needed, seconds, disk(plan, split.training_bytes + split.heldout_bytes))
    return Forecast(needed, seconds, forecast.disk_bytes, (_forecast_line(forecast),))


def _forecast_line(forecast: Forecast) -> str:
    return (
        f"forecast: {forecast.memory_bytes / 1e9:.2f} GB of memory, {forecast.seconds / 60:.1f} minutes of training, "
        f"{forecast.disk_bytes / 1e6:.0f} MB of disk while it runs"
    )


def _count_line(split: Split, share: float) -> str:
    return (
        f"pages: {split.training_pages:,} for training ({split.training_bytes / 1e6:.2f} MB), "
        f"{len(split.heldout):,} held out ({split.heldout_bytes / 1e6:.2f} MB, share {share:.3g}); "
        "texts on both sides: 0"
    )


def _masked_example(
    settings: Pretrain, tokenizer: TextTokenizer, ids: list[int], plan: Plan
) -> tuple[list[int], list[bool]]:
    """A sequence as the first step masks it, and which of its positions are trained."""
    import torch

    from mickle.data.masking import MaskedBatches, vocabulary_of

    row = torch.tensor([ids])
    batch = {"input_ids": row, "labels": row}
    assert isinstance(settings.objective, Masking)
    vocabulary = vocabulary_of(tokenizer)
    masked = MaskedBatches(lambda _: batch, vocabulary, settings.objective, plan.steps, settings.seed)(0)
    return masked["input_ids"][0].tolist(), (masked["labels"][0] >= 0).tolist()
