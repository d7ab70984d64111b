"""A linear layer with a grouped matrix (`grouped.py`): what `mickle compress` puts in place of a dense one."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from mickle.errors import UsageError
from mickle.kernels.dispatch import use_plain
from mickle.kernels.strips import STRIP
from mickle.quantization.grouped import NARROW, PARTS, Grouped, Layout, unsigned
from mickle.quantization.layer import QuantizedLinear, scratch

LARGEST_SIDE = 1 << 24
GROUPS = (8, 16, 32, 64, 128)
_NO_OUTLIERS = np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int32)


class GroupedLinear(QuantizedLinear):
    """y = x W^T + b with W in 2 to 4 bits by groups, outliers in 16."""

    method = "mickle-grouped"
    codes: Tensor
    statistics: Tensor
    second: Tensor | None
    values: Tensor | None
    columns: Tensor
    rows: Tensor
    order: Tensor | None

    def __init__(self, grouped: Grouped, bias: Tensor | None = None) -> None:
        super().__init__(grouped.layout.inputs, grouped.layout.outputs, bias)
        self.layout = grouped.layout
        for name in PARTS:
            self.register_buffer(name, getattr(grouped, name), persistent=False)

    @property
    def grouped(self) -> Grouped:
        """The matrix as it is stored."""
        return Grouped(self.layout, **{name: getattr(self, name) for name in PARTS})

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight [out, in]; a new tensor."""
        layout = self.layout
        if use_plain():
            return self.grouped.dequantized(dtype)
        if not self.codes.is_cuda:
            return self._dense(torch.empty(self._room())).to(dtype).contiguous()
        from mickle.kernels import grouped_triton

        return grouped_triton.dense(*self._stored(), self.order, layout.outputs, layout.inputs, layout.group, dtype)

    def transient(self, dtype: torch.dtype) -> Tensor:
        """The same in memory that this thread uses again; its columns, not its rows, lie together."""
        if use_plain() or self.codes.is_cuda:
            return self.dequantized(dtype)
        return self._dense(scratch(self._room(), torch.float32)).to(dtype)

    def _room(self) -> int:
        """Numbers that the dense weight takes, [inputs + 1, whole strips]."""
        return (self.layout.inputs + 1) * self.layout.strips * STRIP

    def _dense(self, memory: Tensor) -> Tensor:
        """The weight in float32 as a view [out, in] of `memory`, which has `_room`."""
        from mickle.kernels.grouped_dense import dense

        layout, codes, statistics = self.layout, self.codes.numpy().view(np.uint32), self.statistics
        out = memory[: self._room()].view(-1, layout.strips * STRIP)
        order = torch.arange(layout.inputs) if self.order is None else unsigned(self.order)
        outliers = _NO_OUTLIERS
        if self.values is not None:
            outliers = self.values.float().numpy(), unsigned(self.columns).numpy(), self.rows.numpy()
        if self.second is None:
            levels, given = np.zeros((0, layout.groups, 4), np.float32), statistics.float().numpy()
        else:
            levels, given = self.second.float().numpy(), statistics.numpy().view(np.uint16)
        dense(codes, given, levels, order.numpy(), outliers, layout.group, out.numpy(), torch.get_num_threads())
        return out[:-1, : layout.outputs].T

    def stored_bytes(self) -> int:
        """Bytes of codes, statistics, outliers and order."""
        return self.grouped.stored_bytes

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The parts as "NAME.codes" and so on."""
        return {f"{name}.{part}": tensor for part, tensor in self.grouped.tensors().items()}

    def settings(self) -> dict[str, Any]:
        """What the layer's tensors do not say."""
        return asdict(self.layout)

    def few_rows(self, x: Tensor) -> Tensor | None:
        """x W^T of x [n, in] from the stored bits (`kernels/grouped_product.py`, `kernels/grouped_triton.py`)."""
        from mickle.kernels.grouped_product import product, segment_of

        layout = self.layout
        if use_plain():
            return None
        if x.is_cuda:
            from mickle.kernels import grouped_triton

            known = x.dtype in (torch.float32, torch.bfloat16, torch.float16)
            if not known or not grouped_triton.segment_of(layout.group, layout.groups):
                return None
            x = x if self.order is None else x[:, unsigned(self.order)]
            return grouped_triton.few_rows(*self._stored(), layout.outputs, layout.group, x)
        known = x.dtype in (torch.bfloat16, torch.float32) and x.device.type == "cpu"
        if not known or not segment_of(layout.group):
            return None
        threads, order = torch.get_num_threads(), self._buffers["order"]
        return product(x, *self._stored(), layout.outputs, layout.group, threads, order).to(x.dtype)

    def _stored(self) -> tuple[Any, Any, Any, Any]:
        """Codes, statistics, second level and outliers as kernels take them, by the shortest way to a buffer."""
        parts = self._buffers
        outliers = None if parts["values"] is None else (parts["values"], parts["columns"], parts["rows"])
        return parts["codes"], parts["statistics"], parts["second"], outliers

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Self:
        """The layer that a folder holds as `name`. UsageError names what of it is not as it should be."""
        layout = _checked_layout(name, settings)
        parts = {part: tensors.get(f"{name}.{part}") for part in PARTS}
        _check_parts(name, layout, parts)
        return cls(Grouped(layout, **parts), tensors.get(f"{name}.bias"))


