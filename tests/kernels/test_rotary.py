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
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-6)
    pair = [torch.autograd.grad(out, x, gradient)[0] for out in (ours, plain)]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)


def test_angles_of_each_row_and_bfloat16():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 2, 8, generator=generator).bfloat16().transpose(1, 2).requires_grad_()
    angles = torch.randn(3, 1, 5, 4, generator=generator)  # positions of packed documents differ between rows
    exact = x.detach().float().requires_grad_()
    ours = rotate_pairs(x, angles.cos(), angles.sin())
    plain = rotate_pairs_plain(exact, angles.cos(), angles.sin())
    assert ours.dtype == torch.bfloat16
    assert ours.is_contiguous()
    torch.testing.assert_close(ours.float(), plain, rtol=2**-8, atol=1e-6)
    back = torch.autograd.grad(ours, x, x.detach())[0]
    assert back.stride() == x.stride()
    torch.testing.assert_close(back.float(), *torch.autograd.grad(plain, exact, exact.detach()), rtol=2**-8, atol=1e-6)


def test_keeps_lengths_and_refuses_a_second_derivative():
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    angles = torch.randn(3, 4, dtype=torch.float64)
    turned = rotate_pairs(x, angles.cos(), angles.sin())
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    with pytest.raises(RuntimeError, match="plain_kernels"):
        torch.autograd.grad(turned.sum(), x, create_graph=True)
    with plain_kernels():
        torch.autograd.grad(rotate_pairs(x, angles.cos(), angles.sin()).square().sum(), x, create_graph=True)
