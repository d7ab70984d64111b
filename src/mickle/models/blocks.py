"""A model's blocks one at a time: their inputs, their weights, their linear layers.

For work that needs every layer's inputs and not all of the model at once. Of a folder that our decoder computes, all
but the blocks is read (embedding, norm, head), and a block's weights only when it is opened. Of any other model the
folder is opened at once, because what its layers share (tables of positions, masks) is made with it; `in_memory` says
so.

What a block is given beside the hidden states
(masks, rotations) is caught in one pass up to it, so nothing is assumed about it; that a block's output is the next
one's input is tried, and where it is not so the inputs are computed from the start for every block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mickle.errors import UsageError
from mickle.models.architectures import checked_frame
from mickle.models.folder_check import SETTINGS, ModelFiles, inspect_folder
from mickle.models.folder_files import read_tensor
from mickle.models.linear_layers import features, linear_layers
from mickle.models.quantized import open_base
from mickle.models.safetensors_check import refuse_not_finite


@dataclass
class Blocks:
    """A model in evaluation mode and float32 whose blocks are opened one at a time.

    in_memory: all weights are. layers: for each block its linear layers by folder name. given: by block, what it gets
    beside the hidden states. chained: whether each block's output is the next one's input.
    """

    files: ModelFiles
    model: nn.Module
    list: nn.ModuleList
    layers: list[dict[str, str]]
    in_memory: bool
    chained: bool = True
    given: dict[int, tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.list)


class _Caught(Exception):
    """The forward pass has reached the block that was asked for."""


def open_blocks(path: Path) -> Blocks:
    """The blocks of a model folder. UsageError for an adapter, for weights in few bits already, for a model without
    blocks.
    """
    files = inspect_folder(path)
    refuse_few_bits(files.config, path)
    model: Any = checked_frame(files)
    in_memory = model is None
    if in_memory:
        model = open_base(path, dtype=torch.float32)
    blocks = _blocks_of(model, path)
    if not in_memory:
        model.eval()
        inside = tuple(f"{name}." for name, module in model.named_modules() if module is blocks)
        outside = [name for name in model.state_dict() if not name.startswith(inside)]
        weights = {name: read_tensor(files, model.folder_name(name)).float() for name in outside}
        model.load_state_dict(weights, assign=True, strict=False)
    return Blocks(files, model, blocks, _layers_of(model, blocks), in_memory)


def refuse_few_bits(config: dict[str, Any], path: Path) -> None:
    """UsageError for a model whose weights are in few bits already."""
    if SETTINGS in config:
        raise UsageError(
            "the model's weights are in few bits already", where=str(path), todo="name the model it was made from"
        )


def open_block(blocks: Blocks, index: int) -> nn.Module:
    """Block `index` with its weights in float32; the caller drops it when done."""
    block = blocks.list[index]
    if blocks.in_memory:
        return block
    model: Any = blocks.model
    name = next(name for name, module in model.named_modules() if module is block)
    weights = {own: read_tensor(blocks.files, model.folder_name(f"{name}.{own}")).float() for own in block.state_dict()}
    fresh = copy.deepcopy(block)  # of the frame, which holds no numbers
    fresh.load_state_dict(weights, assign=True)
    return fresh


def block_layers(blocks: Blocks, block: nn.Module, index: int) -> dict[str, tuple[str, nn.Module]]:
    """For each linear layer of an open block: its folder name -> its name in the block, and the layer."""
    return {there: (own, block.get_submodule(own)) for there, own in blocks.layers[index].items()}


@torch.no_grad()
def first_inputs(blocks: Blocks, ids: Tensor, rows: int) -> list[Tensor]:
    """What the first block gets for ids [n, T], in batches of `rows`, which divides n: [rows, T, D] each."""
    if blocks.in_memory:
        _look_through(blocks, ids[:rows])
    return [_catch(blocks, part, 0) for part in ids.split(rows)]


@torch.no_grad()
def run_block(blocks: Blocks, block: nn.Module, index: int, hidden: Tensor) -> Tensor:
    """Block `index` on hidden states [rows, T, D]."""
    arguments, named = blocks.given[index if blocks.in_memory else 0]
    return _first(block(hidden, *arguments, **named))


@torch.no_grad()
def next_inputs(
    blocks: Blocks, block: nn.Module, index: int, ids: Tensor, rows: int, hidden: list[Tensor]
) -> list[Tensor]:
    """What block `index` + 1 gets once `index` is what `block` is; `hidden` is overwritten where blocks are a chain."""
    if index + 1 == len(blocks):
        return []
    if blocks.chained:
        for number, part in enumerate(hidden):
            hidden[number] = run_block(blocks, block, index, part)
        return hidden
    return [_catch(blocks, part, index + 1) for part in ids.split(rows)]


def check_finite(files: ModelFiles) -> None:
    """Every tensor of the folder, one at a time. NumericError names the first that is not finite."""
    for name in files.tensors:
        refuse_not_finite({name: read_tensor(files, name)}, files.folder)


def _blocks_of(model: Any, path: Path) -> nn.ModuleList:
    try:
        return model.blocks
    except UsageError as error:
        raise UsageError(error.what, where=str(path), expected=error.expected) from None


def _layers_of(model: nn.Module, found: nn.ModuleList) -> list[dict[str, str]]:
    """Folder names of linear layers -> names inside their block, block by block."""
    names = {id(layer): name for name, layer in linear_layers(model).items()}
    return [
        {names[id(module)]: own for own, module in block.named_modules() if own and id(module) in names}
        for block in found
    ]


def _catch(blocks: Blocks, ids: Tensor, index: int) -> Tensor:
    """Run the model up to block `index`: its hidden states; what else it gets is kept in `given`."""
    kept: list[Tensor] = []

    def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden, blocks.given[index] = _split(arguments, named)
        kept.append(hidden)
        raise _Caught

    with blocks.list[index].register_forward_pre_hook(stop, with_kwargs=True), suppress(_Caught):
        blocks.model(ids, head=_no_head)
    if not kept:
        raise UsageError("the model's forward pass does not reach its blocks", where=str(blocks.files.folder))
    return kept[0].detach().clone()


def _look_through(blocks: Blocks, ids: Tensor) -> None:
    """Run a model in memory once: what every block gets, for batches shaped as `ids`, and whether it is a chain."""
    answers: list[Tensor] = []  # of the block before, a copy: what follows may change it in place
    joined: list[bool] = []

    def watch(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden, blocks.given[index] = _split(arguments, named)
            joined.append(torch.equal(answers.pop(), hidden) if answers else index == 0)

        return hook

    with ExitStack() as hooks:
        for index, block in enumerate(blocks.list):
            hooks.enter_context(block.register_forward_pre_hook(watch(index), with_kwargs=True))
            hooks.enter_context(block.register_forward_hook(lambda *call: answers.append(_first(call[-1]).clone())))
        blocks.model(ids, head=_no_head)
    blocks.chained = len(joined) == len(blocks) and all(joined)


def _split(arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Tensor, tuple[tuple[Any, ...], dict[str, Any]]]:
    """The hidden states of a block's call, and the rest of it."""
    if arguments:
        return arguments[0], (arguments[1:], named)
    rest = dict(named)
    return rest.pop("hidden_states"), ((), rest)


def _first(answer: Any) -> Tensor:
    found: Tensor = answer[0] if isinstance(answer, tuple) else answer
    return found


def _no_head(hidden: Tensor, _: Tensor | None) -> Tensor:
    return hidden[:, :1]


def weights_of(blocks: Blocks) -> Iterator[tuple[str, tuple[int, int]]]:
    """Folder name and [out, in] of every linear layer in a block."""
    for index, block in enumerate(blocks.list):
        for there, own in blocks.layers[index].items():
            inputs, outputs = features(block.get_submodule(own))
            yield there, (outputs, inputs)
