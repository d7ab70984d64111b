"""The verb `plan`: what it recommends follows from the law, the pilot wins over it, real steps are timed."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mickle import flags, storage, verbs
from mickle.config import validate
from mickle.data.heldout import write_pages
from mickle.data.records import Page
from mickle.errors import UsageError
from mickle.events import Noted, Warned
from mickle.planning import repeats
from mickle.planning.plan import Plan, opened_law
from mickle.planning.repeats import Speed, dropout_advice
from mickle.planning.report import amount
from mickle.step import execute
from mickle.training.repetition import C4

GIGAFLOP = Speed(1e9, 1_000_000)


@pytest.fixture
def even_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of a GFLOP a second, whatever the model."""
    monkeypatch.setattr(repeats, "measured_speed", lambda parameters, text: GIGAFLOP)


def planned(folder: Path, **settings: Any) -> tuple[dict[str, Any], list[str]]:
    """plan.json, and what was said."""
    events: list[Any] = []
    data = {"data": settings.pop("data")} if "data" in settings else {}
    out = execute(Plan(**data, task={"kind": "repeats", **settings}), folder / "plan", events.append)
    assert {"plan.json", "table.md", "plan.svg"} < {path.name for path in out.iterdir()}
    said = [event.message for event in events if isinstance(event, (Noted, Warned))]
    return storage.read_json(out / "plan.json"), said


def write_runs(folder: Path, rows: list[tuple[float, float, float, float]]) -> Path:
    file = folder / "runs.csv"
    file.write_text("N,D,U,loss\n" + "".join(",".join(map(repr, row)) + "\n" for row in rows))
    return file


def law_runs() -> list[tuple[float, float, float, float]]:
    """The C4 law itself, measured without noise: nine runs of one epoch, six of several."""
    points = [(size, text, text) for size in (1e7, 1e8, 1e9) for text in (1e8, 1e9, 1e10)]
    points += [(1e8, epochs * 1e9, 1e9) for epochs in (2, 4, 8, 16, 32)]
    points += [(size, 8e8, 1e8) for size in (3e7, 1e8, 1e9)]
    return [(*point, C4.loss(*point)) for point in points]


def test_a_budget_alone_is_split_as_the_law_says(tmp_path: Path, even_machine: None) -> None:
    found, said = planned(tmp_path, tokens=1e9, flops=1e19)
    best = C4.best(1e19, 1e9)
    chosen = found["recommended"]
    assert chosen["parameters"] == pytest.approx(best.parameters)
    assert chosen["epochs"] == pytest.approx(best.epochs)
    assert chosen["bound"] == "the budget"
    assert chosen["hours"] == pytest.approx(1.05 * 1e19 / 1e9 / 3600, rel=1e-6)
    assert found["law_says"]["loss"] == pytest.approx(best.loss)
    assert not any("extrapolation" in line for line in said)
    assert any("cannot say that more epochs hurt" in line for line in said)


def test_epochs_asked_for_are_said_in_fresh_tokens(tmp_path: Path, even_machine: None) -> None:
    found, said = planned(tmp_path, tokens=2.1e6, size="tiny", epochs=8)
    assert any("8 epochs of your 2.1M tokens are worth 13.9M fresh tokens of 16.8M read" in line for line in said)
    rows = {row["epochs"]: row for row in found["epochs"]}
    assert rows[8]["worth"] / rows[8]["tokens"] == pytest.approx(0.828, abs=5e-4)
    assert rows[4]["next_token"] == pytest.approx(math.exp(-3 / C4.token_decay))
    assert any("extrapolation" in line for line in said)


def test_more_budget_than_the_text_is_worth_is_left(tmp_path: Path, even_machine: None) -> None:
    found, said = planned(tmp_path, tokens=1e7, size=10_000_000, flops=1e17, least=0.5)
    assert found["law_says"]["parameters"] == pytest.approx(1e7, rel=0.15)  # widths come in steps
    assert found["law_says"]["epochs"] == pytest.approx(1e17 / 6 / found["law_says"]["parameters"] / 1e7)
    assert found["recommended"]["epochs"] == pytest.approx(C4.paying_epochs(0.5))
    assert any("of the budget is left" in line for line in said)


