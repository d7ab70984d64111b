"""``mickle mix``: a corpus with domains in, the weights to sample them by out (DoReMi, arXiv 2305.10429).

Each round trains a reference model on the reference weights, then a proxy of the same size by group DRO
(``doremi.py``); the next round's reference weights are the ones found. The file ``weights.yaml`` is what
``mickle pretrain --mixture`` reads. All of it lies in ``.scratch`` while it is being made: a run killed anywhere goes
on where it was, and ends with the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from mickle.config import Input
from mickle.events import Emit, Noted, Warned
from mickle.machine import Forecast
from mickle.models.decoder_settings import DecoderArchitecture
from mickle.models.gguf_folder import Words
from mickle.step import command
from mickle.storage import SCRATCH
from mickle.training.pretrain_objectives import NextToken
from mickle.training.robust import RobustRule
from mickle.training.run import Asked, TrainingStep, kept_plan, refuse_no_model, refuse_two_lengths

if TYPE_CHECKING:
    from mickle.data.domains import Grouping
    from mickle.data.packing import TokenStream
    from mickle.training.mix_results import Round
    from mickle.training.mix_round import Rounds
    from mickle.training.pretrain_data import TokenizerAsked
    from mickle.training.pretrain_plan import Fresh

SETTLED = 1e-3  # change of a weight below which rounds end (the paper's criterion)


class Mix(TrainingStep):
    """Find the weights to sample a corpus's domains by (DoReMi)."""

    kind: ClassVar[str] = "mixture"
    title: ClassVar[str] = "The mixture"
    lead: ClassVar[str] = (
        "How much of each domain to read: weights of a small robust proxy, averaged over its run (DoReMi)."
    )
    positional: ClassVar[str] = "data"
    example: ClassVar[str] = "mickle mix corpus --out mixture"

    data: Input = Field(description="corpus folder, or Parquet files with columns `text` and `domain`")
    by: Literal["domain", "language"] = Field("domain", description="the column whose values are the domains")
    groups: dict[str, list[str]] = Field(
        default_factory=dict, description="domains made of several values: {web: ['*.org', '*.net'], rest: ['*']}"
    )
    reference_weights: Literal["proportional", "uniform"] | Input = Field(
        "proportional", description="what the reference is trained on: by tokens, uniform, or a weights file"
    )
    rounds: int = Field(
        1,
        ge=1,
        le=20,
        description="most rounds, each starting from the weights of the one before; fewer where they settle",
    )
    robust: RobustRule = Field(default_factory=RobustRule, description="how the weights move")
    size: Literal["tiny", "small", "base"] | int = Field(
        "tiny",
        description="size of reference and proxy: tiny (10^6 parameters), small, base, or a number of parameters",
    )
    tokenizer: Words | None = Field(
        None, description="tokenizer.json, a folder with one, or a GGUF file (default: train one)"
    )
    vocabulary_size: int | None = Field(
        None, ge=257, le=1 << 20, description="tokens in the vocabulary (default: from size)"
    )
    sequence_length: int | None = Field(
        None, ge=1, le=1 << 20, description="tokens of a training sequence (default: from size)"
    )
    batch_tokens: int | None = Field(
        None, ge=1, description="tokens of a training step (default: from size, at least 4 sequences of a domain)"
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="optimizer steps of each of the two trainings (default: 20 tokens a parameter, one epoch at most)",
    )
    epochs: float | None = Field(None, gt=0, description="instead of steps: how often to read the corpus")
    learning_rate: float | None = Field(None, gt=0, description="learning rate at its peak (default: as in pretrain)")
    heldout_share: float | None = Field(
        None, ge=0, lt=1, description="share of pages that are held out, here and by pretrain"
    )
    precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="precision of matrix products in training (default: as in pretrain)"
    )
    accumulate: int | None = Field(
        None, ge=1, description="parts in which a batch is computed (default: as few as fit in memory)"
    )
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints (default: 20 in a run)")
    budget_tokens: int | None = Field(None, ge=1, description="tokens that the weights will be used for")
    max_repeats: float | None = Field(
        None, gt=0, description="most epochs of a domain within budget_tokens; the other domains share the rest"
    )
    floor: float = Field(0.0, ge=0, lt=1, description="least weight that a domain gets")

    @model_validator(mode="after")
    def _agree(self) -> Mix:
        refuse_two_lengths(self.steps, self.epochs)
        refuse_no_model(self.size, self.tokenizer, self.vocabulary_size)
        if self.max_repeats is not None and self.budget_tokens is None:
            raise ValueError("max_repeats needs budget_tokens: repeats of a domain follow from it")
        return self

    @property
    def fresh(self) -> Fresh:
        """What reference and proxy are."""
        from mickle.training.pretrain_plan import Fresh

        return Fresh(self.size, DecoderArchitecture())

    @property
    def asked_tokenizer(self) -> TokenizerAsked:
        """The tokenizer that was named, or one to be trained."""
        from mickle.training.pretrain_data import TokenizerAsked

        return TokenizerAsked(self.tokenizer, self.size, self.vocabulary_size, NextToken())

    @property
    def grouping(self) -> Grouping:
        """How pages fall into domains."""
        from mickle.data.domains import Grouping

        return Grouping(self.by, {name: tuple(patterns) for name, patterns in self.groups.items()})

    def run(self, work: Path, emit: Emit) -> dict[str, Any]:
        from mickle.data.domains import Weights
        from mickle.training import distributed, mix_plan, mix_results

        ready, weights = distributed.after_first(lambda: self._ready(work / SCRATCH, emit))
        plan, streams = ready.plan, ready.streams
        warnings = mix_plan.doubts(plan, streams, ready.drawn(weights))
        rounds: list[Round] = []
        for number in range(1, self.rounds + 1):
            done = ready.run(number, weights, work, emit)
            rounds.append(done)
            weights = done.weights
            emit(Noted(mix_results.round_line(list(streams), done)))
            if done.change < SETTLED:
                break
        if not distributed.current().writes:
            return {}
        warnings += mix_results.doubts(list(streams), rounds)
        for warning in warnings:
            emit(Warned(warning))
        limited = self._limited(weights, streams)
        final = Weights(tuple(streams), tuple(limited), self.grouping)
        budget = self.budget_tokens or plan.steps * plan.batch_tokens
        return mix_results.write(work, final, budget, plan, streams, rounds, warnings)

    def _ready(self, scratch: Path, emit: Emit) -> tuple[Rounds, tuple[float, ...]]:
        """What the rounds have in common, kept in ``scratch``, and the first one's reference weights."""
        from mickle.data.domains import domain_streams, read_weights
        from mickle.training import mix_plan, mix_results
        from mickle.training.mix_round import Rounds
        from mickle.training.pretrain_data import kept_tokenizer, split_pages, tell_unknown
        from mickle.training.pretrain_plan import PretrainPlan

        if isinstance(self.reference_weights, Path):
            read_weights(self.reference_weights)  # refused before anything is done
        _, share = split_pages(self.data, self.heldout_share)
        tokenizer = kept_tokenizer(self.asked_tokenizer, self.data, share, scratch / "tokenizer", emit)
        streams = domain_streams(self.data, share, tokenizer, scratch / "streams", self.grouping, emit)
        tell_unknown(streams, tokenizer, self.data, emit)

        def planned() -> tuple[PretrainPlan, Forecast]:
            tokens = [len(stream) for stream in streams.values()]
            return mix_plan.plan_of(Asked.of(self), self.fresh, tokenizer.size, tokens), Forecast()

        plan, _ = kept_plan(scratch / "plan.json", PretrainPlan, planned)
        weights = self._first_weights(streams)
        self._limited(weights, streams)  # refused before anything is trained
        for line in [*plan.lines(), mix_results.domain_line(streams, weights)]:
            emit(Noted(line))
        return Rounds(plan, streams, self.robust, self.seed, self.identity()), weights

    def dry_run(self) -> tuple[Forecast, str]:
        from mickle.data.domains import domain_sizes
        from mickle.training.mix_plan import plan_of, proxy_memory
        from mickle.training.mix_results import preview
        from mickle.training.pretrain_data import look_at, split_pages
        from mickle.training.pretrain_plan import disk, step_seconds

        split, share = split_pages(self.data, self.heldout_share)
        sizes = domain_sizes(self.data, share, self.grouping)
        tokenizer, _, rate = look_at(self.asked_tokenizer, self.data, share)
        tokens = {name: round(size.bytes * rate) for name, size in sizes.items()}
        plan = plan_of(Asked.of(self), self.fresh, tokenizer.size, list(tokens.values()))
        each = step_seconds(plan, self.fresh.build(plan, self.seed)) * plan.steps
        space = disk(plan, 2 * split.training_bytes) + 4 * sum(tokens.values())
        # A reference, and a proxy that also runs the reference forward, which is a third of a step.
        forecast = Forecast(
            proxy_memory(plan), self.rounds * each * (1 + 4 / 3), space, tuple(plan.lines()), plan.derived
        )
        return forecast, preview(tokens, plan)

    def after(self, out: Path) -> str:
        return command("pretrain", self.data, "--mixture", out / "weights.yaml")

    def _limited(self, weights: tuple[float, ...], streams: dict[str, TokenStream]) -> list[float]:
        """The weights within the bounds that were set."""
        from mickle.training.mix_plan import limited_weights

        return limited_weights(weights, streams, self.floor, self.max_repeats, self.budget_tokens)

    def _first_weights(self, streams: dict[str, TokenStream]) -> tuple[float, ...]:
        """The first round's reference weights, in the order of names."""
        from mickle.data.domains import read_weights, refuse_other_names

        if isinstance(self.reference_weights, Path):
            given = read_weights(self.reference_weights)
            refuse_other_names(given, list(streams), str(self.reference_weights))
            return given.weights
        if self.reference_weights == "uniform":
            return (1 / len(streams),) * len(streams)
        total = sum(map(len, streams.values()))
        return tuple(len(stream) / total for stream in streams.values())
