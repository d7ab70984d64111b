"""Settings of forward-only tuning (arXiv 2305.17333; `training/mezo.py`), and what they build.

Defaults are the paper's where it has one (tables of appendix E): probes of 1e-3 on all weights, 1e-2 on LoRA, 1e-1 on
a prefix; LoRA of rank 8 and alpha 16 on the query and value layers; prefixes of 5 tokens. The paper finds learning
rates by a grid over two orders of magnitude; here the rate is measured where none is given (`training/mezo_rate.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from mickle.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from mickle.training.closure import Closure
    from mickle.training.mezo import MeZO
    from mickle.training.mezo_rate import Rate

PROBES_REACH = {"full": 1e-3, "lora": 1e-2, "prefix": 1e-1}


class AllWeights(Config):
    """All weights are tuned."""

    kind: Literal["full"] = "full"


class LowRank(Config):
    """Adapters beside frozen linear layers are tuned (`models/lora.py`)."""

    kind: Literal["lora"] = "lora"
    rank: int = Field(8, ge=1, le=4096, description="inner dimension of an adapter")
    alpha: float = Field(16.0, gt=0, description="adapters are scaled by alpha / rank")
    targets: Literal["all-linear"] | list[str] = Field(
        default_factory=lambda: ["q_proj", "v_proj"],
        description="layers with adapters: all-linear, or ends of their names",
    )

    @field_validator("targets")
    @classmethod
    def _all(cls, targets: str | list[str]) -> str | list[str]:
        return "all-linear" if targets == ["all-linear"] else targets  # as the command line gives it


class Prefix(Config):
    """Keys and values before the text are tuned (`models/prefix.py`)."""

    kind: Literal["prefix"] = "prefix"
    tokens: int = Field(5, ge=1, le=1024, description="how many; they begin as those of random tokens")


class Mezo(Config):
    """Tuning with forward passes only, in the memory of inference. Wants a pre-trained model and a prompt."""

    kind: Literal["mezo"] = "mezo"
    parameters: Annotated[AllWeights | LowRank | Prefix, Field(discriminator="kind")] = Field(
        default_factory=AllWeights, description="what is tuned: full, lora or prefix, and its settings"
    )
    learning_rate: float | None = Field(None, gt=0, description="step size (default: measured on the first batches)")
    eps: float | None = Field(None, gt=0, description="how far probes go (default: 1e-3 full, 1e-2 lora, 1e-1 prefix)")
    draws: Literal["rademacher", "gaussian"] = Field(
        "rademacher", description="directions of +1 and -1, or of normal numbers"
    )
    probes: int = Field(1, ge=1, le=1024, description="directions a step, whose mean is taken")
    variant: Literal["plain", "momentum", "adam", "fzoo"] = Field(
        "plain", description="what is made of the projections; fzoo takes at least 2 one-sided probes"
    )
    betas: tuple[float, float] = Field((0.9, 0.95), description="decay of momentum's and adam's averages")
    weight_decay: float = Field(0.0, ge=0, description="decay of matrices; norms, biases and embeddings have none")
    clip: float = Field(5.0, ge=0, description="bound of |g| in medians of the latest hundred; 0 for none")
    objective: Literal["loss", "accuracy"] = Field(
        "loss", description="what falls: the loss, or the share of wrong answers (needs a prompt with labels)"
    )

    def reach(self) -> float:
        """How far probes go."""
        return self.eps if self.eps is not None else PROBES_REACH[self.parameters.kind]


def prepare_mezo(settings: Mezo, model: nn.Module, seed: int) -> nn.Module:
    """The model with what is tuned trainable and all else frozen; a prefix puts a wrapper around it.

    Adapters and prefix depend on the seed alone. UsageError where the model cannot take them.
    """
    parameters = settings.parameters
    if isinstance(parameters, LowRank):
        from mickle.models.lora import attach_lora

        attach_lora(model, rank=parameters.rank, alpha=parameters.alpha, targets=parameters.targets, seed=seed)
        return model
    if isinstance(parameters, Prefix):
        from mickle.models.prefix import attach_prefix

        return attach_prefix(model, parameters.tokens, seed)
    return model.requires_grad_(True)


def fingerprint_of(settings: Mezo, model: nn.Module) -> str:
    """The fingerprint of what learns: of the whole model, or of the adapter alone on a base that is frozen."""
    from mickle.training.replay import fingerprint

    if settings.parameters.kind == "full":
        return fingerprint(model)
    return fingerprint(model, [name for name, p in model.named_parameters() if p.requires_grad])


def build_mezo(settings: Mezo, model: nn.Module, seed: int, steps: int) -> MeZO:
    """The optimizer for a model that `prepare_mezo` made ready.

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
        draws=settings.draws,
        probes=settings.probes,
        variant=settings.variant,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
        clip=settings.clip,
        base=fingerprint_of(settings, model),
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
