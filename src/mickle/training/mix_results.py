"""What `mickle mix` writes: weights for people and other programs, their course over the steps, and doubts."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mickle import figures, storage
from mickle.data.domains import Weights, write_weights
from mickle.data.packing import TokenStream
from mickle.results import Table
from mickle.training.doremi import RobustProxy
from mickle.training.pretrain_plan import PretrainPlan

UNSETTLED = 0.05  # difference of a weight between the halves of a run from which it is told
LINES = 8  # domains named in the figure
POINTS = 400  # of a line in it
ONE_SIDED = 0.9


@dataclass(frozen=True)
class Round:
    """One reference and proxy: weights before and after, and how they moved. Arrays are [steps, k]."""

    before: tuple[float, ...]
    weights: tuple[float, ...]
    trajectory: np.ndarray
    excess: np.ndarray
    seen: np.ndarray
    skipped: tuple[int, ...]

    @classmethod
    def of(cls, proxy: RobustProxy, before: tuple[float, ...], burn_in: float) -> Round:
        """What a trained proxy holds."""
        done = int(proxy.done)
        weights = tuple(proxy.result(burn_in).tolist())
        trajectory, excess = (t[:done].cpu().numpy() for t in (proxy.trajectory, proxy.excess))
        skipped = tuple(int(count) for count in proxy.skipped)
        return cls(before, weights, trajectory, excess, proxy.seen[:done].cpu().numpy(), skipped)

    @property
    def change(self) -> float:
        """The largest difference that the round made to a weight."""
        return max(abs(a - b) for a, b in zip(self.before, self.weights, strict=True))

    @property
    def mean_excess(self) -> list[float]:
        """Nats a token over the reference, mean over the last half of the steps in which the domain was seen."""
        half = len(self.excess) // 2
        sums = (self.excess * self.seen)[half:].sum(0)
        return [float(value) for value in sums / np.maximum(self.seen[half:].sum(0), 1)]


def effective_domains(weights: Sequence[float]) -> float:
    """exp(entropy): how many domains of equal weight would be as spread out."""
    positive = np.array([w for w in weights if w > 0], dtype=np.float64)
    return float(np.exp(-(positive * np.log(positive)).sum()))


def change_between_halves(trajectory: np.ndarray) -> float:
    """The largest difference of a weight between the means over the first and the second half of [steps, k].

    Small where the mean has settled; the weights of single steps may swing much more.
    """
    half = len(trajectory) // 2
    if half == 0:
        return 0.0
    return float(np.abs(trajectory[:half].mean(0) - trajectory[half:].mean(0)).max())


def domain_line(streams: dict[str, TokenStream], weights: Sequence[float]) -> str:
    """Tokens and reference weight of each domain."""
    parts = [f"{name} {len(s):,} ({w:.3f})" for (name, s), w in zip(streams.items(), weights, strict=True)]
    return f"{len(streams)} domains, tokens (reference weight): {', '.join(parts)}"


def round_line(names: Sequence[str], done: Round) -> str:
    """Weights before and after, the largest first."""
    moved = sorted(zip(names, done.before, done.weights, strict=True), key=lambda row: -row[2])
    parts = [f"{name} {before:.3f} -> {after:.3f}" for name, before, after in moved]
    return f"weights: {', '.join(parts)}; largest change {done.change:.4f}"


def doubts(names: Sequence[str], rounds: Sequence[Round]) -> list[str]:
    """What the weights' course says against them."""
    last, found = rounds[-1], []
    halves = change_between_halves(last.trajectory)
    if halves > UNSETTLED:
        found.append(
            f"weights have not settled: a mean over the first half of the steps and one over the second differ by "
            f"{halves:.3f}; more steps, or a larger batch, would tell"
        )
    if max(last.weights) > ONE_SIDED:
        found.append(f"nearly all weight is on '{names[int(np.argmax(last.weights))]}': robust.eta may be too high")
    for name, count in zip(names, last.skipped, strict=True):
        if count:
            found.append(f"the excess of '{name}' was not finite in {count} steps, which left its weight alone")
    return found


def preview(tokens: dict[str, int], plan: PretrainPlan) -> str:
    """For a dry run: estimated tokens of each domain, and the proxy's sequences and epochs of it."""
    read, share = plan.steps * plan.batch_tokens, 1 / len(tokens)
    lines = ["domain, estimated tokens, proxy's sequences a step, proxy's epochs:"]
    lines += [
        f"  {name}  {count:,}  {plan.batch_size * share:.1f}  {share * read / max(count, 1):.2f}"
        for name, count in tokens.items()
    ]
    return "\n".join(lines)


