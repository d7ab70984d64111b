"""Blocks one at a time give what the whole model gives."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mickle import storage
from mickle.errors import NumericError, UsageError
from mickle.models.blocks import (
    block_layers,
    check_finite,
    first_inputs,
    next_inputs,
    open_block,
    open_blocks,
    run_block,
    weights_of,
)
from mickle.models.decoder import Decoder, DecoderConfig
from mickle.models.folder import open_model, save_model
from mickle.models.linear_layers import linear_layers

IDS = torch.randint(0, 60, (4, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=["rotary", "alibi", "learned", "experts"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    more = {"experts": 3} if request.param == "experts" else {"position": request.param}
    model = Decoder(DecoderConfig(60, 32, 3, 4, 2, 8, 48, 64, initial_std=0.2, tied=False, **more))  # type: ignore[arg-type]
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


def test_a_chain_of_opened_blocks_is_the_model(folder: Path) -> None:
    blocks = open_blocks(folder)
    assert not blocks.in_memory
    model = open_model(folder)
    assert isinstance(model, Decoder)
    seen: list[torch.Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, arguments, answer: seen.append(answer))
    with torch.no_grad():
        model(IDS)
    hidden = first_inputs(blocks, IDS, 2)
    for index in range(len(blocks)):
        block = open_block(blocks, index)
        answer = torch.cat([run_block(blocks, block, index, part) for part in hidden])
        torch.testing.assert_close(answer, seen[index], atol=1e-5, rtol=1e-5)
        hidden = next_inputs(blocks, block, index, IDS, 2, hidden)
    assert hidden == []


def test_blocks_have_the_linear_layers_of_the_model_and_no_weights_yet(folder: Path) -> None:
    blocks = open_blocks(folder)
    named = [name for layers in blocks.layers for name in layers]
    assert named == list(linear_layers(open_model(folder)))
    assert dict(weights_of(blocks)).keys() == set(named)
    assert all(parameter.is_meta for parameter in blocks.list.parameters())
    block = open_block(blocks, 1)
    name, (own, layer) = next(iter(block_layers(blocks, block, 1).items()))
    assert "layers.1" in name
    assert not next(layer.parameters()).is_meta
    new = nn.Linear(1, 1)
    block.set_submodule(own, new)
    assert block.get_submodule(own) is new


def test_a_model_of_transformers_is_a_chain_too(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3}
    GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=60, max_position_embeddings=64, **shape)).save_pretrained(tmp_path)
    blocks = open_blocks(tmp_path)
    assert blocks.in_memory
    hidden = first_inputs(blocks, IDS, 2)
    for index in range(2):
        hidden = next_inputs(blocks, open_block(blocks, index), index, IDS, 2, hidden)
    assert blocks.chained
    chained = torch.cat(hidden)
    blocks.chained = False  # as of a model whose blocks are none: from the start every time
    again = torch.cat(next_inputs(blocks, open_block(blocks, 1), 1, IDS, 2, []))
    torch.testing.assert_close(chained, again)


def test_what_has_no_blocks_or_numbers_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors = storage.load_tensors(folder / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1)[0] = float("inf")
    storage.save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    with pytest.raises(NumericError, match=name.replace(".", r"\.")):
        check_finite(open_blocks(folder).files)
    with pytest.raises(UsageError, match="no such model folder"):
        open_blocks(tmp_path / "none")
