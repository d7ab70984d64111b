"""Folders go out and come in: ours through transformers, transformers' through ours, every number equal."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    EuroBertConfig,
    EuroBertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from mickle import machine
from mickle.errors import NumericError, UsageError
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import describe, end_tokens, open_model, open_to_run, open_tokenizer, save_model
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
def test_a_llama_written_by_transformers_is_ours(settings: dict[str, Any], shard: str, tmp_path: Path) -> None:
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
        {"causal": False},
        {"causal": False, "experts": 2},
        {"position": "t5", "experts": 3, "router_loss": 0.02},
        {"position": "learned", "drop_path": 0.2},
    ],
)
def test_what_is_saved_is_opened_bit_for_bit(settings: dict[str, Any], tmp_path: Path) -> None:
    model = decoder(**settings)
    save_model(model, tmp_path)
    opened = open_model(tmp_path)
    assert isinstance(opened, Decoder)
    assert not opened.training
    assert all(torch.equal(opened.state_dict()[name], weight) for name, weight in model.state_dict().items())
    # Where the weights lie in memory decides how torch multiplies the few rows of an expert: last bits may differ.
    torch.testing.assert_close(opened(IDS), model(IDS), atol=1e-5 if model.config.experts > 1 else 0, rtol=0)
    assert describe(tmp_path).shape == opened.config


def test_dtype_and_the_files_own_dtype(tmp_path: Path) -> None:
    save_model(decoder().bfloat16(), tmp_path)
    assert next(open_model(tmp_path).parameters()).dtype == torch.bfloat16
    assert next(open_model(tmp_path, dtype=torch.float32).parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("fast", "memory", "dtype"),
    [(False, 1 << 40, "float32"), (True, 1 << 40, "bfloat16"), (False, 1 << 10, "bfloat16")],
)
def test_slow_16_bits_are_scored_in_32(
    fast: bool, memory: int, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder().bfloat16()
    save_model(model, tmp_path)
    monkeypatch.setattr(machine, "fast_16_bits", lambda dtype: fast)
    monkeypatch.setattr(machine, "total_memory", lambda: memory)
    opened = open_to_run(tmp_path)
    weight = opened.embed_tokens.weight
    assert weight.dtype == getattr(torch, dtype)
    assert torch.equal(weight.bfloat16(), model.embed_tokens.weight)


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


@pytest.mark.parametrize(("ids", "expected"), [(3, [3]), ([3, 9], [3, 9]), (None, []), ("x", []), ([True, 4], [4])])
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
    for call in (open_model, describe):
        with pytest.raises(UsageError, match="no such model folder"):
            call(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("settings", "kind", "opens"),
    [
        ({"experts": 4}, MixtralForCausalLM, AutoModelForCausalLM),
        ({"experts": 3, "experts_per_token": 1, "tied": False}, MixtralForCausalLM, AutoModelForCausalLM),
        ({"causal": False}, EuroBertForMaskedLM, AutoModelForMaskedLM),
        ({"causal": False, "tied": False, "rope_theta": 5e5}, EuroBertForMaskedLM, AutoModelForMaskedLM),
    ],
)
def test_experts_are_a_plain_mixtral_and_an_encoder_a_plain_eurobert(
    settings: dict[str, Any], kind: type, opens: Any, tmp_path: Path
) -> None:
    model = decoder(**settings)
    save_model(model, tmp_path / "ours")
    theirs, info = opens.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert isinstance(theirs, kind)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    equal(theirs(IDS).logits, model(IDS))
    theirs.save_pretrained(tmp_path / "theirs")
    for place in ("ours", "theirs"):
        again = open_model(tmp_path / place)
        assert isinstance(again, Decoder)
        assert again.config == model.config
        assert all(torch.equal(a, model.state_dict()[name]) for name, a in again.state_dict().items())


def test_the_weights_have_the_names_of_published_mixtral_folders(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = decoder(experts=2)
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    moe, mlp = "model.layers.1.block_sparse_moe", model.layers[1].mlp
    assert torch.equal(tensors[f"{moe}.gate.weight"], mlp.gate.weight)
    for theirs, ours in (("w1", "gate_proj"), ("w2", "down_proj"), ("w3", "up_proj")):
        assert torch.equal(tensors[f"{moe}.experts.1.{theirs}.weight"], getattr(mlp.experts["1"], ours).weight)


@pytest.mark.parametrize("shard", ["1GB", "20KB"])
def test_a_mixtral_and_a_eurobert_written_by_transformers_are_ours(shard: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    shape = LLAMA | {"num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    mixtral = MixtralConfig(**shape, num_local_experts=4, num_experts_per_tok=3, rms_norm_eps=1e-4)
    rope = {"rope_type": "default", "rope_theta": 250000.0}
    eurobert = EuroBertConfig(**shape, mask_token_id=5, rope_parameters=rope)
    for theirs in (MixtralForCausalLM(mixtral), EuroBertForMaskedLM(eurobert)):
        folder = tmp_path / type(theirs).__name__
        theirs.eval().save_pretrained(folder, max_shard_size=shard)
        model = open_model(folder)
        assert isinstance(model, Decoder)
        equal(model(IDS), theirs(IDS).logits)
    assert not model.causal


@pytest.mark.parametrize(
    "theirs",
    [
        MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=2, sliding_window=8, num_key_value_heads=2)),
        MixtralForCausalLM(MixtralConfig(**LLAMA, num_local_experts=1, num_experts_per_tok=1, num_key_value_heads=2)),
        EuroBertForMaskedLM(EuroBertConfig(**LLAMA, attention_bias=True, pad_token_id=0, mask_token_id=1)),
        EuroBertForMaskedLM(EuroBertConfig(**LLAMA, mlp_bias=True, pad_token_id=0, mask_token_id=1)),
    ],
)
def test_more_than_our_experts_or_encoder_is_wrapped(theirs: Any, tmp_path: Path) -> None:
    theirs.eval().save_pretrained(tmp_path)
    model = open_model(tmp_path)
    assert isinstance(model, WrappedModel)
    torch.testing.assert_close(model(IDS), theirs(IDS).logits, atol=1e-5, rtol=0)


def test_documents_of_a_eurobert_are_kept_apart_as_its_own_mask_would(tmp_path: Path) -> None:
    """Left padding, given to transformers as an attention mask and to us as a document of its own."""
    model = decoder(causal=False)
    save_model(model, tmp_path)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path)
    mask = torch.ones_like(IDS)
    mask[0, :5] = 0
    places = (mask.cumsum(1) - 1).clamp(min=0)
    scores = theirs(IDS, attention_mask=mask, position_ids=places).logits
    equal(model(IDS, documents=mask - 1)[mask > 0], scores[mask > 0])


def test_an_encoders_settings_name_its_mask_token(tmp_path: Path) -> None:
    from mickle.data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(["the cat sat on the mat " * 9], 270, or_fewer=True, mask=True)
    save_model(decoder(causal=False), tmp_path, tokenizer)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["mask_token_id"] == tokenizer.mask is not None
    assert "mask_token_id" not in json.loads((tmp_path / "generation_config.json").read_text())


def test_a_width_that_heads_do_not_divide_is_no_eurobert(tmp_path: Path) -> None:
    model = Decoder(DecoderConfig(60, 20, 1, 3, 3, 8, 48, 64, initial_std=0.2, causal=False)).eval()
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mickle_decoder"
    torch.testing.assert_close(open_model(tmp_path)(IDS), model(IDS), atol=1e-5, rtol=0)


def test_a_folder_of_ours_from_before_experts_opens(tmp_path: Path) -> None:
    model = decoder(position="alibi")
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("experts", "experts_per_token", "router_loss", "drop_path"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert describe(tmp_path).shape == model.config


def test_more_experts_than_tensors_are_refused_before_they_are_made(tmp_path: Path) -> None:
    save_model(decoder(experts=2), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    shape = {"num_local_experts": 900, "hidden_size": 1, "intermediate_size": 1, "head_dim": 2}
    (tmp_path / "config.json").write_text(json.dumps({**config, **shape}))
    with pytest.raises(UsageError, match="1,800 experts"):
        open_model(tmp_path)
