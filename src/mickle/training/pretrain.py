"""``mickle pretrain``: pages in, a small language model out, as a plain Hugging Face folder.

The one dial is ``size``; ``pretrain_plan.py`` derives what is left out, and the run prints it. Tokenizer, token
streams and checkpoints are kept in ``.scratch`` while the run lasts, so that a run killed at any moment goes on
where it was. With ``start`` a model that exists is trained further, whatever its architecture.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mickle.config import Input, without_effect
from mickle.events import Emit, Noted, Warned
from mickle.machine import Forecast
from mickle.models.architectures import Architecture
from mickle.models.decoder_settings import DecoderArchitecture
from mickle.models.gguf_folder import Model, Words
from mickle.results import Finding, Section
from mickle.storage import HELDOUT, SCRATCH
from mickle.training.curves import training_findings, training_section
from mickle.training.dropout import Dropout
from mickle.training.optimizers import AdamW, OptimizerSettings, Schedule
from mickle.training.pretrain_objectives import NextToken, PretrainObjective
from mickle.training.run import (
    CHECKPOINTS,
    METRICS,
    Asked,
    Best,
    KeptWeights,
    Outcome,
    TrainingRun,
    TrainingStep,
    kept_plan,
    refuse_no_model,
    refuse_two_lengths,
    train,
)

if TYPE_CHECKING:
    from torch import nn

    from mickle.data.heldout import Split
    from mickle.data.tokenizer import TextTokenizer
    from mickle.models.language import LanguageModel
    from mickle.training.pretrain_data import TokenizerAsked, TrainingText
    from mickle.training.pretrain_plan import Fresh, PretrainPlan


FRESH = frozenset({"size", "architecture", "vocabulary_size", "tokenizer"})  # settings of a model from nothing


@dataclass(frozen=True)
class Ready:
    """What a run knows before its model is made."""

    split: Split
    tokenizer: TextTokenizer
    text: TrainingText
    plan: PretrainPlan
    forecast: Forecast


class Pretrain(TrainingStep):
    """Train a small language model on pages, from nothing or from a model folder."""

    version: ClassVar[int] = 4  # 3: giant pages are cut, and never held out; 4: nine digits in metrics
    kind: ClassVar[str] = "model"
    positional: ClassVar[str] = "data"
    example: ClassVar[str] = "mickle pretrain corpus --size tiny --out model"

    data: Input = Field(description="corpus folder, or Parquet files with a column `text`")
    mixture: Input | None = Field(
        None, description="domain weights, the weights.yaml of `mickle mix` (default: pages as they are)"
    )
    objective: PretrainObjective = Field(
        default_factory=NextToken, description="next (a decoder) or masked (an encoder), and its settings"
    )
    start: Model | None = Field(
        None, description="model folder to go on from, with its tokenizer (default: a fresh model)"
    )
    size: Literal["tiny", "small", "base"] | int = Field(
        "tiny", description="tiny (10^6 parameters), small (5 x 10^6), base (25 x 10^6), or a number of parameters"
    )
    tokenizer: Words | None = Field(
        None, description="tokenizer.json, a folder with one, or a GGUF file (default: train one)"
    )
    vocabulary_size: int | None = Field(
        None, ge=257, le=1 << 20, description="tokens in the vocabulary (default: from size)"
    )
    sequence_length: int | None = Field(
        None, ge=1, le=1 << 20, description="tokens of a training sequence (default: from size)"
    )
    batch_tokens: int | None = Field(None, ge=1, description="tokens of an optimizer step (default: from size)")
    steps: int | None = Field(
        None, ge=1, description="optimizer steps (default: 20 tokens a parameter, 8 epochs at most)"
    )
    epochs: float | None = Field(None, gt=0, description="instead of steps: how often to read the pages")
    optimizer: OptimizerSettings = Field(default_factory=AdamW, description="adamw or sophia, and its settings")
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="learning rate at its peak (default: optimizer.learning_rate x (10^6 / parameters)^(1/4))",
    )
    schedule: Schedule = Field(default_factory=Schedule, description="how the learning rate moves")
    architecture: Architecture = Field(
        default_factory=DecoderArchitecture, description="decoder: what a fresh model is made of, and its settings"
    )
    dropout: Dropout = Field(default_factory=Dropout, description="how much dropout, and from when on")
    heldout_share: float | None = Field(
        None, ge=0, lt=1, description="share of pages never trained on (default: 100 pages, within 1 % to 10 %)"
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="precision of matrix products in training (default: bfloat16 where the processor has it)"
    )
    accumulate: int | None = Field(
        None, ge=1, description="parts in which a batch is computed (default: as few as fit in memory)"
    )
    on_bad_numbers: Literal["stop", "skip", "back"] = Field(
        "stop", description="what to do when a loss or gradient is not finite, or the loss jumps"
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="optimizer steps between evaluations (default: 20 evaluations in a run)"
    )
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints (default: 20 in a run)")
    weights: KeptWeights = Field(
        default_factory=Best,
        description="which weights to keep: best by held-out loss, perhaps with a patience to stop early, or last",
    )

    @model_validator(mode="after")
    def _agree(self) -> Pretrain:
        refuse_two_lengths(self.steps, self.epochs)
        refuse_no_model(self.size, self.tokenizer, self.vocabulary_size)
        if self.start is not None and (fresh := sorted(FRESH.intersection(without_effect(self)))):
            raise ValueError(f"the model of start has its own {', '.join(fresh)}; leave that out")
        return self

    def idle(self) -> set[str]:
        if self.start is not None:
            return set(FRESH)
        return set() if self.tokenizer is None else {"vocabulary_size"}

    @classmethod
    def section(cls, folder: Path, summary: dict[str, Any]) -> Section:
        """What it read, and its curves."""
        return training_section(folder, summary)

    @classmethod
    def findings(cls, summary: dict[str, Any]) -> list[Finding]:
        """Parameters and tokens."""
        return training_findings(summary)

    @property
    def fresh(self) -> Fresh:
        """What a fresh model would be."""
        from mickle.training.pretrain_plan import Fresh

        return Fresh(
            self.size, self.architecture, self.objective.causal, self.dropout.rate, self.optimizer.learning_rate
        )

    @property
    def asked_tokenizer(self) -> TokenizerAsked:
        """The tokenizer that was named, that of the model to go on from, or one to be trained."""
        from mickle.training.pretrain_data import TokenizerAsked

        return TokenizerAsked(self.tokenizer or self.start, self.size, self.vocabulary_size, self.objective)

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        from mickle.models.folder import save_model
        from mickle.models.folder_files import keep_words
        from mickle.training import distributed

        ready = distributed.after_first(lambda: self._ready(work, emit))
        done = self._train(ready, work, emit)
        if not distributed.current().writes:
            return {}
        save_model(done.model, work, ready.tokenizer)
        if self.start is not None and self.tokenizer is None:
            keep_words(self.start, work, [ready.tokenizer.end] if self.objective.causal else [])
        plan, split = ready.plan, ready.split
        return {
            "parameters": plan.parameters,
            "objective": self.objective.kind,
            "training_pages": split.training_pages,
            "heldout_pages": len(split.heldout),
            "heldout_overlap": 0,  # split() has checked it, by content
            "training_tokens": plan.training_tokens,
            "tokens_read": done.steps * plan.batch_tokens,
            **done.summary,
            "forecast": asdict(ready.forecast),
            "plan": asdict(plan),
        }

    def dry_run(self) -> tuple[Forecast, str]:
        from mickle.training.pretrain_data import count_line, look_at, preview, split_pages

        self._refuse_inputs()
        split, share = split_pages(self.data, self.heldout_share)
        tokenizer, documents, tokens_a_byte = look_at(self.asked_tokenizer, self.data, share)
        tokens = round(tokens_a_byte * split.training_bytes)
        plan, forecast = self._planned(tokenizer, tokens, split)
        notes = (count_line(split, share), *plan.lines(), *forecast.notes)
        shown = partial(self.objective.shown, tokenizer=tokenizer, steps=plan.steps, seed=self.seed)
        derived = {**plan.derived, "heldout_share": share, "vocabulary_size": tokenizer.size}
        return replace(forecast, notes=notes, derived=derived), preview(
            documents[0][: plan.sequence_length + 1], tokenizer, shown
        )

    def after(self, out: Path) -> str:
        return self.objective.next_command(out, self.data)

    def _refuse_inputs(self) -> None:
        """What is wrong with small inputs is said before anything is done with the large ones."""
        from mickle.data.domains import read_weights
        from mickle.training.pretrain_plan import refuse_other_objective

        if self.mixture is not None:
            read_weights(self.mixture)
        if self.start is not None:
            refuse_other_objective(self.start, self.objective.causal)

    def _model_to_go_on_from(self, tokenizer: TextTokenizer) -> LanguageModel | None:
        from mickle import machine
        from mickle.models.folder import open_model
        from mickle.models.language import check_vocabulary

        if self.start is None:
            return None
        model = open_model(self.start, device=machine.device())
        check_vocabulary(model, tokenizer.size, f"start: {self.start}")
        return model

    def _ready(self, work: Path, emit: Emit) -> Ready:
        """Pages split, tokenizer, tokens and plan; all of it is kept in the scratch folder."""
        from mickle.data.heldout import write_pages
        from mickle.training import distributed
        from mickle.training.pretrain_data import count_line, kept_tokenizer, read_text, split_pages
        from mickle.training.pretrain_plan import PretrainPlan

        scratch = work / SCRATCH
        self._refuse_inputs()
        split, share = split_pages(self.data, self.heldout_share)
        emit(Noted(count_line(split, share)))
        tokenizer = kept_tokenizer(self.asked_tokenizer, self.data, share, scratch / "tokenizer", emit)
        text = read_text(self.data, self.mixture, scratch / "stream", tokenizer, split, share, emit)

        def made() -> tuple[PretrainPlan, Forecast]:
            plan, forecast = self._planned(tokenizer, text.tokens, split)
            text.batches(plan, self.seed)  # refuses streams that are too short
            return plan, forecast

        plan, forecast = kept_plan(scratch / "plan.json", PretrainPlan, made)
        for line in [*plan.lines(), *text.lines(plan), *forecast.notes]:
            emit(Noted(line))
        for line in self.objective.remarks():
            emit(Warned(line))
        if split.heldout and distributed.current().writes:
            write_pages(split.heldout, work / HELDOUT)
        return Ready(split, tokenizer, text, plan, forecast)

    def _planned(self, tokenizer: TextTokenizer, tokens: int, split: Split) -> tuple[PretrainPlan, Forecast]:
        """The run's numbers, and what it will need: memory in closed form, time from some measured steps."""
        from mickle.training.pretrain_plan import disk, memory, origin_of, resolve, step_seconds

        start = self._model_to_go_on_from(tokenizer)
        origin = origin_of(self.start, start) if self.start and start else None
        plan = resolve(Asked.of(self), self.fresh, tokenizer.size, tokens, origin)
        needed = memory(plan)  # before anything is trained: what that takes is then held
        each = step_seconds(plan, start or self.fresh.build(plan, self.seed), self.optimizer, self.objective)
        seconds = each * plan.steps * 1.05  # evaluations and checkpoints
        space = disk(plan, split.training_bytes + split.heldout_bytes)
        line = (
            f"forecast: {needed / 1e9:.2f} GB of memory, {seconds / 60:.1f} minutes of training, "
            f"{space / 1e6:.0f} MB of disk while it runs"
        )
        return plan, Forecast(needed, seconds, space, (line,))

    def _train(self, ready: Ready, work: Path, emit: Emit) -> Outcome:
        """The trained model, with the weights that are kept."""
        from mickle import machine
        from mickle.training.optimizers import build_optimizer
        from mickle.training.pretrain_data import QUICK_MEASURE, heldout_measure

        plan, tokenizer, pages = ready.plan, ready.tokenizer, ready.split.heldout
        if pages:
            emit(
                Noted(
                    f"held-out loss in training is of {QUICK_MEASURE}; `mickle evaluate` reads all of them, and whole"
                )
            )
        windows = ready.text.batches(plan, self.seed)
        run = TrainingRun(
            plan=plan,
            objective=self.objective.loss(),
            batches=self.objective.batches(windows, tokenizer, plan.steps, self.seed),
            schedule=self.schedule,
            clip_norm=self.optimizer.clip_norm,
            checkpoints=work / SCRATCH / CHECKPOINTS,
            log=work / METRICS,
            seed=self.seed,
            identity=self.identity(),
            dropout=self.dropout if self.dropout.rate else None,
            measure=heldout_measure(pages, self.objective, tokenizer, plan) if pages else None,
            weights=self.weights,
            on_bad_numbers=self.on_bad_numbers,
        )
        optimizer = self.optimizer.model_copy(update={"learning_rate": plan.learning_rate})

        def again() -> nn.Module:
            """The model as it is before the first step."""
            machine.seed_everything(self.seed)
            return self._model_to_go_on_from(tokenizer) or self.fresh.build(plan, self.seed)

        return train(run, again(), partial(build_optimizer, optimizer), again, emit)
