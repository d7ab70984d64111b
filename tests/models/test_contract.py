"""What every language model offers, held to for each architecture of the union and each class that implements it.

Rows are made of the union of architectures and of the subclasses of `LanguageModel`: a new one without a row fails.
"""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import mickle.models
from mickle.config import config_variants
from mickle.errors import UsageError
from mickle.models.adapters import save_adapter
from mickle.models.architectures import Architecture
from mickle.models.folder import describe, open_model, save_model
from mickle.models.language import LanguageModel, OwnModel
from mickle.models.positions import Position
from mickle.models.prefix import PrefixedModel, attach_prefix
from mickle.models.safetensors_check import read_header

VOCABULARY, LENGTH, SEED = 60, 12, 3
IDS = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
CHOSEN = torch.arange(2 * LENGTH).view(2, LENGTH) % 3 == 1
PACKED = torch.tensor([[0] * 5 + [1] * 7, [-1] * 3 + [8] * 2 + [7] * 7])

# Settings of each architecture of ours, by its kind: one model for each.
OWN: dict[str, list[dict[str, Any]]] = {
    "decoder": [
        *({"position": position} for position in Position.__args__),
        {"experts": 3},
        {"drop_path": 0.2},
    ],
}
MIXED = {"layers": 4, "position": ("rotary", "none", "alibi", "t5")}  # a scheme for each layer
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
SMALL |= {"intermediate_size": 48, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
OTHERS: dict[str, dict[str, Any]] = {  # architectures of transformers
    "GPT2LMHeadModel": {"n_positions": 64},
    "BloomForCausalLM": {},
    "GPTNeoXForCausalLM": {},
    "OPTForCausalLM": {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "Qwen2ForCausalLM": {"num_key_value_heads": 1},
    "MambaForCausalLM": {"state_size": 4},
}
ROWS = [
    *(f"{kind}-{number}" for kind, rows in OWN.items() for number in range(len(rows))),
    "decoder-0-mixed",
    *OTHERS,
    *(f"prefix on {kind}-0" for kind in OWN),
    "prefix on GPT2LMHeadModel",
]


def made(row: str, folder: Path) -> LanguageModel:
    """The causal model of a row; it is in `folder` too, a prefixed model's base in `folder`/base."""
    if row.startswith("prefix on "):
        return attach_prefix(made(row.removeprefix("prefix on "), folder / "base"), 3, SEED)
    if row in OTHERS:
        torch.manual_seed(SEED)
        theirs = getattr(transformers, row)
        theirs(theirs.config_class(**{**SMALL, **OTHERS[row]})).save_pretrained(folder)
        return open_model(folder)
    kind, number = row.split("-")[:2]
    settings = settings_of(kind)(**OWN[kind][int(number)])
    shape = vars(settings.shape(60_000, VOCABULARY, 64, True, 0.0)) | (MIXED if row.endswith("mixed") else {})
    model = settings.build(shape, SEED).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:  # far from zero, or all would agree by themselves
                nn.init.normal_(weight, std=0.2, generator=torch.Generator().manual_seed(len(name)))
    save_model(model, folder)
    return model


def settings_of(kind: str) -> Any:
    return next(v for v in config_variants(Architecture) if v.model_fields["kind"].default == kind)


def saved(model: LanguageModel, row: str, folder: Path) -> Path:
    """The folder that a model of a row is in; an adapter's is written now."""
    if isinstance(model, PrefixedModel):
        save_adapter(model, folder / "prefix", folder / "base")
        return folder / "prefix"
    return folder


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=3e-5, rtol=1e-4)


def subclasses(of: type) -> Iterator[type]:
    for one in of.__subclasses__():
        yield one
        yield from subclasses(one)


def test_every_architecture_and_every_class_has_a_row(tmp_path: Path) -> None:
    assert {variant.model_fields["kind"].default for variant in config_variants(Architecture)} == OWN.keys()
    for module in pkgutil.iter_modules(mickle.models.__path__):
        importlib.import_module(f"mickle.models.{module.name}")
    ours = {kind for kind in subclasses(LanguageModel) if kind.__module__.startswith("mickle.")} - {OwnModel}
    some = [f"{kind}-0" for kind in OWN] + ["GPT2LMHeadModel", "prefix on decoder-0"]
    assert {type(made(row, tmp_path / row)) for row in some} == ours


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_the_future_is_unseen(row: str, tmp_path: Path) -> None:
    model = made(row, tmp_path)
    assert model.causal
    changed = IDS.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % VOCABULARY
    before, after = model(IDS), model(changed)
    close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7], after[:, 7], atol=1e-3)


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_a_packed_document_is_read_as_if_it_stood_alone(row: str, tmp_path: Path) -> None:
    model = made(row, tmp_path)
    packed = model(IDS, documents=PACKED)
    for line, start, end in [(0, 0, 5), (0, 5, 12), (1, 3, 5), (1, 5, 12)]:
        close(packed[line, start:end], model(IDS[line : line + 1, start:end])[0])


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_the_head_gets_the_chosen_positions_alone(row: str, tmp_path: Path) -> None:
    model = made(row, tmp_path)
    text = PACKED[CHOSEN] >= 0  # padding says nothing
    close(model(IDS, positions=CHOSEN), model(IDS)[CHOSEN])
    close(model(IDS, documents=PACKED, positions=CHOSEN)[text], model(IDS, documents=PACKED)[CHOSEN][text])
    assert model(IDS, positions=torch.zeros_like(CHOSEN)).shape == (0, model.vocab_size)


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_reading_in_pieces_with_the_cache_equals_reading_at_once(padded: bool, row: str, tmp_path: Path) -> None:
    model = made(row, tmp_path)
    padding = torch.where(PACKED < 0, -1, 0) if padded else torch.zeros_like(PACKED)
    cache = model.new_cache()
    pieces = [model(IDS[:, :6], documents=padding[:, :6] if padded else None, cache=cache)]
    steps = [(6, 9), (9, 10), (10, 12)] if row not in OTHERS else [(t, t + 1) for t in range(6, LENGTH)]
    pieces += [model(IDS[:, start:end], cache=cache) for start, end in steps]
    together = model(IDS, documents=padding if padded else None)
    close(torch.cat(pieces, dim=1)[padding >= 0], together[padding >= 0])


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_a_text_may_be_as_long_as_the_limit_says_and_no_longer(row: str, tmp_path: Path) -> None:
    model = made(row, tmp_path)
    if model.length_limit is None:
        assert model(torch.zeros(1, 100, dtype=torch.long)).shape == (1, 100, VOCABULARY)
        return
    assert model.trained_length is not None and model.trained_length <= model.length_limit
    if model.length_limit > 64:  # a number of its settings, which rotary positions do not need
        return
    assert model(torch.zeros(1, model.length_limit, dtype=torch.long)).shape[1] == model.length_limit
    with pytest.raises((UsageError, IndexError)):
        model(torch.zeros(1, model.length_limit + 1, dtype=torch.long))


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_what_is_saved_is_opened_and_described(row: str, tmp_path: Path) -> None:
    model = made(row, tmp_path)
    opened = open_model(saved(model, row, tmp_path))
    assert type(opened) is type(model)
    assert not opened.training
    close(opened(IDS), model(IDS))
    if isinstance(model, PrefixedModel):
        return
    found = describe(tmp_path)
    assert (found.causal, found.vocab_size) == (model.causal, model.vocab_size)
    assert found.ours is isinstance(model, OwnModel)
    assert found.layers == len(model.blocks)
    assert found.shape is None or found.shape == opened.config
    save_model(opened, tmp_path / "again")
    names = {model.folder_name(name) for name in model.state_dict()}
    first, second = (read_header(folder / "model.safetensors").keys() for folder in (tmp_path, tmp_path / "again"))
    assert first == second
    assert first <= names or not found.ours  # transformers gives some another name on disk


@pytest.mark.parametrize("row", ROWS)
@torch.no_grad()
def test_an_untrained_twin_depends_on_the_seed_alone(row: str, tmp_path: Path) -> None:
    model = made(row, tmp_path)
    twins = [model.untrained(seed)(IDS) for seed in (5, 5, 6)]
    assert torch.equal(twins[0], twins[1])
    assert not torch.equal(twins[0], twins[2])
    assert not torch.equal(twins[0], model(IDS))


@pytest.mark.parametrize("row", [row for row in ROWS if not row.startswith("prefix")])  # learns without gradients
def test_activations_computed_twice_give_the_same_gradients(row: str, tmp_path: Path) -> None:
    model = made(row, tmp_path)
    gradients = []
    for again in (False, True):
        if again:
            model.recompute_activations()
        model.zero_grad(set_to_none=True)
        model(IDS).square().mean().backward()
        gradients.append({name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        close(gradients[1][name], gradient)
