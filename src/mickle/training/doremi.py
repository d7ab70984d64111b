"""DoReMi: Optimizing Data Mixtures Speeds Up Language Model Pretraining (arXiv 2305.10429).

Claim: weights of the data's domains that a small proxy finds by distributionally robust training make a model 30 times
larger reach the baseline's accuracy in 2.6 times fewer steps, without looking at any downstream task.

A reference model is trained first, on the reference weights. Then (section 2, step 2) the proxy, on domains sampled
uniformly, with weights alpha of k domains that start at u = (1/k, ..., 1/k). In step t, for a batch B::

    lambda_d = mean over the tokens of B in d of max(l_proxy - l_reference, 0)       (clipped a token, then averaged)
    alpha_t  = (1 - c) softmax(ln alpha_(t-1) + eta lambda) + c u                    (exponentiated gradient, smoothed)
    theta steps on   sum over tokens of alpha_t[d] l_proxy / sum over tokens of alpha_t[d]

and the weights to sample by are the mean of alpha_t over all t >= 1. The new alpha weighs the batch it came from.

Where this departs, each of it a setting:

- A domain that a batch lacks keeps its weight (``unseen="keep"``). The authors' code takes its last lambda, and ln V
  before it has any (``"last"``), which with small batches drives rare domains up.
- ``loss="domain_mean"`` weighs each domain's own mean, as the paper's equation 1 has it; the default is the mean over
  all tokens, which is what the authors' code does, equal in expectation for domains of equal shares.
- A lambda that is not finite leaves its domain as it is and is counted; one NaN would poison alpha for ever.
- An update that the optimizer refuses (numbers that are not finite) is not made to alpha either, and with accumulated
  gradients alpha is computed from the whole batch first, so that accumulation cannot change it. In the authors' code
  all but the last part of a batch are weighed by the alpha before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mickle.kernels.token_losses import token_losses
from mickle.training import distributed
from mickle.training.closure import Closure
from mickle.training.objectives import Batch
from mickle.training.robust import RobustRule, Score

NOT_TRAINED = -100


def domain_excess(
    losses: Tensor, reference: Tensor, labels: Tensor, domains: Tensor, count: int, score: Score = "excess"
) -> Tensor:
    """Sum of the tokens' scores and number of tokens of each domain, float64 [2, k]; their quotient is lambda.

    losses, reference: nats, [B, T]. labels [B, T]: tokens with -100 do not count. domains [B]: of each row, below
    ``count`` (k).
    """
    trained = labels != NOT_TRAINED
    if score == "hardest":
        scores = losses
    elif score == "easiest":
        scores = -reference
    else:
        scores = (losses - reference).clamp(min=0)
    sums = torch.stack([scores.double().where(trained, 0).sum(1), trained.double().sum(1)])  # [2, B]
    return sums.new_zeros(2, count).index_add_(1, domains, sums)


def exponentiated_gradient(weights: Tensor, excess: Tensor, eta: float, smoothing: float, seen: Tensor) -> Tensor:
    """The domains' next weights, float64 [k]: one update of the module's second equation.

    weights: now, [k], positive, summing to 1. excess: lambda [k]. seen: bool [k]; the others keep their weights, and
    the seen ones share theirs anew. Smoothing mixes ``smoothing`` of the uniform distribution into all.
    """
    weights = weights.double()
    # In logarithms, so that no weight overflows before the sum is divided out; unseen domains take no part.
    moved = torch.where(seen, weights.log() + eta * excess.double(), -torch.inf)
    shares = torch.zeros_like(weights) if not bool(seen.any()) else moved.softmax(0)
    mass = weights.where(seen, 0).sum()
    updated = torch.where(seen, shares * mass, weights)
    return (1 - smoothing) * updated / updated.sum() + smoothing / len(weights)


@dataclass
class DomainsUpdate:
    """What a batch makes of the weights: alpha_t, lambda, and the loss weight of a token, [k] each."""

    weights: Tensor
    excess: Tensor
    seen: Tensor
    skipped: Tensor
    token_weights: Tensor


class RobustProxy(nn.Module):
    """A proxy model with the state of its domains' weights in buffers, which checkpoints keep and restore to the bit.

    model: any model with a decoder's ``forward``. domains: k. steps: of the whole run. vocabulary: V, for
        ``unseen="last"``.
    """

    def __init__(self, model: nn.Module, domains: int, steps: int, vocabulary: int = 2) -> None:
        super().__init__()
        self.model = model
        self.domains = domains
        device = next(model.parameters()).device
        empty = partial(torch.zeros, device=device, dtype=torch.float64)
        self.weights = nn.Buffer(empty(domains) + 1 / domains)  # alpha now
        self.trajectory = nn.Buffer(empty(steps, domains))  # alpha_t of every step that was made
        self.excess = nn.Buffer(empty(steps, domains))  # lambda of the same steps, 0 where not seen
        self.seen = nn.Buffer(empty(steps, domains, dtype=torch.bool))
        self.last_excess = nn.Buffer(empty(domains) + float(np.log(vocabulary)))
        self.done = nn.Buffer(empty((), dtype=torch.int64))
        self.skipped = nn.Buffer(empty(domains, dtype=torch.int64))
        self._pending: DomainsUpdate | None = None
        self._of_all_parts: DomainsUpdate | None = None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the proxy itself computes."""
        return self.model(*inputs, **options)

    def follow(self, optimizer: Optimizer, objective: "RobustObjective") -> Optimizer:
        """The optimizer, with which the weights now move: by the whole batch, and only when its step was made."""

        def before(optimizer: Optimizer, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            self._pending = self._of_all_parts = None
            closure = next((a for a in [*arguments, *options.values()] if isinstance(a, Closure)), None)
            if closure is None:
                return

            def decide() -> None:
                self._of_all_parts = None
                self._of_all_parts = self._pending = objective.update_of_parts(self, closure)

            if closure.parts > 1:
                closure.fitting(decide)
            closure.when_cut = decide

        def after(optimizer: Optimizer, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            self.commit()

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return optimizer

    def propose(self, rule: RobustRule, sums: Tensor, sampled: Tensor | None) -> DomainsUpdate:
        """The update that a batch with these sums of scores and counts (float64 [2, k]) asks for.

        sampled: the distribution that domains are drawn from, [k], where it is not uniform: tokens then weigh alpha / q
        (importance sampling).
        """
        if self._of_all_parts is not None:
            return self._of_all_parts
        scores, counts = distributed.sum_over_processes(sums)
        present = counts > 0
        excess = scores / counts.clamp(min=1)
        finite = excess.isfinite()
        seen = present & finite
        excess = excess.where(seen, 0)
        if rule.unseen == "last":
            excess = torch.where(seen, excess, self.last_excess)
            moved = torch.ones_like(seen)
        else:
            moved = seen
        weights = exponentiated_gradient(self.weights, excess, rule.eta, rule.smoothing, moved)
        if rule.loss == "domain_mean":
            token_weights = weights / counts.clamp(min=1)
        else:
            token_weights = weights if sampled is None else weights / sampled.to(weights)
        self._pending = DomainsUpdate(weights, excess, seen, present & ~finite, token_weights)
        return self._pending

    @torch.no_grad()
    def commit(self) -> None:
        """Make the last update the state: called when the optimizer's step was made."""
        update, self._pending, self._of_all_parts = self._pending, None, None
        if update is None:
            return
        step = int(self.done)
        self.weights.copy_(update.weights)
        self.trajectory[step].copy_(update.weights)
        self.excess[step].copy_(update.excess)
        self.seen[step].copy_(update.seen)
        self.last_excess.copy_(torch.where(update.seen, update.excess, self.last_excess))
        self.skipped += update.skipped
        self.done += 1

    def result(self, burn_in: float = 0.0) -> Tensor:
        """The weights to sample by: the mean of alpha_t, float64 [k].

        ``burn_in``: share of the first steps that is left out of the mean, while everything is new to the proxy. Ours;
        the paper has 0.
        """
        done = int(self.done)
        if done == 0:
            return self.weights.clone()
        first = min(int(burn_in * done), done - 1)
        return self.trajectory[first:done].mean(0)


@dataclass(frozen=True)
class RobustObjective:
    """The proxy's objective: ``(RobustProxy, batch) -> (weighted sum of losses, sum of weights)``.

    ``batch``: as for next-token training, with ``domains`` [B] and what ``reference`` needs. reference: batch -> the
    reference model's losses [B, T], nats. A pure function of the batch and the weights as they were before it.
    """

    reference: Callable[[Batch], Tensor]
    rule: RobustRule = field(default_factory=RobustRule)
    sampled: Sequence[float] | None = None

    def __call__(self, model: RobustProxy, batch: Batch) -> tuple[Tensor, Tensor]:
        losses, sums = self._losses(model, batch)
        update = model.propose(self.rule, sums, self._sampled(sums))
        per_token = update.token_weights[batch["domains"]].to(losses.dtype)[:, None]  # [B, 1]
        trained = batch["labels"] != NOT_TRAINED
        return (per_token * losses).sum(), (per_token * trained).sum()

    def update_of_parts(self, model: RobustProxy, closure: Closure) -> DomainsUpdate:
        """The update of a batch that comes in parts, by one forward pass without gradients over all of them."""
        sums = torch.zeros(2, model.domains, dtype=torch.float64, device=closure.device)
        with torch.no_grad():
            for part, micro_batch in enumerate(closure.micro_batches):
                with closure.forward_context(part):
                    sums += self._losses(model, micro_batch)[1]
        distributed.forget_forward(model)
        return model.propose(self.rule, sums, self._sampled(sums))

    def _losses(self, model: RobustProxy, batch: Batch) -> tuple[Tensor, Tensor]:
        """The proxy's losses [B, T], and the sums of scores and counts [2, k] that they make."""
        head = partial(token_losses, labels=batch["labels"])
        losses: Tensor = model(batch["input_ids"], documents=batch.get("documents"), head=head)
        rule = self.rule
        reference = losses.detach() if rule.score == "hardest" else self.reference(batch).to(losses)
        sums = domain_excess(losses.detach(), reference, batch["labels"], batch["domains"], model.domains, rule.score)
        return losses, sums

    def _sampled(self, like: Tensor) -> Tensor | None:
        return None if self.sampled is None else torch.tensor(self.sampled, device=like.device)


class ReferenceLosses:
    """The reference model's loss of every token, by one forward pass without gradients, kept for windows that repeat.

    model: the trained reference; it is put into eval mode.
    file: where losses are kept, float32 [windows, T], 4 bytes a token, for batches that name their ``windows``; None
        computes them anew each time.

    A batch with a window that is not known yet is computed as a whole and the known rows are left as they are: what
    is kept does not depend on where a run was interrupted. A row counts as known when all of it is there.
    """

    UNKNOWN, NOTHING = 0.0, -1.0  # what a fresh file holds; a loss of exactly 0

    def __init__(self, model: nn.Module, file: Path | None = None, windows: int = 0, length: int = 0) -> None:
        self.model = model.eval()
        self.kept: np.ndarray | None = None
        self.passes = 0  # forward passes so far
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            size = windows * length * 4
            if not file.is_file() or file.stat().st_size != size:
                with open(file, "wb") as stream:
                    stream.truncate(size)  # zeros that take no space until they are written
            self.kept = np.memmap(file, dtype=np.float32, mode="r+", shape=(windows, length))

    def __call__(self, batch: Batch) -> Tensor:
        """Losses [B, T] in nats, 0 where a label is -100."""
        if self.kept is None or "windows" not in batch:
            return self._computed(batch)
        windows = batch["windows"].cpu().numpy()
        known = self.kept[windows]
        missing = (known == self.UNKNOWN).any(1)
        if missing.any():
            fresh = self._computed(batch).float().cpu().numpy()
            known[missing] = np.where(fresh == 0, self.NOTHING, fresh)[missing]
            self.kept[windows[missing]] = known[missing]
        return torch.from_numpy(np.maximum(known, 0)).to(batch["labels"].device)

    @torch.no_grad()
    def _computed(self, batch: Batch) -> Tensor:
        self.passes += 1
        head = partial(token_losses, labels=batch["labels"])
        found: Tensor = self.model(batch["input_ids"], documents=batch.get("documents"), head=head)
        return found
