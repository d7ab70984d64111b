"""The training loop: one function that yields what happens and leaves everything else to its readers.

Step ``i`` uses ``batches(i)``, random numbers drawn from (seed, i, micro-batch, rank) and the schedule at (i,
steps): nothing of it depends on history, so a run that is stopped and resumed has the same weights as one
that never was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mickle import machine, storage
from mickle.errors import ResourceError, UsageError, first_line
from mickle.events import Evaluated, Event, Noted, Progressed, Saved, Saving, Started, Stopped, Trained, Warned
from mickle.training import checkpoint, distributed
from mickle.training.closure import Closure, derived_seed, seeded
from mickle.training.dropout import has_dropout, set_dropout
from mickle.training.fit import Batches, Fit
from mickle.training.guard import BadNumbers, LossWatch
from mickle.training.interruption import Interruption
from mickle.training.objectives import Batch, Objective

MOST_IN_A_ROW = 3


@dataclass
class _Counters:
    """What the loop itself must remember to go on exactly; kept in each checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    dropped: list[int] = field(default_factory=list)
    best_step: int | None = None
    best_value: float | None = None
    worse: int = 0  # evaluations since the best one
    unmeasured: bool = False  # a signal came before the evaluation of this step: it is made when the run goes on
    watch: dict[str, Any] = field(default_factory=dict)
    parts: int = 0  # of a batch, where memory ran out with fewer


def fit(
    model: nn.Module, objective: Objective, batches: Batches, optimizer: Optimizer, **options: Any
) -> Generator[Event, None, None]:
    """Train ``model`` in place for some optimizer ``steps``; iterate over the events to make it happen.

    The arguments, ``options`` too, are the fields of :class:`~mickle.training.fit.Fit`.

    Where memory runs out in a pass, the batch is made in twice as many parts, four times at most, and so are all after
    it, also when the run goes on from a checkpoint.

    Yields Started, Progressed (the step gone on from), Trained, Evaluated, Saving, Saved, Warned, Noted, and where
    patience ends Stopped as the last.
    Raises NumericError, ResourceError (disk), LockedError (another process trains here), UsageError, and
    KeyboardInterrupt after a signal, when its checkpoint is whole: within a step, whatever an evaluation takes.
    """
    return _train(Fit(model, objective, batches, optimizer, **options))


def _train(run: Fit) -> Generator[Event, None, None]:
    counters = _Counters()
    with ExitStack() as stack:
        interruption = Interruption()
        if run.checkpoints is not None:
            if distributed.current().writes:
                stack.enter_context(storage.lock(run.checkpoints / ".lock"))
            counters = yield from _go_on(run)
            stack.enter_context(interruption)
        yield Started("training", run.steps, "steps")
        if counters.step:
            yield Progressed(counters.step, "going on from a checkpoint")
        if counters.unmeasured:
            yield from _evaluate_and_save(run, counters, interruption)
        if run.on_bad_numbers == "back" and counters.step == 0:
            yield from _save(run, counters)  # something to return to
        while counters.step < run.steps and not _is_over(run, counters):
            parts = counters.parts
            bad, event = _one_step(run, counters)
            yield event
            if counters.parts > parts:
                yield Warned(_in_more_parts(run, counters))
            if bad is not None and run.on_bad_numbers == "back":
                counters = yield from _go_back(run, counters, bad)
                continue
            if bad is not None:
                yield Warned(_skip_or_stop(run, counters, bad))
            yield from _evaluate_and_save(run, counters, interruption)
        if _is_over(run, counters) and counters.step < run.steps:
            yield Stopped(_why_stopped(run, counters), counters.step)


def _is_over(run: Fit, counters: _Counters) -> bool:
    """Whether as many evaluations in a row as ``patience`` says were no better than the best before them."""
    return run.patience is not None and counters.worse >= run.patience


def _why_stopped(run: Fit, counters: _Counters) -> str:
    many = f"the last {counters.worse} evaluations were" if counters.worse > 1 else "the last evaluation was"
    best = (
        "finite"
        if counters.best_value is None
        else f"better than step {counters.best_step:,}'s {counters.best_value:.4g}"
    )
    return f"stopped at step {counters.step:,} of {run.steps:,}: {many} not {best}"


