"""The decoder against what must hold whatever its weights: causality, separation, the cache, the theory of NoPE."""

import dataclasses
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.kernels.losses import cross_entropy
from mickle.models.decoder import Decoder, DecoderConfig, KeyValueCache, logits

EVERY_POSITION: list[Any] = [
    "none",
    "learned",
    "sinusoidal",
    "rotary",
    "alibi",
    "t5",
    ("rotary", "none", "alibi", "t5"),
]
VOCABULARY = 50


def make(position: Any = "rotary", seed: int = 0, **settings: Any) -> Decoder:
    """A small decoder whose every weight, T5's table included, is far from zero."""
    shape = {"width": 32, "layers": 4, "heads": 4, "kv_heads": 2, "head_width": 8, "ffn_width": 48, "max_length": 64}
    config = DecoderConfig(vocab_size=VOCABULARY, **{**shape, "initial_std": 0.2, "position": position, **settings})
    model = Decoder(config, seed).eval()
    if "t5" in config.schemes:
        nn.init.normal_(model.distance_bias.weight, generator=torch.Generator().manual_seed(seed))
    return model


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("position", EVERY_POSITION)
def test_packed_documents_in_pieces_with_the_cache_equal_reading_them_at_once(position: Any) -> None:
    model, ids = make(position), tokens(2, 12)
    documents = torch.tensor([[-1] * 3 + [0] * 9, [0] * 5 + [1] * 7])
    cache = model.new_cache()
    pieces = []
    for start, end in [(0, 6), (6, 9), (9, 10), (10, 12)]:
        given = documents[:, start:end] if start < 6 else None  # later: go on as before
        pieces.append(model(ids[:, start:end], documents=given, cache=cache))
    close(torch.cat(pieces, dim=1), model(ids, documents=documents))
    assert cache.length == 12


@pytest.mark.parametrize("learns", [True, False])
def test_a_cache_holds_all_that_came_however_it_grows(learns: bool) -> None:
    """Without gradients keys and values grow in place, now and then into more room; with them they are copied."""
    parts = [torch.randn(2, 3, length, 4) for length in (5, 1, 70, 1, 1, 300, 1)]
    one, other = KeyValueCache(), KeyValueCache()
    with torch.set_grad_enabled(learns):
        for number, part in enumerate(parts):
            keys, values = one.extend(0, part, -part)
            assert torch.equal(keys, torch.cat(parts[: number + 1], dim=2)) and torch.equal(values, -keys)
            if number == 2:
                other.fill(one.pairs())
        assert torch.equal(other.extend(0, parts[1], parts[1])[0], torch.cat([*parts[:3], parts[1]], dim=2))
    assert torch.equal(one.pairs()[0][0], torch.cat(parts, dim=2))  # the other wrote into room of its own


@pytest.mark.parametrize("position", EVERY_POSITION)
def test_one_document_a_row_takes_the_plain_triangle_and_changes_nothing(position: Any) -> None:
    model, ids = make(position), tokens(2, 10)
    together = model(ids, documents=torch.tensor([[4] * 10, [9] * 10]))
    assert torch.equal(together, model(ids))


@pytest.mark.parametrize("position", EVERY_POSITION)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
def test_the_closed_form_counts_every_parameter(position: Any, tied: bool, activation: str) -> None:
    model = make(position, tied=tied, activation=activation)
    assert sum(weight.numel() for weight in model.parameters()) == model.config.parameters()


def test_a_head_that_counts_gives_one_over_t() -> None:
    """The first construction of the NoPE paper: equal scores, and a value that is 1 at the first token only."""
    config = DecoderConfig(2, 2, 1, 1, 1, 2, 2, 4096, position="none", norm_eps=0.0)
    model = Decoder(config)
    weights = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    weights["embed_tokens.weight"] = torch.eye(2)
    weights["layers.0.input_layernorm.weight"] = torch.ones(2)
    weights["layers.0.self_attn.v_proj.weight"] = torch.tensor([[1.0, 0.0], [0.0, 0.0]]) / math.sqrt(2)
    weights["layers.0.self_attn.o_proj.weight"] = torch.eye(2)
    model.load_state_dict(weights)
    seen: list[Tensor] = []
    model.layers[0].self_attn.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    model(torch.tensor([[0] + [1] * 4095]))
    torch.testing.assert_close(seen[0][0, :, 0], 1 / torch.arange(1.0, 4097), atol=1e-7, rtol=0)


