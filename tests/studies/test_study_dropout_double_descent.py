"""The study's own arithmetic: shares of a peak, equal data for all arms, and one small cell of each kind."""

import math

import numpy as np
import pytest
import torch
from gaussian_theory import best_rate, dropout_risk, least_squares_risk

from mickle.studies import digits
from mickle.studies import dropout_double_descent as page
from mickle.studies.declaration import Cell, problems
from mickle.studies.dropout_double_descent import study


def test_the_declaration_is_sound() -> None:
    assert problems(study) == []
    for scale in study.scales.values():
        for world in study.worlds:
            assert scale.values["probe"][world] in scale.values["sizes"][world]
            assert list(scale.values["sizes"][world]) == sorted(scale.values["sizes"][world])
        used = scale.values["test_rows"] + scale.values["validation_rows"] + max(scale.values["sizes"]["digits_rows"])
        assert used <= 1797


def test_the_effects_said_to_be_theory_are_theory() -> None:
    effects = {comparison.measure: comparison.paper_effect for comparison in study.comparisons}

    def best(rows: int) -> float:
        return dropout_risk(rows, 100, 1, 0.25, best_rate(rows, 100, 1, 0.25))

    assert effects["near_threshold"] == pytest.approx(best(110) / least_squares_risk(110, 100, 1, 0.25), abs=5e-4)
    assert effects["at_largest"] == pytest.approx(best(500) / dropout_risk(500, 100, 1, 0.25, 0.5), abs=5e-4)


def test_shares_of_a_peak_by_pencil() -> None:
    table = {"none": {"climb": 2.0}, "chosen": {"climb": 0.1}, "half": {"climb": 3.0}}
    assert {a: m["peak_left"] for a, m in page.share_of_peak(table).items()} == {
        "none": 1.0, "chosen": 0.05, "half": 1.5,
    }  # fmt: skip
    flat = {"none": {"climb": math.log(1.09)}, "chosen": {"climb": 0.0}}
    assert {m["peak_left"] for m in page.share_of_peak(flat).values()} == {1.0}  # nothing to take away


SMALL = {
    **page.SIZES,
    "sizes": {
        "isotropic": (10, 20, 40), "power_law": (10, 20, 40), "features": (8, 16, 32),
        "digits_width": (2, 4), "digits_rows": (30, 60),
    },
    "probe": {"isotropic": 20, "power_law": 20, "features": 16, "digits_width": 4, "digits_rows": 60},
    "columns": 20, "replicates": 3, "feature_rows": 17, "test_rows": 100, "validation_rows": 50,
    "net_rows": 40, "net_width": 4, "net_steps": 15,
}  # fmt: skip


@pytest.mark.parametrize("world", study.worlds)
def test_a_small_cell_of_every_arm_measures_what_is_declared(world: str) -> None:
    table = {}
    for arm in study.arms:
        cell = Cell(arm.name, world, {}, 3, SMALL)
        table[arm.name] = page.run_cell(cell, None)  # type: ignore[arg-type]
        assert page.run_cell(cell, None) == table[arm.name]  # type: ignore[arg-type]
    derived = page.share_of_peak(table)
    declared = {comparison.measure for comparison in study.comparisons}
    for measured in derived.values():
        assert declared <= set(measured)
        assert len(measured["curve"]) == len(measured["rate"]) == len(measured["sizes"])
        assert np.isfinite(measured["curve"]).all()
        assert measured["budget"] == table["none"]["budget"]
    assert set(table["none"]["rate"]) == {0.0}
    assert set(table["half"]["rate"]) == {0.5}
    if not world.startswith("digits"):
        assert table["none"]["near_threshold"] > 2 * table["chosen"]["near_threshold"]
        ours = {"oracle", "none", "chosen"}
        for place in range(3):  # the oracle tries all that the others may take
            best = min(table[arm]["curve"][place] for arm in ours)
            assert table["oracle"]["curve"][place] == pytest.approx(best)


def test_ridge_is_tuned_ridge() -> None:
    """Isotropic columns: dropout is nearly ridge, so the two tuned rates are alike."""
    chosen, ridge = (
        page.run_cell(Cell(arm, "isotropic", {}, 0, SMALL), None)["rate"]  # type: ignore[arg-type]
        for arm in ("chosen", "ridge")
    )
    assert ridge[2] == pytest.approx(chosen[2], abs=0.05)


def test_digits_are_split_without_overlap_and_only_training_labels_are_noisy() -> None:
    split = digits.digits_split(SMALL, 5, 60)
    images, labels = digits.digits()
    assert images.shape == (1797, 64)
    rows = torch.cat([split[f"{part}inputs"] for part in ("", "valid_", "test_")])
    assert len(rows) == len(torch.unique(rows, dim=0)) == 210
    place = {tuple(image.tolist()): int(label) for image, label in zip(images, labels)}
    for part, low, high in (("", 0.02, 0.4), ("valid_", 0.02, 0.4), ("test_", 0.0, 0.0)):
        truth = torch.tensor([place[tuple(image.tolist())] for image in split[f"{part}inputs"]])
        wrong = (split[f"{part}targets"].argmax(1) != truth).float().mean()
        assert low <= wrong <= high
    more = digits.digits_split(SMALL, 5, 90)
    assert torch.equal(more["inputs"][:60], split["inputs"])  # growing sizes contain each other
    assert torch.equal(more["test_inputs"], split["test_inputs"])
