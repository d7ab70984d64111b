"""From unique tokens and a budget to a training: size, epochs, dropout, memory, hours, and the command for it.

Rules of thumb, marked as such in the plan: up to 16 epochs no dropout; beyond, dropout in the second half of the run
only, which ends as well as dropout from the start and costs less before (arXiv 2305.13230, section 5; in our study
token_crisis it cost a little accuracy at 16 epochs, and gave back a third of what repeats took at 64). The number of
epochs is the budget's, but no more than those whose tokens are worth ``least`` of fresh ones; where a pilot was
measured, no more than its best.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from mickle.errors import ResourceError, UsageError
from mickle.models.decoder_settings import DecoderArchitecture
from mickle.models.shape import DecoderConfig
from mickle.planning.report import extrapolates, notes, warnings
from mickle.planning.supply import Reader, Supply
from mickle.training.pretrain_plan import Fresh, derived_vocabulary, memory, resolve, step_seconds
from mickle.training.repetition import Allocation, Law
from mickle.training.repetition_fit import bootstrap, fit, fit_scale
from mickle.training.repetition_runs import PastRun, Pilot, nearest_pilot, pilots
from mickle.training.run import Asked

MOST_MEASURED = 5_000_000  # parameters of the largest model whose steps are timed
MEASURED_TOKENS = 2048
OVERHEAD = 1.05  # evaluations and checkpoints
FACTORS = (1 / 3, 1.0, 3.0)  # of the recommended size, shown beside each other
SHOWN_EPOCHS = (1, 2, 4, 8, 16, 32, 64)
NO_DROPOUT = 16.0  # epochs: up to here it cost accuracy in the study token_crisis
PILOT_REACH = 3.0  # a pilot speaks for sizes and texts within this factor of its own


@dataclass(frozen=True)
class Speed:
    """Measured useful FLOP (6 x parameters x tokens) per second, on a model of ``parameters``."""

    flops: float
    parameters: int


@dataclass(frozen=True)
class Budget:
    """What is asked for: a size (None: the best), and epochs, else FLOP, else hours; and when an epoch still pays."""

    size: Literal["tiny", "small", "base"] | int | None
    epochs: float | None
    flops: float | None
    hours: float
    least: float  # share of a fresh token's worth


def make_plan(
    asked: Budget, read: Reader, law: Law, others: list[Law], runs: list[PastRun], data: Path | None
) -> dict[str, Any]:
    """The plan as JSON values: ``law``, ``text``, ``recommended``, ``epochs`` and ``sizes`` (tables), ``pilot``,
    ``curves``, ``notes``, ``warnings`` and ``command``. ``law`` and ``others`` are those of ``fitted``.
    """
    law.refuse_more_epochs(asked.epochs or 1, "task.epochs")
    text = read(asked.size or "tiny")
    flops, parameters, speed = spent(asked, text, law)
    wanted = _allocation(text, law, flops, parameters)
    if parameters is None:  # a larger model has a larger vocabulary, and so fewer tokens of the same text
        text = read(int(wanted.parameters))
        wanted = _allocation(text, law, flops, parameters)
    pilot = _speaking(nearest_pilot(pilots(runs), wanted.parameters, text.distinct), wanted, text)
    epochs, bound = _bounded(asked, law, wanted, pilot)
    chosen = law.spent(wanted.parameters, epochs * text.distinct, text.distinct)
    speed = speed or measured_speed(chosen.parameters, text)
    size = asked.size or _size(chosen)
    forecast = forecast_of(chosen, size, text, speed)
    dropout = dropout_advice(epochs)
    found: dict[str, Any] = {
        "task": "repeats",
        "law": asdict(law),
        "text": asdict(text),
        "budget_flops": flops,
        "law_says": asdict(wanted),
        "pilot_says": asdict(pilot) if pilot else None,
        "recommended": {**asdict(chosen), "bound": bound, "dropout": dropout, **forecast},
        "epochs": [_epoch_row(law, others, chosen, text, e, speed) for e in _shown(epochs, law)],
        "sizes": [  # others for the same FLOP
            asdict(law.spent(chosen.parameters * factor, chosen.tokens / factor, text.distinct)) for factor in FACTORS
        ],
        "curves": _curves(law, chosen, text, pilot),
        "intervals": _intervals(others, chosen, text),
        "extrapolated": extrapolates(law, chosen.parameters),
        "command": command(chosen, size, text, dropout, data),
    }
    return {**found, "notes": notes(found, law), "warnings": warnings(found, law)}


def fitted(law: Law, runs: list[PastRun], refit: Literal["all", "scale"], seed: int = 0) -> tuple[Law, list[Law]]:
    """The law of the runs, if there are any, and laws of runs drawn again, from which intervals come."""
    if not runs:
        return law, []
    if refit == "scale":
        return fit_scale(runs, law), []
    own = fit(runs, law)
    return own, bootstrap(runs, own, seed=seed)


def spent(asked: Budget, text: Supply, law: Law) -> tuple[float, int | None, Speed | None]:
    """FLOP of the budget, parameters where they were given, and the machine's speed where hours are the budget."""
    parameters = None
    if asked.size is not None:
        # Widths come in steps: what `pretrain` makes differs a little from what is asked for.
        parameters = DecoderConfig.for_size(asked.size, text.vocabulary).parameters()
    if asked.epochs is not None and parameters is not None:
        return 6 * parameters * asked.epochs * text.distinct, parameters, None
    if asked.flops is not None:
        return asked.flops, parameters, None
    seconds = 3600 * asked.hours / OVERHEAD
    speed = measured_speed(parameters or 1_000_000, text)
    if parameters is None:  # small models are slower a FLOP than large ones: measure again near the answer
        speed = measured_speed(_allocation(text, law, speed.flops * seconds, None).parameters, text)
    return speed.flops * seconds, parameters, speed


