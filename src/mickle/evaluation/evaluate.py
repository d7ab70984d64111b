"""``mickle evaluate``: how good a model is, beside what it must beat.

``loss`` measures perplexity and bits per byte on pages, with byte baselines; ``length`` asks at which length
of a task a model breaks (``length.py``); ``masked`` measures how well a model fills in hidden tokens (``masked.py``);
``pairs`` how often it prefers the good sentence of two (``pairs.py``); ``compare`` measures how far other folders are
from this one, against their bytes (``comparison.py``). Works on any folder of ``transformers`` with a causal language
model, and for masked and pairs with a masked one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from mickle.config import Config, Input
from mickle.errors import UsageError
from mickle.evaluation.comparison import Compare, forecast, run_compare
from mickle.evaluation.inputs import check_vocabulary, longest_text, pages_to_measure
from mickle.evaluation.length import Length, run_length
from mickle.evaluation.masked import Masked, run_masked
from mickle.evaluation.pairs import Pairs, run_pairs
from mickle.events import Emit, Noted
from mickle.machine import Forecast
from mickle.step import Step
from mickle.storage import write_json, write_text

if TYPE_CHECKING:
    from mickle.data.records import Page

RESULTS, TABLE, FIGURE = "results.json", "table.md", "loss.svg"
LENGTH_UNKNOWN = 2048  # tokens of a window for a model whose settings name no limit


class Loss(Config):
    """Perplexity and bits per byte on pages the model has not seen, beside byte baselines."""

    kind: Literal["loss"] = "loss"
    data: Input | None = Field(None, description="pages to measure on (default: the model's own heldout.parquet)")
    baselines_from: Input | None = Field(
        None, description="the training corpus, from which baselines may learn; measured pages in it are left out"
    )
    length: int | None = Field(None, ge=1, description="tokens of a window (default: what the model was made for)")
    stride: int | None = Field(None, ge=1, description="tokens by which windows slide (default: half the length)")
    ngram_order: int = Field(5, ge=1, le=8, description="bytes in a gram of the n-gram baseline")


class Evaluate(Step):
    """Measure a model: loss on pages, the length at which it breaks, hidden tokens, minimal pairs, others beside it."""

    kind: ClassVar[str] = "evaluation"
    positional: ClassVar[str] = "model"
    example: ClassVar[str] = "mickle evaluate model --task loss --task.baselines-from corpus"

    model: Input = Field(description="model folder, Mickle's or any other")
    task: Annotated[Loss | Length | Masked | Pairs | Compare, Field(discriminator="kind")] = Field(
        default_factory=Loss, description="loss, length, masked, pairs or compare, and its settings"
    )

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        if isinstance(self.task, Length):
            return run_length(self.task, self.model, work, emit, self.seed)
        if isinstance(self.task, Masked):
            return run_masked(self.task, self.model, work, emit, self.seed)
        if isinstance(self.task, Pairs):
            return run_pairs(self.task, self.model, work, emit)
        if isinstance(self.task, Compare):
            return run_compare(self.task, self.model, work, emit, self.seed)
        return run_loss(self.task, self.model, work, emit, self.seed)

    def dry_run(self) -> tuple[Forecast, str]:
        if isinstance(self.task, Compare):
            return forecast(self.task, self.model), ""
        return super().dry_run()

    def after(self, out: Path) -> str:
        if isinstance(self.task, Masked | Pairs | Compare):
            return f"mickle show {out}"
        return f'mickle sample {self.model} --prompts "Return the"'


def run_loss(task: Loss, folder: Path, work: Path, emit: Emit, seed: int = 0) -> dict[str, Any]:
    """Score the pages, measure the baselines on the same bytes, and write numbers, table and figure into ``work``."""
    from mickle import machine
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.evaluation import baselines
    from mickle.evaluation.loss import score, summarise
    from mickle.models.adapters import tokenizer_folder
    from mickle.models.folder import open_model

    pages = pages_to_measure(task.data, folder)
    tokenizer = open_text_tokenizer(tokenizer_folder(folder))
    model = open_model(folder, device=machine.device())
    longest, _ = model_limits(model)
    check_vocabulary(model, tokenizer, folder)
    length = task.length or longest
    stride = task.stride or max(1, length // 2)
    measured = summarise(score(model, tokenizer, pages, length=length, stride=stride, emit=emit), seed)
    training, left_out = training_texts_for(task.baselines_from, pages)
    if task.baselines_from is not None:
        emit(Noted(f"baselines learn from {len(training):,} pages; {left_out:,} measured pages were left out of them"))
    others = baselines.measure([page.text for page in pages], training, task.ngram_order)
    results = {
        "task": "loss",
        "length": length,
        "stride": stride,
        "model": measured,
        "baselines": others,
        "baseline_pages": len(training),
        "pages_left_out_of_baselines": left_out,
    }
    write_json(work / RESULTS, results)
    table = as_table(results)
    write_text(work / TABLE, table)
    write_text(work / FIGURE, draw(results))
    for line in table.splitlines():
        emit(Noted(line))
    return {
        "bits_per_byte": measured["bits_per_byte"],
        "bits_per_byte_interval": measured["bits_per_byte_interval"],
        "perplexity": measured["perplexity"],
        "baselines": others,
    }


def training_texts_for(source: Path | None, measured: Sequence[Page]) -> tuple[list[str], int]:
    """Texts that baselines may learn from, and how many pages were left out because they are measured.

    Reading stops when there is more text than any baseline takes.
    """
    from mickle.data.heldout import content_hash, read_pages
    from mickle.evaluation.baselines import LARGEST_TRAINING_TEXT

    texts: list[str] = []
    if source is None:
        return texts, 0
    hidden = {content_hash(page.text) for page in measured}
    size = left_out = 0
    for batch in read_pages(source):
        for page in batch:
            if content_hash(page.text) in hidden:
                left_out += 1
            else:
                texts.append(page.text)
                size += len(page.text)
        if size > LARGEST_TRAINING_TEXT:
            break
    return texts, left_out


def model_limits(model: Any) -> tuple[int, int]:
    """The longest text and the number of tokens that a model was made for. Refuses one that sees both sides."""
    if not model.causal:
        raise UsageError(
            "This model sees both sides of a token; its loss on text is not defined.",
            expected="causal",
            todo="measure how it fills in hidden tokens, with --task masked, or --task pairs",
        )
    return longest_text(model, LENGTH_UNKNOWN), model.vocab_size


def as_table(results: dict[str, Any]) -> str:
    """The model among the baselines in Markdown, best first, then its domains."""
    model = results["model"]
    rows = [("**this model**", model["bits_per_byte"]), *results["baselines"].items()]
    low, high = model["bits_per_byte_interval"]
    lines = [
        f"{model['documents']:,} pages, {model['bytes']:,} bytes, {model['tokens']:,} tokens; "
        f"perplexity per token {model['perplexity']:.2f}; bits per byte {model['bits_per_byte']:.3f} "
        f"(95 % over pages: {low:.3f} to {high:.3f})",
        "",
        "| on the same pages | bits per byte |",
        "|---|---|",
        *(f"| {name} | {value:.3f} |" for name, value in sorted(rows, key=lambda row: row[1])),
    ]
    if len(model["by_domain"]) > 1:
        lines += ["", "| domain | bits per byte | pages |", "|---|---|---|"]
        lines += [
            f"| {_cell(name)} | {figures['bits_per_byte']:.3f} | {figures['documents']:,} |"
            for name, figures in model["by_domain"].items()
        ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ") or "(none)"


def draw(results: dict[str, Any]) -> str:
    """Bits per byte against the baselines, and the loss by position in the text, as SVG."""
    from mickle import figures

    model = results["model"]
    bars = sorted([("this model", model["bits_per_byte"]), *results["baselines"].items()], key=lambda bar: -bar[1])
    points = model["by_position"]

    def paint(left: Any, right: Any) -> None:
        colours = [figures.COLOURS[2] if name == "this model" else figures.INK for name, _ in bars]
        drawn = left.barh([name for name, _ in bars], [value for _, value in bars], color=colours)
        left.bar_label(drawn, fmt="%.2f", padding=3)
        left.set_xlabel("bits per byte (less is better)")
        left.set_xlim(0, 1.15 * bars[0][1])
        places = [max(1, point["from"]) for point in points]
        right.plot(places, [point["nats_per_token"] for point in points], "o-", color=figures.COLOURS[2])
        right.set_xscale("log", base=2)
        right.set_xlabel("tokens of the text before")
        right.set_ylabel("nats per token")

    return figures.draw(paint, width=9, height=3.2, columns=2)
