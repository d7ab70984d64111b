"""Cross-entropy from the last hidden state, without ever holding the logits of all tokens.

For token ``n`` with hidden state ``h_n`` [D], output matrix ``W`` [V, D] and label ``y_n``::

    z_n = W h_n,   loss_n = log sum_v exp(z_nv) - z_n[y_n],   d loss_n / d z_n = softmax(z_n) - onehot(y_n)

The gradient with respect to ``z_n`` is known as soon as ``z_n`` is, so it is multiplied into the gradients of
``h`` and ``W`` during the forward pass, a chunk of tokens at a time, and the chunk's logits are thrown away.
Memory: one chunk of logits and the two gradients, instead of several arrays [B, T, V]. The backward pass only
multiplies by the incoming scalar.

With label smoothing e (arXiv 1512.00567, section 7) the target is 1 - e on the label plus e / V on every token, so
with V tokens::

    loss_n = log sum_v exp(z_nv) - (1 - e) z_n[y_n] - e mean_v z_nv
    d loss_n / d z_n = softmax(z_n) - (1 - e) onehot(y_n) - e / V

Such a gradient cannot be differentiated again: ``kernels.dispatch.plain_kernels()`` selects the plain twin.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mickle.errors import UsageError
from mickle.kernels.dispatch import refuse_second_derivative, use_plain

IGNORE = -100
CHUNK_BYTES = 16 * 2**20
"""Size of one chunk's logits in the products' precision: large, as each chunk also adds up a whole [V, D]: with 2 MiB
the loss took 40 % longer."""
SOFTMAX_BYTES = 2 * 2**20
"""Size of the float32 rows that exponentials are taken of at a time: they stay in a core's own cache."""

_drawing: ContextVar[tuple[torch.Generator, list[Tensor]] | None] = ContextVar("mickle_drawn_labels", default=None)


