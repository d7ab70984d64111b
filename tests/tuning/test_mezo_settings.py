"""Settings of forward-only tuning, and what they build for every kind of parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mickle.config import validate
from mickle.errors import UsageError
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.training.closure import Closure
from mickle.training.journal import read_journal, write_journal
from mickle.training.loop import fit
from mickle.training.objectives import next_token
from mickle.training.optimizers import constant
from mickle.training.replay import replay, verify
from mickle.tuning.mezo import LowRank, Mezo, build_mezo, journal_of_tuning, set_rate

SHAPE = DecoderConfig(
    vocab_size=50, width=32, layers=2, heads=4, kv_heads=2, head_width=8, ffn_width=48, max_length=64, initial_std=0.2
)
WAYS: list[dict[str, Any]] = [{"kind": "full"}, {"kind": "lora", "rank": 2}, {"kind": "prefix", "tokens": 3}]


def batches(step: int) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 50, (4, 13), generator=torch.Generator().manual_seed(step))
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}


def prepared(settings: Mezo) -> nn.Module:
    return settings.learns.prepare(Decoder(SHAPE, seed=1), seed=7)


@pytest.mark.parametrize("parameters", WAYS, ids=lambda way: way["kind"])
def test_every_kind_of_parameters(parameters: dict[str, Any], tmp_path: Path) -> None:
    """The rate is measured, the run moves what it should, and the journal gives the weights back bit for bit."""
    settings = validate(Mezo, {"parameters": parameters})
    model = prepared(settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_mezo(settings, model, seed=3, steps=6)
    rate = set_rate(settings, optimizer, lambda i: Closure(model, next_token, batches(i), step=i))
    assert rate is not None
    assert optimizer.param_groups[0]["lr"] == rate.rate > 0
    for _ in fit(model, next_token, batches, optimizer, steps=6, schedule=constant):
        pass
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) != p.requires_grad, name
    write_journal(journal_of_tuning(settings, optimizer, model, 7, tmp_path), tmp_path / "journal.mezo")
    again = prepared(settings)
    journal = read_journal(tmp_path / "journal.mezo")
    assert verify(again, journal) == "base"
    replay(again, journal, exact=True)
    assert verify(again, journal) == "tuned"


def test_all_linear_as_the_command_line_gives_it() -> None:
    assert LowRank(targets=["all-linear"]).targets == "all-linear"
    assert LowRank(targets=["q_proj"]).targets == ["q_proj"]


def test_defaults_follow_the_parameters() -> None:
    assert [validate(Mezo, {"parameters": way}).reach() for way in WAYS] == [1e-3, 1e-2, 1e-1]
    assert Mezo(eps=0.5).reach() == 0.5
    given = Mezo(learning_rate=0.5)
    optimizer = build_mezo(given, prepared(given), 0, 1)
    assert set_rate(given, optimizer, lambda i: pytest.fail("measured although given")) is None
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"learning_rate": 0}, "learning_rate"),
        ({"parameters": {"kind": "half"}}, "parameters"),
        ({"parameters": {"kind": "prefix", "tokens": 0}}, "tokens"),
        ({"draws": "uniform"}, "draws"),
        ({"probe": 2}, "did you mean 'probes'"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        validate(Mezo, given)


def test_fzoo_needs_two_probes() -> None:
    settings = Mezo(variant="fzoo")
    with pytest.raises(UsageError, match="not 2 to"):
        build_mezo(settings, prepared(settings), 0, 1)
    with pytest.raises(UsageError, match="probes a run"):
        build_mezo(Mezo(probes=1024), prepared(settings), 0, 1 << 23)
