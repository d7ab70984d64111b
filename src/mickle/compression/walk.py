"""Block by block through a model: gather what its layers are given, quantize them, go on with what they now answer.

The inputs of a block come from the blocks before it as they are stored. Inside a block every layer is given what the
block computed before any of it was quantized (the authors' default). In memory are one block, its Hessians and one
buffer of hidden states. A block that is done lies in a file of its own; a walk that was killed reads it and runs it
again, so it goes on with the very numbers it would have had.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mickle import machine, storage
from mickle.compression.hessian import Gathered, gather
from mickle.compression.sweep import Factor, SweepSettings, Swept, factorize, prepare, relative_error, sweep
from mickle.compression.target import Budget, error_counts
from mickle.errors import NumericError
from mickle.events import Emit, Progressed, Started
from mickle.models.blocks import Blocks, block_layers, first_inputs, next_inputs, open_block, run_block
from mickle.models.linear_layers import dense_weight, is_conv1d
from mickle.quantization.grouped_linear import GroupedLinear

TOKENS_AT_A_TIME = 8192
NO_OUTLIERS = 1e30  # a threshold that nothing passes: the list of outliers is there, and empty
TINY = 1e-8  # where a threshold begins to rise that was 0
HALVINGS, NEARLY = (8, 0.98)  # how long a threshold is looked for, and what share of the allowed outliers is enough
ROUNDED = "no calibration token reached it"


@dataclass(frozen=True)
class LayerFigures:
    """What became of one layer. error: ||(W - Q) X|| / ||W X|| over calibration inputs X (of the weights where
    there are none); tokens: calibration tokens that reached it; remark: what a person should know.
    """

    name: str
    outputs: int
    inputs: int
    bits: float
    formula_bits: float
    outliers: int
    outlier_share: float
    error: float
    tokens: int
    damping: float
    tau: float | None
    bytes: int
    remark: str


@dataclass(frozen=True)
class Allowed:
    """A layer's threshold of outliers, and how many of them there may be at most; None: as many as there are."""

    tau: float
    most: int | None = None


def walk(
    blocks: Blocks,
    ids: Tensor | None,
    settings: SweepSettings,
    folder: Path,
    emit: Emit,
    allowed: Callable[[list[LayerFigures]], Allowed] | None = None,
) -> tuple[list[LayerFigures], list[float]]:
    """Quantize every block's linear layers; block i's are left in folder/i.safetensors, their figures beside it.

    ids [n, T]: calibration text; None: nothing is run, layers are rounded. allowed: what the next layer may
    take, given the figures of all before it; None: what the settings' threshold says. Returns all figures and the
    seconds of each block (0 for one done before).
    """
    folder.mkdir(parents=True, exist_ok=True)
    allowed = allowed or (lambda before: Allowed(settings.tau))
    rows = 0 if ids is None else batch_rows(*ids.shape)
    hidden = [] if ids is None else first_inputs(blocks, ids, rows)
    figures: list[LayerFigures] = []
    seconds = []
    emit(Started("compressing", len(blocks), "blocks"))
    for index in range(len(blocks)):
        begun = time.monotonic()
        block = open_block(blocks, index)
        done = _read_block(folder, index, blocks, block)
        if done is None:
            done = _quantize_block(blocks, block, index, hidden, settings, figures, allowed)
            _write_block(folder, index, done, block_layers(blocks, block, index))
            seconds.append(time.monotonic() - begun)
        else:
            seconds.append(0.0)
        figures += done
        if ids is not None:
            hidden = next_inputs(blocks, block, index, ids, rows, hidden)
        del block
        machine.release_memory()  # Hessians and factors are below the size that glibc gives back by itself
        emit(Progressed(index + 1))
    return figures, seconds


