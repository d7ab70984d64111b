"""Other architectures behind our call: documents apart, padding harmless, the cache exact."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from mickle.errors import UsageError
from mickle.models.folder import model_config, open_model, save_model
from mickle.models.wrapped import WrappedModel

IDS = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(0))
PACKED = torch.tensor([[0] * 4 + [1] * 7, [-1] * 3 + [0] * 8])
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
}
SMALL |= {"initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
CAUSAL: dict[str, dict[str, Any]] = {
    "GPT2": {},
    "Bloom": {},
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "Qwen2": {"num_key_value_heads": 1},
    "Mamba": {"state_size": 4},
}


def make(name: str, kind: str, folder: Path) -> tuple[Any, WrappedModel]:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SMALL, **CAUSAL.get(name, {}))
    theirs = getattr(transformers, f"{name}{kind}")(config).eval()
    theirs.save_pretrained(folder)
    model = open_model(folder)
    assert isinstance(model, WrappedModel)
    return theirs, model


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", CAUSAL)
def test_a_causal_model_keeps_our_contract(name: str, tmp_path: Path) -> None:
    theirs, model = make(name, "LMHeadModel" if name == "GPT2" else "ForCausalLM", tmp_path)
    assert model.causal
    assert model.vocab_size == 60
    with torch.no_grad():
        close(model(IDS), theirs(IDS).logits)
        packed = model(IDS, documents=PACKED)
        close(packed[0, 4:], model(IDS[:1, 4:])[0])
        close(packed[0, :4], model(IDS[:1, :4])[0])
        close(packed[1, 3:], model(IDS[1:, 3:])[0])
        padding = torch.where(PACKED < 0, -1, 0)
        cache = model.new_cache()
        pieces = [model(IDS[:, :6], documents=padding[:, :6], cache=cache)]
        pieces += [model(IDS[:, t : t + 1], cache=cache) for t in range(6, 11)]
        whole = model(IDS, documents=padding)
    close(torch.cat(pieces, dim=1)[padding >= 0], whole[padding >= 0])
    assert cache.length == 11


def test_a_masked_model_opens_and_says_that_it_is_not_causal(tmp_path: Path) -> None:
    theirs, model = make("Bert", "ForMaskedLM", tmp_path)
    assert not model.causal
    close(model(IDS), theirs(IDS).logits)
    close(model(IDS, documents=PACKED)[1, 3:], model(IDS[1:, 3:])[0])


def test_the_head_gets_logits_and_no_matrix_and_gradients_flow(tmp_path: Path) -> None:
    _, model = make("GPT2", "LMHeadModel", tmp_path)
    scores, weight = model(IDS, documents=PACKED, head=lambda scores, weight: (scores, weight))
    assert weight is None
    scores.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_wrapped_model_is_saved_as_what_it_is(tmp_path: Path) -> None:
    theirs, model = make("GPT2", "LMHeadModel", tmp_path / "in")
    save_model(model, tmp_path / "out")
    close(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")(IDS).logits, theirs(IDS).logits)
    config = model_config(tmp_path / "out")
    assert isinstance(config, dict)
    assert config["model_type"] == "gpt2"


def test_two_documents_in_a_cached_row_are_refused(tmp_path: Path) -> None:
    _, model = make("GPT2", "LMHeadModel", tmp_path)
    with pytest.raises(UsageError, match="one document"):
        model(IDS, documents=PACKED, cache=model.new_cache())


def test_weights_that_lack_a_tensor_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    make("GPT2", "LMHeadModel", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["transformer.h.1.mlp.c_fc.bias"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"h\.1\.mlp\.c_fc\.bias"):
        open_model(tmp_path)
