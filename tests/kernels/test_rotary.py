"""The rotation with its own backward pass: against the definition, and what every rotation keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.kernels.dispatch import plain_kernels
from mickle.kernels.rotary import rotate_pairs, rotate_pairs_plain


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_equals_the_definition(seed, batch, length, half, rest):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, 2, 2 * half + rest, generator=generator).transpose(1, 2).requires_grad_()
    angles = torch.randn(length, half, generator=generator)
    gradient = torch.randn(x.shape, generator=generator)
    ours, plain = (f(x, angles.cos(), angles.sin()) for f in (rotate_pairs, rotate_pairs_plain))
    assert torch.equal(ours, plain)
    pair = [torch.autograd.grad(out, x, gradient)[0] for out in (ours, plain)]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)


def test_keeps_lengths_and_refuses_a_second_derivative():
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(3, 4, dtype=torch.float64)
    turned = rotate_pairs(x, angles.cos(), angles.sin())
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    with pytest.raises(RuntimeError, match="plain_kernels"):
        torch.autograd.grad(turned.sum(), x, create_graph=True)
    with plain_kernels():
        torch.autograd.grad(rotate_pairs(x, angles.cos(), angles.sin()).square().sum(), x, create_graph=True)
