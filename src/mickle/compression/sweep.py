"""One weight matrix in few bits, given the Hessian of its inputs: SpQR, GPTQ and rounding by the same sweep.

    H = 2 / n sum of x x^T over calibration inputs x        (its scale does not matter)
    order = inputs by falling H_ii,   H += lambda mean(H_ii) I,   H^-1 = U^T U,
    theta = tau mean over columns of Var(W[:, c]) / U_cc^2

then the sweep of `plain_sweep.py`. A larger tau means fewer outliers (the help of the authors' code says the reverse).
Inputs that were never anything but 0 get H_ii = 1 and their weights are 0. U comes from one Cholesky factorization of
H turned around: with R R^T = H, R upper, U = R^-1; no inverse of H is formed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mickle.compression.plain_sweep import plain_sweep
from mickle.errors import NumericError
from mickle.kernels.strips import LARGEST_HALF
from mickle.kernels.sweep import Parts, SweepSettings, sweep_columns
from mickle.quantization.grouped import Grouped, Layout, pack

DAMPINGS = (0.01, 0.1, 1.0)  # tried in turn, above the one asked for, where H has no Cholesky factor


def spqr(bits: int = 3, tau: float = 0.2, **others: float | bool) -> SweepSettings:
    """SpQR: groups of 16, two levels, outliers."""
    return replace(SweepSettings(bits=bits, tau=tau), **others)  # type: ignore[arg-type]


def gptq(bits: int = 4, group: int = 64, **others: float | bool) -> SweepSettings:
    """GPTQ: no outliers, statistics in 16 bits."""
    return replace(SweepSettings(bits=bits, group=group, two_level=False), **others)  # type: ignore[arg-type]


def rounding(bits: int = 4, group: int = 64, two_level: bool = False) -> SweepSettings:
    """Rounding to nearest: no compensation, no Hessian needed."""
    return SweepSettings(bits=bits, group=group, two_level=two_level, compensate=False, act_order=False)


def layout_of(settings: SweepSettings, size: tuple[int, ...]) -> Layout:
    """The layout of a matrix of `size` (outputs, inputs) that is swept so."""
    outputs, inputs = size
    return Layout(outputs, inputs, settings.bits, settings.group_of(inputs), settings.two_level)


@dataclass(frozen=True)
class Prepared:
    """A matrix before the sweep: weight [outputs, inputs] and upper [inputs, inputs] in the order of columns, the
    mean(Var / u^2) that tau multiplies, and what had to be done.

    damping: the lambda that worked, 0 without a Hessian; dead: inputs that are always 0.
    """

    weight: np.ndarray
    upper: np.ndarray
    unit: float
    order: np.ndarray | None
    damping: float
    dead: int


@dataclass(frozen=True)
class Swept:
    """A quantized matrix, its loss tr((W - Q) H (W - Q)^T) = ||E||^2 with damping in H, and what was prepared."""

    grouped: Grouped
    parts: Parts
    loss: float
    prepared: Prepared


def quantize_layer(weight: Tensor, hessian: Tensor | None, settings: SweepSettings) -> Grouped:
    """The matrix weight [out, in] in few bits, given H [in, in] of its inputs; None only for plain rounding.

    Of the answer: `.dequantized()` [out, in], `.bits` a weight with all that is stored, `.formula_bits` as the paper
    counts, `.outlier_share`, `.stored_bytes`. NumericError where weight or H is not finite, or a weight
    beyond what 16 bits hold.
    """
    return sweep(prepare(weight, hessian, settings), settings).grouped


@dataclass(frozen=True)
class Factor:
    """What the inputs of a layer say: U, the order of columns, inputs that are always 0, the lambda that worked.

    Layers with the same inputs (queries, keys and values) share it.
    """

    upper: Tensor
    order: Tensor | None
    silent: Tensor
    damping: float


def factorize(hessian: Tensor, settings: SweepSettings) -> Factor:
    """Order, damping and U of H [in, in]. NumericError where it is not finite."""
    if not bool(torch.isfinite(hessian).all()):
        raise NumericError("the Hessian of the inputs is not finite", todo="look for an overflow in the layers before")
    hessian = hessian.detach().to("cpu", torch.float64).clone()
    silent = hessian.diagonal() == 0
    hessian.diagonal()[silent] = 1.0
    order = None
    if settings.act_order:
        order = hessian.diagonal().argsort(descending=True, stable=True)
        hessian = hessian[order][:, order]
    upper, damping = inverse_factor(hessian, settings.damping)
    return Factor(upper, order, silent, damping)


def prepare(
    weight: Tensor, hessian: Tensor | Factor | None, settings: SweepSettings, dtype: torch.dtype = torch.float32
) -> Prepared:
    """All that comes before the sweep. hessian: H, what `factorize` made of it, or None: no order, U = I."""
    weight = weight.detach()
    if not bool(torch.isfinite(weight).all()):
        raise NumericError("the weights are not finite")
    if float(weight.abs().max()) > LARGEST_HALF:
        raise NumericError(f"a weight is beyond {LARGEST_HALF:,.0f}, which 16 bits cannot hold")
    weight = weight.to("cpu", dtype, copy=True)
    own = np.float64 if dtype == torch.float64 else np.float32
    if hessian is None:
        factor = Factor(torch.eye(weight.shape[1], dtype=torch.float64), None, torch.zeros(0, dtype=torch.bool), 0.0)
    else:
        factor = hessian if isinstance(hessian, Factor) else factorize(hessian, settings)
        weight[:, factor.silent] = 0
    if factor.order is not None:
        weight = weight[:, factor.order]
    variance = weight.double().var(0) if len(weight) > 1 else weight.new_zeros(weight.shape[1]).double()
    return Prepared(
        weight=np.ascontiguousarray(weight.numpy()),
        upper=np.ascontiguousarray(factor.upper.numpy().astype(own)),
        unit=float((variance / factor.upper.diagonal().square()).mean()),
        order=None if factor.order is None else factor.order.numpy(),
        damping=factor.damping,
        dead=int(factor.silent.sum()),
    )


def inverse_factor(hessian: Tensor, damping: float) -> tuple[Tensor, float]:
    """U upper with (H + lambda mean(H_ii) I)^-1 = U^T U, float64, and the lambda that it took.

    lambda is raised step by step where there is no Cholesky factor. NumericError where none has.
    """
    mean = hessian.diagonal().mean()
    identity = torch.eye(len(hessian), dtype=hessian.dtype)
    for raised in (damping, *(step for step in DAMPINGS if step > damping)):
        turned = (hessian + raised * mean * identity).flip(0, 1)
        factor, failed = torch.linalg.cholesky_ex(turned)
        if not int(failed) and bool(torch.isfinite(factor).all()):
            return torch.linalg.solve_triangular(factor.flip(0, 1), identity, upper=True), raised
    raise NumericError("the Hessian of the inputs has no Cholesky factor", expected=f"one at damping {DAMPINGS[-1]:g}")


def sweep(prepared: Prepared, settings: SweepSettings, *, plain: bool = False, block: int = 128) -> Swept:
    """The sweep and what is stored of it. plain: by the published algorithm, slowly."""
    weight, upper, some = prepared.weight, prepared.upper, math.isfinite(settings.tau)
    threshold = settings.tau * prepared.unit if some and len(weight) > 1 else math.inf
    if plain:
        parts = plain_sweep(torch.from_numpy(weight), torch.from_numpy(upper), threshold, settings)
    else:
        parts = sweep_columns(weight, upper, threshold, settings, torch.get_num_threads(), block)
    residuals = parts.residuals if some else None
    layout = layout_of(settings, weight.shape)
    grouped = pack(layout, parts.codes, parts.statistics, parts.second, residuals, prepared.order)
    return Swept(grouped, parts, float(np.square(parts.errors, dtype=np.float64).sum()), prepared)


def relative_error(weight: Tensor, stored: Tensor, hessian: Tensor | None) -> float:
    """||(W - Q) X|| / ||W X|| over calibration inputs X, by H = X X^T: the error of a layer's output."""
    weight = weight.detach()
    difference = weight.double() - stored.double()
    if hessian is None:
        return float(difference.norm() / weight.double().norm().clamp(min=1e-300))
    wide = hessian.double()
    error, whole = (((part @ wide) * part).sum().clamp(min=0) for part in (difference, weight.double()))
    return math.sqrt(float(error / whole.clamp(min=1e-300)))