def survey(blocks: Blocks, ids: Tensor, settings: SweepSettings, file: Path, emit: Emit) -> list[list[int]]:
    """For every layer in order, how many outliers each threshold would have; kept in `file`. Nothing is changed."""
    if file.is_file():
        kept: list[list[int]] = storage.read_state(file)
        return kept
    rows = batch_rows(*ids.shape)
    hidden = first_inputs(blocks, ids, rows)
    counts: list[list[int]] = []
    emit(Started("looking for outliers", len(blocks), "blocks"))
    for index in range(len(blocks)):
        block = open_block(blocks, index)
        layers = block_layers(blocks, block, index)
        gathered = _gather_block(blocks, block, index, hidden, layers)
        factors: dict[str, Factor] = {}
        for name, (_, layer) in layers.items():
            swept, _ = _sweep_layer(name, layer, gathered, factors, settings, tau=math.inf)
            counts.append(error_counts(swept.parts.errors, swept.prepared.unit))
        hidden = next_inputs(blocks, block, index, ids, rows, hidden)
        emit(Progressed(index + 1))
    storage.write_json(file, counts)
    return counts


def spending(
    blocks: Blocks, ids: Tensor, settings: SweepSettings, room: int, strict: bool, file: Path, emit: Emit
) -> Callable[[list[LayerFigures]], Allowed]:
    """What the next layer may take, given the figures of those before it, where all have ``room`` outliers together.

    ``strict``: never more of them. The survey is kept in ``file``.
    """
    counts = survey(blocks, ids, settings, file, emit)

    def allowed(before: list[LayerFigures]) -> Allowed:
        budget = Budget(room, list(counts))
        for figures in before:
            budget.spend(figures.tau or float("inf"), figures.outliers)
        return Allowed(min(budget.tau(), NO_OUTLIERS), budget.left if strict else None)

    return allowed


