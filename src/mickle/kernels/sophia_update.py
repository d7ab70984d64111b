"""Sophia's parameter update: one pass over parameter, gradient, momentum and curvature.

Source: "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training", arXiv 2305.14342,
Algorithm 3, lines 6 and 12 to 13. With gradient g, momentum m, curvature h (one number per coordinate):

    m     <- beta m + (1 - beta) g
    theta <- (1 - lr weight_decay) theta
    theta <- theta - lr clip( momentum_scale m / max(gamma curvature_scale h, eps), -1, 1 )

A coordinate is *unclipped* when ``momentum_scale |m| < gamma curvature_scale h``; the pass counts them. The two scales
undo the bias of averages that began at zero; they are 1 in the paper.

``update_plain`` is the definition. ``update_foreach`` is the same for a list of tensors in few launches, for
accelerators. ``update_numba`` reads 16 and writes 8 bytes a parameter in one vectorised pass over the tensors' own
memory. ``sophia_update`` chooses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from mickle.kernels.compiled import compiled

_BLOCK = 65536  # elements a thread takes at a time: long enough to hide the hand-over, short enough to share well
_PARALLEL_FROM = 2 * _BLOCK  # below this a second thread would have nothing to do


@dataclass(frozen=True)
class SophiaRule:
    """The numbers of one update that all tensors of a parameter group share (see the module's equations)."""

    lr: float
    beta: float
    gamma: float
    eps: float
    weight_decay: float


class Tensors(NamedTuple):
    """One parameter with its gradient and state, four tensors of one shape, updated in place; and two scales."""

    parameter: Tensor
    gradient: Tensor
    momentum: Tensor
    curvature: Tensor
    momentum_scale: float = 1.0
    curvature_scale: float = 1.0


def update_plain(tensors: Tensors, rule: SophiaRule) -> Tensor:
    """Update one parameter of any floating dtype, shape and strides in place; the number of unclipped coordinates.

    The arithmetic is in the curvature's dtype (float32, or float64 for float64 parameters); results are rounded once,
    when written back.
    """
    dtype = tensors.curvature.dtype
    momentum = tensors.momentum.to(dtype) * rule.beta + tensors.gradient.to(dtype) * (1 - rule.beta)
    tensors.momentum.copy_(momentum)
    numerator = momentum * tensors.momentum_scale
    curvature = tensors.curvature * (rule.gamma * tensors.curvature_scale)
    update = (numerator / curvature.clamp(min=rule.eps)).clamp(-1, 1)
    decayed = tensors.parameter.to(dtype) * (1 - rule.lr * rule.weight_decay)
    tensors.parameter.copy_(decayed - rule.lr * update)
    return (numerator.abs() < curvature).sum()


def update_foreach(many: Sequence[Tensors], rule: SophiaRule) -> list[Tensor]:
    """``update_plain`` for tensors of one device whose four dtypes agree: a dozen launches for the whole list."""
    momenta = [t.momentum for t in many]
    curvatures = torch._foreach_mul([t.curvature for t in many], [rule.gamma * t.curvature_scale for t in many])
    torch._foreach_mul_(momenta, rule.beta)
    torch._foreach_add_(momenta, [t.gradient for t in many], alpha=1 - rule.beta)
    updates = torch._foreach_mul(momenta, [t.momentum_scale for t in many])
    unclipped = [(update.abs() < curvature).sum() for update, curvature in zip(updates, curvatures)]
    torch._foreach_clamp_min_(curvatures, rule.eps)
    torch._foreach_div_(updates, curvatures)
    torch._foreach_clamp_min_(updates, -1.0)
    torch._foreach_clamp_max_(updates, 1.0)
    parameters = [t.parameter for t in many]
    torch._foreach_mul_(parameters, 1 - rule.lr * rule.weight_decay)
    torch._foreach_add_(parameters, updates, alpha=-rule.lr)
    return unclipped


def fits_numba(tensors: Tensors) -> bool:
    """Whether all four tensors are contiguous float32 in this machine's own memory."""
    return all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors[:4])


def update_numba(tensors: Tensors, rule: SophiaRule) -> int:
    """``update_plain`` for tensors that pass ``fits_numba``: in place, on as many threads as torch uses."""
    views = [t.detach().numpy().reshape(-1) for t in tensors[:4]]
    threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)
    parallel = threads > 1 and views[0].size >= _PARALLEL_FROM
    if parallel:
        numba.set_num_threads(threads)
    numbers = (
        rule.beta,
        1 - rule.beta,
        tensors.momentum_scale,
        rule.gamma * tensors.curvature_scale,
        rule.eps,
        1 - rule.lr * rule.weight_decay,
        rule.lr,
    )
    sweep = _sweep_blocks if parallel else _sweep
    return int(sweep(*views, *map(np.float32, numbers)))


def sophia_update(many: Sequence[Tensors], rule: SophiaRule) -> list[Tensor | int]:
    """Update every parameter in place by the fastest path that fits; unclipped counts in the order given.

    A count is a Python integer from the CPU's fast path and a tensor on the parameter's device otherwise, so
    that no accelerator is waited for.
    """
    counts: list[Tensor | int] = [0] * len(many)
    batches: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for index, tensors in enumerate(many):
        if tensors.parameter.numel() == 0:
            continue
        dtypes = {t.dtype for t in tensors[:4]}
        if fits_numba(tensors):
            counts[index] = update_numba(tensors, rule)
        elif tensors.parameter.device.type != "cpu" and len(dtypes) == 1:
            batches.setdefault((tensors.parameter.device, dtypes.pop()), []).append(index)
        else:
            counts[index] = update_plain(tensors, rule)
    for indices in batches.values():
        for index, count in zip(indices, update_foreach([many[i] for i in indices], rule)):
            counts[index] = count
    return counts


# -- compiled ----------------------------------------------------------------------------------------------------------

_ONE = np.float32(1)


# A plain loop over slices, with minimum and maximum as calls, the count as the sum of a comparison and no index
# arithmetic: the compiler makes vector code of it, and any branch makes it 25 times slower.
@compiled
def _sweep(theta, gradient, momentum, curvature, beta, rest, scale, gamma, eps, keep, lr):  # type: ignore[no-untyped-def]
    unclipped = np.int32(0)
    for i in range(theta.size):
        average = beta * momentum[i] + rest * gradient[i]
        momentum[i] = average
        numerator = scale * average
        bound = gamma * curvature[i]
        unclipped += np.int32(abs(numerator) < bound)
        ratio = min(max(numerator / max(bound, eps), -_ONE), _ONE)
        theta[i] = keep * theta[i] - lr * ratio
    return unclipped


@numba.njit(parallel=True, error_model="numpy", cache=True, nogil=True)
def _sweep_blocks(theta, gradient, momentum, curvature, beta, rest, scale, gamma, eps, keep, lr):  # type: ignore[no-untyped-def]
    unclipped = 0
    for block in numba.prange((theta.size + _BLOCK - 1) // _BLOCK):
        part = slice(block * _BLOCK, (block + 1) * _BLOCK)
        unclipped += _sweep(
            theta[part], gradient[part], momentum[part], curvature[part],
            beta, rest, scale, gamma, eps, keep, lr,
        )  # fmt: skip
    return unclipped