def test_the_pilot_wins_where_both_speak(tmp_path: Path, even_machine: None) -> None:
    curve = [(1e8, e * 1e9, 1e9, 3 + 0.1 * math.log(e / 6) ** 2) for e in (1, 3, 12, 48)]
    file = write_runs(tmp_path, curve)
    found, said = planned(tmp_path, tokens=1e9, size=100_000_000, flops=6e8 * 4e10, runs=file, refit="scale")
    assert found["law_says"]["epochs"] == pytest.approx(40, rel=0.1)
    assert found["pilot_says"]["best_epochs"] == pytest.approx(6)
    assert found["recommended"]["bound"] == "your pilot"
    assert found["recommended"]["epochs"] == pytest.approx(6)
    assert any("where both speak, it wins" in line for line in said)


def test_a_pilot_of_another_size_does_not_speak(tmp_path: Path, even_machine: None) -> None:
    curve = [(1e6, e * 1e9, 1e9, 3 + 0.1 * math.log(e / 6) ** 2) for e in (1, 3, 12, 48)]
    file = write_runs(tmp_path, curve)
    found, _ = planned(tmp_path, tokens=1e9, size=100_000_000, flops=6e8 * 4e10, runs=file, refit="scale")
    assert found["pilot_says"] is None


def test_own_runs_make_the_law_and_a_later_plan_uses_it(tmp_path: Path, even_machine: None) -> None:
    found, said = planned(tmp_path, tokens=1e9, flops=1e19, runs=write_runs(tmp_path, law_runs()))
    assert found["law"]["token_decay"] == pytest.approx(C4.token_decay, rel=1e-3)
    assert found["law"]["most_epochs"] == 32
    assert any("R_D* of your runs is 15.4" in line for line in said)
    low, high = found["epochs"][0]["loss_interval"]
    assert low <= found["epochs"][0]["loss"] * 1.0001
    assert high >= found["epochs"][0]["loss"] * 0.9999
    assert opened_law(tmp_path / "plan") == opened_law(tmp_path / "plan" / "plan.json")
    again, _ = planned(tmp_path / "later", tokens=1e9, flops=1e19, law=tmp_path / "plan")
    assert again["law"] == found["law"]
    with pytest.raises(UsageError, match="at most 32 epochs, not 33"):
        planned(tmp_path / "more", tokens=1e9, size=10**8, epochs=33, law=tmp_path / "plan")


def test_more_epochs_than_any_run_had(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at most 1500 epochs, not 2000"):
        planned(tmp_path, tokens=1e9, size=10**8, epochs=2000)


def test_too_few_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"too few to fit the law: 1 sizes at one epoch, 3 are needed"):
        planned(tmp_path, tokens=1e9, flops=1e19, runs=write_runs(tmp_path, law_runs()[:1]))


def test_near_the_interpolation_threshold(tmp_path: Path, even_machine: None) -> None:
    """100 million tokens of some 5 to 9 bits: about what 200 million parameters can hold at 3.6 bits each."""
    _, said = planned(tmp_path / "near", tokens=1e8, size=2 * 10**8, epochs=8)
    assert any("near the interpolation threshold" in line for line in said)
    for name, size in (("below", 10**7), ("above", 5 * 10**9)):
        _, said = planned(tmp_path / name, tokens=1e8, size=size, epochs=8)
        assert not any("near the interpolation threshold" in line for line in said)


def test_a_model_too_large_for_this_machine(tmp_path: Path, even_machine: None) -> None:
    found, said = planned(tmp_path, tokens=1e11, size=10**11, epochs=1)
    assert found["recommended"]["memory_bytes"] is None
    assert any(line.startswith("this machine:") for line in said)


