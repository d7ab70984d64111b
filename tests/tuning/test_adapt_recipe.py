"""The recipes `adapt` and `demo` at a small setting: a model and conversations in four bits, to a plain folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import tuning_folders as made
import yaml

from mickle import recipe, storage
from mickle.events import ignore
from mickle.models.folder import open_model

RECIPES = Path(__file__).parent.parent.parent / "recipes"


@pytest.mark.parametrize("name", ["adapt", "demo"])
def test_it_is_short_and_says_what_it_needs(name: str) -> None:
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    assert len(lines) <= 40
    head = "\n".join(line for line in lines if line.startswith("#"))
    for word in ("Needs:", "Takes:", "Gives:"):
        assert word in head


@pytest.mark.usefixtures("quick")
def test_from_a_model_folder_to_a_tuned_one(tmp_path: Path) -> None:
    values = yaml.safe_load((RECIPES / "adapt.yaml").read_text())
    made.decoder_folder(tmp_path / "model")
    made.chats(tmp_path / "chats.jsonl")
    made.general(tmp_path / "model" / "heldout.parquet")
    values["steps"]["adapter"] |= {
        "model": str(tmp_path / "model"),
        "data": str(tmp_path / "chats.jsonl"),
        "learning_rate": 0.02,
    }
    values["steps"]["text"]["max_tokens"] = 4
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(values))
    recipe.run(recipe.read(file, out=tmp_path / "runs"), ignore)
    summary = storage.open_folder(tmp_path / "runs" / "adapter").meta["summary"]
    assert summary["task"]["after"] < summary["task"]["before"]
    adapter, merged = open_model(tmp_path / "runs" / "adapter"), open_model(tmp_path / "runs" / "merged")
    ids = torch.arange(2, 30)[None]
    with torch.no_grad():
        assert torch.allclose(adapter(ids), merged(ids), atol=1e-4)
    assert (tmp_path / "runs" / "report.html").is_file()


def test_the_documentation_of_a_package_taught_to_a_model(
    quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(RECIPES.parent)
    values = yaml.safe_load((RECIPES / "demo.yaml").read_text())
    model = str(made.chat_folder(tmp_path / "model", length=512))
    values["steps"]["documentation"] |= {
        "workers": 1,
        "source": {"kind": "documentation", "packages": ["json", "email"]},
    }
    values["steps"]["documentation"]["source"]["questions"] = 40
    values["steps"]["tuned"] |= {"model": model, "batch_tokens": 256, "steps": 12, "learning_rate": 0.02, "samples": 2}
    values["steps"]["answers"] |= {"before": model, "max_tokens": 4}
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(values))
    recipe.run(recipe.read(file, out=tmp_path / "runs"), ignore)
    bits = storage.open_folder(tmp_path / "runs" / "tuned").meta["summary"]["task"]["bits_per_byte"]
    assert bits["after"] < bits["before"]
    page = (tmp_path / "runs" / "report.html").read_text()
    titles = [page.index(f"<h2>{title}</h2>") for title in ("The tuning", "Samples", "The export", "The corpus")]
    assert titles == sorted(titles)
