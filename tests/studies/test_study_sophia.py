"""The study's own arithmetic: its targets, its worlds, its baseline; and one small cell of each kind."""

import math
from dataclasses import replace

import pytest
import torch

from mickle.studies import sophia as page
from mickle.studies.declaration import Cell, problems
from mickle.studies.sophia import study
from mickle.studies.source_bytes import source_bytes
from mickle.studies.zipf import zipf_problem


def test_the_declaration_is_sound_and_fair() -> None:
    assert problems(study) == []
    assert {len(arm.grid) for arm in study.arms} == {12}
    for world in study.worlds:
        assert {len(rates) for rates in page.RATES[world].values()} == {4}
        assert set(page.RATES[world]) == {arm.name for arm in study.arms}


def test_the_baseline_needs_its_own_steps() -> None:
    table = {
        "adamw": {"loss": 2.0, "loss_at_half": 2.2, "budget": 100, "seconds_a_step": 0.5},
        "sophia-g": {"loss": 1.9, "loss_at_half": 2.0, "budget": 100, "seconds_a_step": 1.0},
    }
    found = page.steps_to_baseline(table)
    assert found["adamw"]["steps_to_target"] == 100
    assert found["sophia-g"]["steps_to_target"] == pytest.approx(50)
    assert found["sophia-g"]["seconds_to_target"] == pytest.approx(50)
    convex = {"adamw": {"steps_to_target": 7.0, "budget": 7}}
    assert page.steps_to_baseline(convex) is convex


def test_the_convex_worlds_best_loss_is_what_newton_finds() -> None:
    problem = zipf_problem(3, 6, 3, 400)
    model = problem.fresh()
    newton = torch.optim.LBFGS(
        model.parameters(), lr=1, max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        newton.zero_grad()
        total, count = problem.objective(model, problem.batch)
        (total / count).backward()
        return float(total.detach() / count)

    start = closure()
    newton.step(closure)
    assert start == pytest.approx(math.log(3), rel=1e-5)
    assert closure() == pytest.approx(problem.best, abs=1e-4)


def test_batches_are_functions_of_seed_and_step_and_never_held_out_text() -> None:
    first, again = page.windows(0, 5, 4, 16, 3), page.windows(0, 5, 4, 16, 3)
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert torch.equal(first["input_ids"][:, 1:], first["labels"][:, :-1])
    assert not torch.equal(first["input_ids"], page.windows(0, 6, 4, 16, 3)["input_ids"])
    training, held_out = source_bytes("")
    assert len(training) > 10**6
    assert len(held_out) > 10**5


def small(arm: str, world: str) -> Cell:
    values = {**page.SIZES, "width": 16, "layers": 1, "heads": 2, "ffn_width": 16, "length": 8, "rows": 4, "steps": 6,
              "held_out_rows": 4, "features": 8, "classes": 3, "examples": 200, "zipf_steps": 30}  # fmt: skip
    return Cell(arm, world, {"rate": 2, "beta2": 0.95} if arm == "adamw" else {"rate": 2, "gamma": 1.0}, 0, values)


@pytest.mark.parametrize("arm", [arm.name for arm in study.arms])
def test_a_small_cell_of_every_arm_measures_what_is_declared(arm: str) -> None:
    measured = {world: page.run_cell(small(arm, world), None) for world in ("pages", "zipf-far")}  # type: ignore[arg-type]
    assert {"loss", "loss_at_half", "score", "budget", "seconds_a_step"} <= set(measured["pages"])
    assert {"steps_to_target", "score", "budget"} <= set(measured["zipf-far"])
    again = page.run_cell(small(arm, "pages"), None)  # type: ignore[arg-type]
    assert again["losses"] == measured["pages"]["losses"]


def test_a_rate_that_blows_up_is_a_measurement() -> None:
    cell = small("adamw", "pages")
    rates = {"pages": {"adamw": (1.0, 1.0, 1e30, 1.0)}}
    measured = page.run_cell(replace(cell, values={**cell.values, "rates": rates}), None)  # type: ignore[arg-type]
    assert math.isfinite(measured["loss"])
    assert measured["loss"] >= math.log(256)
