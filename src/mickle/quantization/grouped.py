"""A matrix in 2 to 4 bits by groups: codes, statistics of groups, outliers in 16 bits, and what each takes to the byte.

The format of SpQR (arXiv 2306.03078, section 4) and, without its second level and outliers, of GPTQ and rounding::

    W[i, c] = s (q - z) + v        q: code of b bits, s and z: scale and zero of the group (row i, columns c // g),
                                   v: the outlier's residual, 0 elsewhere
    s = a (k - o),  z = a' (k' - o')        3-bit codes k, k' of each group; a, o, a', o': 16-bit floats of a tile,
                                            which is one group of columns in 16 rows (second level)

    bits = b + (3 + 3) / g + 64 / (16 g) + 32 r        with a second level; r is the share of outliers
    bits = b + 32 / g + 32 r                           with s and z in 16 bits

Everything is laid out by strips of 16 rows, the lanes of a register (and the height of a tile). The codes of 32
columns are b words of 32 bits a lane, filled by quads of columns: the four of a quad at the same place of the four
bytes of a word, quad after quad from the low end. With 3 bits two quads fill 6 bits of each byte of a word, and the
two bits to spare in each byte of the three words are the last two quads (`kernels/strips.py:places`). The
3-bit statistics are bit planes: three 16-bit words of the scales' codes, one bit a lane, and three of the zeros'.
So nothing is spare: a matrix whose sides are multiples of 16 and 32 takes the bits of the formula, and beside them 32
bits a row for where its outliers begin and 16 (32 above 65,535 columns) a column for the order of columns.

Departures from the authors' file format: theirs spends 4.0 bits where 3.625 are due, and adds the dense code's
value to an outlier, which the measured model does not. Here v is the weight minus the dense value, so what is
stored is what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mickle.kernels.strips import CHUNK, STRIP, places

STATISTIC_BITS = 3  # of scales and zeros with a second level
NARROW = 65535  # columns that 16 bits can number
PARTS = ("codes", "statistics", "second", "values", "columns", "rows", "order")  # of a matrix, as `Grouped` names them


@dataclass(frozen=True)
class Layout:
    """Shape and format of a grouped matrix. group: columns of a group, at most `inputs`. two_level: statistics in 3
    bits with a second level, else in 16 bits.
    """

    outputs: int
    inputs: int
    bits: int
    group: int
    two_level: bool

    @property
    def strips(self) -> int:
        """Strips of 16 rows, the last one padded."""
        return -(-self.outputs // STRIP)

    @property
    def chunks(self) -> int:
        """Pieces of 32 columns, the last one padded."""
        return -(-self.inputs // CHUNK)

    @property
    def groups(self) -> int:
        """Groups of a row, the last one perhaps shorter."""
        return -(-self.inputs // self.group)

    def formula(self, share: float) -> float:
        """Bits a weight by the paper's formula, for a share of outliers in 0..1."""
        statistics = (2 * STATISTIC_BITS + 64 / STRIP) if self.two_level else 32
        return self.bits + statistics / self.group + 32 * share

    def stored_bytes(self, outliers: int | None, ordered: bool) -> int:
        """Exactly what the tensors take, padding included. outliers None: no list of them at all, which takes the row
        pointers too; ordered: with an order of columns.
        """
        index = 2 if self.inputs <= NARROW else 4
        tile = 2 * 2 * STATISTIC_BITS + 8 if self.two_level else 4 * STRIP
        total = self.strips * (self.chunks * 4 * STRIP * self.bits + self.groups * tile)
        if outliers is not None:
            total += outliers * (2 + index) + 4 * (self.outputs + 1)
        return total + (index * self.inputs if ordered else 0)


@dataclass(frozen=True)
class Grouped:
    """A matrix [outputs, inputs] as it is stored.

    codes int32 [strips, chunks, bits, 16]; statistics int16 [strips, groups, 6] (bit planes) or float16
    [strips, groups, 2, 16]; second float16 [strips, groups, 4]: a, o of the scales, a', o' of the zeros; values
    float16 [n], columns int16 or int32 [n] (unsigned), rows int32 [outputs + 1]: outliers row by row; order int16 or
    int32 [inputs] (unsigned): column c of the codes is input order[c].
    """

    layout: Layout
    codes: Tensor
    statistics: Tensor
    second: Tensor | None = None
    values: Tensor | None = None
    columns: Tensor | None = None
    rows: Tensor | None = None
    order: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name; the parts that are not there are left out."""
        return {name: part for name in PARTS if (part := getattr(self, name)) is not None}

    @property
    def outliers(self) -> int:
        """How many outliers there are."""
        return 0 if self.values is None else len(self.values)

    @property
    def outlier_share(self) -> float:
        """Outliers in all weights, 0..1."""
        return self.outliers / (self.layout.outputs * self.layout.inputs)

    @property
    def stored_bytes(self) -> int:
        """Bytes of the tensors."""
        return sum(part.numel() * part.element_size() for part in self.tensors().values())

    @property
    def bits(self) -> float:
        """Stored bits a weight, all counted: row pointers, order and padding too."""
        return 8 * self.stored_bytes / (self.layout.outputs * self.layout.inputs)

    @property
    def formula_bits(self) -> float:
        """Bits a weight as the paper counts them."""
        return self.layout.formula(self.outlier_share)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix [outputs, inputs], its columns in their own order."""
        layout = self.layout
        codes = unpack_codes(self.codes, layout.bits)[: layout.outputs, : layout.inputs]
        scales, zeros = self.scales_and_zeros()  # [outputs, groups]
        of_column = torch.arange(layout.inputs, device=codes.device) // layout.group
        weight = (codes - zeros[:, of_column]).mul_(scales[:, of_column])
        if self.values is not None:
            at = unsigned(self.columns)
            weight[self._outlier_rows(), at] += self.values.float()
        if self.order is not None:
            restored = torch.empty_like(weight)
            restored[:, unsigned(self.order)] = weight
            weight = restored
        return weight.to(dtype)

    def scales_and_zeros(self) -> tuple[Tensor, Tensor]:
        """Scale and zero of each group, float32 [outputs, groups] each."""
        layout = self.layout
        if self.second is None:
            both = self.statistics.float().permute(2, 0, 3, 1)  # [2, strips, 16, groups]
        else:
            lanes = torch.arange(STRIP, device=self.statistics.device)
            bits = (self.statistics.int().unsqueeze(-1) >> lanes) & 1  # [strips, groups, 6, 16]
            weights = torch.tensor([1, 2, 4], device=bits.device).view(3, 1)
            codes = (bits.unflatten(2, (2, 3)) * weights).sum(3).float()  # [strips, groups, 2, 16]
            second = self.second.float().unflatten(-1, (2, 2)).unsqueeze(-1)  # [strips, groups, 2, (a, o), 1]
            both = (second[:, :, :, 0] * (codes - second[:, :, :, 1])).permute(2, 0, 3, 1)
        both = both.flatten(1, 2)[:, : layout.outputs]
        return both[0], both[1]

    def _outlier_rows(self) -> Tensor:
        assert self.rows is not None
        counts = self.rows[1:] - self.rows[:-1]
        return torch.repeat_interleave(torch.arange(self.layout.outputs, device=counts.device), counts)


