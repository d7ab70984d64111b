"""Fitting the law: planted constants come back; too few runs are refused; runs from files; the pilot's own curve."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle import storage
from mickle.errors import UsageError
from mickle.training import repetition_fit
from mickle.training.repetition import C4, Law
from mickle.training.repetition_fit import bootstrap, fit, fit_scale
from mickle.training.repetition_runs import PastRun, nearest_pilot, pilots, read_runs


def planted(law: Law, noise: float, seed: int = 0) -> list[PastRun]:
    """60 runs: 4 sizes x 4 texts once, 4 sizes x 3 texts at 3 to 100 epochs; the loss off by ``noise`` of itself."""
    draw = np.random.default_rng(seed)
    single = [(size, text, text) for size in (1e7, 5e7, 2e8, 1e9) for text in (1e8, 4e8, 2e9, 1e10)]
    repeated = [
        (size, epochs * text, text)
        for size in (2e7, 1e8, 5e8, 1e9)
        for text in (1e8, 1e9, 4e9)
        for epochs in (3, 10, 30, 100)
    ]
    return [PastRun(*run, law.loss(*run) * math.exp(noise * draw.normal())) for run in (single + repeated)[:60]]


def test_sixty_noisy_runs_give_back_what_was_planted() -> None:
    """Token crisis, oracle 5: 0.5 % noise, R_D* within 10 %."""
    law = fit(planted(C4, 0.005))
    assert law.token_decay == pytest.approx(C4.token_decay, rel=0.1)
    assert law.parameter_decay == pytest.approx(C4.parameter_decay, rel=0.25)
    assert law.floor == pytest.approx(C4.floor, rel=0.05)
    assert law.most_epochs == pytest.approx(100)


@pytest.mark.parametrize("decay", [4.0, 40.0])
def test_without_noise_another_law_is_found_exactly(decay: float) -> None:
    other = Law(1.2, 300.0, 900.0, 0.3, 0.4, decay, 8.0)
    law = fit(planted(other, 0.0))
    for name in ("floor", "parameter_power", "token_power", "token_decay", "parameter_decay"):
        assert getattr(law, name) == pytest.approx(getattr(other, name), rel=1e-4)


def test_one_run_that_went_wrong_does_not_matter() -> None:
    runs = planted(C4, 0.001)
    runs[40] = PastRun(runs[40].parameters, runs[40].tokens, runs[40].unique, 2 * runs[40].loss)
    assert fit(runs).token_decay == pytest.approx(C4.token_decay, rel=0.1)


def test_intervals_hold_what_was_planted_and_narrow_with_the_noise() -> None:
    widths = []
    for noise in (0.002, 0.02):
        runs = planted(C4, noise)
        decays = np.array([law.token_decay for law in bootstrap(runs, fit(runs), 100)])
        low, high = np.quantile(decays, [0.025, 0.975])
        assert low < C4.token_decay < high
        widths.append(high - low)
    assert widths[0] < widths[1] / 2


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 6))
@settings(deadline=None)
def test_the_vectorised_law_is_the_law(size: float, text: float, epochs: float) -> None:
    run = PastRun(10 ** (6 + 5 * size), 10 ** (7 + 4 * text) * math.exp(epochs), 10 ** (7 + 4 * text), 1.0)
    predicted = repetition_fit._log_loss(repetition_fit._theta(C4)[None], repetition_fit._arrays([run]))
    assert math.exp(predicted[0, 0]) == pytest.approx(C4.loss(run.parameters, run.tokens, run.unique), rel=1e-12)


def test_runs_without_excess_parameters_leave_that_constant_alone() -> None:
    runs = [run for run in planted(C4, 0.0) if run.parameters < C4.fitting_parameters(run.unique)]
    runs += [PastRun(1e6, e * 1e9, 1e9, C4.loss(1e6, e * 1e9, 1e9)) for e in (2, 5, 20, 60)]
    runs += [PastRun(n, u, u, C4.loss(n, u, u)) for n in (1e6, 3e6, 6e6) for u in (1e9, 1e10, 1e11)]
    law = fit(runs, Law(**{**vars(C4), "parameter_decay": 7.0}))
    assert law.parameter_decay == pytest.approx(7.0)
    assert law.token_decay == pytest.approx(C4.token_decay, rel=1e-3)
    assert "R_N* of c4" in law.origin


def test_too_few_runs_say_what_is_missing() -> None:
    runs = planted(C4, 0.0)
    single = [run for run in runs if run.epochs == 1]
    for few, missing in (
        (single, "0 runs of several epochs, 3 are needed"),
        ([run for run in runs if run.epochs > 1 or run.parameters == 1e7], "1 sizes at one epoch, 3"),
        ([run for run in runs if run.epochs > 1 or run.unique == 1e8], "1 budgets of unique tokens at one epoch, 3"),
        ([], "0 sizes at one epoch"),
    ):
        with pytest.raises(UsageError, match=missing):
            fit(few)


def test_two_runs_fit_the_scale() -> None:
    truth = Law(**{**vars(C4), "floor": 0.9, "parameter_factor": 1.5 * C4.parameter_factor,
                   "token_factor": 1.5 * C4.token_factor})  # fmt: skip
    runs = [PastRun(*run, truth.loss(*run)) for run in ((1e7, 1e9, 1e9), (1e8, 1e9, 2e8))]
    law = fit_scale(runs)
    assert law.floor == pytest.approx(0.9, rel=1e-3)
    assert law.parameter_factor == pytest.approx(truth.parameter_factor, rel=1e-3)
    assert (law.token_decay, law.token_power) == (C4.token_decay, C4.token_power)
    assert law.fitting_parameters(1e9) == pytest.approx(C4.fitting_parameters(1e9))
    with pytest.raises(UsageError, match="two that do"):
        fit_scale(runs[:1] * 3)


def test_a_pilot_finds_the_turn_of_its_curve() -> None:
    def loss(epochs: float) -> float:
        return 2 + 0.1 * (math.log(epochs) - math.log(9)) ** 2

    curve = [PastRun(1e6, epochs * 1e5, 1e5, loss(epochs)) for epochs in (1, 4, 16, 64)]
    found = pilots([*curve, PastRun(5e6, 1e5, 1e5, 1.0)])
    assert len(found) == 1
    assert found[0].best_epochs == pytest.approx(9)
    assert found[0].best_loss == pytest.approx(2)
    assert not found[0].at_edge
    rising = pilots([PastRun(1e6, epochs * 1e5, 1e5, epochs) for epochs in (1, 4, 16)])[0]
    assert (rising.best_epochs, rising.at_edge) == (1, True)
    both = pilots([*curve, *(PastRun(1e6, epochs * 1e5, 1e5, loss(epochs) + 2) for epochs in (1, 4, 16, 64))])
    assert both[0].best_loss == pytest.approx(3)  # two seeds are averaged
    assert nearest_pilot([*found, rising], 1e6, 1e5) is found[0]
    assert nearest_pilot([], 1e6, 1e5) is None


def test_three_kinds_of_file(tmp_path: Path) -> None:
    rows = [{"N": 1e6, "D": 2e6, "U": 1e6, "loss": 3.5}, {"N": 2e6, "D": 1e6, "U": 4e6, "loss": 3.0, "note": "x"}]
    (tmp_path / "runs.json").write_text(json.dumps(rows))
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "runs.csv").write_text("N,loss, D,U\n1e6,3.5,2e6,1e6\n2e6,3.0,1e6,4e6\n")
    expected = [PastRun(1e6, 2e6, 1e6, 3.5), PastRun(2e6, 1e6, 1e6, 3.0)]  # no more tokens are unique than were read
    for name in ("runs.json", "runs.jsonl", "runs.csv"):
        assert read_runs(tmp_path / name) == expected
    assert expected[0].epochs == 2


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.csv", "N,D,U,loss\n1,2,3,4\n1,2,x,4\n", r"U is 'x'[\s\S]*r.csv:3"),
        ("r.csv", "N,D,U\n1,2,3\n", r"lacks a number[\s\S]*r.csv:2"),
        ("r.csv", "N,D,U,loss\n1,2,3,nan\n", r"loss is 'nan'"),
        ("r.csv", "", "no run here"),
        ("r.json", "{}", "lacks a number"),
        ("r.json", "[1]", r"not an object[\s\S]*item 1"),
        ("r.json", "[{", "not valid JSON"),
        ("r.jsonl", '{"N": 1, "D": 1, "U": 1, "loss": 1}\n{"N"', r"not JSON[\s\S]*r.jsonl:2"),
        ("r.jsonl", '{"N": 1, "D": 1, "U": 1, "loss": -1}', "loss is '-1'"),
    ],
)
def test_files_that_are_wrong_name_the_line(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as error:
        read_runs(tmp_path / name)
    assert re.search(said, str(error.value))


def pretrained(folder: Path, epochs: int, vocabulary: int = 512, loss: float | None = 3.0) -> None:
    """A folder as `mickle pretrain` leaves it, as far as a run is read from it."""
    with storage.write_folder(
        folder,
        kind="model",
        summary={
            "parameters": 1000,
            "tokens_read": 5000 * epochs,
            "training_tokens": 5000,
            "last_evaluation": {} if loss is None else {"heldout_loss": loss},
            "plan": {"vocabulary_size": vocabulary},
        },
    ):
        pass


def test_models_are_runs(tmp_path: Path) -> None:
    for epochs in (1, 4):
        pretrained(tmp_path / f"epochs-{epochs}", epochs, loss=3.0 / epochs)
    (tmp_path / "notes").mkdir()
    assert read_runs(tmp_path) == [PastRun(1000, 5000, 5000, 3.0), PastRun(1000, 20000, 5000, 0.75)]
    pretrained(tmp_path / "other", 2, vocabulary=1024)
    with pytest.raises(UsageError, match="different vocabularies"):
        read_runs(tmp_path)


def test_a_model_without_held_out_pages_is_no_run(tmp_path: Path) -> None:
    pretrained(tmp_path / "blind", 1, loss=None)
    with pytest.raises(UsageError, match="lacks a number"):
        read_runs(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no run here"):
        read_runs(tmp_path / "empty")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_runs(tmp_path / "runs.csv")
