"""A prefix of real tokens is those tokens; PEFT's folders are read and written to the same logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import open_model, save_model
from mickle.models.prefix import attach_prefix, save_prefix

SHAPE = DecoderConfig(
    vocab_size=50, width=32, layers=2, heads=4, kv_heads=2, head_width=8, ffn_width=48, max_length=64, initial_std=0.3
)
FIRST = torch.tensor([7, 3, 44])
IDS = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(0))
DOCUMENTS = torch.tensor([[0] * 4 + [1] * 3 + [-1] * 3, [0] * 10])


def fresh(**changes: Any) -> Decoder:
    return Decoder(DecoderConfig(**{**SHAPE.__dict__, **changes}), seed=1).eval()


def wrapped(tmp_path: Path) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        )
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return open_model(tmp_path / "gpt2")


def after_first(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits of texts that really have the three tokens before them."""
    return model(torch.cat([FIRST.expand(len(ids), 3), ids], 1))[:, 3:]


@pytest.mark.parametrize("kind", ["decoder", "learned", "encoder", "gpt2"])
@torch.no_grad()
def test_a_prefix_of_real_tokens_is_those_tokens(kind: str, tmp_path: Path) -> None:
    made = {
        "decoder": fresh,
        "learned": lambda: fresh(position="learned"),
        "encoder": lambda: fresh(causal=False),
        "gpt2": lambda: wrapped(tmp_path),
    }
    model = made[kind]()
    expected = after_first(model, IDS)
    prefixed = attach_prefix(model, 3, ids=FIRST)
    alone = prefixed(IDS)
    if kind != "encoder":  # whose first tokens see the text, which a prefix does not
        assert torch.allclose(alone, expected, atol=2e-5)
    packed = prefixed(IDS, documents=DOCUMENTS)
    assert torch.allclose(packed[0, 4:7], prefixed(IDS[:1, 4:7])[0], atol=2e-5)
    assert torch.allclose(packed[1], alone[1], atol=2e-5)
    chosen = (torch.arange(10) % 2 == 1).expand(2, 10)
    assert torch.equal(prefixed(IDS, documents=DOCUMENTS, positions=chosen), packed[chosen])


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("kind", ["decoder", "gpt2"])
@torch.no_grad()
def test_generation_reads_each_token_once(kind: str, unequal: bool, tmp_path: Path) -> None:
    """With a cache, prompts padded on the left or not, every text has the logits it has alone and in one piece."""
    model = attach_prefix(fresh() if kind == "decoder" else wrapped(tmp_path), 3, ids=FIRST)
    texts = [IDS[0, :7], IDS[1, 3:10] if not unequal else IDS[1, 5:10]]
    lengths = [len(text) - 2 for text in texts]
    longest = max(lengths)
    padded = torch.stack([F.pad(text[:n], (longest - n, 0)) for text, n in zip(texts, lengths)])
    documents = torch.stack([F.pad(torch.zeros(n, dtype=torch.long), (longest - n, 0), value=-1) for n in lengths])
    cache = model.new_cache()
    found = [model(padded, documents=documents if unequal else None, cache=cache)]
    for step in range(2):
        found.append(
            model(torch.stack([text[n + step : n + step + 1] for text, n in zip(texts, lengths)]), cache=cache)
        )
    together = torch.cat(found, 1)
    for row, text in enumerate(texts):
        assert torch.allclose(together[row, -len(text) :], model(text[None])[0], atol=2e-5)


def test_only_the_prefix_learns() -> None:
    prefixed = attach_prefix(fresh(), 3, seed=5)
    assert [name for name, p in prefixed.named_parameters() if p.requires_grad] == ["prefix"]
    assert prefixed.prefix.shape == (3, 2 * 2 * 2 * 8)
    prefixed(IDS).square().mean().backward()
    assert bool((prefixed.prefix.grad != 0).all())
    assert torch.equal(attach_prefix(fresh(), 3, seed=5).prefix, prefixed.prefix)
    assert prefixed.length_limit is None
    assert attach_prefix(fresh(position="learned"), 3).length_limit == 61


def test_peft_reads_ours_and_we_read_theirs(tmp_path: Path) -> None:
    from peft import PeftModel, PrefixTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    save_model(fresh(), tmp_path / "base")
    ours = attach_prefix(open_model(tmp_path / "base"), 3, seed=1)
    with torch.no_grad():
        ours.prefix.add_(0.1)
    save_prefix(ours, tmp_path / "ours", tmp_path / "base")
    theirs = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32), tmp_path / "ours"
    ).eval()
    seen = torch.ones_like(IDS)
    with torch.no_grad():
        assert torch.allclose(theirs(input_ids=IDS, attention_mask=seen).logits, ours(IDS), atol=1e-5)
        assert torch.equal(open_model(tmp_path / "ours")(IDS), ours(IDS))
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
        other = get_peft_model(base, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).eval()
        other.save_pretrained(tmp_path / "theirs")
        read = open_model(tmp_path / "theirs")
        assert torch.allclose(other(input_ids=IDS, attention_mask=seen).logits, read(IDS), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"prefix_projection": True}, "made by a network"),
        ({"num_layers": "2"}, "no whole numbers"),
        ({"num_virtual_tokens": 10**6}, "too long"),
        ({"num_virtual_tokens": 4}, "no prefix of shape"),
        ({"num_attention_heads": 4}, "which the base has not"),
        ({"num_layers": 1, "token_dim": 32}, "which the base has not"),
    ],
)
def test_folders_that_do_not_fit(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    save_model(fresh(), tmp_path / "base")
    save_prefix(attach_prefix(open_model(tmp_path / "base"), 3), tmp_path / "prefix", tmp_path / "base")
    path = tmp_path / "prefix" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    with pytest.raises(UsageError, match=said) as caught:
        open_model(tmp_path / "prefix")
    assert "prefix" in str(caught.value)


def test_models_that_take_none(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    BertForMaskedLM(
        BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    ).save_pretrained(tmp_path / "bert")
    with pytest.raises(UsageError, match="takes no prefix"):
        attach_prefix(open_model(tmp_path / "bert"))
    with pytest.raises(UsageError, match="no room for text"):
        attach_prefix(fresh(position="learned"), 64)
    with pytest.raises(UsageError, match="Linear takes no prefix"):
        attach_prefix(nn.Linear(2, 2))
