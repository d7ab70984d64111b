"""What the weights of a model folder come to, read from the headers of its files."""

from __future__ import annotations

import math
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

    @property
    def parameters(self) -> int:
        """Numbers in all."""
        return self.linear + self.rest


def weigh(folder: Path, targets: str | list[str] = "all-linear") -> Weights:
    """Sizes of a folder's weights from its headers. ``targets``: ends of the names of layers that get adapters."""
    from mickle.models.folder_check import inspect_folder

    linear = rest = sides = largest = linear_bytes = 0
    files = inspect_folder(folder)
    for name, (_, entry) in files.tensors.items():
        shape, size = entry.shape, entry.end - entry.start
        if any(word in name for word in FOUR_BIT_TENSORS):
            linear_bytes += size
            continue
        packed = entry.dtype in ("U8", "I8", "I32")
        elements = 2 * size if packed else entry.elements
        if not packed and (len(shape) != 2 or any(word in name for word in TABLES)):
            rest += elements
            continue
        linear, linear_bytes, largest = linear + elements, linear_bytes + size, max(largest, elements)
        layer = name.removesuffix(".weight")
        if targets == "all-linear" or any(layer.endswith(end) for end in targets):
            sides += 2 * math.isqrt(elements) if packed else sum(shape)
    file_bytes = sum(entry.end - entry.start for _, entry in files.tensors.values())
    return Weights(linear, rest, file_bytes, sides, largest, linear_bytes)
