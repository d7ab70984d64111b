"""Checkpoints: folders ``step-00000010`` of safetensors and JSON, whole or not there, newest whole one first.

``model.safetensors`` parameters that learn, and buffers; ``optimizer.safetensors`` the optimizer's tensors, named
by parameter; ``state.json`` the step, the optimizer's plain numbers, the loop's counters and the identity of the
run. There is no random state: what is random is drawn from (seed, step, micro-batch, rank).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mickle import storage
from mickle.errors import MickleError, UsageError
from mickle.step import flat
from mickle.training import distributed
from mickle.training.guard import refuse_not_finite

KIND = "checkpoint"
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
WAYS = ("fused", "foreach", "capturable")  # how a parameter group is computed, which is not what it computes
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint as read from disk; tensors are on the CPU."""

    path: Path
    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    optimizer_numbers: dict[str, Any]
    counters: dict[str, Any]
    identity: dict[str, Any]


def save(
    folder: Path, step: int, model: nn.Module, optimizer: Optimizer, counters: dict[str, Any], identity: dict[str, Any]
) -> Path:
    """Write the checkpoint of ``step`` under ``folder``; in a sharded run every process calls, the first writes.

    Raises :class:`~mickle.errors.NumericError` before anything is written when a number is not finite.
    """
    path = folder / f"step-{step:08d}"
    model_tensors = dict(_model_tensors(model))
    optimizer_tensors, numbers = _optimizer_state(model, optimizer)
    refuse_not_finite(model_tensors.items(), f"step {step}: a weight")
    refuse_not_finite(optimizer_tensors.items(), f"step {step}: the optimizer's state")
    model_tensors, optimizer_tensors = _gathered(model_tensors), _gathered(optimizer_tensors)
    if distributed.current().writes:
        state = {"step": step, "optimizer": numbers, "counters": counters, "identity": _plain(identity)}
        storage.remove(path)  # of a signal before the evaluation of this step, which has been made now
        with storage.write_folder(path, kind=KIND) as temporary:
            storage.save_tensors(temporary / MODEL, model_tensors)
            storage.save_tensors(temporary / OPTIMIZER, optimizer_tensors)
            storage.write_json(temporary / STATE, state)
    distributed.wait_for_all()
    return path


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, every byte of it checked, and a sentence for each torn one that was passed over.

    Torn folders are renamed to ``torn-step-...`` so that they are never counted again. Raises :class:`UsageError` when
    the newest has lost its optimizer (going on with a fresh one would be another run) and when there are checkpoints
    but none is whole.
    """
    problems: list[str] = []
    torn: list[Path] = []
    for path in reversed(saved(folder)):
        if not (path / OPTIMIZER).exists():
            raise UsageError(
                "the newest checkpoint has no optimizer state",
                where=str(path / OPTIMIZER),
                todo=f"restore that file, or remove {path.name} to go on from the one before",
            )
        try:
            found = load(path)
        except MickleError as error:
            problems.append(f"{path.name} is not whole: {error.what} ({error.where}); going on from the one before")
            torn.append(path)
            continue
        _set_aside(torn)
        return found, problems
    if problems:
        raise UsageError(
            f"no checkpoint is whole: {problems[0].removesuffix('; going on from the one before')}",
            where=str(folder),
            todo="remove this folder to begin anew",
        )
    return None, []


def load(path: Path) -> Checkpoint:
    """Read one checkpoint, every file compared with its hash; :class:`UsageError` names one that differs."""
    storage.open_folder(path, KIND, check="hashes")
    state = storage.read_state(path / STATE)
    return Checkpoint(
        path,
        state["step"],
        storage.load_tensors(path / MODEL),
        storage.load_tensors(path / OPTIMIZER),
        state["optimizer"],
        state["counters"],
        state["identity"],
    )


def load_weights(path: Path, model: nn.Module) -> None:
    """Put the weights of a checkpoint, say the best one, into a model."""
    storage.open_folder(path, KIND, check="hashes")
    _restore_model(storage.load_tensors(path / MODEL), model, path)


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
    """Make model and optimizer what they were, bit for bit, however many processes wrote the checkpoint."""
    _restore_model(checkpoint.model, model, checkpoint.path)
    _restore_optimizer(checkpoint, model, optimizer)


def saved(folder: Path) -> list[Path]:
    """The checkpoint folders, oldest first, whole or not."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()), key=step_of)


def step_of(path: Path) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removeprefix("step-"))


def best(folder: Path) -> tuple[Path, float] | None:
    """The checkpoint whose evaluation was the lowest, as the newest whole one remembers it, and that value."""
    found, _ = newest(folder)
    step = found.counters.get("best_step") if found else None
    path = folder / f"step-{step:08d}" if step is not None else None
    return (path, found.counters["best_value"]) if found and path and path.is_dir() else None


def prune(folder: Path, keep: int, also: int | None = None) -> None:
    """Delete all but the newest ``keep`` checkpoints and that of step ``also``."""
    for path in saved(folder)[:-keep]:
        if step_of(path) != also:
            storage.remove(path)