def pages(count: int) -> list[Page]:
    words = ("cat", "dog", "owl", "hen", "fox", "cow", "ant")
    return [
        Page(f"https://x.invalid/{i}", "d", "en", " ".join(words[(i * k + k * k) % 7] + str(i * k) for k in range(60)))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("corpora")
    for name, some in (("once", pages(60)), ("twice", pages(60) * 2)):
        with storage.write_folder(folder / name, kind="corpus") as work:
            (work / "pages").mkdir()
            write_pages(some, work / "pages" / "00000.parquet")
    return folder / "once", folder / "twice"


def test_a_corpus_and_hours_of_this_machine(tmp_path: Path, corpora: tuple[Path, Path]) -> None:
    """No stand-ins: the corpus is read, steps are timed, and the command is one that `pretrain` takes."""
    found, said = planned(tmp_path, data=corpora[0], size=36_000, hours=0.01)
    assert found["text"]["tokens"] == found["text"]["distinct"]
    assert found["recommended"]["hours"] <= 0.0101
    assert found["recommended"]["memory_bytes"] > 1e7
    assert any("forecast on this machine" in line for line in said)
    _, name, *arguments = shlex.split(found["command"])
    cls = verbs.step_class(name)
    options = flags.parser(name, cls, "", "", cls.positional)
    options.add_argument("--out")
    _, given = flags.parse(options, arguments)
    made = validate(cls, flags.read_values(cls, given))
    assert made.epochs == pytest.approx(found["recommended"]["epochs"], rel=5e-3)  # type: ignore[attr-defined]
    assert made.size == 36_000  # type: ignore[attr-defined]
    assert found["recommended"]["parameters"] == found["recommended"]["timed_parameters"]  # the model it would be


def test_hardly_any_text(tmp_path: Path) -> None:
    """The law would want a model smaller than any that there is."""
    found, said = planned(tmp_path, tokens=5000, hours=1e-4)
    assert found["recommended"]["parameters"] >= 30_000
    assert not any(line.startswith("this machine:") for line in said)
    assert all(row["loss"] > math.log(512) for row in found["epochs"])
    assert any("| 1 |" in line and "| unknown |" in line for line in said)  # worse than guessing: no prediction


def test_less_budget_than_one_epoch(tmp_path: Path, even_machine: None) -> None:
    found, _ = planned(tmp_path, tokens=1e9, size=10**8, flops=6e8 * 5e8)
    chosen = found["recommended"]
    assert chosen["epochs"] == pytest.approx(0.5, rel=0.15)
    assert found["epochs"][0]["worth"] == found["epochs"][0]["tokens"] == chosen["tokens"]
    assert chosen["dropout"]["rate"] == 0


def test_copies_are_not_fresh_text(tmp_path: Path, corpora: tuple[Path, Path], even_machine: None) -> None:
    once, _ = planned(tmp_path / "once", data=corpora[0], size=36_000, epochs=6)
    twice, said = planned(tmp_path / "twice", data=corpora[1], size=36_000, epochs=6)
    assert twice["text"]["distinct"] == pytest.approx(once["text"]["distinct"], rel=0.2)  # another held-out share
    assert twice["text"]["tokens"] == pytest.approx(2 * twice["text"]["distinct"])
    assert any("2.00 times" in line for line in said)
    assert "--epochs 3 " in twice["command"]
    assert "--epochs 6 " in once["command"]


def test_a_dry_run_writes_nothing_and_shows_the_table(even_machine: None) -> None:
    forecast, preview = Plan(task={"tokens": 1e9, "flops": 1e19}).dry_run()
    assert "| epochs |" in preview
    assert any("recommended" in note for note in forecast.notes)


def test_the_next_command_is_the_plans(tmp_path: Path, even_machine: None) -> None:
    step = Plan(task={"tokens": 1e9, "flops": 1e19})
    out = execute(step, tmp_path / "plan", lambda event: None)
    assert step.after(out) == storage.read_json(out / "plan.json")["command"]
    assert step.after(out).startswith("mickle pretrain CORPUS --size ")


def test_dropout_by_rule_of_thumb() -> None:
    assert dropout_advice(16)["rate"] == 0
    assert dropout_advice(64) == {"rate": 0.2, "start": 0.5}


def test_amounts_in_three_digits() -> None:
    assert [amount(n) for n in (950, 2100, 16.8e6, 999_999, 1.234e9, 3e12)] == [
        "950", "2.1K", "16.8M", "1M", "1.23B", "3T",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "give a corpus as data"),
        ({"task": {"tokens": 1e6, "flops": 1e15, "hours": 1}}, "one budget, not flops and hours"),
        ({"task": {"tokens": 1e6, "epochs": 4}}, "give size too"),
        ({"task": {"tokens": 1e6, "size": 100}}, "at least 10000"),
        ({"data": "corpus", "task": {"tokens": 1e6}}, "not both"),
        ({"data": "corpus", "task": {"kind": "rate", "data": "t.npz"}}, "task.data"),
        ({"task": {"tokens": -1}}, "greater than or equal to 2"),
        ({"task": {"tokens": 1e6, "least": 1.0}}, "less than 1"),
        ({"task": {"tokens": 1e6, "flop": 1e15}}, "did you mean 'flops'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Plan(**settings)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no law in this file"),
        ({"law": {**vars(C4), "floor": "x"}}, "floor of this law"),
        ({"law": {**vars(C4), "floor": -1}}, "floor of a law is -1"),
        ([], "no law in this file"),
    ],
)
def test_a_law_file_that_is_none(content: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "law.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=said):
        opened_law(tmp_path / "law.json")
