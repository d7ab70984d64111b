"""One optimizer step's loss and gradient: what :func:`mickle.training.loop.fit` hands to ``optimizer.step``.

With loss terms ``l_k`` over the whole effective batch of all processes, ``N`` of them counted, the gradient
is ``(1 / N) sum_k grad l_k``: each micro-batch adds the gradient of its *sum*, and one multiplication at the
end divides by the global ``N`` and clips. So micro-batches of unequal counts weigh what they should.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import struct
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor, nn

from mickle import machine
from mickle.errors import UsageError
from mickle.training import distributed
from mickle.training.distributed import local, rows_of
from mickle.training.guard import BadNumbers, LossWatch, OutputWatch, first_not_finite
from mickle.training.objectives import Batch, Objective

T = TypeVar("T")
NamedTensors = Callable[[], Iterator[tuple[str, Tensor]]]


def derived_seed(*parts: int) -> int:
    """A seed that depends on every one of ``parts`` and on nothing else."""
    packed = struct.pack(f"<{len(parts)}q", *parts)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> 1


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global random numbers start at ``seed`` inside, and are outside as if nothing had happened."""
    # torch.manual_seed would also note the seed, with a stack trace, for every kind of device that is not there.
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


class Closure:
    """Callable: gradient of the mean loss into ``.grad``, clipped; returns the mean loss.

    An optimizer that needs more finds it here: ``model``, ``objective``, ``step`` (finished steps before this
    one), ``batch`` (this process's rows, on the model's device), ``micro_batches`` (the same, split),
    ``generator`` (fresh random numbers of this step and process, on the CPU), :meth:`forward_context` and
    :meth:`mean_loss`. After a call: ``loss``, ``count``, ``gradient_norm`` (before clipping).
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        batch: Batch,
        *,
        step: int,
        seed: int = 0,
        accumulate: int = 1,
        clip_norm: float | None = None,
        precision: str = "float32",
        watch: LossWatch | None = None,
        state: NamedTensors = lambda: iter(()),
    ) -> None:
        self.place = distributed.current()
        self.device = next(model.parameters()).device
        rows = min(len(tensor) for tensor in batch.values() if tensor.ndim)
        if rows < self.place.world:
            raise UsageError(f"batch {step} has {rows} rows for {self.place.world} processes")
        self.model, self.objective, self.step = model, objective, step
        mine = rows_of(batch, self.place.rank, self.place.world)
        self.batch: Batch = {name: t.to(self.device, non_blocking=True) for name, t in mine.items()}
        # All processes run the same number of passes: sharded layers wait for each other in every one.
        self.parts = min(accumulate, rows // self.place.world)
        self.micro_batches = tuple(rows_of(self.batch, part, self.parts) for part in range(self.parts))
        self.generator = torch.Generator().manual_seed(derived_seed(seed, step, -1, self.place.rank))
        self.loss, self.count, self.gradient_norm = math.nan, 0.0, 0.0
        self._first_row = (torch.arange(rows).tensor_split(self.place.world)[self.place.rank])[0].item()
        self._seed, self._clip_norm, self._precision = seed, clip_norm, precision
        self._watch, self._state = watch, state
        self.when_cut: Callable[[], object] = lambda: None  # what else must be done anew when there are more parts

    def __call__(self) -> float:
        """Raises :class:`BadNumbers`, before a weight changes, for a number not finite or a loss that jumps."""
        return self.fitting(self._gradients)

    def fitting(self, work: Callable[[], T]) -> T:
        """What ``work`` makes of ``micro_batches``; where memory runs out, of twice as many, with the same sums.

        ResourceError where that does not help, and for one of several processes, whose passes must stay as many.
        """
        begun = self.parts

        def again() -> T:
            if self.parts > begun:
                self.when_cut()
            return work()

        return machine.retried(again, self._cut)

    def _cut(self) -> bool:
        """Make the batch in twice as many parts, if it has the rows and this process is alone."""
        rows = min(len(tensor) for tensor in self.batch.values() if tensor.ndim)
        if self.place.world > 1 or self.parts >= rows:
            return False
        self.parts = min(2 * self.parts, rows)
        self.micro_batches = tuple(rows_of(self.batch, part, self.parts) for part in range(self.parts))
        return True

    def _gradients(self) -> float:
        for parameter in self.model.parameters():
            parameter.grad = None
        bad_state = first_not_finite(self._state())
        # Loss, count and bad state in one tensor: processes meet once. float32 would stop counting at 2^24.
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        sums[2] = bad_state is not None
        for part, micro_batch in enumerate(self.micro_batches):
            distributed.synchronise_last(self.model, part == self.parts - 1)
            with torch.enable_grad():
                with self.forward_context(part):
                    total, count = self.objective(self.model, micro_batch)
                total.backward()
            sums[0] += total.detach()
            sums[1] += count
        self._set_loss(sums, bad_state)
        self._scale_gradients()
        return self.loss

    def mean_loss(self, watched: bool = True) -> float:
        """The same mean loss, same dropout, without a gradient: what zeroth-order methods compare.

        With ``watched`` False, no jump of it is looked for: the second loss of one batch is no second event.
        """
        return self.fitting(lambda: self._loss_alone(watched))

    def _loss_alone(self, watched: bool) -> float:
        sums = torch.zeros(3, dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for part, micro_batch in enumerate(self.micro_batches):
                with self.forward_context(part):
                    total, count = self.objective(self.model, micro_batch)
                sums[0] += total
                sums[1] += count
        distributed.forget_forward(self.model)
        self._set_loss(sums, None, watched)
        return self.loss

    @contextlib.contextmanager
    def forward_context(self, part: int) -> Iterator[None]:
        """Precision and dropout of micro-batch ``part``: a second forward inside it drops the same units."""
        seed = derived_seed(self._seed, self.step, part, self.place.rank)
        reduced = self._precision == "bfloat16"
        with seeded(seed, self.device), torch.autocast(self.device.type, torch.bfloat16, enabled=reduced):
            yield

    def _set_loss(self, sums: Tensor, bad_state: str | None, watched: bool = True) -> None:
        total, count, bad = distributed.sum_over_processes(sums).tolist()
        if count == 0:
            raise UsageError(
                f"batch {self.step} trains nothing: every label is -100", todo="check how the labels are made"
            )
        self.loss, self.count = total / count, count
        if bad:
            raise self._bad(f"a weight or the optimizer's state is not finite: {bad_state or 'in another process'}")
        if not math.isfinite(self.loss):
            raise self._bad(f"the loss is {self.loss}")
        if watched and self._watch is not None and self._watch.spikes(self.loss):
            raise self._bad(f"the loss jumped to {self.loss:.6g}; {self._watch.bound():.6g} was the limit")

    @torch.no_grad()
    def _scale_gradients(self) -> None:
        named = [(n, p) for n, p in self.model.named_parameters() if p.grad is not None]
        gradients = [local(parameter.grad) for _, parameter in named]
        if not gradients:
            raise UsageError("no parameter has a gradient", todo="check that the loss depends on the parameters")
        squares = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        # Sharded layers average their gradients over the processes; the sum is wanted.
        scale = self.place.world / self.count
        self.gradient_norm = scale * math.sqrt(distributed.sum_over_processes(squares).item())
        if not math.isfinite(self.gradient_norm):
            name = first_not_finite((name, parameter.grad) for name, parameter in named)
            raise self._bad(f"the gradient is not finite: {name or 'its norm overflows'}")
        if self._clip_norm is not None and self.gradient_norm > self._clip_norm:
            scale *= self._clip_norm / self.gradient_norm
        torch._foreach_mul_(gradients, scale)

    def _bad(self, what: str) -> BadNumbers:
        """The error for this step, with the rows and the module that it comes from where they can be told."""
        rows, module = self._origin()
        where = f"batch {self.step}, " + (f"rows {', '.join(map(str, rows))}" if rows else "all rows together")
        if module:
            where += f"; first module with a non-finite output: {module}"
        return BadNumbers(f"step {self.step + 1}: {what}", where=where, step=self.step, rows=rows, module=module)

    @torch.no_grad()
    def _origin(self) -> tuple[tuple[int, ...], str | None]:
        """Run forward again: the rows whose own loss is not finite, and the first module that shows it.

        Rows are tried one by one only by a single process: sharded layers would wait for processes with fewer rows.
        """
        with OutputWatch(self.model) as outputs:
            for part, micro_batch in enumerate(self.micro_batches):
                with self.forward_context(part):
                    self.objective(self.model, micro_batch)
        if self.place.world > 1:
            distributed.forget_forward(self.model)
            return (), outputs.found
        rows = min(len(tensor) for tensor in self.batch.values() if tensor.ndim)
        bad = []
        for row in range(rows):
            with self.forward_context(0):
                total, _ = self.objective(self.model, rows_of(self.batch, row, rows))
            if not bool(total.isfinite()):
                bad.append(self._first_row + row)
        return tuple(bad), outputs.found