def fresh(size: str | int) -> Fresh:
    """What `mickle pretrain --size SIZE` trains."""
    return Fresh(size, DecoderArchitecture())


def measured_speed(parameters: float, text: Supply) -> Speed:
    """Time some real steps of a model of this size, or of the largest that is quick to time."""
    size = int(min(parameters, MOST_MEASURED))
    tokens = max(text.tokens, 4 * MEASURED_TOKENS)
    vocabulary = text.vocabulary if parameters <= MOST_MEASURED else derived_vocabulary(size)
    plan = resolve(Asked(batch_tokens=MEASURED_TOKENS, accumulate=1), fresh(size), vocabulary, int(tokens))
    seconds = step_seconds(plan, fresh(size).build(plan, 0))
    return Speed(6 * plan.parameters * plan.batch_tokens / seconds, plan.parameters)


def forecast_of(chosen: Allocation, size: str | int, text: Supply, speed: Speed) -> dict[str, Any]:
    """Hours and bytes of memory of the recommended run; memory is None where no decoder has this size."""
    asked = Asked(epochs=chosen.tokens / text.tokens)
    found: dict[str, Any] = {
        "hours": OVERHEAD * 6 * chosen.parameters * chosen.tokens / speed.flops / 3600,
        "timed_parameters": speed.parameters,
        "memory_bytes": None,
    }
    try:
        found["memory_bytes"] = memory(resolve(asked, fresh(size), text.vocabulary, int(text.tokens)))
    except (ResourceError, UsageError) as error:
        found["too_large"] = error.what
    return found


def dropout_advice(epochs: float) -> dict[str, float]:
    """Rate and start by the rule of thumb above."""
    if epochs <= NO_DROPOUT:
        return {"rate": 0.0, "start": 0.0}
    return {"rate": 0.2, "start": 0.5}


def command(chosen: Allocation, size: str | int, text: Supply, dropout: dict[str, float], data: Path | None) -> str:
    """The ``mickle pretrain`` that does what is recommended; its epochs count copies as tokens."""
    parts = [f"mickle pretrain {quote(str(data)) if data else 'CORPUS'} --size {size}"]
    parts.append(f"--epochs {chosen.tokens / text.tokens:.3g}")
    if dropout["rate"]:
        parts.append(f"--dropout.rate {dropout['rate']:g} --dropout.start {dropout['start']:g}")
    return " ".join([*parts, "--out model"])


