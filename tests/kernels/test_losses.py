"""The chunked cross-entropy against its definition: values, gradients, precisions, rows that do not count."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mickle.errors import UsageError
from mickle.kernels import losses
from mickle.kernels.dispatch import plain_kernels
from mickle.kernels.losses import (
    cross_entropy,
    cross_entropy_plain,
    drawn_labels,
    labels_are_drawn,
    sampled_cross_entropy,
)


@pytest.fixture(autouse=True)
def many_chunks(monkeypatch):
    """Chunks of a few rows in pieces of fewer, so that every test crosses their borders."""
    monkeypatch.setattr(losses, "CHUNK_BYTES", 2400)
    monkeypatch.setattr(losses, "SOFTMAX_BYTES", 600)


def problem(seed, rows, width, vocabulary, ignored=0.3, dtype=torch.float32, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(*rows, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(vocabulary, rows, generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = -100
    return hidden, weight, labels


def gradients(function, hidden, weight, labels, scale=1.0):
    hidden = hidden.detach().requires_grad_()
    weight = None if weight is None else weight.detach().requires_grad_()
    total, count = function(hidden, weight, labels)
    inputs = [hidden] if weight is None else [hidden, weight]
    return total.detach(), count, torch.autograd.grad(total * scale, inputs)


def close(ours, reference, tolerance):
    """Error relative to the reference's largest entry."""
    size = reference.double().abs().max().clamp(min=1e-30)
    assert (ours.double() - reference.double()).abs().max() <= tolerance * size


shapes = st.tuples(
    st.integers(0, 10**6),
    st.one_of(st.tuples(st.integers(0, 40)), st.tuples(st.integers(1, 4), st.integers(1, 17))),
    st.integers(1, 20),
    st.integers(1, 65),
    st.sampled_from([0.0, 0.4, 1.0]),
)


@settings(max_examples=60, deadline=None)
@given(shapes, st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_equals_the_definition(shape, dtype, transposed):
    seed, rows, width, vocabulary, ignored = shape
    hidden, weight, labels = problem(seed, rows, width, vocabulary, ignored, dtype)
    if transposed:  # same numbers, other strides
        hidden, weight = hidden.mT.contiguous().mT if hidden.dim() > 1 else hidden, weight.T.contiguous().T
    ours = gradients(cross_entropy, hidden, weight, labels, scale=0.7)
    plain = gradients(cross_entropy_plain, hidden, weight, labels, scale=0.7)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert ours[0].dtype == plain[0].dtype
    assert ours[1] == plain[1] == (labels != -100).sum()
    close(ours[0], plain[0], tolerance)
    for mine, reference in zip(ours[2], plain[2], strict=True):
        assert mine.shape == reference.shape
        if mine.numel():
            close(mine, reference, tolerance)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_logits_given(shape):
    seed, rows, _, vocabulary, ignored = shape
    logits, _, labels = problem(seed, rows, vocabulary, vocabulary, ignored, scale=3.0)
    kept = logits.clone()
    ours = gradients(cross_entropy, logits, None, labels)
    plain = gradients(cross_entropy_plain, logits, None, labels)
    assert torch.equal(logits, kept)  # the caller's logits are not overwritten
    close(ours[0], plain[0], 1e-5)
    if logits.numel():
        close(ours[2][0], plain[2][0], 1e-5)


def test_pencil_example():
    # Logits (0, ln 3): probabilities 1/4 and 3/4; label 0 costs ln 4 and pulls with -3/4, 3/4.
    hidden = torch.tensor([[1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]])
    total, count = cross_entropy(hidden, weight, torch.tensor([0]))
    total.backward()
    assert count == 1
    assert total.item() == pytest.approx(math.log(4))
    assert hidden.grad.item() == pytest.approx(0.75 * math.log(3))


def test_nothing_counts():
    hidden, weight, labels = problem(0, (2, 5), 3, 7, ignored=1.0)
    total, count, grads = gradients(cross_entropy, hidden, weight, labels)
    assert total == 0
    assert count == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in grads)


def test_other_ignore_index():
    hidden, weight, labels = problem(1, (11,), 4, 9, ignored=0.0)
    labels[::3] = 8
    ours = gradients(partial(cross_entropy, ignore_index=8), hidden, weight, labels)
    kept = labels != 8
    expected = F.cross_entropy((hidden @ weight.T)[kept], labels[kept], reduction="sum")
    assert ours[1] == kept.sum()
    close(ours[0], expected, 1e-6)


