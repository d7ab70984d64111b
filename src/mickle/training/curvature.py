"""Estimates of a loss's diagonal curvature, for Sophia (arXiv 2305.14342, section 2.3; "Sophia: A Scalable Stochastic
Second-order Optimizer for Language Model Pre-training").

For a loss L = (1/B) sum of B loss terms (tokens, not sequences; ignored positions do not count):

    Hutchinson (Algorithm 1):              u ~ N(0, I),            estimate = u o (H u) Gauss-Newton-Bartlett
    (Algorithm 2):   labels ~ model's own,   estimate = B (gradient of the mean sampled loss)^2

Both are unbiased: the first for the diagonal of the Hessian H (any twice differentiable loss; entries can be negative),
the second for the diagonal of the Gauss-Newton matrix (never negative; the loss must be a likelihood, so that labels
can be drawn from it). With the data's true labels the second would be the empirical Fisher, which is another quantity.

The square of the second is taken once, of the gradient summed over all micro-batches and processes, with B
the global count: G^2 / B with G the summed gradient. So an estimate depends on the batch alone, not on how it
was cut (given the drawn labels). Squaring each micro-batch with its own B would be unbiased too, and less
noisy, but would make the result depend on the cut and need a second gradient's memory.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mickle.errors import UsageError
from mickle.kernels.dispatch import plain_kernels
from mickle.kernels.losses import cross_entropy, drawn_labels, sampled_cross_entropy
from mickle.training.distributed import current, sum_over_processes

Batch = Mapping[str, Tensor]
Objective = Callable[[nn.Module, Any], tuple[Tensor, Tensor]]  # (sum of loss terms, their count)
_ONE_LABEL = ("ForSequenceClassification", "ForImageClassification", "ForVideoClassification", "ForAudioClassification")
_LABEL_A_TOKEN = ("ForMaskedLM", "ForTokenClassification")
_NEXT_TOKEN = (None, "ForCausalLM")


@dataclass(frozen=True)
class Estimate:
    """Diagonal curvature of the mean loss: one tensor a parameter, None where the loss does not reach it.

    ``count`` is B, the number of loss terms in the whole batch over all processes.
    """

    diagonal: list[Tensor | None]
    count: int


class NotALikelihood(UsageError):
    """Sophia-G was asked about a loss from which no labels can be drawn."""


# (model, micro-batches, parameters, random numbers, objective or None for the model's own likelihood)
Estimator = Callable[[nn.Module, Sequence[Batch], Sequence[nn.Parameter], torch.Generator, Objective | None], Estimate]


def gauss_newton_bartlett(
    model: nn.Module,
    micro_batches: Sequence[Batch],
    parameters: Sequence[nn.Parameter],
    generator: torch.Generator,
    objective: Objective | None = None,
) -> Estimate:
    """Sophia-G's estimate: one forward and backward pass over the batch with labels drawn from the model.

    Uses the parameters' ``.grad``, which must be None (``undisturbed`` sees to it) and are None again afterwards. An
    ``objective`` must return a sum made by ``kernels.losses.cross_entropy`` as it is; ``NotALikelihood`` otherwise.
    """
    model, count = _unwrapped(model), 0
    for batch in micro_batches:
        total, terms = _at_drawn_labels(model, batch, generator, objective)
        total.backward()
        count += int(terms)
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    gradients, count = _over_processes(gradients, count)
    # Squared in float32: a bfloat16 or float16 gradient of 1e-5 would vanish.
    return Estimate([None if g is None else _wide(g).square_().div_(count) for g in gradients], count)


def hutchinson(
    model: nn.Module,
    micro_batches: Sequence[Batch],
    parameters: Sequence[nn.Parameter],
    generator: torch.Generator,
    objective: Objective | None = None,
    *,
    probe: Literal["gaussian", "rademacher"] = "gaussian",
) -> Estimate:
    """Sophia-H's estimate u o (H u), the product by differentiating twice; one probe u for the whole batch.

    Variance of one entry: 2 H_ii^2 + sum_{j != i} H_ij^2 with a Gaussian probe, sum_{j != i} H_ij^2 with a Rademacher
    one. Attention and kernels run their plain versions, the only ones that can be differentiated twice; do not compile.
    """
    if any(isinstance(parameter, DTensor) for parameter in parameters):
        raise UsageError(
            "Hutchinson's estimate differentiates twice, which sharded parameters do not support",
            todo="Use estimator='gnb' with FSDP.",
        )
    objective = likelihood if objective is None else objective
    model, count = _unwrapped(model), 0
    probes = [_probe(parameter, generator, probe) for parameter in parameters]
    sums: list[Tensor | None] = [None] * len(parameters)
    for batch in micro_batches:
        with plain_kernels(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            total, terms = objective(model, batch)
            products = hessian_product(total, parameters, probes)
        count += int(terms)
        sums = [_sum(so_far, product) for so_far, product in zip(sums, products)]
    sums, count = _over_processes(sums, count)
    return Estimate([None if s is None else s.mul_(u).div_(count) for s, u in zip(sums, probes)], count)


def first_rows(micro_batches: Sequence[Batch], share: float) -> list[Batch]:
    """About the first ``share`` of all rows, at least one.

    How many micro-batches are read follows from their number alone, since sharded processes wait for each
    other in each; entries of a batch that are not one a row are kept whole.
    """
    wanted = share * len(micro_batches)
    parts = max(1, math.ceil(wanted - 1e-9))
    return [_rows(batch, wanted / parts) for batch in micro_batches[:parts]]


def _rows(batch: Batch, share: float) -> Batch:
    sizes = [len(value) for value in batch.values() if isinstance(value, Tensor) and value.dim()]
    keep = max(1, math.ceil(share * max(sizes, default=1) - 1e-9))
    return {
        name: value[:keep] if isinstance(value, Tensor) and value.dim() and len(value) == sizes[0] else value
        for name, value in batch.items()
    }


def hessian_product(loss: Tensor, parameters: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor | None]:
    """H v of a scalar loss, one tensor a parameter; None where the loss does not depend on the parameter at all."""
    gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    pairs = [(g, v) for g, v in zip(gradients, vectors) if g is not None and g.requires_grad]
    if not pairs:  # a loss linear in every parameter
        return [None if g is None else torch.zeros_like(v) for g, v in zip(gradients, vectors)]
    slope = sum(((g * v).sum() for g, v in pairs), start=loss.new_zeros(()))
    products = torch.autograd.grad(slope, parameters, allow_unused=True)
    return [
        None if g is None else (torch.zeros_like(v) if p is None else p)
        for g, p, v in zip(gradients, products, vectors)
    ]


def likelihood(model: nn.Module, batch: Batch, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """The model's own loss on a batch as (sum of terms, count); with a generator, at labels drawn from the model.

    Knows Mickle's models (``labels`` [B, T] already shifted), and of transformers: causal and masked language models,
    sequence-to-sequence models, token and sequence classification, multi-label classification and regression (a
    Gaussian of variance 1). Positions labelled -100 are left out. No label smoothing, no auxiliary loss.
    """
    if "labels" not in batch:
        raise UsageError("A batch without labels has no loss", where="batch", expected='an entry "labels"')
    labels = batch["labels"]
    if "head" in signature(_unwrapped(model).forward).parameters:
        loss = cross_entropy if generator is None else partial(sampled_cross_entropy, generator=generator)
        others = {name: batch[name] for name in ("documents",) if name in batch}
        return model(batch["input_ids"], head=partial(loss, labels=labels), **others)
    scores, labels, kind = _scores(model, batch)
    if kind == "regression":
        drawn = scores.detach() + _noise(scores, generator) if generator is not None else labels.to(scores)
        return 0.5 * (scores - drawn.reshape(scores.shape)).square().sum(), torch.tensor(len(scores))
    if kind == "multi_label_classification":
        drawn = labels.to(scores)
        if generator is not None:
            uniform = torch.rand(scores.shape, generator=generator, device=generator.device).to(scores.device)
            drawn = uniform.lt(scores.sigmoid()).to(scores)
        return F.binary_cross_entropy_with_logits(scores, drawn, reduction="sum"), torch.tensor(len(scores))
    if generator is None:
        return cross_entropy(scores, None, labels)
    return sampled_cross_entropy(scores, None, labels, generator)


def _at_drawn_labels(
    model: nn.Module, batch: Batch, generator: torch.Generator, objective: Objective | None
) -> tuple[Tensor, Tensor]:
    """Sum and count of the loss at labels drawn from the model."""
    if objective is None:
        return likelihood(model, batch, generator)
    with drawn_labels(generator) as sums:
        total, terms = objective(model, batch)
    # Anything else, such as a weighted or a preference loss, would give the square of some other gradient.
    if not any(torch.equal(total.detach(), drawn) for drawn in sums):
        raise NotALikelihood(
            "Labels cannot be drawn from the model for this objective",
            expected="a likelihood: next token, masked token, classification",
            todo="Use estimator='hutchinson', which works for any twice differentiable loss.",
        )
    return total, terms


@contextmanager
def undisturbed(model: nn.Module, parameters: Sequence[nn.Parameter], seed: int) -> Iterator[None]:
    """Run passes over a model that leave no trace: gradients, buffers (batch norm) and torch's generators come back.

    Inside, ``.grad`` is None, gradients are recorded, and torch's generators (dropout) start from ``seed``.
    """
    gradients = [parameter.grad for parameter in parameters]
    buffers = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers() if model.training}
    devices = sorted({p.device.index for p in parameters if p.device.type == "cuda" and p.device.index is not None})
    try:
        for parameter in parameters:
            parameter.grad = None
        # A compiled model can be differentiated once only, and would be compiled anew for this single pass.
        with torch.random.fork_rng(devices=devices), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(seed)
            yield
    finally:
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        for buffer, before in buffers.values():
            buffer.copy_(before)


def _scores(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, str]:
    """Logits, the labels that stand against them, and which likelihood, for a transformers model."""
    whole: Any = _unwrapped(model)
    config, kind = getattr(whole, "config", None), getattr(whole, "loss_type", "unknown")
    labels = batch["labels"]
    if getattr(config, "is_encoder_decoder", False) and kind not in _ONE_LABEL:
        return model(**batch).logits, labels, "class"  # the decoder's inputs are made of the labels
    if kind not in (*_ONE_LABEL, *_LABEL_A_TOKEN, *_NEXT_TOKEN):
        raise UsageError(
            f"The likelihood of a {type(whole).__name__} is not known here",
            expected="a language model, a sequence-to-sequence model or a classifier",
            todo="Give your loss: refresh(model, batch, objective=...), which uses Hutchinson's estimate.",
        )
    scores = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    if kind in _NEXT_TOKEN:
        return scores[..., :-1, :], labels[..., 1:], "class"
    if kind in _LABEL_A_TOKEN:
        return scores, labels, "class"
    chosen = getattr(config, "problem_type", None) or ("regression" if scores.shape[-1] == 1 else "class")
    return scores, labels, chosen if chosen != "single_label_classification" else "class"


def _unwrapped(model: nn.Module) -> Any:
    """The model inside torch's data-parallel wrapper: estimates are summed over processes here, not by its hooks."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _over_processes(sums: list[Tensor | None], count: int) -> tuple[list[Tensor | None], int]:
    """Sums and count over all processes. Sharded gradients were already averaged over them by their own hooks."""
    processes = current().world
    if processes == 1:
        return sums, max(count, 1)
    present = [tensor for tensor in sums if tensor is not None]
    total = sum_over_processes(torch.tensor(count, device=present[0].device if present else "cpu"))
    for tensor in present:
        if isinstance(tensor, DTensor):
            tensor.mul_(processes)
        else:
            torch.distributed.all_reduce(tensor)
    return sums, max(int(total), 1)


def _probe(parameter: Tensor, generator: torch.Generator, probe: str) -> Tensor:
    """A random vector of unit variance, of a parameter's shape and dtype."""
    normal = _noise(parameter, generator)
    return normal if probe == "gaussian" else torch.where(normal < 0, -torch.ones_like(normal), torch.ones_like(normal))


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _wide(tensor: Tensor) -> Tensor:
    """The tensor itself when float32 or wider, else a float32 copy."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _sum(so_far: Tensor | None, more: Tensor | None) -> Tensor | None:
    if more is None:
        return so_far
    more = _wide(more.detach())
    return more if so_far is None else so_far.add_(more)