def _checked_layout(name: str, settings: Mapping[str, Any]) -> Layout:
    sizes = [settings.get(key) for key in ("outputs", "inputs", "bits", "group")]
    counts = all(type(size) is int and 0 < size <= LARGEST_SIDE for size in sizes)
    if not counts or settings["bits"] not in (2, 3, 4) or type(settings.get("two_level")) is not bool:
        raise UsageError(
            f"settings of layer {name[:120]!r} are not those of a grouped matrix",
            expected="outputs, inputs, bits (2 to 4), group, two_level",
        )
    if settings["group"] not in GROUPS and settings["group"] != settings["inputs"]:
        raise UsageError(
            f"layer {name[:120]!r} has groups of {settings['group']}", expected="8, 16, 32, 64, 128 or a whole row"
        )
    return Layout(**{field.name: settings[field.name] for field in fields(Layout)})


def _check_parts(name: str, layout: Layout, parts: Mapping[str, Tensor | None]) -> None:
    """Shapes and types as the layout has them, indices within the matrix."""
    index = torch.int16 if layout.inputs <= NARROW else torch.int32
    strips, groups = layout.strips, layout.groups
    wanted: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
        "codes": (torch.int32, (strips, layout.chunks, layout.bits, 16)),
        "statistics": (torch.float16, (strips, groups, 2, 16)),
    }
    if layout.two_level:
        wanted |= {"statistics": (torch.int16, (strips, groups, 6)), "second": (torch.float16, (strips, groups, 4))}
    values = parts["values"]
    if values is not None:
        count = (values.numel(),)
        wanted |= {"values": (torch.float16, count), "columns": (index, count)}
        wanted["rows"] = torch.int32, (layout.outputs + 1,)
    if parts["order"] is not None:
        wanted["order"] = index, (layout.inputs,)
    for part, tensor in parts.items():
        found = None if tensor is None else (tensor.dtype, tuple(tensor.shape))
        if found != wanted.get(part):
            raise UsageError(f"tensor {f'{name}.{part}'[:160]!r} is {_said(found)}", expected=_said(wanted.get(part)))
    order, rows, columns = parts["order"], parts["rows"], parts["columns"]
    if order is not None and not torch.equal(unsigned(order).sort().values, torch.arange(layout.inputs)):
        raise UsageError(f"{name[:120]}.order is no order of {layout.inputs} columns")
    if rows is None or columns is None:
        return
    rising = int(rows[0]) == 0 and int(rows[-1]) == len(columns) and bool((rows[1:] >= rows[:-1]).all())
    if not rising or bool((unsigned(columns) >= layout.inputs).any()):
        raise UsageError(f"outliers of layer {name[:120]!r} lie outside of its matrix")


def _said(what: tuple[torch.dtype, tuple[int, ...]] | None) -> str:
    return "not there" if what is None else f"{str(what[0]).removeprefix('torch.')} of shape {list(what[1])}"
