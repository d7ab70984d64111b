"""A text that every Python carries, as bytes: the sources of its standard library, every tenth file held out.

Where ``data`` is named, a person's own text stands in its place (``own.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mickle.data.installed import SITE, STDLIB, package_files
from mickle.errors import UsageError
from mickle.studies.own import own_texts

if TYPE_CHECKING:
    from torch import Tensor

SKIPPED = SITE | {"test", "tests", "idlelib"}
HELD_OUT_OF = 10  # one file in so many
BYTES = 256  # the vocabulary


LEAST_BYTES = 2048  # of a side of a person's own text


@cache
def source_bytes(data: str = "") -> tuple[Tensor, Tensor]:
    """The bytes of the texts that are trained on, and of those held out, uint8 each."""
    import torch

    parts: tuple[list[bytes], list[bytes]] = ([], [])
    if data:
        for part, side in zip(parts, own_texts(data)):
            part += [text.encode("utf-8", "replace") + b"\n" for text in side]
        if (least := min(sum(map(len, part)) for part in parts)) < LEAST_BYTES:
            raise UsageError(f"There is too little text: a side of it has {least:,} bytes", where=data)
    else:
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


def held_out_windows(rows: int, length: int, data: str = "") -> dict[str, Tensor]:
    """Windows at equal distances over the held-out files, the same for all: input_ids, labels [rows, length]."""
    import torch

    text = source_bytes(data)[1]
    return rows_at(text, torch.linspace(0, len(text) - length - 1, rows).long(), length)


def unique_places(seed: int, count: int, length: int, data: str = "") -> Tensor:
    """Where the ``count`` unique windows begin in the training bytes, int64 [count]; a smaller count is the front of a
    larger one.
    """
    import torch

    from mickle.data.mixture import permute

    there = (len(source_bytes(data)[0]) - 1) // length
    if count > there:
        raise UsageError(
            f"The training text has {there:,} windows of {length}, not {count:,}.",
            where=data or "study token_crisis",
            todo="give more text, or fewer hours" if data else "",
        )
    return torch.from_numpy(permute(np.arange(count), there, seed, 0)) * length


def enough_windows(values: Mapping[str, Any]) -> None:
    """Raise ``UsageError`` where a person's text is not enough to be read once."""
    unique_places(0, values["steps"] * values["rows"], values["length"], values["data"])


def repeated_windows(
    places: Tensor, seed: int, rows: int, length: int, index: int, data: str = ""
) -> dict[str, Tensor]:
    """Batch ``index``: epoch after epoch over the same windows, each epoch in its own order. [rows, length] each."""
    from mickle.studies.training import in_epochs

    # The order numbered 0 is that in which the windows were drawn.
    return rows_at(source_bytes(data)[0], places[in_epochs(index, rows, len(places), seed, first=1)], length)
