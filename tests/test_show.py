from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

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
