"""What CONTRIBUTING asks of what is added, collected from the verbs and unions themselves: a forgotten row fails."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mickle
from mickle import cli, flags, verbs
from mickle.config import Config, config_variants, leaves, validate
from mickle.evaluation.evaluate import Evaluate
from mickle.evaluation.measure import Measure
from mickle.sampling.chat import Chat
from mickle.step import Step
from mickle.training.optimizers import OptimizerSettings
from mickle.training.pretrain import Pretrain
from mickle.tuning.tune import Tune

ROOT = Path(__file__).parent.parent
DOCS = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md"))}
ALL_DOCS = "\n".join(DOCS.values())
# Where the tests of a union's choices are, and the choices that they hold to what all of them promise.
HELD = {
    "tuning methods": (Tune, "method", "tests/tuning", {"full", "lora", "qlora", "mezo"}),
    "pretraining objectives": (Pretrain, "objective", "tests/training", {"next", "masked"}),
    "evaluation tasks": (Evaluate, "task", "tests/evaluation", {"loss", "length", "masked", "pairs", "compare"}),
}


def kinds(variants: list[type[Config]]) -> set[str]:
    return {str(variant.model_fields["kind"].default) for variant in variants}


@pytest.mark.parametrize("name", verbs.STEPS)
def test_every_verb_has_a_page_and_an_example_of_itself(name: str) -> None:
    page = DOCS["studies" if name == "study" else name] if name != "sample" else ALL_DOCS
    assert re.search(rf"mickle {name}\b", page)
    assert verbs.step_class(name).example.startswith(f"mickle {name}")


def test_every_verb_is_in_the_table_of_verbs() -> None:
    """A step of the package that has a place in the help, by its example, is known to the command line."""
    for module in pkgutil.walk_packages(mickle.__path__, "mickle."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    steps, waiting = set(), [Step]
    while waiting:
        below = waiting.pop().__subclasses__()
        waiting += below
        steps |= {step for step in below if step.example and step.__module__.startswith("mickle.")}
    assert steps == {verbs.step_class(name) for name in verbs.STEPS}


HINTED = {  # of each verb the settings on which its next command depends
    "curate": [{}],
    "mix": [{}],
    "pretrain": [{"objective": "next"}, {"objective": "masked"}],
    "tune": [{"method": "lora"}, {"method": "full"}, {"method": {"kind": "mezo", "parameters": "prefix"}}],
    "compress": [{}],
    "evaluate": [{"task": "loss"}, {"task": "length"}, {"task": "masked"}, {"task": "pairs"}],
    "export": [{"causal": True}, {"causal": False}],
    "sample": [{"chat": True}, {"chat": False}],
    "study": [{"scale": "quick"}],
    "plan": [{"task": "rate"}],
}


@pytest.mark.parametrize(
    ("name", "settings"), [(name, given) for name in verbs.STEPS for given in HINTED[name]], ids=str
)
def test_the_next_command_can_be_typed(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, also where folders have spaces in their names."""
    cls, causal = verbs.step_class(name), settings.get("causal")
    monkeypatch.setattr("mickle.models.folder.describe", lambda folder: SimpleNamespace(causal=causal))
    fields = {key: value for key, value in settings.items() if key != "causal"}
    inputs = {key: str(tmp_path) for key in ("model", "data") if key in cls.model_fields and name != "plan"}
    if settings.get("task") in ("pairs", "rate"):
        fields["task"] = {"kind": fields["task"], "data": tmp_path}
    step = validate(cls, inputs | fields)
    program, verb, *arguments = shlex.split(step.after(tmp_path / "my runs" / "out"))
    assert program == "mickle"
    assert {"my runs/out", tmp_path.name} & {"/".join(Path(word).parts[-n:]) for word in arguments for n in (1, 2)}
    if verb == "show":
        return
    settings_class = Chat if verb == "chat" else verbs.step_class(verb)
    positional = "models" if verb == "chat" else settings_class.positional
    made = flags.parser(f"mickle {verb}", settings_class, "", "", positional)
    made.add_argument("--out")
    validate(settings_class, flags.read_values(settings_class, flags.parse(made, arguments)[1]))


def said_to_do(file: Path) -> str:
    """What the errors of a module tell people to do."""
    calls = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    told = (word.value for call in calls for word in call.keywords if word.arg in ("todo", "expected", "description"))
    parts = (part.value for value in told for part in ast.walk(value) if isinstance(part, ast.Constant))
    return " ".join(part for part in parts if isinstance(part, str))


def test_every_flag_that_an_error_or_a_help_text_names_is_there() -> None:
    known = {"--merge", "--local-dir"}  # of other programs
    for settings in (*map(verbs.step_class, verbs.STEPS), Chat):
        made = flags.parser("", settings, "", "")
        cli._common(made)
        known |= set(made._option_string_actions)
    for file in sorted((ROOT / "src/mickle").rglob("*.py")):
        named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", said_to_do(file)))
        assert named <= known, file


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert pages == set(re.findall(r"\]\(([\w/]+\.md)\)", DOCS["index"]))


def test_every_optimizer_of_the_settings_is_trained_with() -> None:
    variants = config_variants(OptimizerSettings)
    named = (Path(__file__).parent / "training" / "tiny_training.py").read_text(encoding="utf-8")
    table = named[named.index("OPTIMIZERS:") : named.index("FORWARD_ONLY:")]
    assert all(f"{variant.__name__}(" in table for variant in variants)


@pytest.mark.parametrize("name", verbs.STEPS)
def test_every_choice_of_a_verb_stands_in_the_documentation(name: str) -> None:
    for place, annotation, _ in leaves(verbs.step_class(name)):
        variants = [variant for variant in config_variants(annotation) if "kind" in variant.model_fields]
        for kind in kinds(variants):
            word = re.escape(kind)
            spelled = rf"`{word}`|--[\w.-]+ {word}\b|\bkind: {word}\b|\"kind\": \"{word}\"|`[^`\n]*\b{word}\b[^`\n]*`"
            assert re.search(spelled, ALL_DOCS, re.IGNORECASE), f"{name}: {place} {kind}"


@pytest.mark.parametrize("union", HELD)
def test_every_choice_is_held_to_what_all_of_them_promise(union: str) -> None:
    cls, field, folder, named = HELD[union]
    variants = config_variants(cls.model_fields[field].annotation)
    assert kinds(variants) == named
    text = "\n".join(file.read_text(encoding="utf-8") for file in sorted((ROOT / folder).glob("test_*.py")))
    for variant in variants:
        kind = variant.model_fields["kind"].default
        assert f'"{kind}"' in text or re.search(rf"\b{variant.__name__}\b", text), kind


def test_every_evaluation_task_runs_by_itself() -> None:
    for variant in config_variants(Evaluate.model_fields["task"].annotation):
        assert issubclass(variant, Measure)
        assert "run" in vars(variant)
