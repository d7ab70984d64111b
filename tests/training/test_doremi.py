"""DoReMi's weights against pencil, closed forms and a float64 twin; its loss; its state across kills and processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distributed import together
from tiny_training import OPTIMIZERS, decoder, packed
from torch import Tensor, nn

from mickle.events import Trained
from mickle.kernels.dispatch import plain_kernels
from mickle.training import distributed
from mickle.training.doremi import (
    ReferenceLosses,
    RobustObjective,
    RobustProxy,
    RobustRule,
    domain_excess,
    exponentiated_gradient,
)
from mickle.training.loop import fit
from mickle.training.objectives import Batch, next_token

ALL3 = torch.ones(3, dtype=torch.bool)


def step(weights: Any, excess: Any, eta: float = 1.0, c: float = 1e-3, seen: Any = None) -> Tensor:
    weights, excess = (torch.as_tensor(weights, dtype=torch.float64), torch.as_tensor(excess, dtype=torch.float64))
    seen = torch.ones(len(weights), dtype=torch.bool) if seen is None else torch.as_tensor(seen)
    return exponentiated_gradient(weights, excess, eta, c, seen)


# -- the update (oracles 1 to 4) -----------------------------------------------------------------------------------


def test_pencil_step() -> None:
    found = step([0.5, 0.3, 0.2], [0.1, 0.4, 0.0])
    assert found.tolist() == pytest.approx([0.460310, 0.372875, 0.166815], abs=1e-6)


def test_a_hundred_steps_against_the_formula_in_float64() -> None:
    random = np.random.default_rng(0)
    ours, theirs = torch.full((5,), 0.2, dtype=torch.float64), np.full(5, 0.2)
    for _ in range(100):
        excess = random.exponential(size=5)
        ours = step(ours, excess)
        theirs = theirs * np.exp(excess)
        theirs = (1 - 1e-3) * theirs / theirs.sum() + 1e-3 / 5
        assert ours.numpy() == pytest.approx(theirs, rel=1e-6)


def test_without_excess_the_weights_go_home_by_one_minus_c() -> None:
    start = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    weights = start
    for t in range(1, 50):
        weights = step(weights, [0.0, 0.0, 0.0], c=0.05)
        assert (weights - 1 / 3).numpy() == pytest.approx(0.95**t * (start - 1 / 3).numpy(), abs=1e-14)


def test_fixed_excess_without_smoothing_is_a_softmax() -> None:
    start, excess = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), torch.tensor([0.1, 0.4, 0.0])
    weights = start
    for _ in range(30):
        weights = step(weights, excess, eta=0.7, c=0.0)
    expected = (start.log() + 0.7 * 30 * excess.double()).softmax(0)
    assert weights.numpy() == pytest.approx(expected.numpy(), rel=1e-9)


def test_the_fixed_point_of_one_dominant_domain() -> None:
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    for _ in range(200):
        weights = step(weights, [30.0, 0.0, 0.0, 0.0], c=0.01)
    assert weights[0].item() == pytest.approx(1 - 0.01 * 3 / 4, abs=1e-9)


vectors = st.integers(2, 7).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(1e-3, 1), min_size=k, max_size=k),
        st.lists(st.floats(0, 50), min_size=k, max_size=k),
        st.lists(st.booleans(), min_size=k, max_size=k),
    )
)


@settings(max_examples=150, deadline=None)
@given(vectors, st.floats(0.01, 5), st.floats(1e-6, 0.5), st.floats(-20, 20))
def test_invariants(vector: Any, eta: float, c: float, shift: float) -> None:
    raw, excess, seen = vector
    k = len(raw)
    weights = torch.tensor(raw, dtype=torch.float64) / sum(raw)
    found = step(weights, excess, eta, c, seen)
    assert found.sum().item() == pytest.approx(1, abs=1e-12)
    assert found.min().item() >= c / k * (1 - 1e-9)
    kept = [i for i in range(k) if not seen[i]]
    assert found[kept].numpy() == pytest.approx((1 - c) * weights[kept].numpy() + c / k, rel=1e-9)
    moved = step(weights, [e + shift for e in excess], eta, c, seen)
    assert moved.numpy() == pytest.approx(found.numpy(), rel=1e-9)
    order = list(range(k))[::-1]
    turned = step(weights[order], [excess[i] for i in order], eta, c, [seen[i] for i in order])
    assert turned[order].numpy() == pytest.approx(found.numpy(), rel=1e-12)


# -- the excess (oracles 5 and 6) ----------------------------------------------------------------------------------


def test_excess_is_clipped_by_token_and_masked_tokens_do_not_count() -> None:
    losses = torch.tensor([[2.0, 1.0, 9.0, 9.0], [5.0, 5.0, 1.0, 2.0]])
    reference = torch.tensor([[1.0, 2.0, 0.0, 0.0], [5.0, 4.0, 3.0, 0.0]])
    labels = torch.tensor([[1, 1, -100, -100], [1, 1, 1, 1]])
    sums, counts = domain_excess(losses, reference, labels, torch.tensor([2, 0]), 3)
    assert sums.tolist() == [0 + 1 + 0 + 2, 0, 1]
    assert counts.tolist() == [4, 0, 2]
    assert (sums[2] / counts[2]).item() == 0.5  # +1 and -1: a half, not 0
    hardest, _ = domain_excess(losses, reference, labels, torch.tensor([2, 0]), 3, "hardest")
    easiest, _ = domain_excess(losses, reference, labels, torch.tensor([2, 0]), 3, "easiest")
    assert hardest.tolist() == [13, 0, 3]
    assert easiest.tolist() == [-12, 0, -3]


def domained(index: int) -> Batch:
    """Six rows of three domains, the third rare; windows repeat after four batches."""
    batch = packed(index % 4, rows=6)
    return {
        **batch,
        "domains": torch.tensor([0, 1, 0, 1, 0, 2 if index % 3 == 0 else 1]),
        "windows": torch.arange(6) + 6 * (index % 4),
    }


def model(seed: int = 1) -> nn.Module:
    built = decoder(dropout=0.0, layers=2)
    built.initialise(seed)  # type: ignore[operator]
    return built


def proxy(steps: int = 12) -> RobustProxy:
    return RobustProxy(model(), 3, steps, vocabulary=13)


def objective(rule: RobustRule | None = None, **options: Any) -> RobustObjective:
    return RobustObjective(ReferenceLosses(model(seed=2)), rule or RobustRule(), **options)


def test_proxy_equal_to_reference_has_no_excess() -> None:
    """To the bit with the same kernels; fast ones round otherwise with gradients than without."""
    same = RobustObjective(ReferenceLosses(model()))
    robust = proxy()
    with plain_kernels():
        same(robust, domained(0))
    update = robust._pending
    assert update is not None
    assert update.excess.tolist() == [0, 0, 0]
    assert update.seen.tolist() == [True] * 3
    same(robust, domained(0))
    assert robust._pending is not None
    assert robust._pending.excess.max().item() < 1e-6


# -- the loss (oracles 7 and 8) ------------------------------------------------------------------------------------


def gradient(built: nn.Module, make: Any, batch: Batch) -> Tensor:
    built.zero_grad()
    total, count = make(built, batch)
    (total / count).backward()
    return torch.cat([p.grad.flatten() for p in built.parameters()])


def test_with_equal_weights_it_is_plain_cross_entropy() -> None:
    robust = proxy()
    equal = RobustObjective(ReferenceLosses(model()))  # no excess: weights stay uniform
    found = gradient(robust, equal, domained(0))
    expected = gradient(model(), next_token, domained(0))
    assert torch.allclose(found, expected, atol=1e-6)


def test_the_loss_weighs_tokens_by_the_new_weights() -> None:
    """By hand from per-token losses: the update comes first, and weighs the batch it came from."""
    robust, batch = proxy(), domained(0)
    total, count = objective(RobustRule(eta=3.0))(robust, batch)
    weights = robust._pending.weights.tolist()  # type: ignore[union-attr]
    assert max(weights) - min(weights) > 0.05
    sums = counts = 0.0
    for row in range(6):
        alone = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        with torch.no_grad():
            loss, tokens = next_token(robust.model, alone)
        sums += weights[int(batch["domains"][row])] * float(loss)
        counts += weights[int(batch["domains"][row])] * int(tokens)
    assert total.item() == pytest.approx(sums, rel=1e-5)
    assert count.item() == pytest.approx(counts, rel=1e-6)


def test_domain_mean_is_the_weighted_mean_of_the_domains_means() -> None:
    robust, batch = proxy(), domained(0)
    total, count = objective(RobustRule(eta=3.0, loss="domain_mean"))(robust, batch)
    weights = robust._pending.weights.tolist()  # type: ignore[union-attr]
    expected = 0.0
    for domain in range(3):
        rows = batch["domains"] == domain
        with torch.no_grad():
            loss, tokens = next_token(robust.model, {name: tensor[rows] for name, tensor in batch.items()})
        expected += weights[domain] * float(loss) / int(tokens)
    assert (total / count).item() == pytest.approx(expected, rel=1e-5)


def test_importance_weights_on_an_enumerated_world() -> None:
    """E over q of (alpha / q) grad equals E over alpha of grad, summed over every sequence that can be drawn."""
    robust, batch = proxy(), domained(0)
    drawn, rule = (0.5, 0.2, 0.3), RobustRule(eta=2.0)
    one_each = {name: tensor[[0, 1, 5]] for name, tensor in batch.items()}
    update = robust.propose(rule, torch.tensor([[3.0, 1.0, 0.5], [1.0, 1.0, 1.0]]).double(), torch.tensor(drawn))
    robust._of_all_parts = update  # hold alpha fixed while the world is enumerated
    alpha = update.weights
    under_q = under_alpha = 0.0
    for domain in range(3):
        row = {name: tensor[domain : domain + 1] for name, tensor in one_each.items()}
        total, _ = objective(rule, sampled=drawn)(robust, row)
        plain, _ = next_token(robust.model, row)
        under_q = under_q + drawn[domain] * total
        under_alpha = under_alpha + alpha[domain].float() * plain
    parameters = list(robust.parameters())
    one = torch.autograd.grad(under_q, parameters, retain_graph=True)
    other = torch.autograd.grad(under_alpha, parameters)
    for mine, theirs in zip(one, other, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-6)


# -- state -----------------------------------------------------------------------------------------------------------


def run(
    robust: RobustProxy,
    made: RobustObjective | None = None,
    steps: int = 12,
    until: int | None = None,
    batches: Any = domained,
    **options: Any,
) -> list[float]:
    made = made or objective()
    optimizer = OPTIMIZERS["adamw"](robust)
    robust.follow(optimizer, made)
    events = fit(robust, made, batches, optimizer, steps=steps, watch_loss=False, **options)
    losses = []
    for event in events:
        if isinstance(event, Trained):
            losses.append(event.loss)
            if event.step == until:
                break
    return losses


def state(robust: RobustProxy) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in robust.state_dict().items()}


def test_the_trajectory_is_what_the_excess_makes_of_it() -> None:
    robust = proxy()
    run(robust)
    assert int(robust.done) == 12
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for t in range(12):
        weights = step(weights, robust.excess[t], seen=robust.seen[t])
        assert weights.tolist() == pytest.approx(robust.trajectory[t].tolist(), rel=1e-12)
    assert robust.seen[:, 2].tolist() == [t % 3 == 0 for t in range(12)]
    assert robust.result().tolist() == pytest.approx(robust.trajectory.mean(0).tolist())
    assert robust.result(0.5).tolist() == pytest.approx(robust.trajectory[6:].mean(0).tolist())
    assert RobustProxy(model(), 3, 5).result().tolist() == pytest.approx([1 / 3] * 3)


def test_unseen_domains_as_the_authors_have_them() -> None:
    """Their last excess counts again; before there is one, the logarithm of the vocabulary's size."""
    robust = proxy()

    def later(index: int) -> Batch:
        return domained(index + 1)  # the third domain first comes in step 3

    run(robust, objective(RobustRule(unseen="last")), batches=later, steps=12)
    assert robust.excess[0, 2].item() == robust.excess[1, 2].item() == pytest.approx(math.log(13))
    assert robust.seen[:4, 2].tolist() == [False, False, True, False]
    assert robust.excess[3, 2] == robust.excess[2, 2] != math.log(13)


