"""The verb, the published results and the generated tables; the contract that every study page must keep."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import mickle.studies
from mickle import storage
from mickle.errors import UsageError
from mickle.evaluation.compare import LEAST_SEEDS
from mickle.events import ignore
from mickle.step import execute
from mickle.studies import markdown, results, table
from mickle.studies.declaration import open_study, page_names, problems
from mickle.studies.figure import draw
from mickle.studies.study import RunStudy, listing
from mickle.studies.systems import SYSTEMS

ROOT = Path(__file__).resolve().parents[2]
CLEAN = {"commit": "0123456789abcdef", "dirty": False}


# ---------------------------------------------------------------- the contract of every page


def test_every_system_has_one_row_and_every_page_is_a_system() -> None:
    assert len({system.name for system in SYSTEMS}) == 23
    assert len({system.arxiv for system in SYSTEMS}) == 23
    assert all(re.fullmatch(r"230[56]\.\d{5}", system.arxiv) for system in SYSTEMS)
    assert set(page_names()) <= {system.name for system in SYSTEMS}


def test_a_module_named_like_a_system_declares_a_study() -> None:
    modules = {path.stem for folder in mickle.studies.__path__ for path in Path(folder).glob("*.py")}
    assert modules & {system.name for system in SYSTEMS} == set(page_names())


@pytest.mark.parametrize("name", page_names())
def test_every_page_declares_a_fair_study_of_its_paper(name: str) -> None:
    study = open_study(name)
    system = next(system for system in SYSTEMS if system.name == name)
    assert problems(study) == []
    assert study.paper == system.arxiv
    assert study.claim.strip()
    assert study.rule.strip()
    assert len({len(arm.grid) for arm in study.arms}) == 1
    assert study.scales["full"].seeds >= LEAST_SEEDS
    assert study.headline.paper.strip()
    assert study.headline.paper_effect > 0


def test_listing_the_pages_does_not_import_torch() -> None:
    code = "import sys; from mickle.studies.study import listing; listing(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---------------------------------------------------------------- the worked example of docs/studies.md


@pytest.fixture
def momentum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The documentation's example as a page of the studies folder; returns its file."""
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found
    folder = tmp_path / "pages"
    folder.mkdir()
    page = folder / "momentum.py"
    page.write_text(found[1], encoding="utf-8")
    monkeypatch.setattr(mickle.studies, "__path__", [*mickle.studies.__path__, str(folder)])
    monkeypatch.delitem(sys.modules, "mickle.studies.momentum", raising=False)
    monkeypatch.setattr(results, "source_state", lambda: CLEAN)
    return page


@pytest.fixture
def folder(momentum: Path, tmp_path: Path) -> Path:
    """The finished folder of the example at full scale."""
    return execute(RunStudy(name="momentum", scale="full", workers=0), tmp_path / "out", ignore)


def test_the_example_of_the_documentation_runs_to_its_verdict(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "momentum-full.json",
        "momentum-full.md",
        "momentum-full.svg",
        "settings.yaml",
    ]
    result = storage.read_json(folder / "momentum-full.json")
    declared, row = results.headline(result)
    # Theory: sqrt(100) against 100 up to a constant; the runs are deterministic.
    assert row["verdict"] == "reproduced"
    assert row["high"] > row["low"] > 0
    assert row["seeds"] == 8
    assert result["source"] == CLEAN
    assert result["command"] == "mickle study momentum --scale full"
    assert {"processor", "cores", "versions"} <= result["machine"].keys()
    assert storage.open_folder(folder, "study").meta["summary"]["verdict"] == "reproduced"
    text = (folder / "momentum-full.md").read_text(encoding="utf-8")
    assert declared["name"] in text
    assert "| reproduced |" in text
    assert "0123456789ab" in text


def test_a_quick_run_of_three_seeds_is_indicative_and_gives_no_verdict(momentum: Path, tmp_path: Path) -> None:
    out = execute(RunStudy(name="momentum", workers=0), tmp_path / "quick", ignore)
    result = storage.read_json(out / "momentum-quick.json")
    assert result["indicative"]
    assert {row["verdict"] for row in result["comparisons"]} == {"indicative"}  # however clear it is
    assert "| indicative |" in (out / "momentum-quick.md").read_text(encoding="utf-8")
    assert storage.open_folder(out, "study").meta["summary"]["verdict"] == "indicative"


def test_workers_and_publishing_are_not_part_of_what_a_study_is(momentum: Path, tmp_path: Path) -> None:
    plain = RunStudy(name="momentum").identity()
    assert RunStudy(name="momentum", workers=1, publish=tmp_path / "elsewhere").identity() == plain
    assert RunStudy(name="momentum", scale="full").identity() != plain