@pytest.mark.parametrize("size", [1e4, -1e4, 3e37])
def test_extreme_logits(size):
    logits = torch.tensor([[0.0, size, size], [size, 0.0, 1.0]], requires_grad=True)
    total, _ = cross_entropy(logits, None, torch.tensor([1, 1]))
    total.backward()
    exact = F.cross_entropy(logits.detach().double(), torch.tensor([1, 1]), reduction="sum")
    assert total.item() == pytest.approx(exact.item(), rel=1e-6)
    assert torch.isfinite(logits.grad).all()
    assert logits.grad.sum().abs() < 1e-6


def test_not_finite_stays_visible():
    hidden, weight, labels = problem(2, (6,), 3, 5, ignored=0.0)
    hidden[2, 1] = math.nan
    total, _, grads = gradients(cross_entropy, hidden, weight, labels)
    assert total.isnan()
    assert grads[0][2].isnan().all()
    assert grads[0][:2].isfinite().all()


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(autocast):
    """Products in bfloat16, the rest in float32: within bfloat16's rounding of the float64 result."""
    hidden, weight, labels = problem(3, (64,), 16, 40)
    if not autocast:
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
    exact = gradients(cross_entropy_plain, hidden.double(), weight.double(), labels)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = gradients(cross_entropy, hidden, weight, labels)
    assert ours[0].dtype == torch.float32
    close(ours[0], exact[0], 2e-3)
    for mine, reference, source in zip(ours[2], exact[2], (hidden, weight), strict=True):
        assert mine.dtype == source.dtype
        close(mine, reference, 2e-2)


def test_autocast_precision_is_that_of_plain():
    """Under autocast the error against float64 is no larger than the plain twin's under the same autocast."""
    hidden, weight, labels = problem(4, (200,), 32, 50)
    exact = gradients(cross_entropy_plain, hidden.double(), weight.double(), labels)[2]
    with torch.autocast("cpu", torch.bfloat16):
        ours = gradients(cross_entropy, hidden, weight, labels)[2]
        plain = gradients(cross_entropy_plain, hidden, weight, labels)[2]
    for mine, twin, reference in zip(ours, plain, exact, strict=True):
        assert (mine - reference).norm() <= 1.2 * (twin - reference).norm()


def test_no_gradient_wanted():
    hidden, weight, labels = problem(5, (3, 9), 4, 11)
    expected = gradients(cross_entropy, hidden, weight, labels)[0]
    weight.requires_grad_()
    with torch.no_grad():
        total, _ = cross_entropy(hidden, weight, labels)
    assert not total.requires_grad
    close(total, expected, 1e-6)


def test_frozen_output_matrix():
    hidden, weight, labels = problem(6, (9,), 4, 11)
    hidden.requires_grad_()
    cross_entropy(hidden, weight, labels)[0].backward()
    assert weight.grad is None
    close(hidden.grad, gradients(cross_entropy_plain, hidden, weight, labels)[2][0], 1e-5)


def test_differentiated_twice_only_when_plain():
    hidden, weight, labels = problem(7, (6,), 3, 5, dtype=torch.float64)
    hidden.requires_grad_()
    with plain_kernels():
        first = torch.autograd.grad(cross_entropy(hidden, weight, labels)[0], hidden, create_graph=True)[0]
    assert torch.autograd.grad(first.square().sum(), hidden)[0].isfinite().all()
    with pytest.raises(RuntimeError, match="plain_kernels"):
        torch.autograd.grad(cross_entropy(hidden, weight, labels)[0], hidden, create_graph=True)


