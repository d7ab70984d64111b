"""Objectives: sums and counts that agree with the definition, and one contract that each of them meets."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from tiny_training import CASES, decoder, masked, packed, points, still
from torch import Tensor, nn
from torch.nn import functional as F

import mickle
from mickle.errors import UsageError
from mickle.regression import heads
from mickle.training import curvature, objectives
from mickle.training.distributed import rows_of
from mickle.training.objectives import Batch

NOT_TRAINED_ON = {"likelihood": curvature.likelihood, "run": heads.run}  # what curvature and heads are computed from


def all_modules() -> list[ModuleType]:
    """Every module of the package but the studies' pages."""
    names = (module.name for module in pkgutil.walk_packages(mickle.__path__, "mickle."))
    return [
        importlib.import_module(name)
        for name in names
        if not name.startswith("mickle.studies") and not name.endswith("__main__")
    ]


def is_objective(function: Any) -> bool:
    """Whether a function takes a model and a batch, and gives a sum and a count."""
    signature = inspect.signature(function)
    found = signature.return_annotation in ("tuple[Tensor, Tensor]", tuple[Tensor, Tensor])
    return found and [name for name in signature.parameters if name != "self"][:2] == ["model", "batch"]


def test_no_objective_is_forgotten() -> None:
    """A function of the package with an objective's signature belongs in the table that all contract tests run over."""
    found, objects = {}, {}
    for module in all_modules():
        for name, thing in inspect.getmembers(module):
            if name.startswith("_") or getattr(thing, "__module__", "") != module.__name__:
                continue
            if inspect.isfunction(thing) and is_objective(thing):
                found[name] = thing
            elif inspect.isclass(thing) and "__call__" in vars(thing) and is_objective(thing.__call__):
                objects[name] = thing
    assert found == {**{name: case.objective for name, case in CASES.items()}, **NOT_TRAINED_ON}
    assert set(objects) == {"RobustObjective"}  # its terms depend on the whole batch: `test_doremi.py`


@pytest.mark.parametrize("name", CASES)
def test_sum_and_count(name: str) -> None:
    case = CASES[name]
    batch = case.batches(0)
    total, count = case.objective(still(name), batch)
    assert total.shape == count.shape == ()
    assert total.dtype == torch.float32
    assert int(count) == int((batch["labels"] != -100).sum())
    if case.differentiable:
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


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.leaves_out])
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
