"""The one dial: every size gives a sound shape with about the parameters asked for."""

import dataclasses
from typing import Any

import pytest

from mickle.errors import UsageError
from mickle.models.shape import SIZES, DecoderConfig


@pytest.mark.parametrize("size", [*SIZES, 300_000, 2_000_000, 7_000_000_000])
def test_a_size_is_met_by_a_shape_whose_parts_fit(size: str | int) -> None:
    config = DecoderConfig.for_size(size, vocab_size=4096)
    assert config.parameters() == pytest.approx(SIZES.get(size, size), rel=0.3)  # type: ignore[arg-type]
    assert config.heads * config.head_width == config.width
    assert config.heads % config.kv_heads == 0
    assert config.ffn_width % 32 == 0
    assert config.ffn_width >= 8 / 3 * config.width


def test_larger_sizes_are_wider_and_deeper() -> None:
    shapes = [DecoderConfig.for_size(size, 8192) for size in SIZES]
    assert [s.width for s in shapes] == sorted({s.width for s in shapes})
    assert [s.layers for s in shapes] == sorted(s.layers for s in shapes)


def test_a_given_field_is_kept() -> None:
    config = DecoderConfig.for_size("small", 8192, max_length=128, layers=9, position="alibi", tied=False)
    assert (config.layers, config.max_length, config.position, config.tied) == (9, 128, "alibi", False)
    assert DecoderConfig.for_size("small", 8192, width=64).width == 64


def test_a_vocabulary_that_leaves_no_room_is_refused() -> None:
    with pytest.raises(UsageError, match="smaller vocabulary"):
        DecoderConfig.for_size("tiny", vocab_size=100_000)
    with pytest.raises(UsageError, match="tiny, small"):
        DecoderConfig.for_size("gigantic", vocab_size=100)


@pytest.mark.parametrize(
    "wrong",
    [
        {"layers": 0},
        {"width": -1},
        {"width": 3.5},
        {"kv_heads": 3},
        {"activation": "tanh"},
        {"dropout": 1.0},
        {"rotary_fraction": 0.0},
        {"rotary_fraction": 1.5},
        {"head_width": 7},
        {"position": "rope"},
        {"position": [["rotary"]]},
        {"vocab_size": True},
        {"tied": 1},
        {"causal": None},
        {"norm_eps": "small"},
        {"norm_eps": float("nan")},
        {"rope_theta": 0},
        {"initial_std": []},
        {"drop_path": 1.0},
        {"experts": 0},
        {"experts": 2.0},
        {"experts": 2, "experts_per_token": 3},
        {"router_loss": -1},
    ],
)
def test_a_shape_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DecoderConfig.for_size("small", **{"vocab_size": 8192, **wrong})


@pytest.mark.parametrize("experts", [1, 2, 8])
def test_experts_count_among_the_parameters_and_the_size_asked_for(experts: int) -> None:
    config = DecoderConfig.for_size("small", 4096, experts=experts)
    one = 3 * config.width * config.ffn_width * config.layers  # SwiGLU has three matrices
    assert config.parameters() == pytest.approx(SIZES["small"], rel=0.3)
    dense = dataclasses.replace(config, experts=1).parameters()
    router = config.layers * config.width * experts if experts > 1 else 0
    assert config.parameters() - dense == (experts - 1) * one + router
