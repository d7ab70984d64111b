"""RMSNorm with its own backward pass: against torch's, in both precisions, and at the edges."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.kernels import norms
from mickle.kernels.dispatch import plain_kernels
from mickle.kernels.norms import rms_norm, rms_norm_plain


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(norms, "PIECE_BYTES", 200)


def results(function, x, weight, gradient):
    out = function(x, weight, 1e-5)
    return [out.detach(), *torch.autograd.grad(out, (x, weight), gradient.to(out.dtype))]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4), st.integers(1, 7), st.integers(1, 33), st.sampled_from([1e-3, 1, 1e3]))
def test_equals_the_definition(seed, batch, length, width, scale):
    generator = torch.Generator().manual_seed(seed)
    x = (scale * torch.randn(batch, length, width, generator=generator)).requires_grad_()
    weight = torch.randn(width, generator=generator).requires_grad_()
    gradient = torch.randn(batch, length, width, generator=generator)
    exact = results(rms_norm_plain, *(t.detach().double().requires_grad_() for t in (x, weight)), gradient)
    plain = results(rms_norm_plain, x, weight, gradient)
    for ours, twin, reference in zip(results(rms_norm, x, weight, gradient), plain, exact, strict=True):
        assert ours.shape == reference.shape
        error, allowed = (ours - reference).norm(), 2 * (twin - reference).norm()
        assert error <= allowed + 1e-6 * reference.norm() + 1e-6


def test_cast_once_under_autocast():
    x, weight = torch.randn(5, 8, requires_grad=True), torch.rand(8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = rms_norm(x, weight, 1e-5)
        with plain_kernels():
            plain = rms_norm(x, weight, 1e-5)
    assert ours.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain, rtol=2**-7, atol=1e-6)
    assert torch.autograd.grad(ours.float().sum(), x)[0].dtype == torch.float32


def test_row_of_zeros_and_second_derivative():
    x, weight = torch.zeros(2, 4, requires_grad=True), torch.ones(4, requires_grad=True)
    out = rms_norm(x, weight, 1e-5)
    assert torch.equal(out, torch.zeros(2, 4))
    assert torch.autograd.grad(out.sum(), x, retain_graph=True)[0].isfinite().all()
    with pytest.raises(RuntimeError, match="plain_kernels"):
        torch.autograd.grad(out.sum(), x, create_graph=True)
