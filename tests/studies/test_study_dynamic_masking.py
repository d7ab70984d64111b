"""The study's own arithmetic, its worlds, the invented language; and one small cell of each kind."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from mickle.data.masking import MaskedBatches, vocabulary_of
from mickle.data.mixture import Mixture
from mickle.studies import agreement, masking_worlds
from mickle.studies import dynamic_masking as page
from mickle.studies.declaration import Cell, problems
from mickle.studies.dynamic_masking import study

ARMS = [arm.name for arm in study.arms]


def small(arm: str, world: str = "grammar", trial: int = 1) -> Cell:
    values = {**page.SIZES, "width": 16, "heads": 2, "ffn_width": 16, "layers": 1, "length": 12, "rows": 8,
              "steps": {"docs": 8, "grammar": 8}, "half_runs": ("grammar",), "sentences": 400, "held_out_rows": 20,
              "pairs": 3}  # fmt: skip
    return Cell(arm, world, {"trial": trial}, 0, values)


def test_the_declaration_is_sound_and_fair() -> None:
    assert problems(study) == []
    assert {len(arm.grid) for arm in study.arms} == {4}
    for scale in study.scales.values():
        assert len(scale.values["learning_rates"]) == len(scale.values["constants"]) == 4
        assert scale.tuning_values["steps"] == {k: n // 2 for k, n in scale.values["steps"].items()}
        assert {rate for _, rate in scale.values["constants"]} <= set(scale.values["learning_rates"])


def test_the_arms_rates_are_the_paper_s() -> None:
    def rates(arm: str, trial: int = 1) -> list[float]:
        masking, _ = page.arm_settings(small(arm, trial=trial))
        return [masking.rate(step, 100) for step in (0, 50, 100)]

    assert rates("constant-15") == [0.15] * 3
    assert rates("linear") == rates("subset") == pytest.approx([0.30, 0.225, 0.15])
    assert rates("reverse") == pytest.approx([0.15, 0.225, 0.30])
    assert [rates("best-constant", trial)[0] for trial in range(4)] == [0.30, 0.30, 0.45, 0.45]
    assert page.arm_settings(small("subset"))[0].subset == 0.15
    assert [page.arm_settings(small("linear", trial=t))[1] for t in range(4)] == list(page.LEARNING_RATES)
    assert [page.arm_settings(small("best-constant", trial=t))[1] for t in range(4)] == [4e-3, 8e-3] * 2


def test_arms_of_a_seed_share_what_is_hidden() -> None:
    world = page.world_of(small("linear"))
    batches, vocabulary = Mixture(world.training, 8, 12, 3), vocabulary_of(world.tokenizer)

    def made(arm: str, trial: int = 1) -> dict[str, torch.Tensor]:
        return MaskedBatches(batches, vocabulary, page.arm_settings(small(arm, trial=trial))[0], 100, 3)(40)

    low, middle, high = made("constant-15"), made("linear"), made("best-constant", 3)
    for less, more in ((low, middle), (middle, high)):
        assert bool(((less["labels"] >= 0) <= (more["labels"] >= 0)).all())
    assert torch.equal(made("subset")["input_ids"], middle["input_ids"])
    assert int((made("subset")["labels"] >= 0).sum()) < int((middle["labels"] >= 0).sum())


def test_a_baseline_needs_its_own_steps() -> None:
    table = {
        "constant-15": {"loss": 3.0, "loss_at_half": 3.2, "budget": 100},
        "best-constant": {"loss": 2.8, "loss_at_half": 3.0, "budget": 100},
        "linear": {"loss": 2.9, "loss_at_half": 3.1, "budget": 100},
    }
    found = page.steps_to_baselines(table)
    assert found["constant-15"]["steps_to_constant_15"] == 100
    assert found["best-constant"]["steps_to_best_constant"] == 100
    assert found["linear"]["steps_to_constant_15"] == pytest.approx(100 * 2**-0.5)
    assert found["linear"]["steps_to_best_constant"] == pytest.approx(100 * 2**0.5)
    grammar = {arm: {"loss": 1.0, "budget": 9} for arm in table}
    assert page.steps_to_baselines(grammar) == grammar


def test_the_language_agrees_and_its_wrong_sentences_cannot_occur() -> None:
    draw = random.Random(5)
    for _ in range(300):
        made = agreement.sentence(draw)
        nouns = [word for word in made.words if word[0] == "n"]
        verb, thing = made.words[made.verb], made.words[made.object]
        assert nouns[0][-1] == verb[-1] == made.number
        assert int(verb[1:-1]) % 4 == int(thing[1:-1]) % 4
        assert set(made.words) <= set(agreement.lexicon())
    kinds = {}
    for good, bad, kind in agreement.minimal_pairs(50):
        kinds.setdefault(kind, []).append((good.split(), bad.split()))
    assert sorted(kinds) == ["agreement-0", "agreement-1", "agreement-2", "object"]
    for kind, pairs in kinds.items():
        for good, bad in pairs:
            (at,) = [i for i, (a, b) in enumerate(zip(good, bad, strict=True)) if a != b]
            before = [word for word in good[:at] if word[0] == "n"]
            if kind == "object":
                assert int(bad[at][1:-1]) % 4 != int(good[at][1:-1]) % 4
                assert bad[at][-1] == good[at][-1]
            else:
                assert len(before) == int(kind[-1]) + 1
                assert bad[at][-1] != before[0][-1] == good[at][-1]


def test_worlds_hold_out_what_is_not_trained_on_and_masks_never_change() -> None:
    cell = small("linear")
    world = page.world_of(cell)
    assert page.world_of(replace(cell, seed=9)) is world
    assert len(world.training.starts) == 400
    assert len(world.held_out.starts) == 40
    batches = masking_worlds.fixed_batches(world, 12, 20)
    assert sum(len(batch["labels"]) for batch in batches) == 20
    hidden = np.mean([float((batch["labels"] >= 0).float().mean()) for batch in batches])
    assert 0.05 < hidden < 0.25
    assert agreement.sentences(7) == agreement.sentences(9)[:7]


def test_docstrings_of_a_package(tmp_path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "a_package_of_this_test"
    (folder / "tests").mkdir(parents=True)
    long, short = ("A sentence that explains what this is for, and how it is to be used, with care. " * 2, "Short.")
    source = f'"""{short}"""\nclass A:\n    """{long}"""\n    def f(self):\n        "{long}"\n        return "{long}"\n'
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text(source)
    (folder / "b.py").write_text("x = 1\n")
    (folder / "tests" / "c.py").write_text(source)
    found = [[text.strip() for text in file] for file in masking_worlds.docstrings(folder.name)]
    assert found == [[], [long.strip()] * 2, []]


@pytest.mark.parametrize("arm", ARMS)
def test_a_small_cell_of_every_arm_measures_what_is_declared(arm: str) -> None:
    measured = page.run_cell(small(arm), None)  # type: ignore[arg-type]
    assert {"loss", "loss_at_half", "score", "budget", "accuracy", "pairs_all", "pairs_agreement-2"} <= set(measured)
    assert measured["evaluated"] == [2, 4, 6, 8]
    assert 0 < measured["loss"] < 2 * np.log(agreement.tokenizer().size)
    again = page.run_cell(small(arm), None)  # type: ignore[arg-type]
    assert again["losses"] == measured["losses"]


def test_a_run_that_blows_up_is_a_measurement() -> None:
    cell = small("linear")
    wild = replace(cell, values={**cell.values, "learning_rates": (1e30,) * 4})
    assert page.run_cell(wild, None)["loss"] >= np.log(agreement.tokenizer().size)  # type: ignore[arg-type]
