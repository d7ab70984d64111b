"""Experts against the dense network, the sum over single tokens, and transformers' Mixtral."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from mickle.kernels.losses import cross_entropy, drawn_labels
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.experts import Experts, FeedForward, balance, route, with_balance

SHAPE = DecoderConfig(50, 16, 2, 2, 1, 8, 24, 64, initial_std=0.2)


def make(experts: int, per_token: int, seed: int = 0, **shape: Any) -> Experts:
    config = dataclasses.replace(SHAPE, experts=experts, experts_per_token=per_token, **shape)
    network = Experts(config)
    generator = torch.Generator().manual_seed(seed)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.5, generator=generator)
    return network


def rows(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoder(**shape: Any) -> Decoder:
    return Decoder(dataclasses.replace(SHAPE, **{"experts": 4, **shape})).train()


@contextmanager
def served(network: Experts) -> Iterator[dict[str, int]]:
    """How many rows each expert is given while the context lasts."""
    tokens: dict[str, int] = {}

    def count(name: str) -> Any:
        return lambda _, arguments: tokens.update({name: tokens.get(name, 0) + len(arguments[0])})

    hooks = [expert.register_forward_pre_hook(count(name)) for name, expert in network.experts.items()]
    yield tokens
    for hook in hooks:
        hook.remove()


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_one_expert_is_the_dense_network(activation: Any) -> None:
    """Token crisis, oracle 9: with one expert every gate is exactly 1."""
    experts = make(1, 1, activation=activation)
    x = rows(2, 5, 16)
    assert torch.equal(experts(x), experts.experts["0"](x))
    dense = FeedForward(dataclasses.replace(SHAPE, activation=activation))
    dense.load_state_dict(experts.experts["0"].state_dict())
    close(dense(x), experts(x))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(0, 7), st.integers(0, 100))
def test_grouping_by_expert_changes_nothing(experts: int, per_token: int, batch: int, length: int, seed: int) -> None:
    """y = sum_e g_e FFN_e(x), token by token, with the gradients of that sum."""
    network = make(experts, min(experts, per_token), seed).double()
    x = rows(batch, length, 16, seed=seed).double().requires_grad_()
    logits = x.reshape(-1, 16) @ network.gate.weight.T
    by_hand = []
    for token, scores in zip(x.reshape(-1, 16), logits, strict=True):
        best = scores.argsort(descending=True)[: network.per_token]
        gates = scores[best].softmax(-1)  # softmax over the chosen, as Mixtral writes it
        by_hand.append(sum(g * network.experts[str(int(e))](token) for g, e in zip(gates, best, strict=True)))
    expected = torch.stack(by_hand).view_as(x) if by_hand else x * 0
    close(network(x), expected)
    inputs = [x, *network.parameters()]
    ours = torch.autograd.grad(network(x).square().sum(), inputs)
    plain = torch.autograd.grad(expected.square().sum(), inputs, allow_unused=True)
    for mine, reference in zip(ours, plain, strict=True):
        torch.testing.assert_close(
            mine, torch.zeros_like(mine) if reference is None else reference, atol=1e-9, rtol=1e-9
        )


def test_gates_sum_to_one_and_no_token_is_dropped() -> None:
    network, x = make(5, 3), rows(40, 16)
    probabilities, gates, chosen = route(x, network.gate.weight, 3)
    close(probabilities.sum(-1), torch.ones(40))
    close(gates.sum(-1), torch.ones(40))
    assert all(len(set(experts)) == 3 for experts in chosen.tolist())
    with served(network) as tokens:
        network(x[None])
    assert sum(tokens.values()) == 40 * 3  # every pair is served, however uneven
    assert tokens == {str(e): int((chosen == e).sum()) for e in range(5)}


def test_the_order_of_experts_means_nothing() -> None:
    network, x = make(4, 2), rows(3, 7, 16)
    shuffled = make(4, 2, seed=9)
    order = [2, 0, 3, 1]
    shuffled.gate.weight.data = network.gate.weight.data[order]
    for place, expert in enumerate(order):
        shuffled.experts[str(place)].load_state_dict(network.experts[str(expert)].state_dict())
    with served(network) as tokens, served(shuffled) as others:
        close(shuffled(x), network(x))
    assert others == {str(place): tokens[str(expert)] for place, expert in enumerate(order)}


def test_the_router_keeps_float32_under_autocast() -> None:
    """Two experts whose scores differ by less than bfloat16 can tell."""
    x = torch.ones(1, 1)
    weight = torch.tensor([[1.0], [1.0001]])
    with torch.autocast("cpu", torch.bfloat16):
        probabilities, _, chosen = route(x, weight, 1)
    assert probabilities.dtype == torch.float32
    assert chosen.item() == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert make(4, 2)(rows(2, 3, 16).bfloat16()).dtype == torch.bfloat16


def test_balance_is_one_when_even_and_e_when_all_go_to_one() -> None:
    even = torch.full((8, 4), 0.25)
    assert balance(even, torch.arange(8)[:, None] % 4).item() == pytest.approx(1)
    certain = torch.tensor([[0.0, 1.0, 0.0, 0.0]]).repeat(8, 1)
    assert balance(certain, torch.ones(8, 1, dtype=torch.long)).item() == pytest.approx(4)
    assert balance(even[:0], torch.zeros(0, 2, dtype=torch.long)) == 0


@pytest.mark.parametrize("per_token", [1, 2, 3])
def test_balance_is_that_of_transformers_but_for_the_factor_k(per_token: int) -> None:
    logits = rows(30, 5)
    probabilities, _, chosen = route(logits, torch.eye(5), per_token)
    theirs = load_balancing_loss_func((logits,), 5, per_token)
    assert per_token * balance(probabilities, chosen).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_balance_is_in_the_gradient_and_not_in_the_loss() -> None:
    """The gradient of the sum is that of sum + router_loss * count * (sum of balances), to the last digit's noise."""
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = torch.where(ids % 3 == 0, -100, ids)
    head = partial(cross_entropy, labels=labels)
    documents = torch.tensor([[-1] * 2 + [0] * 7, [0] * 4 + [1] * 5])
    found = []
    for weight in (0.0, 0.5):
        model = decoder(router_loss=weight)
        total, count = model(ids, documents=documents, head=head)
        gradient = torch.autograd.grad(total, list(model.parameters()))
        found.append((total.item(), gradient))
    assert found[0][0] == found[1][0]

    model = decoder()
    x = model.embed_tokens(ids)
    sight, _ = model._look(ids, documents, None)
    for block in model.layers:
        x = block(x, sight, None)
    assert len(sight.balances) == 2
    extra = torch.autograd.grad(0.5 * count * sum(sight.balances), list(model.parameters()), allow_unused=True)
    for without, with_it, more in zip(found[0][1], found[1][1], extra, strict=True):
        close(with_it, without if more is None else without + more)
    assert any(more is not None and more.abs().max() > 1e-3 for more in extra)


