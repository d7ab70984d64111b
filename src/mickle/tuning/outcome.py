"""What a tuning came to, as numbers, sentences, a table, a figure and samples: loss before and after on its task and on
general text, and memory against the forecast.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mickle.evaluation.loss import bootstrap_ratio
from mickle.figures import COLOURS, INK, Bars, Figure, Line, Numbers, Panel
from mickle.results import Finding, Section, Table, drawn, facts, json_lines
from mickle.sampling.sample import answers
from mickle.storage import write_text
from mickle.training.curves import stopped_early
from mickle.tuning.methods import TuningMethod

if TYPE_CHECKING:
    from mickle.data.records import Page

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


def add_bits(results: dict[str, Any], learnt: bytes, answers: bytes, pages: Sequence[Page]) -> None:
    """Add to the losses what they are in bits a byte, where text was predicted; and what lzma needs for the same
    ``answers`` when it has read all that the model had: what was ``learnt``, and the questions.
    """
    from mickle.evaluation.baselines import LARGEST_LZMA_TEXT, lzma_bytes

    if not answers or not results["task"]:
        return
    packed = lzma_bytes(answers, learnt[-LARGEST_LZMA_TEXT:])
    sizes = {"task": len(answers), "general": sum(len(page.text.encode("utf-8", "replace")) for page in pages)}
    for name, size in sizes.items():
        if found := results[name]:
            per_nat = found["tokens"] / math.log(2) / size
            found["bits_per_byte"] = {when: found[when] * per_nat for when in ("before", "after")}
    results["task"]["bits_per_byte"]["lzma"] = 8 * packed / len(answers)


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
    if bits := _bits(results):
        said.append(bits)
    memory = results["memory"]
    said.append(
        f"memory: peak {memory['peak_bytes'] / 1e9:.2f} GB, forecast {memory['forecast_bytes'] / 1e9:.2f} GB "
        f"({memory['peak_bytes'] / memory['forecast_bytes'] - 1:+.0%})"
    )
    return said


def _bits(results: dict[str, Any]) -> str:
    """Losses in bits a byte beside the compressor's, in a sentence; "" where no text was predicted."""
    if not (found := (results.get("task") or {}).get("bits_per_byte")):
        return ""
    said = f"held out, bits a byte: {found['before']:.3f} -> {found['after']:.3f}; lzma needs {found['lzma']:.3f}"
    return f"{said} after reading all examples and questions"


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
    bits = _bits(results)
    return "\n".join([table.markdown(), "", *([f"{bits[0].upper()}{bits[1:]}."] if bits else []), *right]) + "\n"


def draw(results: dict[str, Any], metrics: Path) -> str:
    """The training's loss, and bars of before and after, as SVG."""
    events = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    unit = f"nats a {results.get('unit', 'token')}"
    lines = [Line(*_points(events, "trained", lambda e: e["loss"]), "training", width=1, colour=COLOURS[0])]
    at, held = _points(events, "evaluated", lambda e: e["values"]["heldout_loss"])
    if "heldout_loss_at_start" in results:
        at, held = [0, *at], [results["heldout_loss_at_start"], *held]
    lines += [Line(at, held, "held out", "o-", COLOURS[1], size=3)] if held else []
    curve = Panel("step", f"loss ({unit})", lines, grid=True, legend=9)
    name, losses = in_unit(results)
    bars = list[tuple[str, float, str]]()
    for key, found in reversed(losses.items()):  # drawn from below
        label = "held out" if key == "task" else "general text"
        bars += [(f"{label}, after", found["after"], COLOURS[2]), (f"{label}, before", found["before"], COLOURS[0])]
        bars += [(f"{label}, lzma", found["lzma"], INK)] if "lzma" in found else []
    if not bars:
        return Figure((curve,), height=3).svg()
    named = Bars(*zip(*bars, strict=True))
    right = Panel(f"{name} (less is better)", bars=named, x_limits=(0, 1.15 * max(named.values)))
    return Figure((curve, right), width=9, height=3).svg()


def in_unit(results: dict[str, Any]) -> tuple[str, dict[str, dict[str, float]]]:
    """Losses before and after on task and general text, those that were measured, and their unit: bits a byte where
    text was predicted.
    """
    found = {key: results[key] for key in ("task", "general") if results.get(key)}
    if found and all("bits_per_byte" in losses for losses in found.values()):
        return "bits a byte", {key: losses["bits_per_byte"] for key, losses in found.items()}
    return f"nats a {results.get('unit', 'token')}", found


def _points(
    events: list[dict[str, Any]], kind: str, value: Callable[[dict[str, Any]], float]
) -> tuple[Numbers, Numbers]:
    """Steps of the events of a kind, and the value of each."""
    chosen = [event for event in events if event["event"] == kind]
    return [event["step"] for event in chosen], [value(event) for event in chosen]


def write(work: Path, results: dict[str, Any], metrics: Path, samples: list[dict[str, str]]) -> None:
    """Table, figure and samples into ``work``."""
    write_text(work / TABLE, as_table(results))
    write_text(work / FIGURE, draw(results, metrics))
    write_text(work / SAMPLES, json_lines(samples).encode("utf-8", "replace").decode("utf-8"))


def tuning_findings(summary: dict[str, Any]) -> list[Finding]:
    """Losses before and after, and a compressor's on the same answers."""
    name, losses = in_unit(summary)
    labels = {"task": f"{name}, held out, before and after", "general": f"{name}, general text: what it forgot"}
    found = [Finding(f"{loss['before']:.2f} → {loss['after']:.2f}", labels[key]) for key, loss in losses.items()]
    if lzma := losses.get("task", {}).get("lzma"):
        found.append(Finding(f"{lzma:.2f}", f"{name} that lzma needs, held out"))
    return found


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
    if bits := (summary.get("task") or {}).get("bits_per_byte"):
        lead += (
            f" For examples that it was not taught the model now needs {_less(bits, 'before')} bits than before, and "
            f"{_less(bits, 'lzma')} than lzma, which has read all that was taught and asked."
        )
    said = [stopped_early(summary), *(f"Warning: {message}." for message in summary.get("warnings", []))]
    lead = " ".join(filter(None, [lead, *said]))
    return Section("The tuning", lead, drawn(folder), tables, answers(folder / SAMPLES))


def _less(bits: dict[str, float], beside: str) -> str:
    """How many bits fewer, or more, the tuned model needs than another."""
    share = 1 - bits["after"] / bits[beside]
    return f"{abs(share):.0%} {'fewer' if share >= 0 else 'more'}"
