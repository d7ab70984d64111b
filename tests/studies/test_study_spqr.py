"""The study's arithmetic on hand-made matrices, the bases it stands on, and one small cell of both worlds."""

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from mickle.studies import base_model, planted_outliers
from mickle.studies import spqr as page
from mickle.studies.declaration import Cell, problems
from mickle.studies.spqr import study

TINY = base_model.Base("tiny", 40_000, 270, 32, 256, 12, 4e-3)


def small(arm: str, world: str) -> Cell:
    values = {**page.SIZES, "base": asdict(TINY), "bases": 1, "calibration_windows": 8, "heldout_pages": 4,
              "compared_windows": 2, "outputs": 64, "inputs": 64, "rows": 256}  # fmt: skip
    return Cell(arm, world, {}, 0, values)


def test_the_declaration_is_sound_and_every_arm_is_a_method_of_the_verb() -> None:
    from pydantic import TypeAdapter

    from mickle.compression.methods import Method

    assert problems(study) == []
    assert {arm.name for arm in study.arms} == set(page.ARMS)
    for name, method in page.ARMS.items():
        if method:
            assert TypeAdapter(Method).validate_python(method).kind == name.split("-")[0] or "spqr" in method["kind"]


def test_sizes_that_are_compared_are_equal_by_the_formula() -> None:
    def formula(arm: str) -> float:
        from mickle.quantization.grouped import Layout

        method = page.ARMS[arm]
        two_level = method["kind"] == "spqr" and method.get("statistics", 3) == 3
        layout = Layout(128, 4096, method["bits"], method.get("group", 16), two_level)
        return layout.formula(method.get("outliers", 0.0) + (0.00105 if method.get("outliers") else 0.0))

    assert formula("spqr-3-none") == 3.625
    assert formula("spqr-4-none") == 4.625
    assert formula("spqr-4") < 4.7
    assert formula("spqr-3") == pytest.approx(3.95, abs=0.005)
    assert formula("spqr-3-more") == pytest.approx(formula("gptq-4-g128"), abs=0.005)
    assert formula("gptq-3-g32") == 4
    assert formula("gptq-4-g32") == 5


def test_planted_outliers_are_as_many_and_as_large_as_said() -> None:
    world = planted_outliers.planted_matrix(3, 64, 128, 0.01, 50)
    size = world.weight.abs().numpy() * math.sqrt(128)
    assert world.planted.sum() == round(0.01 * 64 * 128)
    assert size[world.planted].min() >= 8 - 1e-5
    assert size[world.planted].max() <= 20 + 1e-5
    assert size[~world.planted].max() < 6
    assert not torch.equal(world.calibration, world.test)
    again = planted_outliers.planted_matrix(3, 64, 128, 0.01, 50)
    assert torch.equal(world.weight, again.weight)
    assert torch.equal(world.test, again.test)


def test_precision_recall_and_error_by_pencil() -> None:
    planted, kept = np.zeros((2, 4), dtype=bool), np.zeros((2, 4), dtype=bool)
    planted[0, :2] = True
    kept[0, 1:] = True
    assert planted_outliers.found_outliers(planted, kept) == (1 / 3, 1 / 2)
    assert planted_outliers.found_outliers(planted, np.zeros_like(kept)) == (0, 0)
    world = planted_outliers.planted_matrix(0, 16, 16, 0.01, 40)
    assert planted_outliers.output_error(world, world.weight) == 0
    assert planted_outliers.output_error(world, 1.5 * world.weight) == pytest.approx(0.5, rel=1e-5)
    assert planted_outliers.output_error(world, torch.zeros(16, 16)) == pytest.approx(1, rel=1e-6)


def test_places_of_outliers_come_back_in_the_matrix_own_order() -> None:
    world = planted_outliers.planted_matrix(5, 32, 64, 0.01, 400)
    hessian = (world.calibration.T @ world.calibration).double()
    matrix = planted_outliers.quantized(world.weight, hessian, page.ARMS["spqr-3"])
    kept = planted_outliers.outlier_places(matrix)
    assert matrix.values is not None
    assert kept.sum() == len(matrix.values)
    error = (matrix.dequantized() - world.weight).abs().numpy()
    # Compensation moves a kept weight before it is kept, but never by a planted outlier's size.
    assert error[kept & world.planted].max() < 4 / 8