def test_stopped_and_resumed_to_the_bit(tmp_path: Path) -> None:
    never = proxy()
    run(never)
    run(proxy(), until=7, checkpoints=tmp_path, save_every=3)
    resumed = proxy()
    assert len(run(resumed, checkpoints=tmp_path, save_every=3)) == 6
    assert state(resumed) == state(never)


@pytest.mark.parametrize("loss", ["token", "domain_mean"])
def test_accumulation_changes_nothing(loss: Any) -> None:
    whole, parts = proxy(), proxy()
    told = run(whole, objective(RobustRule(loss=loss)))
    again = run(parts, objective(RobustRule(loss=loss)), accumulate=3)
    assert again == pytest.approx(told, rel=1e-5)
    assert parts.trajectory.numpy() == pytest.approx(whole.trajectory.numpy(), rel=1e-4)
    assert parts.excess.numpy() == pytest.approx(whole.excess.numpy(), abs=1e-5)


def test_memory_that_runs_out_changes_nothing() -> None:
    """The weights move by the whole batch also where it turns out to need parts in the middle of a step."""

    class Short(RobustObjective):
        def _losses(self, model: RobustProxy, batch: Batch) -> Any:
            if int(model.done) >= 2 and len(batch["labels"]) > 2:
                raise MemoryError
            return super()._losses(model, batch)

    whole, lowered = proxy(), proxy()
    told = run(whole)
    plain = objective()
    again = run(lowered, Short(plain.reference, plain.rule, plain.sampled))
    assert again == pytest.approx(told, rel=1e-5)
    assert lowered.trajectory.numpy() == pytest.approx(whole.trajectory.numpy(), rel=1e-4)


