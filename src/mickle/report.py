"""One self-contained HTML page from finished folders: what was asked, what was made, what it cost, how to repeat it.

The page needs no network, no script and under 500 kB; whatever pages or models wrote is escaped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mickle import figures, storage
from mickle.report_corpus import corpus_section
from mickle.report_parts import Section, Table
from mickle.storage import Manifest

LARGEST = 500_000  # bytes of the page
LONGEST_TEXT = 1_500  # characters shown of any text


@dataclass(frozen=True)
class Finding:
    """One number to see first."""

    value: str
    label: str


def write_report(target: Path, title: str, folders: dict[str, Path], command: str = "") -> Path:
    """Write the page for ``folders`` (step name -> whole folder) to ``target``; returns ``target``."""
    storage.write_text(target, render(title, folders, command))
    return target


def stamp(of: Path | dict[str, Path]) -> str:
    """A word for the folders a page was made from: of a page already written, or of folders."""
    if isinstance(of, dict):
        names = json.dumps({name: str(path) for name, path in sorted(of.items())})
        return hashlib.sha256(names.encode()).hexdigest()[:16]
    if not of.is_file():
        return ""
    found = re.search(r'name="mickle-stamp" content="([0-9a-f]+)"', of.read_text(encoding="utf-8")[:2000])
    return found[1] if found else ""


def render(title: str, folders: dict[str, Path], command: str = "") -> str:
    """The page as text."""
    import jinja2

    manifests = {name: storage.open_folder(path) for name, path in folders.items()}
    sections = [
        section
        for name, path in folders.items()
        if (make := SECTIONS.get(manifests[name].kind)) is not None and (section := make(path, manifests[name]))
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mickle", "."), autoescape=True, undefined=jinja2.StrictUndefined
    )
    # As an image an SVG can run nothing and fetch nothing, whoever wrote it.
    environment.filters["image"] = lambda svg: "data:image/svg+xml," + quote(svg, safe=" ='():/,;")
    return environment.get_template("report.html").render(
        title=title,
        stamp=stamp(folders),
        command=command,
        findings=_findings(folders, manifests),
        sections=sections,
        steps=_steps(folders, manifests),
        settings={name: _settings(path) for name, path in folders.items()},
        machine=next((m.meta.get("machine", {}) for m in manifests.values()), {}),
        created=max((m.meta.get("created", "") for m in manifests.values()), default=""),
    )


def _findings(folders: dict[str, Path], manifests: dict[str, Manifest]) -> list[Finding]:
    found: list[Finding] = []
    for name in folders:
        summary = manifests[name].meta.get("summary", {})
        kind = manifests[name].kind
        if kind == "corpus":
            found.append(Finding(f"{summary.get('kept', 0):,}", f"pages kept of {summary.get('records', 0):,}"))
            found.append(Finding(f"{summary.get('kept_bytes', 0) / 1e6:.1f} MB", "of main text"))
        elif kind == "model":
            found.append(Finding(_count(summary.get("parameters", 0)), "parameters"))
            found.append(Finding(_count(summary.get("tokens_read", 0)), "tokens seen in training"))
        elif kind == "evaluation":
            found += _evaluation_findings(summary)
        elif kind == "tuned":
            found += _tuned_findings(summary)
        elif kind == "compressed":
            found.append(Finding(f"{summary.get('bits_per_weight', 0):.2f}", "bits a weight, all counted"))
        elif kind == "exported":
            found.append(Finding(f"{summary.get('same_tokens', 0):.1%}", "of first choices equal to the source's"))
    seconds = sum(m.meta.get("seconds", 0.0) for m in manifests.values())
    peak = max((m.meta.get("peak_memory_bytes", 0) for m in manifests.values()), default=0)
    found.append(Finding(_duration(seconds), "from pages to this report" if len(folders) > 1 else "time taken"))
    found.append(Finding(f"{peak / 1e9:.2f} GB", "peak memory"))
    return found


def _evaluation_findings(summary: dict[str, Any]) -> list[Finding]:
    if "bits_per_byte" not in summary:
        return []
    found = [Finding(f"{summary['bits_per_byte']:.3f}", "bits per byte on pages never seen")]
    if summary.get("baselines"):
        name, value = _best(summary["baselines"])
        found.append(Finding(f"{value:.3f}", f"best trivial baseline ({name})"))
    return found


def _tuned_findings(summary: dict[str, Any]) -> list[Finding]:
    names = {"task": "nats a token on the task, before and after", "general": "on general text: what it forgot"}
    return [
        Finding(f"{summary[name]['before']:.2f} → {summary[name]['after']:.2f}", label)
        for name, label in names.items()
        if summary.get(name)
    ]


def _best(baselines: dict[str, float]) -> tuple[str, float]:
    return min(baselines.items(), key=lambda item: item[1])


def _steps(folders: dict[str, Path], manifests: dict[str, Manifest]) -> Table:
    rows = []
    for name, path in folders.items():
        meta = manifests[name].meta
        forecast = meta.get("summary", {}).get("forecast") or {}
        rows.append(
            (
                name,
                str(meta.get("identity", {}).get("verb", "")),
                path.name,
                _duration(meta.get("seconds", 0.0)),
                _duration(forecast["seconds"]) if forecast.get("seconds") else "–",
                f"{meta.get('peak_memory_bytes', 0) / 1e9:.2f} GB",
                f"{forecast['memory_bytes'] / 1e9:.2f} GB" if forecast.get("memory_bytes") else "–",
                f"{sum(file.bytes for file in manifests[name].files.values()) / 1e6:.1f} MB",
                manifests[name].digest[:12],
            )
        )
    headings = ("step", "verb", "folder", "took", "forecast", "memory", "forecast", "size", "content")
    return Table(headings, rows, frozenset({3, 4, 5, 6, 7}))


def _settings(folder: Path) -> str:
    path = folder / "settings.yaml"
    return path.read_text(encoding="utf-8")[:8000] if path.is_file() else ""


def _model(folder: Path, manifest: Manifest) -> Section:
    summary = manifest.meta.get("summary", {})
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    trained = [event for event in events if event["event"] == "trained"]
    evaluated = [event for event in events if event["event"] == "evaluated"]
    lead = (
        f"{'An encoder' if summary.get('objective') == 'masked' else 'A decoder'} of "
        f"{summary.get('parameters', 0):,} parameters was trained for {len(trained):,} steps on "
        f"{summary.get('tokens_read', 0):,} tokens."
    )
    rows = [(name.replace("_", " "), _cell(value)) for name, value in summary.items() if _plain(value)]
    return Section("The training", lead, tuple(_curves(trained, evaluated)), (Table(("", ""), rows),))


def _curves(trained: list[dict[str, Any]], evaluated: list[dict[str, Any]]) -> list[str]:
    if len(trained) < 2:
        return []
    steps = [event["step"] for event in trained]

    def loss(axes: Any) -> None:
        axes.plot(steps, [e["loss"] for e in trained], linewidth=0.6, alpha=0.35, color=figures.COLOURS[0])
        axes.plot(
            steps, _smooth([e["loss"] for e in trained]), linewidth=1.6, color=figures.COLOURS[0], label="training"
        )
        held = [(e["step"], e["values"]["heldout_loss"]) for e in evaluated if "heldout_loss" in e["values"]]
        if held:
            axes.plot(*zip(*held), "o-", markersize=3, color=figures.COLOURS[1], label="held out")
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats per token)")
        axes.grid(True)
        axes.legend()

    def rate(axes: Any) -> None:
        axes.plot(steps, [e["learning_rate"] for e in trained], color=figures.COLOURS[2], label="learning rate")
        axes.set_xlabel("step")
        axes.set_ylabel("learning rate")
        other = axes.twinx()
        other.plot(steps, [e["gradient_norm"] for e in trained], linewidth=0.6, color=figures.COLOURS[3])
        other.set_ylabel("gradient norm")
        other.spines["top"].set_visible(False)

    return [figures.draw(loss, height=2.9), figures.draw(rate, height=1.8)]


def _smooth(values: list[float], share: float = 0.03) -> list[float]:
    """Exponential mean over about ``share`` of the run, started without bias."""
    keep = 1 - 1 / max(2.0, share * len(values))
    out, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + 1 - keep
        out.append(mean / weight)
    return out


def _evaluation(folder: Path, manifest: Manifest) -> Section:
    summary = manifest.meta.get("summary", {})
    drawn = tuple(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.svg"))[:3])
    rows = [(name.replace("_", " "), _cell(value)) for name, value in summary.items() if _plain(value)]
    bars = sorted(summary.get("baselines", {}).items(), key=lambda item: item[1])
    rows += [(f"baseline: {name}, bits per byte", _cell(value)) for name, value in bars]
    return Section("The evaluation", _sentence(summary), drawn, (Table(("measure", "value"), rows, frozenset({1})),))


def _sentence(summary: dict[str, Any]) -> str:
    if not summary.get("baselines"):
        return "Measured on pages the model has not seen."
    name, best = _best(summary["baselines"])
    share = 1 - summary["bits_per_byte"] / best
    much = f"{share:.0%} fewer bits than" if share > 0 else f"{-share:.0%} more bits than"
    low, high = summary.get("bits_per_byte_interval", [summary["bits_per_byte"]] * 2)
    if low <= best <= high:
        end = f"That is within the interval over pages, {low:.2f} to {high:.2f} bits a byte: neither is clearly better."
    else:
        end = "The model is the better one." if share > 0 else "The baseline is the better one."
    return f"On pages it has not seen, the model needs {much} the best trivial baseline ({name}). {end}"


def _samples(folder: Path, manifest: Manifest) -> Section:
    return Section(
        "Samples",
        "What the model writes. A small model writes the form of its pages before their sense.",
        texts=_answers(folder / "samples.jsonl"),
    )


def _answers(file: Path) -> tuple[tuple[str, str, str], ...]:
    """The first texts of a file of samples, each under its prompt."""
    texts: list[tuple[str, str, str]] = []
    for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()[:6]):
        texts.append(("prompt", "prompt", row["prompt"] or "(a new document)"))
        if "untrained" in row:
            texts.append(("before training", "before", row["untrained"][:LONGEST_TEXT]))
        texts.append(("after training", "after", row["text"][:LONGEST_TEXT]))
    return tuple(texts)


def _study(folder: Path, manifest: Manifest) -> Section:
    drawn = tuple(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.svg")))
    rows = [(name, _cell(value)) for name, value in manifest.meta.get("summary", {}).items() if name != "text"]
    return Section("The study", "A paper's claim, measured here.", drawn, (Table(("", ""), rows),))


def _tuned(folder: Path, manifest: Manifest) -> Section:
    """What tuning gave and what it broke, its curve, and answers before and after."""
    summary = manifest.meta.get("summary", {})
    rows = []
    for name, label in (
        ("task", "the task, held out"),
        ("general", f"general text ({summary.get('general_text', '')})"),
    ):
        if found := summary.get(name):
            low, high = found["interval"]
            change = f"{found['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
            rows.append((label, f"{found['before']:.4f}", f"{found['after']:.4f}", change, f"{found['texts']:,}"))
    headings = ("nats a token", "before", "after", "difference (95 % over texts)", "texts")
    plain = [(name.replace("_", " "), _cell(value)) for name, value in summary.items() if _plain(value)]
    tables = (Table(headings, rows, frozenset({1, 2, 3, 4})), Table(("", ""), plain))
    lead = (
        f"{summary.get('training_examples', 0):,} examples taught {summary.get('trained_parameters', 0):,} of "
        f"{summary.get('parameters', 0):,} parameters ({summary.get('method', '')})."
    )
    drawn = tuple(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.svg"))[:3])
    return Section("The tuning", lead, drawn, tables, _answers(folder / "samples.jsonl"))


def _mixture(folder: Path, manifest: Manifest) -> Section:
    lead = "How much of each domain to read: weights of a small robust proxy, averaged over its run (DoReMi)."
    return _drawn("The mixture", lead, folder, manifest)


def _planned(folder: Path, manifest: Manifest) -> Section:
    return _drawn(
        "The plan", "What this much data and this budget can give, before any of it is spent.", folder, manifest
    )


def _compressed(folder: Path, manifest: Manifest) -> Section:
    lead = "The same model in few bits: what each layer takes, and how far its output moved on the calibration text."
    return _drawn("The compression", lead, folder, manifest)


def _exported(folder: Path, manifest: Manifest) -> Section:
    lead = "The exported model was opened anew and run beside its source; this is how far they are apart."
    return _drawn("The export", lead, folder, manifest)


def _drawn(title: str, lead: str, folder: Path, manifest: Manifest) -> Section:
    """A folder's figures and the plain values of its summary."""
    summary = manifest.meta.get("summary", {})
    drawn = tuple(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.svg"))[:3])
    rows = [(name.replace("_", " "), _cell(value)) for name, value in summary.items() if _plain(value)]
    return Section(title, lead, drawn, (Table(("", ""), rows, frozenset({1})),))


SECTIONS: dict[str, Callable[[Path, Manifest], Section]] = {
    "corpus": corpus_section,
    "model": _model,
    "evaluation": _evaluation,
    "mixture": _mixture,
    "plan": _planned,
    "samples": _samples,
    "study": _study,
    "tuned": _tuned,
    "compressed": _compressed,
    "exported": _exported,
}


def _plain(value: Any) -> bool:
    return isinstance(value, (str, int, float))


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)[:200]


def _count(number: float) -> str:
    for size, word in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.2f}{word}"
    return f"{number:,.0f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
