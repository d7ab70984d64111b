"""A recipe: named steps in one YAML file, each a verb with its settings; ``$name`` is another step's output folder.

Every step's folder is named by the hash of its settings and inputs, so a second run does nothing, a killed one goes
on, and a changed setting redoes that step and what hangs on it. ``OUT/NAME`` always points at the newest.
"""

from __future__ import annotations

import difflib
import graphlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from mickle import storage, verbs
from mickle.config import Config, validate
from mickle.errors import UsageError
from mickle.events import Emit, Noted
from mickle.step import Step, execute, identity_hash
from mickle.yaml_files import Lines, read_yaml

_REFERENCE = re.compile(r"\$([A-Za-z][A-Za-z0-9_-]*)(/.*)?")


class Recipe(Config):
    """What a recipe file holds."""

    title: str = Field("", description="one line for the report")
    out: Path = Field(Path("runs"), description="where the steps' folders go")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of every step that names none")
    report: list[str] = Field([], description="steps in the report's order (default: as they are made)")
    steps: dict[str, dict[str, Any]] = Field(description="step name -> {verb: ..., settings}; $name refers to a step")


@dataclass(frozen=True)
class CheckedRecipe:
    """A recipe that has been checked: steps in an order in which each finds its inputs made."""

    recipe: Recipe
    order: tuple[str, ...]
    file: Path
    lines: Lines


def read(path: Path, out: Path | None = None, seed: int | None = None) -> CheckedRecipe:
    """Read and check a whole recipe before anything runs. Errors name file, line, step and field."""
    values, lines = read_yaml(path)
    recipe = validate(Recipe, values, where=str(path), lines=lines)
    changes = {k: v for k, v in {"out": out, "seed": seed}.items() if v is not None}
    recipe = recipe.model_copy(update=changes)
    if not recipe.steps:
        raise UsageError("a recipe needs at least one step", where=str(path))
    for name in set(recipe.report) - recipe.steps.keys():
        raise UsageError(f"report names '{name}', which is no step", where=f"{path}:{lines.find(('report',))}")
    plan = CheckedRecipe(recipe, _order(recipe, path, lines), path, lines)
    placeholder = dict.fromkeys(plan.order, Path("made-by-an-earlier-step"))
    for name in plan.order:
        _build(plan, name, placeholder)
    return plan


def run(plan: CheckedRecipe, emit: Emit) -> str:
    """Do every step that is not done yet, write the report, and return what to look at."""
    from mickle.report import write_report

    made: dict[str, Path] = {}
    new = 0
    for name in plan.order:
        step = _build(plan, name, made)
        folder = _folder(plan, name, step)
        if not folder.exists():
            emit(Noted(f"step {name}: {plan.recipe.steps[name]['verb']} -> {folder}"))
            new += 1
        made[name] = execute(step, folder, emit)
        _point(plan.recipe.out / name, made[name])
    title = plan.recipe.title or plan.file.stem
    told = {name: made[name] for name in dict.fromkeys([*plan.recipe.report, *plan.order])}
    report = write_report(plan.recipe.out / "report.html", title, told, command=f"mickle run {plan.file}")
    done = f"{new} of {len(made)} steps done now" if new else f"nothing to do: all {len(made)} steps are done"
    return f"{done}\nreport: {report}"


def preview(plan: CheckedRecipe) -> str:
    """Each step with its state: done, unfinished or to do; and its forecast where its inputs exist."""
    lines = []
    made: dict[str, Path] = {}
    for name in plan.order:
        verb = plan.recipe.steps[name]["verb"]
        if (needs := _needs(plan.recipe.steps[name])) - made.keys():
            lines.append(f"  {name:<12} {verb:<10} to do, after {', '.join(sorted(needs))}")
            continue
        step = _build(plan, name, made)
        folder = _folder(plan, name, step)
        if folder.exists():
            made[name] = folder
            lines.append(f"  {name:<12} {verb:<10} done: {folder}")
        else:
            state = "unfinished, would go on" if folder.with_name(folder.name + ".partial").exists() else "to do"
            lines.append(f"  {name:<12} {verb:<10} {state}: {step.dry_run()[0]}")
    return f"{plan.file}\n" + "\n".join(lines)


def _build(plan: CheckedRecipe, name: str, made: dict[str, Path]) -> Step:
    settings = dict(plan.recipe.steps[name])
    where = f"{plan.file}:{plan.lines.find(('steps', name))} (step {name})"
    cls = verbs.step_class(settings.pop("verb"), where)
    settings.setdefault("seed", plan.recipe.seed)
    resolved = _replaced(settings, lambda step, inside: f"{made[step]}{inside}")
    return validate(cls, resolved, where=str(plan.file), lines=plan.lines.under("steps", name))


def _folder(plan: CheckedRecipe, name: str, step: Step) -> Path:
    return plan.recipe.out / f"{name}-{identity_hash(step.identity())}"


def _order(recipe: Recipe, path: Path, lines: Lines) -> tuple[str, ...]:
    graph = {}
    for name, settings in recipe.steps.items():
        where = f"{path}:{lines.find(('steps', name))}"
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
            raise UsageError(f"step name '{name}' is not plain", where=where, expected="letters, digits, - and _")
        if not isinstance(settings.get("verb"), str):
            raise UsageError(f"step '{name}' names no verb", where=where, expected="verb: " + " | ".join(verbs.STEPS))
        graph[name] = _needs(settings)
        for other in graph[name] - recipe.steps.keys():
            near = difflib.get_close_matches(other, recipe.steps, n=1)
            hint = f"; did you mean '${near[0]}'?" if near else ""
            raise UsageError(f"step '{name}' refers to '${other}', which is no step{hint}", where=where)
    try:
        return tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        raise UsageError(
            "steps refer to each other in a circle: " + " -> ".join(error.args[1]), where=str(path)
        ) from None


def _needs(settings: dict[str, Any]) -> set[str]:
    """The steps that settings refer to."""
    found: set[str] = set()
    _replaced(settings, lambda name, inside: found.add(name))
    return found


def _replaced(value: Any, by: Callable[[str, str], Any]) -> Any:
    """The value with each reference, a step's name and what follows it, replaced."""
    if isinstance(value, dict):
        return {name: _replaced(item, by) for name, item in value.items()}
    if isinstance(value, list):
        return [_replaced(item, by) for item in value]
    match = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return by(match[1], match[2] or "") if match else value


def _point(link: Path, folder: Path) -> None:
    """Make ``link`` a relative symbolic link to ``folder``, atomically."""
    if link.is_symlink() and os.readlink(link) == folder.name:
        return
    if link.exists() and not link.is_symlink():
        raise UsageError(
            f"{link} is in the way of the recipe's step of that name", todo="move it, or choose another --out"
        )
    temporary = link.with_name(f".tmp-{link.name}")
    storage.remove(temporary)
    os.symlink(folder.name, temporary)
    os.replace(temporary, link)
