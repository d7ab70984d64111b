"""Each token's cross-entropy against its definition: values, gradients of weighted sums, precisions, ignored tokens."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mickle.kernels import losses
from mickle.kernels.dispatch import plain_kernels
from mickle.kernels.losses import cross_entropy
from mickle.kernels.token_losses import token_losses, token_losses_plain


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
    factors = torch.randn(rows, generator=generator, dtype=torch.float64)
    return hidden, weight, labels, factors


def gradients(function, hidden, weight, labels, factors):
    """Losses, and the gradients of their sum weighted by ``factors``."""
    hidden = hidden.detach().requires_grad_()
    weight = None if weight is None else weight.detach().requires_grad_()
    found = function(hidden, weight, labels)
    inputs = [hidden] if weight is None else [hidden, weight]
    total = (found * factors.to(found.dtype)).sum()
    return found.detach(), torch.autograd.grad(total, inputs, materialize_grads=True)


def close(ours, reference, tolerance):
    """Error relative to the reference's largest entry."""
    assert ours.shape == reference.shape
    if ours.numel():
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
@given(shapes, st.sampled_from([torch.float32, torch.float64]))
def test_equals_the_definition(shape, dtype):
    seed, rows, width, vocabulary, ignored = shape
    hidden, weight, labels, factors = problem(seed, rows, width, vocabulary, ignored, dtype)
    ours = gradients(token_losses, hidden, weight, labels, factors)
    plain = gradients(token_losses_plain, hidden, weight, labels, factors)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert ours[0].dtype == plain[0].dtype == dtype
    assert (ours[0][labels == -100] == 0).all()
    close(ours[0], plain[0], tolerance)
    for mine, reference in zip(ours[1], plain[1], strict=True):
        close(mine, reference, tolerance)


@settings(max_examples=25, deadline=None)
@given(shapes)
def test_logits_given(shape):
    seed, rows, _, vocabulary, ignored = shape
    logits, _, labels, factors = problem(seed, rows, vocabulary, vocabulary, ignored, scale=3.0)
    kept = logits.clone()
    ours = gradients(token_losses, logits, None, labels, factors)
    plain = gradients(token_losses_plain, logits, None, labels, factors)
    assert torch.equal(logits, kept)
    close(ours[0], plain[0], 1e-5)
    close(ours[1][0], plain[1][0], 1e-5)


def test_pencil_example():
    # Logits (0, ln 3): probabilities 1/4 and 3/4. Label 0 costs ln 4, label 1 ln 4/3; the weights are 2 and 0.
    hidden = torch.tensor([[1.0], [1.0]], requires_grad=True)
    weight = torch.tensor([[0.0], [math.log(3)]])
    found = token_losses(hidden, weight, torch.tensor([0, 1]))
    (found * torch.tensor([2.0, 0.0])).sum().backward()
    assert found.tolist() == pytest.approx([math.log(4), math.log(4 / 3)])
    assert hidden.grad.flatten().tolist() == pytest.approx([1.5 * math.log(3), 0.0])


def test_the_sum_is_the_ordinary_cross_entropy():
    hidden, weight, labels, _ = problem(0, (3, 11), 6, 23)
    total, _ = cross_entropy(hidden, weight, labels)
    assert token_losses(hidden, weight, labels).sum().item() == pytest.approx(total.item(), rel=1e-6)


def test_with_and_without_gradients_to_the_bit():
    """Excess over a reference of equal weights must be exactly zero."""
    hidden, weight, labels, _ = problem(1, (5, 13), 6, 23)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            with_gradient = token_losses(hidden.requires_grad_(), weight, labels)
            with torch.no_grad():
                without = token_losses(hidden, weight, labels)
        assert with_gradient.requires_grad
        assert not without.requires_grad
        assert torch.equal(with_gradient.detach(), without)


@pytest.mark.parametrize("autocast", [True, False])
def test_bfloat16(autocast):
    hidden, weight, labels, factors = problem(3, (64,), 16, 40)
    if not autocast:
        hidden, weight = hidden.bfloat16(), weight.bfloat16()
    exact = gradients(token_losses_plain, hidden.double(), weight.double(), labels, factors)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = gradients(token_losses, hidden, weight, labels, factors)
        plain = gradients(token_losses_plain, hidden, weight, labels, factors)
    assert ours[0].dtype == torch.float32
    close(ours[0], exact[0], 1e-2)
    for mine, twin, reference, source in zip(ours[1], plain[1], exact[1], (hidden, weight), strict=True):
        assert mine.dtype == source.dtype
        assert (mine - reference).norm() <= 1.5 * (twin - reference).norm()


def test_frozen_output_matrix_and_frozen_body():
    hidden, weight, labels, factors = problem(6, (9,), 4, 11)
    exact = gradients(token_losses_plain, hidden, weight, labels, factors)[1]
    hidden.requires_grad_()
    (token_losses(hidden, weight, labels) * factors.float()).sum().backward()
    close(hidden.grad, exact[0], 1e-5)
    hidden, weight = hidden.detach(), weight.requires_grad_()
    (token_losses(hidden, weight, labels) * factors.float()).sum().backward()
    close(weight.grad, exact[1], 1e-5)


def test_differentiated_twice_only_when_plain():
    hidden, weight, labels, _ = problem(7, (6,), 3, 5, dtype=torch.float64)
    hidden.requires_grad_()
    with plain_kernels():
        first = torch.autograd.grad(token_losses(hidden, weight, labels).sum(), hidden, create_graph=True)[0]
    assert torch.autograd.grad(first.square().sum(), hidden)[0].isfinite().all()
    with pytest.raises(RuntimeError, match="plain_kernels"):
        torch.autograd.grad(token_losses(hidden, weight, labels).sum(), hidden, create_graph=True)


def test_not_finite_stays_visible_and_where_it_is():
    hidden, weight, labels, factors = problem(2, (6,), 3, 5, ignored=0.0)
    hidden[2, 1] = math.nan
    found, grads = gradients(token_losses, hidden, weight, labels, factors)
    assert found.isnan().tolist() == [False, False, True, False, False, False]
    assert grads[0].isnan().any(1).tolist() == found.isnan().tolist()


@pytest.mark.parametrize("size", [1e4, -1e4, 3e37])
def test_extreme_logits(size):
    logits = torch.tensor([[0.0, size, size], [size, 0.0, 1.0]])
    exact = F.cross_entropy(logits.double(), torch.tensor([1, 1]), reduction="none")
    assert token_losses(logits, None, torch.tensor([1, 1])).tolist() == pytest.approx(exact.tolist(), rel=1e-6)