def test_without_positions_equal_tokens_are_told_apart_by_nothing() -> None:
    scores = make("none")(torch.full((1, 20), 7))
    close(scores, scores[:, :1].expand_as(scores))


@pytest.mark.parametrize(("layers", "invariant"), [(1, True), (2, False)])
def test_without_positions_one_layer_sees_the_prefix_as_a_bag(layers: int, invariant: bool) -> None:
    model, ids = make("none", layers=layers), tokens(1, 12)
    shuffled = ids.clone()
    shuffled[0, :11] = ids[0, :11].flip(0)
    difference = (model(ids)[0, -1] - model(shuffled)[0, -1]).abs().max()
    assert (difference < 1e-5) == invariant


def test_shared_keys_equal_full_attention_with_those_keys_repeated() -> None:
    grouped = make(kv_heads=2)
    full = make(kv_heads=4)
    weights = grouped.state_dict()
    for name in list(weights):
        if "k_proj" in name or "v_proj" in name:
            weights[name] = weights[name].view(2, 8, 32).repeat_interleave(2, dim=0).reshape(32, 32)
    full.load_state_dict(weights)
    close(full(tokens(2, 10)), grouped(tokens(2, 10)))


@pytest.mark.parametrize("position", ["learned", "sinusoidal", "rotary", "alibi", "t5"])
def test_without_the_causal_mask_every_token_sees_all(position: str) -> None:
    model, ids = make(position, causal=False), tokens(1, 10)
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % VOCABULARY
    assert not torch.allclose(model(ids)[0, 0], model(changed)[0, 0], atol=1e-4)
    documents = torch.tensor([[0] * 4 + [1] * 6])
    close(model(ids, documents=documents)[0, :4], model(ids[:, :4])[0])


def test_no_positions_and_no_causal_mask_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="order of its input"):
        make("none", causal=False)


def test_models_that_differ_in_positions_start_from_equal_weights() -> None:
    small = {"width": 16, "layers": 1, "heads": 1, "kv_heads": 1, "head_width": 16, "ffn_width": 16, "max_length": 8}
    reference = Decoder(DecoderConfig(vocab_size=9, **small), seed=3).state_dict()
    for position in ("none", "learned", "sinusoidal", "alibi", "t5"):
        weights = Decoder(DecoderConfig(vocab_size=9, position=position, **small), seed=3).state_dict()
        assert all(torch.equal(weights[name], reference[name]) for name in reference)
    assert not torch.equal(
        Decoder(DecoderConfig(vocab_size=9, **small), seed=4).state_dict()["embed_tokens.weight"],
        reference["embed_tokens.weight"],
    )


def test_making_a_model_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    make("t5")
    assert torch.equal(torch.rand(3), expected)


def test_the_head_gets_the_last_hidden_state_and_the_output_matrix() -> None:
    for tied in (True, False):
        model, ids = make(tied=tied), tokens(2, 6)
        hidden, weight = model(ids, head=lambda hidden, weight: (hidden, weight))
        assert hidden.shape == (2, 6, 32)
        assert weight is (model.embed_tokens if tied else model.lm_head).weight
        assert torch.equal(logits(hidden, weight), model(ids))


@pytest.mark.parametrize("position", EVERY_POSITION)
def test_every_weight_gets_a_gradient(position: Any) -> None:
    model = make(position).train()
    model(tokens(2, 8), documents=torch.tensor([[0] * 8, [0] * 3 + [1] * 5])).square().mean().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("position", EVERY_POSITION)
