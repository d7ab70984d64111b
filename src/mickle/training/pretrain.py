"""``mickle pretrain``: pages in, a small language model out, as a plain Hugging Face folder.

The one dial is ``size``; ``pretrain_plan.py`` derives what is left out, and the run prints it. Tokenizer, token
stream and checkpoints are kept in ``.scratch`` while the run lasts, so that a run killed at any moment goes on
where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mickle.config import Input
from mickle.errors import UsageError
from mickle.events import Emit, Evaluated, Event, JsonLines, Noted, Progressed, Started, Trained
from mickle.machine import Forecast
from mickle.step import Step
from mickle.storage import SCRATCH
from mickle.training.optimizers import AdamW, OptimizerSettings, Schedule

if TYPE_CHECKING:
    from torch import nn

    from mickle.data.heldout import Split
    from mickle.data.packing import TokenStream
    from mickle.data.records import Page
    from mickle.data.tokenizer import TextTokenizer
    from mickle.training.pretrain_plan import Plan

METRICS = "metrics.jsonl"
HELDOUT = "heldout.parquet"
QUICK_TOKENS = 16_384  # tokens of held-out text that an evaluation during the run reads
PREVIEW_BYTES = 4 << 20  # text that a dry run looks at


class Pretrain(Step):
    """Train a small language model on pages, from nothing."""

    kind: ClassVar[str] = "model"
    positional: ClassVar[str] = "data"
    example: ClassVar[str] = "mickle pretrain corpus --size tiny --out model"

    data: Input = Field(description="corpus folder, or Parquet files with a column `text`")
    size: Literal["tiny", "small", "base"] | int = Field(
        "tiny",
        description="tiny (10^6 parameters), small (5 x 10^6), base (25 x 10^6), or a number of parameters",
    )
    tokenizer: Input | None = Field(
        None, description="tokenizer.json or a folder with one (default: train one)"
    )
    vocabulary_size: int | None = Field(None, ge=257, le=1 << 20, description="tokens (default: from size)")
    sequence_length: int | None = Field(
        None, ge=1, le=1 << 20, description="tokens a sequence (default: from size)"
    )
    batch_tokens: int | None = Field(None, ge=1, description="tokens an optimizer step (default: from size)")
    steps: int | None = Field(
        None, ge=1, description="optimizer steps (default: 20 tokens a parameter, 8 epochs at most)"
    )
    epochs: float | None = Field(None, gt=0, description="instead of steps: how often to read the pages")
    optimizer: OptimizerSettings = Field(
        default_factory=AdamW, description="adamw or sophia, and its settings"
    )
    learning_rate: float | None = Field(
        None, gt=0, description="at its peak (default: optimizer.learning_rate x (10^6 / parameters)^(1/4))"
    )
    schedule: Schedule = Field(default_factory=Schedule, description="how the learning rate moves")
    position: Literal["rotary", "none", "learned", "sinusoidal", "alibi", "t5"] = Field(
        "rotary", description="how the model knows positions; rotary saves as a plain Llama folder"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations left out in training")
    heldout_share: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of pages never trained on (default: 100 pages, within 1 % to 10 %)",
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="of products in training (default: bfloat16 where the processor has it)"
    )
    accumulate: int | None = Field(
        None, ge=1, description="parts of a batch (default: as few as fit in memory)"
    )
    clip_norm: float = Field(1.0, gt=0, description="largest norm of a gradient")
    on_bad_numbers: Literal["stop", "skip", "back"] = Field(
        "stop", description="when a loss or gradient is not finite or jumps"
    )
    evaluate_every: int | None = Field(None, ge=1, description="steps (default: 20 times in a run)")
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints (default: 20 in a run)")
    weights: Literal["best", "last"] = Field(
        "best", description="which weights to keep, best by held-out loss"
    )
    compile: bool = Field(False, description="run the model through torch.compile")

    @model_validator(mode="after")
    def _agree(self) -> Pretrain:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("give steps or epochs, not both")
        if self.tokenizer is not None and self.vocabulary_size is not None:
            raise ValueError("a given tokenizer has its own vocabulary; leave vocabulary_size out")
        if isinstance(self.size, int) and self.size < 10_000:
            raise ValueError("a size in parameters is at least 10000")
        return self

    def fingerprint(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {name: version(name) for name in ("torch", "tokenizers")}

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        from mickle.models.folder import save_model

        scratch = work / SCRATCH
        split, share = split_pages(self.data, self.heldout_share)
        emit(Noted(_count_line(split, share)))
        tokenizer = self._tokenizer(scratch / "tokenizer", share, emit)
        stream = self._stream(scratch / "stream", tokenizer, split, share, emit)
        plan, forecast = self._plan(scratch / "plan.json", tokenizer, stream, split)
        for line in [*plan.lines(), _forecast_line(forecast)]:
            emit(Noted(line))
        if split.heldout:
            _write_heldout(split, work / HELDOUT)
        model, last = self._train(plan, stream, tokenizer, split, work, emit)
        step = self._choose_weights(model, scratch / "checkpoints", plan.steps, bool(split.heldout))
        emit(Noted(f"weights of step {step:,} of {plan.steps:,} are kept ({self.weights} by held-out loss)"))
        save_model(model, work, tokenizer)
        return {
            "parameters": plan.config.parameters(),
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
        from mickle.data.heldout import training_texts
        from mickle.data.tokenizer import open_text_tokenizer, train_tokenizer
        from mickle.training.pretrain_plan import derived_vocabulary, resolve

        split, share = split_pages(self.data, self.heldout_share)
        texts = _first_texts(training_texts(self.data, share))
        size = self.vocabulary_size or derived_vocabulary(self.size)
        if self.tokenizer is not None:
            tokenizer = open_text_tokenizer(self.tokenizer)
        else:
            tokenizer = train_tokenizer(texts, size, or_fewer=self.vocabulary_size is None)
        documents = tokenizer.encode_documents(texts)
        seen = sum(len(text.encode("utf-8")) for text in texts)
        tokens = round(sum(map(len, documents)) * split.training_bytes / seen)
        plan = resolve(self, tokenizer.size, tokens)
        forecast = _forecast(self, plan, split)
        notes = (_count_line(split, share), *plan.lines(), *forecast.notes)
        return Forecast(forecast.memory_bytes, forecast.seconds, forecast.disk_bytes, notes), _preview(
            tokenizer, documents[0], plan
        )

    def after(self, out: Path) -> str:
        return f"mickle evaluate {out} --task loss --task.baselines-from {self.data}"

    def _tokenizer(self, folder: Path, share: float, emit: Emit) -> TextTokenizer:
        """The given tokenizer or one trained on the training pages; kept, so that a restart has the same."""
        from mickle.data.heldout import training_texts
        from mickle.data.tokenizer import open_text_tokenizer, train_tokenizer
        from mickle.training.pretrain_plan import derived_vocabulary

        if (folder / "tokenizer_config.json").is_file():  # written last
            return open_text_tokenizer(folder)
        if self.tokenizer is not None:
            tokenizer = open_text_tokenizer(self.tokenizer)
        else:
            size = self.vocabulary_size or derived_vocabulary(self.size)
            emit(Started("training the tokenizer", 0, "pages"))
            texts = (text for batch in training_texts(self.data, share) for text in batch)
            tokenizer = train_tokenizer(texts, size, or_fewer=self.vocabulary_size is None)
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer.save(folder)
        return tokenizer

    def _stream(
        self, folder: Path, tokenizer: TextTokenizer, split: Split, share: float, emit: Emit
    ) -> TokenStream:
        from mickle.data.heldout import training_texts
        from mickle.data.packing import pack

        emit(Started("tokenizing", split.training_pages, "pages"))
        texts = training_texts(self.data, share)
        return pack(texts, tokenizer, folder, split.training_bytes, lambda pages: emit(Progressed(pages)))

    def _plan(
        self, file: Path, tokenizer: TextTokenizer, stream: TokenStream, split: Split
    ) -> tuple[Plan, Forecast]:
        """The run's numbers. They are kept: some are measured, and a restart must not measure otherwise."""
        from mickle.storage import check_space, read_json, write_json
        from mickle.training.pretrain_plan import Plan, resolve

        if file.is_file():
            kept = read_json(file)
            notes = tuple(kept["forecast"].pop("notes"))
            return Plan(**kept["plan"]), Forecast(**kept["forecast"], notes=notes)
        plan = resolve(self, tokenizer.size, len(stream))
        forecast = _forecast(self, plan, split)
        check_space(file.parent, forecast.disk_bytes)
        write_json(file, {"plan": asdict(plan), "forecast": asdict(forecast)})
        return Plan(**read_json(file)["plan"]), forecast

    def _train(
        self, plan: Plan, stream: TokenStream, tokenizer: TextTokenizer, split: Split, work: Path, emit: Emit
    ) -> tuple[nn.Module, dict[str, float]]:
        """The trained model and what the last evaluation measured."""
        from mickle import machine
        from mickle.data.mixture import Mixture
        from mickle.models.decoder import Decoder
        from mickle.training.loop import fit
        from mickle.training.objectives import next_token
        from mickle.training.optimizers import build_optimizer

        machine.seed_everything(self.seed)
        model = Decoder(plan.config, seed=self.seed).to(machine.device())
        settings = self.optimizer.model_copy(update={"learning_rate": plan.learning_rate})
        events = fit(
            model,
            next_token,
            Mixture(stream, plan.batch_size, plan.sequence_length, self.seed),
            build_optimizer(settings, model),
            steps=plan.steps,
            schedule=self.schedule,
            accumulate=plan.accumulate,
            clip_norm=self.clip_norm,
            precision=plan.precision,  # type: ignore[arg-type]
            evaluate=heldout_measure(split.heldout, tokenizer, plan) if split.heldout else None,
            evaluate_every=plan.evaluate_every,
            checkpoints=work / SCRATCH / "checkpoints",
            save_every=plan.save_every,
            seed=self.seed,
            on_bad_numbers=self.on_bad_numbers,
            compile=self.compile,
            identity=self.identity(),
        )
        return model, _record(events, work / METRICS, emit)

    def _choose_weights(self, model: nn.Module, checkpoints: Path, steps: int, measured: bool) -> int:
        """Put the weights to keep into the model; returns their step."""
        from mickle.training import checkpoint

        best = checkpoint.best(checkpoints) if self.weights == "best" and measured else None
        if best is None:
            return steps
        checkpoint.load_weights(best, model)
        return checkpoint.step_of(best)


