"""The adapter's layer is its formula, in value and gradient, on every base; the model around it is what it was."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.kernels.dispatch import plain_kernels
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.linear_layers import linear_layers
from mickle.models.lora import LoraLinear, attach_lora, lora_layers, merge_lora, target_names

IDS = torch.randint(0, 60, (2, 17), generator=torch.Generator().manual_seed(0))


def decoder(**settings: Any) -> Decoder:
    return Decoder(DecoderConfig(60, 32, 2, 4, 2, 8, 48, 64, initial_std=0.2, **settings)).eval()


def layer(inputs: int, outputs: int, rank: int = 3, bias: bool = True, **options: Any) -> LoraLinear:
    torch.manual_seed(inputs * outputs)
    base = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    adapted = LoraLinear(base, rank, 2.0, generator=torch.Generator().manual_seed(1), **options)
    nn.init.normal_(adapted.lora_B)
    return adapted


def gradients(adapted: LoraLinear, x: Tensor, change: Callable[[Tensor], Tensor] = lambda t: t) -> list[Tensor]:
    """Output, and the gradients of x, A and B."""
    x = x.clone().requires_grad_()
    y = adapted(x)
    wanted = change(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)))
    found = torch.autograd.grad((y.float() * wanted).sum(), [x, adapted.lora_A, adapted.lora_B])
    return [y.detach(), *found]


def reach(adapted: LoraLinear, x: Tensor) -> list[Tensor]:
    """The same with every number positive: as much as sums of terms of both signs can hide."""
    positive = copy.deepcopy(adapted).float().eval()
    for parameter in positive.parameters():
        parameter.data.abs_()
    positive.scaling /= 1 - adapted.dropout
    return gradients(positive, x.float().abs(), Tensor.abs)


@pytest.mark.parametrize("rslora", [False, True])
def test_the_output_is_the_papers_formula(rslora: bool) -> None:
    adapted = layer(5, 7, rslora=rslora)
    x = torch.randn(2, 4, 5)
    scale = 2 / math.sqrt(3) if rslora else 2 / 3
    merged = adapted.base_layer.weight + scale * adapted.lora_B @ adapted.lora_A
    torch.testing.assert_close(adapted(x), F.linear(x, merged, adapted.base_layer.bias))
    torch.testing.assert_close(adapted.delta() + adapted.dequantized(), merged)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 9),
    inputs=st.integers(1, 40),
    outputs=st.integers(1, 40),
    rank=st.integers(1, 9),
    bias=st.booleans(),
    dropout=st.sampled_from([0.0, 0.4]),
    types=st.sampled_from([(torch.float32, torch.float32), (torch.bfloat16, torch.float32)]),
    autocast=st.booleans(),
)
def test_the_fused_function_is_its_plain_twin(
    rows: int, inputs: int, outputs: int, rank: int, bias: bool, dropout: float, types: Any, autocast: bool
) -> None:
    adapted = layer(inputs, outputs, rank, bias, dropout=dropout).train()
    adapted.base_layer.to(types[0])
    x = torch.randn(rows, inputs).to(types[0])
    found = []
    for plain in (False, True):
        torch.manual_seed(5)  # the same inputs are dropped
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if plain:
                with plain_kernels():
                    found.append(gradients(adapted, x))
            else:
                found.append(gradients(adapted, x))
    exact = types[0] == torch.float32 and not autocast
    unit = 2.0**-20 if exact else 2.0**-6  # some roundings of 2^-25, or of 2^-9
    for one, other, most in zip(*found, reach(adapted, x)):
        assert one.dtype == other.dtype
        assert bool(((one - other).abs() <= unit * most).all())


def test_gradients_are_those_of_finite_differences() -> None:
    adapted = layer(4, 3).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return torch.func.functional_call(adapted, {"lora_A": down, "lora_B": up}, (x,))

    assert torch.autograd.gradcheck(run, (x, adapted.lora_A, adapted.lora_B))


def test_what_is_kept_for_the_backward_is_the_input_once_and_the_narrow_product() -> None:
    adapted = layer(64, 96, rank=2, dropout=0.1).train()
    x = torch.randn(128, 64, requires_grad=True)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        adapted(x)
    for mine in (adapted.base_layer.weight, adapted.lora_A, adapted.lora_B, x):
        kept.pop(mine.untyped_storage().data_ptr(), None)
    assert sum(kept.values()) == 128 * 2 * 4 + 128 * 64  # x A^T, and one byte for each input that could be dropped


def test_a_second_derivative_needs_the_plain_twin() -> None:
    adapted = layer(4, 3)
    x = torch.randn(2, 4, requires_grad=True)
    with pytest.raises(RuntimeError, match="plain_kernels"):
        torch.autograd.grad(adapted(x).sin().sum(), adapted.lora_A, create_graph=True)
    with plain_kernels():
        (first,) = torch.autograd.grad(adapted(x).sin().sum(), adapted.lora_A, create_graph=True)
    assert torch.autograd.grad(first.sum(), adapted.lora_B)[0].abs().max() > 0


def test_at_the_start_the_model_computes_what_it_did_and_only_b_has_a_gradient() -> None:
    model = decoder()
    with torch.no_grad():  # with gradients the decoder's other kernels take other paths
        before = model(IDS)
    names = attach_lora(model, rank=4)
    with torch.no_grad():
        assert torch.equal(model(IDS), before)
    model(IDS).square().mean().backward()
    assert len(names) == 14
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        name for name, _ in model.named_parameters() if "lora_" in name
    }
    for adapted in lora_layers(model).values():
        assert adapted.lora_A.grad is not None and not adapted.lora_A.grad.any()
        assert adapted.lora_B.grad is not None and adapted.lora_B.grad.any()


def test_a_is_uniform_and_depends_on_the_seed_alone() -> None:
    models = [decoder(), decoder(), decoder()]
    for model, seed in zip(models, (3, 3, 4)):
        torch.manual_seed(seed * 77)
        attach_lora(model, rank=8, seed=seed)
    one, same, other = ([layer.lora_A for layer in lora_layers(model).values()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(one, same))
    assert not any(torch.equal(a, b) for a, b in zip(one, other))
    largest = one[0].abs().max()
    assert 0.97 / math.sqrt(32) < largest <= 1 / math.sqrt(32)


def test_a_conv1d_of_gpt2_is_a_linear_layer_with_its_weight_turned() -> None:
    from transformers.pytorch_utils import Conv1D

    base = Conv1D(7, 5).requires_grad_(False)
    adapted = LoraLinear(base, 2, 3.0)
    nn.init.normal_(adapted.lora_B)
    x = torch.randn(3, 4, 5, requires_grad=True)
    merged = base.weight.T + 1.5 * adapted.lora_B @ adapted.lora_A
    expected = F.linear(x, merged, base.bias)
    torch.testing.assert_close(adapted(x), expected)
    one = torch.autograd.grad(adapted(x).sin().sum(), [x, adapted.lora_A])
    other = torch.autograd.grad(expected.sin().sum(), [x, adapted.lora_A])
    torch.testing.assert_close(one, other)


def test_experts_are_adapted_and_their_router_is_not() -> None:
    model = decoder(experts=2)
    names = attach_lora(model, rank=2)
    assert "model.layers.0.block_sparse_moe.experts.1.w2" in names
    assert not [name for name in names if "gate" in name]
    assert model(IDS).isfinite().all()


@pytest.mark.parametrize(
    ("targets", "count"),
    [
        ("all-linear", 14),
        (["q_proj", "v_proj"], 4),
        (["model.layers.1.self_attn.q_proj"], 1),
        (["mlp.up_proj"], 2),
        (r"model\.layers\.0\..*_proj", 7),
    ],
)
def test_targets_are_named_by_their_ends_or_by_a_regular_expression(targets: Any, count: int) -> None:
    assert len(target_names(list(linear_layers(decoder())), targets)) == count


def test_patterns_give_single_layers_other_ranks_and_alphas() -> None:
    model = decoder()
    attach_lora(
        model, rank=4, alpha=8, rank_pattern={"layers.0.*q_proj": 2, "o_proj": 6}, alpha_pattern={"o_proj": 1.5}
    )
    layers = lora_layers(model)
    assert layers["model.layers.0.self_attn.q_proj"].rank == 2
    assert layers["model.layers.1.self_attn.q_proj"].rank == 4
    assert layers["model.layers.1.self_attn.o_proj"].scaling == 1.5 / 6
    assert layers["model.layers.1.self_attn.q_proj"].scaling == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"targets": ["q"]}, "no linear layer is called .*\n.*targets\n.*one of down_proj, gate_proj"),
        ({"targets": "(q"}, "no regular expression"),
        ({"rank_pattern": {"(": 1}}, "no regular expression"),
        ({"rank": 0}, "rank is 0"),
        ({"rank_pattern": {"q_proj": 1.5}}, "rank is 1.5"),
        ({"alpha": math.nan}, "alpha is nan"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        attach_lora(decoder(), **options)


def test_a_model_with_adapters_takes_no_second_ones() -> None:
    model = decoder()
    attach_lora(model)
    with pytest.raises(UsageError, match="adapters already"):
        attach_lora(model)


def tuned(model: nn.Module, size: float = 0.3, **options: Any) -> nn.Module:
    attach_lora(model, rank=4, alpha=4, **options)
    generator = torch.Generator().manual_seed(2)
    for adapted in lora_layers(model).values():
        with torch.no_grad():
            adapted.lora_B.normal_(std=size, generator=generator)
    return model


@pytest.mark.parametrize("options", [{}, {"targets": ["q_proj", "down_proj"]}])
@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_is_plain_and_computes_what_base_and_adapter_do(options: dict[str, Any], tied: bool) -> None:
    model = tuned(decoder(tied=tied), **options)
    tables = {name: p.clone() for name, p in model.named_parameters() if "embed" in name or "lm_head" in name}
    before = model(IDS)
    figures = merge_lora(model)
    assert set(model.state_dict()) == set(decoder(tied=tied).state_dict())
    torch.testing.assert_close(model(IDS), before, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(p, dict(model.named_parameters())[name]) for name, p in tables.items())
    assert len(figures) == (4 if options else 14)
    assert all(f["change"] > 0 and f["base"] == 0 and f["rounding"] == 0 for f in figures.values())


def test_a_merge_onto_the_dequantized_base_is_equal_and_onto_the_original_differs_by_what_rounding_took() -> None:
    from mickle.models.quantized import quantize_model, quantized_layers

    original = {name: layer.weight.detach().clone() for name, layer in linear_layers(decoder()).items()}
    models = []
    for _ in range(3):
        model = decoder()
        quantize_model(model)
        models.append(tuned(model, targets=["q_proj", "up_proj"]))
    trained, onto_rounded, onto_original = models
    rounded = {name: layer.dequantized() for name, layer in quantized_layers(trained).items()}
    change = {name: layer.delta() for name, layer in lora_layers(trained).items()}
    merge_lora(onto_rounded)
    figures = merge_lora(onto_original, original)
    torch.testing.assert_close(onto_rounded(IDS), trained(IDS), atol=1e-4, rtol=1e-5)
    for name, layer in linear_layers(onto_original).items():
        assert type(layer) is nn.Linear  # also where there was no adapter
        torch.testing.assert_close(layer.weight, original[name] + change.get(name, 0))
        difference = layer.weight - linear_layers(onto_rounded)[name].weight
        torch.testing.assert_close(difference, original[name] - rounded[name], atol=1e-6, rtol=0)
        if name in change:
            assert math.isclose(figures[name]["base"], float((original[name] - rounded[name]).norm()), rel_tol=1e-5)
            assert math.isclose(figures[name]["change"], float(change[name].norm()), rel_tol=1e-5)


def test_a_change_too_small_for_the_type_shows_in_the_rounding() -> None:
    figures = [merge_lora(tuned(decoder(), size), dtype=torch.bfloat16) for size in (0.3, 1e-4)]
    assert all(f["rounding"] < 0.1 * f["change"] for f in figures[0].values())
    assert all(f["rounding"] > f["change"] for f in figures[1].values())


@pytest.mark.parametrize("quantized", [False, True])
def test_a_conv1d_is_one_again_after_the_merge(quantized: bool) -> None:
    import transformers

    from mickle.models.quantized import quantize_model
    from mickle.models.wrapped import WrappedModel

    config = transformers.GPT2Config(vocab_size=60, n_positions=64, n_embd=32, n_layer=1, n_head=4)
    model = WrappedModel(transformers.GPT2LMHeadModel(config)).eval()
    if quantized:
        quantize_model(model)
    before = tuned(model)(IDS)
    merge_lora(model)
    torch.testing.assert_close(model(IDS), before, atol=1e-4, rtol=1e-5)
    assert {type(layer).__name__ for layer in linear_layers(model).values()} == {"Conv1D"}
    assert model.model.transformer.h[0].attn.c_attn.weight.shape == (32, 96)


def test_weights_that_do_not_fit_are_not_merged_onto() -> None:
    with pytest.raises(UsageError, match="q_proj' to merge onto is missing"):
        merge_lora(tuned(decoder()), {})