def test_bfloat16_stays_near_float32(position: Any) -> None:
    model, ids = make(position, initial_std=0.1), tokens(2, 20)
    expected = model(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(ids)
    assert (mixed.float() - expected).abs().max() < 0.05 * expected.abs().max()
    assert (model.bfloat16()(ids).float() - expected).abs().max() < 0.1 * expected.abs().max()


def test_dropout_acts_in_training_only() -> None:
    model, ids = make(dropout=0.5), tokens(1, 8)
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def test_rotary_reads_past_its_trained_length_and_learned_positions_say_that_they_cannot() -> None:
    ids = tokens(1, 80)
    assert make("rotary")(ids).isfinite().all()
    with pytest.raises(UsageError, match="80 tokens exceeds the 64"):
        make("learned")(ids)
    short_documents = torch.arange(2).repeat_interleave(40)[None]
    assert make("learned")(ids, documents=short_documents).isfinite().all()


def test_embedding_and_stream_start_at_the_promised_sizes() -> None:
    config = DecoderConfig.for_size("small", 8192)
    model = Decoder(config)
    assert model.embed_tokens.weight.std().item() == pytest.approx(config.initial_std, rel=0.01)
    writes = model.layers[0].mlp.down_proj.weight.std().item()
    assert writes == pytest.approx(config.initial_std / math.sqrt(2 * config.layers), rel=0.02)
    ids = torch.randint(0, 8192, (1, 32), generator=torch.Generator().manual_seed(0))
    loss = nn.functional.cross_entropy(model(ids)[0, :-1], ids[0, 1:]).item()
    assert loss == pytest.approx(math.log(8192), abs=0.3)  # knows nothing, and is not sure of anything


def test_a_shape_is_frozen_and_survives_lists() -> None:
    config = make(["rotary"] * 4).config
    assert config.position == ("rotary",) * 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.width = 3  # type: ignore[misc]


@pytest.mark.parametrize("settings", [{}, {"causal": False, "tied": False}, {"position": "t5"}, {"experts": 3}])
@pytest.mark.parametrize("packed", [False, True])
def test_the_chosen_positions_give_the_loss_and_gradients_of_all_logits(settings: dict[str, Any], packed: bool) -> None:
    """Dynamic masking, oracle 6."""
    ids = tokens(3, 12)
    documents = torch.tensor([[0] * 5 + [1] * 7, [-1] * 4 + [0] * 8, [0] * 12]) if packed else None
    labels = torch.where(torch.rand(3, 12, generator=torch.Generator().manual_seed(1)) < 0.3, ids, -100)
    chosen = labels >= 0
    found = []
    for positions, targets in ((None, labels), (chosen, labels[chosen])):
        model = make(**settings)
        head = partial(cross_entropy, labels=targets)
        total, count = model(ids, documents=documents, positions=positions, head=head)
        total.backward()
        found.append((total, count, [weight.grad for weight in model.parameters()]))
    close(found[0][0], found[1][0])
    assert found[0][1] == found[1][1] == chosen.sum()
    for whole, gathered in zip(found[0][2], found[1][2], strict=True):
        close(whole, gathered)


def test_no_chosen_position_is_a_loss_of_zero_with_zero_gradients() -> None:
    model, ids = make(experts=2), tokens(2, 7)
    model.train()
    none = torch.zeros(2, 7, dtype=torch.bool)
    total, count = model(ids, positions=none, head=partial(cross_entropy, labels=ids[none]))
    assert total == 0
    assert count == 0
    total.backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())
    assert model(ids, positions=none).shape == (0, VOCABULARY)


def test_drop_path_skips_rows_and_keeps_the_mean() -> None:
    """Of a block whose parts give (a, 0), a row gets 0 or a / (1 - p): mean a, both as often as they should be."""
    block = make(layers=3, drop_path=0.4).layers[1]
    assert block.drop_path == pytest.approx(0.2)
    torch.manual_seed(0)
    x = torch.ones(4000, 2, 32)
    block.eval()
    assert torch.equal(block._drop(x), x)
    block.train()
    dropped = block._drop(x)
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))  # whole rows
    values = dropped[:, 0, 0]
    assert set(values.tolist()) == {0.0, 1.25}
    assert abs(int((values == 0).sum()) - 800) < 4 * math.sqrt(4000 * 0.2 * 0.8)


def test_drop_path_rises_over_the_layers_and_draws_nothing_when_off() -> None:
    assert [block.drop_path for block in make(drop_path=0.3).layers] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert make(layers=1, drop_path=0.3).layers[0].drop_path == 0
    ids, state = tokens(2, 5), torch.get_rng_state()
    model = make(drop_path=0.0).train()
    assert torch.equal(model(ids), model(ids))
    assert torch.equal(torch.get_rng_state(), state)
    model = make(drop_path=0.9).train()
    assert not torch.equal(model(ids), model(ids))
    assert torch.equal(model.eval()(ids), make()(ids))


def test_the_rate_of_dropout_can_be_set_while_training() -> None:
    from mickle.training.dropout import set_dropout

    ids, model = tokens(2, 5), make(dropout=0.0).train()
    plain = model(ids)
    set_dropout(model, 0.5)
    assert not torch.equal(model(ids), model(ids))
    assert model.dropout == 0.5
    set_dropout(model, 0.0)
    assert torch.equal(model(ids), plain)