def split_pages(data: Path, share: float | None) -> tuple[Split, float]:
    """Read all pages once and split them; the share that was used comes with it.

    Raises UsageError where a side is empty: no pages, one page, copies of one page, an unlucky or extreme share.
    """
    from mickle.data.heldout import page_count, read_pages, split
    from mickle.training.pretrain_plan import derived_share

    if share is None:
        share = derived_share(page_count(data))
    sides = split(read_pages(data), share)
    without = "or set heldout_share to 0 to train without held-out pages"
    if sides.distinct == 0:
        raise UsageError(
            "There is no page with text here.", where=str(data), todo="check what `curate` removed"
        )
    if share > 0 and sides.distinct == 1:
        raise UsageError(
            "All pages hold the same text: none can be held out.",
            where=str(data),
            expected="two different pages at the least",
            todo=f"give more pages, {without}",
        )
    if share > 0 and not sides.heldout:
        raise UsageError(
            f"None of the {sides.distinct} pages is held out at a share of {share:g}.",
            where="heldout_share",
            expected="a share that holds out a page: pages are chosen by a hash of their text",
            todo=f"raise heldout_share, {without}",
        )
    if not sides.training_pages:
        raise UsageError(
            f"A share of {share:g} leaves none of the {sides.distinct} pages for training.",
            where="heldout_share",
            todo="lower heldout_share, or give more pages",
        )
    return sides, share


