"""Training by several processes: torch's FSDP2 (``fully_shard``), under torchrun, on CPU (gloo) or GPU
(nccl).

Every process draws the same effective batch and takes its own rows; parameters, gradients and optimizer state
are sharded. One process needs no process group: every function here then does nothing, and costs nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from mickle.errors import UsageError


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
    """The place of this process, (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return Place(dist.get_rank(), dist.get_world_size())
    return Place()


@contextlib.contextmanager
def processes() -> Iterator[Place]:
    """Join the process group that torchrun describes in the environment; alone when there is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Place()
        return
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpu else "gloo")
    try:
        yield current()
    finally:
        dist.destroy_process_group()


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