def refuse_other_run(checkpoint: Checkpoint, identity: Mapping[str, Any]) -> None:
    """:class:`UsageError` that lists every setting in which the run that wrote the checkpoint differs."""
    before, now = flat(checkpoint.identity), flat(_plain(identity))
    missing = "(not set)"
    differing = [
        f"{name}: {before.get(name, missing)!r} -> {now.get(name, missing)!r}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name, missing) != now.get(name, missing)
    ]
    if differing:
        raise UsageError(
            "the checkpoint is of another run: " + "; ".join(differing),
            where=str(checkpoint.path),
            todo="use the same settings, or another folder for this run",
        )


def size(model: nn.Module) -> int:
    """Bytes that one checkpoint is expected to take: the weights and two float32 averages for each."""
    weights = sum(t.numel() * t.element_size() for _, t in _model_tensors(model))
    return weights + sum(8 * p.numel() for p in model.parameters() if p.requires_grad)


def _gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors in the memory of the process that writes; nothing in the others."""
    writes, gathered = distributed.current().writes, {}
    for name, tensor in tensors.items():
        full = distributed.gathered(tensor)
        if writes:
            gathered[name] = full.cpu()
    return gathered


def _set_aside(torn: list[Path]) -> None:
    if distributed.current().writes:
        for path in torn:
            storage.remove(path.with_name(f"torn-{path.name}"))
            storage.publish(path, path.with_name(f"torn-{path.name}"))


def _model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters that learn and persistent buffers by name; a tied one once.

    A frozen parameter never changes, and the model that a run goes on with has it already: a checkpoint of adapters is
    as small as they are.
    """
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise UsageError(f"model keeps state that is no tensor: {name}")
        frozen = isinstance(tensor, nn.Parameter) and not tensor.requires_grad
        if not frozen and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor.detach()


@torch.no_grad()
def _restore_model(tensors: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    mine = dict(_model_tensors(model))
    _refuse_other_shapes({n: t.shape for n, t in tensors.items()}, {n: t.shape for n, t in mine.items()}, path)
    for name, tensor in mine.items():
        tensor.copy_(distributed.placed_like(tensors[name], tensor))


def _refuse_other_shapes(found: dict[str, Any], expected: dict[str, Any], path: Path) -> None:
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise UsageError(
                f"checkpoint does not fit the model: {name} is {_shape(found.get(name))}",
                where=str(path / MODEL),
                expected=_shape(expected.get(name)),
            )


def _shape(shape: Any) -> str:
    return "absent" if shape is None else str(list(shape))


def _parameter_names(model: nn.Module, optimizer: Optimizer) -> list[str]:
    """The names of the optimizer's parameters, in the order of its state's numbering."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    ordered = [p for group in optimizer.param_groups for p in group["params"]]
    return [names.get(id(p), f"unnamed.{i}") for i, p in enumerate(ordered)]


def _optimizer_state(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state in two halves: tensors by ``parameter/field``, and everything else as plain JSON."""
    state = optimizer.state_dict()
    names = _parameter_names(model, optimizer)
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, fields in state["state"].items():
        for field, value in fields.items():
            if isinstance(value, Tensor):
                tensors[f"{names[index]}/{field}"] = value
            else:
                numbers[f"{names[index]}/{field}"] = value
    groups = [
        {**{k: _plain(v) for k, v in group.items() if k != "params"}, "params": [names[i] for i in group["params"]]}
        for group in state["param_groups"]
    ]
    rest = {k: _plain(v) for k, v in state.items() if k not in ("state", "param_groups")}
    return tensors, {"state": numbers, "groups": groups, "rest": rest}


def _restore_optimizer(checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer) -> None:
    names = _parameter_names(model, optimizer)
    numbers = checkpoint.optimizer_numbers
    if [name for group in numbers["groups"] for name in group["params"]] != names:
        raise UsageError("checkpoint's optimizer trains other parameters", where=str(checkpoint.path / OPTIMIZER))
    index = {name: i for i, name in enumerate(names)}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*checkpoint.optimizer.items(), *numbers["state"].items()]:
        name, field = key.rsplit("/", 1)
        parameter = parameters[index[name]]
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
            value = distributed.placed_like(value, parameter)
        state.setdefault(index[name], {})[field] = value
    groups = [
        {**_adopted(saved_group, group), "params": [index[name] for name in saved_group["params"]]}
        for saved_group, group in zip(numbers["groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups, **numbers["rest"]})
    for i, parameter in enumerate(parameters):  # load_state_dict casts state to the parameter's type
        for field, value in state.get(i, {}).items():
            loaded = optimizer.state[parameter].get(field)
            if isinstance(loaded, Tensor) and loaded.dtype != value.dtype:
                optimizer.state[parameter][field] = value.to(loaded.device)


def _adopted(group: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group as the live optimizer would hold it: JSON knows no tuples, and the device chooses the way."""
    adopted = {k: tuple(v) if isinstance(live.get(k), tuple) else v for k, v in group.items()}
    return adopted | {name: live[name] for name in WAYS if name in live}


def _plain(value: Any) -> Any:
    """The value as JSON will give it back."""
    return json.loads(json.dumps(value, default=lambda v: v.tolist() if isinstance(v, Tensor) else str(v)))
