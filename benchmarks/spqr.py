"""SpQR's speed: the sweep against the published algorithm in torch, the one-row product against two peers.

    python benchmarks/spqr.py [--rounds 9] [--threads 2] [--out FILE]

- **sweep**: 10.6 million weights (six encoder blocks of width 384), 3 bits, groups of 16, two levels, outliers at
  tau 0.2; `kernels/sweep.py` and `compression/plain_sweep.py` on the same prepared matrices, wall time, `--threads`
  threads for both. The plain one does one block of the six and is multiplied by six (its blocks are of one size).
- **product**: one row times a 4096 x 4096 matrix, matrices taken in turn so that no cache holds them, one thread,
  processor time, median and least over rounds with all arms in turn: SpQR 3 bits without outliers and with 1 %, on
  bfloat16 and float32 rows; bitsandbytes' packed NF4 and torch's int4 (groups of 128), bfloat16, as they are fastest.

Peers: bitsandbytes and torch, as installed; the versions are in the result.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "spqr.json"
BLOCK = [(384, 384)] * 4 + [(1536, 384), (384, 1536)]
BLOCKS, SIDE, COPIES = 6, 4096, 6


def problems() -> list[Any]:
    """One block's matrices, prepared."""
    import torch

    from mickle.compression.sweep import prepare, spqr

    draw = torch.Generator().manual_seed(0)
    found = []
    for outputs, inputs in BLOCK:
        weight = 0.05 * torch.randn(outputs, inputs, generator=draw)
        x = torch.randn(2 * inputs, inputs, generator=draw) * (0.1 + torch.rand(inputs, generator=draw))
        x += 0.5 * x.roll(1, 1)
        found.append(prepare(weight, x.T @ x, spqr(3, 0.2)))
    return found


def sweeps(rounds: int, threads: int) -> dict[str, Any]:
    """Seconds for all blocks, ours and the plain algorithm's, in turn."""
    import torch

    from mickle.compression.sweep import spqr, sweep

    torch.set_num_threads(threads)
    ready, kind = problems(), spqr(3, 0.2)
    sweep(ready[0], kind)  # compiled, or read from the cache
    seconds: dict[str, list[float]] = {"fast": [], "plain": []}
    same = []
    for _ in range(rounds):
        begun = time.perf_counter()
        for _ in range(BLOCKS):
            fast = [sweep(one, kind) for one in ready]
        seconds["fast"].append(time.perf_counter() - begun)
        begun = time.perf_counter()
        plain = [sweep(one, kind, plain=True) for one in ready]
        seconds["plain"].append(BLOCKS * (time.perf_counter() - begun))
        same += [float((f.parts.codes == p.parts.codes).mean()) for f, p in zip(fast, plain, strict=True)]
    return {
        "weights": BLOCKS * sum(o * i for o, i in BLOCK),
        "outlier_share": statistics.mean(f.grouped.outlier_share for f in fast),
        "seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "ratio": statistics.median(p / f for p, f in zip(seconds["plain"], seconds["fast"], strict=True)),
        "target": 10,
        "least_share_of_equal_codes": min(same),
        "threads": threads,
    }


def grouped(bits: int, share: float | None, seed: int) -> Any:
    """A random matrix in the stored form, two levels, groups of 16."""
    import numpy as np

    from mickle.quantization.grouped import Layout, pack
    from mickle.quantization.grouped_linear import GroupedLinear

    draw = np.random.default_rng(seed)
    layout = Layout(SIDE, SIDE, bits, 16, True)
    codes = draw.integers(0, 2**bits, (SIDE, SIDE), dtype=np.uint8)
    statistics_ = draw.integers(0, 8, (2, layout.groups, SIDE), dtype=np.uint8)
    second = np.tile(np.array([0.001, -4.0, 0.3, -6.0]), (layout.groups, layout.strips, 1))
    residuals = None
    if share is not None:
        residuals = np.where(draw.random((SIDE, SIDE)) < share, draw.normal(size=(SIDE, SIDE)), 0)
    return GroupedLinear(pack(layout, codes, statistics_, second, residuals)).eval()


def arms() -> tuple[dict[str, list[Callable[[], Any]]], dict[str, int]]:
    """For each arm, calls on COPIES matrices in turn; and the bytes of one."""
    import bitsandbytes
    import torch

    row = torch.randn(1, SIDE, generator=torch.Generator().manual_seed(0))
    brain = row.bfloat16()
    calls: dict[str, list[Callable[[], Any]]] = {}
    sizes: dict[str, int] = {}
    for name, share in (("spqr 3 bits", None), ("spqr 3 bits, 1 % outliers", 0.01)):
        layers = [grouped(3, share, seed) for seed in range(COPIES)]
        for kind, x in (("bfloat16", brain), ("float32", row)):
            calls[f"{name}, {kind}"] = [lambda layer=layer, x=x: layer(x) for layer in layers]
            sizes[f"{name}, {kind}"] = layers[0].stored_bytes()
    nf4 = []
    for _ in range(COPIES):
        layer = bitsandbytes.nn.Linear4bit(SIDE, SIDE, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16)
        nf4.append(layer.to("cpu").eval().requires_grad_(False))
    calls["bitsandbytes nf4"] = [lambda layer=layer: layer(brain) for layer in nf4]
    sizes["bitsandbytes nf4"] = SIDE * SIDE // 2 + SIDE * SIDE // 64 + SIDE * SIDE // 64 // 256 * 4  # double scales
    ops = torch.ops.aten
    packed = [
        ops._convert_weight_to_int4pack_for_cpu(torch.randint(0, 16, (SIDE, SIDE), dtype=torch.int32), 1)
        for _ in range(COPIES)
    ]
    scales = torch.rand(SIDE // 128, SIDE, 2).bfloat16()
    calls["torch int4 g128"] = [lambda p=p: ops._weight_int4pack_mm_for_cpu(brain, p, 128, scales) for p in packed]
    sizes["torch int4 g128"] = SIDE * SIDE // 2 + 2 * scales.numel()
    return calls, sizes


def products(rounds: int) -> dict[str, Any]:
    """Milliseconds of processor time a product, all arms in turn, and ratios round by round."""
    import torch

    torch.set_num_threads(1)
    calls, sizes = arms()
    found: dict[str, list[float]] = {name: [] for name in calls}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for name in list(calls)[:: 1 if turn % 2 else -1]:
                begun = time.thread_time()
                for call in calls[name]:
                    call()
                if turn:
                    found[name].append(1000 * (time.thread_time() - begun) / COPIES)
    peers = ("bitsandbytes nf4", "torch int4 g128")
    ratios = {
        f"{name} / {peer}": statistics.median(a / b for a, b in zip(found[name], found[peer], strict=True))
        for name in found
        for peer in peers
        if name not in peers
    }
    return {
        "milliseconds": {name: statistics.median(times) for name, times in found.items()},
        "least": {name: min(times) for name, times in found.items()},
        "bytes": sizes,
        "ratios": ratios,
        "targets": {"bitsandbytes nf4": 1.15, "torch int4 g128": 0.6, "bytes": 0.9},
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    from provenance import provenance

    from mickle.storage import write_json

    peers = {name: version(name) for name in ("torch", "bitsandbytes")}
    results = {"peers": peers, "product": products(2 * chosen.rounds), "sweep": sweeps(chosen.rounds, chosen.threads)}
    print(json.dumps(results, indent=2))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(chosen.out, {**provenance(__file__), **results})


if __name__ == "__main__":
    main()
