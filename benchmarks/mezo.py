"""A forward-only step against the published loop in plain torch; and the kernels beneath it.

    python benchmarks/mezo.py                    # some 6 minutes on two quiet cores
    python benchmarks/mezo.py --pairs 3

Steps. Two arms tune the same decoder (some 11 million weights, float32) on the same batches of about 100 tokens with
next-token loss: Mickle's optimizer in Mickle's loop, and the loop of arXiv 2305.17333 (algorithm 1 and appendix A)
written out in plain torch: a seed a step, torch.normal for each tensor, four passes over the weights (perturb,
perturb back twice, restore, update), the same closure for the loss. An arm is a process that stays alive; the parent
lets them run short segments in turn, the order turned around in each round. Ratios are medians over rounds. Both
arms' losses on one fixed batch must have moved by about as little, so neither does less work.

Memory. Each arm also says the most bytes its process held during the steps (VmHWM after a reset); a third arm,
`inference`, runs the same forward passes and no step.

Kernels. Processor time on one thread of adding one direction to 4,194,304 weights in place, of torch's copy of them
and of torch's randn and add, in turn; and nanoseconds a weight and step of replaying a journal's 1,000 steps.

Writes `benchmarks/results/mezo.json`.
"""

import argparse
import importlib
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segments import Arm, Gate, alternate

RESULT = Path(__file__).parent / "results" / "mezo.json"
ARMS = ("mickle", "published", "inference")
SHAPES: dict[str, dict[str, int]] = {
    "small": {
        "width": 384,
        "layers": 6,
        "heads": 6,
        "ffn": 1024,
        "vocabulary": 4096,
        "rows": 4,
        "length": 25,
        "steps": 8,
    },
    "longer": {
        "width": 384,
        "layers": 6,
        "heads": 6,
        "ffn": 1024,
        "vocabulary": 4096,
        "rows": 16,
        "length": 64,
        "steps": 3,
    },
}
RATE, EPS = 1e-6, 1e-3


# -- one arm, in its own process -----------------------------------------------------------------------------------


def run_arm(name: str, shape: dict[str, int], answers: int, threads: int) -> None:
    """Step under the gate until told to end, then report memory and the loss on one fixed batch."""
    import torch

    from mickle import machine
    from mickle.kernels.perturb import add_draws
    from mickle.kernels.philox import Moves, Stream

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = decoder(shape)
    # Every arm has loaded the same code before memory is looked at: what differs then is the steps'.
    importlib.import_module("mickle.training.loop")
    mezo = importlib.import_module("mickle.training.mezo")
    mezo.MeZO([("w", torch.nn.Parameter(torch.zeros(8)))]).step(lambda: 0.0)  # torch loads more with the first one
    add_draws(torch.zeros(1 << 18), "", Stream(0), Moves.of([0], [0.0]))
    gate = Gate(answers)
    before = loss_of(model, batch_of(shape, -1))
    machine.reset_peak_memory()
    {"mickle": run_mickle, "published": run_published, "inference": run_inference}[name](model, shape, gate)
    gate.tell(
        peak=machine.peak_memory(), before=before, after=loss_of(model, batch_of(shape, -1)),
        parameters=sum(p.numel() for p in model.parameters()),
        largest=max(p.numel() * p.element_size() for p in model.parameters()),
    )  # fmt: skip


def decoder(shape: dict[str, int]) -> Any:
    """The decoder that all arms begin with."""
    from mickle.models.decoder import Decoder, DecoderConfig

    config = DecoderConfig(
        shape["vocabulary"], shape["width"], shape["layers"], shape["heads"], shape["heads"],
        shape["width"] // shape["heads"], shape["ffn"], shape["length"],
    )  # fmt: skip
    return Decoder(config, seed=0)


def batch_of(shape: dict[str, int], step: int) -> dict[str, Any]:
    """Batch of a step: random tokens."""
    import torch

    generator = torch.Generator().manual_seed(step % 2**31)
    tokens = torch.randint(shape["vocabulary"], (shape["rows"], shape["length"] + 1), generator=generator)
    return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}


def closure_of(model: Any, shape: dict[str, int], step: int) -> Any:
    """The loss that every arm evaluates."""
    from mickle.training.closure import Closure
    from mickle.training.objectives import next_token

    return Closure(model, next_token, batch_of(shape, step), step=step)


def loss_of(model: Any, batch: dict[str, Any]) -> float:
    """Mean loss on one batch."""
    import torch

    from mickle.training.objectives import next_token

    model.eval()
    with torch.no_grad():
        total, count = next_token(model, batch)
    return float(total / count)


def run_mickle(model: Any, shape: dict[str, int], gate: Gate) -> None:
    """Mickle's optimizer in Mickle's loop."""
    from mickle.training.loop import fit
    from mickle.training.mezo import MeZO
    from mickle.training.objectives import next_token

    optimizer = MeZO(model.named_parameters(), lr=RATE, eps=EPS)
    events = fit(model, next_token, lambda step: batch_of(shape, step), optimizer, steps=10**6, watch_loss=False)
    for event in events:
        if type(event).__name__ == "Trained" and gate.step_done():
            break
    events.close()  # type: ignore[attr-defined]


