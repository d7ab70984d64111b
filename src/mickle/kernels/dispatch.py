"""Which of a kernel's two versions runs: the fast one, or its plain torch twin.

Fast kernels write their own backward pass and can be differentiated once. The plain twins are made of
ordinary torch operations and can be differentiated as often as wanted, as Hessian-vector products need::

    with plain_kernels():
        total, count = objective(model, batch)
        gradients = torch.autograd.grad(total / count, parameters, create_graph=True)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_plain_only: ContextVar[bool] = ContextVar("mickle_plain_kernels", default=False)


@contextmanager
def plain_kernels() -> Iterator[None]:
    """Inside this context every kernel of the package runs its plain, twice differentiable twin."""
    token = _plain_only.set(True)
    try:
        yield
    finally:
        _plain_only.reset(token)


def use_plain() -> bool:
    """True inside ``plain_kernels()``, except in a graph torch compiles: that has one derivative anyway."""
    return not torch.compiler.is_compiling() and _plain_only.get()


def refuse_second_derivative() -> None:
    """To be called first in a fast kernel's backward pass.

    Under ``create_graph=True`` torch would take the hand-written gradient for a constant, and second
    derivatives would be wrong without a word.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "This kernel can be differentiated once; for create_graph=True run the forward pass inside "
            "mickle.kernels.dispatch.plain_kernels()."
        )
