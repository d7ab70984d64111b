"""A weight matrix whose harmful weights are known, for telling whether a method finds them.

Weights are Gaussian; a known share of them, at random places, is 8 to 20 times as large. Of the inputs one channel in a
hundred is 10 times as loud, as in language models. Where the truth is known, the outliers that a method keeps have
precision and recall, and its error can be told from what it was measured on: test inputs are drawn apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from mickle.compression.methods import Method
from mickle.compression.sweep import quantize_layer
from mickle.quantization.grouped import Grouped
from mickle.quantization.nf4 import dequantize_4bit, quantize_4bit

FACTORS = (8.0, 20.0)  # how much larger an outlier is
SEARCHES = 14  # halvings of the range of log tau
TAUS = (1e-4, 1e4)
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)  # closed form: codes, scales, scales of scales
NOT_ROUNDED = {"bits": 16.0, "formula_bits": 16.0, "outliers": 0.0}
LOUD_SHARE, LOUDNESS = 0.01, 10.0  # of the inputs' channels


@dataclass(frozen=True)
class PlantedMatrix:
    """weight [out, in]; planted [out, in], true at outliers; calibration and test inputs [rows, in]."""

    weight: Tensor
    planted: np.ndarray
    calibration: Tensor
    test: Tensor


def measured(method: dict[str, Any], seed: int, values: Mapping[str, Any]) -> dict[str, float]:
    """A method (settings of the verb; none: not rounded) on the seed's matrix: sizes, ``error`` of its output on fresh
    inputs, ``precision`` and ``recall`` of what is kept.
    """
    world = planted_matrix(seed, values["outputs"], values["inputs"], values["planted_share"], values["rows"])
    found = {"precision": 0.0, "recall": 0.0}
    if not method:
        return {**found, **NOT_ROUNDED, "error": 0.0}
    if method["kind"] == "nf4":
        blocks = quantize_4bit(world.weight)
        bits = 8 * blocks.stored_bytes() / world.weight.numel()
        error = output_error(world, dequantize_4bit(blocks))
        return {**found, "bits": bits, "formula_bits": NF4_BITS, "outliers": 0.0, "error": error}
    hessian = (world.calibration.T @ world.calibration).double() * (2 / len(world.calibration))
    matrix = quantized(world.weight, hessian, method)
    if matrix.values is not None:
        found["precision"], found["recall"] = found_outliers(world.planted, outlier_places(matrix))
    return {**found, **sizes_of([matrix]), "error": output_error(world, matrix.dequantized())}


def planted_matrix(seed: int, outputs: int, inputs: int, share: float, rows: int) -> PlantedMatrix:
    """The matrix of a seed. ``share`` of its weights are planted outliers, 0..1; ``rows`` inputs on each side."""
    generator = np.random.default_rng(seed)
    weight = generator.normal(size=(outputs, inputs)) / np.sqrt(inputs)
    chosen = generator.choice(outputs * inputs, round(share * outputs * inputs), replace=False)
    planted = np.zeros((outputs, inputs), dtype=bool)
    planted.flat[chosen] = True
    # From the typical size and not from the weight that stood there, which may be nearly 0.
    sizes = generator.uniform(*FACTORS, size=len(chosen)) / np.sqrt(inputs)
    weight[planted] = generator.choice([-1.0, 1.0], size=len(chosen)) * sizes
    loud = np.ones(inputs)
    loud[generator.choice(inputs, max(1, round(LOUD_SHARE * inputs)), replace=False)] = LOUDNESS
    mixing = np.eye(inputs) + 0.5 * generator.normal(size=(inputs, inputs)) / np.sqrt(inputs)
    calibration, test = (generator.normal(size=(rows, inputs)) @ mixing * loud for _ in range(2))
    first, second, third = (torch.from_numpy(part.astype(np.float32)) for part in (weight, calibration, test))
    return PlantedMatrix(first, planted, second, third)


def found_outliers(planted: np.ndarray, kept: np.ndarray) -> tuple[float, float]:
    """Precision and recall of the outliers ``kept`` against those planted, both bool [out, in]; 0 where none is."""
    both = float((planted & kept).sum())
    return both / max(int(kept.sum()), 1), both / max(int(planted.sum()), 1)


def output_error(world: PlantedMatrix, stored: Tensor) -> float:
    """||(W - Q) X|| / ||W X|| on the test inputs."""
    exact = world.test @ world.weight.T
    return float((world.test @ stored.T - exact).norm() / exact.norm())


def sizes_of(matrices: list[Grouped]) -> dict[str, float]:
    """Bits a weight, all that is stored (``bits``) and as the paper counts (``formula_bits``); share of outliers."""
    weights = [matrix.layout.outputs * matrix.layout.inputs for matrix in matrices]
    total = sum(weights)
    return {
        "bits": 8 * sum(matrix.stored_bytes for matrix in matrices) / total,
        "formula_bits": sum(matrix.formula_bits * n for matrix, n in zip(matrices, weights, strict=True)) / total,
        "outliers": sum(matrix.outlier_share * n for matrix, n in zip(matrices, weights, strict=True)) / total,
    }


def quantized(weight: Tensor, hessian: Tensor, method: dict[str, Any]) -> Grouped:
    """One matrix by a method (settings of the verb); the threshold of outliers by halving the range of log tau."""
    settings = TypeAdapter(Method).validate_python(method).sweep([tuple(weight.shape)])
    assert settings is not None  # as NF4's are
    measure = "outliers" if "outliers" in method else "bits"
    size = method.get("outliers") or method.get("target_bits")
    if size is None:  # no arm without a size has outliers
        settings = replace(settings, tau=math.inf)
        return quantize_layer(weight, hessian if settings.compensate else None, settings)
    low, high = map(math.log, TAUS)
    for _ in range(SEARCHES):
        middle = (low + high) / 2
        matrix = quantize_layer(weight, hessian, replace(settings, tau=math.exp(middle)))
        low, high = (middle, high) if sizes_of([matrix])[measure] > size else (low, middle)  # larger tau: fewer
    return quantize_layer(weight, hessian, replace(settings, tau=math.exp(high)))


def outlier_places(matrix: Grouped) -> np.ndarray:
    """Which weights are kept as outliers, bool [out, in], columns in the matrix's own order."""
    assert matrix.values is not None
    marked, bare = (replace(matrix, values=values).dequantized() for values in (torch.ones_like(matrix.values), None))
    return (marked - bare > 0.5).numpy()