def test_a_step_that_is_refused_leaves_the_weights_alone() -> None:
    calls: list[int] = []

    class Poisoned(RobustObjective):
        def __call__(self, model: RobustProxy, batch: Batch) -> tuple[Tensor, Tensor]:
            total, count = super().__call__(model, batch)
            calls.append(1)
            return (total * math.nan, count) if len(calls) == 5 else (total, count)

    robust = proxy()
    run(robust, Poisoned(objective().reference), on_bad_numbers="skip")
    assert int(robust.done) == 11
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for t in range(11):
        weights = step(weights, robust.excess[t], seen=robust.seen[t])
        assert weights.tolist() == pytest.approx(robust.trajectory[t].tolist(), rel=1e-12)


def test_excess_that_is_not_finite_is_counted_and_harms_nothing() -> None:
    def reference(batch: Batch) -> Tensor:
        found = torch.zeros_like(batch["labels"], dtype=torch.float32)
        found[batch["domains"] == 1] = math.nan
        return found

    robust = proxy()
    run(robust, RobustObjective(reference), steps=4)
    assert robust.skipped.tolist() == [0, 4, 0]
    assert robust.trajectory[:4].isfinite().all()
    assert robust.trajectory[3, 1].item() == pytest.approx(1 / 3)
    assert not robust.seen[:, 1].any()


