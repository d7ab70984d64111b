"""A strict reading of safetensors headers, done before any library maps the file.

A safetensors file is: the header's length (8 bytes, little endian), a JSON header of
`{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}`, then the data, which the tensors
tile without hole or overlap. Format: https://huggingface.co/docs/safetensors, section "Format".
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from mickle.errors import NumericError, UsageError

LARGEST_HEADER = 25 << 20  # bytes; 100,000 tensors need about 15 MB
LONGEST_NAME = 1024
BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
}


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
    """Every tensor of a safetensors file by name. Raises UsageError at the first thing that is not as it
    should be.
    """
    size = path.stat().st_size
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 10:
            _refuse(path, f"file of {size} bytes is too short to be one")
        if length > LARGEST_HEADER or length > size - 8:
            _refuse(path, f"header claims {length:,} bytes, the file has {size:,}")
        header = stream.read(length)
    values = _parse(header, path)
    values.pop("__metadata__", None)
    entries = {name: _entry(name, value, path) for name, value in values.items()}
    _check_tiling(entries, size - 8 - length, path)
    return entries


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
    """Whether there is no NaN and no infinity; looked at in pieces, so that little memory is taken."""
    flat = tensor.reshape(-1)
    return all(bool(torch.isfinite(piece).all()) for piece in flat.split(1 << 22))


def _parse(header: bytes, path: Path) -> dict[str, Any]:
    """The header as a dictionary: UTF-8 JSON that starts with a brace and names nothing twice."""
    if not header.startswith(b"{"):
        _refuse(path, "header does not start with {")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands twice")
        return found

    def no_constant(text: str) -> NoReturn:
        raise ValueError(f"{text} is no number")

    try:
        values = json.loads(header.decode("utf-8"), object_pairs_hook=unique, parse_constant=no_constant)
    except RecursionError:
        _refuse(path, "header is nested too deeply")
    except ValueError as error:  # JSON, UTF-8 and over-long numbers alike
        _refuse(path, f"header is not valid JSON: {str(error)[:100]}")
    if not isinstance(values, dict):
        _refuse(path, "header is not a JSON object")
    return values


def _entry(name: str, value: Any, path: Path) -> TensorEntry:
    """One tensor's entry, every field of it checked."""
    shown = f"tensor {name[:100]!r}"
    if not name or len(name) > LONGEST_NAME:
        _refuse(path, f"a tensor's name has {len(name)} characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"{shown} lacks dtype, shape or data_offsets, or has more than these")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        _refuse(path, f"{shown} has unknown dtype {str(dtype)[:40]!r}")
    if not _whole_numbers(shape) or len(shape) > 16:
        _refuse(path, f"{shown} has a shape that is not up to 16 whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        _refuse(path, f"{shown} has data_offsets that are not two whole numbers")
    entry = TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])
    if entry.elements * BITS[dtype] != 8 * (entry.end - entry.start):
        _refuse(path, f"{shown} of shape {str(shape)[:60]} does not fit its {entry.end - entry.start} bytes")
    return entry


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_tiling(entries: dict[str, TensorEntry], data: int, path: Path) -> None:
    """The tensors must cover the data part from its first byte to its last, each byte once."""
    reached = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != reached:
            _refuse(path, f"tensor {name[:100]!r} starts at byte {entry.start:,}, the one before ends at {reached:,}")
        reached = entry.end
    if reached != data:
        _refuse(path, f"tensors end at byte {reached:,} of {data:,}: the file is cut, or something hides in it")


def _refuse(path: Path, what: str) -> NoReturn:
    raise UsageError(f"not a sound safetensors file: {what}", where=str(path), todo="fetch or write the file again")
