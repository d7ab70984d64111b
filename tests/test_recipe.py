from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from mickle import recipe
from mickle.errors import UsageError
from mickle.events import ignore

GOOD = """\
title: a toy
steps:
  counted:
    verb: count
    data: $written
  written:
    verb: write
    words: [a, b, c]
    method:
      kind: fancy
      gamma: 0.5
"""


def _plan(tmp_path: Path, text: str) -> recipe.CheckedRecipe:
    file = tmp_path / "toy.yaml"
    file.write_text(text)
    return recipe.read(file, out=tmp_path / "runs")


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mickle.report.write_report", lambda target, *_, **__: target)


def test_steps_run_in_order_once_and_only_what_changed(toy: ModuleType, tmp_path: Path) -> None:
    said = recipe.run(_plan(tmp_path, GOOD), ignore)
    assert toy.Write.calls == ["write", "count"]
    assert "2 of 2" in said
    assert (tmp_path / "runs" / "counted" / "count.txt").read_text() == "5"
    assert "nothing to do" in recipe.run(_plan(tmp_path, GOOD), ignore)
    assert toy.Write.calls == ["write", "count"]
    # Another rate redoes the writing; its words are the same, so the counting still stands.
    recipe.run(_plan(tmp_path, GOOD.replace("gamma: 0.5", "gamma: 0.6")), ignore)
    assert toy.Write.calls == ["write", "count", "write"]
    recipe.run(_plan(tmp_path, GOOD.replace("[a, b, c]", "[a, b]")), ignore)
    assert (tmp_path / "runs" / "counted" / "count.txt").read_text() == "3"


def test_the_report_has_the_order_that_is_asked_for(
    toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[list[str]] = []
    monkeypatch.setattr("mickle.report.write_report", lambda target, title, made, **_: told.append(list(made)))
    recipe.run(_plan(tmp_path, GOOD), ignore)
    recipe.run(_plan(tmp_path, f"report: [counted]\n{GOOD}"), ignore)
    assert told == [["written", "counted"], ["counted", "written"]]
    with pytest.raises(UsageError, match="report names 'cuonted', which is no step"):
        _plan(tmp_path, f"report: [cuonted]\n{GOOD}")


def test_preview_says_what_is_done(toy: ModuleType, tmp_path: Path) -> None:
    before = recipe.preview(_plan(tmp_path, GOOD))
    assert "written      write      to do" in before
    assert "to do, after written" in before
    recipe.run(_plan(tmp_path, GOOD), ignore)
    assert recipe.preview(_plan(tmp_path, GOOD)).count("done: ") == 2


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        (("data: $written", "data: $writen"), 3, "did you mean '$written'"),
        (("verb: count", "verb: cuont"), 3, "did you mean 'count'"),
        (("    verb: count\n", ""), 3, "names no verb"),
        (("gamma: 0.5", "gama: 0.5"), 11, "did you mean 'gamma'"),
        (("gamma: 0.5", "gamma: 7"), 11, "less than or equal to 1"),
        (("title: a toy", "titel: a toy"), 1, "did you mean 'title'"),
        (("words: [a, b, c]", "words: $counted"), None, "circle"),
        (("  counted:", "  9 lives:"), 3, "not plain"),
    ],
)
def test_errors_come_before_anything_runs(
    toy: ModuleType, tmp_path: Path, change: tuple[str, str], line: int | None, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        _plan(tmp_path, GOOD.replace(*change))
    assert says in caught.value.what
    if line is not None:
        assert f"toy.yaml:{line}" in caught.value.where
    assert toy.Write.calls == []


def test_a_recipe_without_steps(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one step"):
        _plan(tmp_path, "steps: {}\n")
    with pytest.raises(UsageError, match="required"):
        _plan(tmp_path, "title: x\n")


def test_recipes_seed_reaches_steps(toy: ModuleType, tmp_path: Path) -> None:
    plan = _plan(tmp_path, "seed: 7\n" + GOOD)
    recipe.run(plan, ignore)
    assert "seed: 7" in (tmp_path / "runs" / "written" / "settings.yaml").read_text()
