"""Settings of forward-only tuning (arXiv 2305.17333; `training/mezo.py`), and what they build.

Defaults are the paper's where it has one (tables of appendix E): probes of 1e-3 on all weights, 1e-2 on LoRA, 1e-1 on
a prefix; LoRA of rank 8 and alpha 16 on the query and value layers; prefixes of 5 tokens. The paper finds learning
rates by a grid over two orders of magnitude; here the rate is measured where none is given (`training/mezo_rate.py`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from mickle.step import command
from mickle.tuning.methods import Adam, BesideLinear, Everything, Learning, TuningMethod

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import nn
    from torch.optim import Optimizer

    from mickle.data.tokenizer import TextTokenizer
    from mickle.models.language import LanguageModel
    from mickle.training.closure import Closure
    from mickle.training.journal import Journal
    from mickle.training.mezo import MeZO
    from mickle.training.mezo_rate import Rate
    from mickle.training.run import TrainingRun
    from mickle.tuning.weights import Weights

EPOCHS, LEAST_STEPS = 60, 1000  # unless told otherwise: its steps are small
JOURNAL = "journal.mezo"


class AllWeights(Everything):
    """All weights are tuned."""

    milder: ClassVar[str] = "a lower learning rate, fewer steps or --method.parameters lora"
    reach: ClassVar[float] = 1e-3

    kind: Literal["full"] = "full"


class LowRank(BesideLinear):
    """Adapters beside frozen linear layers are tuned (`models/lora.py`)."""

    milder: ClassVar[str] = "a lower learning rate or fewer steps"
    reach: ClassVar[float] = 1e-2

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, le=4096, description="inner dimension of an adapter")
    alpha: float = Field(16.0, gt=0, description="adapters are scaled by alpha / rank")
    targets: Literal["all-linear"] | list[str] = Field(
        default_factory=lambda: ["q_proj", "v_proj"],
        description="layers with adapters: all-linear, or ends of their names",
    )


class Prefix(Learning):
    """Keys and values before the text are tuned (`models/prefix.py`)."""

    milder: ClassVar[str] = "a lower learning rate or fewer steps"
    reach: ClassVar[float] = 1e-1

    kind: Literal["prefix"] = "prefix"
    tokens: int = Field(
        5, ge=1, le=1024, description="tokens of the prefix; they begin as random tokens of the vocabulary"
    )

    def count(self, weights: Weights) -> int:
        """Some thousands, which count for nothing."""
        return 0

    def prepare(self, model: LanguageModel, seed: int) -> LanguageModel:
        from mickle.models.prefix import attach_prefix

        return attach_prefix(model, self.tokens, seed)

    def save(self, model: nn.Module, work: Path, base: Path, tokenizer: TextTokenizer) -> None:
        from mickle.models.prefix import save_prefix

        save_prefix(model, work, base)
        tokenizer.save(work)

    def next_command(self, out: Path) -> str:
        """A prefix is no change of weights that could be merged."""
        return command("chat", out)


class Mezo(TuningMethod):
    """Tuning with forward passes only, in the memory of inference. Wants a pre-trained model and a prompt."""

    kind: Literal["mezo"] = "mezo"
    parameters: Annotated[AllWeights | LowRank | Prefix, Field(discriminator="kind")] = Field(
        default_factory=AllWeights, description="what is tuned: full, lora or prefix, and its settings"
    )
    learning_rate: float | None = Field(
        None, gt=0, description="learning rate of the forward-only steps (default: measured on the first batches)"
    )
    eps: float | None = Field(None, gt=0, description="how far probes go (default: 1e-3 full, 1e-2 lora, 1e-1 prefix)")
    draws: Literal["rademacher", "gaussian"] = Field(
        "rademacher", description="directions of +1 and -1, or of normal numbers"
    )
    probes: int = Field(1, ge=1, le=1024, description="random directions of a step, over which the mean is taken")
    variant: Literal["plain", "momentum", "adam", "fzoo"] = Field(
        "plain", description="what is made of the projections; fzoo takes at least 2 one-sided probes"
    )
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of momentum's and adam's averages")
    weight_decay: float = Field(0.0, ge=0, description="decay of matrices; norms, biases and embeddings have none")
    clip: float = Field(
        5.0, ge=0, description="largest projected gradient, in medians of the latest hundred; 0 for no bound"
    )
    objective: Literal["loss", "accuracy"] = Field(
        "loss", description="what is made to fall: the loss, or the share of wrong answers (needs a prompt with labels)"
    )

    def idle(self) -> set[str]:
        return {"betas"} if self.variant in ("plain", "fzoo") else set()

    @property
    def one_process(self) -> str:
        return "its probes move whole weights in place"

    @property
    def learns(self) -> Learning:
        return self.parameters

    @property
    def counts_answers(self) -> bool:
        return self.objective == "accuracy"

    def rate(self, parameters: int) -> float:
        """0: it is measured."""
        return 0.0

    def steps(self, epoch: float) -> int:
        return max(LEAST_STEPS, math.ceil(EPOCHS * epoch))

    def found_rate(self, given: float, file: Path, open_model: Callable[[], nn.Module], run: TrainingRun) -> float:
        """The learning rate: the given one, that in ``file``, or one measured now and written there.

        It is measured on a model of its own, which is dropped: probing leaves weights where they were only to rounding.
        """
        from mickle.training.closure import Closure
        from mickle.training.run import kept

        def measured() -> float:
            model, plan = open_model(), run.plan
            optimizer = build_mezo(self, model, run.seed, plan.steps)

            def closure(index: int) -> Closure:
                return Closure(
                    model, run.objective, run.batches(index), step=index, seed=run.seed, accumulate=plan.accumulate,
                    precision=plan.precision,
                )  # fmt: skip

            found = set_rate(self, optimizer, closure)
            assert found is not None
            return found.rate

        return self.learning_rate or given or float(kept(file, lambda: {"rate": measured()})["rate"])

    def optimizer(self, model: nn.Module, rate: float, adam: Adam, scratch: Path, seed: int, steps: int) -> Optimizer:
        return build_mezo(self.model_copy(update={"learning_rate": rate}), model, seed, steps)

    def journal(
        self, optimizer: Optimizer, model: nn.Module, kept: int, base: Path, checkpoints: Path, work: Path
    ) -> dict[str, Any]:
        """The journal up to the step ``kept``, whose weights the model has, into ``work``; its bytes and steps.

        A batch that was left out (``on_bad_numbers: back``) is a step of the run and none of the journal, so how far
        the journal was is read from the checkpoint of that step.
        """
        from mickle import storage
        from mickle.training.checkpoint import STATE
        from mickle.training.journal import cut, write_journal
        from mickle.training.mezo import MeZO

        assert isinstance(optimizer, MeZO)
        journal = journal_of_tuning(self, optimizer, model, optimizer.rule.seed, base)
        state = checkpoints / f"step-{kept:08d}" / STATE
        if kept == 0 or state.is_file():
            steps = len(storage.read_state(state)["optimizer"]["rest"]["history"]["rates"]) if kept else 0
            journal = cut(journal, steps, journal.runs[-1].tuned)
        write_journal(journal, work / JOURNAL)
        return {"journal": {"steps": journal.steps, "bytes": (work / JOURNAL).stat().st_size}}

    def reach(self) -> float:
        """How far probes go."""
        return self.eps if self.eps is not None else self.parameters.reach


def fingerprint_of(settings: Mezo, model: nn.Module) -> str:
    """The fingerprint of what learns: of the whole model, or of the adapter alone on a base that is frozen."""
    from mickle.training.replay import fingerprint

    if settings.learns.whole:
        return fingerprint(model)
    return fingerprint(model, [name for name, parameter in model.named_parameters() if parameter.requires_grad])


def journal_of_tuning(settings: Mezo, optimizer: MeZO, model: nn.Module, seed: int, folder: Path) -> Journal:
    """The journal of an optimizer that `build_mezo` made for a model out of `folder`, and of where the model is now."""
    from mickle.models.adapters import weights_digest
    from mickle.training.journal import journal_of

    tuned = fingerprint_of(settings, model)
    if settings.learns.whole:
        return journal_of(optimizer, tuned)
    added = {**settings.parameters.model_dump(mode="json"), "seed": seed}
    return journal_of(optimizer, tuned, added, weights_digest(folder))


def build_mezo(settings: Mezo, model: nn.Module, seed: int, steps: int) -> MeZO:
    """The optimizer for a model that its `parameters` made ready.

    It takes the fingerprint of what learns, one read of it all, so that its journal knows its base. Where
    `learning_rate` is None the optimizer's is 0 until :func:`set_rate` has measured one.
    """
    from mickle.training.mezo import MeZO
    from mickle.training.mezo_rule import MOST_DRAWS
    from mickle.training.optimizers import decay_groups

    if steps * settings.probes > MOST_DRAWS:
        from mickle.errors import UsageError

        raise UsageError(f"at most {MOST_DRAWS:,} probes a run", where="steps")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups: list[dict[str, Any]] = [
        {**group, "params": [(names[id(p)], p) for p in group["params"]]}
        for group in decay_groups(model, settings.weight_decay)
    ]
    return MeZO(
        groups,
        settings.learning_rate or 0.0,
        seed=seed,
        eps=settings.reach(),
        base=fingerprint_of(settings, model),
        **settings.model_dump(include={"draws", "probes", "variant", "betas", "weight_decay", "clip"}),
    )


def set_rate(settings: Mezo, optimizer: MeZO, closure: Callable[[int], Closure]) -> Rate | None:
    """Measure a learning rate and give it to the optimizer, where the settings have none. `closure(i)`: loss of batch
    i.

    The weights come back only to rounding, so a run that goes on from a checkpoint must take the rate that the first
    try found, not measure again; keep `rate` in the scratch folder.
    """
    if settings.learning_rate is not None:
        return None
    from mickle.training.mezo_rate import find_rate

    found = find_rate(optimizer, closure)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = found.rate
    return found
