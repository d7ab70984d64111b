"""Dropout that is a function of the step, on our models, torch's and those of transformers."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from tiny_training import decoder, losses, packed, train, weights
from torch import nn

from mickle.training.dropout import Dropout, set_dropout


def test_late_and_rising() -> None:
    late = Dropout(rate=0.2, start=0.5)
    assert [late(step, 10) for step in range(10)] == [0.0] * 5 + [0.2] * 5
    rising = Dropout(rate=0.4, start=0.25, ramp=0.5)
    assert [rising(step, 8) for step in range(8)] == pytest.approx([0, 0, 0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert Dropout(rate=0.3)(0, 1) == 0.3


@pytest.mark.parametrize(
    "values", [{"rate": 1.0}, {"rate": -0.1}, {"rate": 0.1, "start": 1.0}, {"rate": 0.1, "start": 0.6, "ramp": 0.5}]
)
def test_rates_that_cannot_be(values: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Dropout(**values)


def test_until_it_begins_a_run_is_the_run_without_bit_for_bit() -> None:
    """Token crisis, oracle 7: dropout that is off draws nothing."""
    without, told = train("next_token", model=decoder(dropout=0.0), steps=8)
    late, told_late = train("next_token", model=decoder(dropout=0.0), steps=8, dropout=Dropout(rate=0.5, start=0.5))
    assert losses(told_late)[:4] == losses(told)[:4]
    assert all(a != b for a, b in zip(losses(told_late)[4:], losses(told)[4:], strict=True))
    assert any(not torch.equal(a, weights(without)[name]) for name, a in weights(late).items())


def test_a_constant_rate_is_the_models_own() -> None:
    own, _ = train("next_token", model=decoder(dropout=0.3), steps=4)
    given, _ = train("next_token", model=decoder(dropout=0.0), steps=4, dropout=Dropout(rate=0.3))
    assert all(torch.equal(a, weights(given)[name]) for name, a in weights(own).items())


def test_every_dropout_of_torch_and_transformers_is_set() -> None:
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    bert = BertForMaskedLM(
        BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
            max_position_embeddings=8, attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.3,
        )
    ).train()  # fmt: skip
    tokens = torch.arange(8)[None]
    set_dropout(bert, 0.0)
    assert torch.equal(bert(tokens).logits, bert(tokens).logits)
    set_dropout(bert, 0.5)
    assert not torch.equal(bert(tokens).logits, bert(tokens).logits)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=12,
            max_position_embeddings=8,
        )
    ).train()  # fmt: skip
    set_dropout(llama, 0.5)  # a Llama has dropout of attention weights only, and holds it as a number
    assert not torch.equal(llama(tokens).logits, llama(tokens).logits)
    plain = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1), nn.Dropout1d(0.1))
    set_dropout(plain, 0.7)
    assert [plain[1].p, plain[2].p] == [0.7, 0.7]


def test_evaluation_knows_no_dropout() -> None:
    model = decoder(dropout=0.0)
    set_dropout(model, 0.9)
    model.eval()
    batch = packed(0)
    assert torch.equal(model(batch["input_ids"]), model(batch["input_ids"]))
