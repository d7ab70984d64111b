"""What safetensors files say they hold, and whether they may be read.

A safetensors file is: the header's length (8 bytes, little endian), a JSON header of
`{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}`, then the data, which the tensors
tile without hole or overlap. Format: https://huggingface.co/docs/safetensors, section "Format". The library
checks all of that when it opens a file; what is checked here besides is the header's size, and that its entries
have no fields that nobody reads.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open
from torch import Tensor

from mickle.errors import NumericError, UsageError
from mickle.storage import LARGEST_HEADER
from mickle.untrusted.values import count_values

MOST_VALUES = 500_000  # in a header: some 60,000 tensors
LONGEST_NAME = 1024


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of one tensor; `start` and `end` are byte offsets in the data part."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a safetensors file by name. Raises UsageError at the first thing that is not as it should be."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > LARGEST_HEADER or length > size - 8:
            _refuse(path, f"header claims {length:,} bytes, the file has {size:,}")
        header = stream.read(length)
    if (count := count_values(header.decode("latin-1"))) > MOST_VALUES:
        _refuse(path, f"header holds {count:,} values, more than {MOST_VALUES:,}")
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError, RuntimeError) as error:  # the last where it is too large to be mapped
        _refuse(path, str(error)[:200])
    values = json.loads(header)
    values.pop("__metadata__", None)
    return {name: _entry(name, value, path) for name, value in values.items()}


def refuse_not_finite(tensors: dict[str, Tensor], where: Path) -> None:
    """Raise NumericError that names the first tensor with NaN or infinity in it."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.element_size() > 1 and not _all_finite(tensor):
            raise NumericError(
                f"tensor {name[:200]!r} holds numbers that are not finite",
                where=str(where),
                todo="use an earlier checkpoint of this model",
            )


def _all_finite(tensor: Tensor) -> bool:
    """Whether there is no NaN and no infinity; looked at in pieces, so that little memory is taken.

    A norm is finite only if all its numbers are, and some 20 times as quick as a look at each, which large ones need.
    """
    pieces = tensor.reshape(-1).split(1 << 22)
    return all(bool(p.norm().isfinite()) or bool(p.isfinite().all()) for p in pieces)


def _entry(name: str, value: dict[str, Any], path: Path) -> TensorEntry:
    """One tensor's entry, as the library has accepted it."""
    if not name or len(name) > LONGEST_NAME:
        _refuse(path, f"a tensor's name has {len(name)} characters")
    if set(value) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"tensor {name[:100]!r} has more than dtype, shape and data_offsets")
    return TensorEntry(value["dtype"], tuple(value["shape"]), *value["data_offsets"])


def _refuse(path: Path, what: str) -> NoReturn:
    raise UsageError(f"not a sound safetensors file: {what}", where=str(path), todo="fetch or write the file again")
