"""4-bit weights against bitsandbytes, a dense product, and the time it takes to read the bytes.

    python benchmarks/nf4.py                  # some 5 minutes on two quiet cores
    python benchmarks/nf4.py --rounds 3 --threads 1

One weight of 4096 x 4096, NF4. Ways take turns, the order turned around in each round, so a machine that slows down
slows all of them; ratios are medians over rounds of the peer's time over ours. What is compared:

quantize     float32 and bfloat16 to 4 bits, double quantization included on both sides; one thread.
decode       one row times the weight, weights out of cache: every way goes through 12 copies of its weight in turn,
             more than 100 MB. bitsandbytes takes its packed path (evaluation mode, AVX512-BF16). The roof is the time
             in which a sum over int64 reads as many bytes as the 4-bit weight has; the share of the roof is that over
             ours.
train        256 rows forward and backward to the input, float32 and bfloat16. The share of dequantization is two passes
             of ours alone over the whole time.

Before anything is timed, answers are compared: bytes equal bit for bit, products within rounding.

Writes `benchmarks/results/nf4.json`.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "nf4.json"
SIDE, ROWS, COPIES = 4096, 256, 12
TARGETS = {"quantize": 10.0, "decode": 1.2, "train": 1.5}
Ways = dict[str, Callable[[], object]]


def turns(ways: Ways, rounds: int, calls: int) -> dict[str, list[float]]:
    """Seconds of one call of each way, by rounds: of this thread's processor time where there is one thread, and else
    of the clock on the wall, which a machine with other work on it spoils.
    """
    import torch

    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            begun = clock()
            for _ in range(calls):
                ways[name]()
            if turn:  # the first round warms up
                times[name].append((clock() - begun) / calls)
    return times


def summary(times: dict[str, list[float]], ours: str) -> dict[str, Any]:
    """Milliseconds of every way and how many times as long as ours the others take."""

    def spread(values: list[float]) -> dict[str, float]:
        found = sorted(values)
        return {
            place: found[round(share * (len(found) - 1))]
            for place, share in (("low", 0.25), ("median", 0.5), ("high", 0.75))
        }

    return {
        "milliseconds": {name: 1e3 * statistics.median(found) for name, found in times.items()},
        "times_ours": {
            name: spread([other / own for other, own in zip(found, times[ours], strict=True)])
            for name, found in times.items()
            if name != ours
        },
    }


def their_layer(weight: Any, double: bool) -> Any:
    """A 4-bit layer of bitsandbytes, packed as on a CPU from the start (its meta device would not quantize)."""
    import bitsandbytes
    import torch

    layer = bitsandbytes.nn.Linear4bit(
        weight.shape[1], weight.shape[0], bias=False, quant_type="nf4", compress_statistics=double
    )
    layer.weight = bitsandbytes.nn.Params4bit(
        weight.clone(), requires_grad=False, quant_type="nf4", compress_statistics=double, module=layer
    )
    return layer.to(torch.device("cpu"))


def quantize(weight: Any, rounds: int) -> dict[str, Any]:
    """Quantizing, both types."""
    import bitsandbytes.functional as theirs
    import torch

    from mickle.quantization.nf4 import quantize_4bit

    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        given = weight.to(dtype)
        packed, _ = theirs.quantize_4bit(given, quant_type="nf4", compress_statistics=True)
        assert torch.equal(packed.flatten(), quantize_4bit(given).packed)
        ways: Ways = {
            "mickle": lambda given=given: quantize_4bit(given),
            "bitsandbytes": lambda given=given: theirs.quantize_4bit(given, quant_type="nf4", compress_statistics=True),
        }
        found[str(dtype).removeprefix("torch.")] = summary(turns(ways, rounds, 1), "mickle")
    return found


def decode(weight: Any, rounds: int, double: bool) -> dict[str, Any]:
    """One row, out of cache."""
    import torch

    from mickle.quantization.nf4_linear import NF4Linear

    ours, theirs, dense = [], [], []
    for _ in range(COPIES):
        ours.append(NF4Linear.from_dense(weight, double=double).eval())
        theirs.append(their_layer(weight, double).eval())
    for _ in range(COPIES // 4):
        dense.append(weight.to(torch.bfloat16).clone())
    stored = ours[0].stored_bytes()
    pages = [torch.ones(stored // 8, dtype=torch.int64) for _ in range(COPIES)]
    row = torch.randn(1, SIDE)
    half = row.bfloat16()
    with torch.no_grad():
        exact = row.double() @ ours[0].dequantized().double().T
        for layer, x in ((ours[0], row), (ours[0], half), (theirs[0], half)):
            assert (layer(x).double() - exact).norm() / exact.norm() < 0.02
    turn = {
        name: cycle(copies) for name, copies in (("o", ours), ("f", ours), ("t", theirs), ("d", dense), ("r", pages))
    }
    ways: Ways = {
        "mickle": lambda: next(turn["o"])(half),
        "mickle, float32": lambda: next(turn["f"])(row),
        "bitsandbytes": lambda: next(turn["t"])(half),
        "dense bfloat16": lambda: torch.nn.functional.linear(half, next(turn["d"])),
        "roof": lambda: next(turn["r"]).sum(),
    }
    with torch.no_grad():
        times = turns(ways, rounds, 2 * COPIES)
    found = summary(times, "mickle")
    roof = found["milliseconds"]["roof"]
    return {
        **found,
        "bytes": stored,
        "bits_per_weight": 8 * stored / weight.numel(),
        "share_of_roof": {
            name: roof / spent for name, spent in found["milliseconds"].items() if name.startswith("mickle")
        },
    }


def train(weight: Any, rounds: int, kind: str) -> dict[str, Any]:
    """Forward and backward."""
    import torch

    from mickle.quantization.nf4_linear import NF4Linear

    dtype = getattr(torch, kind)
    ours, theirs = NF4Linear.from_dense(weight), their_layer(weight, True).train()
    dense = ours.dequantized(dtype)
    x, upstream = torch.randn(ROWS, SIDE, dtype=dtype), torch.randn(ROWS, SIDE, dtype=dtype)

    def through(layer: Callable[[Any], Any]) -> Any:
        given = x.detach().requires_grad_()
        return torch.autograd.grad(layer(given), given, upstream)[0]

    ways: Ways = {
        "mickle": lambda: through(ours),
        "bitsandbytes": lambda: through(theirs),
        "dense": lambda: through(lambda given: torch.nn.functional.linear(given, dense)),
        "mickle, two dequantizations": lambda: (ours.transient(dtype), ours.transient(dtype)),
    }
    known = through(lambda given: torch.nn.functional.linear(given, dense))
    for layer in (ours, theirs):
        assert (through(layer).double() - known.double()).norm() / known.double().norm() < 0.01
    found = summary(turns(ways, rounds, 1), "mickle")
    spent = found["milliseconds"]
    return {**found, "share_of_dequantization": spent["mickle, two dequantizations"] / spent["mickle"], "rows": ROWS}


def measure(threads: int, rounds: int) -> dict[str, Any]:
    """All of it with so many threads."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    weight = torch.randn(SIDE, SIDE)
    found: dict[str, Any] = {"threads": threads}
    if threads == 1:
        found["quantize"] = quantize(weight, max(3, rounds // 3))
    found["decode"] = {
        "double quantization": decode(weight, 3 * rounds, True),
        "scales in 32 bits": decode(weight, 3 * rounds, False),
    }
    found["train"] = {kind: train(weight, rounds, kind) for kind in ("float32", "bfloat16")}
    return found


def lines(found: dict[str, Any]) -> Iterator[str]:
    """For a person."""
    for what, target in TARGETS.items():
        for kind, values in found.get(what, {}).items():
            spent = ", ".join(f"{name} {value:.2f}" for name, value in values["milliseconds"].items())
            ratio = values["times_ours"]["bitsandbytes"]
            yield f"{found['threads']} threads, {what}, {kind}: {spent} ms"
            yield (
                f"  {ratio['median']:.2f} times bitsandbytes' speed ({ratio['low']:.2f} to {ratio['high']:.2f}; "
                f"target {target})"
            )
            for name in ("share_of_roof", "share_of_dequantization"):
                if name in values:
                    yield f"  {name.replace('_', ' ')}: {values[name]}"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}))
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    from importlib.metadata import version

    from provenance import provenance

    from mickle.kernels.nf4 import FEATURES
    from mickle.storage import write_json

    results = []
    for threads in chosen.threads:
        results.append(measure(threads, chosen.rounds))
        for line in lines(results[-1]):
            print(line, flush=True)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        chosen.out,
        {
            **provenance(__file__),
            "instructions": sorted(FEATURES),
            "peers": {name: version(name) for name in ("bitsandbytes", "torch", "numba")},
            "weight": [SIDE, SIDE],
            "results": results,
        },
    )


if __name__ == "__main__":
    main()
