"""What compressing a model will need: memory by what is held at once, time by products and swept weights."""

from __future__ import annotations

from torch import Tensor, nn

from mickle import machine
from mickle.compression.sweep import SweepSettings, layout_of, rounding
from mickle.compression.walk import TOKENS_AT_A_TIME, batch_rows
from mickle.evaluation.loss import CHUNK_BYTES
from mickle.machine import Forecast
from mickle.models.blocks import Blocks, weights_of
from mickle.models.folder import widened_bytes
from mickle.models.folder_files import NARROW

PROCESS = 640 << 20  # bytes of torch and numba themselves, with what measuring and drawing set up
FACTOR, ROUNDED = 8, 3  # matrices of inputs by inputs, in float64, while a layer's factor is made, or none is
SWEPT_A_SECOND = 2e6  # weights, with outliers, on two cores; measured, a little less than found


def forecast(blocks: Blocks, ids: Tensor | None, settings: SweepSettings | None, measured: bool = False) -> Forecast:
    """Memory, time and disk. settings: None where codes are looked up, of a model opened whole. measured: whether the
    loss is, before and after.
    """
    sizes = dict(weights_of(blocks))
    in_blocks = sum(o * i for o, i in sizes.values())
    seconds = in_blocks / SWEPT_A_SECOND
    if ids is not None:
        products = 2 * 2 * in_blocks * ids.numel() + 2 * ids.numel() * sum(i * i for _, i in sizes.values())
        seconds += products / machine.matmul_flops(size=512)
    swept = settings or rounding()  # codes that are looked up take as much
    small = sum(layout_of(swept, size).stored_bytes(None, swept.act_order) for size in sizes.values())
    dense = sum(entry.end - entry.start for name, (_, entry) in blocks.files.tensors.items()
                if name.removesuffix(".weight") not in sizes)  # fmt: skip
    notes = (
        f"{len(blocks)} blocks, {in_blocks:,} weights in them: {small / 1e6:,.1f} MB without outliers, "
        f"{8 * small / max(1, in_blocks):.3f} bits each; the other weights {dense / 1e6:,.1f} MB, as they are",
        "opened whole: this architecture cannot be read block by block" if blocks.in_memory else "one block at a time",
    )
    return Forecast(_memory(blocks, ids, settings, dense, measured), seconds, 2 * small + dense, notes)


def _memory(blocks: Blocks, ids: Tensor | None, settings: SweepSettings | None, dense: int, measured: bool) -> int:
    """Peak bytes: of the walk over blocks, all in float32, of writing ``dense`` bytes of other weights, or of measuring
    the loss of the whole model.
    """
    elements, sizes = blocks.files.elements, dict(weights_of(blocks))
    in_blocks = sum(o * i for o, i in sizes.values())
    outside = 4 * (elements - in_blocks)
    stored = sum(entry.end - entry.start for _, entry in blocks.files.tensors.values())
    if settings is None:  # as it is stored, what was once more to compare with, and a layer's difference in float64
        walking = 2 * stored - dense + 4 * 8 * max((o * i for o, i in sizes.values()), default=0)
    else:
        needs = [_of_block([sizes[name] for name in layers], ids, settings, _width(blocks)) for layers in blocks.layers]
        walking = (4 * elements if blocks.in_memory else outside) + max(needs, default=0)
    widths = max((sum(map(sum, map(sizes.__getitem__, layers))) for layers in blocks.layers), default=0)
    entries = [entry for _, entry in blocks.files.tensors.values()]
    narrow = {dtype: sum(entry.elements for entry in entries if entry.dtype == name) for name, dtype in NARROW.items()}
    measuring = stored + widened_bytes(narrow) + 4 * TOKENS_AT_A_TIME * widths + 3 * CHUNK_BYTES if measured else 0
    return PROCESS + max(walking, outside + dense, measuring)


def _of_block(sizes: list[tuple[int, int]], ids: Tensor | None, settings: SweepSettings, width: int) -> int:
    """Bytes that a block with layers of ``sizes`` (out, in) takes: its weights, the hidden states, its Hessians, and
    either a pass over some rows of ids [n, T] or the sweep of its largest layer, with the factors of all.
    """
    inputs, largest = {i for _, i in sizes}, max((o * i for o, i in sizes), default=0)
    hidden = hessians = running = 0
    if ids is not None:
        hidden = 4 * ids.numel() * width
        hessians = sum(8 * i * i for i in inputs)
        running = 4 * batch_rows(*ids.shape) * ids.shape[1] * sum(o + i for o, i in sizes)
    matrices = FACTOR if settings.compensate else ROUNDED
    sweeping = hessians + matrices * 8 * max(inputs, default=0) ** 2 + 6 * 4 * largest
    return 4 * sum(o * i for o, i in sizes) + hidden + hessians + max(running, sweeping)


def _width(blocks: Blocks) -> int:
    """Of the embedding, which stands first."""
    return next(module.embedding_dim for module in blocks.model.modules() if isinstance(module, nn.Embedding))
