"""The tables of values that few bits stand for: NF4, FP4, whole numbers, and the 8-bit map of the scales.

QLoRA, arXiv 2305.14314, appendix E: NF4 has the quantiles of a normal distribution as its values, so that weights drawn
from one use all 16 codes about equally. With o = 0.9677083, the mean of 1 - 1/32 and 1 - 1/30, the positive side is the
quantile function at 9 equally spaced points from o down to 1/2, the negative side at 8, without their last; then 0; all
divided by the greatest. The table here is the one that folders carry; a test holds it to this derivation.
"""

from functools import cache

import torch
from torch import Tensor

from mickle.errors import UsageError

_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
# One sign bit, two of exponent (bias 2), one of fraction, over 12: the order is that of the bits, not of the values.
_FP4 = tuple(value / 12 for value in (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0))
_TABLES: dict[str, tuple[float, ...]] = {
    "nf4": _NF4,
    "fp4": (*_FP4, *(-value for value in _FP4)),
    "int4": (*(k / 7 for k in range(-7, 8)), 1.0),  # the last code is never chosen
    "int3": (*(k / 3 for k in range(-3, 4)), *(1.0,) * 9),  # 3 bits' values, for studies; stored in 4
}
CODES = tuple(_TABLES)


@cache
def table(code: str) -> Tensor:
    """The values of a code by index: float32 [16], within [-1, 1]. UsageError for a code there is none of."""
    if code not in _TABLES:
        raise UsageError(f"unknown 4-bit code {code!r}", expected=" or ".join(CODES))
    return torch.tensor(_TABLES[code], dtype=torch.float32)


@cache
def thresholds(code: str) -> Tensor:
    """Where the nearest value changes: float32 [15], rising. A number equal to one has the lower value."""
    ordered = table(code).sort().values
    return (ordered[:-1] + ordered[1:]) / 2


@cache
def places(code: str) -> Tensor:
    """Index of the k-th value by size: uint8 [16]. FP4's zero is its index 0 from below and 8 (its -0) from above, as
    bitsandbytes has it, whose sort is not stable.
    """
    if code == "fp4":
        return torch.tensor([11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3], dtype=torch.uint8)
    return torch.arange(16, dtype=torch.uint8)


@cache
def dynamic_map() -> Tensor:
    """The 256 values of the 8-bit code of scales: float32, rising, from -0.993 to 1.

    8-bit Optimizers via Block-wise Quantization, arXiv 2110.02861, section 1.3 (dynamic tree quantization): of each
    decade 10^(i-6), i = 0 to 6, the middles of 2^i equal parts of [0.1, 1], with both signs; and 0 and 1.
    """
    values = [0.0, 1.0]
    for i in range(7):
        bounds = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        middles = (bounds[:-1] + bounds[1:]) / 2
        for sign in (1.0, -1.0):
            values += (sign * 10 ** (i - 6) * middles).tolist()
    return torch.tensor(sorted(values), dtype=torch.float32)


@cache
def nearest_scales() -> Tensor:
    """For each of 65,536 equal steps of [-1, 1], the code of `dynamic_map` that is nearest: uint8.

    bitsandbytes on a CPU rounds a scale to such a step first and looks its code up; equal bytes ask for the same.
    """
    steps = torch.arange(65536, dtype=torch.float32) / 32767.5 - 1
    values = dynamic_map()
    return torch.bucketize(steps, (values[:-1] + values[1:]) / 2).to(torch.uint8)


@cache
def scale_lines() -> Tensor:
    """`dynamic_map` as straight lines, for kernels: float32 [32], 16 p, then 16 q.

    Code c has j = c - 127 and t = |j| + 1/2; its value is p + q t with the sign of j. p and q stand at the low four
    bits of the exponent of t as a float32: 14 for j = 0, 15 for 1, 0 for 2 and 3, and so on to 6 for the last, 128.
    """
    p, q = torch.zeros(16, dtype=torch.float64), torch.zeros(16, dtype=torch.float64)
    for i in range(7):
        p[(i - 1) % 16], q[(i - 1) % 16] = -0.8 * 10.0 ** (i - 6), 0.9 * 10.0 ** (i - 6) / 2**i
    p[6] = 1.0
    return torch.cat([p, q]).float()
