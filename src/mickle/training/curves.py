"""A trained model's part of a report: what it read, and its curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mickle.figures import COLOURS, Figure, Line, Panel
from mickle.results import Finding, Section, Table, facts


def training_section(folder: Path, summary: dict[str, Any]) -> Section:
    """Loss, learning rate and gradient norm over the steps, from the events in ``metrics.jsonl``."""
    events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    trained = [event for event in events if event["event"] == "trained"]
    evaluated = [event for event in events if event["event"] == "evaluated"]
    lead = (
        f"{'An encoder' if summary.get('objective') == 'masked' else 'A decoder'} of "
        f"{summary.get('parameters', 0):,} parameters was trained for {len(trained):,} steps on "
        f"{summary.get('tokens_read', 0):,} tokens."
    )
    lead = " ".join([lead, stopped_early(summary)]).rstrip()
    drawn = [figure.svg() for figure in _curves(trained, evaluated)] if len(trained) > 1 else []
    return Section("The training", lead, drawn, [Table(("", ""), facts(summary))])


def stopped_early(summary: dict[str, Any]) -> str:
    """Where and why a training ended before its last step, as a sentence; "" where it did not."""
    why = summary.get("stopped", "")
    return f"It {why}." if why else ""


def training_findings(summary: dict[str, Any]) -> list[Finding]:
    """How large the model is, and how much it read."""
    counts = (("parameters", "parameters"), ("tokens_read", "tokens seen in training"))
    return [Finding(_count(summary.get(name, 0)), label) for name, label in counts]


def _count(number: float) -> str:
    for size, word in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f}{word}"
    return f"{number:,.0f}"


def _curves(trained: list[dict[str, Any]], evaluated: list[dict[str, Any]]) -> list[Figure]:
    steps, losses, rates, norms = (
        [event[name] for event in trained] for name in ("step", "loss", "learning_rate", "gradient_norm")
    )
    held = [(e["step"], e["values"]["heldout_loss"]) for e in evaluated if "heldout_loss" in e["values"]]
    lines = [
        Line(steps, losses, colour=COLOURS[0], width=0.6, alpha=0.35),
        Line(steps, _smooth(losses), "training", colour=COLOURS[0], width=1.6),
    ]
    if held:
        at, found = zip(*held)
        lines.append(Line(at, found, "held out", "o-", COLOURS[1], size=3))
    loss = Panel("step", "loss (nats per token)", lines, grid=True, legend=9)
    norm = Panel(y="gradient norm", lines=[Line(steps, norms, colour=COLOURS[3], width=0.6)])
    rate = Panel("step", "learning rate", [Line(steps, rates, "learning rate", colour=COLOURS[2])], beside=norm)
    return [Figure((loss,), height=2.9), Figure((rate,), height=1.8)]


def _smooth(values: list[float], share: float = 0.03) -> list[float]:
    """Exponential mean over about ``share`` of the run, started without bias."""
    keep = 1 - 1 / max(2.0, share * len(values))
    out, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        out.append(mean / weight)
    return out