def test_second_backward_is_refused_not_wrong():
    hidden, weight, labels = problem(8, (6,), 3, 5)
    hidden.requires_grad_()
    total, _ = cross_entropy(hidden, weight, labels)
    total.backward(retain_graph=True, gradient=torch.tensor(0.5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_sampled_labels_follow_the_softmax():
    """40,000 draws within 5 standard deviations of the probabilities; probability zero is never drawn."""
    logits = torch.tensor([0.0, 1.0, -2.0, -math.inf, 2.0, -math.inf]).repeat(40_000, 1).requires_grad_()
    labels = torch.zeros(40_000, dtype=torch.long)
    total, count = sampled_cross_entropy(logits, None, labels, torch.Generator().manual_seed(0))
    probabilities = logits.detach()[0].softmax(-1)
    drawn = (probabilities - torch.autograd.grad(total, logits)[0]).round().mean(0)  # p - (p - onehot)
    deviation = (probabilities * (1 - probabilities) / 40_000).sqrt()
    assert count == 40_000
    assert ((drawn - probabilities).abs() <= 5 * deviation).all()
    assert drawn[3] == drawn[5] == 0


def test_sampled_twin_and_chunks(monkeypatch):
    """The same generator draws the same labels in the twin, under any chunk size and beside ignored rows."""
    hidden, weight, labels = problem(9, (4, 13), 6, 23)

    def sampled(hidden, weight, labels):
        return sampled_cross_entropy(hidden, weight, labels, torch.Generator().manual_seed(3))

    ours = gradients(sampled, hidden, weight, labels)
    with plain_kernels():
        plain = gradients(sampled, hidden, weight, labels)
    monkeypatch.setattr(losses, "CHUNK_BYTES", 2**20)
    whole = gradients(sampled, hidden, weight, labels)
    assert ours[1] == plain[1] == (labels != -100).sum()
    for other in (plain, whole):
        close(ours[0], other[0], 1e-5)
        for mine, reference in zip(ours[2], other[2], strict=True):
            close(mine, reference, 1e-5)


def test_sampled_gradient_is_zero_in_expectation():
    """sum_y p_y (p - onehot(y)) = 0, the mean of the score, so averages over draws shrink like 1/sqrt(n)."""
    hidden, weight, _ = problem(10, (1,), 5, 4)
    many = hidden.expand(20_000, 5).clone().requires_grad_()
    labels = torch.zeros(20_000, dtype=torch.long)
    total, _ = sampled_cross_entropy(many, weight, labels, torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(total, many)[0]
    assert (grads.mean(0).abs() <= 5 * grads.std(0) / math.sqrt(20_000)).all()


@settings(max_examples=40, deadline=None)
@given(shapes, st.sampled_from([0.05, 0.3, 0.9]), st.booleans())
def test_smoothed_labels_equal_the_definition(shape, smoothing, logits_given):
    seed, rows, width, vocabulary, ignored = shape
    hidden, weight, labels = problem(seed, rows, vocabulary if logits_given else width, vocabulary, ignored)
    weight = None if logits_given else weight
    ours = gradients(partial(cross_entropy, smoothing=smoothing), hidden, weight, labels)
    plain = gradients(partial(cross_entropy_plain, smoothing=smoothing), hidden, weight, labels)
    with torch.no_grad():
        alone, count = cross_entropy(hidden, weight, labels, smoothing=smoothing)
    assert ours[1] == plain[1] == count
    # A vocabulary of one token has loss and gradients of exactly 0, which rounding misses: hence the absolute part.
    same = partial(torch.testing.assert_close, rtol=2e-5, atol=2e-5)
    same(ours[0], plain[0])
    same(alone, plain[0])
    for mine, reference in zip(ours[2], plain[2], strict=True):
        same(mine, reference)


def test_smoothing_by_hand():
    # Probabilities 1/4 and 3/4, label 0, smoothing 0.2: the target is 0.9 and 0.1.
    logits = torch.tensor([[0.0, math.log(3)]], requires_grad=True)
    total, _ = cross_entropy(logits, None, torch.tensor([0]), smoothing=0.2)
    total.backward()
    assert total.item() == pytest.approx(0.9 * math.log(4) + 0.1 * math.log(4 / 3))
    assert logits.grad[0].tolist() == pytest.approx([0.25 - 0.9, 0.75 - 0.1])


def test_labels_drawn_from_the_model_are_not_smoothed():
    """The smoothed loss has the curvature of the plain one, so its estimate has the plain one's gradient."""
    hidden, weight, labels = problem(11, (40,), 6, 9, ignored=0.2)
    found = []
    for smoothing in (0.0, 0.3):
        with drawn_labels(torch.Generator().manual_seed(5)):
            assert labels_are_drawn()
            found.append(gradients(partial(cross_entropy, smoothing=smoothing), hidden, weight, labels))
    assert not labels_are_drawn()
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][2][1], found[1][2][1])


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, math.nan])
def test_a_smoothing_that_cannot_be(smoothing):
    with pytest.raises(UsageError, match="smoothing"):
        cross_entropy(torch.zeros(1, 2), None, torch.tensor([0]), smoothing=smoothing)
