"""One round of `mickle mix`: a reference on the weights so far, then a proxy by group DRO."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from mickle import machine
from mickle.data.mixture import DomainMixture
from mickle.data.packing import TokenStream
from mickle.events import Emit, Noted
from mickle.models.decoder import Decoder
from mickle.storage import SCRATCH
from mickle.training.doremi import ReferenceLosses, RobustObjective, RobustProxy, RobustRule
from mickle.training.loop import fit
from mickle.training.mix_results import Round
from mickle.training.objectives import next_token
from mickle.training.optimizers import build_optimizer
from mickle.training.pretrain import record
from mickle.training.pretrain_plan import Plan

if TYPE_CHECKING:
    from mickle.training.mix import Mix


def run_round(
    settings: Mix,
    number: int,
    plan: Plan,
    streams: dict[str, TokenStream],
    weights: tuple[float, ...],
    work: Path,
    emit: Emit,
) -> Round:
    """Train reference and proxy; ``weights``: the reference's, in the order of the streams."""
    scratch, logs = work / SCRATCH / f"round-{number}", work / f"round-{number}"
    logs.mkdir(exist_ok=True)
    emit(Noted(f"round {number}: reference"))
    reference = _fresh(settings, plan)
    batches = _batches(settings, streams, weights, plan)
    _train(settings, reference, next_token, batches, plan, scratch / "reference", logs / "reference.jsonl", emit)
    emit(Noted(f"round {number}: proxy"))
    drawn = drawn_by(settings, weights)
    batches = _batches(settings, streams, drawn, plan)
    windows, length = sum(batches.windows), plan.sequence_length
    known = ReferenceLosses(reference, scratch / "losses.f32", windows, length)
    rule = RobustRule(**settings.robust.model_dump(exclude={"sampling", "burn_in"}))
    objective = RobustObjective(known, rule, None if settings.robust.sampling == "uniform" else drawn)
    proxy = RobustProxy(_fresh(settings, plan), len(streams), plan.steps, plan.vocabulary_size)
    _train(settings, proxy, objective, batches, plan, scratch / "proxy", logs / "proxy.jsonl", emit)
    return Round.of(proxy, weights, settings.robust.burn_in)


def drawn_by(settings: Mix, reference: Sequence[float]) -> tuple[float, ...]:
    """What the proxy's batches are drawn by."""
    if settings.robust.sampling == "reference":
        return tuple(reference)
    return (1 / len(reference),) * len(reference)


def _batches(settings: Mix, streams: dict[str, TokenStream], weights: Sequence[float], plan: Plan) -> DomainMixture:
    """Batches by weight; windows repeat, so that the reference's losses can be kept."""
    return DomainMixture(
        tuple(streams.values()),
        tuple(weights),
        plan.batch_size,
        plan.sequence_length,
        settings.seed,
        shift=False,
        names=tuple(streams),
    )


def _fresh(settings: Mix, plan: Plan) -> nn.Module:
    machine.seed_everything(settings.seed)
    return Decoder(plan.config, seed=settings.seed).to(machine.device())


def _train(
    settings: Mix,
    model: nn.Module,
    objective: Any,
    batches: DomainMixture,
    plan: Plan,
    folder: Path,
    log: Path,
    emit: Emit,
) -> None:
    training = settings.training
    rated = training.optimizer.model_copy(update={"learning_rate": plan.learning_rate})
    optimizer = build_optimizer(rated, model)
    robust = isinstance(model, RobustProxy)
    if isinstance(model, RobustProxy):
        model.follow(optimizer, objective)
    events = fit(
        model,
        objective,
        batches,
        optimizer,
        steps=plan.steps,
        schedule=training.schedule,
        accumulate=plan.accumulate,
        clip_norm=rated.clip_norm,
        precision=plan.precision,  # type: ignore[arg-type]
        checkpoints=folder,
        save_every=plan.save_every,
        keep=1,
        seed=settings.seed,
        watch_loss=not robust,  # a loss whose weights move may jump
        identity=settings.identity(),
    )
    record(events, log, emit)
