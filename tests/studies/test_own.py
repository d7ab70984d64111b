"""Studies on a person's own data and model: what they take, what they are known by, what is said of the result."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mickle import storage
from mickle.errors import UsageError
from mickle.events import ignore
from mickle.step import execute
from mickle.studies import declaration, markdown, results
from mickle.studies.declaration import Cell, Comparison, Study, Taking, open_study, page_names
from mickle.studies.figure import COLOURS
from mickle.studies.own import on_own, own_texts
from mickle.studies.study import RunStudy

NOTHING_NEW = "a b " * 15_000  # after four bytes all is known
SMALL = {"width": 16, "layers": 1, "heads": 2, "ffn_width": 32, "length": 32, "rows": 16, "held_out_rows": 32}
TINY = {"large": {"width": 16, "layers": 1, "heads": 2, "ffn_width": 32}}


def run_cell(cell: Cell, work: Path) -> dict[str, Any]:
    """What is in the file, and the dial that hours stretch; the method halves it."""
    value = float(Path(cell.values["data"]).read_text()) + cell.seed % 7
    return {"loss": value * (0.5 if cell.arm == "method" else 1.0), "budget": cell.values["steps"]}


def number(values: Any) -> float:
    """The file's number, or ValueError."""
    return float(Path(values["data"]).read_text())


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study that takes a file with a number; its other world is not asked of it."""
    asked = [
        Comparison("both", "method", "baseline", "loss", 0.5, "table 1", "lower", "ratio", worlds, headline)
        for worlds, headline in ((("made", "yours"), True), (("yours",), False))
    ]
    study = Study(
        name="toy", title="A toy", paper="0000.00000", claim="half", budget_unit="steps", rule="at most 0.71",
        arms=(declaration.Arm("method", "halves"), declaration.Arm("baseline", "does not")),
        comparisons=(asked[0], replace(asked[1], name="yours alone")),
        worlds=("made", "yours"), run_cell=run_cell,
        scales={name: declaration.Scale(seeds, {"steps": 16}) for name, seeds in (("quick", 2), ("full", 6))},
        takes=Taking(data="a file with a number", worlds=("yours",), minutes=30.0, check=number),
    )  # fmt: skip
    monkeypatch.setattr("mickle.studies.study.open_study", lambda name, scale="full": study)
    monkeypatch.setattr(results, "source_state", lambda: {"commit": "0123456789abcdef", "dirty": False})
    return study


def test_a_study_on_own_data_is_known_by_its_content_and_its_hours(toy: Study, tmp_path: Path) -> None:
    first, moved, other = (tmp_path / name for name in ("first", "moved", "other"))
    for path, text in ((first, "3"), (moved, "3"), (other, "4")):
        path.write_text(text)
    steps = [RunStudy(name="toy", data=path, hours=1.0, workers=0) for path in (first, moved, other)]
    assert steps[0].scale == "full" and RunStudy(name="toy", data=first).scale == "quick"
    identities = [step.identity() for step in steps]
    assert identities[0] == identities[1] != identities[2]
    assert RunStudy(name="toy", data=first, hours=2.0).identity() != identities[0]

    folder = execute(steps[0], tmp_path / "out", ignore)
    result = storage.read_json(folder / "toy-full.json")
    assert [row["name"] for row in result["comparisons"]] == ["yours alone"]  # the made world is not theirs
    assert {run["measured"]["budget"] for run in result["runs"]} == {32}  # an hour is twice the study's half
    assert str(tmp_path) not in json.dumps(result["runs"]) and result["reads"]["own data"] == storage.hash_file(first)
    assert result["command"] == "mickle study toy --scale full --data first --hours 1"
    page = (folder / "toy-full.md").read_text()
    assert "## On data `first`" in page and markdown.MEANS["reproduced"] in page and "in the paper: 0.5 x" in page
    with pytest.raises(UsageError, match="cannot be published"):
        results.publish(folder, tmp_path / "published")
    with pytest.raises(UsageError, match="no place in Mickle's table"):
        execute(RunStudy(name="toy", data=first, publish=tmp_path), tmp_path / "p", ignore)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "nope", "data": "text.txt"}, "takes no data of yours: its tasks are made"),
        ({"name": "sophia", "data": "text.txt", "model": "text.txt"}, "takes no model of yours"),
        ({"name": "sophia", "data": "short.txt"}, "too little text"),
        ({"name": "sophia", "data": "table.csv"}, "(?s)of no known form.*expected: texts"),
        ({"name": "token_crisis", "data": "text.txt", "hours": 9.0}, "windows of 64, not"),
        ({"name": "doremi", "data": "text.txt"}, "domains of more than"),
        ({"name": "dropout_double_descent", "data": "table.csv"}, "do not reach past the peak"),
        ({"name": "sophia", "data": "text.txt", "hours": 0.01}, "hours are too few"),
        ({"name": "qlora", "scale": "real"}, "needs a model folder at scale real"),
        ({"name": "mezo", "model": "text.txt"}, "text.txt"),
    ],
)
def test_what_a_study_cannot_take_is_told_before_any_cell(
    settings: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(NOTHING_NEW)
    Path("short.txt").write_text("a few words")
    rows = np.random.default_rng(0).normal(size=(20, 12))
    names = ",".join(["y", *(f"x{i}" for i in range(11))])
    np.savetxt("table.csv", rows, delimiter=",", header=names, comments="")
    with pytest.raises(UsageError, match=said):
        RunStudy(**settings).identity()


@pytest.mark.parametrize(
    ("name", "arm", "world", "setting", "dials"),
    [
        ("sophia", "adamw", "pages", {"rate": 3, "beta2": 0.95}, {**SMALL, "steps": 40, "half_run": False}),
        ("token_crisis", "none", "many", {}, {**SMALL, "shapes": TINY, "steps": 40, "learning_rate": 8e-3}),
        ("dynamic_masking", "linear", "docs", {"trial": 2},
         {**SMALL, "steps": {"docs": 60}, "half_runs": (), "vocabulary": 270}),
    ],
)  # fmt: skip
def test_a_text_that_says_the_same_is_learnt_in_a_few_steps(
    name: str, arm: str, world: str, setting: dict[str, Any], dials: dict[str, Any], tmp_path: Path
) -> None:
    data = tmp_path / "text"
    data.mkdir()
    for number in range(6):
        (data / f"{number}.txt").write_text(NOTHING_NEW[4 * number :])
    study = on_own(open_study(name), "quick", {"data": data})
    assert study.worlds == study.takes.worlds and study.headline
    values = {**study.scales["quick"].values, "data": str(data), **dials}
    # Its letters have an entropy of 1.04 nats, those of the machine's sources more than 3.
    assert study.run_cell(Cell(arm, world, setting, 0, values), tmp_path)["loss"] < 1.5


def test_domains_are_those_of_the_folders_and_held_out_text_is_apart(tmp_path: Path) -> None:
    for domain, word in (("letters", "the quick brown fox "), ("digits", "31415926535 ")):
        (tmp_path / domain).mkdir()
        for number in range(2):
            (tmp_path / domain / f"{number}.txt").write_text(f"{word * 9000}{number}")
    study = on_own(open_study("doremi"), "quick", {"data": tmp_path})
    dials = {"width": 16, "layers": 1, "length": 16, "steps": 4, "rows": 4, "held_out_rows": 8}
    cell = Cell("reference", "natural", {}, 0, {**study.scales["quick"].values, **dials, "data": str(tmp_path)})
    weights = study.run_cell(cell, tmp_path)["weights"]
    assert weights == pytest.approx([12 / 32, 20 / 32], rel=1e-3)  # by their sizes, in the order of their names
    training, held_out = own_texts(str(tmp_path))
    assert len(training) > len(held_out) > 0 and not set(training) & set(held_out)


def test_a_table_whose_rows_pass_its_columns_has_a_peak_that_dropout_takes(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    x = generator.normal(size=(200, 30))
    y = x @ generator.normal(size=30) / 5 + generator.normal(size=200)
    np.savez(tmp_path / "table.npz", X=x, y=y)
    study = on_own(open_study("dropout_double_descent"), "quick", {"data": tmp_path / "table.npz"})
    values = {**study.scales["quick"].values, "data": str(tmp_path / "table.npz")}
    found = {arm: study.run_cell(Cell(arm, "yours", {}, 0, values), tmp_path) for arm in ("none", "chosen")}
    assert found["none"]["climb"] > 1.0  # at 31 rows least squares interpolates: theory has an infinite risk there
    assert found["chosen"]["climb"] < 0.3 * found["none"]["climb"]


def test_every_study_says_what_it_takes_or_why_nothing() -> None:
    assert set(markdown.MEANS) == set(COLOURS)
    for name in page_names():
        takes = open_study(name).takes
        assert bool(takes.data) != bool(takes.instead), name
        assert not declaration.has_real(name) or open_study(name, "real").takes.model


def test_pages_for_a_real_model_take_a_persons_model_and_data(tiny_bases: Path, tmp_path: Path) -> None:
    from sentinels import BASE

    from mickle.studies.base_model import Base, base_folder

    model = base_folder(Base(**BASE["base"]), 0)
    texts = [f"def function_{i}(x):" for i in range(60)]
    kinds = {"qlora": ("prompt", "completion"), "mezo": ("text", "label"), "spqr": ("text", "url")}
    dials: dict[str, Any] = {"steps": 2, "rows": 2, "length": 24, "heldout_examples": 4, "samples": 40, "measured": 4}
    dials |= {"examples": 8, "test_rows": 4}
    found: dict[str, dict[str, Any]] = {}
    for name, (first, second) in kinds.items():
        data = tmp_path / f"{name}.jsonl"
        rows = [{first: text, second: ("odd", "even")[i % 2]} for i, text in enumerate(texts)]
        data.write_text("\n".join(map(json.dumps, rows)))
        real = on_own(open_study(name, "real"), "real", {"data": data, "model": model})
        values = {**real.scales["real"].values, **dials, "data": str(data), "model": str(model)}
        values |= {"steps": {"adam": 2, "mezo": 2}} if name == "mezo" else {}
        for arm in [arm for arm in real.arms if name != "spqr" or arm.name in ("base", "nf4", "spqr-as-nf4")]:
            work = tmp_path / name / arm.name
            work.mkdir(parents=True)
            found.setdefault(name, {})[arm.name] = real.run_cell(
                Cell(arm.name, "default", arm.grid[0], 0, values), work
            )
        assert real.derive is not None
        table = real.derive(found[name])
        pairs = [(arm, c.measure) for c in real.comparisons for arm in (c.method, c.baseline) if arm in table]
        assert pairs and all(measure in table[arm] for arm, measure in pairs)
    bits = {arm: one["bits"] for arm, one in found["spqr"].items()}
    assert bits["nf4"] - 0.1 < bits["spqr-as-nf4"] <= bits["nf4"]
    assert found["qlora"]["nf4-dq"]["bits_per_weight"] == pytest.approx(4.127, abs=0.05)
    # Adam holds gradients and two moments beside the weights; forward passes none of them.
    assert found["mezo"]["adam"]["memory"] > 2 * found["mezo"]["mezo"]["memory"]
    assert found["mezo"]["adam"]["budget"] == 1.5 * found["mezo"]["mezo"]["budget"] == 2 * 2 * 3
