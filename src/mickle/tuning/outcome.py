"""What a tuning came to, as numbers, sentences, a table, a figure and samples: loss before and after on its task and on
general text, and memory against the forecast.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mickle.evaluation.loss import bootstrap_ratio
from mickle.results import Section, Table, drawn, facts, json_lines
from mickle.sampling.sample import answers
from mickle.storage import write_text
from mickle.training.curves import stopped_early
from mickle.tuning.methods import TuningMethod

TABLE, FIGURE, SAMPLES = "table.md", "tune.svg", "samples.jsonl"
LOST_CLEARLY = 0.02  # nats per token of general text that are worth a warning


def compared(before: np.ndarray, after: np.ndarray, seed: int) -> dict[str, Any]:
    """Mean loss before and after and their difference, from the scores [n, 3] of the same texts.

    The interval of the difference is the 95 % percentile bootstrap over texts, pairs resampled: what other texts of
    this kind would show, not another training seed. ``accuracy_*``: share of tokens where the best guess was right.
    """
    tokens = before[:, 1]
    total = tokens.sum()
    low, high = bootstrap_ratio(after[:, 0] - before[:, 0], tokens, seed)
    found = {
        "before": float(before[:, 0].sum() / total),
        "after": float(after[:, 0].sum() / total),
        "difference": float((after[:, 0] - before[:, 0]).sum() / total),
        "interval": [low, high],
        "texts": len(before),
        "tokens": int(total),
    }
    if not np.isnan(before[:, 2]).any():
        found |= {
            "accuracy_before": float(before[:, 2].sum() / total),
            "accuracy_after": float(after[:, 2].sum() / total),
        }
    return found


def lines(results: dict[str, Any]) -> list[str]:
    """The outcome in sentences."""
    said = []
    parts = (
        ("task", results.get("task"), results.get("unit", "token")),
        ("general text", results.get("general"), "token"),
    )
    for name, figures, unit in parts:
        if figures:
            before, after, change, interval, texts, _ = _shown(figures)
            said.append(
                f"{name}: loss {before} -> {after} nats a {unit} ({change}; 95 % over {texts} texts: {interval})"
            )
    memory = results["memory"]
    said.append(
        f"memory: peak {memory['peak_bytes'] / 1e9:.2f} GB, forecast {memory['forecast_bytes'] / 1e9:.2f} GB "
        f"({memory['peak_bytes'] / memory['forecast_bytes'] - 1:+.0%})"
    )
    return said


def _shown(found: dict[str, Any]) -> tuple[str, ...]:
    """What was compared, for a person: before, after, difference, its interval, texts, tokens."""
    losses = (f"{found['before']:.4f}", f"{found['after']:.4f}", f"{found['difference']:+.4f}")
    low, high = found["interval"]
    return *losses, f"{low:+.4f} to {high:+.4f}", f"{found['texts']:,}", f"{found['tokens']:,}"


def warnings(results: dict[str, Any], kept_step: int, method: TuningMethod) -> list[str]:
    """A sentence each: no step was better than none, the task became worse, the model clearly lost on general text; and
    what does less harm than ``method``.
    """
    said, milder = [], method.learns.milder
    task, general = results.get("task"), results.get("general")
    if kept_step == 0:
        said.append(f"no step was better on held-out examples than the model as it came, which is kept; try {milder}")
    if task and task["interval"][0] > 0:
        before, after, change, interval, *_ = _shown(task)
        said.append(
            f"the tuning made the task worse: loss {before} -> {after} nats a {results.get('unit', 'token')} "
            f"({change}; 95 % over texts: {interval}); try {milder}"
        )
    if general and general["interval"][0] > LOST_CLEARLY:
        said.append(
            f"the model forgot: general text costs {general['difference']:.3f} nats a token more than before; "
            f"{milder} forget less"
        )
    return said


def as_table(results: dict[str, Any]) -> str:
    """The losses in Markdown. Memory stays out: it is the machine's, and the same command gives the same bytes."""
    unit = results.get("unit", "token")
    general = "general text" if unit == "token" else "general text, nats a token"
    rows, right = [], []
    for label, name, key in (("task, held out", "task", "task"), (general, "general text", "general")):
        if f := results.get(key):
            rows.append((label, *_shown(f)))
            if "accuracy_before" in f:
                shares = f"{f['accuracy_before']:.1%} before, {f['accuracy_after']:.1%} after"
                right.append(f"Best guess right, {name}: {shares}.")
    headings = (f"nats a {unit}", "before", "after", "difference", "95 % over texts", "texts", "tokens")
    table = Table(headings, rows, frozenset(range(1, len(headings))))
    return "\n".join([table.markdown(), "", *right]) + "\n"


