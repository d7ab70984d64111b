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

from mickle.config import Input
from mickle.errors import UsageError
from mickle.evaluation.comparison import Compare
from mickle.evaluation.length import Length
from mickle.evaluation.masked import Masked
from mickle.evaluation.measure import Measure, open_to_measure, pages_to_measure, text_length
from mickle.evaluation.pairs import Pairs
from mickle.events import Emit, Noted
from mickle.figures import COLOURS, INK, Bars, Figure, Line, Panel
from mickle.machine import Forecast
from mickle.models.gguf_folder import Model
from mickle.results import Finding, Result, Section, Table, cell, drawn, facts
from mickle.step import Step, command

if TYPE_CHECKING:
    from mickle.data.records import Page


class Loss(Measure):
    """Perplexity and bits per byte on pages the model has not seen, beside byte baselines."""

    kind: Literal["loss"] = "loss"
    data: Input | None = Field(None, description="pages to measure on (default: the model's own heldout.parquet)")
    baselines_from: Input | None = Field(
        None, description="the training corpus, from which baselines may learn; measured pages in it are left out"
    )
    length: int | None = Field(None, ge=1, description="tokens of a window (default: what the model was made for)")
    stride: int | None = Field(None, ge=1, description="tokens by which windows slide (default: half the length)")
    ngram_order: int = Field(5, ge=1, le=8, description="bytes in a gram of the n-gram baseline")

    def run(self, folder: Path, emit: Emit, seed: int = 0) -> Result:
        """Score the pages, and measure the baselines on the same bytes. Refuses a model that sees both sides."""
        from mickle.evaluation import baselines
        from mickle.evaluation.loss import score, summarise

        pages = pages_to_measure(self.data, folder)
        model, tokenizer = open_to_measure(folder)
        if not model.causal:
            raise UsageError(
                "This model sees both sides of a token; its loss on text is not defined.",
                expected="causal",
                todo="measure how it fills in hidden tokens, with --task masked, or --task pairs",
            )
        length = text_length(model, self.length)
        stride = self.stride or max(1, length // 2)
        measured = summarise(score(model, tokenizer, pages, length=length, stride=stride, emit=emit), seed)
        training, left_out = training_texts_for(self.baselines_from, pages)
        if self.baselines_from is not None:
            learnt = f"baselines learn from {len(training):,} pages"
            emit(Noted(f"{learnt}; {left_out:,} measured pages were left out of them"))
        others = baselines.measure([page.text for page in pages], training, self.ngram_order)
        values = {
            "task": "loss",
            "length": length,
            "stride": stride,
            "model": measured,
            "baselines": others,
            "baseline_pages": len(training),
            "pages_left_out_of_baselines": left_out,
        }
        names = ("bits_per_byte", "bits_per_byte_interval", "perplexity")
        summary = {name: measured[name] for name in names} | {"baselines": others}
        return Result(summary, values, _page(measured, others), {"loss.svg": _picture(measured, others)})

    def after(self, folder: Path, out: Path) -> str:
        """See what it writes."""
        return command("sample", folder, "--prompts", "Return the")


class Evaluate(Step):
    """Measure a model: loss on pages, the length at which it breaks, hidden tokens, minimal pairs, others beside it."""

    version: ClassVar[int] = 2  # 2: unknown tokens cost their bytes; columns of rows are obeyed
    kind: ClassVar[str] = "evaluation"
    title: ClassVar[str] = "The evaluation"
    positional: ClassVar[str] = "model"
    example: ClassVar[str] = "mickle evaluate model --task loss --task.baselines-from corpus"

    model: Model = Field(description="model folder, Mickle's or any other, or GGUF file")
    task: Annotated[Loss | Length | Masked | Pairs | Compare, Field(discriminator="kind")] = Field(
        default_factory=Loss, description="loss, length, masked, pairs or compare, and its settings"
    )

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        return self.task.run(self.model, emit, self.seed).write(work, emit)

    def dry_run(self) -> tuple[Forecast, str]:
        return self.task.forecast(self.model), ""

    def after(self, out: Path) -> str:
        return self.task.after(self.model, out)

    @classmethod
    def section(cls, folder: Path, summary: dict[str, Any]) -> Section:
        """Figures, all plain numbers, and a model's loss beside the baselines."""
        bars = sorted(summary.get("baselines", {}).items(), key=lambda item: item[1])
        rows = facts(summary) + [(f"baseline: {name}, bits per byte", cell(value)) for name, value in bars]
        table = Table(("measure", "value"), rows, frozenset({1}))
        return Section(cls.title, beside_baselines(summary), drawn(folder), [table])

    @classmethod
    def findings(cls, summary: dict[str, Any]) -> list[Finding]:
        """Bits per byte of the model and of the best baseline."""
        if "bits_per_byte" not in summary:
            return []
        found = [Finding(f"{summary['bits_per_byte']:.3f}", "bits per byte on pages never seen")]
        if summary.get("baselines"):
            name, value = _best(summary["baselines"])
            found.append(Finding(f"{value:.3f}", f"best trivial baseline ({name})"))
        return found


def beside_baselines(summary: dict[str, Any]) -> str:
    """Whether the model is better than the best baseline, and how sure that is, in words."""
    if not summary.get("baselines"):
        return "Measured on pages the model has not seen."
    name, best = _best(summary["baselines"])
    share = 1 - summary["bits_per_byte"] / best
    much = f"{share:.0%} fewer bits than" if share > 0 else f"{-share:.0%} more bits than"
    low, high = summary.get("bits_per_byte_interval", [summary["bits_per_byte"]] * 2)
    if low <= best <= high:
        end = f"That is within the interval over pages, {low:.2f} to {high:.2f} bits a byte: neither is clearly better."
    else:
        end = "The model is the better one." if share > 0 else "The baseline is the better one."
    return f"On pages it has not seen, the model needs {much} the best trivial baseline ({name}). {end}"


def _best(baselines: dict[str, float]) -> tuple[str, float]:
    return min(baselines.items(), key=lambda item: item[1])


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


def _page(model: dict[str, Any], baselines: dict[str, float]) -> list[str | Table]:
    """The model among the baselines, best first, then its domains."""
    low, high = model["bits_per_byte_interval"]
    rows = sorted([("**this model**", model["bits_per_byte"]), *baselines.items()], key=lambda row: row[1])
    page: list[str | Table] = [
        f"{model['documents']:,} pages, {model['bytes']:,} bytes, {model['tokens']:,} tokens; "
        f"perplexity per token {model['perplexity']:.2f}; bits per byte {model['bits_per_byte']:.3f} "
        f"(95 % over pages: {low:.3f} to {high:.3f})",
        Table(("on the same pages", "bits per byte"), [(name, f"{value:.3f}") for name, value in rows]),
    ]
    if len(model["by_domain"]) > 1:
        domains = [
            (name or "(none)", f"{found['bits_per_byte']:.3f}", f"{found['documents']:,}")
            for name, found in model["by_domain"].items()
        ]
        page.append(Table(("domain", "bits per byte", "pages"), domains))
    return page


def _picture(model: dict[str, Any], baselines: dict[str, float]) -> Figure:
    """Bits per byte against the baselines, and the loss by position in the text."""
    bars = sorted([("this model", model["bits_per_byte"]), *baselines.items()], key=lambda bar: -bar[1])
    colours = [COLOURS[2] if name == "this model" else INK for name, _ in bars]
    points = model["by_position"]
    places, nats = [max(1, point["from"]) for point in points], [point["nats_per_token"] for point in points]
    named = Bars([name for name, _ in bars], [value for _, value in bars], colours)
    left = Panel("bits per byte (less is better)", bars=named, x_limits=(0, 1.15 * bars[0][1]))
    line = Line(places, nats, style="o-", colour=COLOURS[2])
    right = Panel("tokens of the text before", "nats per token", [line], x_log=2)
    return Figure((left, right), width=9, height=3.2)