def pack(
    layout: Layout,
    codes: np.ndarray,
    statistics: np.ndarray,
    second: np.ndarray | None = None,
    residuals: np.ndarray | None = None,
    order: np.ndarray | None = None,
) -> Grouped:
    """A matrix in the stored form.

    codes uint8 [outputs, inputs]. statistics: with a second level uint8 codes [2, groups, rows] of scales and zeros,
    else floats [2, groups, rows]; rows: those of whole strips. second float [groups, strips, 4]. residuals [outputs,
    inputs]: nonzero at outliers; None for no list of outliers. order [inputs]: the input that stands in each column.
    """
    padded = np.zeros((layout.strips * STRIP, layout.chunks * CHUNK), np.uint8)
    padded[: layout.outputs, : layout.inputs] = codes
    by_lane = statistics.reshape(2, layout.groups, layout.strips, STRIP)
    parts: dict[str, Tensor | None] = {"codes": pack_codes(torch.from_numpy(padded), layout.bits)}
    if second is None:
        half = by_lane.transpose(2, 1, 0, 3).astype(np.float16)
        parts["statistics"] = torch.from_numpy(np.ascontiguousarray(half))
    else:
        lanes = by_lane.astype(np.uint16).transpose(2, 1, 0, 3)[..., None, :]  # [strips, groups, 2, 1, 16]
        bits = (lanes >> np.arange(STATISTIC_BITS, dtype=np.uint16)[:, None]) & 1
        planes = (bits << np.arange(STRIP, dtype=np.uint16)).sum(-1).astype(np.uint16)
        parts["statistics"] = torch.from_numpy(planes.reshape(layout.strips, layout.groups, 6).view(np.int16))
        parts["second"] = torch.from_numpy(np.ascontiguousarray(second.transpose(1, 0, 2)).astype(np.float16))
    index = np.uint16 if layout.inputs <= NARROW else np.uint32
    if residuals is not None:
        rows, columns = residuals.nonzero()
        counts = np.bincount(rows, minlength=layout.outputs)
        parts["values"] = torch.from_numpy(residuals[rows, columns].astype(np.float16))
        parts["columns"] = _signed(columns.astype(index))
        parts["rows"] = torch.from_numpy(np.concatenate([[0], counts.cumsum()]).astype(np.int32))
    if order is not None:
        parts["order"] = _signed(order.astype(index))
    return Grouped(layout, **parts)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """uint8 [strips * 16, chunks * 32] -> int32 [strips, chunks, bits, 16] as the module says."""
    wide = codes.long().unflatten(0, (-1, STRIP)).unflatten(2, (-1, CHUNK // 4, 4))  # [strips, 16, chunks, 8, 4]
    byte = torch.tensor([0, 8, 16, 24], device=codes.device)
    whole = wide.new_zeros(*wide.shape[:3], bits)
    for quad, pieces in enumerate(places(bits)):
        for word, shift, own, mask in pieces:
            whole[..., word] += ((wide[..., quad, :] >> own & mask) << (byte + shift)).sum(-1)
    return (whole - (whole >> 31 << 32)).to(torch.int32).permute(0, 2, 3, 1).contiguous()


def unpack_codes(words: Tensor, bits: int) -> Tensor:
    """int32 [strips, chunks, bits, 16] -> float32 [strips * 16, chunks * 32]: undoes `pack_codes`."""
    strips, chunks = words.shape[:2]
    codes = torch.empty(strips, STRIP, chunks, CHUNK // 4, 4, device=words.device)
    for quad, pieces in enumerate(places(bits)):
        for byte in range(4):
            found = sum((words[:, :, w] >> (8 * byte + shift) & mask) << own for w, shift, own, mask in pieces)
            codes[..., quad, byte] = found.transpose(1, 2).float()
    return codes.view(strips * STRIP, chunks * CHUNK)


def unsigned(index: Tensor | None) -> Tensor:
    """Stored indices as int64."""
    assert index is not None
    return index.long() & (0xFFFF if index.dtype == torch.int16 else 0xFFFFFFFF)


def _signed(index: np.ndarray) -> Tensor:
    """Unsigned numbers in the signed type of as many bits, which torch and safetensors have both."""
    return torch.from_numpy(index.view(np.int16 if index.dtype == np.uint16 else np.int32))
