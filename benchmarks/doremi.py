"""DoReMi's cost: a proxy's step against a plain step of the same model, and rows a second of the weighted sampler.

    python benchmarks/doremi.py              # some 4 minutes on two quiet cores
    python benchmarks/doremi.py --pairs 3 --shapes laptop

**Step.** One process; a plain step, the proxy's step with the reference's losses kept, the same with them computed each
time, and the reference's forward pass alone: a segment of each in turn, the order turned round in every other pair.
Ratios are medians of the pairs' own ratios. ``beyond_forward``, the target: what a live step costs beyond the
reference's forward pass is at most 15 % more than a plain step; so is a step with kept losses.

**Sampler.** Rows a second of ``DomainMixture`` with 22 domains (the Pile's number), drawing alone and with the tokens
gathered, against ``Mixture`` on one stream; and against ``datasets.interleave_datasets``, where that is installed.

Writes `benchmarks/results/doremi.json`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance

from mickle import machine
from mickle.data.mixture import DomainMixture, Mixture
from mickle.data.packing import TokenStream
from mickle.models.decoder import Decoder
from mickle.models.shape import DecoderConfig
from mickle.storage import write_json
from mickle.training.closure import Closure
from mickle.training.doremi import ReferenceLosses, RobustObjective, RobustProxy
from mickle.training.objectives import next_token
from mickle.training.optimizers import AdamW, build_optimizer

RESULT = Path(__file__).parent / "results" / "doremi.json"
DOMAINS = 6
SHAPES: dict[str, dict[str, Any]] = {
    "proxy": {"size": "tiny", "vocabulary": 2048, "batch": 16, "length": 256, "steps": 4},
    "laptop": {"size": "small", "vocabulary": 8192, "batch": 16, "length": 256, "steps": 1},
}


def batches(shape: dict[str, Any]) -> Callable[[int], dict[str, torch.Tensor]]:
    """Domains of random tokens whose frequencies fall like 1 / rank; windows repeat after four batches."""
    random = np.random.default_rng(0)
    size = 4 * shape["batch"] * shape["length"] // DOMAINS
    streams = [
        TokenStream((shape["vocabulary"] ** random.random(size) - 1).astype(np.uint16), np.zeros(1, np.int64), 0)
        for _ in range(DOMAINS)
    ]
    weights = (1 / DOMAINS,) * DOMAINS
    return DomainMixture(streams, weights, shape["batch"], shape["length"], 0, shift=False)


class Arm:
    """One way to train; ``run(n)`` makes n more steps."""

    def __init__(self, name: str, shape: dict[str, Any], precision: str) -> None:
        config = DecoderConfig.for_size(shape["size"], shape["vocabulary"], shape["length"])
        self.batches, self.precision, self.step = batches(shape), precision, 0
        self.model: Any = Decoder(config)
        self.objective: Any = next_token
        self.forward_only = name == "forward"
        if name in ("kept", "live"):
            self.objective = RobustObjective(ReferenceLosses(Decoder(config, seed=1)))
            self.model = RobustProxy(self.model, DOMAINS, 100_000, shape["vocabulary"])
        self.reference = ReferenceLosses(Decoder(config, seed=1))
        self.optimizer = build_optimizer(AdamW(), self.model)
        if name in ("kept", "live"):
            self.model.follow(self.optimizer, self.objective)
        if name == "kept":
            self._keep(shape)

    def _keep(self, shape: dict[str, Any]) -> None:
        known = self.objective.reference
        windows = sum(self.batches.windows)  # type: ignore[attr-defined]
        known.kept = np.zeros((windows, shape["length"]), dtype=np.float32)
        for index in range(12):  # every window has been seen by then
            with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
                known(self.batches(index))

    def run(self, steps: int) -> None:
        """Train, or run the reference forward."""
        for _ in range(steps):
            batch = self.batches(self.step)
            if self.forward_only:
                with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
                    self.reference(batch)
            else:
                closure = Closure(
                    self.model, self.objective, batch, step=self.step, clip_norm=1.0, precision=self.precision
                )
                self.optimizer.step(closure)
            self.step += 1


def clocks(work: Callable[[], Any]) -> tuple[float, float]:
    """Wall and processor seconds of one call."""
    begun = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun[0], time.process_time() - begun[1]


def compare_steps(name: str, precision: str, pairs: int) -> dict[str, Any]:
    """All ways on one shape."""
    shape = SHAPES[name]
    arms = {arm: Arm(arm, shape, precision) for arm in ("plain", "kept", "live", "forward")}
    for arm in arms.values():
        arm.run(2)
    times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in arms}
    for pair in range(pairs):
        for arm in list(arms) if pair % 2 == 0 else list(arms)[::-1]:
            times[arm].append(clocks(lambda arm=arm: arms[arm].run(shape["steps"])))  # type: ignore[misc]
    seconds = {arm: statistics.median(wall for wall, _ in values) / shape["steps"] for arm, values in times.items()}
    row: dict[str, Any] = {"shape": name, "precision": precision, "pairs": pairs, "seconds_a_step": seconds}
    for clock, label in ((0, "wall"), (1, "processor")):
        plain, kept, live, forward = ([t[clock] for t in times[arm]] for arm in arms)
        row[label] = {
            "kept_to_plain": statistics.median(k / p for k, p in zip(kept, plain, strict=True)),
            "live_to_plain": statistics.median(v / p for v, p in zip(live, plain, strict=True)),
            "live_to_plain_and_forward": statistics.median(
                v / (p + f) for v, p, f in zip(live, plain, forward, strict=True)
            ),
            "beyond_forward": statistics.median((v - f) / p - 1 for v, p, f in zip(live, plain, forward, strict=True)),
        }
    return row


def sampler(rounds: int) -> dict[str, Any]:
    """Rows a second of each way to draw."""
    random = np.random.default_rng(0)
    streams = [TokenStream(np.arange(60_000, dtype=np.uint16), np.zeros(1, np.int64), 0) for _ in range(22)]
    weights = tuple(random.dirichlet(np.ones(22)).tolist())
    many = DomainMixture(streams, weights, 512, 256, 0)
    one = Mixture(TokenStream(np.arange(60_000, dtype=np.uint16), np.zeros(1, np.int64), 0), 512, 256, 0)
    ways: dict[str, Callable[[], Any]] = {
        "domains drawn": counted(lambda i: many.positions(i)),
        "domains drawn and gathered": counted(lambda i: many(i)),
        "one stream drawn and gathered": counted(lambda i: one(i)),
    }
    peer = interleaved(weights)
    if peer is not None:
        ways["datasets.interleave_datasets"] = lambda: [next(peer) for _ in range(512)]
    found: dict[str, list[float]] = {name: [] for name in ways}
    for work in ways.values():
        work()
    for _ in range(rounds):
        for name, work in ways.items():
            found[name].append(512 / clocks(work)[1])
    rows = {name: statistics.median(values) for name, values in found.items()}
    return {"rows_a_second": rows, "batch": 512, "length": 256, "domains": 22}


def counted(draw: Callable[[int], Any]) -> Callable[[], Any]:
    """A call without arguments that draws the next batch."""
    numbers = iter(range(10**9))
    return lambda: draw(next(numbers))


def interleaved(weights: tuple[float, ...]) -> Iterator[Any] | None:
    """Rows of 256 tokens from 22 in-memory data sets by weight; None without the peer."""
    try:
        from datasets import Dataset, interleave_datasets
    except ImportError:
        return None
    tokens = np.arange(256).tolist()
    parts = [Dataset.from_dict({"input_ids": [tokens] * 234}).to_iterable_dataset() for _ in weights]
    mixed = interleave_datasets(parts, probabilities=list(weights), seed=0, stopping_strategy="all_exhausted")

    def forever() -> Iterator[Any]:
        while True:
            yield from mixed

    return forever()


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=machine.cores())
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [compare_steps(s, p, options.pairs) for s in options.shapes for p in options.precisions]
    for row in rows:
        print(json.dumps(row))
    drawn = sampler(options.pairs)
    print(json.dumps(drawn))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, {**provenance(__file__), "threads": options.threads, "steps": rows, "sampler": drawn})


if __name__ == "__main__":
    main()
