"""Folders go out and come in: ours through transformers, transformers' through ours, every number equal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from mickle.errors import NumericError, UsageError
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import end_tokens, model_config, open_model, open_tokenizer, save_model, untrained
from mickle.models.wrapped import WrappedModel

IDS = torch.randint(0, 60, (2, 17), generator=torch.Generator().manual_seed(0))
LLAMA = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}


def decoder(**settings: Any) -> Decoder:
    return Decoder(DecoderConfig(60, 32, 2, 4, 2, 8, 48, 64, initial_std=0.2, **settings)).eval()


def llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(1)
    return LlamaForCausalLM(LlamaConfig(**LLAMA, **settings)).eval()


def equal(one: Tensor, other: Tensor) -> None:
    assert one.abs().max() > 1  # logits near zero would agree by themselves
    torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"tied": False}, {"rope_theta": 5e5, "norm_eps": 1e-6}])
def test_a_rotary_decoder_is_a_plain_llama_to_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    model = decoder(**settings)
    save_model(model, tmp_path)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(theirs, LlamaForCausalLM)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    equal(theirs(IDS).logits, model(IDS))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("position", ["none", ("rotary", "none"), ("none", "rotary")])
def test_without_positions_in_some_layers_or_all_a_decoder_is_a_plain_smollm3(
    position: Any, tied: bool, tmp_path: Path
) -> None:
    model = decoder(position=position, tied=tied)
    save_model(model, tmp_path / "ours")
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(theirs).__name__ == "SmolLM3ForCausalLM"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    equal(theirs(IDS).logits, model(IDS))
    theirs.save_pretrained(tmp_path / "theirs")
    again = open_model(tmp_path / "theirs")
    assert isinstance(again, Decoder)
    assert again.config.schemes == model.config.schemes
    equal(again(IDS), model(IDS))


@pytest.mark.parametrize(
    "settings",
    [
        {"tie_word_embeddings": True},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 2},
        {"num_key_value_heads": 1, "head_dim": 16},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 123456.0}},
        {"rms_norm_eps": 1e-3},
    ],
)
@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_llama_written_by_transformers_is_ours(
    settings: dict[str, Any], shard: str, tmp_path: Path
) -> None:
    theirs = llama(**settings)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    model = open_model(tmp_path)
    assert isinstance(model, Decoder)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    equal(model(IDS), theirs(IDS).logits)


def test_the_old_spelling_of_the_rotary_base_is_understood(tmp_path: Path) -> None:
    theirs = llama(rope_parameters={"rope_type": "default", "rope_theta": 777.0})
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["rope_parameters"], config["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "rope_theta": 777.0, "rope_scaling": None}))
    model = open_model(tmp_path)
    assert isinstance(model, Decoder)
    equal(model(IDS), theirs(IDS).logits)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
)
def test_a_llama_that_is_more_than_our_decoder_is_wrapped(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = llama(**settings)
    theirs.save_pretrained(tmp_path)
    model = open_model(tmp_path)
    assert isinstance(model, WrappedModel)
    equal(model(IDS), theirs(IDS).logits)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"tied": False, "position": "none"},
        {"position": "learned"},
        {"position": "sinusoidal"},
        {"position": "alibi", "activation": "relu"},
        {"position": "t5"},
        {"position": ("rotary", "none")},
        {"rotary_fraction": 0.25},
        {"position": "alibi", "causal": False},
    ],
)
def test_what_is_saved_is_opened_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    model = decoder(**settings)
    save_model(model, tmp_path)
    opened = open_model(tmp_path)
    assert isinstance(opened, Decoder)
    assert not opened.training
    assert torch.equal(opened(IDS), model(IDS))
    assert model_config(tmp_path) == opened.config


def test_dtype_and_the_files_own_dtype(tmp_path: Path) -> None:
    save_model(decoder().bfloat16(), tmp_path)
    assert next(open_model(tmp_path).parameters()).dtype == torch.bfloat16
    assert next(open_model(tmp_path, dtype=torch.float32).parameters()).dtype == torch.float32


def test_a_tokenizer_travels_with_its_model_and_names_the_marks(tmp_path: Path) -> None:
    from mickle.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["the cat sat on the mat " * 9], 270, or_fewer=True)
    save_model(decoder(), tmp_path, tokenizer)
    text = "the mat sat é 12"
    expected = tokenizer.encode([text])[0].tolist()
    assert open_tokenizer(tmp_path).encode(text, add_special_tokens=False).ids == expected
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(text, add_special_tokens=False)["input_ids"] == expected
    config = json.loads((tmp_path / "config.json").read_text())
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert config["eos_token_id"] == generation["eos_token_id"] == theirs.eos_token_id == tokenizer.end


@pytest.mark.parametrize(
    ("ids", "expected"), [(3, [3]), ([3, 9], [3, 9]), (None, []), ("x", []), ([True, 4], [4])]
)
def test_a_folder_may_name_one_end_token_or_several(ids: Any, expected: list[int], tmp_path: Path) -> None:
    assert end_tokens(tmp_path) == []
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert end_tokens(tmp_path) == expected


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    model = decoder()
    model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(NumericError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        save_model(model, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    for call in (open_model, model_config):
        with pytest.raises(UsageError, match="no such model folder"):
            call(tmp_path / "nowhere")


def test_an_untrained_twin_depends_on_the_seed_alone(tmp_path: Path) -> None:
    llama(attention_bias=True).save_pretrained(tmp_path)
    for model in (decoder(), open_model(tmp_path)):
        twins = [untrained(model, seed)(IDS) for seed in (5, 5, 6)]
        assert torch.equal(twins[0], twins[1])
        assert not torch.equal(twins[0], twins[2])
        assert not torch.equal(twins[0], model(IDS))
