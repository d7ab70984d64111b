"""Sophia's cost: its update against fused AdamW and the copy bandwidth, and its training step against
AdamW's.

    python benchmarks/sophia.py              # some 3 minutes on two quiet cores
    python benchmarks/sophia.py --rounds 5   # rougher

Three parts. **Update**: one process, everything in turn within a round, so a machine that slows down slows
all; medians over the rounds, ratios as medians of the rounds' own ratios. The parameters are eight tensors of
half a million. ``kernel`` is the update alone, ``sophia`` the whole ``step()`` with its check that gradients
are finite; the peer is ``pytorch_optimizer.SophiaH`` with foreach. Bytes: 24 a parameter for Sophia (reads
theta, m, h, g; writes theta, m), 28 for AdamW. **Step**: the same decoder and batches, blocks of ten steps in
turn; every block of Sophia's holds one refresh (every 10, on half of the batch, as in the paper). **Memory**:
the same training in three processes of each arm; how far its resident high-water mark stands above
where it was before the model was made.

Targets: kernel <= fused AdamW; step ratio <= 1.05; memory ratio <= 1.02. Writes
`benchmarks/results/sophia.json`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mickle.kernels.sophia_update import SophiaRule, Tensors, update_numba
from mickle.machine import describe, peak_memory, reset_peak_memory
from mickle.models.decoder import Decoder
from mickle.models.shape import DecoderConfig
from mickle.storage import write_json
from mickle.training.closure import Closure
from mickle.training.objectives import next_token
from mickle.training.sophia import Sophia

RESULT = Path(__file__).parent / "results" / "sophia.json"
TENSORS, SIZE = 8, 500_000
BYTES = {"copy": 8, "kernel": 24, "sophia": 28, "adamw": 28, "peer": 24}  # a parameter; sophia's check reads g again
BLOCK = 10  # steps of one arm in a row: one refresh
BATCH, LENGTH = 16, 128


def timed(work: Callable[[], Any]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def parameters() -> list[nn.Parameter]:
    """Fresh parameters with gradients."""
    found = [nn.Parameter(torch.randn(SIZE)) for _ in range(TENSORS)]
    for parameter in found:
        parameter.grad = torch.randn(SIZE)
    return found


def updates() -> dict[str, Callable[[], Any]]:
    """What is timed in each round, every one warmed up."""
    from pytorch_optimizer import SophiaH

    source, target = torch.randn(TENSORS * SIZE), torch.empty(TENSORS * SIZE)
    adamw = torch.optim.AdamW(parameters(), fused=True)
    ours = Sophia(parameters(), lr=1e-6)
    peer = SophiaH(parameters(), lr=1e-6, update_period=10**9, foreach=True)
    hessians = [torch.rand(SIZE) for _ in range(TENSORS)]
    peer.step(hessian=hessians)
    ours.step()
    for state, hessian in zip(ours.state.values(), hessians):
        state["curvature"].copy_(hessian)
    rule = SophiaRule(lr=1e-6, beta=0.96, gamma=0.05, eps=1e-12, weight_decay=0.1)
    tensors = [Tensors(p.detach(), p.grad, ours.state[p]["momentum"], ours.state[p]["curvature"]) for p in ours.state]

    def kernel() -> None:
        for one in tensors:
            update_numba(one, rule)

    found = {
        "copy": lambda: target.copy_(source),
        "kernel": kernel,
        "sophia": ours.step,
        "adamw": adamw.step,
        "peer": peer.step,
    }
    for work in found.values():
        work()
    return found


def measure_updates(threads: int, rounds: int) -> dict[str, Any]:
    """Nanoseconds a parameter and bytes a second of each, and the rounds' ratios to fused AdamW."""
    torch.set_num_threads(threads)
    works = updates()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            seconds[name].append(timed(work))
    count = TENSORS * SIZE
    return {
        name: {
            "nanoseconds_a_parameter": round(statistics.median(times) / count * 1e9, 3),
            "best_nanoseconds_a_parameter": round(min(times) / count * 1e9, 3),
            "gigabytes_a_second": round(BYTES[name] * count / statistics.median(times) / 1e9, 1),
            "times_adamw": round(statistics.median(t / a for t, a in zip(times, seconds["adamw"])), 3),
        }
        for name, times in seconds.items()
    }


def trainer(arm: str) -> Callable[[], None]:
    """A function that trains one block of steps, the same model and batches for both arms."""
    model = Decoder(DecoderConfig.for_size("small", vocab_size=4096), seed=0)
    if arm == "adamw":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    else:
        optimizer = Sophia(model.parameters(), lr=1e-4, every=BLOCK)
    ids = torch.randint(4096, (BATCH, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
    done = [0]

    def block() -> None:
        for _ in range(BLOCK):
            optimizer.step(Closure(model, next_token, batch, step=done[0], clip_norm=1.0))
            done[0] += 1

    return block


def measure_steps(rounds: int) -> dict[str, float]:
    """Seconds of a training step of both arms, blocks in turn, and the median of the pairs' ratios."""
    blocks = {arm: trainer(arm) for arm in ("adamw", "sophia")}
    for block in blocks.values():
        block()
    pairs = []
    for turn in range(rounds):
        arms = ("adamw", "sophia") if turn % 2 == 0 else ("sophia", "adamw")
        pairs.append({arm: timed(blocks[arm]) / BLOCK for arm in arms})
    return {
        "adamw_seconds": round(statistics.median(pair["adamw"] for pair in pairs), 4),
        "sophia_seconds": round(statistics.median(pair["sophia"] for pair in pairs), 4),
        "ratio": round(statistics.median(pair["sophia"] / pair["adamw"] for pair in pairs), 3),
    }


def peak_bytes(arm: str) -> int:
    """How far training one block lifts this process's resident high-water mark."""
    warm = Sophia([nn.Parameter(torch.zeros(1))], lr=1.0)  # loads what both arms' libraries need before the mark
    warm.param_groups[0]["params"][0].grad = torch.zeros(1)
    warm.step()
    reset_peak_memory()
    before = peak_memory()
    trainer(arm)()
    return peak_memory() - before


def measure_memory() -> dict[str, float]:
    """Peak memory of both arms, each in processes of its own."""
    peaks: dict[str, list[int]] = {"adamw": [], "sophia": []}
    for arm in ("adamw", "sophia") * 3:  # the allocator's luck moves a single peak by two per cent
        command = [sys.executable, __file__, "--peak", arm]
        peaks[arm].append(int(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    found = {arm: statistics.median(sizes) for arm, sizes in peaks.items()}
    megabytes = {f"{arm}_megabytes": round(size / 1e6, 1) for arm, size in found.items()}
    return {**megabytes, "ratio": round(found["sophia"] / found["adamw"], 3)}


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--peak", choices=("adamw", "sophia"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.peak:
        print(peak_bytes(chosen.peak))
        return
    result: dict[str, Any] = {"machine": describe(), "parameters": TENSORS * SIZE}
    for threads in (1, 2):
        result[f"update_{threads}_threads"] = measure_updates(threads, chosen.rounds)
    result["step"] = measure_steps(max(3, chosen.rounds // 3))
    result["memory"] = measure_memory()
    print(json.dumps(result, indent=2))
    write_json(chosen.out, result)


if __name__ == "__main__":
    main()