def draw(results: dict[str, Any], metrics: Path) -> str:
    """The training's loss, and bars of before and after, as SVG."""
    from mickle import figures

    events = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    trained = [(e["step"], e["loss"]) for e in events if e["event"] == "trained"]
    held = [(e["step"], e["values"]["heldout_loss"]) for e in events if e["event"] == "evaluated"]
    pairs = [(name, results[name]) for name in ("task", "general") if results.get(name)]

    def paint(left: Any, right: Any) -> None:
        left.plot(*zip(*trained), linewidth=1, label="training")
        if held:
            left.plot(*zip(*held), "o-", markersize=3, label="held out")
        left.set(xlabel="step", ylabel=f"loss (nats a {results.get('unit', 'token')})")
        left.legend()
        places = np.arange(len(pairs))
        for shift, when, colour in ((-0.2, "before", figures.INK), (0.2, "after", figures.COLOURS[2])):
            bars = right.bar(places + shift, [f[when] for _, f in pairs], 0.38, label=when, color=colour)
            right.bar_label(bars, fmt="%.2f", padding=2)
        right.set_xticks(places, [f"{name}\n" for name, _ in pairs])
        right.set_ylabel("nats (less is better)")
        right.legend()

    return figures.draw(paint, width=9, height=3, columns=2)


def write(work: Path, results: dict[str, Any], metrics: Path, samples: list[dict[str, str]]) -> None:
    """Table, figure and samples into ``work``."""
    write_text(work / TABLE, as_table(results))
    write_text(work / FIGURE, draw(results, metrics))
    write_text(work / SAMPLES, json_lines(samples).encode("utf-8", "replace").decode("utf-8"))


def tuning_section(folder: Path, summary: dict[str, Any]) -> Section:
    """A tuned folder's part of a report."""
    rows = []
    parts = {"task": "the task, held out", "general": f"general text ({summary.get('general_text', '')})"}
    for name, label in parts.items():
        if found := summary.get(name):
            before, after, change, interval, texts, _ = _shown(found)
            rows.append((label, before, after, f"{change} ({interval})", texts))
    headings = ("nats a token", "before", "after", "difference (95 % over texts)", "texts")
    tables = [Table(headings, rows, frozenset({1, 2, 3, 4})), Table(("", ""), facts(summary))]
    shares = [
        (s["file"], f"{s['examples']:,}", f"{s['weight']:g}", f"{s['read']:,}") for s in summary.get("shares", [])
    ]
    if len(shares) > 1 or any(weight != "1" for _, _, weight, _ in shares):
        tables.insert(1, Table(("data", "training examples", "weight", "read an epoch"), shares, frozenset({1, 2, 3})))
    lead = (
        f"{summary.get('training_examples', 0):,} examples taught {summary.get('trained_parameters', 0):,} of "
        f"{summary.get('parameters', 0):,} parameters ({summary.get('method', '')})."
    )
    lead = " ".join(
        [
            lead,
            *filter(None, [stopped_early(summary)]),
            *(f"Warning: {message}." for message in summary.get("warnings", [])),
        ]
    )
    return Section("The tuning", lead, drawn(folder), tables, answers(folder / SAMPLES))
