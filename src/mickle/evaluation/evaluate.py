"""``mickle evaluate``: how good a model is, beside what it must beat.

``loss`` measures perplexity and bits per byte on pages or on the answers of conversations, with byte baselines;
``length`` asks at which length of a task a model breaks (``length.py``); ``masked`` measures how well a model fills in
hidden tokens (``masked.py``); ``pairs`` how often it prefers the good sentence of two (``pairs.py``); ``compare``
measures how far other folders are from this one, against their bytes (``comparison.py``). Works on any folder of
``transformers`` with a causal language model, and for masked and pairs with a masked one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from mickle.events import Emit, Event, Noted, Warned
from mickle.figures import COLOURS, INK, Bars, Figure, Line, Panel
from mickle.machine import Forecast
from mickle.models.gguf_folder import Model
from mickle.results import Finding, Result, Section, Table, cell, drawn, facts
from mickle.step import Step, command
from mickle.storage import HELDOUT, content_digest, read_json, read_manifest

if TYPE_CHECKING:
    from mickle.data.tokenizer import TextTokenizer
    from mickle.evaluation.texts import ScoredText


class Loss(Measure):
    """Perplexity and bits per byte on pages or answers the model has not seen, beside byte baselines."""

    kind: Literal["loss"] = "loss"
    data: Input | None = Field(
        None, description="pages, or conversations of which the answers count (default: what its training held out)"
    )
    baselines_from: Input | None = Field(
        None, description="what it was trained on, from which baselines may learn; what is measured is left out of it"
    )
    length: int | None = Field(None, ge=1, description="tokens of a window (default: what the model was made for)")
    stride: int | None = Field(None, ge=1, description="tokens by which windows slide (default: half the length)")
    ngram_order: int = Field(5, ge=1, le=8, description="bytes in a gram of the n-gram baseline")

    def idle(self) -> set[str]:
        return {"ngram_order"} if self.baselines_from is None else set()

    def run(self, folder: Path, emit: Emit, seed: int = 0) -> Result:
        """Score the texts, and measure the baselines on the same bytes. Refuses a model that sees both sides."""
        from mickle.evaluation.baselines import after_its_question, measure
        from mickle.evaluation.loss import score_texts, summarise
        from mickle.evaluation.texts import own_examples, texts_to_score

        if self.data is None and own_examples(folder) is None:
            pages_to_measure(None, folder)  # refused before the model is opened
        model, tokenizer = open_to_measure(folder)
        if not model.causal:
            raise UsageError(
                "This model sees both sides of a token; its loss on text is not defined.",
                expected="causal",
                todo="measure how it fills in hidden tokens, with --task masked, or --task pairs",
            )
        texts = texts_to_score(self.data, None, folder, tokenizer, emit)
        answers = any(text.around for text in texts)
        for remark in _remarks(folder, self.data):
            emit(remark)
        length = text_length(model, self.length)
        stride = self.stride or max(1, length // 2)
        scored = score_texts(model, tokenizer, texts, length=length, stride=stride, emit=emit)
        measured = summarise(scored, seed)
        training, left_out = training_texts_for(self.baselines_from, texts, folder, tokenizer, emit)
        if self.baselines_from is not None:
            learnt = f"baselines learn from {len(training):,} texts"
            emit(Noted(f"{learnt}; {left_out:,} that are measured were left out of them"))
        others = measure([text.text for text in texts], training, self.ngram_order)
        if answers:
            others["zlib after the question"] = after_its_question([(text.around, text.text) for text in texts])
        values = {
            "task": "loss",
            "measured_on": "answers" if answers else "pages",
            "length": length,
            "stride": stride,
            "model": measured,
            "baselines": others,
            "baseline_pages": len(training),
            "pages_left_out_of_baselines": left_out,
        }
        names = ("bits_per_byte", "bits_per_byte_interval", "nats_per_token", "perplexity")
        summary = {name: measured[name] for name in names} | {"measured_on": values["measured_on"], "baselines": others}
        return Result(summary, values, _page(summary, measured), {"loss.svg": _picture(measured, others)})

    def forecast(self, folder: Path) -> Forecast:
        """What is left out, as it will be."""
        from mickle.evaluation.texts import own_examples
        from mickle.models.adapters import adapter_base
        from mickle.models.folder import describe
        from mickle.models.folder_check import is_adapter

        length = self.length or describe(adapter_base(folder) if is_adapter(folder) else folder).longest
        data = own_examples(folder) or folder / HELDOUT
        derived = {"data": str(data), "length": length, "stride": max(1, length // 2)}
        return Forecast(derived={f"task.{name}": value for name, value in derived.items()})

    def after(self, folder: Path, out: Path) -> str:
        """See what it writes, or ask it."""
        results = out / "results.json"
        if results.is_file() and read_json(results).get("measured_on") == "answers":
            return command("chat", folder)
        return command("sample", folder, "--prompts", "Return the")


class Evaluate(Step):
    """Measure a model: loss on pages or answers, the length at which it breaks, hidden tokens, pairs, others beside."""

    # 2: unknown tokens cost their bytes; columns of rows are obeyed; 3: marks are no bytes of answers
    version: ClassVar[int] = 3
    kind: ClassVar[str] = "evaluation"
    title: ClassVar[str] = "The evaluation"
    positional: ClassVar[str] = "model"
    reported: ClassVar[bool] = True
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
        """Figures, all plain numbers, and a model's loss beside the baselines, or the others beside it."""
        if "others" in summary:
            lead = "Each folder beside the first on the same tokens: the less KL, the more it is the same model."
            return Section(cls.title, lead, drawn(folder), [_beside(summary)])
        bars = sorted(summary.get("baselines", {}).items(), key=lambda item: item[1])
        rows = facts(summary) + [(f"baseline: {name}, bits per byte", cell(value)) for name, value in bars]
        table = Table(("measure", "value"), rows, frozenset({1}))
        return Section(cls.title, beside_baselines(summary), drawn(folder), [table])

    @classmethod
    def findings(cls, summary: dict[str, Any]) -> list[Finding]:
        """Bits per byte of the model and of the best baseline."""
        if "bits_per_byte" not in summary:
            return []
        found = [Finding(f"{summary['bits_per_byte']:.3f}", f"bits per byte on {_measured_on(summary)}")]
        if summary.get("baselines"):
            name, value = _best(summary["baselines"])
            found.append(Finding(f"{value:.3f}", f"best trivial baseline ({name})"))
        return found


