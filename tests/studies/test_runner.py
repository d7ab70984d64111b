"""The runner on toy pages: fair tuning, cells kept, failures shown, results bound to their declaration."""

import importlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mickle.errors import ResourceError, UsageError
from mickle.events import Event, Warned
from mickle.studies import analysis
from mickle.studies.declaration import Arm, Comparison, Scale, Study
from mickle.studies.results import code_digest, declaration, declaration_hash, declared_hash, versions_read
from mickle.studies.runner import Place, reported_cells, run_study, tuning_cells

# A page with a log of its calls. The method's loss is half of the baseline's, smallest at rate 2.
PAGE = '''"""A toy: the method halves the loss."""

import os
import random
import time
from pathlib import Path

from mickle.studies.declaration import Arm, Cell, Comparison, Measurements, Scale, Study


def run_cell(cell: Cell, work: Path) -> Measurements:
    """The loss of one arm: half for the method, smallest at rate 2, harder in some seeds."""
    assert not list(work.iterdir())  # the folder is the cell's own
    (work / "leftover").write_text("x")
    if log := cell.values.get("log"):
        with open(log, "a") as stream:
            stream.write(f"{cell.arm} {cell.world} {cell.setting['rate']} {cell.seed}\\n")
    time.sleep(cell.values.get("sleep", 0.0))
    if (cell.arm, cell.seed) == ("method", cell.values.get("bad_seed")):
        match cell.values["bad"]:
            case "crash":
                os._exit(7)
            case "hang":
                time.sleep(300)
            case "raise":
                raise ValueError("two\\nlines")
            case "disk":
                raise OSError(28, "No space left on device")
            case "package":
                import a_package_that_nobody_has
            case "nan":
                return {"loss": float("nan"), "budget": 10}
            case "no budget":
                return {"loss": 1.0}
    noise = random.Random(f"{cell.arm} {cell.world} {cell.seed}").uniform(0.99, 1.01)
    difficulty = random.Random(cell.seed).uniform(1.0, 9.0) * (3.0 if cell.world == "hard" else 1.0)
    factor = 0.5 if cell.arm == "method" else 1.0
    loss = factor * difficulty * noise * (1.0 + abs(cell.setting["rate"] - 2))
    return {"loss": loss, "curve": [2 * loss, loss], "budget": 10}


GRID = ({"rate": 1}, {"rate": 2}, {"rate": 3})
study = Study(
    name="toy", title="A toy", paper="0000.00000", claim="half the loss", budget_unit="steps",
    rule="ratio at most 0.71",
    arms=(Arm("method", "halves", GRID), Arm("baseline", "does not", GRID)),
    worlds=("easy", "hard"),
    comparisons=(
        Comparison("both worlds", "method", "baseline", "loss", 0.5, "table 1", "lower", "ratio",
                   ("easy", "hard"), headline=True),
        Comparison("the easy world", "method", "baseline", "loss", 1.0, "table 2", "lower", "difference", ("easy",)),
    ),
    scales={"quick": Scale(2), "full": Scale(6)},
    run_cell=run_cell, tune_by="loss",
)
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The page above as a module that spawned processes can import."""
    return load(PAGE, tmp_path / "page", monkeypatch)


def load(source: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    name = f"toy_page_{abs(hash((source, folder)))}"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))
    study: Study = importlib.import_module(name).study
    return study


def at_scale(study: Study, **scale: Any) -> Study:
    return replace(study, scales={**study.scales, "full": replace(study.scales["full"], **scale)})


def comparable(result: dict[str, Any]) -> dict[str, Any]:
    """A result without the times it took."""
    runs = [{k: v for k, v in run.items() if k != "seconds"} for run in result["runs"]]
    return {**result, "runs": runs, "cell_seconds": 0}


def test_a_study_finds_the_effect_that_the_toy_has(toy: Study, tmp_path: Path) -> None:
    result = run_study(toy, "full", Place(tmp_path / "work", workers=0))
    both, easy = result["comparisons"]
    # Noise of at most 1 % a cell: the mean logarithm is within 0.02 of log 2.
    assert both["benefit"] == pytest.approx(math.log(2), abs=0.02)
    assert both["low"] < both["benefit"] < both["high"]
    assert (both["verdict"], both["seeds"], both["budget_ratio"]) == ("reproduced", 6, 1.0)
    assert both["claimed_benefit"] == pytest.approx(math.log(2))
    assert easy["verdict"] == "reproduced"
    assert result["failures"] == 0
    assert not (tmp_path / "work" / "running").exists() or not list((tmp_path / "work" / "running").iterdir())


def test_settings_are_chosen_on_seeds_that_are_not_reported_with_equal_trials(toy: Study, tmp_path: Path) -> None:
    log = tmp_path / "log"
    toy = at_scale(toy, values={"log": str(log)}, tuning_seeds=2)
    result = run_study(toy, "full", Place(tmp_path / "work", workers=0))
    assert {(e["world"], e["arm"], e["setting"]["rate"]) for e in result["chosen"]} == {
        (world, arm, 2) for world in ("easy", "hard") for arm in ("method", "baseline")
    }
    calls = [line.split() for line in log.read_text().splitlines()]
    tuning = [call for call in calls if int(call[3]) >= 1000]
    trials = {arm: sum(call[0] == arm for call in tuning) for arm in ("method", "baseline")}
    assert trials == {"method": 12, "baseline": 12}  # 3 settings, 2 worlds, 2 tuning seeds
    assert {int(call[3]) for call in tuning} == {1000, 1001}
    reported = [call for call in calls if int(call[3]) < 1000]
    assert {call[2] for call in reported} == {"2"}
    assert {int(call[3]) for call in reported} == set(range(6))
    assert len(reported) == 24


def test_tuning_values_are_for_the_tuning_phase_only(toy: Study) -> None:
    toy = at_scale(toy, values={"steps": 100, "width": 8}, tuning_values={"steps": 10})
    assert {tuple(cell.values.items()) for cell in tuning_cells(toy, "full")} == {(("steps", 10), ("width", 8))}
    chosen = {(world, arm.name): {"rate": 2} for world in toy.worlds for arm in toy.arms}
    values = {tuple(cell.values.items()) for cell in reported_cells(toy, "full", chosen)}
    assert values == {(("steps", 100), ("width", 8))}


def test_one_setting_each_needs_no_tuning(toy: Study) -> None:
    arms = tuple(replace(arm, grid=({"rate": 2},)) for arm in toy.arms)
    assert tuning_cells(replace(toy, arms=arms), "full") == []


def test_processes_give_the_same_result_as_one_after_another(toy: Study, tmp_path: Path) -> None:
    alone = run_study(toy, "quick", Place(tmp_path / "alone", workers=0))
    shared = run_study(toy, "quick", Place(tmp_path / "shared", workers=2))
    assert comparable(alone) == comparable(shared)


def test_finished_cells_are_not_run_again(toy: Study, tmp_path: Path) -> None:
    log = tmp_path / "log"
    toy = at_scale(toy, values={"log": str(log)})
    first = run_study(toy, "full", Place(tmp_path / "work", workers=0))
    assert len(log.read_text().splitlines()) == 12 + 24
    assert run_study(toy, "full", Place(tmp_path / "work", workers=0)) == first
    assert len(log.read_text().splitlines()) == 12 + 24


def test_cells_of_another_version_of_the_source_are_not_taken_for_this_one(toy: Study, tmp_path: Path) -> None:
    log = tmp_path / "log"
    toy = at_scale(toy, values={"log": str(log)})
    page = Path(sys.modules[toy.run_cell.__module__].__file__ or "")
    source = page.read_text()
    for changed in (source, source.replace("0.5 if", "0.6 if"), source):
        page.write_text(changed)
        run_study(toy, "full", Place(tmp_path / "work", workers=0))
    assert len(log.read_text().splitlines()) == 2 * (12 + 24)


def test_cells_are_kept_for_one_version_of_the_study_and_of_what_it_reads(
    toy: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, data = tmp_path / "log", tmp_path / "texts"
    data.mkdir()
    (data / "a.txt").write_text("a long text")
    toy = at_scale(replace(toy, reads=("python", "numpy", data)), values={"log": str(log)})

    def cells_run(study: Study) -> int:
        before = len(log.read_text().splitlines()) if log.exists() else 0
        result = run_study(study, "quick", Place(tmp_path / "work", workers=0))
        assert result["reads"] == versions_read(study)
        return len(log.read_text().splitlines()) - before

    toy = replace(toy, scales={**toy.scales, "quick": replace(toy.scales["quick"], values={"log": str(log)})})
    whole = 12 + 8
    assert [cells_run(toy), cells_run(toy)] == [whole, 0]
    assert [cells_run(replace(toy, version=2)), cells_run(toy)] == [whole, 0]
    (data / "a.txt").write_text("a text")
    assert [cells_run(toy), cells_run(toy)] == [whole, 0]
    monkeypatch.setattr("mickle.studies.results.installed_version", lambda name: "99")
    assert versions_read(toy)["numpy"] == "99"
    assert [cells_run(toy), cells_run(toy)] == [whole, 0]


def test_a_cell_during_which_the_source_changed_is_not_kept(
    toy: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = iter(["before", *["before"] * 3, *["after"] * 100])
    monkeypatch.setattr("mickle.studies.runner.code_digest", lambda study: next(digests))
    arms = tuple(replace(arm, grid=({"rate": 2},)) for arm in toy.arms)
    run_study(replace(toy, arms=arms), "quick", Place(tmp_path, workers=0))
    assert len(list(tmp_path.glob("cells/*.json"))) == 3


def test_a_replication_runs_on_other_seeds(toy: Study, tmp_path: Path) -> None:
    runs = run_study(toy, "full", Place(tmp_path, workers=0), seed=2)["runs"]
    assert {r["cell"]["seed"] for r in runs if r["phase"] == "reported"} == set(range(20_000, 20_006))
    assert {r["cell"]["seed"] for r in runs if r["phase"] == "tuning"} == {21_000}


def test_a_killed_study_goes_on_and_ends_the_same(toy: Study, tmp_path: Path) -> None:
    work, log = tmp_path / "work", tmp_path / "log"
    toy = at_scale(toy, values={"sleep": 0.02})
    script = (
        "import sys; from pathlib import Path; from dataclasses import replace; import importlib\n"
        f"sys.path.insert(0, {str(tmp_path / 'page')!r})\n"
        f"study = importlib.import_module({toy.run_cell.__module__!r}).study\n"
        "scale = replace(study.scales['full'], values={'sleep': 0.02})\n"
        "from mickle.studies.runner import Place, run_study\n"
        "run_study(replace(study, scales={**study.scales, 'full': scale}), 'full', "
        f"Place(Path({str(work)!r}), workers=0))\n"
    )
    running = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(work.glob("cells/*.json"))) < 9 and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    kept = len(list(work.glob("cells/*.json")))
    assert 9 <= kept < 36
    assert not log.exists()
    resumed = run_study(toy, "full", Place(work, workers=0))
    whole = run_study(toy, "full", Place(tmp_path / "whole", workers=0))
    assert comparable(resumed) == comparable(whole)


@pytest.mark.parametrize("bad", ["crash", "raise", "nan", "no budget", "hang"])
def test_a_cell_that_fails_is_reported_and_forbids_the_verdict(bad: str, toy: Study, tmp_path: Path) -> None:
    arms = tuple(replace(arm, grid=({"rate": 2},)) for arm in toy.arms)
    toy = replace(toy, arms=arms, worlds=("easy",), comparisons=(replace(toy.comparisons[0], worlds=("easy",)),))
    toy = at_scale(toy, values={"bad": bad, "bad_seed": 3}, cell_seconds=2.0)
    heard: list[Event] = []
    result = run_study(toy, "full", Place(tmp_path, heard.append, workers=2 if bad in ("crash", "hang") else 0))
    row = result["comparisons"][0]
    assert (row["missing_pairs"], row["seeds"], row["verdict"]) == (1, 5, "too small to tell")
    failed = [run for run in result["runs"] if run["failure"]]
    assert [(run["cell"]["arm"], run["cell"]["seed"]) for run in failed] == [("method", 3)]
    reasons = {"crash": "exit code 7", "raise": "ValueError: two lines", "nan": "not a finite number",
               "no budget": "did not measure its budget", "hang": "the limit of one cell"}  # fmt: skip
    assert reasons[bad] in failed[0]["failure"]
    assert [event for event in heard if isinstance(event, Warned)]
    assert result["failures"] == 1
    assert len(list(tmp_path.glob("cells/*.json"))) == 11  # the failed one is not kept: the next run tries it again


def test_a_missing_package_ends_the_run_at_once(toy: Study, tmp_path: Path) -> None:
    toy = at_scale(toy, values={"bad": "package", "bad_seed": 3})
    with pytest.raises(UsageError, match=r"not installed \(No module named 'a_package_that_nobody_has'\)"):
        run_study(toy, "full", Place(tmp_path, workers=0))
    lacking = replace(toy, reads=("numpy", "a_package_that_nobody_has"))
    with pytest.raises(UsageError, match=r"not installed \(a_package_that_nobody_has\)"):
        run_study(lacking, "full", Place(tmp_path / "before", workers=0))
    assert not (tmp_path / "before").exists()


def test_a_full_disk_ends_the_run_and_finished_cells_are_kept(toy: Study, tmp_path: Path) -> None:
    arms = tuple(replace(arm, grid=({"rate": 2},)) for arm in toy.arms)
    full = at_scale(replace(toy, arms=arms), values={"bad": "disk", "bad_seed": 3})
    with pytest.raises(ResourceError, match=r"method in easy, seed 3.*refused a write \(No space left on device\)"):
        run_study(full, "full", Place(tmp_path, workers=0))
    assert len(list(tmp_path.glob("cells/*.json"))) == 12


def test_a_tuning_trial_that_fails_loses(toy: Study, tmp_path: Path) -> None:
    toy = at_scale(toy, tuning_values={"bad": "raise", "bad_seed": 1000})
    with pytest.raises(UsageError, match="Every tuning trial of arm 'method' failed"):
        run_study(toy, "full", Place(tmp_path, workers=0))


def test_a_measure_that_no_cell_reports_is_an_error_and_not_a_missing_pair(toy: Study, tmp_path: Path) -> None:
    misspelt = replace(toy, comparisons=(replace(toy.comparisons[0], measure="los"),))
    with pytest.raises(UsageError, match="did not measure 'los'"):
        run_study(misspelt, "quick", Place(tmp_path, workers=0))
    with pytest.raises(UsageError, match="did not measure 'los'"):
        run_study(replace(toy, tune_by="los"), "quick", Place(tmp_path, workers=0))


def test_derived_measures_see_all_arms_of_one_world_and_seed(toy: Study, tmp_path: Path) -> None:
    def ranks(table: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        order = sorted(table, key=lambda arm: table[arm]["loss"])
        return {arm: {**table[arm], "rank": 1 + order.index(arm)} for arm in table}

    question = Comparison("rank", "method", "baseline", "rank", 1.0, "", "lower", "difference", toy.worlds, True)
    result = run_study(replace(toy, derive=ranks, comparisons=(question,)), "full", Place(tmp_path, workers=0))
    row = result["comparisons"][0]
    assert (row["method"], row["baseline"], row["benefit"], row["low"], row["p"]) == (1, 2, 1, 1, 0.0)


def test_worlds_are_averaged_within_a_seed_so_that_none_counts_as_a_seed() -> None:
    question = Comparison("c", "m", "b", "x", 0.5, "", "lower", "ratio", ("one", "two"), True)
    tables = {("one", seed): {"m": {"x": 1.0, "budget": 1}, "b": {"x": 2.0, "budget": 1}} for seed in range(5)} | {
        ("two", seed): {"m": {"x": 8.0, "budget": 3}, "b": {"x": 4.0, "budget": 1}} for seed in range(5)
    }
    row = analysis.compare_one(question, tables, list(range(5)))
    assert row["seeds"] == 5
    assert row["benefit"] == pytest.approx(0.0)  # halved in one world, doubled in the other
    assert row["budget_ratio"] == 2.0  # (1 + 3) / 2
    assert analysis.as_declared(math.log(2), "ratio", "lower") == pytest.approx(0.5)
    assert analysis.as_declared(math.log(2), "ratio", "higher") == pytest.approx(2.0)


UNFAIR: list[tuple[dict[str, Any], str]] = [
    ({"claim": ""}, "declares no claim"),
    ({"rule": ""}, "declares no rule"),
    ({"arms": (Arm("method", "", ({}, {})), Arm("baseline", "", ({},)))}, "unequal numbers of tuning trials"),
    ({"arms": (Arm("method", "", ()), Arm("baseline", "", ()))}, "no setting to run with"),
    ({"arms": (Arm("method", ""), Arm("method", ""))}, "same name"),
    ({"tune_by": ""}, "tune_by"),
    ({"arms": (Arm("method", "", ({}, {})), Arm("baseline", "", ({}, {})))}, "same setting twice"),
    ({"scales": {"quick": Scale(2, tuning_seeds=0), "full": Scale(5)}}, "no seed to choose"),
    ({"scales": {"quick": Scale(0), "full": Scale(5)}}, "has 0 seeds"),
    ({"scales": {"quick": Scale(2), "full": Scale(4)}}, "5 are the least for a verdict"),
    ({"scales": {"quick": Scale(2)}}, "quick and full"),
    ({"worlds": ("easy",)}, "names what is not declared: hard"),
]


@pytest.mark.parametrize(("change", "complaint"), UNFAIR)
def test_an_unfair_declaration_is_refused(change: dict[str, Any], complaint: str, toy: Study) -> None:
    with pytest.raises(UsageError, match=complaint):
        replace(toy, **change)


@pytest.mark.parametrize(
    ("better", "form", "effect"), [("lower", "ratio", 1.5), ("higher", "ratio", 0.5), ("lower", "difference", -0.1)]
)
def test_a_paper_effect_on_the_wrong_side_is_refused(better: str, form: str, effect: float, toy: Study) -> None:
    wrong = replace(toy.comparisons[0], better=better, form=form, paper_effect=effect)
    with pytest.raises(UsageError, match="is no benefit"):
        replace(toy, comparisons=(wrong,))


def test_a_study_has_one_headline(toy: Study) -> None:
    with pytest.raises(UsageError, match="headline"):
        replace(toy, comparisons=(replace(toy.comparisons[0], headline=False),))
    assert toy.headline.name == "both worlds"


SAME = [
    ('"""A toy: the method halves the loss."""', '"""Another docstring."""'),
    ("    assert not list", "    # a comment\n    assert not list"),
    ('claim="half the loss"', 'claim="half of the loss"'),
    ('"quick": Scale(2)', '"quick": Scale(3)'),  # another scale than the one asked about
    ("0.5 if cell.arm", "0.6 if cell.arm"),  # the code: whoever moves its numbers raises the version
    ('"table 1"', '"table 3"'),
    ('"halves"', '"makes half of it"'),
]
OTHER = [
    ('name="toy",', 'name="toy", version=2,'),
    ('rule="ratio at most 0.71"', 'rule="ratio at most 0.9"'),
    ('"full": Scale(6)', '"full": Scale(7)'),
    ('{"rate": 3})', '{"rate": 4})'),
    ('"loss", 0.5', '"loss", 0.7'),
    ('tune_by="loss"', 'tune_by="budget"'),
]


@pytest.mark.parametrize(("change", "same"), [(c, True) for c in SAME] + [(c, False) for c in OTHER])
def test_the_hash_changes_with_what_is_run_measured_or_ruled_and_not_with_prose(
    change: tuple[str, str], same: bool, toy: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert change[0] in PAGE
    changed = load(PAGE.replace(*change), tmp_path / "changed", monkeypatch)
    assert (declaration_hash(changed, "full") == declaration_hash(toy, "full")) is same
    stored = json.loads(json.dumps(declaration(changed, "full")))  # as a result has it
    assert declared_hash(stored) == declaration_hash(changed, "full")
    assert code_digest(changed) != code_digest(toy)


def test_an_unknown_scale_is_refused(toy: Study, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scale 'gpu'"):
        run_study(toy, "gpu", Place(tmp_path))
