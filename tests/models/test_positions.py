"""Position schemes against closed forms, pencil examples, and the transformers models that use them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mickle.errors import UsageError
from mickle.kernels.rotary import rotate_pairs
from mickle.models import positions


def test_t5_buckets_of_known_distances() -> None:
    distance = torch.tensor([-3, 0, 1, 15, 16, 31, 64, 112, 113, 5000])
    assert positions.t5_bucket(distance).tolist() == [0, 0, 1, 15, 16, 21, 26, 30, 31, 31]


@pytest.mark.parametrize("causal", [True, False])
def test_t5_buckets_equal_those_of_transformers(causal: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-700, 701)
    theirs = T5Attention._relative_position_bucket(-distance, bidirectional=not causal)  # key minus query
    assert torch.equal(positions.t5_bucket(distance, causal), theirs)


def test_alibi_slopes_of_8_and_12_heads() -> None:
    eight = [2.0**-k for k in range(1, 9)]
    assert positions.alibi_slopes(8) == eight
    assert positions.alibi_slopes(12) == pytest.approx([*eight, *(2**-k for k in (0.5, 1.5, 2.5, 3.5))])


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 20, 32])
def test_alibi_slopes_equal_those_of_bloom(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    per_position = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)  # [H, 1, T]: slope * position
    assert positions.alibi_slopes(heads) == pytest.approx(per_position[:, 0, 1].tolist(), rel=1e-6)


def test_alibi_equals_adding_slope_times_key_index_after_softmax() -> None:
    length, heads = 40, 6
    scores = torch.randn(heads, length, length, generator=torch.Generator().manual_seed(1))
    at = torch.arange(length)
    triangle = torch.full((length, length), -math.inf).triu(1)
    slopes = torch.tensor(positions.alibi_slopes(heads))
    by_distance = scores + positions.alibi_bias(at, at, heads) + triangle
    by_key = scores + slopes[:, None, None] * at + triangle
    torch.testing.assert_close(by_distance.softmax(-1), by_key.softmax(-1), atol=1e-6, rtol=0)


@settings(max_examples=25, deadline=None)
@given(shift=st.integers(0, 1000), i=st.integers(0, 300), j=st.integers(0, 300))
def test_rotary_scores_depend_on_the_distance_alone(shift: int, i: int, j: int) -> None:
    query, key = torch.randn(2, 64, generator=torch.Generator().manual_seed(7))

    def score(at_query: int, at_key: int) -> torch.Tensor:
        cosine, sine = positions.rotary_angles(torch.tensor([at_query, at_key]), 64, 10000.0)
        return rotate_pairs(query, cosine[0], sine[0]) @ rotate_pairs(key, cosine[1], sine[1])

    torch.testing.assert_close(score(i + shift, j + shift), score(i, j), atol=4e-3, rtol=0)
    assert abs(score(i + shift, j + shift) - score(i, j)) < 1e-4 * (1 + shift + i + j)


def test_a_rotary_fraction_leaves_the_other_dimensions_untouched() -> None:
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2))
    cosine, sine = positions.rotary_angles(torch.arange(5), 16, 10000.0)
    turned = rotate_pairs(x, cosine, sine)
    assert torch.equal(turned[..., 16:], x[..., 16:])
    assert not torch.allclose(turned[:, 1:, :16], x[:, 1:, :16])
    torch.testing.assert_close(turned[..., :16].norm(dim=-1), x[..., :16].norm(dim=-1))


def test_rotary_equals_llama() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(hidden_size=64, num_attention_heads=4, head_dim=16)
    query, key = torch.randn(2, 2, 4, 30, 16, generator=torch.Generator().manual_seed(3))
    at = torch.arange(30)
    theirs = apply_rotary_pos_emb(query, key, *LlamaRotaryEmbedding(config)(query, at[None]))
    angles = positions.rotary_angles(at, 16, 10000.0)
    for ours, their in zip((rotate_pairs(query, *angles), rotate_pairs(key, *angles)), theirs, strict=True):
        torch.testing.assert_close(ours, their, atol=1e-5, rtol=0)


def test_rotary_is_gpt_js_interleaved_form_after_a_permutation_of_dimensions() -> None:
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb, create_sinusoidal_positions

    x = torch.randn(2, 30, 4, 16, generator=torch.Generator().manual_seed(4))  # [B, T, H, K], as GPT-J has it
    sine, cosine = create_sinusoidal_positions(30, 16)[None].expand(2, -1, -1).chunk(2, dim=-1)
    theirs = apply_rotary_pos_emb(x, sine, cosine)
    halves = torch.cat([torch.arange(0, 16, 2), torch.arange(1, 16, 2)])  # pairs (2k, 2k+1) -> (k, k + 8)
    angles = positions.rotary_angles(torch.arange(30), 16, 10000.0)
    ours = rotate_pairs(x[..., halves].transpose(1, 2), *angles).transpose(1, 2)
    torch.testing.assert_close(ours, theirs[..., halves], atol=1e-5, rtol=0)


def test_sinusoids_by_pencil() -> None:
    table = positions.sinusoidal_table(torch.tensor([0, 1, 3]), 4)
    expected = [[math.sin(p), math.sin(p / 100), math.cos(p), math.cos(p / 100)] for p in (0, 1, 3)]
    torch.testing.assert_close(table, torch.tensor(expected))


def test_one_name_or_a_list_gives_every_layer_its_scheme() -> None:
    assert positions.schemes_of_layers("alibi", 3) == ("alibi",) * 3
    hybrid = ["rotary", "rotary", "rotary", "none"]
    assert positions.schemes_of_layers(hybrid, 4) == tuple(hybrid)


@pytest.mark.parametrize(
    ("position", "said"),
    [("rope", "rotary"), (("rotary",), "1 position schemes"), (("learned", "none"), "at the embedding")],
)
def test_a_wrong_choice_of_schemes_is_explained(position: str | tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        positions.schemes_of_layers(position, 2)