def _allocation(text: Supply, law: Law, flops: float, parameters: int | None) -> Allocation:
    if parameters is not None:
        return law.spent(parameters, flops / 6 / parameters, text.distinct)
    best = law.best(flops, text.distinct)
    smallest = DecoderConfig.for_size(1, text.vocabulary, width=32).parameters()  # that `pretrain` makes
    if best.parameters >= smallest:
        return best
    return law.spent(smallest, flops / 6 / smallest, text.distinct)


def _bounded(asked: Budget, law: Law, wanted: Allocation, pilot: Pilot | None) -> tuple[float, str]:
    """How many epochs to make, and what bounds them."""
    if asked.epochs is not None:
        return asked.epochs, "what was asked for"
    limits = {
        "the budget": wanted.epochs,
        f"tokens worth {asked.least:g} of fresh ones": law.paying_epochs(asked.least),
        "the epochs that the law knows": law.most_epochs,
    }
    if pilot is not None and not (pilot.at_edge and pilot.best_epochs == max(pilot.epochs)):
        limits["your pilot"] = pilot.best_epochs
    bound = min(limits, key=limits.__getitem__)
    return limits[bound], bound


def _speaking(pilot: Pilot | None, wanted: Allocation, text: Supply) -> Pilot | None:
    """The pilot, if its size and text are near enough to say something of this one."""
    if pilot is None:
        return None
    ratios = (pilot.parameters / wanted.parameters, pilot.unique / text.distinct)
    return pilot if all(1 / PILOT_REACH <= ratio <= PILOT_REACH for ratio in ratios) else None


def _size(chosen: Allocation) -> int:
    """Parameters with three digits that count, as `pretrain` takes them."""
    digits = max(0, int(math.log10(chosen.parameters)) - 2)
    return max(10_000, round(chosen.parameters / 10**digits) * 10**digits)


def _shown(epochs: float, law: Law) -> list[float]:
    """The recommended number, and powers of two around it."""
    others = (float(e) for e in SHOWN_EPOCHS if e <= law.most_epochs and e < 8 * max(epochs, 2))
    return sorted([epochs, *(e for e in others if abs(e / epochs - 1) > 0.02)])


def _epoch_row(
    law: Law, others: list[Law], chosen: Allocation, text: Supply, epochs: float, speed: Speed
) -> dict[str, Any]:
    """One number of epochs at the recommended size."""
    tokens = epochs * text.distinct
    losses = sorted(other.loss(chosen.parameters, tokens, text.distinct) for other in others)
    return {
        "epochs": epochs,
        "tokens": tokens,
        "worth": law.effective_tokens(tokens, text.distinct),
        "next_token": law.epoch_value(epochs),
        "loss": law.loss(chosen.parameters, tokens, text.distinct),
        "loss_interval": _middle(losses),
        "hours": OVERHEAD * 6 * chosen.parameters * tokens / speed.flops / 3600,
    }


def _curves(law: Law, chosen: Allocation, text: Supply, pilot: Pilot | None) -> dict[str, Any]:
    """Predicted losses over epochs for three sizes, and with fresh text for the middle one."""
    most = min(law.most_epochs, max(64.0, 2 * chosen.epochs, *(pilot.epochs if pilot else ())))
    epochs = [most ** (place / 60) for place in range(61)]
    sizes = [chosen.parameters * factor for factor in FACTORS]
    unique = text.distinct
    return {
        "epochs": epochs,
        "sizes": sizes,
        "losses": [[law.loss(size, e * unique, unique) for e in epochs] for size in sizes],
        "fresh": [law.loss(chosen.parameters, e * unique, e * unique) for e in epochs],
    }


def _intervals(others: list[Law], chosen: Allocation, text: Supply) -> dict[str, list[float]] | None:
    """95 % of the laws of runs drawn again: R_D*, R_N*, and the recommended run's loss."""
    if not others:
        return None
    found = {
        "token_decay": [law.token_decay for law in others],
        "parameter_decay": [law.parameter_decay for law in others],
        "loss": [law.loss(chosen.parameters, chosen.tokens, text.distinct) for law in others],
    }
    return {name: _middle(sorted(values)) or [] for name, values in found.items()}


def _middle(ordered: list[float]) -> list[float] | None:
    """The 2.5 and 97.5 % quantiles."""
    if not ordered:
        return None
    last = len(ordered) - 1
    return [ordered[round(0.025 * last)], ordered[round(0.975 * last)]]