def test_a_finished_folder_is_not_taken_for_what_changed_code_would_make(folder: Path, momentum: Path) -> None:
    """A function that returns something else, in the same command with the same --out."""
    step = RunStudy(name="momentum", scale="full", workers=0)
    assert execute(step, folder, ignore) == folder  # done already
    momentum.write_text(momentum.read_text(encoding="utf-8").replace("1e-9", "1e-8"), encoding="utf-8")
    with pytest.raises(UsageError, match="fingerprint.code"):
        execute(step, folder, ignore)


def test_dry_run_counts_cells_and_says_the_rule(momentum: Path) -> None:
    forecast, preview = RunStudy(name="momentum", scale="full").dry_run()
    assert "8 tuning cells and 16 reported ones" in preview
    assert "centre at most 0.58" in preview
    assert forecast.seconds == 1800


def test_an_unknown_study_and_scale_name_the_nearest(momentum: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 'momentum'"):
        RunStudy(name="momentun").identity()
    with pytest.raises(UsageError, match="no scale 'gpu'"):
        RunStudy(name="momentum", scale="gpu").identity()
    with pytest.raises(UsageError, match="No study is named"):
        RunStudy().identity()


def test_a_page_anywhere_runs_in_processes_and_is_known_by_its_content(
    momentum: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = momentum.rename(tmp_path / "my_momentum.py")
    text = page.read_text(encoding="utf-8").replace('name="momentum"', 'name="my_momentum"')
    page.write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [*sys.path])
    step = RunStudy(name=str(page), scale="quick", workers=2)
    result = storage.read_json(execute(step, tmp_path / "own", ignore) / "my_momentum-quick.json")
    assert result["command"] == f"mickle study {page} --scale quick"
    assert result["source"] == {**CLEAN, "page": storage.hash_file(page)}
    assert result["failures"] == 0 and step.after(tmp_path) == f"mickle show {tmp_path}"
    assert step.identity()["settings"]["name"] == "my_momentum"
    with pytest.raises(UsageError, match="no place in Mickle's table"):
        execute(RunStudy(name=str(page), publish=tmp_path / "p"), tmp_path / "other", ignore)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("nowhere.py", None, "no such page of a study"),
        ("json.py", "study = 1", "name of another module"),
        ("plain_page.py", "study = 1", "declares no study"),
    ],
)
def test_what_is_no_page_is_refused(
    name: str, text: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=said):
        RunStudy(name=str(tmp_path / name)).identity()


def test_without_a_name_all_are_listed_with_their_last_verdict(folder: Path, tmp_path: Path) -> None:
    published = tmp_path / "published"
    assert "not measured at full" in listing(results.published(published)).split("momentum ")[1].splitlines()[0]
    results.publish(folder, published)
    line = listing(results.published(published)).split("momentum ")[1].splitlines()[0]
    assert re.fullmatch(r" *reproduced: 0\.\d+ \[0\.\d+, 0\.\d+\] x", line)
    result = storage.read_json(published / "momentum-full.json")
    result["reads"]["numpy"] = "1.0"
    line = listing({("momentum", "full"): result}).split("momentum ")[1].splitlines()[0]
    assert re.search(r"x \(made with numpy 1\.0, here \d", line)
    assert RunStudy().answer().startswith(page_names()[0])
    assert RunStudy(name="momentum").answer() == ""


def test_the_list_of_an_installed_package_has_the_published_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # not the checkout
    assert listing().count("not measured") == 0
    assert "reproduced" in listing()
    assert {name for name, _ in results.shipped()} == set(page_names())


def test_a_result_from_changed_source_is_not_published(
    momentum: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "source_state", lambda: {**CLEAN, "dirty": True})
    step = RunStudy(name="momentum", workers=0, publish=tmp_path / "published")
    with pytest.raises(UsageError, match="uncommitted"):
        step.run(tmp_path, ignore)
    out = execute(RunStudy(name="momentum", workers=0), tmp_path / "out", ignore)
    with pytest.raises(UsageError, match="uncommitted"):
        results.publish(out, tmp_path / "published")
    assert not (tmp_path / "published").exists()


