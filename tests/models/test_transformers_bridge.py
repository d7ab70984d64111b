"""A decoder that is no Llama, opened by transformers' own Auto classes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mickle.models import transformers_bridge
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import open_model, save_model

IDS = torch.randint(0, 60, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings",
    [
        {"position": ("none", "alibi"), "tied": False},
        {"position": "learned"},
        {"position": "sinusoidal"},
        {"position": "alibi"},
        {"position": "t5", "activation": "relu"},
        {"position": ("rotary", "t5")},
        {"rotary_fraction": 0.5},
        {"position": "alibi", "experts": 3, "drop_path": 0.1},
    ],
)
def test_auto_classes_open_every_scheme_and_save_it_again(settings: dict[str, Any], tmp_path: Path) -> None:
    transformers_bridge.register()
    model = Decoder(DecoderConfig(60, 32, 2, 4, 2, 8, 48, 64, initial_std=0.2, **settings)).eval()
    save_model(model, tmp_path / "ours")
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(theirs(IDS).logits, model(IDS), atol=1e-5, rtol=0)
    theirs.save_pretrained(tmp_path / "again")
    again = open_model(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in model.state_dict().items())


def test_generate_pads_on_the_left_without_changing_the_answer(tmp_path: Path) -> None:
    transformers_bridge.register()
    save_model(Decoder(DecoderConfig(60, 32, 2, 4, 2, 8, 48, 64, initial_std=0.2, position="t5")), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    alone = model.generate(IDS[:, 3:], attention_mask=torch.ones(1, 6, dtype=torch.long), **settings)[:, 6:]
    padded = model.generate(IDS, attention_mask=torch.tensor([[0] * 3 + [1] * 6]), **settings)[:, 9:]
    assert torch.equal(alone, padded)


def test_the_loss_is_that_of_the_next_token_and_padding_does_not_count(tmp_path: Path) -> None:
    transformers_bridge.register()
    save_model(Decoder(DecoderConfig(60, 32, 2, 4, 2, 8, 48, 64, initial_std=0.2, position="alibi")), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    out = model(IDS, labels=IDS)
    by_hand = -out.logits[0, :-1].log_softmax(-1).gather(1, IDS[0, 1:, None]).mean()
    torch.testing.assert_close(out.loss, by_hand)
    assert AutoConfig.from_pretrained(tmp_path).hidden_size == 32