def run_published(model: Any, shape: dict[str, int], gate: Gate) -> None:
    """Algorithm 1 in plain torch, as the paper describes its in-place loop."""
    import torch

    parameters = [p for p in model.parameters() if p.requires_grad]
    model.eval()

    def perturb(seed: int, scale: float) -> None:
        torch.manual_seed(seed)
        for parameter in parameters:
            z = torch.normal(mean=0.0, std=1.0, size=parameter.shape, dtype=parameter.dtype)
            parameter.data.add_(z, alpha=scale)

    step = 0
    while True:
        closure = closure_of(model, shape, step)
        perturb(step, EPS)
        plus = closure.mean_loss()
        perturb(step, -2 * EPS)
        minus = closure.mean_loss()
        perturb(step, EPS)
        perturb(step, -RATE * (plus - minus) / (2 * EPS))
        step += 1
        if gate.step_done():
            return


def run_inference(model: Any, shape: dict[str, int], gate: Gate) -> None:
    """The two forward passes of a step, and nothing else."""
    model.eval()
    step = 0
    while True:
        closure = closure_of(model, shape, step)
        closure.mean_loss()
        closure.mean_loss()
        step += 1
        if gate.step_done():
            return


# -- the parent ----------------------------------------------------------------------------------------------------


def compare(name: str, pairs: int, threads: int) -> dict[str, Any]:
    """All arms on one shape."""
    shape = SHAPES[name]
    arms = {arm: Arm(__file__, arm, name, "float32", Path("."), threads) for arm in ARMS}
    segments, ends = alternate(arms, shape["steps"], pairs)
    moved = {arm: abs(ends[arm]["after"] - ends[arm]["before"]) for arm in ARMS}
    if not 0 < moved["mickle"] < 0.05 or not 0 < moved["published"] < 0.05:
        raise SystemExit(f"the two arms did not do the same work: losses moved by {moved}")
    seconds = {arm: statistics.median(s["wall"] for s in segments[arm]) / shape["steps"] for arm in ARMS}
    return {
        "shape": name,
        **shape,
        "tokens": shape["rows"] * shape["length"],
        "threads": threads,
        "parameters": ends["mickle"]["parameters"],
        "seconds_a_step": seconds,
        "published_over_mickle": ratios(segments, "published", "mickle"),
        "mickle_over_inference": ratios(segments, "mickle", "inference"),
        "peak_bytes": {arm: ends[arm]["peak"] for arm in ARMS},
        "peak_over_inference": {arm: ends[arm]["peak"] / ends["inference"]["peak"] for arm in ARMS[:2]},
        "largest_tensor_bytes": ends["mickle"]["largest"],
    }


def ratios(segments: dict[str, list[dict[str, float]]], one: str, other: str) -> dict[str, float]:
    """Median and quartiles of one arm's time over another's, segment by segment."""
    found = sorted(a["wall"] / b["wall"] for a, b in zip(segments[one], segments[other], strict=True))
    places = {"low": 0.25, "median": 0.5, "high": 0.75}
    return {place: found[round(share * (len(found) - 1))] for place, share in places.items()}


def kernels(rounds: int) -> dict[str, Any]:
    """Processor milliseconds on one thread, in turn; and a replay's nanoseconds a weight and step."""
    import torch

    from mickle.kernels.perturb import add_draws
    from mickle.kernels.philox import Moves, Stream

    torch.set_num_threads(1)
    weights, other = torch.randn(1 << 22), torch.empty(1 << 22)
    one, steps = Moves.of([3], [1e-3]), Moves.of(range(1000), [1e-6] * 1000)
    tried: dict[str, Callable[[], Any]] = {
        "signs": lambda: add_draws(weights, "w", Stream(0), one),
        "gaussian": lambda: add_draws(weights, "w", Stream(0, "gaussian"), one),
        "copy": lambda: other.copy_(weights),
        "torch_randn_and_add": lambda: weights.add_(torch.randn(1 << 22), alpha=1e-3),
    }
    times: dict[str, list[float]] = {name: [] for name in tried}
    for _ in range(rounds + 1):
        for name, work in tried.items():
            begun = time.thread_time()
            work()
            times[name].append(1e3 * (time.thread_time() - begun))
    part = weights[: 1 << 18]
    add_draws(part, "w", Stream(0), one)
    begun = time.thread_time()
    add_draws(part, "w", Stream(0), steps)
    replay = (time.thread_time() - begun) / (part.numel() * 1000) * 1e9
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    return {
        "milliseconds_of_4194304_weights": medians,
        "copy_over_signs": medians["copy"] / medians["signs"],
        "torch_over_signs": medians["torch_randn_and_add"] / medians["signs"],
        "replay_nanoseconds_a_weight_and_step": replay,
    }


def lines(found: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """What to print."""
    text = [f"{name}: {value}" for name, value in found.items()]
    for row in rows:
        step, memory = row["published_over_mickle"], row["peak_over_inference"]
        over = row["mickle_over_inference"]["median"]
        text.append(
            f"{row['shape']}: {row['parameters']:,} weights, {row['tokens']} tokens: the published loop takes "
            f"{step['median']:.2f} ({step['low']:.2f} to {step['high']:.2f}) times ours; ours {over:.2f} times two "
            f"forward passes; peak memory over inference: ours {memory['mickle']:.3f}, "
            f"published {memory['published']:.3f}"
        )
    return text


def main() -> None:
    """Run every asked shape, print the results, write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULT)
    for hidden in ("--arm", "--weights", "--answers", "--precisions"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.arm:
        run_arm(chosen.arm, SHAPES[chosen.shapes[0]], int(chosen.answers), chosen.threads)
        return
    from provenance import provenance

    from mickle.storage import write_json

    found = kernels(max(5, chosen.pairs))
    rows = [compare(shape, chosen.pairs, chosen.threads) for shape in chosen.shapes]
    for line in lines(found, rows):
        print(line)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(chosen.out, {**provenance(__file__), "kernels": found, "steps": rows})


if __name__ == "__main__":
    main()
