"""A weight matrix whose harmful weights are known, for telling whether a method finds them.

Weights are Gaussian; a known share of them, at random places, is 8 to 20 times as large. Of the inputs one channel in a
hundred is 10 times as loud, as in language models. Where the truth is known, the outliers that a method keeps have
precision and recall, and its error can be told from what it was measured on: test inputs are drawn apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from mickle.quantization.grouped import Grouped

FACTORS = (8.0, 20.0)  # how much larger an outlier is
SEARCHES = 14  # halvings of the range of log tau
TAUS = (1e-4, 1e4)
LOUD_SHARE, LOUDNESS = 0.01, 10.0  # of the inputs' channels


@dataclass(frozen=True)
class PlantedMatrix:
    """weight [out, in]; planted [out, in], true at outliers; calibration and test inputs [rows, in]."""

    weight: Tensor
    planted: np.ndarray
    calibration: Tensor
    test: Tensor


def planted_matrix(seed: int, outputs: int, inputs: int, share: float, rows: int) -> PlantedMatrix:
    """The matrix of a seed. ``share`` of its weights are planted outliers, 0..1; ``rows`` inputs on each side."""
    import numpy as np
    import torch

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
    tensors = (torch.from_numpy(part.astype(np.float32)) for part in (weight, calibration, test))
    first, second, third = tensors
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
    from pydantic import TypeAdapter

    from mickle.compression.methods import Method
    from mickle.compression.sweep import quantize_layer

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
    import numpy as np

    from mickle.quantization.grouped import unsigned

    assert matrix.rows is not None
    rows = np.repeat(np.arange(matrix.layout.outputs), np.diff(matrix.rows.numpy()))
    columns = unsigned(matrix.columns).numpy()
    if matrix.order is not None:
        columns = unsigned(matrix.order).numpy()[columns]
    kept = np.zeros((matrix.layout.outputs, matrix.layout.inputs), dtype=bool)
    kept[rows, columns] = True
    return kept
