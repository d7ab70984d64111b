"""The study's own arithmetic: fair arms, true repeats, equal parameters; and one small cell of each arm."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch

from mickle.errors import UsageError
from mickle.models.shape import DecoderConfig
from mickle.studies import token_crisis as page
from mickle.studies.declaration import Cell, problems
from mickle.studies.source_bytes import repeated_windows, source_bytes, unique_places
from mickle.studies.token_crisis import study

TINY = {"width": 16, "layers": 2, "heads": 2, "ffn_width": 16}
VALUES: dict[str, Any] = {
    **page.SIZES, "steps": 8, "rows": 4, "length": 8, "epochs": {"few": 2, "many": 8}, "held_out_rows": 8,
    "shapes": {"large": TINY, "small": {**TINY, "width": 8}, "proxy": {**TINY, "experts": 4, "experts_per_token": 2}},
}  # fmt: skip


def cell(arm: str, world: str = "many", setting: dict[str, float] | None = None, **values: Any) -> Cell:
    return Cell(arm, world, setting or {}, 0, {**VALUES, **values})


def run(*arguments: Any, **values: Any) -> dict[str, Any]:
    return page.run_cell(cell(*arguments, **values), None)  # type: ignore[arg-type]


def test_the_declaration_is_sound_and_fair() -> None:
    assert problems(study) == []
    assert {len(arm.grid) for arm in study.arms} == {4}
    strengths = {arm.name for arm in study.arms if arm.grid is not page.VOID}
    assert strengths.isdisjoint(page.PLAIN)
    assert set(page.PLAIN) | strengths == {arm.name for arm in study.arms}
    for comparison in study.comparisons:  # nothing void is compared
        for world in comparison.worlds:
            assert {comparison.method, comparison.baseline} <= set(
                page.ASKED.get(world, (comparison.method, comparison.baseline))
            )


@pytest.mark.parametrize(("steps", "unique"), [(8, 32), (10, 32), (11, 5)])
def test_each_unique_window_is_read_equally_often(steps: int, unique: int) -> None:
    places = unique_places(3, unique, 8)
    assert len(set(places.tolist())) == unique
    batches = [repeated_windows(places, 3, 4, 8, step) for step in range(steps)]
    read = Counter(row.numpy().tobytes() for batch in batches for row in batch["input_ids"])
    known = {source_bytes("")[0][place : place + 8].long().numpy().tobytes() for place in places.tolist()}
    assert set(read) <= known
    if len(known) == unique:  # true repeats, floor or ceil of them
        assert set(read.values()) <= {steps * 4 // unique, -(-steps * 4 // unique)}
    assert torch.equal(batches[1]["input_ids"][:, 1:], batches[1]["labels"][:, :-1])


def test_fewer_unique_windows_are_some_of_the_more() -> None:
    few, many = unique_places(5, 10, 16), unique_places(5, 200, 16)
    assert torch.equal(few, many[:10])
    assert not torch.equal(many, unique_places(6, 200, 16))
    with pytest.raises(UsageError, match="windows of 64, not"):
        unique_places(0, 10**8, 64)


@pytest.mark.parametrize("sizes", [page.SHAPES, page.GPU["shapes"]])
def test_the_proxy_has_the_parameters_and_a_third_of_the_work(sizes: dict[str, Any]) -> None:
    def shape(name: str) -> DecoderConfig:
        return page.shape(replace(cell("proxied"), values={**VALUES, "tuning": name == "proxy", "shapes": sizes}))

    dense, proxy = shape("large"), shape("proxy")
    assert proxy.parameters() == pytest.approx(dense.parameters(), rel=0.03)
    idle = proxy.layers * (proxy.experts - proxy.experts_per_token) * 3 * proxy.width * proxy.ffn_width
    assert 0.28 < (proxy.parameters() - idle) / dense.parameters() < 0.42


def test_the_corpora_of_the_scales_are_large_enough() -> None:
    for scale in study.scales.values():
        values = scale.values
        places = unique_places(0, values["steps"] * values["rows"], values["length"])
        assert len(places) == values["steps"] * values["rows"]
        assert values["steps"] * values["rows"] % max(values["epochs"].values()) == 0


def test_damage_and_healing_by_pencil() -> None:
    table = {
        "fresh": {"accuracy": 0.50, "loss": 2.0},
        "none": {"accuracy": 0.40, "loss": 4.0},
        "dropout": {"accuracy": 0.45, "loss": 2.5},
        "small-fresh": {"accuracy": 0.44, "loss": 2.2},
        "small": {"accuracy": 0.42, "loss": 2.4},
    }
    found = page.damages(table)
    assert found["dropout"]["healed"] == pytest.approx(0.5)
    assert found["dropout"]["healed_loss"] == pytest.approx(0.75)
    assert (found["none"]["healed"], found["fresh"]["healed"]) == (0, pytest.approx(1))
    assert found["none"]["damage"] == pytest.approx(0.10)
    assert found["small"]["damage"] == pytest.approx(0.02)
    flat = page.damages({arm: {"accuracy": 0.5, "loss": 2.0} for arm in ("fresh", "none", "dropout")})
    assert flat["dropout"]["healed"] == 0  # no damage: no share of it
    void = {arm: {"budget": 1, "score": 0.0} for arm in table}
    assert page.damages(void) is void


@pytest.mark.parametrize("arm", study.arms, ids=lambda arm: arm.name)
def test_a_small_cell_of_every_arm_measures_what_is_declared(arm: Any) -> None:
    measured = run(arm.name, "many", arm.grid[1])
    wanted = {c.measure for c in study.comparisons if arm.name in (c.method, c.baseline)}
    assert wanted - {"damage", "healed", "healed_loss"} <= set(measured)
    assert measured["score"] == -measured["accuracies"][-1]
    assert measured["best_loss"] <= measured["loss"]
    assert all(math.isfinite(x) for value in measured.values() for x in (value if isinstance(value, list) else [value]))
    if arm.name != "none" and arm.grid is not page.VOID:
        assert measured["losses"] != run("none")["losses"]


def test_late_dropout_is_none_until_it_begins_and_the_proxys_choice_is_dropout() -> None:
    none, late = run("none"), run("late", "many", {"dropout": 0.3})
    half = none["evaluated"].index(4) + 1
    assert late["losses"][:half] == none["losses"][:half]
    assert late["losses"][half:] != none["losses"][half:]
    dropout, proxied = (run(arm, "many", {"dropout": 0.3}) for arm in ("dropout", "proxied"))
    assert proxied["losses"] == dropout["losses"]
    assert run("proxied", "many", {"dropout": 0.3}, tuning=True)["parameters"] != dropout["parameters"]


def test_void_cells_train_nothing() -> None:
    assert set(run("late", "few", {"dropout": 0.1})) == {"budget", "score"}
    assert set(run("none", "many", {"trial": 0}, tuning=True)) == {"budget", "score"}
    assert "loss" in run("dropout", "few", {"dropout": 0.1}, tuning=True)


def test_a_run_that_blows_up_is_a_measurement() -> None:
    measured = run("slower", "many", {"learning_rate": 1e30})
    assert math.isfinite(measured["loss"])
    assert measured["loss"] >= math.log(256)
