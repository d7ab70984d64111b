"""The part of ``mickle evaluate`` that holds other models beside a reference, token by token, on the same text.

For the reference p and another model q over the same tokens, each with all that stands before it::

    KL(p || q) per token = mean over tokens of sum_v p(v) (log p(v) - log q(v))      (nats)
    changed              = share of tokens whose likeliest next token is another
    difference           = mean nats of q - mean nats of p; perplexity grows by exp(difference) - 1

KL sees what perplexity does not: a model can lose here what it gains there. The intervals are the 95 % bootstrap over
texts of the ratio of sums, reference and other resampled together. Both models must read text in the same tokens.
Logits of both are held some positions at a time, and worked with in double precision: a model beside itself has KL 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mickle.config import Config, Input
from mickle.errors import UsageError
from mickle.events import Emit, Noted

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from mickle.evaluation.paired_scores import Sums
    from mickle.evaluation.paired_texts import Text
    from mickle.machine import Forecast

RESULTS, TABLE, FIGURE = "results.json", "table.md", "error_against_bytes.svg"
LENGTH_UNKNOWN = 2048  # tokens of a window for a model whose settings name no limit


class Compare(Config):
    """Other model folders beside this one: perplexity, KL, changed best guesses, bytes."""

    kind: Literal["compare"] = "compare"
    others: list[Input] = Field(min_length=1, description="model folders to hold beside the reference")
    data: Input | None = Field(
        None, description="pages, or conversations of which the answers count (default: own heldout.parquet)"
    )
    length: int | None = Field(None, ge=2, description="tokens of a window (default: what the models were made for)")
    tokens: int | None = Field(None, ge=1, description="tokens to score; the first texts that hold them (default: all)")


def run_compare(task: Compare, folder: Path, work: Path, emit: Emit, seed: int = 0) -> dict[str, Any]:
    """Hold every other folder beside ``folder`` and write numbers, table and figure into ``work``; the summary.

    Two models are in memory at a time. Raises UsageError for folders with other tokenizers or vocabularies, for a model
    that sees both sides, and where there is nothing to score.
    """
    from mickle import machine
    from mickle.data.tokenizer import open_text_tokenizer
    from mickle.evaluation.inputs import longest_text
    from mickle.evaluation.paired_scores import compare
    from mickle.evaluation.paired_texts import check_model, refuse_other_tokens, texts_to_score
    from mickle.models.adapters import tokenizer_folder
    from mickle.models.folder import open_model
    from mickle.storage import write_json, write_text

    tokenizer = open_text_tokenizer(tokenizer_folder(folder))
    texts = texts_to_score(task.data, task.tokens, folder, tokenizer)
    reference = open_model(folder, device=machine.device())
    check_model(reference, tokenizer, folder)
    names = _names([folder, *task.others])
    rows: list[dict[str, Any]] = []
    for name, other in zip(names[1:], task.others, strict=True):
        refuse_other_tokens(tokenizer, open_text_tokenizer(tokenizer_folder(other)), folder, other)
        model = open_model(other, device=machine.device())
        check_model(model, tokenizer, other)
        if model.vocab_size != reference.vocab_size:
            raise UsageError(
                f"this model knows {model.vocab_size:,} tokens, the reference {reference.vocab_size:,}",
                where=str(other),
            )
        length = task.length or min(longest_text(m, LENGTH_UNKNOWN) for m in (reference, model))
        sums = compare(reference, model, texts, length=length, emit=emit)
        if not rows:
            rows.append({"name": names[0], **_size(folder, reference), **_figures(sums.reference, sums, texts)})
        rows.append(
            {
                "name": name,
                **_size(other, model),
                **_figures(sums.other, sums, texts),
                **differences(sums, seed),
                "length": length,
            }
        )
        del model
    results = {"task": "compare", "texts": len(texts), "reference": rows[0], "others": rows[1:]}
    write_json(work / RESULTS, results)
    table = as_table(results)
    write_text(work / TABLE, table)
    write_text(work / FIGURE, draw(results))
    for line in table.splitlines():
        emit(Noted(line))
    kept = ("name", "perplexity", "kl", "changed", "bytes")
    return {
        "reference": {name: rows[0][name] for name in ("name", "perplexity", "bytes")},
        "others": [{name: row[name] for name in kept} for row in rows[1:]],
    }


def forecast(task: Compare, folder: Path) -> Forecast:
    """The memory that a comparison takes: the two largest models side by side, and a batch's logits of both."""
    from mickle.evaluation.paired_scores import CHUNK_BYTES, LOGITS_BYTES
    from mickle.machine import Forecast

    others = max(weight_bytes(other) for other in task.others)
    held = weight_bytes(folder) + others + 2 * LOGITS_BYTES + 6 * CHUNK_BYTES
    return Forecast(memory_bytes=held, notes=("two models are held at a time, the reference and one other",))


