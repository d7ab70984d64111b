"""What a pretraining may be trained to do, and all that follows from it: loss, batches, held-out measure, preview.

An objective is one class here. Importing this file does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mickle.config import Config
from mickle.data.masking import MaskedBatches, Masking, fixed_masks, vocabulary_of
from mickle.step import command

if TYPE_CHECKING:
    from torch import Tensor

    from mickle.data.tokenizer import TextTokenizer
    from mickle.training.objectives import Batch, Objective


class NextToken(Config):
    """Predict each token from those before it."""

    causal: ClassVar[bool] = True

    kind: Literal["next"] = "next"
    smoothing: float = Field(0.0, ge=0, lt=1, description="share of each target spread over the vocabulary")

    def remarks(self) -> list[str]:
        """What a person should know before such a run."""
        return []

    def check_tokenizer(self, tokenizer: TextTokenizer) -> None:
        """UsageError where the objective cannot be trained with it."""

    def loss(self) -> Objective:
        """What is trained."""
        from mickle.training.objectives import next_token

        return partial(next_token, smoothing=self.smoothing) if self.smoothing else next_token

    def measured_loss(self) -> Objective:
        """What is measured on held-out text, whatever is trained."""
        from mickle.training.objectives import next_token

        return next_token

    def batches(
        self, windows: Callable[[int], Batch], tokenizer: TextTokenizer, steps: int, seed: int
    ) -> Callable[[int], Batch]:
        """Batches to train on, of windows of text."""
        return windows

    def fixed(self, windows: Batch, first: int, tokenizer: TextTokenizer) -> Batch:
        """A batch to measure on, the same every time; ``first``: the number of its first row."""
        return windows

    def figures(self, nats: float, terms: float, size: int) -> dict[str, float]:
        """Held-out measures, of the sum of losses over ``terms`` in ``size`` bytes of text; the first one decides."""
        return {"heldout_loss": nats / max(terms, 1), "heldout_bits_per_byte": nats / math.log(2) / size}

    def shown(self, ids: list[int], tokenizer: TextTokenizer, steps: int, seed: int) -> tuple[list[int], list[bool]]:
        """A text as the first step has it, and which of its tokens are trained: all but the mark that opens it."""
        return ids, [position > 0 for position in range(len(ids))]

    def labels(self, tokens: Tensor, steps: int) -> Tensor:
        """Labels for tokens [B, T] that only have to take the time of real ones."""
        return tokens

    def next_command(self, out: Path, data: Path) -> str:
        """What to do with the trained model."""
        return command("evaluate", out, "--task", "loss", "--task.baselines-from", data)


class MaskedToken(Masking):
    """Fill in hidden tokens."""

    causal: ClassVar[bool] = False

    def check_tokenizer(self, tokenizer: TextTokenizer) -> None:
        """UsageError for one without a mask token."""
        vocabulary_of(tokenizer)

    def loss(self) -> Objective:
        """What is trained."""
        from mickle.training.objectives import masked_token

        return masked_token

    def measured_loss(self) -> Objective:
        """What is measured on held-out text."""
        return self.loss()

    def batches(
        self, windows: Callable[[int], Batch], tokenizer: TextTokenizer, steps: int, seed: int
    ) -> Callable[[int], Batch]:
        """Windows with tokens hidden, at the rate of their step."""
        return MaskedBatches(windows, vocabulary_of(tokenizer), self, steps, seed)

    def fixed(self, windows: Batch, first: int, tokenizer: TextTokenizer) -> Batch:
        """A batch at the evaluation rate, with the same masks every time, whatever rate is trained at by then."""
        return fixed_masks(windows, first, self, vocabulary_of(tokenizer))

    def figures(self, nats: float, terms: float, size: int) -> dict[str, float]:
        """The mean loss of the hidden tokens; they say nothing of bytes."""
        return {"heldout_loss": nats / max(terms, 1)}

    def shown(self, ids: list[int], tokenizer: TextTokenizer, steps: int, seed: int) -> tuple[list[int], list[bool]]:
        """A text as the first step masks it, and which of its tokens are trained."""
        import torch

        row = torch.tensor([ids])
        masked = self.batches(lambda _: {"input_ids": row, "labels": row}, tokenizer, steps, seed)(0)
        return masked["input_ids"][0].tolist(), (masked["labels"][0] >= 0).tolist()

    def labels(self, tokens: Tensor, steps: int) -> Tensor:
        """Labels at the first step's rate of positions."""
        import torch

        every = max(1, round(1 / self.rate(0, steps)))
        return tokens.where(torch.arange(tokens.shape[1]) % every == 0, -100)

    def next_command(self, out: Path, data: Path) -> str:
        """What to do with the trained model."""
        return command("evaluate", out, "--task", "masked")


PretrainObjective = Annotated[NextToken | MaskedToken, Field(discriminator="kind")]
