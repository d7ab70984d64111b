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

from mickle.config import Input
from mickle.errors import UsageError
from mickle.evaluation.measure import Measure, open_to_measure, text_length
from mickle.events import Emit
from mickle.figures import COLOURS, Figure, Line, Panel, Rule
from mickle.machine import Forecast
from mickle.models.gguf_folder import Model
from mickle.results import Result, Table, escaped

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from mickle.evaluation.paired import Sums
    from mickle.evaluation.texts import ScoredText


class Compare(Measure):
    """Other model folders beside this one: perplexity, KL, changed best guesses, bytes."""

    kind: Literal["compare"] = "compare"
    others: list[Model] = Field(min_length=1, description="model folders to compare with the model")
    data: Input | None = Field(
        None, description="pages, or conversations of which the answers count (default: what its training held out)"
    )
    length: int | None = Field(None, ge=2, description="tokens of a window (default: what the models were made for)")
    tokens: int | None = Field(None, ge=1, description="tokens to score; the first texts that hold them (default: all)")

    def run(self, folder: Path, emit: Emit, seed: int = 0) -> Result:
        """Hold every other folder beside ``folder``. Two models are in memory at a time.

        Raises UsageError for folders with other tokenizers or vocabularies, for a model that sees both sides, and where
        there is nothing to score.
        """
        from mickle.evaluation.paired import compare, refuse_other_tokens
        from mickle.evaluation.texts import texts_to_score

        reference, tokenizer = open_to_measure(folder)
        texts = texts_to_score(self.data, self.tokens, folder, tokenizer, emit)
        _refuse_both_sides(reference, folder)
        names = _names([folder, *self.others])
        rows: list[dict[str, Any]] = []
        for name, other in zip(names[1:], self.others, strict=True):
            model, own = open_to_measure(other)
            refuse_other_tokens(tokenizer, own, folder, other)
            _refuse_both_sides(model, other)
            if model.vocab_size != reference.vocab_size:
                raise UsageError(
                    f"this model knows {model.vocab_size:,} tokens, the reference {reference.vocab_size:,}",
                    where=str(other),
                )
            length = min(text_length(m, self.length) for m in (reference, model))
            sums = compare(reference, model, texts, length=length, emit=emit)
            if not rows:
                rows.append({"name": names[0], **_size(folder, reference), **_figures(sums.reference, sums, texts)})
            found = {**_figures(sums.other, sums, texts), **differences(sums, seed)}
            rows.append({"name": name, **_size(other, model), **found, "length": length})
            del model
        kept = ("name", "perplexity", "kl", "changed", "bytes")
        summary = {
            "reference": {name: rows[0][name] for name in ("name", "perplexity", "bytes")},
            "others": [{name: row[name] for name in kept} for row in rows[1:]],
        }
        values = {"task": "compare", "texts": len(texts), "reference": rows[0], "others": rows[1:]}
        return Result(summary, values, _page(len(texts), rows), {"error_against_bytes.svg": _picture(rows[1:])})

    def forecast(self, folder: Path) -> Forecast:
        """Memory: the two largest models side by side, and a batch's logits of both."""
        from mickle.evaluation.paired import CHUNK_BYTES, LOGITS_BYTES

        others = max(weight_bytes(other) for other in self.others)
        held = weight_bytes(folder) + others + 2 * LOGITS_BYTES + 6 * CHUNK_BYTES
        return Forecast(memory_bytes=held, notes=("two models are held at a time, the reference and one other",))


def _refuse_both_sides(model: Any, folder: Path) -> None:
    if not model.causal:
        raise UsageError("this model sees both sides of a token", where=str(folder), expected="a causal model")


def _figures(nats: np.ndarray, sums: Sums, texts: Sequence[ScoredText]) -> dict[str, float]:
    import numpy as np

    from mickle.evaluation.loss import figures

    found = figures(nats, np.array([text.bytes for text in texts]), sums.tokens)
    return {name: found[name] for name in ("perplexity", "nats_per_token", "bits_per_byte", "tokens")}


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


def _page(texts: int, rows: Sequence[dict[str, Any]]) -> list[str | Table]:
    """One row for each model, the reference first."""
    cells = []
    for row in rows:
        bits = "" if row["bits_per_weight"] is None else f"{row['bits_per_weight']:.3f}"
        differences = ["", "", ""]
        if "kl" in row:
            low, high = row["difference_interval"]
            apart = f"{row['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
            differences = [apart, f"{row['kl']:.5f}", f"{row['changed']:.2%}"]
        measured = [f"{row['perplexity']:.3f}", f"{row['bits_per_byte']:.4f}"]
        cells.append([row["name"] or "(none)", f"{row['bytes'] / 1e6:,.1f}", bits, *measured, *differences])
    headings = ["model", "MB", "bits a weight", "perplexity", "bits per byte", "difference", "KL"]
    return [
        f"{texts:,} texts, {rows[0]['tokens']:,} tokens scored; differences from"
        f" **{escaped(rows[0]['name'] or '(none)')}** in nats a token, 95 % over texts",
        Table([*headings, "best guess changed"], cells, frozenset(range(1, 8))),
    ]


def _picture(others: Sequence[dict[str, Any]]) -> Figure:
    """Error against bytes: KL, and the growth of perplexity, over the size of the weight files."""
    rows = sorted(others, key=lambda row: row["bytes"])
    sizes, names = [row["bytes"] / 1e6 for row in rows], [row["name"][:24] for row in rows]
    low, high = zip(*(row["kl_interval"] for row in rows))
    growth = [100 * row["perplexity_increase"] for row in rows]
    kl = Line(sizes, [row["kl"] for row in rows], style="o-", colour=COLOURS[0], bars=(low, high), names=names)
    grown = Line(sizes, growth, style="o-", colour=COLOURS[1], names=names)
    left = Panel("MB of weights", "KL from the reference, nats a token", [kl], y_log=10 if min(low) > 0 else 0)
    right = Panel("MB of weights", "growth of perplexity, %", [grown], rules=[Rule(y=0)])
    return Figure((left, right), width=9, height=3.2)