def batch_rows(samples: int, length: int) -> int:
    """The most rows of a batch that divide `samples` and hold at most some thousand tokens."""
    most = max(1, TOKENS_AT_A_TIME // length)
    return max(rows for rows in range(1, min(most, samples) + 1) if samples % rows == 0)


Layers = dict[str, tuple[str, nn.Module]]


def _gather_block(blocks: Blocks, block: nn.Module, index: int, hidden: list[Tensor], layers: Layers) -> Gathered:
    with gather({name: layer for name, (_, layer) in layers.items()}) as gathered:
        for part in hidden:
            run_block(blocks, block, index, part)
    return gathered


def _quantize_block(
    blocks: Blocks,
    block: nn.Module,
    index: int,
    hidden: list[Tensor],
    settings: SweepSettings,
    before: list[LayerFigures],
    allowed: Callable[[list[LayerFigures]], Allowed],
) -> list[LayerFigures]:
    layers = block_layers(blocks, block, index)
    gathered = _gather_block(blocks, block, index, hidden, layers)
    factors: dict[str, Factor] = {}
    done: list[LayerFigures] = []
    for name, (own, layer) in layers.items():
        sweep_at = partial(_sweep_layer, name, layer, gathered, factors, settings)
        asked, (swept, remark) = _sweep_within(allowed([*before, *done]), sweep_at)
        grouped = swept.grouped
        weight = dense_weight(layer)
        tau = asked if grouped.values is not None else None
        done.append(
            LayerFigures(
                name, weight.shape[0], weight.shape[1], grouped.bits, grouped.formula_bits, grouped.outliers,
                grouped.outlier_share, relative_error(weight, grouped.dequantized(), gathered.hessian(name)),
                gathered.count.get(gathered.leader.get(name, name), 0),
                swept.prepared.damping, tau, grouped.stored_bytes, remark,
            )
        )  # fmt: skip
        new = GroupedLinear(grouped, getattr(layer, "bias", None))
        new.conv1d = is_conv1d(layer)
        block.set_submodule(own, new.eval())
    return done


def _sweep_within(allowed: Allowed, sweep_at: Callable[[float], tuple[Swept, str]]) -> tuple[float, tuple[Swept, str]]:
    """The layer at the smallest threshold found by which it has no more outliers than allowed, and that threshold.

    Predictions of their number miss by some percent: the threshold rises until they are few enough, and is then
    halved in, between too many and few enough, until nearly all that is allowed is spent.
    """
    tau, found = allowed.tau, sweep_at(allowed.tau)
    if allowed.most is None or found[0].grouped.outliers <= allowed.most:
        return tau, found
    low, step = tau, 1.5
    while found[0].grouped.outliers > allowed.most:
        low, tau = tau, min(max(tau, TINY) * step, NO_OUTLIERS)
        step = step**2
        found = sweep_at(tau)
        if tau == NO_OUTLIERS:
            return tau, found
    for _ in range(HALVINGS):
        if found[0].grouped.outliers >= NEARLY * allowed.most:
            break
        middle = math.sqrt(max(low, TINY) * tau)
        other = sweep_at(middle)
        if other[0].grouped.outliers > allowed.most:
            low = middle
        else:
            tau, found = middle, other
    return tau, found


def _sweep_layer(
    name: str, layer: nn.Module, gathered: Gathered, factors: dict[str, Factor], settings: SweepSettings, tau: float
) -> tuple[Swept, str]:
    """The layer quantized at the threshold ``tau``, and what had to be done besides."""
    settings = replace(settings, tau=tau)
    weight = dense_weight(layer)
    hessian = gathered.hessian(name)
    try:
        if hessian is None or not settings.compensate:
            plain = replace(settings, compensate=False, tau=float("inf"))
            remark = f"{ROUNDED}: rounded" if settings.compensate else ""
            return sweep(prepare(weight, None, plain), plain), remark
        leader = gathered.leader[name]
        if leader not in factors:
            factors[leader] = factorize(hessian, settings)
        swept = sweep(prepare(weight, factors[leader], settings), settings)
    except NumericError as error:
        raise NumericError(error.what, where=f"layer {name}", expected=error.expected, todo=error.todo) from None
    remarks = []
    if swept.prepared.damping > settings.damping:
        remarks.append(f"damping raised to {swept.prepared.damping:g}: no Cholesky factor at {settings.damping:g}")
    if swept.prepared.dead:
        remarks.append(f"{swept.prepared.dead} inputs are always 0")
    tokens = gathered.count[leader]
    if tokens < weight.shape[1]:
        remarks.append(f"only {tokens} tokens for {weight.shape[1]} inputs")
    return swept, "; ".join(remarks)


def _files(folder: Path, index: int) -> tuple[Path, Path]:
    return folder / f"{index:05}.safetensors", folder / f"{index:05}.json"


def _write_block(folder: Path, index: int, figures: list[LayerFigures], layers: Layers) -> None:
    """Figures first: where the tensors are, the block is done."""
    tensors, said = _files(folder, index)
    stored: dict[str, Tensor] = {}
    settings: dict[str, dict[str, Any]] = {}
    for name, (_, layer) in layers.items():
        assert isinstance(layer, GroupedLinear)
        stored |= layer.tensors(name)
        settings[name] = layer.settings()
    storage.write_json(said, {"figures": [asdict(f) for f in figures], "settings": settings})
    storage.save_tensors(tensors, stored, {"format": "pt"})


def _read_block(folder: Path, index: int, blocks: Blocks, block: nn.Module) -> list[LayerFigures] | None:
    """Figures of a block that is done, its layers put into `block`; None where it is not."""
    tensors, said = _files(folder, index)
    if not (tensors.is_file() and said.is_file()):
        return None
    stored, kept = storage.load_tensors(tensors), storage.read_state(said)
    for name, (own, layer) in block_layers(blocks, block, index).items():
        new = GroupedLinear.from_tensors(name, stored, kept["settings"][name])
        bias: Tensor | None = getattr(layer, "bias", None)
        new.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        new.conv1d = is_conv1d(layer)
        block.set_submodule(own, new.eval())
    return [LayerFigures(**values) for values in kept["figures"]]


def block_settings(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    """Settings of all layers of a finished walk."""
    found: dict[str, dict[str, Any]] = {}
    for index in range(count):
        found |= storage.read_state(_files(folder, index)[1])["settings"]
    return found
