"""What a tuning reads: examples in any form, split, made into tokens, and what overlaps between the two sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor, nn

from mickle.data.chat_template import ChatTemplate, open_template
from mickle.data.conversations import Example, Reading, read_conversations
from mickle.data.example_batches import Encoded, ExampleBatches
from mickle.data.examples import encode_examples
from mickle.data.heldout import content_hash
from mickle.data.masking import Constant, MaskedBatches, Masking, vocabulary_of
from mickle.data.overlap import overlap
from mickle.data.tokenizer import TextTokenizer
from mickle.errors import UsageError
from mickle.kernels.losses import cross_entropy
from mickle.training.objectives import Batch, Objective, masked_token
from mickle.tuning.tune_plan import Plan

if TYPE_CHECKING:
    from mickle.tuning.tune import Tune

MASKING = Masking(rate=Constant(rate=0.15))  # of an encoder that is tuned on text
HELDOUT_SHARE, MOST_HELDOUT = 0.1, 500  # of the examples, unless told otherwise
LEAST_TOKENS = 2

E = TypeVar("E")


@dataclass(frozen=True)
class Task:
    """Examples ready to be learnt from and measured on; ``lines`` say for a person what was found."""

    form: str
    training: Encoded
    heldout: Encoded
    lines: tuple[str, ...]
    overlap: dict[str, Any]
    heldout_examples: tuple[Example, ...]
    template: ChatTemplate | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training example."""
        return [len(tokens) for tokens in self.training.tokens]


def read_task(settings: Tune, tokenizer: TextTokenizer, longest: int, causal: bool) -> Task:
    """The examples of ``data`` and ``heldout`` as tokens, at most ``longest`` of each.

    Raises UsageError for data of which too much is bad, too little is left, or that is not for such a model.
    """
    reading = _read(settings.data, settings, causal)
    lines = list(reading.lines())
    if settings.heldout is not None:
        other = _read(settings.heldout, settings, causal)
        if other.form != reading.form:
            raise UsageError(
                f"The held-out examples are of another form ({other.form}) than the training ones ({reading.form}).",
                where=str(settings.heldout),
            )
        lines += [f"held out: {line}" for line in other.lines()]
        training, heldout = list(reading.examples), list(other.examples)
    else:
        training, heldout = split(reading.examples, settings.heldout_share, settings.data, Example.own_text)
        lines.append(f"held out: {len(heldout):,} of {len(training) + len(heldout):,} examples, by their texts")
    chats = reading.form not in ("text", "completion")
    template = open_template(settings.model, tokenizer) if chats else None
    if template is not None and template.builtin:
        lines.append("the model has no chat template: a plain one is used, and written beside the weights")
    encode = partial(encode_examples, tokenizer=tokenizer, template=template, longest=longest)
    found, held = encode(training), encode(heldout)
    _refuse_empty(found, settings.data, longest)
    lines += found.lines()
    shared = overlap([e.own_text() for e in training], [e.own_text() for e in heldout])
    lines.append(shared.line())
    return Task(
        reading.form, found, held, tuple(lines), {"exact": shared.exact, "near": shared.near}, tuple(heldout), template
    )


def _read(path: Path, settings: Tune, causal: bool) -> Reading:
    reading = read_conversations(path, most_bad=settings.most_bad)
    if reading.form == "preference":
        raise UsageError(
            "These are preferences (chosen and rejected answers); tune learns from answers.",
            where=str(path),
            todo="give the chosen answers alone, as prompt and completion or as messages",
        )
    if not causal and reading.form != "text":
        raise UsageError(
            f"This model sees both sides of a token; it cannot learn to answer ({reading.form}).",
            where=str(path),
            expected="rows with `text`, or labelled rows and --prompt.template",
        )
    return reading


def _refuse_empty(found: Encoded, path: Path, longest: int) -> None:
    if sum(map(len, found.tokens)) < LEAST_TOKENS or not any(trained.any() for trained in found.trained):
        raise UsageError(
            "There is nothing to learn here: no token of an answer is left.",
            where=str(path),
            expected=f"examples with an answer within {longest:,} tokens",
            todo="give more or shorter examples, or raise sequence_length",
        )


def split(
    examples: Sequence[E], share: float | None, source: Path, said: Callable[[E], str]
) -> tuple[list[E], list[E]]:
    """Training and held-out examples; the same text is never on both sides, and whether it is held out depends on the
    hashes of all texts alone, whatever their order. ``said``: an example's text.

    UsageError where one side would be empty although a share is held out.
    """
    if share == 0:
        return list(examples), []
    keys = [content_hash(said(example)) for example in examples]
    distinct = sorted(set(keys))
    if len(distinct) < 2:
        raise UsageError(
            "All examples say the same: none can be held out." if distinct else "There is no example here.",
            where=str(source),
            expected="two different examples at the least",
            todo="give more, name others with --heldout, or set --heldout-share 0",
        )
    most = MOST_HELDOUT if share is None else len(distinct) - 1
    count = min(most, len(distinct) - 1, max(1, round((HELDOUT_SHARE if share is None else share) * len(distinct))))
    chosen = set(distinct[:count])
    training = [example for example, key in zip(examples, keys, strict=True) if key not in chosen]
    heldout = {key: example for example, key in zip(examples, keys, strict=True) if key in chosen}
    return training, list(heldout.values())


def trained_tokens(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy (nats) of the labels that count, from their positions' hidden states alone.

    ``batch`` as for ``objectives.next_token``. Most tokens of a conversation are not answers, so most of the
    projection onto the vocabulary, and of a wrapped model's logits, is never made.
    """
    labels = batch["labels"]
    chosen = labels >= 0  # [B, T]
    head = partial(cross_entropy, labels=labels[chosen])
    return model(batch["input_ids"], documents=batch.get("documents"), positions=chosen, head=head)


def example_objective(
    task: Task, plan: Plan, seed: int, causal: bool, tokenizer: TextTokenizer
) -> tuple[Objective, Callable[[int], Batch]]:
    """What is trained, and on which batches: the next token of answers, or an encoder's hidden tokens."""
    batches = ExampleBatches(task.training, plan.sequence_length, plan.batch_size, seed)
    if causal:
        return trained_tokens, batches
    return masked_token, MaskedBatches(batches, vocabulary_of(tokenizer), MASKING, plan.steps, seed)


def steps_an_epoch(task: Task, length: int, rows: int) -> float:
    """Optimizer steps in which every example is read once."""
    return ExampleBatches(task.training, length, rows, 0).steps_an_epoch
