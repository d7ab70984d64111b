"""What compressing a model will need: memory by what is held at once, time by products and swept weights."""

from __future__ import annotations

from torch import Tensor, nn

from mickle import machine
from mickle.compression.sweep import SweepSettings, layout_of, rounding
from mickle.machine import Forecast
from mickle.models.blocks import Blocks, weights_of

PROCESS = 640 << 20  # bytes of torch and numba themselves, with what measuring and drawing set up
SWEPT_A_SECOND = 2e6  # weights, with outliers, on two cores; measured, a little less than found


def forecast(blocks: Blocks, ids: Tensor | None, settings: SweepSettings | None) -> Forecast:
    """Memory: the parts outside of blocks, the largest block and its sweep, Hessians, hidden states, what is written;
    whole models in float32.
    """
    files = blocks.files
    sizes = dict(weights_of(blocks))
    a_block = [[sizes[name] for name in layers] for layers in blocks.layers]
    in_blocks = sum(o * i for o, i in sizes.values())
    weights = [sum(o * i for o, i in block) for block in a_block]
    hessians = [sum(8 * i * i for i in {i for _, i in block}) for block in a_block]
    largest_layer = max((o * i for o, i in sizes.values()), default=0)
    hidden = 0 if ids is None else 4 * ids.numel() * _width(blocks)
    held = 4 * (files.elements if blocks.in_memory else files.elements - in_blocks + max(weights, default=0))
    seconds = in_blocks / SWEPT_A_SECOND
    if ids is not None:
        products = 2 * 2 * in_blocks * ids.numel() + 2 * ids.numel() * sum(i * i for _, i in sizes.values())
        seconds += products / machine.matmul_flops(size=512)
    settings = settings or rounding()  # codes that are looked up take as much
    small = sum(layout_of(settings, size).stored_bytes(None, settings.act_order) for size in sizes.values())
    memory = PROCESS + held + 3 * max(hessians, default=0) + 6 * 4 * largest_layer + 2 * hidden + small
    dense = sum(entry.end - entry.start for name, (_, entry) in files.tensors.items()
                if name.removesuffix(".weight") not in sizes)  # fmt: skip
    rest = f"the other weights {dense / 1e6:,.1f} MB, as they are"
    notes = (
        f"{len(blocks)} blocks, {in_blocks:,} weights in them: {small / 1e6:,.1f} MB without outliers, "
        f"{8 * small / max(1, in_blocks):.3f} bits each; {rest}",
        "opened whole: this architecture cannot be read block by block" if blocks.in_memory else "one block at a time",
    )
    return Forecast(int(memory), seconds, 2 * small + dense, notes)


def _width(blocks: Blocks) -> int:
    """Of the embedding, which stands first."""
    return next(module.embedding_dim for module in blocks.model.modules() if isinstance(module, nn.Embedding))
