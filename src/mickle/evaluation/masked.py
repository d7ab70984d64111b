"""The part of ``mickle evaluate`` for models that fill in hidden tokens: ours, and any masked one of ``transformers``.

At each of a few fixed rates every ordinary token of the pages is hidden with that probability (80 % by the mask token,
10 % by a random one, 10 % left as they are), and the model's loss on the hidden ones is measured:

    loss = -sum log p(token | the rest) / number of hidden tokens    (nats; also the share whose best guess is right)

The masks depend on the page's place and the tokenizer alone, so two models with one tokenizer answer the same
questions, and the tokens hidden at one rate are among those of a higher one. Losses at different rates do not compare:
the more is hidden, the harder it is. A page longer than the model reads is cut into pieces with marks of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mickle.config import Input
from mickle.errors import NumericError, UsageError
from mickle.evaluation.measure import Measure, in_batches, open_to_measure, pages_to_measure, text_length
from mickle.events import Emit, Started, as_warnings
from mickle.figures import COLOURS, Figure, Line, Panel
from mickle.results import Result, Table
from mickle.step import command

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from mickle.data.records import Page
    from mickle.data.tokenizer import TextTokenizer

LENGTH_UNKNOWN = 512  # tokens of a piece for a model whose settings name no limit
BATCH_TOKENS = 8192
HEAD_BYTES = 32 << 20  # of float32 logits held at a time


class Masked(Measure):
    """Loss and accuracy on hidden tokens, at fixed rates and with fixed masks."""

    kind: Literal["masked"] = "masked"
    data: Input | None = Field(None, description="pages to measure on (default: the model's own heldout.parquet)")
    rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        (0.15, 0.3, 0.5), min_length=1, description="shares of tokens that are hidden, one measurement each"
    )
    length: int | None = Field(None, ge=3, description="tokens of a piece (default: what the model was made for)")

    def run(self, folder: Path, emit: Emit, seed: int = 0) -> Result:
        """Measure a model folder at every rate."""
        pages = pages_to_measure(self.data, folder)
        model, tokenizer = open_to_measure(folder)
        if model.causal:
            raise UsageError(
                "This model sees one side of a token; it does not fill in hidden ones.",
                where=str(folder),
                todo=command("evaluate", folder, "--task", "loss"),
            )
        length = text_length(model, self.length, LENGTH_UNKNOWN)
        scores = [
            {"rate": rate, **summarise(score(model, tokenizer, pages, rate=rate, length=length, emit=emit), seed)}
            for rate in sorted(set(self.rates))
        ]
        summary = {
            f"{name}_at_{s['rate']:g}": s[measure]
            for s in scores
            for name, measure in (("loss", "nats_per_token"), ("accuracy", "accuracy"))
        }
        values = {"task": "masked", "length": length, "pages": len(pages), "scores": scores}
        said = f"{len(pages):,} pages; the same masks for every model with this tokenizer"
        return Result(summary, values, [said, as_table(scores)], {"masked.svg": picture(scores)})


def score(
    model: nn.Module,
    tokenizer: TextTokenizer,
    pages: Sequence[Page],
    *,
    rate: float,
    length: int,
    emit: Emit = as_warnings,
) -> np.ndarray:
    """For each page: nats of its hidden tokens, how many the model's best guess got right, how many there are: [P, 3].

    length: tokens of a piece, its marks counted.
    """
    import numpy as np
    import torch

    from mickle.data.example_batches import padded
    from mickle.data.masking import EVALUATION_SEED, Masking, mask_batch, vocabulary_of

    settings, vocabulary = Masking(), vocabulary_of(tokenizer)
    pieces = list(pieces_of(tokenizer, [page.text for page in pages], length))
    found = np.zeros((len(pages), 3))
    emit(Started(f"scoring pages at {rate:g}", len(pieces), "pieces"))
    model.eval()

    @torch.no_grad()
    def scored(some: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """The page that each hidden token is of, and [n, 3]: its nats, whether the best guess is right, 1."""
        batch = padded([pieces[number][1] for number in some], vocabulary.mask)
        batch = mask_batch(batch, np.array(some), rate, settings, vocabulary, EVALUATION_SEED)
        hidden = (batch["labels"] >= 0).nonzero()[:, 0].numpy()
        if not len(hidden):
            return hidden, np.zeros((0, 3))
        nats, right = token_scores(model, batch)
        return np.array([pieces[number][0] for number in some])[hidden], np.stack([nats, right, np.ones_like(nats)], 1)

    numbers = range(len(pieces))
    for _, (of_page, values) in in_batches(numbers, lambda n: len(pieces[n][1]), BATCH_TOKENS, scored, emit):
        np.add.at(found, of_page, values)
    if not np.isfinite(found).all():
        raise NumericError("The model's answer is not finite.", where="evaluation")
    return found


def pieces_of(tokenizer: TextTokenizer, texts: Sequence[str], length: int) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the text, [start, at most so many tokens, end where it is a token of its own]) of every text."""
    import numpy as np

    close = [] if tokenizer.start == tokenizer.end else [tokenizer.end]
    inner = length - 1 - len(close)
    if inner < 1:
        raise UsageError(f"A piece of {length} tokens has no room for text.", where="length")
    for number, ids in enumerate(tokenizer.encode(texts)):
        for begin in range(0, len(ids), inner):
            piece = [tokenizer.start, *ids[begin : begin + inner], *close]
            yield number, np.array(piece, dtype=np.int64)