def _one_step(run: Fit, counters: _Counters) -> tuple[BadNumbers | None, Event]:
    """One optimizer step: the error if its numbers were bad, and then nothing has changed; and its event."""
    step, begun = counters.step, time.perf_counter()
    counters.step += 1
    if step in counters.dropped:
        return None, Noted(f"step {step + 1}: batch {step} is left out")
    factor = run.schedule(step, run.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    if run.dropout is not None:
        set_dropout(run.model, run.dropout(step, run.steps))
    batch = run.batches(step)
    watch = LossWatch(**counters.watch) if run.watch_loss else None
    closure = Closure(
        run.model,
        run.objective,
        batch,
        step=step,
        seed=run.seed,
        accumulate=max(run.accumulate, counters.parts),
        clip_norm=run.clip_norm,
        precision=run.precision,
        watch=watch,
        state=partial(_watched, run.model, run.optimizer),
    )
    run.model.train()
    bad, parts = None, closure.parts
    try:
        _update(run.optimizer, closure)
        counters.skipped_in_a_row = 0
    except BadNumbers as error:
        bad = error
    if closure.parts > parts:
        counters.parts = closure.parts
    if watch is not None:
        counters.watch = watch.state()
    counters.tokens += _tokens(batch)
    counters.seconds += time.perf_counter() - begun
    extra = _statistics(run.optimizer)
    rate = run.optimizer.param_groups[0]["lr"]
    return bad, Trained(
        step + 1, closure.loss, rate, closure.gradient_norm, counters.tokens, counters.seconds, extra, closure.count
    )


def _update(optimizer: Optimizer, closure: Closure) -> None:
    """One update of the weights. ResourceError where memory runs out behind the gradients: some weights have changed
    then and others not, so it cannot be done again.
    """
    try:
        optimizer.step(closure)
    except (MemoryError, RuntimeError) as error:
        if not machine.is_out_of_memory(error):
            raise
        raise ResourceError(
            f"Memory ran out in the update of step {closure.step + 1}: {first_line(error)}",
            todo="end other programs and run the same command again: it goes on from its last checkpoint",
        ) from None


def _in_more_parts(run: Fit, counters: _Counters) -> str:
    """What a person is told when memory ran out and a step went well in more parts."""
    same = "which draw dropout of their own" if has_dropout(run.model) else "with the same sums"
    return f"memory ran out at step {counters.step}: batches are now made in {counters.parts} parts, {same}"


def _skip_or_stop(run: Fit, counters: _Counters, bad: BadNumbers) -> str:
    """The warning for a step that was skipped; raises when it must not be."""
    counters.skipped += 1
    counters.skipped_in_a_row += 1
    if run.on_bad_numbers == "stop" or counters.skipped_in_a_row >= MOST_IN_A_ROW:
        raise bad
    return f"{bad.what} ({bad.where}); skipped, {counters.skipped} so far"


def _go_back(run: Fit, counters: _Counters, bad: BadNumbers) -> Generator[Event, None, _Counters]:
    """Return to the last checkpoint and leave the bad batch out from now on."""
    dropped = {*counters.dropped, bad.step}
    if all(bad.step - before in dropped for before in range(MOST_IN_A_ROW)):
        raise bad
    restored = yield from _go_on(run)
    restored.dropped = sorted(dropped)
    yield Warned(f"{bad.what} ({bad.where}); back to step {restored.step}, without that batch")
    yield Progressed(restored.step, "back to a checkpoint")
    return restored


def _go_on(run: Fit) -> Generator[Event, None, _Counters]:
    """Restore the newest whole checkpoint, if there is one; returns the counters."""
    assert run.checkpoints is not None
    found, problems = checkpoint.newest(run.checkpoints)
    distributed.wait_for_all()
    for problem in problems:
        yield Warned(problem)
    if found is None:
        copies = run.keep + 1 - len(checkpoint.saved(run.checkpoints))
        storage.check_space(run.checkpoints, copies * checkpoint.size(run.model))
        return _Counters()
    checkpoint.refuse_other_run(found, run.identity)
    checkpoint.restore(found, run.model, run.optimizer)
    return _Counters(**found.counters)


def _evaluate_and_save(run: Fit, counters: _Counters, interruption: Interruption) -> Iterator[Event]:
    step, last = counters.step, counters.step == run.steps
    best = False
    due = run.evaluate is not None and (last or counters.unmeasured or _due(step, run.evaluate_every))
    values = _evaluate(run, step, interruption) if due else None
    counters.unmeasured = due and values is None
    if values is not None:
        first = next(iter(values.values()))
        best = math.isfinite(first) and (counters.best_value is None or first < counters.best_value)
        counters.worse += 1
        if best:
            counters.best_step, counters.best_value, counters.worse = step, first, 0
        yield Evaluated(step, values)
    interrupted = distributed.any_process(interruption.signalled)
    if run.checkpoints is not None and (
        last or interrupted or best or _is_over(run, counters) or _due(step, run.save_every)
    ):
        yield from _save(run, counters)
    if interrupted:
        raise KeyboardInterrupt


def _save(run: Fit, counters: _Counters) -> Iterator[Event]:
    assert run.checkpoints is not None
    yield Saving(counters.step)
    path = checkpoint.save(run.checkpoints, counters.step, run.model, run.optimizer, asdict(counters), run.identity)
    if distributed.current().writes:
        checkpoint.prune(run.checkpoints, run.keep, counters.best_step)
    yield Saved(counters.step, path)


def _evaluate(run: Fit, step: int, interruption: Interruption) -> dict[str, float] | None:
    """What was measured; None where a signal came first. Several processes end an evaluation together or not at all."""
    assert run.evaluate is not None
    if distributed.any_process(interruption.signalled):
        return None
    alone, values = distributed.current().world == 1, None
    device = next(run.model.parameters()).device
    run.model.eval()
    reduced = torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bfloat16")
    with torch.no_grad(), seeded(derived_seed(run.seed, step, -2), device), reduced, interruption.ends(alone):
        values = run.evaluate(run.model)
    distributed.forget_forward(run.model)
    run.model.train()
    if not values and not interruption.signalled:
        raise UsageError("the evaluation measured nothing", expected="at least one named value")
    return values


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _watched(model: nn.Module, optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Weights and optimizer state: what an update would spread a bad number through."""
    for name, parameter in model.named_parameters():
        yield name, parameter
        for field_name, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.ndim:
                yield f"{name}/{field_name}", value


def _statistics(optimizer: Optimizer) -> dict[str, float]:
    """What the optimizer says of its last step; figures of single layers (a name with a slash) stay out."""
    told = optimizer.statistics() if hasattr(optimizer, "statistics") else {}
    return {name: float(value) for name, value in told.items() if "/" not in name}


def _tokens(batch: Batch) -> int:
    """Input positions of a batch, or its rows when it has no ``input_ids``."""
    if "input_ids" in batch:
        return batch["input_ids"].numel()
    return min(len(tensor) for tensor in batch.values() if tensor.ndim)
