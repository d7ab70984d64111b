"""Draw the curves of published studies: ``python docs/curves.py`` reads docs/results/*.json, writes *-curves.svg.

A study's cells may hold lists; two of them are a curve, named here. Lines are means over seeds, bands the least and the
largest seed.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

from mickle import figures, storage

RESULTS = Path(__file__).parent / "results"
CURVES = {  # study -> (x, y, label of x, label of y, the world, or None for one figure of each)
    "sophia": ("evaluated", "losses", "step", "held-out loss (nats per byte)", "pages"),
    "nope": ("lengths", "exact", "length", "exact match", None),
    "doremi": ("evaluated", "losses", "step", "held-out loss of real domains (nats per byte)", None),
    "token_crisis": ("evaluated", "accuracies", "step", "held-out accuracy", "many"),
    "dynamic_masking": ("evaluated", "losses", "step", "loss at 15 % (nats a hidden token)", "docs"),
    "dropout_double_descent": ("sizes", "curve", "size", "error", None),
}
LOGARITHMIC = ("dropout_double_descent",)  # both axes


def curves(result: dict[str, Any], x: str, y: str) -> dict[str, dict[str, list[dict[float, float]]]]:
    """world -> arm -> one {x: y} for each reported seed."""
    found: dict[str, dict[str, list[dict[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for run in result["runs"]:
        measured = run["measured"]
        if run["phase"] == "reported" and x in measured:
            found[run["cell"]["world"]][run["cell"]["arm"]].append(dict(zip(measured[x], measured[y], strict=True)))
    return found


def draw(arms: dict[str, list[dict[float, float]]], title: str, x_label: str, y_label: str, logarithmic: bool) -> str:
    """One figure: a line and a band for each arm."""

    def paint(axes: Any) -> None:
        for arm, seeds in arms.items():
            places = sorted(set.intersection(*map(set, seeds)))
            values = [[seed[place] for seed in seeds] for place in places]
            axes.plot(places, [sum(v) / len(v) for v in values], label=arm, linewidth=1.6)
            axes.fill_between(places, [min(v) for v in values], [max(v) for v in values], alpha=0.12)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.set_title(title, fontsize=9)
        if logarithmic:
            axes.set_xscale("log")
            axes.set_yscale("log")
        axes.grid(True)
        axes.legend(fontsize=8)

    return figures.draw(paint, height=3.2)


SIZES = {  # lines of SpQR's figure: arms by size
    "rounding": "rtn-",
    "GPTQ": "gptq-",
    "SpQR, 3 bits": "spqr-3",
    "SpQR, 4 bits": "spqr-4",
    "NF4": "nf4",
}


def error_against_bits(result: dict[str, Any]) -> str:
    """Rise of perplexity against stored bits a weight: each arm's mean over seeds, one line for each method."""
    found: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for run in result["runs"]:
        cell, measured = run["cell"], run["measured"]
        if run["phase"] == "reported" and cell["world"] == "decoder" and measured.get("increase_floored"):
            found[cell["arm"]].append((measured["bits"], measured["increase_floored"]))
    points = {arm: tuple(sum(v) / len(v) for v in zip(*seeds)) for arm, seeds in found.items()}

    def paint(axes: Any) -> None:
        for name, start in SIZES.items():
            line = sorted(point for arm, point in points.items() if arm.startswith(start))
            if line:
                axes.plot(*zip(*line), "o-", markersize=4, label=name)
        axes.axhline(1.0, linestyle="--", linewidth=0.8, color=figures.INK)
        axes.set_yscale("log")
        axes.set_xlabel("bits a weight, all that is stored")
        axes.set_ylabel("rise of perplexity (%)")
        axes.grid(True)
        axes.legend(fontsize=8)

    return figures.draw(paint, height=3.2)


def main() -> None:
    """Write every figure."""
    spqr = RESULTS / "spqr-full.json"
    if spqr.is_file():
        target = RESULTS / "spqr-full-curve.svg"
        storage.write_text(target, error_against_bits(storage.read_json(spqr)))
        print(target.relative_to(RESULTS.parent))
    for name, (x, y, x_label, y_label, world) in CURVES.items():
        path = RESULTS / f"{name}-full.json"
        if not path.is_file():
            continue
        result = storage.read_json(path)
        for found, arms in curves(result, x, y).items():
            if world in (None, found):
                end = "curves" if world else f"curves-{found}"
                target = RESULTS / f"{name}-full-{end}.svg"
                title = f"{name}: {found}"
                storage.write_text(target, draw(arms, title, x_label, y_label, name in LOGARITHMIC))
                print(target.relative_to(RESULTS.parent))


if __name__ == "__main__":
    main()