def test_two_processes_have_the_weights_of_one(tmp_path: Path) -> None:
    alone = proxy()
    told = run(alone)

    def work(place: distributed.Place) -> Any:
        results = []
        for accumulate in (1, 2):
            robust = distributed.shard(proxy())
            assert isinstance(robust, RobustProxy)
            losses = run(robust, accumulate=accumulate)
            results.append([losses, robust.trajectory.tolist()])
        return results

    for found in together(work, tmp_path):
        for losses, trajectory in found:
            assert losses == pytest.approx(told, rel=1e-5)
            assert np.array(trajectory) == pytest.approx(alone.trajectory.numpy(), rel=1e-4)


# -- reference losses ------------------------------------------------------------------------------------------------


def test_reference_losses_are_kept_and_computed_once(tmp_path: Path) -> None:
    live, kept = ReferenceLosses(model(2)), ReferenceLosses(model(2), tmp_path / "losses", 24, 10)
    for index in range(8):
        batch = domained(index)
        assert torch.equal(kept(batch), live(batch))
        assert (kept(batch)[batch["labels"] == -100] == 0).all()
    assert kept.passes == 4
    again = ReferenceLosses(model(2), tmp_path / "losses", 24, 10)
    assert torch.equal(again(domained(1)), live(domained(1)))
    assert again.passes == 0