def test_padding_has_no_part_in_the_balance() -> None:
    network, x = make(4, 2), rows(2, 6, 16)
    documents = torch.tensor([[-1, -1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    padded: list[Tensor] = []
    network(x, documents, padded)
    text: list[Tensor] = []
    network(x[documents >= 0][None], None, text)
    close(padded[0], text[0])


def test_where_labels_are_drawn_or_nothing_is_trained_the_balance_is_left_out() -> None:
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    head = partial(cross_entropy, labels=ids)

    def gradients(model: Decoder) -> list[Tensor]:
        with drawn_labels(torch.Generator().manual_seed(2)):
            return list(torch.autograd.grad(model(ids, head=head)[0], list(model.parameters())))

    for one, other in zip(gradients(decoder(router_loss=0.0)), gradients(decoder(router_loss=9.0)), strict=True):
        assert torch.equal(one, other)
    measured = decoder(router_loss=9.0).eval()(ids, head=head)[0]
    assert torch.autograd.grad(measured, measured)[0] == 1
    assert with_balance(ids, [torch.ones(())], 1.0) is ids  # logits pass


def test_training_evens_out_a_router_that_sends_all_to_one_expert() -> None:
    """With a heavy router loss the load of the fullest expert falls; without it, it need not."""
    model = decoder(experts=4, experts_per_token=1, router_loss=1.0, layers=1)
    with torch.no_grad():  # the stream's first dimension is 1 for all tokens, and expert 0 listens to it
        model.embed_tokens.weight[:, 0] = 1.0
        model.layers[0].mlp.gate.weight[0, 0] = 2.0
    ids = torch.randint(0, 50, (8, 16), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    loads = []
    for _ in range(40):
        with served(model.layers[0].mlp) as tokens:
            total, count = model(ids, head=partial(cross_entropy, labels=ids))
        loads.append(max(tokens.values()) / sum(tokens.values()))
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    assert loads[0] > 0.9
    assert loads[-1] < 0.5


def test_every_weight_has_a_gradient_even_an_idle_experts() -> None:
    model = decoder(experts=8, experts_per_token=1)
    ids = torch.zeros(1, 1, dtype=torch.long)  # one token: at least seven experts a layer are idle
    with served(model.layers[0].mlp) as tokens:
        total, _ = model(ids, head=partial(cross_entropy, labels=ids))
    total.backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert sorted(tokens.values()) == [0] * 7 + [1]


def test_reading_in_pieces_with_the_cache_equals_reading_at_once() -> None:
    model = decoder().eval()
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache()
    pieces = [model(ids[:, :5], cache=cache), *(model(ids[:, t : t + 1], cache=cache) for t in range(5, 9))]
    close(torch.cat(pieces, dim=1), model(ids))


@pytest.mark.parametrize("shape", [{}, {"activation": "gelu"}, {"position": "t5", "tied": False}])
def test_the_closed_form_counts_every_parameter(shape: dict[str, Any]) -> None:
    model = decoder(**shape)
    assert sum(weight.numel() for weight in model.parameters()) == model.config.parameters()


def test_a_seed_gives_experts_that_differ() -> None:
    one, again = decoder(), decoder()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    first, second = (one.layers[0].mlp.experts[str(e)].up_proj.weight for e in (0, 1))
    assert not torch.equal(first, second)
    assert first.std().item() == pytest.approx(0.2, rel=0.2)