def token_scores(model: nn.Module, batch: dict[str, Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Of each position with a label, in the order of rows: -log p(label) in nats, and whether it is the best guess.

    Only these positions are projected onto the vocabulary, some at a time.
    """
    import torch
    from torch import nn

    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    labels = batch["labels"]
    chosen = labels >= 0  # [B, T]

    def head(hidden: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        targets = labels[chosen]  # [n]
        rows = max(1, HEAD_BYTES // (4 * (hidden.shape[-1] if weight is None else len(weight))))
        nats, right = [], []
        for part in torch.arange(len(targets), device=hidden.device).split(rows):
            logits = (hidden[part] if weight is None else hidden[part] @ weight.T).float()  # [n, V]
            nats.append(nn.functional.cross_entropy(logits, targets[part], reduction="none"))
            right.append(logits.argmax(-1) == targets[part])
        return torch.cat(nats), torch.cat(right)

    found: tuple[Tensor, Tensor] = model(
        batch["input_ids"], documents=batch.get("documents"), positions=chosen, head=head
    )
    return found[0].double().cpu().numpy(), found[1].double().cpu().numpy()


def summarise(found: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """Figures over all pages. The loss has a 95 % bootstrap interval over pages: other pages, not other seeds."""
    from mickle.evaluation.loss import bootstrap_ratio, perplexity

    nats, right, count = found[found[:, 2] > 0].T
    if not len(count):
        raise UsageError("No token of the pages was hidden.", todo="measure on more text, or at a higher rate")
    loss = float(nats.sum() / count.sum())
    return {
        "nats_per_token": loss,
        "interval": list(bootstrap_ratio(nats, count, seed)),
        "perplexity": perplexity(loss),
        "accuracy": float(right.sum() / count.sum()),
        "hidden_tokens": int(count.sum()),
    }


def as_table(scores: Sequence[dict[str, Any]]) -> Table:
    """One row for each rate."""
    headings = ("hidden", "nats a hidden token (95 % over pages)", "perplexity", "right", "hidden tokens")
    rows = [
        (
            f"{s['rate']:.0%}",
            f"{s['nats_per_token']:.3f} ({s['interval'][0]:.3f} to {s['interval'][1]:.3f})",
            f"{s['perplexity']:.2f}", f"{s['accuracy']:.1%}", f"{s['hidden_tokens']:,}",
        )
        for s in scores
    ]  # fmt: skip
    return Table(headings, rows, frozenset(range(5)))


def picture(scores: Sequence[dict[str, Any]]) -> Figure:
    """Loss and accuracy over the rate."""
    rates, losses, right = ([s[name] for s in scores] for name in ("rate", "nats_per_token", "accuracy"))
    low, high = ([s["interval"][side] for s in scores] for side in (0, 1))
    hidden = "share of tokens hidden"
    loss = Panel(hidden, "nats a hidden token", [Line(rates, losses, style="o-", band=(low, high))])
    share = Line(rates, right, style="o-", colour=COLOURS[2])
    return Figure((loss, Panel(hidden, "best guess right", [share], y_limits=(0, 1))), width=8, height=2.8)
