"""Blocked causal attention against torch's, and against what causality alone says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.kernels import attention
from mickle.kernels.attention import causal_attention, causal_attention_plain
from mickle.kernels.dispatch import plain_kernels


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 8)


def problem(seed, batch, heads, length, width, dtype=torch.float32, shared=1):
    """Queries, keys and values, and a gradient; ``shared``: query heads to a head of keys."""
    generator = torch.Generator().manual_seed(seed)
    counts = (heads * shared, heads, heads, heads * shared)
    shapes = [(batch, length, count, width) for count in counts]  # strides as the decoder gives them
    tensors = [torch.randn(shape, generator=generator).to(dtype).transpose(1, 2) for shape in shapes]
    return [t.requires_grad_() for t in tensors[:3]], tensors[3]


def results(function, inputs, gradient):
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad(out, inputs, gradient.to(out.dtype))]


def close(ours, reference, tolerance):
    assert (ours.double() - reference.double()).abs().max() <= tolerance * reference.double().abs().max()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.integers(2, 37), st.integers(1, 9),
    st.integers(1, 3), st.sampled_from([1, 2000, 2**20]),
)  # fmt: skip
def test_equals_the_definition(seed, batch, heads, length, width, shared, together):
    inputs, gradient = problem(seed, batch, heads, length, width, shared=shared)
    exact = results(causal_attention_plain, [t.detach().double().requires_grad_() for t in inputs], gradient)
    single = results(causal_attention_plain, inputs, gradient)  # where terms cancel, it rounds as much
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SCORES_BYTES", together)  # from one head of keys at a time to all rows at once
        found = results(causal_attention, inputs, gradient)
    for ours, plain, reference in zip(found, single, exact, strict=True):
        assert ours.shape == reference.shape
        assert ours.dtype == torch.float32
        if not torch.equal(ours, plain):
            close(ours, reference, 1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(8, 37), st.sampled_from([0.02, 0.2]), st.booleans())
def test_documents_do_not_see_each_other(seed, batch, length, share, one_group):
    inputs, gradient = problem(seed, batch, 2, length, 4, shared=1 + seed % 2)
    opens = torch.rand(batch, length, generator=torch.Generator().manual_seed(seed)) < share
    documents = opens.cumsum(1)
    together = attention.SCORES_BYTES if one_group else 4 * 2 * 8 * length * 2  # two rows at a time
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SCORES_BYTES", together)
        ours = results(lambda *t: causal_attention(*t, documents), inputs, gradient)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    # By itself, each document gives what it gives among the others.
    pieces = [
        [results(causal_attention_plain, [t[b : b + 1, :, own] for t in exact], gradient[b : b + 1, :, own])
         for own in (documents[b] == number for number in documents[b].unique())]
        for b in range(batch)
    ]  # fmt: skip
    for part, found in enumerate(ours):
        whole = torch.cat([torch.cat([piece[part] for piece in row], dim=2) for row in pieces])
        close(found, whole, 1e-5)


def test_bfloat16_error_is_that_of_plain():
    inputs, gradient = problem(0, 2, 3, 40, 16, torch.bfloat16)
    exact = results(causal_attention_plain, [t.detach().double().requires_grad_() for t in inputs], gradient)
    plain = results(causal_attention_plain, inputs, gradient)
    for ours, twin, reference in zip(results(causal_attention, inputs, gradient), plain, exact, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours - reference).norm() <= max(2 * (twin - reference).norm(), 0.01 * reference.norm())


def test_later_positions_do_not_matter():
    inputs, _ = problem(1, 1, 2, 20, 4)
    before = causal_attention(*inputs)[:, :, :11]
    changed = [t.detach().clone().requires_grad_() for t in inputs]
    with torch.no_grad():
        for t in changed:
            t[:, :, 11:] = 1e4
    assert torch.equal(causal_attention(*changed)[:, :, :11], before)


def test_extreme_scores_stay_finite():
    inputs, gradient = problem(2, 1, 2, 20, 4)
    large = [(1e4 * t.detach()).requires_grad_() for t in inputs]
    assert all(t.isfinite().all() for t in results(causal_attention, large, gradient))


def test_grouped_heads_and_second_derivatives_run_plain():
    (queries, keys, values), gradient = problem(3, 1, 4, 12, 4)
    shared = causal_attention(queries, keys[:, :2], values[:, :2])
    close(shared, causal_attention_plain(queries, *(t[:, :2] for t in (keys, values))), 1e-6)
    with plain_kernels():
        assert torch.equal(causal_attention(queries, keys, values), causal_attention_plain(queries, keys, values))
    with pytest.raises(RuntimeError, match="plain_kernels"):
        torch.autograd.grad(causal_attention(queries, keys, values), queries, gradient, create_graph=True)
