"""Objectives: sums and counts that agree with the definition, and one contract that each of them meets."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_training import CASES, decoder, masked, packed, points, still
from torch import Tensor, nn
from torch.nn import functional as F

from mickle.errors import UsageError
from mickle.training import objectives
from mickle.training.distributed import rows_of
from mickle.training.objectives import Batch


def test_no_objective_is_forgotten() -> None:
    """A function of the module that takes (model, batch) belongs in the table that all contract tests run over."""
    found = {
        name
        for name, function in inspect.getmembers(objectives, inspect.isfunction)
        if function.__module__ == objectives.__name__ and not name.startswith("_")
    }
    assert found == set(CASES)
    for name in found:
        assert list(inspect.signature(getattr(objectives, name)).parameters)[:2] == ["model", "batch"]
        assert CASES[name].objective is getattr(objectives, name)


@pytest.mark.parametrize("name", CASES)
def test_sum_and_count(name: str) -> None:
    case = CASES[name]
    batch = case.batches(0)
    total, count = case.objective(still(name), batch)
    assert total.shape == count.shape == ()
    assert total.dtype == torch.float32
    assert int(count) == int((batch["labels"] != -100).sum())
    total.backward()


@pytest.mark.parametrize("name", CASES)
def test_sums_and_counts_add_up_over_rows(name: str) -> None:
    case, model = CASES[name], still(name)
    batch = case.batches(3)
    rows = len(batch["labels"])
    parts = [case.objective(model, rows_of(batch, row, rows)) for row in range(rows)]
    total, count = case.objective(model, batch)
    assert sum(int(c) for _, c in parts) == int(count)
    assert sum(s.item() for s, _ in parts) == pytest.approx(total.item(), rel=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_an_untrained_position_does_not_matter(name: str) -> None:
    """Whatever stands where the label is -100 gives neither loss nor count nor gradient."""
    case, model = CASES[name], still(name)
    batch = case.batches(1)
    none = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    total, count = case.objective(model, none)
    assert (total.item(), count.item()) == (0.0, 0)


def plain_next_token(model: nn.Module, batch: Batch) -> Tensor:
    logits = model(batch["input_ids"], documents=batch.get("documents"))
    return F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")


def plain_classification(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch["inputs"]), batch["labels"], reduction="sum")


@pytest.mark.parametrize(
    ("name", "plain"),
    [("next_token", plain_next_token), ("masked_token", plain_next_token), ("classification", plain_classification)],
)
def test_equals_torchs_cross_entropy(name: str, plain: Callable[[nn.Module, Batch], Tensor]) -> None:
    case, model = CASES[name], still(name)
    batch = case.batches(2)
    expected = plain(model, batch)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    total, _ = case.objective(model, batch)
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(torch.autograd.grad(total, list(model.parameters())), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_next_token_does_not_see_what_it_predicts() -> None:
    """A later input changes no earlier term: with labels up to t only, inputs after t do not matter."""
    model, batch = still("next_token"), packed(0)
    labels = batch["labels"].clone()
    labels[:, 4:] = -100
    changed = batch["input_ids"].clone()
    changed[:, 4:] = 1
    one, _ = objectives.next_token(model, {**batch, "labels": labels})
    other, _ = objectives.next_token(model, {**batch, "labels": labels, "input_ids": changed})
    assert one.item() == pytest.approx(other.item(), rel=1e-6)


def test_masked_token_sees_both_sides() -> None:
    model, batch = still("masked_token"), masked(0)
    labels = batch["labels"].clone()
    labels[:, 1:] = -100
    labels[:, 0] = 1
    changed = batch["input_ids"].clone()
    changed[:, 1:] = (changed[:, 1:] + 1) % 12
    one, _ = objectives.masked_token(model, {"input_ids": batch["input_ids"], "labels": labels})
    other, _ = objectives.masked_token(model, {"input_ids": changed, "labels": labels})
    assert one.item() != pytest.approx(other.item(), rel=1e-3)


def test_masked_token_refuses_a_causal_model() -> None:
    with pytest.raises(UsageError, match="sees both sides"):
        objectives.masked_token(decoder(causal=True), masked(0))


def test_uniform_logits_cost_log_of_the_classes() -> None:
    class Flat(nn.Module):
        def forward(self, inputs: Tensor) -> Any:
            return torch.zeros(len(inputs), 3)

    total, count = objectives.classification(Flat(), points(0))
    assert total.item() == pytest.approx(7 * math.log(3))
    assert int(count) == 7
