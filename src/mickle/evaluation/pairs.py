"""The part of ``mickle evaluate`` that asks which of two sentences a model finds likelier: minimal pairs.

A model prefers the good sentence where its score is higher. Scores are sums over the sentence's tokens w_1 .. w_n,
document marks left out::

    causal models   log p(w) = sum_i log p(w_i | w_1 .. w_{i-1})
    masked models   PLL(w)   = sum_i log p(w_i | w with w_i masked)

The second is the pseudo-log-likelihood of "Masked Language Model Scoring" (Salazar et al., arXiv 1910.14659, section
2): each token is masked on its own, all others seen. BLiMP (arXiv 1912.00582) is read as it is published. A tie counts
half. Intervals are Wilson's, 95 %, over pairs.

What to know of PLL: a token that is part of a long word is easy to guess from its other parts, so rare words split into
many tokens score too well. Pairs that differ in one word of equal length in tokens are safe from this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from mickle.config import Input
from mickle.errors import NumericError, UsageError
from mickle.evaluation.measure import Measure, in_batches, longest_text, open_to_measure
from mickle.events import Emit, Started, as_warnings
from mickle.figures import Bars, Figure, Panel, Rule
from mickle.results import Result, Table, json_lines

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from mickle.data.rows import Row
    from mickle.data.tokenizer import TextTokenizer

FIELDS = (("good", "bad"), ("sentence_good", "sentence_bad"))
KINDS = ("kind", "linguistics_term", "UID")
BATCH_TOKENS = 8192
EXPECTED = "good and bad, or BLiMP's sentence_good and sentence_bad: two different texts"


@dataclass(frozen=True)
class Pair:
    """Two sentences, what sets them apart, and where they stand."""

    good: str
    bad: str
    kind: str
    where: str


class Pairs(Measure):
    """How often a model prefers the good sentence of a minimal pair."""

    kind: Literal["pairs"] = "pairs"
    data: Input = Field(
        description="JSON Lines, JSON or Parquet with good, bad and perhaps kind; BLiMP's files as they are"
    )
    by: str | None = Field(None, description="field that tells kinds apart (default: kind, linguistics_term or UID)")

    def run(self, folder: Path, emit: Emit, seed: int = 0) -> Result:
        """Score the pairs with a model folder; every pair's scores are kept."""
        pairs = read_pairs(self.data, self.by)
        model, tokenizer = open_to_measure(folder)
        scores = score_pairs(model, tokenizer, pairs, emit)
        kinds = accuracies(pairs, scores)
        rule = "log-likelihood" if model.causal else "pseudo-log-likelihood"
        rows = (
            {"good": pair.good, "bad": pair.bad, "kind": pair.kind, "score_good": good, "score_bad": bad}
            for pair, (good, bad) in zip(pairs, scores.tolist(), strict=True)
        )
        return Result(
            {"accuracy": kinds[0]["accuracy"], "interval": kinds[0]["interval"], "pairs": len(pairs), "score": rule},
            {"task": "pairs", "score": rule, "kinds": kinds},
            [f"good sentence preferred by {rule}; chance is 50 %", as_table(kinds)],
            {"pairs.svg": picture(kinds)},
            texts={"pairs.jsonl": json_lines(rows)},
        )


def read_pairs(path: Path, by: str | None = None) -> list[Pair]:
    """The pairs of a file. Raises UsageError naming the line or row that is wrong, and for a file without pairs."""
    from mickle.data.arrow import HELDOUT, is_saved, split_of
    from mickle.data.rows import read_rows

    if not Path(path).is_file() and not is_saved(Path(path)):
        raise UsageError(f"There is no file {path}.", where="data", expected="JSON Lines, JSON or Parquet")
    pairs = [_pair(row, by) for row in read_rows(split_of(Path(path), HELDOUT))]
    if not pairs:
        raise UsageError("The file holds no pairs.", where=str(path), expected=EXPECTED)
    return pairs


def _pair(row: Row, by: str | None) -> Pair:
    values, where = row.values, row.where
    if row.problem:
        raise UsageError(f"This record cannot be read: {row.problem}.", where=where, expected=EXPECTED)
    names = next((pair for pair in FIELDS if all(name in values for name in pair)), None)
    if names is None:
        raise UsageError("The record lacks a good or a bad sentence.", where=where, expected=EXPECTED)
    good, bad = (values[name] for name in names)
    if not all(isinstance(text, str) and text.strip() for text in (good, bad)):
        raise UsageError("A sentence is empty or no text.", where=where, expected=EXPECTED)
    if good == bad:
        raise UsageError("The two sentences are the same.", where=where, expected=EXPECTED)
    if by is not None and by not in values:
        raise UsageError(f"The record has no field {by!r}.", where=where, expected="the field named by `by`")
    found = values[by] if by is not None else next((values[k] for k in KINDS if values.get(k)), "")
    return Pair(good, bad, str(found), where)


def score_pairs(
    model: nn.Module, tokenizer: TextTokenizer, pairs: Sequence[Pair], emit: Emit = as_warnings
) -> np.ndarray:
    """Scores in nats of the good and the bad sentence of every pair, float64 [pairs, 2]; higher is likelier.

    Raises UsageError, with its place, for a sentence that is longer than the model reads.
    """
    import numpy as np

    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    _refuse_long(model, tokenizer, pairs, texts)
    rule = log_likelihoods if model.causal else pseudo_log_likelihoods
    scores = rule(model, tokenizer, texts, emit)
    if not np.isfinite(scores).all():
        raise NumericError("The model's answer is not finite.", where="evaluation")
    return scores.reshape(-1, 2)