def heldout_measure(
    pages: tuple[Page, ...], tokenizer: TextTokenizer, plan: Plan
) -> Callable[[nn.Module], dict[str, float]]:
    """A quick measure for the run: the first held-out pages, in windows of one sequence without overlap.

    ``heldout_loss`` is nats per token, ends of documents included; ``heldout_bits_per_byte`` the same over UTF-8 bytes.
    Windows cut contexts short, so `mickle evaluate`, which slides, finds a little less.
    """
    import math

    import numpy as np

    from mickle.data.packing import NOT_TRAINED, stream_of
    from mickle.training.objectives import next_token

    documents: list[Any] = []
    texts: list[str] = []
    for page in pages:
        if sum(map(len, documents)) >= QUICK_TOKENS:
            break
        documents += tokenizer.encode_documents([page.text])
        texts.append(page.text)
    stream = stream_of(documents, tokenizer)
    size = sum(len(text.encode("utf-8")) for text in texts)
    starts = np.arange(0, len(stream), plan.sequence_length)
    rows = max(1, plan.batch_size // plan.accumulate)

    def measure(model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        total = count = 0.0
        for first in range(0, len(starts), rows):
            some = starts[first : first + rows]
            batch = stream.windows(some, plan.sequence_length)
            past_end = some[:, None] + np.arange(plan.sequence_length) >= len(stream)
            batch["labels"][past_end] = NOT_TRAINED
            loss, terms = next_token(model, {name: tensor.to(device) for name, tensor in batch.items()})
            total, count = total + float(loss), count + int(terms)
        return {"heldout_loss": total / count, "heldout_bits_per_byte": total / math.log(2) / size}

    return measure


def _record(events: Iterator[Event], file: Path, emit: Emit) -> dict[str, float]:
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

    lines = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    )
    return next((line["values"] for line in reversed(lines) if line["event"] == "evaluated"), {})


def _write_heldout(split: Split, file: Path) -> None:
    from mickle.data.heldout import write_pages
    from mickle.storage import disk_errors

    with disk_errors(file):
        write_pages(split.heldout, file)


def _forecast(settings: Pretrain, plan: Plan, split: Split) -> Forecast:
    """Memory in closed form; time from some measured steps."""
    from mickle.training.pretrain_plan import disk, memory, step_seconds

    needed = memory(plan)
    seconds = step_seconds(settings, plan) * plan.steps * 1.05  # evaluations and checkpoints
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


def _first_texts(batches: Iterator[list[str]]) -> list[str]:
    texts: list[str] = []
    for batch in batches:
        texts += batch
        if sum(map(len, texts)) > PREVIEW_BYTES:
            break
    return texts


def _preview(tokenizer: TextTokenizer, document: Any, plan: Plan) -> str:
    """The first sequence with its trained tokens coloured: every token is, save the mark that opens the text."""
    from mickle.data.tokenizer import coloured

    ids = [int(token) for token in document[: min(plan.sequence_length, 200) + 1]]
    trained = [position > 0 for position in range(len(ids))]
    return "first example; coloured tokens are trained:\n" + "".join(coloured(tokenizer, ids, trained))
