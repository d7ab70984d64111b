"""How the arms of the study ``mezo`` tune, Adam and forward passes alone, and the bytes that a step of them holds."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mickle.studies.declaration import Cell
from mickle.studies.training import train
from mickle.training.closure import Closure
from mickle.training.journal import encode, journal_of
from mickle.training.label_words import evaluate_labels, label_words, wrong_labels
from mickle.training.mezo import MeZO
from mickle.training.objectives import Batch
from mickle.training.optimizers import constant
from mickle.training.replay import replay
from mickle.tuning.mezo import Mezo, build_mezo, set_rate

ADAM_RATES = (1e-4, 3e-4, 1e-3)
TIMES = (0.5, 1.0, 2.0)  # of the measured rate
POINTS = 5  # of a run at which it is validated
FORWARDS_OF_A_GRADIENT = 3  # a backward pass costs about two forward ones


def reading_bytes(model: nn.Module, batch: Batch) -> int:
    """Peak of reading one batch."""
    return peak_bytes(lambda: evaluate_labels(model.eval(), [batch]), model)


def tune_with_adam(cell: Cell, model: nn.Module, train: Any, validate: Any) -> dict[str, Any]:
    """Adam as the paper has it: few steps on small batches, constant rate, no decay; the best of five points is
    kept.
    """
    values = cell.values
    optimizer = torch.optim.AdamW(model.parameters(), lr=ADAM_RATES[cell.setting["place"]], weight_decay=0.0)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        total, count = label_words(model, batch)
        (total / count).backward()
        optimizer.step()

    best, kept = -1.0, model.state_dict()
    for number in range(values["adam_steps"]):
        model.train()
        step(train(values["adam_rows"], number))
        if (number + 1) % max(1, values["adam_steps"] // POINTS) == 0:
            accuracy = validate(model)["accuracy"]
            if accuracy > best:
                best, kept = accuracy, copy.deepcopy(model.state_dict())
    model.train()
    memory = peak_bytes(lambda: step(train(values["rows"], 0)), model, optimizer)
    model.load_state_dict(kept)
    return {
        "budget": values["adam_steps"] * values["adam_rows"] * FORWARDS_OF_A_GRADIENT,
        "memory": memory,
        "learning_rate": ADAM_RATES[cell.setting["place"]],
    }


def tune_forward_only(cell: Cell, arm: dict[str, Any], model: nn.Module, texts: Any, validate: Any) -> dict[str, Any]:
    """MeZO in the arm's way; the journal then gives back the best of five points of the run."""
    values = cell.values
    settings = Mezo(**{**values["mezo"], **arm.get("settings", {})})
    rows = values["rows"] * arm.get("rows", 1)
    forwards = settings.probes + 1 if settings.variant == "fzoo" else 2 * settings.probes
    steps = max(1, round(2 * values["steps"] * arm.get("share", 1.0) / forwards))
    objective = wrong_labels if settings.counts_answers else label_words
    model = settings.learns.prepare(model, cell.seed)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_mezo(settings, model, cell.seed, steps)
    batches = partial(texts, rows)
    rate = set_rate(settings, optimizer, lambda i: Closure(model, objective, batches(i), step=i, seed=cell.seed))
    assert rate is not None
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rate.rate * TIMES[cell.setting["place"]]
    memory = 1
    if cell.arm == "mezo":
        memory = peak_bytes(lambda: optimizer.step(Closure(model, objective, batches(0), step=0)), model)
    course = train(
        model, objective, batches, optimizer, steps=steps, worst={}, schedule=constant, seed=cell.seed,
        on_bad_numbers="skip", watch_loss=False, evaluate=validate, evaluate_every=max(1, steps // POINTS),
    )  # fmt: skip
    accuracies = course.curve("accuracy")  # of a run that diverged those before; what is left of it is measured
    points = [(accuracy, -step) for accuracy, step in zip(accuracies, course.evaluated)]  # of equal ones the earliest
    return {
        "model": model,
        "budget": steps * forwards * rows,
        "memory": memory,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "points": accuracies,
        **replayed(model, optimizer, base, -max(points)[1] if points else 0),
    }


def replayed(model: nn.Module, optimizer: MeZO, base: dict[str, Any], best: int) -> dict[str, Any]:
    """The journal's bytes, and how far the weights it makes of the base are from the trained ones; leaves `model`
    at step `best`.
    """
    journal = journal_of(optimizer)
    tuned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    differences = []
    for exact in (False, True):
        model.load_state_dict(base)
        replay(model, journal, exact=exact)
        pairs = ((tensor, tuned[name]) for name, tensor in model.state_dict().items())
        differences.append(max(float((a - b).abs().max()) for a, b in pairs))
    model.load_state_dict(base)
    replay(model, journal, to_step=best)
    finite = [d if math.isfinite(d) else 1e9 for d in differences]
    return {"journal_bytes": len(encode(journal)), "replay_difference": finite[0], "exact_replay_difference": finite[1]}


def peak_bytes(work: Callable[[], Any], *holders: Any) -> int:
    """The most bytes of tensors alive at once while `work` runs, with what `holders` (models, optimizers) hold
    already.
    """
    live, most = {"bytes": 0}, 0
    known: set[int] = set()

    def forget(key: int, size: int) -> None:
        known.discard(key)
        live["bytes"] -= size

    def meet(values: Any) -> None:
        nonlocal most
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage())._cdata not in known:
                known.add(storage._cdata)
                live["bytes"] += storage.nbytes()
                weakref.finalize(storage, forget, storage._cdata, storage.nbytes())
                most = max(most, live["bytes"])

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            meet(result)
            return result

    for holder in holders:
        meet(list(holder.parameters() if isinstance(holder, nn.Module) else holder.state.values()))
    with Count():
        work()
    return most
