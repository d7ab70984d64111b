"""Dropout in closed form: all rates at once against scikit-learn, and many small networks at once against a loop.

    python benchmarks/dropout.py              # some 2 minutes on two quiet cores
    python benchmarks/dropout.py --rounds 3   # rougher

Two parts, everything of a round in turn on the same threads, so that a machine that slows down slows all; ratios are
medians of the rounds' own ratios. **Path**: 50 rates with leave-one-out errors and the chosen weights
(`trace_path`), against a loop of 50 `Ridge.fit` (which gives no error at all) and against `RidgeCV` with 50 penalties,
in whichever of its two modes is the faster. The peers get columns of norm sqrt(n), where the two problems are one, and
the results are compared. **Networks**: one hidden layer of 8 to 64 units, 32 networks, against the same networks as
`nn.Sequential` one by one.

Targets: 10 times the loop, 1.5 times `RidgeCV`, 5 times the loop over networks up to 64 units.
Writes `benchmarks/results/dropout.json`.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance
from sklearn.linear_model import Ridge, RidgeCV
from torch import nn

from mickle.regression.networks import fresh_networks, losses, train_networks
from mickle.regression.path import choose_rate, trace_path
from mickle.storage import write_json

RESULT = Path(__file__).parent / "results" / "dropout.json"
SHAPES = {"n >> p": (5000, 200), "n ~ p": (600, 500), "n << p": (400, 4000), "n >>> p": (100_000, 50)}
PENALTIES = np.geomspace(1e-3, 1e2, 50)
NETWORKS, STEPS = 32, 60
LEAST_SECONDS = 0.4
SIZES = {"8 units, 50 rows": (8, 50), "32 units, 100 rows": (32, 100), "64 units, 200 rows": (64, 200)}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of one call, and what it gave; of a short call the mean over as many as take LEAST_SECONDS."""
    begun, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - begun < LEAST_SECONDS:
        found = work()
        calls += 1
    return (time.perf_counter() - begun) / calls, found


def compare_path(rows: int, columns: int, rounds: int) -> dict[str, Any]:
    """One shape: seconds of the path and of both peers, and how far their answers are apart."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(rows, columns)) * np.exp(generator.normal(size=columns))
    y = x @ generator.normal(size=columns) / np.sqrt(columns) + generator.normal(size=rows)
    rates = list(PENALTIES / (1 + PENALTIES))
    centred = x - x.mean(0)
    scaled = centred / np.sqrt((centred**2).mean(0))
    works = {
        "path": lambda: (path := trace_path(x, y, rates), path.weights(choose_rate(path))),
        "ridge_loop": lambda: [Ridge(alpha=a * rows).fit(scaled, y).coef_ for a in PENALTIES],
        "ridge_cv": lambda: RidgeCV(PENALTIES * rows, store_cv_results=True).fit(scaled, y),
        "ridge_cv_svd": lambda: RidgeCV(PENALTIES * rows, gcv_mode="svd").fit(scaled, y),
    }
    answers = {name: work() for name, work in works.items()}  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(rounds):
        for name in list(works) if turn % 2 == 0 else list(works)[::-1]:
            seconds[name].append(timed(works[name])[0])
    path, chosen = answers["path"]
    scale = np.sqrt((centred**2).mean(0))
    weights = path.weights()[:, :, 0] * scale
    loop = np.array(answers["ridge_loop"])
    cv = answers["ridge_cv"]
    left_out = cv.cv_results_.reshape(rows, -1).mean(0)
    return {
        "rows": rows,
        "columns": columns,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "times_faster_than_loop": ratio(seconds["ridge_loop"], seconds["path"]),
        "times_faster_than_ridge_cv": ratio(
            list(map(min, seconds["ridge_cv"], seconds["ridge_cv_svd"])), seconds["path"]
        ),
        "largest_difference_of_weights": float(np.abs(weights - loop).max() / np.abs(loop).max()),
        "largest_difference_of_left_out_errors": float(np.abs(path.leave_one_out / left_out - 1).max()),
        "same_choice": bool(np.allclose(chosen[:, 0] * scale, cv.coef_, atol=1e-6 * np.abs(cv.coef_).max())),
    }


def compare_networks(width: int, rows: int, rounds: int) -> dict[str, Any]:
    """One size: seconds of all networks at once and one by one, and how far their last losses are apart."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(NETWORKS, rows, 64, generator=generator)
    targets = nn.functional.one_hot(torch.randint(10, (NETWORKS, rows), generator=generator), 10).float()

    def together(rate: float = 0.5) -> torch.Tensor:
        networks = fresh_networks(range(NETWORKS), 64, width, 10)
        return train_networks(networks, inputs, targets, [rate] * NETWORKS, steps=STEPS, learning_rate=0.01)

    def one_by_one(rate: float = 0.5) -> torch.Tensor:
        return torch.cat([train_one(place, width, rate, inputs[place], targets[place]) for place in range(NETWORKS)])

    apart = (together(0.0) - one_by_one(0.0)).abs().max() / together(0.0).max()
    seconds: dict[str, list[float]] = {"together": [], "one_by_one": []}
    for _ in range(rounds):
        seconds["together"].append(timed(together)[0])
        seconds["one_by_one"].append(timed(one_by_one)[0])
    return {
        "width": width,
        "rows": rows,
        "networks_a_second": {name: NETWORKS * STEPS / statistics.median(times) for name, times in seconds.items()},
        "network_steps": STEPS,
        "times_faster": ratio(seconds["one_by_one"], seconds["together"]),
        "largest_difference_without_dropout": float(apart),
    }


def train_one(seed: int, width: int, rate: float, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The plain way: modules, torch's dropout, torch's fused Adam and its schedule."""
    start = fresh_networks([seed], 64, width, 10)
    model = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(rate), nn.Linear(width, 10))
    with torch.no_grad():
        model[0].weight.copy_(start.first[0].T)
        model[3].weight.copy_(start.last[0].T)
        model[0].bias.zero_()
        model[3].bias.zero_()
    adam = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, STEPS)
    for _ in range(STEPS):
        adam.zero_grad()
        losses(model(inputs)[None], targets[None]).sum().backward()
        adam.step()
        schedule.step()
    with torch.no_grad():
        return losses(model.eval()(inputs)[None], targets[None])


def ratio(slower: list[float], faster: list[float]) -> dict[str, float]:
    """Median and quartiles of the rounds' own ratios."""
    ratios = sorted(a / b for a, b in zip(slower, faster))
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return {"median": round(float(middle), 2), "quartiles": [round(float(low), 2), round(float(high), 2)]}


def main() -> None:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULT)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    import threadpoolctl

    with threadpoolctl.threadpool_limits(chosen.threads):
        result = {
            "path": {name: compare_path(*shape, chosen.rounds) for name, shape in SHAPES.items()},
            "networks": {name: compare_networks(*size, chosen.rounds) for name, size in SIZES.items()},
        }
    print(json.dumps(result, indent=2))
    write_json(chosen.out, {**provenance(__file__), "threads": chosen.threads, **result})


if __name__ == "__main__":
    main()
