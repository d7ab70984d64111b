"""The documentation's examples: Python blocks run, `mickle` commands are checked against the flags they name."""

from __future__ import annotations

import doctest
import os
import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest

from mickle import cli, flags, verbs
from mickle.config import validate
from mickle.errors import UsageError
from mickle.sampling.chat import Chat

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def _blocks(page: Path, languages: set[str]) -> list[str]:
    return [text for language, text in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def _commands(page: Path) -> list[str]:
    lines = "\n".join(_blocks(page, {"", "sh", "bash", "console"})).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines if line.removeprefix("$ ").startswith("mickle ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_commands_name_verbs_and_settings_that_exist(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("crawl/a.warc.gz", "notes/a.md", "data.jsonl.gz", "saved/a.parquet"):  # whose kind `curate` sees
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()
    for command in _commands(page):
        name, *arguments = shlex.split(command, comments=True)[1:]
        if name == "chat":
            _, given = flags.parse(flags.parser("mickle chat", Chat, "", "", "models"), arguments)
            validate(Chat, flags.read_values(Chat, given), where=command)
            continue
        if name in cli.OTHERS or name.startswith("-"):
            continue
        cls = verbs.step_class(name)
        made = flags.parser(f"mickle {name}", cls, "", "", cls.positional)
        cli._common(made)
        options, given = flags.parse(made, arguments)
        if options.config is None:
            validate(cls, flags.read_values(cls, given), where=command)


def test_a_wrong_command_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("```\nmickle pretrain corpus --sise tiny\n```\n")
    with pytest.raises(UsageError, match="--size"):
        test_commands_name_verbs_and_settings_that_exist(page, tmp_path, monkeypatch)


# What an example finds already made: the outputs of the pages before it.
FOUND = {"README.md": ["pages"], "pretrain.md": ["corpus"], "evaluate.md": ["corpus", "model"], "tune.md": ["model"]}


@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, {"python"})], ids=lambda p: p.name)
def test_python_examples_run(page: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page in order; blocks with prompts must also print what they say."""
    for name in FOUND.get(page.name, []):
        shutil.copytree(made / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    text = "\n".join(_blocks(page, {"python"}))
    if ">>>" in text:
        examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
        assert examples.examples
        assert doctest.DocTestRunner().run(examples).failed == 0
    else:
        (tmp_path / "example.py").write_text(text)
        runpy.run_path(str(tmp_path / "example.py"), run_name="example")


def test_pages_render_and_their_links_lead_somewhere(tmp_path: Path) -> None:
    build = runpy.run_path(str(ROOT / "docs" / "build.py"), run_name="build")["build"]
    assert build(tmp_path) == len(PAGES)
    assert os.path.isfile(tmp_path / "index.html")


def test_tables_equal_the_committed_results() -> None:
    from mickle.studies.table import main

    assert main(["--check", "--root", str(ROOT)]) == 0
