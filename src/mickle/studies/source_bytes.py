"""A text that every Python carries, as bytes: the sources of its standard library, every tenth file held out."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from mickle.data.installed import SITE, STDLIB, package_files
from mickle.errors import UsageError

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


def held_out_windows(rows: int, length: int) -> dict[str, Tensor]:
    """Windows at equal distances over the held-out files, the same for all: input_ids, labels [rows, length]."""
    import torch

    data = source_bytes()[1]
    return rows_at(data, torch.linspace(0, len(data) - length - 1, rows).long(), length)


def unique_places(seed: int, count: int, length: int) -> Tensor:
    """Where the ``count`` unique windows begin in the training bytes, int64 [count]; a smaller count is the front of a
    larger one.
    """
    import torch

    from mickle.data.mixture import permute

    there = (len(source_bytes()[0]) - 1) // length
    if count > there:
        raise UsageError(
            f"The training text has {there:,} windows of {length}, not {count:,}.", where="study token_crisis"
        )
    return torch.from_numpy(permute(np.arange(count), there, seed, 0)) * length


def repeated_windows(places: Tensor, seed: int, rows: int, length: int, index: int) -> dict[str, Tensor]:
    """Batch ``index``: epoch after epoch over the same windows, each epoch in its own order. [rows, length] each."""
    from mickle.studies.training import in_epochs

    # The order numbered 0 is that in which the windows were drawn.
    return rows_at(source_bytes()[0], places[in_epochs(index, rows, len(places), seed, first=1)], length)