def _refuse_long(model: nn.Module, tokenizer: TextTokenizer, pairs: Sequence[Pair], texts: Sequence[str]) -> None:
    longest = longest_text(model, 1 << 30)
    for number, document in enumerate(tokenizer.encode_documents(texts)):
        if len(document) > longest:
            raise UsageError(
                f"A sentence has {len(document):,} tokens, its marks included; the model reads {longest:,}.",
                where=pairs[number // 2].where,
            )
        if len(document) <= 1 + (tokenizer.start != tokenizer.end):
            raise UsageError("The tokenizer makes no token of a sentence.", where=pairs[number // 2].where)


def log_likelihoods(
    model: nn.Module, tokenizer: TextTokenizer, texts: Sequence[str], emit: Emit = as_warnings
) -> np.ndarray:
    """log p of each text under a causal model, nats, float64 [n]; from the start mark on, the end left out."""
    import numpy as np

    from mickle.data.records import Page
    from mickle.evaluation.loss import score

    pages = [Page("", "", "", text) for text in texts]
    longest = max(len(ids) for ids in tokenizer.encode(texts))
    scored = score(model, tokenizer, pages, length=longest, stride=longest, emit=emit)
    return np.array([-float(found.nats.sum()) for found in scored])


def pseudo_log_likelihoods(
    model: nn.Module, tokenizer: TextTokenizer, texts: Sequence[str], emit: Emit = as_warnings
) -> np.ndarray:
    """PLL of each text under a masked model, nats, float64 [n]: a row for each token, in which it alone is masked.

    Rows go through the model some at a time, texts of like length together; only the masked position is projected.
    """
    import numpy as np
    import torch

    from mickle.data.example_batches import padded
    from mickle.data.masking import vocabulary_of
    from mickle.evaluation.masked import token_scores

    mask = vocabulary_of(tokenizer).mask
    documents = tokenizer.encode_documents(texts)
    last = 0 if tokenizer.start == tokenizer.end else 1
    rows = [(number, at) for number, ids in enumerate(documents) for at in range(1, len(ids) - last)]
    scores = np.zeros(len(texts))
    emit(Started("scoring sentences", len(rows), "tokens"))
    model.eval()

    @torch.no_grad()
    def scored(some: list[tuple[int, int]]) -> np.ndarray:
        batch = padded([documents[number] for number, _ in some], mask)
        labels = torch.full_like(batch["input_ids"], -100)
        places = torch.arange(len(some)), torch.tensor([at for _, at in some])
        labels[places] = batch["input_ids"][places]
        batch["input_ids"][places] = mask
        return token_scores(model, {**batch, "labels": labels})[0]

    for some, nats in in_batches(rows, lambda row: len(documents[row[0]]), BATCH_TOKENS, scored, emit):
        np.subtract.at(scores, [number for number, _ in some], nats)
    return scores


def accuracies(pairs: Sequence[Pair], scores: np.ndarray) -> list[dict[str, Any]]:
    """Share of pairs whose good sentence is preferred, of all pairs and then of each kind, with intervals.

    ``margin`` is the mean difference of the two scores, in nats.
    """
    import numpy as np

    better = np.sign(scores[:, 0] - scores[:, 1]) / 2 + 0.5  # 1, a half for ties, 0
    kinds = np.array([pair.kind for pair in pairs])
    groups = [("all", np.ones(len(pairs), bool))]
    if len(set(kinds)) > 1:
        groups += [(str(kind), kinds == kind) for kind in sorted(set(kinds))]
    return [
        {
            "kind": name,
            "pairs": int(rows.sum()),
            "accuracy": float(better[rows].mean()),
            "interval": list(wilson(float(better[rows].sum()), int(rows.sum()))),
            "ties": int((better[rows] == 0.5).sum()),
            "margin": float((scores[rows, 0] - scores[rows, 1]).mean()),
        }
        for name, rows in groups
    ]


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927): the p with |successes / n - p| <= z sqrt(p (1 - p) / n)."""
    share, shrink = successes / n, z * z / n
    middle = (share + shrink / 2) / (1 + shrink)
    half = z * math.sqrt(share * (1 - share) / n + shrink / (4 * n)) / (1 + shrink)
    return max(0.0, middle - half), min(1.0, middle + half)


def as_table(kinds: Sequence[dict[str, Any]]) -> Table:
    """One row for each kind."""
    rows = []
    for found in kinds:
        share = "{:.1%} ({:.1%} to {:.1%})".format(found["accuracy"], *found["interval"])
        rows.append(
            (found["kind"] or "(none)", f"{found['pairs']:,}", share, f"{found['margin']:+.2f}", f"{found['ties']:,}")
        )
    return Table(("kind", "pairs", "preferred (95 %)", "mean margin, nats", "ties"), rows, frozenset({1, 2, 3, 4}))


def picture(kinds: Sequence[dict[str, Any]]) -> Figure:
    """Accuracy of each kind with its interval; the line is chance."""
    shown = list(kinds)[:40][::-1]
    shares = Bars(
        [found["kind"][:40] or "(none)" for found in shown],
        [found["accuracy"] for found in shown],
        intervals=[found["interval"] for found in shown],
    )
    panel = Panel("good sentence preferred", bars=shares, rules=[Rule(x=0.5)], x_limits=(0, 1))
    return Figure((panel,), height=1.2 + 0.22 * len(shown))