@contextmanager
def drawn_labels(generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Inside this context ``cross_entropy`` is ``sampled_cross_entropy``: labels are drawn from the model.

    So every objective made of ``cross_entropy`` has a Gauss-Newton-Bartlett estimate without knowing of it. Yields the
    list of sums returned inside, by which a caller can tell that an objective's value is such a sum and nothing else.
    """
    sums: list[Tensor] = []
    token = _drawing.set((generator, sums))
    try:
        yield sums
    finally:
        _drawing.reset(token)


def labels_are_drawn() -> bool:
    """Whether we are inside ``drawn_labels``, where a gradient is to be that of a log-likelihood and nothing else."""
    return not torch.compiler.is_compiling() and _drawing.get() is not None


def cross_entropy(
    hidden: Tensor, weight: Tensor | None, labels: Tensor, ignore_index: int = IGNORE, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Sum of the tokens' cross-entropies, in nats, and the number of tokens in it.

    hidden: [..., D], floating. With ``weight`` None these are the logits themselves, [..., V].
    weight: [V, D] output matrix, or None.
    labels: [...] int64; positions equal to ``ignore_index`` are left out of sum, count and gradient.
    smoothing: share of each target that is spread evenly over the vocabulary, at least 0 and below 1. Labels drawn
        from the model (``drawn_labels``) are never smoothed: smoothing adds to the loss a term linear in the logits,
        so the curvature that they estimate is the same with it and without.

    Returns scalars: the sum (float32; float64 for float64 input) and the count (int64). Log-sum-exp is taken
    in float32 whatever the precision of the products; under autocast the products run in its precision.
    Differentiable once with respect to ``hidden`` and ``weight``, by one backward pass.
    """
    if not 0 <= smoothing < 1:
        raise UsageError(f"label smoothing is {smoothing}", expected="at least 0 and below 1")
    drawing = None if torch.compiler.is_compiling() else _drawing.get()
    if drawing is not None:
        total, count = sampled_cross_entropy(hidden, weight, labels, drawing[0], ignore_index)
        drawing[1].append(total.detach())
        return total, count
    if use_plain():
        return cross_entropy_plain(hidden, weight, labels, ignore_index, smoothing)
    return _chunked(hidden, weight, labels, ignore_index, None, smoothing)


def cross_entropy_plain(
    hidden: Tensor, weight: Tensor | None, labels: Tensor, ignore_index: int = IGNORE, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """``cross_entropy`` by its definition: holds all logits, can be differentiated any number of times."""
    logits = hidden if weight is None else F.linear(hidden, weight)  # [..., V]
    logits = logits.reshape(-1, logits.shape[-1]).to(_wide(logits.dtype))  # [N, V]
    total = F.cross_entropy(
        logits, labels.reshape(-1), ignore_index=ignore_index, reduction="sum", label_smoothing=smoothing
    )
    return total, (labels != ignore_index).sum()


def sampled_cross_entropy(
    hidden: Tensor, weight: Tensor | None, labels: Tensor, generator: torch.Generator, ignore_index: int = IGNORE
) -> tuple[Tensor, Tensor]:
    """``cross_entropy`` of labels drawn from the model's softmax wherever ``labels`` is not ``ignore_index``.

    The Gauss-Newton-Bartlett estimator of Sophia (arXiv 2305.14342, section 2.3) squares the gradient of this
    loss. The draw is a constant of the differentiation, and depends on nothing but the probabilities and
    ``generator``: one uniform number a position, ignored ones included, inverted through the cumulative
    distribution.
    """
    uniforms = torch.rand(labels.numel(), generator=generator, device=generator.device).to(hidden.device)
    if use_plain():
        with torch.no_grad():
            logits = hidden if weight is None else F.linear(hidden, weight)
            logits = logits.reshape(-1, logits.shape[-1])
            drawn = _draw(logits.to(_wide(logits.dtype)), uniforms).reshape(labels.shape)
        drawn = torch.where(labels == ignore_index, labels, drawn)
        return cross_entropy_plain(hidden, weight, drawn, ignore_index)
    return _chunked(hidden, weight, labels, ignore_index, uniforms, 0.0)


def _chunked(
    hidden: Tensor, weight: Tensor | None, labels: Tensor, ignore_index: int, uniforms: Tensor | None, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Flatten, keep only the tokens that count, and go through them in chunks."""
    if weight is not None and hasattr(weight, "full_tensor"):  # a DTensor that nobody has gathered
        weight = weight.full_tensor()
    hidden, labels = hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)  # [N, D], [N]
    counted = labels != ignore_index
    count = counted.sum()
    # Masked-token and answer-only training leave most positions out. A compiled graph cannot have shapes that
    # depend on the data; there the ignored rows are computed and given gradient zero.
    if not torch.compiler.is_compiling() and int(count) < labels.numel():
        rows = counted.nonzero().squeeze(-1)
        hidden, labels, counted = hidden[rows], labels[rows], counted[rows]
        uniforms = None if uniforms is None else uniforms[rows]
    wanted = hidden.requires_grad or (weight is not None and weight.requires_grad)
    chunked = _ChunkedCrossEntropy.apply if wanted and torch.is_grad_enabled() else _losses_only
    precision = hidden.dtype if weight is None else _product_precision(hidden)
    return chunked(hidden, weight, labels, counted, uniforms, precision, smoothing), count


class _ChunkedCrossEntropy(torch.autograd.Function):
    """hidden [N, D], weight [V, D] or None, labels [N], counted [N] bool -> sum of the counted losses."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor | None,
        labels: Tensor,
        counted: Tensor,
        uniforms: Tensor | None,
        precision: torch.dtype,
        smoothing: float,
    ) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wide = _wide(hidden.dtype)
        matrix = None if weight is None else weight.to(precision)  # [V, D]
        losses = hidden.new_zeros(len(labels), dtype=wide)  # [N]
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = None
        if weight is not None and wants_weight:
            weight_gradient = torch.zeros_like(weight, dtype=wide)
        vocabulary = hidden.shape[-1] if weight is None else len(weight)
        chunks = _chunks(len(labels), vocabulary, precision, CHUNK_BYTES)
        # One space for all chunks: fresh memory costs as much as a good part of the product that fills it.
        space = hidden.new_empty(max((c.stop - c.start for c in chunks), default=0), vocabulary, dtype=precision)
        for rows in chunks:
            inputs = hidden[rows].to(precision)  # [C, D]
            logits = space[: len(inputs)]  # [C, V]
            # Without a matrix the inputs are the model's own logits, and must not be overwritten.
            logits = logits.copy_(inputs) if matrix is None else _product(inputs, matrix.T, out=logits)
            draw = None if uniforms is None else uniforms[rows]
            losses[rows] = _losses_to_gradients(logits, labels[rows], counted[rows], draw, smoothing)
            if hidden_gradient is not None:
                hidden_gradient[rows] = logits if matrix is None else _product(logits, matrix)
            if weight_gradient is not None:
                weight_gradient += _product(logits.T, inputs)
        if weight is not None and weight_gradient is not None:
            weight_gradient = weight_gradient.to(weight.dtype)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        # Scaled where they lie: at this moment memory is at its peak. A second pass over the same graph is
        # refused by torch, which sees that a saved tensor has changed.
        gradients = [None if saved is None else saved.mul_(scale) for saved in ctx.saved_tensors]
        return *gradients, None, None, None, None, None


def _losses_to_gradients(
    logits: Tensor, labels: Tensor, counted: Tensor, uniforms: Tensor | None, smoothing: float
) -> Tensor:
    """Losses [C] of ``logits`` [C, V], which become in place their gradients softmax - target.

    Both are zero where ``counted`` [C] is false. Labels are drawn anew where ``uniforms`` are given.
    """
    wide = _wide(logits.dtype)
    losses = logits.new_empty(len(logits), dtype=wide)
    parts = _chunks(len(logits), logits.shape[1], wide, SOFTMAX_BYTES)
    buffer = logits if logits.dtype == wide else torch.empty_like(logits[parts[0]], dtype=wide)
    for part in parts:
        rows = logits[part] if buffer is logits else buffer[: part.stop - part.start].copy_(logits[part])
        targets = labels[part] if uniforms is None else _draw(rows, uniforms[part])
        losses[part], logits[part] = _softmax_less_target(rows, targets, counted[part], smoothing)
    return losses


def _softmax_less_target(logits: Tensor, targets: Tensor, counted: Tensor, smoothing: float) -> tuple[Tensor, Tensor]:
    """The losses [C] and gradients [C, V] of some rows [C, V] in float32, all of them at once.

    The largest probability is at least 1 / V, so its logarithm is safe and gives log-sum-exp: with z the logits and p
    their softmax, log sum exp z = max z - log max p.
    """
    counted = counted.unsqueeze(-1)
    targets = targets.unsqueeze(-1).where(counted, 0)  # [C, 1]
    chosen = logits.gather(-1, targets)
    margin = logits.amax(-1, keepdim=True) - chosen
    if smoothing:
        margin += smoothing * (chosen - logits.mean(-1, keepdim=True))
    gradient = logits.softmax(-1)  # one operation of torch's, for which a row is read from the cache
    losses = (margin - gradient.amax(-1, keepdim=True).log()) * counted
    if smoothing:
        gradient -= smoothing / logits.shape[-1]
    gradient *= counted
    gradient.scatter_add_(-1, targets, (smoothing - 1) * counted.to(gradient.dtype))
    return losses.squeeze(-1), gradient


def _losses_only(
    hidden: Tensor,
    weight: Tensor | None,
    labels: Tensor,
    counted: Tensor,
    uniforms: Tensor | None,
    precision: torch.dtype,
    smoothing: float,
) -> Tensor:
    """The sum that ``_ChunkedCrossEntropy`` returns, when nobody will ask for gradients."""
    wide = _wide(hidden.dtype)
    matrix = None if weight is None else weight.to(precision)
    losses = hidden.new_zeros(len(labels), dtype=wide)
    vocabulary = hidden.shape[-1] if weight is None else len(weight)
    for rows in _chunks(len(labels), vocabulary, wide, CHUNK_BYTES):
        inputs = hidden[rows].to(precision)
        logits = (inputs if matrix is None else _product(inputs, matrix.T)).to(wide)
        targets = labels[rows] if uniforms is None else _draw(logits, uniforms[rows])
        chosen = logits.gather(-1, targets.where(counted[rows], 0).unsqueeze(-1)).squeeze(-1)
        if smoothing:
            chosen = chosen + smoothing * (logits.mean(-1) - chosen)
        losses[rows] = (logits.logsumexp(-1) - chosen) * counted[rows]
    return losses.sum()


def _draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Labels [C] drawn from softmax(``logits`` [C, V]).

    The first label whose cumulative probability exceeds ``uniforms`` [C]: never one of probability zero.
    """
    cumulative = (logits - logits.amax(-1, keepdim=True)).exp_().cumsum_(-1)
    total = cumulative[:, -1]
    # Rounding must not lift the threshold to the total itself, which no entry exceeds.
    threshold = torch.minimum(uniforms.to(total.dtype) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold.unsqueeze(-1), right=True).squeeze(-1)


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Matrix product in the operands' own precision: they are already what autocast would make of them."""
    with torch.autocast(left.device.type, enabled=False):
        return torch.mm(left, right, out=out)


def _chunks(tokens: int, width: int, dtype: torch.dtype, most: int) -> list[slice]:
    """Chunks of nearly equal size, none above ``most`` bytes of rows so wide, but of one token at least."""
    pieces = max(1, math.ceil(tokens / max(1, most // (dtype.itemsize * width))))
    size = max(1, math.ceil(tokens / pieces))
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def _product_precision(hidden: Tensor) -> torch.dtype:
    """The products' dtype: autocast's where it is on (it never touches float64), else the input's own."""
    device = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of exponentials and sums: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