def _beside(summary: dict[str, Any]) -> Table:
    """Other folders, and before them the one that they are compared with."""
    rows = [
        (one["name"], f"{one['bytes'] / 1e6:,.1f}", f"{one['perplexity']:.3f}")
        + ((f"{one['kl']:.5f}", f"{one['changed']:.2%}") if "kl" in one else ("", ""))
        for one in [summary["reference"], *summary["others"]]
    ]
    headings = ("model", "MB", "perplexity", "KL, nats a token", "best guess changed")
    return Table(headings, rows, frozenset(range(1, 5)))


def beside_baselines(summary: dict[str, Any]) -> str:
    """Whether the model is better than the best baseline, and how sure that is, in words."""
    if not summary.get("baselines"):
        return "Measured on pages the model has not seen."
    name, best = _best(summary["baselines"])
    share = 1 - summary["bits_per_byte"] / best
    much = f"{share:.0%} fewer bits than" if share > 0 else f"{-share:.0%} more bits than"
    low, high = summary.get("bits_per_byte_interval", [summary["bits_per_byte"]] * 2)
    if low <= best <= high:
        end = f"That is within the interval over texts, {low:.2f} to {high:.2f} bits a byte: neither is clearly better."
    else:
        end = "The model is the better one." if share > 0 else "The baseline is the better one."
    if share < 0 and "after training" in name:
        end += (
            " It has every training page before it and copies from them; of what it read the model has what its weights"
            " could keep. A larger size, more steps and more text that is unlike the rest narrow this."
        )
    return f"On {_measured_on(summary)}, the model needs {much} the best trivial baseline ({name}). {end}"


def _measured_on(summary: dict[str, Any]) -> str:
    return "these answers" if summary.get("measured_on") == "answers" else "pages it has not seen"


def _best(baselines: dict[str, float]) -> tuple[str, float]:
    return min(baselines.items(), key=lambda item: item[1])


def _remarks(folder: Path, data: Path | None) -> Iterator[Event]:
    """What to know of a figure: the model was trained on these texts, or its training measured them in another way."""
    manifest = read_manifest(folder)
    meta = manifest.meta if manifest else {}
    trained_on = str(meta.get("identity", {}).get("settings", {}).get("data", ""))  # of several files all their hashes
    if data is not None and trained_on and content_digest(data) in trained_on:
        yield Warned("the model was trained on most of these texts: the loss on them says little")
    bits = meta.get("summary", {}).get("last_evaluation", {}).get("heldout_bits_per_byte")
    if data is None and bits is not None:
        yield Noted(
            f"the training's own figure, {bits:.3f} bits per byte at its end, is another measure: of the first of these"
            " pages, in windows side by side, which cut what stands before a token, and with the ends of pages counted"
        )


def training_texts_for(
    source: Path | None, measured: Sequence[ScoredText], folder: Path, tokenizer: TextTokenizer, emit: Emit
) -> tuple[list[str], int]:
    """Texts that baselines may learn from, and how many were left out because they are measured.

    Reading stops when there is more text than any baseline takes.
    """
    from mickle.data.heldout import content_hash
    from mickle.evaluation.baselines import LARGEST_TRAINING_TEXT

    texts: list[str] = []
    if source is None:
        return texts, 0
    hidden = {content_hash(text.around + text.text) for text in measured}
    size = left_out = 0
    for around, text in _known_texts(source, folder, tokenizer, emit):
        if content_hash(around + text) in hidden:
            left_out += 1
            continue
        texts.append(text)
        size += len(text)
        if size > LARGEST_TRAINING_TEXT:
            break
    return texts, left_out


def _known_texts(source: Path, folder: Path, tokenizer: TextTokenizer, emit: Emit) -> Iterator[tuple[str, str]]:
    """Pages, or answers each with what stands around it."""
    from mickle.data.heldout import read_pages
    from mickle.evaluation.texts import holds_pages, texts_to_score

    if holds_pages(source):
        yield from (("", page.text) for batch in read_pages(source) for page in batch)
    else:
        yield from ((text.around, text.text) for text in texts_to_score(source, None, folder, tokenizer, emit))


def _page(summary: dict[str, Any], model: dict[str, Any]) -> list[str | Table]:
    """The model among the baselines, best first, then its domains."""
    low, high = model["bits_per_byte_interval"]
    rows = sorted([("**this model**", model["bits_per_byte"]), *summary["baselines"].items()], key=lambda row: row[1])
    texts = "conversations, their answers:" if summary["measured_on"] == "answers" else "pages,"
    page: list[str | Table] = [
        f"{model['documents']:,} {texts} {model['bytes']:,} bytes, {model['tokens']:,} tokens; "
        f"loss {model['nats_per_token']:.4f} nats a token, perplexity {model['perplexity']:.2f}; "
        f"bits per byte {model['bits_per_byte']:.3f} (95 % over texts: {low:.3f} to {high:.3f})",
        Table((f"on the same {summary['measured_on']}", "bits per byte"), [(name, f"{v:.3f}") for name, v in rows]),
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