def test_a_row_that_was_half_written_is_computed_again(tmp_path: Path) -> None:
    kept = ReferenceLosses(model(2), tmp_path / "losses", 24, 10)
    expected = kept(domained(0))
    assert kept.kept is not None
    kept.kept[3, 5:] = 0  # what a power cut leaves of a sparse file
    assert torch.equal(kept(domained(0)), expected)
    assert kept.passes == 2


def test_batches_that_name_no_windows_are_computed_each_time(tmp_path: Path) -> None:
    kept = ReferenceLosses(model(2), tmp_path / "losses", 24, 10)
    batch = {name: tensor for name, tensor in domained(0).items() if name != "windows"}
    assert torch.equal(kept(batch), kept(batch))
    assert kept.passes == 2


def test_a_loss_of_exactly_nothing_is_known(tmp_path: Path) -> None:
    class Certain(nn.Module):
        def forward(self, inputs: Tensor, documents: Any = None, head: Any = None) -> Tensor:
            return torch.zeros(inputs.shape)

    kept = ReferenceLosses(Certain(), tmp_path / "losses", 24, 10)
    assert (kept(domained(0)) == 0).all()
    assert (kept(domained(0)) == 0).all()
    assert kept.passes == 1


# -- a world whose answer is known (oracle 10) -------------------------------------------------------------------------


class Tables(nn.Module):
    """One row of logits for each domain, told by the input token: the best loss is the domain's entropy."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())

    def forward(self, inputs: Tensor, documents: Any = None, head: Any = None) -> Any:
        return head(self.table[inputs], None)


def world(index: int) -> Batch:
    """Domain 0 skewed, 1 noise over all 16 tokens, 2 always one token; 20 rows of 32 tokens of each."""
    draw = torch.Generator().manual_seed(index)
    domains = torch.arange(3).repeat_interleave(20)
    labels = torch.multinomial(PROBABILITIES[domains], 32, replacement=True, generator=draw)
    return {"input_ids": domains[:, None].expand(60, 32), "labels": labels, "domains": domains}


PROBABILITIES = torch.stack(
    [0.7 ** torch.arange(16.0) / (0.7 ** torch.arange(16.0)).sum(), torch.full((16,), 1 / 16),
     torch.eye(16)[3]]
)  # fmt: skip


def known_answer(score: Any) -> RobustProxy:
    best = PROBABILITIES.clamp(min=1e-4).log()
    robust = RobustProxy(Tables(torch.zeros(3, 16)), 3, 150)
    made = RobustObjective(ReferenceLosses(Tables(best)), RobustRule(score=score))
    optimizer = torch.optim.SGD(robust.parameters(), lr=2.0)
    robust.follow(optimizer, made)
    for _ in fit(robust, made, world, optimizer, steps=150, clip_norm=None, watch_loss=False):
        pass
    return robust


def test_noise_loses_weight_by_excess_and_wins_by_loss() -> None:
    excess, hardest = known_answer("excess"), known_answer("hardest")
    assert excess.excess[:, 1].max().item() < 0.01  # a fresh table is the noise's own distribution
    assert excess.trajectory[0, 1].item() < 1 / 3
    assert excess.result()[1].item() < 0.05
    assert hardest.trajectory[-1, 1].item() > 0.99
    assert hardest.result()[1].item() > 0.9
    assert hardest.excess[-1, 1].item() == pytest.approx(math.log(16), abs=0.1)
    easiest = known_answer("easiest")
    assert easiest.result().argmax().item() == 2
