"""How bitsandbytes stores a weight in 4 bits among safetensors, read and written.

Of a weight X of n numbers: X, uint8 [n/2, 1] or the same bytes as a wider type (`quant_storage`); X.absmax, float32, or
uint8 with double quantization, one for each block; X.quant_map, float32 [16]; with double quantization
X.nested_absmax, float32, and X.nested_quant_map, float32 [256]; X.quant_state.bitsandbytes__nf4 (or fp4), uint8, the
bytes of a JSON object with quant_type, blocksize, dtype, shape and, if double, nested_blocksize, nested_dtype,
nested_offset. What a folder says is checked part by part before a layer is made of it.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from mickle.errors import UsageError
from mickle.quantization.codes import dynamic_map, table
from mickle.quantization.nf4 import BLOCKS, KINDS, SCALES_BLOCK, Blocks

STATE = ".quant_state.bitsandbytes__"
WRITTEN = ("nf4", "fp4")  # the codes that the format has
PARTS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
_LARGEST_STATE = 4096  # bytes of JSON; about 170 are in use


def to_tensors(blocks: Blocks, name: str) -> dict[str, Tensor]:
    """The tensors of a weight called `name`, on the CPU. UsageError for a code that bitsandbytes does not have."""
    if blocks.code not in WRITTEN:
        raise UsageError(
            f"{blocks.code} weights cannot be stored in a bitsandbytes folder", expected=" or ".join(WRITTEN)
        )
    state: dict[str, Any] = {
        "quant_type": blocks.code,
        "blocksize": blocks.block,
        "dtype": str(blocks.dtype).removeprefix("torch."),
        "shape": list(blocks.shape),
    }
    tensors = {"": blocks.packed[:, None], ".absmax": blocks.absmax, ".quant_map": table(blocks.code).clone()}
    if blocks.nested is not None:
        tensors |= {".nested_absmax": blocks.nested, ".nested_quant_map": dynamic_map().clone()}
        state |= {"nested_blocksize": SCALES_BLOCK, "nested_dtype": "float32", "nested_offset": blocks.offset}
    text = json.dumps(state).encode()
    tensors[f"{STATE}{blocks.code}"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return {f"{name}{part}": tensor.cpu() for part, tensor in tensors.items()}


def stored_names(tensors: Mapping[str, Any]) -> list[str]:
    """The weights that a folder stores in 4 bits: names that have a state beside them."""
    return [name.rpartition(STATE)[0] for name in tensors if STATE in name]


def from_tensors(tensors: Mapping[str, Tensor], name: str) -> Blocks:
    """The weight `name` of a folder. UsageError names the first part that is missing or not as it should be."""
    code, state = _state(tensors, name)
    shape, block = tuple(state["shape"]), state["blocksize"]
    n = math.prod(shape)
    packed = _part(tensors, name, "").reshape(-1).view(torch.uint8)
    _check(len(packed) == (n + 1) // 2, name, f"{len(packed):,} bytes", f"{(n + 1) // 2:,} for {list(shape)}")
    blocks = -(-n // block)
    double = f"{name}.nested_absmax" in tensors
    absmax = _flat(tensors, name, "absmax", torch.uint8 if double else torch.float32, blocks)
    _check_table(tensors, name, "quant_map", table(code))
    if not double:
        return Blocks(packed, absmax, shape, code, block, getattr(torch, state["dtype"]))
    nested = _flat(tensors, name, "nested_absmax", torch.float32, -(-blocks // SCALES_BLOCK))
    _check_table(tensors, name, "nested_quant_map", dynamic_map())
    offset = state.get("nested_offset")
    _check(
        state.get("nested_blocksize") == SCALES_BLOCK and isinstance(offset, float) and math.isfinite(offset),
        f"{name}{STATE}{code}",
        "a nested_blocksize or nested_offset that cannot be",
        f"{SCALES_BLOCK} and a finite number",
    )
    return Blocks(packed, absmax, shape, code, block, getattr(torch, state["dtype"]), nested, float(offset or 0.0))


def _state(tensors: Mapping[str, Tensor], name: str) -> tuple[str, dict[str, Any]]:
    """The code of a weight and the JSON object beside it, its fields checked."""
    found = [code for code in WRITTEN if f"{name}{STATE}{code}" in tensors]
    if len(found) != 1:
        _refuse(f"{name}{STATE}*", f"{len(found)} states of one weight", f"one, of {' or '.join(WRITTEN)}")
    code, where = found[0], f"{name}{STATE}{found[0]}"
    tensor = tensors[where]
    _check(
        tensor.dtype == torch.uint8 and tensor.numel() <= _LARGEST_STATE,
        where,
        f"{tensor.numel():,} numbers of {tensor.dtype}",
        f"at most {_LARGEST_STATE} bytes of JSON",
    )
    try:
        state = json.loads(bytes(tensor.reshape(-1).tolist()))
    except (ValueError, RecursionError):
        _refuse(where, "bytes that are no JSON", "a JSON object")
    shape = state.get("shape") if isinstance(state, dict) else None
    sizes = isinstance(shape, list) and len(shape) == 2 and all(type(s) is int and 0 < s < 2**31 for s in shape)
    _check(
        sizes
        and state.get("quant_type") == code
        and state.get("blocksize") in BLOCKS
        and state.get("dtype") in [str(kind).removeprefix("torch.") for kind in KINDS],
        where,
        "a quant_type, blocksize, dtype or shape that cannot be",
        f"{code}, a power of two from 32 to 4096, a float type and [out, in]",
    )
    return code, state


def _part(tensors: Mapping[str, Tensor], name: str, part: str) -> Tensor:
    full = f"{name}.{part}" if part else name
    if full not in tensors:
        _refuse(full, "no such tensor", "every part of a weight in 4 bits")
    return tensors[full].contiguous()


def _flat(tensors: Mapping[str, Tensor], name: str, part: str, dtype: torch.dtype, count: int) -> Tensor:
    """One part, of this type and so many numbers."""
    tensor = _part(tensors, name, part).reshape(-1)
    _check(
        tensor.dtype == dtype and len(tensor) == count,
        f"{name}.{part}",
        f"{len(tensor):,} numbers of {tensor.dtype}",
        f"{count:,} of {dtype}",
    )
    return tensor


def _check_table(tensors: Mapping[str, Tensor], name: str, part: str, expected: Tensor) -> None:
    """The values that codes stand for must be those we compute with."""
    found = _flat(tensors, name, part, torch.float32, len(expected))
    close = torch.allclose(found.cpu(), expected, rtol=0, atol=1e-6)
    _check(close, f"{name}.{part}", "values of another code", "the code's own")


def _check(fine: bool, where: str, what: str, expected: str) -> None:
    if not fine:
        _refuse(where, what, expected)


def _refuse(where: str, what: str, expected: str) -> NoReturn:
    raise UsageError(f"not a sound 4-bit weight: {what}", where=f"tensor {where[:160]!r}", expected=expected[:160])
