"""From base and journal to the tuned model, to any step on the way, and back.

Source: arXiv 2305.17333, section 2.1. Three ways, for the weights w_0 of the base and the updates of
`training/mezo_rule.py`:

* the net replay (default) adds up how much each direction moved the weights over all steps and adds every direction
  once: tile by tile in the first cache, for plain steps in the order of training. It differs from the trained weights
  by rounding, some 1e-6;
* the exact replay repeats the probes too, +eps, -2 eps, and so on, so every rounding happens again: bit for bit the
  trained weights, for signs also when one side was a CPU and the other a GPU;
* undo subtracts the net move, for whoever has the tuned model and not the base.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.kernels.perturb import add_draws
from mickle.kernels.philox import Moves
from mickle.training.journal import Journal, MezoRun
from mickle.training.mezo import history_of, moves_of_measuring, moves_of_step
from mickle.training.mezo_rule import Updates


def fingerprint(model: nn.Module, names: Iterable[str] | None = None) -> str:
    """xxh3-128 over names, shapes, types and bytes of all weights and kept buffers, in 32 hexadecimal digits.

    names: of these parameters only: of an adapter, whose frozen base may be held in any type.
    """
    tensors: Mapping[str, Any] = model.state_dict()
    if names is not None:
        tensors = _named(model, names)
    hashed = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        if not isinstance(tensor, Tensor):
            continue
        plain = tensor.detach().cpu().contiguous()
        hashed.update(f"{name} {list(plain.shape)} {plain.dtype}\n".encode())
        hashed.update(memoryview(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else b"")
    return hashed.hexdigest()


def fingerprint_for(model: nn.Module, run: MezoRun) -> str:
    """The fingerprint that the run's are to be compared with: of the whole model, or of what it moved where that is a
    part, an adapter beside a frozen base.
    """
    moved = [tensor.name for tensor in run.tensors]
    part = run.added is not None or set(moved) < {name for name, _ in model.named_parameters()}
    return fingerprint(model, moved if part else None)


@torch.no_grad()
def replay(model: nn.Module, journal: Journal, to_step: int | None = None, *, exact: bool = False) -> None:
    """Move `model`, which must be the journal's base, to `to_step` (the end where None), in place.

    UsageError, before any weight is touched, where it is another base or has no such step or tensors.
    """
    steps = journal.step(to_step)
    _refuse_other_base(model, journal)
    tensors = [_matching(model, run) for run in journal.runs]
    for run, found in zip(journal.runs, tensors, strict=True):
        part = min(steps, run.steps)
        steps -= part
        both = {decayed: _moves(run, 0, part, decayed, exact) for decayed in {t.decayed for t in run.tensors}}
        for tensor in run.tensors:
            add_draws(found[tensor.name], tensor.name, run.rule.stream, both[tensor.decayed])


@torch.no_grad()
def undo(model: nn.Module, journal: Journal, to_step: int = 0) -> None:
    """Move `model`, which must be where the journal ends, back to `to_step`, in place; right to rounding.

    UsageError where the journal knows the tuned weights and these are others.
    """
    to_step = journal.step(to_step)
    tuned = journal.runs[-1].tuned
    if tuned and fingerprint_for(model, journal.runs[-1]) != tuned:
        raise UsageError(
            "the model is not where the journal ends", expected=f"weights with the fingerprint {tuned}",
            todo="replay the journal on its base instead",
        )  # fmt: skip
    tensors = [_matching(model, run) for run in journal.runs]
    before = journal.steps
    for run, found in zip(reversed(journal.runs), reversed(tensors), strict=True):
        before -= run.steps
        first = min(max(to_step - before, 0), run.steps)
        both = {decayed: _way_back(run, first, decayed) for decayed in {t.decayed for t in run.tensors}}
        for tensor in run.tensors:
            add_draws(found[tensor.name], tensor.name, run.rule.stream, both[tensor.decayed])


def _way_back(run: MezoRun, first: int, decayed: bool) -> Moves:
    """Undoes w = F w_0 + sum: the sum goes first, then 1 / F, with a direction of which nothing is added."""
    net = _moves(run, first, run.steps, decayed, exact=False)
    shrunk = float(net.factors[0])  # the net move has its factor at the front
    return Moves.of([*net.draws, 0], [*-net.scales, 0.0], [*np.ones(len(net.draws)), 1.0 / shrunk])


def verify(model: nn.Module, journal: Journal) -> str:
    """ "base" or "tuned": which end of the journal the model is. UsageError where it is neither."""
    found = fingerprint_for(model, journal.runs[0])
    if journal.runs[0].base == found:
        return "base"
    if journal.runs[-1].tuned == found:
        return "tuned"
    raise UsageError(
        f"the model (fingerprint {found}) is neither the journal's base nor what it made of it",
        expected=f"{journal.runs[0].base or 'unknown'} or {journal.runs[-1].tuned or 'unknown'}",
        todo="open the folder that the run began with",
    )


def _moves(run: MezoRun, first: int, last: int, decayed: bool, exact: bool) -> Moves:
    """What steps `first` to `last` of a run add to one tensor: all moves in order, or the net of the updates."""
    updates = Updates(run.rule)
    draws, scales = moves_of_measuring(run.rule, run.measured)  # read by the exact replay alone
    factors = [1.0] * len(draws)
    net = np.zeros(last * run.rule.probes)
    shrunk = 1.0
    for step, (rate, projections) in enumerate(history_of(run.rule.probes, list(run.rates), list(run.projections))):
        if step >= last:
            break
        update = updates.push(rate, projections)
        if step < first:
            continue
        if exact:
            more = moves_of_step(run.rule, step, update, decayed)
            draws += more[0]
            scales += more[1]
            factors += more[2]
            continue
        if decayed and update.factor != 1.0:
            net *= update.factor
            shrunk *= update.factor
        if update.draws:
            net[update.draws] += update.scales
    if exact:
        return Moves.of(draws, scales, factors)
    moved = np.flatnonzero(net)
    if not len(moved):
        return Moves.of([0], [0.0], [shrunk])
    return Moves.of(moved, net[moved], [shrunk] + [1.0] * (len(moved) - 1))


def _refuse_other_base(model: nn.Module, journal: Journal) -> None:
    base = journal.runs[0].base
    if not base:
        return
    found = fingerprint_for(model, journal.runs[0])
    if found != base:
        raise UsageError(
            f"the journal belongs to another base: these weights have the fingerprint {found}", expected=base,
            todo="open the model that the run began with, in the same precision",
        )  # fmt: skip


def _named(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """These parameters; UsageError names one that the model has not."""
    present = dict(model.named_parameters())
    wanted = list(names)
    missing = next((name for name in wanted if name not in present), None)
    if missing is not None:
        raise UsageError(
            f"the model has no tensor {missing[:100]!r}, which the journal moves",
            todo="put the adapter onto it that the run began with: mickle.tuning.mezo_journal.open_at does",
        )
    return {name: present[name] for name in wanted}


def _matching(model: nn.Module, run: MezoRun) -> dict[str, Tensor]:
    """The run's tensors in the model; UsageError names one that is not there as it was."""
    present = dict(model.named_parameters())
    for tensor in run.tensors:
        here = present.get(tensor.name)
        if here is None or tuple(here.shape) != tensor.shape or str(here.dtype) != f"torch.{tensor.dtype}":
            is_now = "absent" if here is None else f"{str(here.dtype).removeprefix('torch.')} {list(here.shape)}"
            raise UsageError(
                f"the journal does not fit the model: tensor {tensor.name[:100]!r} is {is_now}",
                expected=f"{tensor.dtype} {list(tensor.shape)}",
            )
    return {tensor.name: present[tensor.name] for tensor in run.tensors}
