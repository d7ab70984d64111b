"""A text that every Python carries, as bytes: the sources of its standard library, every tenth file held out."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from mickle.data.installed import SITE, STDLIB, package_files

if TYPE_CHECKING:
    from torch import Tensor

SKIPPED = SITE | {"test", "tests", "idlelib"}
HELD_OUT_OF = 10  # one file in so many
BYTES = 256  # the vocabulary


@cache
def source_bytes() -> tuple[Tensor, Tensor]:
    """The bytes of the files that are trained on, and of those held out, uint8 each."""
    import torch

    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for place, path in enumerate(package_files(STDLIB, SKIPPED)):
        parts[place % HELD_OUT_OF == 0].append(path.read_bytes())
    training, held_out = (torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8) for part in parts)
    return training, held_out


def rows_at(data: Tensor, starts: Tensor, length: int) -> dict[str, Tensor]:
    """The windows of ``length`` bytes that begin at ``starts`` [rows]: input_ids, labels (the byte after each), int64
    [rows, length].
    """
    import torch

    found = data[starts[:, None] + torch.arange(length + 1)].long()
    return {"input_ids": found[:, :-1], "labels": found[:, 1:]}
