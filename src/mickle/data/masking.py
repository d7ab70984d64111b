"""Masked training: how many tokens are hidden in each step, and the batches in which they are.

"Dynamic Masking Rate Schedules for MLM Pretraining" (Ankner, Saphra, Blalock, Frankle, Leavitt; arXiv 2305.15096): a
masking rate that falls linearly from 30 to 15 % gains 0.46 points of GLUE over a constant 15 % and reaches its score in
1.89 times fewer steps (BERT-base on C4); against the best constant rate the gain is 0.17 points.

In step t of T, warm-up included and whatever the learning rate does::

    linear  p_t = p_i + (t / T) (p_f - p_i)
    cosine  p_t = p_f + (p_i - p_f) (1 + cos(pi t / T)) / 2
    step    p_t = p_i while t < at T, then p_f

Every token that is not special is chosen with probability p_t. Of the chosen, 80 % become the mask token, 10 % a random
token, 10 % stay (BERT, arXiv 1810.04805, section 3.1). The loss is over the chosen ones, divided by their number.

Departures. The rate is a function of the step, so no batch that was made ahead has a stale one (the authors' callback
writes it where workers read it later). Random tokens are never special ones (theirs may be). A word or a span is
treated alike throughout, all masked, all random or all unchanged, as SpanBERT does with spans (arXiv 1907.10529);
BERT's whole-word masking decides that for each token. A batch in which no token happens to be chosen gets those that
were nearest to it, so that every step trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from mickle.config import Config
from mickle.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mickle.data.tokenizer import TextTokenizer
    from mickle.kernels.masking import Vocabulary

    Batch = dict[str, Tensor]

SPACE_MARKS = ("\u2581", "\u0120")  # how SentencePiece and byte-level BPE spell the space before a word
Probability = Annotated[float, Field(gt=0, lt=1)]


class Constant(Config):
    """One rate throughout."""

    kind: Literal["constant"] = "constant"
    rate: Probability = Field(0.15, description="share of tokens that are hidden")

    def __call__(self, step: int, steps: int) -> float:
        return self.rate


class Linear(Config):
    """From one rate to another in a straight line; down, as in the paper, unless told otherwise."""

    kind: Literal["linear"] = "linear"
    start: Probability = Field(0.30, description="share of tokens hidden at the first step")
    end: Probability = Field(0.15, description="share of tokens hidden at the last step")

    def __call__(self, step: int, steps: int) -> float:
        return self.start + step / steps * (self.end - self.start)


class Cosine(Config):
    """From one rate to another along half a cosine."""

    kind: Literal["cosine"] = "cosine"
    start: Probability = Field(0.30, description="share of tokens hidden at the first step")
    end: Probability = Field(0.15, description="share of tokens hidden at the last step")

    def __call__(self, step: int, steps: int) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * step / steps)) / 2


class OneStep(Config):
    """One rate, then another."""

    kind: Literal["step"] = "step"
    start: Probability = Field(0.30, description="rate before")
    end: Probability = Field(0.15, description="rate after")
    at: Probability = Field(0.5, description="share of the run after which the rate changes")

    def __call__(self, step: int, steps: int) -> float:
        return self.start if step < self.at * steps else self.end


class Piecewise(Config):
    """Straight lines between points; before the first and after the last the rate stays."""

    kind: Literal["piecewise"] = "piecewise"
    points: tuple[tuple[float, Probability], ...] = Field(
        ((0.0, 0.30), (1.0, 0.15)), min_length=1, description="pairs of (share of the run, rate)"
    )

    @model_validator(mode="after")
    def _in_order(self) -> Piecewise:
        shares = [share for share, _ in self.points]
        if not all(0 <= share <= 1 for share in shares) or any(b <= a for a, b in pairwise(shares)):
            raise ValueError(f"shares of the run are {shares}, expected increasing numbers from 0 to 1")
        return self

    def __call__(self, step: int, steps: int) -> float:
        done = step / steps
        (before, rate), *later = self.points
        for share, next_rate in later:
            if done < share:
                return rate + max(0.0, done - before) / (share - before) * (next_rate - rate)
            before, rate = share, next_rate
        return rate


MaskRate = Annotated[Constant | Linear | Cosine | OneStep | Piecewise, Field(discriminator="kind")]


class Masking(Config):
    """Training to fill in hidden tokens: how many, which, and what stands in their place."""

    kind: Literal["masked"] = "masked"
    rate: MaskRate = Field(
        default_factory=Linear, description="share of tokens hidden: constant, linear, cosine, step or piecewise"
    )
    unit: Literal["token", "word", "span"] = Field(
        "token", description="what is hidden as a whole: tokens, words, or spans of 3 tokens on average, 10 at most"
    )
    mask_share: float = Field(0.8, ge=0, le=1, description="share of the chosen tokens that become the mask token")
    random_share: float = Field(0.1, ge=0, le=1, description="share of the chosen tokens that become a random token")
    evaluation_rate: Probability = Field(
        0.15,
        description="share of tokens hidden where held-out loss is measured, in all steps and for all schedules",
    )
    subset: Probability | None = Field(
        None, description="count the loss on this share of all tokens only, though more are hidden (a control)"
    )

    @model_validator(mode="after")
    def _shares_sum(self) -> Masking:
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ValueError(
                f"mask_share {self.mask_share:g} and random_share {self.random_share:g} sum to more than 1"
            )
        return self

    def remarks(self) -> list[str]:
        """What a person should know before such a run."""
        start, end = self.rate(0, 1), self.rate(1, 1)
        if end > start:
            return [
                f"the masking rate rises from {start:g} to {end:g}; in the paper this order brought nothing over .15"
            ]
        return []


def vocabulary_of(tokenizer: TextTokenizer) -> Vocabulary:
    """What masking needs of a tokenizer. Raises UsageError where it has no mask token."""
    import numpy as np

    from mickle.kernels.masking import Vocabulary

    if tokenizer.mask is None:
        raise UsageError(
            "This tokenizer has no mask token, so nothing can be hidden with it.",
            where="tokenizer",
            expected="mask_token in tokenizer_config.json, and the token in tokenizer.json",
            todo="take a tokenizer with one, or leave `tokenizer` out to train one",
        )
    special = np.zeros(tokenizer.size, dtype=bool)
    special[sorted(tokenizer.special)] = True
    known = set(tokenizer.tokenizer.get_vocab(with_added_tokens=True).values())
    ordinary = np.array(sorted(known - tokenizer.special), dtype=np.int64)
    return Vocabulary(tokenizer.mask, special, ordinary, begins_word(tokenizer))


def begins_word(tokenizer: TextTokenizer) -> np.ndarray:
    """Whether a token opens a word, bool [V]: it brings its space along, or is no ending of a word ("##").

    In byte-level and SentencePiece vocabularies digits and punctuation open words too, so that a long expression
    without spaces is not one word.
    """
    import numpy as np
    from tokenizers import models

    vocabulary = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    opens = np.ones(tokenizer.size, dtype=bool)
    model = tokenizer.tokenizer.model
    space = next((mark for mark in SPACE_MARKS if any(token.startswith(mark) for token in vocabulary)), None)
    if isinstance(model, models.WordPiece):
        prefix = model.continuing_subword_prefix or "##"
        opens[[number for token, number in vocabulary.items() if token.startswith(prefix)]] = False
    elif space is not None:
        opens[[number for token, number in vocabulary.items() if _continues(token, space)]] = False
    opens[sorted(tokenizer.special)] = True
    return opens


def _continues(token: str, space: str) -> bool:
    """Whether a token goes on with a word: it begins with a letter, or with a byte of one that is not ASCII.

    In byte-level vocabularies U+0100 to U+0120 stand for the bytes 0 to 32: line ends, tabs and the space.
    """
    first = token[:1]
    if first.isascii():
        return first.isalpha()
    return not "\u0100" <= first <= "\u0120" if space == "\u0120" else first != space


def mask_batch(
    batch: Batch,
    samples: np.ndarray,
    rate: float,
    masking: Masking,
    vocabulary: Vocabulary,
    seed: int,
    subset: float | None = None,
) -> Batch:
    """A batch with tokens hidden: a function of (seed, sample, position, rate), whatever else is in the batch.

    batch: ``input_ids`` [B, T] int64, and ``documents`` [B, T] where there are several in a row; tokens of documents
    below 0 are padding. samples [B]: each row's number in the run.

    Returns ``input_ids``; ``labels``, the hidden tokens themselves, not shifted, -100 elsewhere; and ``documents``.
    """
    import torch

    from mickle.kernels import masking as kernel

    unit = {"token": kernel.TOKEN, "word": kernel.WORD, "span": kernel.SPAN}[masking.unit]
    limits = kernel.cuts(rate, masking.mask_share, masking.random_share, unit, subset)
    tokens = batch["input_ids"]
    found = kernel.mask_tokens(tokens.numpy(), samples, seed, vocabulary, limits, unit)
    inputs, labels = (torch.from_numpy(array) for array in found)
    made = {"input_ids": inputs, "labels": labels}
    if "documents" in batch:
        padding = batch["documents"] < 0
        if bool(padding.any()):
            made = {"input_ids": inputs.where(~padding, tokens), "labels": labels.masked_fill(padding, -100)}
        made["documents"] = batch["documents"]
    return made


def fixed_masks(batch: Batch, first: int, masking: Masking, vocabulary: Vocabulary, rate: float | None = None) -> Batch:
    """A batch for evaluation: the same masks for every model, seed and step, of the rows ``first``, ``first`` + 1, ...

    rate: the share hidden; None is ``masking.evaluation_rate``.
    """
    import numpy as np

    samples = first + np.arange(len(batch["input_ids"]), dtype=np.int64)
    rate = masking.evaluation_rate if rate is None else rate
    return mask_batch(batch, samples, rate, masking, vocabulary, EVALUATION_SEED)


EVALUATION_SEED = 0x45564C  # even, and the seeds of `MaskedBatches` are odd: no run trains on these masks


class MaskedBatches:
    """Batches to train a masked model on: index -> ``input_ids``, ``labels``, ``documents`` of that optimizer step.

    A pure function of the index: the rate is that of step ``index`` of ``steps``, and row r of batch i is sample
    i * rows + r. Give :attr:`identity` to ``fit(identity=...)``: a run that goes on with another number of steps would
    jump to another place of the schedule, and is refused there.
    """

    def __init__(
        self, batches: Callable[[int], Batch], vocabulary: Vocabulary, masking: Masking, steps: int, seed: int
    ) -> None:
        self.batches, self.vocabulary, self.masking = batches, vocabulary, masking
        self.steps, self.seed = steps, seed

    @property
    def identity(self) -> dict[str, Any]:
        """What the masks depend on beside the batches."""
        return {"masking": self.masking.model_dump(mode="json"), "masking_steps": self.steps, "seed": self.seed}

    def rate(self, index: int) -> float:
        """The masking rate of a step."""
        return self.masking.rate(index, self.steps)

    def __call__(self, index: int) -> Batch:
        import numpy as np

        batch = self.batches(index)
        rows = len(batch["input_ids"])
        samples = index * rows + np.arange(rows, dtype=np.int64)
        rate, subset = self.rate(index), self.masking.subset
        while True:
            made = mask_batch(batch, samples, rate, self.masking, self.vocabulary, 2 * self.seed + 1, subset)
            if rate >= 1 or bool((made["labels"] >= 0).any()):
                return made
            rate, subset = min(1.0, 2 * rate), None  # the higher rate's choice holds the lower one's
