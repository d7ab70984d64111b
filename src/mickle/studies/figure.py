"""The figure of a study: every comparison's interval as a share of the paper's effect, on one axis."""

from typing import Any

from mickle import figures
from mickle.studies.markdown import measured_effect, verdict_words

COLOURS = {
    "reproduced": "#2e9e5b",
    "partly": "#c98a00",
    "no effect seen": "#5b8def",
    "too small to tell": figures.INK,
    "indicative": figures.INK,
    "opposite": "#d9534f",
}
FARTHEST = 4.0  # in paper's effects; what lies beyond is drawn at the edge


def draw(result: dict[str, Any]) -> str:
    """An SVG: zero is "no effect", one is the paper's, seeds are small dots; transparent, text stays text."""
    rows = list(zip(result["declaration"]["comparisons"], result["comparisons"]))

    def paint(axes: Any) -> None:
        for height, (declared, row) in enumerate(reversed(rows)):
            draw_row(axes, height, declared, row)
        axes.axvline(0, color=figures.INK, linewidth=0.8)
        axes.axvline(1, color=figures.INK, linewidth=0.8, linestyle="--")
        axes.set_yticks([])
        axes.set_ylim(-0.4, len(rows) - 0.2)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -FARTHEST), min(max(high, 1.15), FARTHEST))
        for height, (declared, row) in enumerate(reversed(rows)):
            label_row(axes, height, declared, row)
        axes.set_xlabel("share of the paper's effect (1: as in the paper)")
        axes.spines["left"].set_visible(False)

    return figures.draw(paint, height=0.8 + 0.65 * len(rows))


def draw_row(axes: Any, height: int, declared: dict[str, Any], row: dict[str, Any]) -> None:
    """One comparison: dots for seeds, a bar for the interval, a large dot for its centre."""
    if row["benefit"] is None:
        axes.text(0, height, " not measured", va="center", fontsize=8)
        return
    colour = COLOURS[row["verdict"]]
    claimed = row["claimed_benefit"]
    shares = [within(pair["benefit"] / claimed) for pair in row["pairs"]]
    axes.plot(shares, [height] * len(shares), ".", color=colour, alpha=0.45, markersize=5)
    if row["low"] is not None:
        ends = [within(row["low"] / claimed), within(row["high"] / claimed)]
        axes.plot(ends, [height, height], color=colour, linewidth=2.5, solid_capstyle="butt")
    centre = within(row["benefit"] / claimed)
    axes.plot([centre], [height], "o", color=colour, markersize=6)


def label_row(axes: Any, height: int, declared: dict[str, Any], row: dict[str, Any]) -> None:
    """What is compared, and below it effect and verdict in words, over a row, at the left where any length has room."""
    told = [(22, declared["name"], figures.INK)]
    if row["benefit"] is not None:
        label = f"{measured_effect(declared, row)}: {verdict_words(declared, row)}"
        told.append((10, label, COLOURS[row["verdict"]]))
    for above, text, colour in told:
        place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        axes.annotate(text, (0, height), (0, above), fontsize=9, color=colour, **place)


def within(share: float) -> float:
    """The share, or the edge of the figure when it lies beyond."""
    return max(-FARTHEST, min(FARTHEST, share))
