"""The laptop recipe at a small setting: whole, once, resumable, and told in one page."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from mickle import recipe, storage
from mickle.events import Event, Noted, ignore
from mickle.report import LARGEST

RECIPE = Path(__file__).parent.parent / "recipes" / "laptop.yaml"


def _small(made: Path, folder: Path, **model: Any) -> recipe.CheckedRecipe:
    """The recipe with fewer pages, a smaller model and shorter texts."""
    values = yaml.safe_load(RECIPE.read_text())
    values["steps"]["corpus"] |= {"source": {"kind": "files", "path": str(made / "pages")}, "workers": 1}
    del values["steps"]["model"]["epochs"]
    values["steps"]["model"] |= {"size": 40_000, "steps": 12, "save_every": 2, **model}
    values["steps"]["text"]["max_tokens"] = 4
    file = folder / "small.yaml"
    file.write_text(yaml.safe_dump(values))
    return recipe.read(file, out=folder / "runs")


def _digests(folder: Path) -> dict[str, str]:
    return {name: storage.open_folder(folder / "runs" / name, check="hashes").digest for name in ("corpus", "model")}


@pytest.fixture(scope="module")
def whole(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    recipe.run(_small(made, folder), ignore)
    return folder


def test_recipe_is_short_and_says_what_it_needs() -> None:
    lines = RECIPE.read_text().splitlines()
    assert len(lines) <= 40
    head = "\n".join(line for line in lines if line.startswith("#"))
    assert "Needs:" in head
    assert "Takes:" in head
    assert "Gives:" in head


def test_pages_to_report(whole: Path) -> None:
    page = (whole / "runs" / "report.html").read_text()
    assert len(page.encode()) < LARGEST
    for title in ("The corpus", "The training", "The evaluation", "Samples", "What it cost", "How to repeat it"):
        assert f"<h2>{title}</h2>" in page
    assert "before training" in page
    assert "best trivial baseline" in page


def test_nothing_changed_nothing_done(made: Path, whole: Path) -> None:
    before = (whole / "runs" / "report.html").stat().st_mtime_ns
    assert "nothing to do" in recipe.run(_small(made, whole), ignore)
    assert (whole / "runs" / "report.html").stat().st_mtime_ns == before


def test_another_learning_rate_redoes_training_and_what_hangs_on_it(made: Path, whole: Path) -> None:
    heard: list[Event] = []
    said = recipe.run(_small(made, whole, learning_rate=0.5), heard.append)
    assert "3 of 4 steps" in said
    begun = [event.message.split(":")[0] for event in heard if isinstance(event, Noted) and "->" in event.message]
    assert [name for name in begun if name.startswith("step ")] == ["step model", "step loss", "step text"]


def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(made: Path, whole: Path, tmp_path: Path) -> None:
    draw = random.Random(5)
    recipe.run(_small(made, whole), ignore)  # point the names back to the first settings
    for _ in range(4):
        child = os.fork()
        if child == 0:
            recipe.run(_small(made, tmp_path), ignore)
            os._exit(0)
        time.sleep(draw.uniform(0.2, 2.0))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    recipe.run(_small(made, tmp_path), ignore)
    assert _digests(tmp_path) == _digests(whole)