def test_the_search_for_a_threshold_keeps_as_many_as_asked() -> None:
    world = planted_outliers.planted_matrix(1, 64, 64, 0.02, 400)
    hessian = (world.calibration.T @ world.calibration).double()
    for share in (0.005, 0.02):
        matrix = planted_outliers.quantized(world.weight, hessian, {**page.ARMS["spqr-3"], "outliers": share})
        assert 0.7 * share <= matrix.outlier_share <= share
    matrix = planted_outliers.quantized(world.weight, hessian, page.ARMS["spqr-3-none"])
    assert matrix.outlier_share == 0
    assert matrix.formula_bits == 3.625


@pytest.mark.parametrize("arm", ["base", "rtn-3-g32", "gptq-4-g64", "nf4", "spqr-3", "no-leave-one-out"])
def test_a_small_planted_cell_measures_what_is_declared(arm: str, tmp_path: Path) -> None:
    cell = small(arm, "planted")
    found = page.run_cell(cell, tmp_path)
    assert {"error", "precision", "recall", "bits", "formula_bits", "budget"} <= set(found)
    assert found == page.run_cell(cell, tmp_path)


def test_leaving_out_finds_what_is_planted(tmp_path: Path) -> None:
    found, blind, gptq = (
        page.run_cell(small(arm, "planted"), tmp_path) for arm in ("spqr-3", "no-leave-one-out", "gptq-3-g32")
    )
    assert found["recall"] > 0.6 > 0.3 > blind["recall"]
    assert found["error"] < 0.6 * gptq["error"]


def test_a_small_decoder_cell_runs_the_verb_and_its_base_is_made_once(tiny_bases: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    base = page.run_cell(small("base", "decoder"), work)
    assert base["increase"] == page.ALLOWED
    assert base["divergence"] == 0
    found = page.run_cell(small("spqr-4", "decoder"), work)
    assert {"increase", "increase_floored", "divergence", "changed", "bits", "budget"} <= set(found)
    assert found["perplexity"] > 1
    assert found["bits"] > found["formula_bits"] > 4.6
    assert found["increase"] == pytest.approx(100 * (found["perplexity"] / base["perplexity"] - 1), abs=1e-3)
    folders = sorted(path.name for path in (tiny_bases / "mickle" / "bases").iterdir() if path.is_dir())
    assert len(folders) == 1
    assert folders[0].startswith("tiny-0-")


def test_a_base_depends_on_its_seed_and_waits_for_who_makes_it(
    tiny_bases: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mickle import storage
    from mickle.step import identity_hash

    first, other = base_model.base_folder(TINY, 0), base_model.base_folder(TINY, 1)
    assert first != other
    weights = [storage.load_tensors(folder / "model.safetensors") for folder in (first, other)]
    name = next(name for name, tensor in weights[0].items() if tensor.ndim == 2)
    assert not torch.equal(weights[0][name], weights[1][name])
    # Another process holds the lock of a third one: the call waits, and makes it when the lock is gone.
    waited: list[float] = []
    step = base_model.base_step(TINY, 2)
    held = storage.lock(first.parent / f".tiny-2-{identity_hash(step.identity())}.lock")
    held.__enter__()

    def wait(seconds: float) -> None:
        waited.append(seconds)
        held.__exit__(None, None, None)

    monkeypatch.setattr(base_model.time, "sleep", wait)
    assert (base_model.base_folder(TINY, 2) / "model.safetensors").is_file()
    assert waited == [base_model.SECONDS_BETWEEN_TRIES]


def test_modules_are_held_out_by_their_names() -> None:
    names = [name for name, _ in base_model.source_texts()]
    held = [name for name in names if base_model.held_out(name)]
    assert 0.05 < len(held) / len(names) < 0.15
    assert len(set(names)) == len(names)
    assert "json.encoder" in names
    assert "json" in names
    assert not any("test" in name.split(".") for name in names)
