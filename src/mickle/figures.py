"""Figures as small SVGs that read well on white and on dark pages: transparent, grey ink, text that stays text."""

from __future__ import annotations

import io
from collections.abc import Callable

INK = "#808080"
COLOURS = ("#3b82f6", "#e0803a", "#2e9e5b", "#b05ccf", "#c9a100", "#d9534f")


def draw(paint: Callable[..., None], width: float = 7.2, height: float = 2.6, columns: int = 1) -> str:
    """Call ``paint`` with fresh matplotlib axes, one for each column; the SVG, the same bytes for the same picture."""
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "mickle",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.prop_cycle": cycler(color=COLOURS),
        "legend.frameon": False,
        "grid.alpha": 0.25,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(width, height), layout="constrained")
        panels = figure.subplots(1, columns, squeeze=False)[0]
        for axes in panels:
            axes.spines[["top", "right"]].set_visible(False)
        paint(*panels)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return stream.getvalue()
