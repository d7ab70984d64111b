"""Triton's compiler takes every GPU kernel, down to machine code of an H100, which needs no GPU.

The interpreter runs Python, so it does not see what the compiler refuses: a function that returns two types, say. And
where results are to have the bits of the CPU, no multiply-add may be fused, no quotient or root be approximate.

This file is its own program: the compiler and the interpreter do not go together in one process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

INT, FLOAT, HALF, BYTE = "i32", "fp32", "fp16", "u8"
EXACT = {"_dense", "_dense_outliers", "_add"}


def test_the_compiler_takes_every_kernel(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, __file__],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    made = json.loads(run.stdout)
    assert {kernel["name"] for kernel in made} == {"_add", "_dense", "_dense_outliers", "_few_rows"}
    for kernel in made:
        assert kernel["bytes"] > 0
        if kernel["name"] in EXACT:
            assert (kernel["fused"], kernel["approximate"]) == (0, 0), kernel


class Launches:
    """In place of a kernel: the options that it is launched with."""

    def __init__(self) -> None:
        self.options: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *given, **options: self.options.append(options)


def test_exact_kernels_are_launched_without_fusion(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    import torch

    from mickle.kernels import grouped_triton, nf4_triton, perturb_triton
    from mickle.kernels.philox import Moves, Stream

    launches = Launches()
    for module, names in ((grouped_triton, ("_dense", "_dense_outliers")), (nf4_triton, ("_dense",))):
        for name in names:
            monkeypatch.setattr(module, name, launches)
    monkeypatch.setattr(perturb_triton, "_add", launches)
    some = torch.zeros(1, 1, 3, 16)
    grouped_triton.dense(some, some, None, (some, some, some), None, 16, 32, 32, torch.float32)
    nf4_triton.dense(some, some, some, None, 0.0, some, 1, 64, torch.float32)
    perturb_triton.add_draws_triton(some, "w", Stream(0), Moves.of([0], [1.0]))
    assert [options["enable_fp_fusion"] for options in launches.options] == [False] * 4


def compiled(kernel: Any, types: dict[str, str], fixed: dict[str, Any], **options: Any) -> dict[str, Any]:
    """What of the machine code the test looks at. types: of the arguments, by name; fixed: those known beforehand."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in fixed else types[name] for name in names},
        {(names.index(name),): value for name, value in fixed.items()},
    )
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    text = code.asm["ptx"]
    return {
        "name": kernel.fn.__name__,
        "bytes": len(code.asm["cubin"]),
        "fused": text.count("fma."),
        "approximate": text.count(".approx") + text.count("div.full"),
    }


def perturbations() -> list[dict[str, Any]]:
    from mickle.kernels import perturb_triton

    types = dict.fromkeys(("size", "key0", "key1", "name0", "name1", "count"), INT)
    types |= {"weights": f"*{FLOAT}", "table": f"*{INT}"}
    return [
        compiled(perturb_triton._add, types, {"SIGNS": signs, "TILE": 1024}, enable_fp_fusion=False)
        for signs in (True, False)
    ]


def four_bits() -> list[dict[str, Any]]:
    from mickle.kernels import nf4_triton

    found = []
    for double, kind in ((True, "bf16"), (False, FLOAT)):
        types = dict.fromkeys(("map8", "nested", "table"), f"*{FLOAT}") | dict.fromkeys(("blocks", "rows"), INT)
        types |= {"packed": f"*{BYTE}", "absmax": f"*{BYTE if double else FLOAT}", "offset": FLOAT}
        types |= {"x": f"*{kind}", "out": f"*{kind}"}
        fixed = {"DOUBLE": double, "BLOCKS": 16}
        found.append(compiled(nf4_triton._dense, types, fixed, enable_fp_fusion=False))
        found.append(compiled(nf4_triton._few_rows, types, fixed | {"ROWS": 16}))
    return found


def grouped() -> list[dict[str, Any]]:
    from mickle.kernels import grouped_triton

    found = []
    for bits, two_level, index, one_group in ((2, False, INT, True), (3, True, "i16", False)):
        types = dict.fromkeys(("outputs", "inputs", "chunks", "groups", "group"), INT)
        types |= {"codes": f"*{INT}", "statistics": "*i16" if two_level else f"*{HALF}", "second": f"*{HALF}"}
        types |= {"values": f"*{HALF}", "columns": f"*{index}", "order": f"*{index}", "starts": f"*{INT}"}
        types |= {"x": "*bf16", "out": "*bf16"}
        fixed: dict[str, Any] = {"BITS": bits, "TWO_LEVEL": two_level} | ({"groups": 1} if one_group else {})
        for kernel in (grouped_triton._dense, grouped_triton._dense_outliers):
            found.append(compiled(kernel, types, fixed | {"ORDERED": two_level}, enable_fp_fusion=False))
        sizes = {"PIECES": 16, "SEGMENT": 32 if one_group else 8, "CHUNKS": 8, "OUTLIERS": two_level}
        found.append(compiled(grouped_triton._few_rows, types, fixed | sizes))
    return found


if __name__ == "__main__":
    print(json.dumps(perturbations() + four_bits() + grouped()))
