"""What the weights of a model folder come to, read from the headers of its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

TABLES = ("embed", "lm_head", "wte", "wpe", "shared", "decoder.weight", "position")  # in names of what stays in 32 bits
FOUR_BIT_TENSORS = ("absmax", "quant_map", "quant_state", "nested_")


@dataclass(frozen=True)
class Weights:
    """What a folder's weights come to, as its files' headers say: numbers in linear layers and in the rest, bytes,
    the linear layers' inputs and outputs in all (``sides``), and the numbers of the largest.
    """

    linear: int
    rest: int
    file_bytes: int
    sides: int
    largest: int
    linear_bytes: int  # as stored
    row: int = 0  # numbers of one token in all tables of tokens
    table: int = 0  # numbers of the largest of them
    whole: int = 0  # numbers of the layers that learn whole

    @property
    def parameters(self) -> int:
        """Numbers in all."""
        return self.linear + self.rest


def weigh(folder: Path, targets: str | list[str] = "all-linear", layers: Sequence[str] = ()) -> Weights:
    """Sizes of a folder's weights from its headers. ``targets``: ends of the names of layers that get adapters;
    ``layers``: of those that learn whole.
    """
    from mickle.models.folder_check import inspect_folder

    linear = rest = sides = largest = linear_bytes = whole = 0
    tables: list[tuple[int, ...]] = []
    files = inspect_folder(folder)
    for name, (_, entry) in files.tensors.items():
        shape, size = entry.shape, entry.end - entry.start
        if any(word in name for word in FOUR_BIT_TENSORS):
            linear_bytes += size
            continue
        packed = entry.dtype in ("U8", "I8", "I32")
        elements = 2 * size if packed else entry.elements
        own = f".{name.rpartition('.')[0]}."
        whole += elements if any(f".{layer}." in own for layer in layers) else 0
        if not packed and (len(shape) != 2 or any(word in name for word in TABLES)):
            rest += elements
            tables += [shape] if len(shape) == 2 else []
            continue
        linear, linear_bytes, largest = linear + elements, linear_bytes + size, max(largest, elements)
        layer = name.removesuffix(".weight")
        if targets == "all-linear" or any(layer.endswith(end) for end in targets):
            sides += 2 * math.isqrt(elements) if packed else sum(shape)
    file_bytes = sum(entry.end - entry.start for _, entry in files.tensors.values())
    rows = max((shape[0] for shape in tables), default=0)  # tables of positions and the like have fewer
    widths = [shape[1] for shape in tables if shape[0] == rows]
    table = rows * max(widths, default=0)
    return Weights(linear, rest, file_bytes, sides, largest, linear_bytes, sum(widths), table, whole)
