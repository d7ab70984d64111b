"""Training by several processes: torch's FSDP2 (``fully_shard``), under torchrun, on CPU (gloo) or GPU (nccl).

Every process draws the same effective batch and takes its own rows; parameters, gradients and optimizer state
are sharded. One process needs no process group: every function here then does nothing, and costs nothing.

A verb is the first process's: it alone writes and prints (:func:`lead`). The others come along (:func:`follow`): they
read what it has kept (:func:`after_first`), train, and end as it ends. Such words go by torch's store of keys, which
neither times out nor breaks when a process dies in the middle of a reduction.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from mickle import machine
from mickle.errors import MickleError, ToldError, UsageError

T = TypeVar("T")
END = "end"  # of the first process: "" or its error
PATIENCE = 10.0  # seconds for the word of a process that may be about to end


@dataclass(frozen=True)
class Place:
    """Which of how many processes this one is."""

    rank: int = 0
    world: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0


def current() -> Place:
    """The place of this process, (0, 1) without a process group; in its turn (:func:`after_first`) it is one of one."""
    if dist.is_available() and dist.is_initialized():
        return Place(dist.get_rank(), 1 if _meetings and _meetings[-1].in_turn else dist.get_world_size())
    return Place()


@dataclass
class _Meeting:
    """The processes' common store, how many turns the first has had, and whether this process has one now."""

    store: dist.Store
    turns: int = 0
    in_turn: bool = False


_meetings: list[_Meeting] = []  # the one that is on is the last; a process may have several, one after the other


@contextlib.contextmanager
def processes() -> Iterator[Place]:
    """Join the process group that torchrun describes in the environment; alone when there is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Place()
        return
    from torch.distributed.rendezvous import rendezvous

    gpu = machine.device().type == "cuda"
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    store, rank, world = next(iter(rendezvous("env://")))
    store = dist.PrefixStore(f"mickle-{len(_meetings)}", store)
    dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=world)
    _meetings.append(_Meeting(dist.PrefixStore("told", store)))
    try:
        yield current()
    finally:
        dist.destroy_process_group()
        _leave(rank, world)


def _leave(rank: int, world: int) -> None:
    """The first process may hold the store, so it stays for a while until the others have read its last word."""
    store = _meetings[-1].store
    with contextlib.suppress(RuntimeError):  # the store's holder has gone
        store.set(f"left-{rank}", "")
        until = time.monotonic() + PATIENCE
        others = [f"left-{other}" for other in range(1, world)]
        while rank == 0 and not store.check(others) and time.monotonic() < until:
            time.sleep(0.02)


def after_first(work: Callable[[], T]) -> T:
    """``work``, done by the first process and then by the others, who find what it has kept. Alone: ``work``.

    Raises ToldError in the others where the first process has ended instead.
    """
    place = current()
    if place.world == 1:
        return work()
    meeting = _meetings[-1]
    meeting.turns += 1
    turn = f"turn-{meeting.turns}"
    if not place.writes:
        _wait_for(turn)
    meeting.in_turn = True
    try:
        found = work()
    finally:
        meeting.in_turn = False
    if place.writes:
        meeting.store.set(turn, "")
    return found


def lead(work: Callable[[], T]) -> T:
    """The first process's ``work``; the others are told how it ended."""
    told = ""
    try:
        return work()
    except BaseException as error:
        told = _described(error)
        raise
    finally:
        _meetings[-1].store.set(END, told)


def follow(work: Callable[[], object]) -> None:
    """Another process's ``work``, which ends as that of the first does. Raises its error as ToldError."""
    try:
        work()
        _wait_for("never")
    except ToldError as told:
        if told.what:
            raise
    except RuntimeError:  # a reduction breaks when the first process has left
        _raise_end(PATIENCE)
        raise


def _described(error: BaseException) -> str:
    exit_code = (
        error.exit_code if isinstance(error, MickleError) else 130 if isinstance(error, KeyboardInterrupt) else 1
    )
    return json.dumps({"what": str(error) or type(error).__name__, "exit_code": exit_code})


def _wait_for(key: str) -> None:
    while not _meetings[-1].store.check([key]):
        _raise_end()
        time.sleep(0.02)


def _raise_end(patience: float = 0.0) -> None:
    """ToldError if the first process has ended, or does within so many seconds; without a text if all went well."""
    store, until = _meetings[-1].store, time.monotonic() + patience
    while not store.check([END]):
        if time.monotonic() >= until:
            return
        time.sleep(0.02)
    told = store.get(END).decode()
    raise ToldError(**json.loads(told)) if told else ToldError("", exit_code=0)


def shard(model: nn.Module) -> nn.Module:
    """Shard a model in place over all processes: each block of a ``ModuleList`` by itself, then the rest.

    Build the model from the same seed in every process first. A model of one process is left alone.
    """
    place = current()
    if place.world == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (place.world,))
    for blocks in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
        for block in blocks:
            if any(True for _ in block.parameters()):
                fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a small tensor over all processes."""
    if current().world > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def any_process(flag: bool) -> bool:
    """Whether ``flag`` is true in some process."""
    if current().world == 1:
        return flag
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return bool(sum_over_processes(torch.tensor(float(flag), device=device)) > 0)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor (all processes must call it); any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, sharded and on the device as ``like`` is. All processes hold the same ``tensor``."""
    if isinstance(like, DTensor):
        device = like.to_local().device
        return distribute_tensor(tensor.to(device), like.device_mesh, like.placements, src_data_rank=None)
    return tensor.to(like.device)


def synchronise_last(model: nn.Module, last: bool) -> None:
    """Reduce gradients over processes only at the last micro-batch: the others add up locally."""
    if current().world > 1 and hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(last)


def forget_forward(model: nn.Module) -> None:
    """To be called after a forward pass that no backward pass follows: sharded layers must forget it.

    They note the order of forward passes to fetch weights early in the backward pass; with passes too many in that
    order they fetch some that are not used any more, keep them, and go on with those old weights in the next step.
    """
    if current().world == 1 or not hasattr(model, "set_requires_gradient_sync"):
        return
    if not hasattr(model, "reset_iter_state"):
        raise UsageError(
            f"torch {torch.__version__} cannot evaluate between the training steps of several processes",
            expected="torch 2.13 or later",
            todo="train in one process, or take a newer torch",
        )
    model.reset_iter_state()


def rows_of(batch: Mapping[str, Tensor], part: int, parts: int) -> dict[str, Tensor]:
    """The ``part``-th of ``parts`` nearly equal runs of rows; a tensor without dimensions is in each."""
    return {name: t.tensor_split(parts)[part] if t.ndim else t for name, t in batch.items()}


def wait_for_all() -> None:
    """Return when every process is here."""
    if current().world > 1:
        dist.barrier()