def write(
    work: Path,
    weights: Weights,
    budget: int,
    plan: PretrainPlan,
    streams: dict[str, TokenStream],
    rounds: Sequence[Round],
    warnings: Sequence[str],
) -> dict[str, Any]:
    """All files of the folder; returns the summary. ``budget``: tokens that ``weights`` will be used for."""
    names, final, last = list(streams), weights.weights, rounds[-1]
    rows = _rows(streams, rounds, final, budget)
    shares = dict(zip(names, final, strict=True))
    write_weights(work / "weights.yaml", weights)
    storage.write_json(work / "probabilities.json", {"domains": names, "probabilities": list(final)})
    storage.write_json(work / "doremi.json", {"train_domain_weights": shares, "eval_domain_weights": shares})
    storage.write_text(work / "weights.csv", _csv(list(rows[0]), [list(row.values()) for row in rows]))
    trajectory = [[step + 1, *map(float, row)] for step, row in enumerate(last.trajectory)]
    storage.write_text(work / "trajectory.csv", _csv(["step", *names], trajectory))
    storage.write_text(work / "table.md", _table(rows))
    storage.write_text(work / "weights.svg", picture(names, last))
    summary = {
        "domains": len(names),
        "parameters": plan.parameters,
        "steps": plan.steps,
        "rounds": len(rounds),
        "largest_change": last.change,
        "change_between_halves": change_between_halves(last.trajectory),
        "effective_domains_before": effective_domains(rounds[0].before),
        "effective_domains_after": effective_domains(final),
        "budget_tokens": budget,
        "weights": shares,
        "warnings": list(warnings),
    }
    details = [
        {
            "reference": dict(zip(names, done.before, strict=True)),
            "weights": dict(zip(names, done.weights, strict=True)),
            "excess": dict(zip(names, done.mean_excess, strict=True)),
            "largest_change": done.change,
            "change_between_halves": change_between_halves(done.trajectory),
            "steps_made": len(done.trajectory),
            "excess_not_finite": dict(zip(names, done.skipped, strict=True)),
        }
        for done in rounds
    ]
    storage.write_json(work / "results.json", {**summary, "domain_rows": rows, "round_rows": details})
    return summary


def _rows(
    streams: dict[str, TokenStream], rounds: Sequence[Round], final: Sequence[float], budget: int
) -> list[dict[str, Any]]:
    return [
        {
            "domain": name,
            "pages": len(stream.starts),
            "tokens": len(stream),
            "reference": rounds[0].before[place],
            "found": rounds[-1].weights[place],
            "weight": final[place],
            "excess": rounds[-1].mean_excess[place],
            "epochs": final[place] * budget / len(stream),
        }
        for place, (name, stream) in enumerate(streams.items())
    ]


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


def _table(rows: Sequence[dict[str, Any]]) -> str:
    numbers = {"tokens": ",", "reference": ".4f", "weight": ".4f", "excess": ".3f", "epochs": ".2f"}
    cells = [
        (str(row["domain"]), *(format(row[name], form) for name, form in numbers.items()))
        for row in sorted(rows, key=lambda row: -row["weight"])
    ]
    return Table(("domain", "tokens", "reference", "weight", "excess, nats", "epochs"), cells).markdown() + "\n"


def picture(names: Sequence[str], done: Round) -> str:
    """The weights over the steps, one line a domain, its reference weight dashed; an SVG."""
    chosen = np.unique(np.linspace(0, len(done.trajectory) - 1, POINTS).astype(int))
    order = np.argsort(-np.asarray(done.weights), kind="stable")

    def paint(axes: Any) -> None:
        for place, domain in enumerate(order):
            label = json.dumps(names[domain], ensure_ascii=False)[1:-1].replace("$", r"\$") if place < LINES else None
            (line,) = axes.plot(chosen + 1, done.trajectory[chosen, domain], linewidth=1.2, label=label)
            axes.axhline(done.before[domain], color=line.get_color(), linestyle="--", linewidth=0.8, alpha=0.6)
        axes.set_xlabel("step of the proxy")
        axes.set_ylabel("weight (dashed: reference)")
        axes.set_ylim(bottom=0)
        axes.grid(True)
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))

    return figures.draw(paint, height=3.2)