def _figures(nats: np.ndarray, sums: Sums, texts: Sequence[Text]) -> dict[str, float]:
    mean = float(nats.sum() / sums.tokens.sum())
    return {
        "perplexity": math.exp(min(mean, 700.0)),
        "nats_per_token": mean,
        "bits_per_byte": float(nats.sum() / math.log(2) / max(1, sum(text.bytes for text in texts))),
        "tokens": int(sums.tokens.sum()),
    }


def differences(sums: Sums, seed: int = 0) -> dict[str, Any]:
    """The other model against the reference: loss difference, perplexity increase, KL, changed best guesses."""
    from mickle.evaluation.loss import bootstrap_ratio

    total = sums.tokens.sum()
    difference = sums.other - sums.reference
    mean = float(difference.sum() / total)
    return {
        "difference": mean,
        "difference_interval": list(bootstrap_ratio(difference, sums.tokens, seed)),
        "perplexity_increase": math.expm1(min(mean, 700.0)),
        "kl": float(sums.divergence.sum() / total),
        "kl_interval": list(bootstrap_ratio(sums.divergence, sums.tokens, seed)),
        "changed": float(sums.changed.sum() / total),
    }


def weight_bytes(folder: Path) -> int:
    """Bytes of a folder's weight files; an adapter's and its base's together."""
    from mickle.models.folder_check import is_adapter

    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if is_adapter(folder):
        from mickle.models.adapters import adapter_base

        size += weight_bytes(adapter_base(folder))
    return size


def _size(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Bytes on disk, and bits a weight of the layers that are stored in few bits, None where there are none."""
    bits = None
    if any(hasattr(module, "stored_bytes") for module in model.modules()):
        from mickle.models.quantized import bits_per_weight

        bits = bits_per_weight(model)
    return {"bytes": weight_bytes(folder), "bits_per_weight": bits}


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, with their parents where two have the same."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = ["/".join(folder.resolve().parts[-2:]) for folder in folders]
    return [name if names.count(name) == 1 else f"{name} ({at})" for at, name in enumerate(names, start=1)]


def as_table(results: dict[str, Any]) -> str:
    """One row for each model in Markdown, the reference first."""
    reference = results["reference"]
    lines = [
        f"{results['texts']:,} texts, {reference['tokens']:,} tokens scored; differences from"
        f" **{_cell(reference['name'])}** in nats a token, 95 % over texts",
        "",
        "| model | MB | bits a weight | perplexity | bits per byte | difference | KL | best guess changed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in [reference, *results["others"]]:
        bits = "" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.3f}"
        cells = [_cell(row["name"]), f"{row['bytes'] / 1e6:,.1f}", bits]
        cells += [f"{row['perplexity']:.3f}", f"{row['bits_per_byte']:.4f}"]
        if "kl" in row:
            low, high = row["difference_interval"]
            cells += [f"{row['difference']:+.4f} ({low:+.4f} to {high:+.4f})", f"{row['kl']:.5f}"]
            cells += [f"{row['changed']:.2%}"]
        else:
            cells += ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ") or "(none)"


def draw(results: dict[str, Any]) -> str:
    """Error against bytes: KL, and the growth of perplexity, over the size of the weight files, as SVG."""
    from mickle import figures

    rows = sorted(results["others"], key=lambda row: row["bytes"])
    sizes = [row["bytes"] / 1e6 for row in rows]

    def paint(left: Any, right: Any) -> None:
        low, high = zip(*(row["kl_interval"] for row in rows))
        kl = [row["kl"] for row in rows]
        growth = [100 * row["perplexity_increase"] for row in rows]
        left.plot(sizes, kl, "o-", color=figures.COLOURS[0])
        left.vlines(sizes, low, high, color=figures.COLOURS[0])
        if min(low) > 0:
            left.set_yscale("log")
        right.plot(sizes, growth, "o-", color=figures.COLOURS[1])
        right.axhline(0, color=figures.INK, linewidth=1, linestyle="--")
        for axes, values in ((left, kl), (right, growth)):
            for row, size, value in zip(rows, sizes, values):
                axes.annotate(row["name"][:24], (size, value), (3, 3), textcoords="offset points", fontsize=7)
            axes.set_xlabel("MB of weights")
        left.set_ylabel("KL from the reference, nats a token")
        right.set_ylabel("growth of perplexity, %")

    return figures.draw(paint, width=9, height=3.2, columns=2)
