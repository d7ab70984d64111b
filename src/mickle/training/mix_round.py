"""One round of `mickle mix`: a reference on the weights so far, then a proxy by group DRO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from mickle import machine
from mickle.data.mixture import DomainMixture
from mickle.data.packing import TokenStream
from mickle.events import Emit, Noted
from mickle.models.decoder import Decoder
from mickle.storage import SCRATCH
from mickle.training.distributed import after_first
from mickle.training.doremi import ReferenceLosses, RobustObjective, RobustProxy
from mickle.training.mix_results import Round
from mickle.training.objectives import next_token
from mickle.training.optimizers import AdamW, Schedule, build_optimizer
from mickle.training.pretrain_plan import PretrainPlan
from mickle.training.robust import RobustRule
from mickle.training.run import TrainingRun, train


@dataclass(frozen=True)
class Rounds:
    """What all rounds have in common. Weights, and what the proxy's batches are ``drawn`` by, in the streams' order."""

    plan: PretrainPlan
    streams: dict[str, TokenStream]
    rule: RobustRule
    seed: int
    identity: Mapping[str, Any]

    @property
    def uniform(self) -> bool:
        """Whether the proxy draws all domains alike."""
        return self.rule.sampling == "uniform"

    def drawn(self, reference: Sequence[float]) -> tuple[float, ...]:
        """What the proxy's batches are drawn by."""
        return (1 / len(reference),) * len(reference) if self.uniform else tuple(reference)

    def run(self, number: int, weights: tuple[float, ...], work: Path, emit: Emit) -> Round:
        """Train reference and proxy; ``weights``: the reference's."""
        scratch, logs = work / SCRATCH / f"round-{number}", work / f"round-{number}"
        logs.mkdir(exist_ok=True)
        emit(Noted(f"round {number}: reference"))
        batches = self._batches(weights)
        settings = AdamW(learning_rate=self.plan.learning_rate)
        run = TrainingRun(
            plan=self.plan,
            objective=next_token,
            batches=batches,
            schedule=Schedule(),
            clip_norm=settings.clip_norm,
            checkpoints=scratch / "reference",
            log=logs / "reference.jsonl",
            seed=self.seed,
            identity=self.identity,
            keep=1,
        )
        optimizer = partial(build_optimizer, settings)
        reference = train(run, self._fresh(), optimizer, self._fresh, emit).model
        emit(Noted(f"round {number}: proxy"))
        drawn = self.drawn(weights)
        batches = self._batches(drawn)
        windows, length = sum(batches.windows), self.plan.sequence_length
        known = after_first(lambda: ReferenceLosses(reference, scratch / "losses.f32", windows, length))
        objective = RobustObjective(known, self.rule, None if self.uniform else drawn)
        run = replace(
            run,
            objective=objective,
            batches=batches,
            checkpoints=scratch / "proxy",
            log=logs / "proxy.jsonl",
            watch_loss=False,  # a loss whose weights move may jump
        )

        def following(model: nn.Module) -> Optimizer:
            assert isinstance(model, RobustProxy)
            return model.follow(optimizer(model), objective)

        proxy = train(run, self._proxy(), following, self._proxy, emit).model
        assert isinstance(proxy, RobustProxy)
        return Round.of(proxy, weights, self.rule.burn_in)

    def _batches(self, weights: Sequence[float]) -> DomainMixture:
        """Batches by weight; windows repeat, so that the reference's losses can be kept."""
        return DomainMixture(
            tuple(self.streams.values()),
            tuple(weights),
            self.plan.batch_size,
            self.plan.sequence_length,
            self.seed,
            shift=False,
            names=tuple(self.streams),
        )

    def _fresh(self) -> nn.Module:
        machine.seed_everything(self.seed)
        return Decoder(self.plan.config, seed=self.seed).to(machine.device())

    def _proxy(self) -> RobustProxy:
        return RobustProxy(self._fresh(), len(self.streams), self.plan.steps, self.plan.vocabulary_size)
