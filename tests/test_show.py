from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mickle import cli
from mickle.errors import UsageError
from mickle.events import ignore
from mickle.show import show
from mickle.step import execute


def test_a_finished_folder_says_what_it_is(made: Path) -> None:
    said = show(made / "model")
    assert "a model, whole (every byte checked)" in said
    assert f"from      data: {made / 'corpus'}" in said
    assert "setting   steps: 2" in said
    assert "result    training_pages" in said
    assert "sizes checked" in show(made / "corpus", check="sizes")


def test_an_unfinished_run_says_how_to_go_on(toy: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="half-way"):
        execute(toy.Write(fail=True), tmp_path / "w", ignore)
    said = show(tmp_path / "w.partial")
    assert "an unfinished run" in said
    assert "verb      write" in said
    assert "goes on" in said


def test_another_tools_model_folder(made: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((made / "model" / "config.json").read_bytes())
    said = show(tmp_path)
    assert "of another tool" in said
    assert "llama" in said
    assert "no safetensors file" in said
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="object"):
        show(tmp_path)


def test_a_changed_byte_is_found(toy: ModuleType, tmp_path: Path) -> None:
    out = execute(toy.Write(), tmp_path / "w", ignore)
    (out / "words.txt").write_text("many a lottle")
    assert show(out, check="sizes")
    with pytest.raises(UsageError, match="corrupt"):
        show(out)


@pytest.mark.parametrize("nonsense", [
    {"identity": 7}, {"identity": {"settings": []}}, {"identity": {"verb": ["write"]}}, {"parents": "x"},
    {"summary": [1]}, {"peak_memory_bytes": "much"},
], ids=str)  # fmt: skip
def test_a_manifest_of_nonsense_is_one_error(nonsense: dict[str, Any], toy: ModuleType, tmp_path: Path) -> None:
    file = execute(toy.Write(), tmp_path / "w", ignore) / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | nonsense))
    with pytest.raises(UsageError, match="never writes"):
        show(tmp_path / "w")


def test_what_a_folder_says_reaches_the_terminal_without_what_a_terminal_obeys(
    toy: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp\ud800"
    spelt = r"\x1b]0;title\x07\x1b[2J\x9b31m\u202egnp\ud800"
    file = execute(toy.Write(), tmp_path / "w", ignore) / "manifest.json"
    values = json.loads(file.read_text())
    values["parents"] = {evil: evil}
    file.write_text(json.dumps(values | {"command": evil, "summary": {evil: evil}}))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.json").write_text(json.dumps({"model_type": evil}))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "manifest.json").write_text(json.dumps({"kind": evil, "format": 1, "files": {evil: {}}}))
    for folder, count in (("w", 5), ("foreign", 1), ("none", 0), (evil.replace("\ud800", ""), 1)):
        with pytest.raises(SystemExit):
            cli.main(["show", str(tmp_path / folder)])
        said = "".join(capsys.readouterr())
        assert said.replace("\n", "").isprintable()
        assert said.count(spelt.removesuffix(r"\ud800")) == count