def test_the_state_of_the_source_is_what_git_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "SOURCE", tmp_path)
    assert results.source_state() == {"commit": "", "dirty": True}  # no repository
    for command in ("init -q", "-c user.name=a -c user.email=a@b commit -q --allow-empty -m first"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    state = results.source_state()
    assert re.fullmatch("[0-9a-f]{40}", state["commit"])
    assert not state["dirty"]
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("x")
    (tmp_path / "README.md").write_text("x")
    assert not results.source_state()["dirty"]
    (tmp_path / "code.py").write_text("x")
    assert results.source_state()["dirty"]


# ---------------------------------------------------------------- tables and figure


def checkout(tmp_path: Path, readme: str) -> Path:
    root = tmp_path / "checkout"
    (root / "docs" / "results").mkdir(parents=True)
    (root / "README.md").write_text(readme, encoding="utf-8")
    return root


def test_tables_are_written_checked_and_found_stale(
    folder: Path, momentum: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = [f"<!-- table: {name} -->\n<!-- end of table -->\n" for name in ("systems", "momentum-full")]
    marked = f"before\n{marks[0]}{marks[1]}after\n"
    root = checkout(tmp_path, marked)
    assert table.main(["--root", str(root), "--publish", str(folder)]) == 0
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| **steps to a billionth of the loss** |" in text
    assert "Stale" not in text
    assert table.main(["--root", str(root), "--check"]) == 0
    (root / "README.md").write_text(text.replace("reproduced", "partly"), encoding="utf-8")
    assert table.main(["--root", str(root)]) == 1
    assert table.main(["--root", str(root), "--write"]) == 0
    assert (root / "README.md").read_text(encoding="utf-8") == text

    momentum.write_text(momentum.read_text(encoding="utf-8").replace('name="momentum",', 'name="momentum", version=2,'),
                        encoding="utf-8")  # fmt: skip
    monkeypatch.delitem(sys.modules, "mickle.studies.momentum")
    assert results.is_stale(storage.read_json(root / "docs" / "results" / "momentum-full.json"))
    assert table.main(["--root", str(root), "--check"]) == 1
    table.main(["--root", str(root), "--write"])
    assert "Stale" in (root / "README.md").read_text(encoding="utf-8")


def test_the_front_table_says_plainly_what_is_not_built_or_not_measured(folder: Path, monkeypatch: Any) -> None:
    known = {("momentum", "full"): storage.read_json(folder / "momentum-full.json")}
    rows = table.systems_table({}).splitlines()[2:]
    assert [row.split(" ")[1] for row in rows] == [str(number) for number in range(1, 24)]
    for system, row in zip(SYSTEMS, rows):
        assert ("not yet built" in row) == (system.name not in page_names())
    front = table.front_table({})
    missing = [system.label for system in SYSTEMS if system.name not in page_names()]
    assert front.count("built, not yet measured") == len(SYSTEMS) - len(missing)
    assert front.endswith(f"Not yet built: {', '.join(missing)}.")
    stand_in = table.System("Momentum", "0", "claim")
    assert "built, not yet measured" in table.system_row(stand_in, True, {}, {})
    row = table.system_row(stand_in, True, known, table.corrected(known))
    assert "0.333 x (theory: sqrt(condition) against condition)" in row
    assert "**reproduced** |" in row
    assert re.search(r"0\.\d+ \[0\.\d+, 0\.\d+\] x \(steps, 8 seeds\)", row)
    assert "`mickle study momentum --scale full`" in row
    known["momentum", "full"]["hash"] = "of another version"
    assert table.corrected(known) == {}
    row = table.system_row(stand_in, True, known, {})
    assert "stale: measured before the study was changed, then **reproduced** |" in row


def test_a_verdict_that_does_not_survive_the_correction_is_marked() -> None:
    row: dict[str, Any] = {"verdict": "partly", "p_holm": None, "larger": False}
    gain = {"no_gain": False}
    assert table.front_verdict(gain, row, 0.2) == "**partly** (not after Holm's correction: p 0.2)"
    assert table.front_verdict(gain, row, 0.01) == "**partly**"
    assert table.front_verdict(gain, {**row, "verdict": "too small to tell"}, 0.9) == "**too small to tell**"
    within = {**row, "p_holm": 0.054}  # in a study's own table, and on the front
    assert markdown.verdict_words(gain, within) == "partly (not after Holm's correction: p 0.054)"
    assert table.front_verdict(gain, within, 0.01) == "**partly** (not after Holm's correction: p 0.054)"
    assert markdown.verdict_words(gain, {**row, "p_holm": 0.05}) == "partly"


def test_a_verdict_says_where_it_is_larger_and_where_the_paper_has_no_gain() -> None:
    row = {"verdict": "reproduced", "p_holm": 0.001, "larger": True}
    assert markdown.verdict_words({"no_gain": False}, row) == "reproduced, by more than twice the paper's margin"
    row = {"verdict": "opposite", "p_holm": 0.001, "larger": False}
    assert markdown.verdict_words({"no_gain": False}, row) == "opposite"
    assert markdown.verdict_words({"no_gain": True}, row) == "opposite: a gain where the paper has none"


def test_a_mark_without_end_or_result_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not closed"):
        table.fill("<!-- table: systems -->\n", Path("README.md"), {})
    with pytest.raises(UsageError, match="no published result 'sophie-full'"):
        table.fill("<!-- table: sophie-full -->\n<!-- end of table -->", Path("README.md"), {})


def test_effects_are_said_in_the_units_of_the_declaration() -> None:
    ratio = {"form": "ratio", "better": "lower"}
    row = {"benefit": 0.6931471805599453, "low": 0.0, "high": 1.3862943611198906}
    assert markdown.measured_effect(ratio, row) == "0.5 [0.25, 1] x"
    assert markdown.measured_effect({"form": "ratio", "better": "higher"}, row) == "2 [1, 4] x"
    gain = {"form": "difference", "better": "lower"}  # what is printed is the measure: it fell
    assert markdown.measured_effect(gain, row) == "-0.693 [-1.39, -0]"
    assert markdown.measured_effect({**gain, "better": "higher"}, row) == "+0.693 [+0, +1.39]"
    assert markdown.measured_effect(gain, {"benefit": None}) == "not measured"
    assert markdown.measured_effect(ratio, {**row, "low": None, "high": None}) == "0.5 [?, ?] x"


def test_effects_are_said_in_the_words_of_the_comparison() -> None:
    """A cost of 0.165 where a quarter is allowed; the paper's is nothing."""
    row = {"benefit": 0.085, "low": -0.15, "high": 0.32, "baseline": 0.25, "claimed_benefit": 0.25}
    cost = {"form": "difference", "better": "lower", "no_gain": False, "says": "costs {value:.1%} of it"}
    assert markdown.measured_effect(cost, row) == "costs 16.5 % [-7.0 %, 40.0 %] of it"
    assert markdown.paper_effect(cost, row) == "costs 0.0 % of it"
    assert markdown.measured_effect({**cost, "says": "{points:+.0f} points"}, row) == "-8 [-32, +15] points"
    assert markdown.measured_effect({**cost, "says": "{gain:.2f} gained"}, row) == "0.09 [-0.15, 0.32] gained"
    assert markdown.paper_effect({**cost, "says": "", "no_gain": True}, row) == "no gain of -0.25"
    steps = {"form": "ratio", "better": "lower", "says": "needs {ratio:.0%} of the steps"}
    halved = {"benefit": 0.6931471805599453, "low": 0.0, "high": 1.3862943611198906}
    assert markdown.measured_effect(steps, halved) == "needs 50 % [25 %, 100 %] of the steps"


@pytest.mark.parametrize("name", page_names())
def test_what_a_page_says_can_be_filled(name: str) -> None:
    for comparison in open_study(name).comparisons:
        text = markdown.said(asdict(comparison), [1.0, 0.9, 1.1], 1.0)
        assert re.search(r"\d", text), comparison.name


def test_a_choice_at_the_edge_of_its_grid_is_said() -> None:
    grid = [{"rate": rate, "kind": "a"} for rate in (1, 2, 3)]
    assert [markdown.at_edge(setting, grid) for setting in grid] == [True, False, True]
    assert not markdown.at_edge({"rate": 1}, [{"rate": 1}, {"rate": 2}])  # two values have no inside
    assert not markdown.at_edge({}, [{}])


def test_the_figure_is_small_whole_and_the_same_each_time(folder: Path) -> None:
    result = storage.read_json(folder / "momentum-full.json")
    picture = draw(result)
    assert picture == draw(result)
    assert len(picture) < 40_000
    assert xml.etree.ElementTree.fromstring(picture).tag.endswith("svg")
    assert "reproduced" in picture  # text stays text
    result["comparisons"][0].update(benefit=None, low=None, high=None, pairs=[])
    assert "not measured" in draw(result)
    result["comparisons"][0].update(benefit=900.0, low=-900.0, high=None, pairs=[{"benefit": 900.0}])
    json.dumps(result)
    assert "reproduced" in draw(json.loads(json.dumps({**result, "comparisons": [
        {**result["comparisons"][0], "high": 2000.0}]})))  # fmt: skip


def test_the_tables_of_this_checkout_are_those_of_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert table.main(["--check"]) == 0
