"""Figures as data, and as small SVGs that read well on white and on dark pages: transparent, grey ink, text as text.

A :class:`Figure` is panels side by side; a :class:`Panel` is lines over a pair of axes, or named bars. What fits
neither is painted by a function of matplotlib's axes, which :func:`draw` calls.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

INK = "#808080"
COLOURS = ("#3b82f6", "#e0803a", "#2e9e5b", "#b05ccf", "#c9a100", "#d9534f")
Numbers = Sequence[float]


@dataclass(frozen=True)
class Line:
    """Values ``y`` over ``x``, as long: a line, or dots where ``style`` (matplotlib's) says so.

    ``band`` is the lower and upper edge of a shade around it, ``bars`` the ends of a bar at each point; ``names`` stand
    beside the points. Without a colour it takes the next of :data:`COLOURS`.
    """

    x: Numbers
    y: Numbers
    label: str | None = None
    style: str = "-"
    colour: str | None = None
    width: float | None = None
    size: float | None = None
    alpha: float | None = None
    band: tuple[Numbers, Numbers] | None = None
    shade: float = 0.2  # how opaque the band is
    bars: tuple[Numbers, Numbers] | None = None
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Rule:
    """A straight line across the panel, at one ``x`` or at one ``y``."""

    x: float | None = None
    y: float | None = None
    style: str = "--"
    width: float | None = 1.0
    label: str | None = None


@dataclass(frozen=True)
class Bars:
    """Named values above each other: bars with their value, or dots where there are intervals."""

    names: Sequence[str]
    values: Numbers
    colours: Sequence[str] = ()
    intervals: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Panel:
    """One pair of axes, named ``x`` and ``y``. ``x_log`` and ``y_log`` are bases; ``span`` is a named stretch of x.

    ``legend`` is the size of its letters, 0 for none; it stands above the panel, off its lines, or on its right where
    it is outside. ``beside`` has a scale of its own on the right.
    """

    x: str = ""
    y: str = ""
    lines: Sequence[Line] = ()
    bars: Bars | None = None
    rules: Sequence[Rule] = ()
    span: tuple[float, float, str] | None = None
    title: str = ""
    title_size: float = 9
    x_log: int = 0
    y_log: int = 0
    x_limits: tuple[float, float] | None = None
    y_limits: tuple[float, float] | None = None
    whole_x: bool = False  # ticks at whole numbers only
    grid: bool = False
    legend: float | str = 0
    legend_outside: bool = False
    beside: Panel | None = None


@dataclass(frozen=True)
class Figure:
    """Panels side by side, and the size of all in inches."""

    panels: tuple[Panel, ...]
    width: float = 6
    height: float = 2.6

    def svg(self) -> str:
        """The picture, the same bytes for the same data."""

        def paint(*axes: Any) -> None:
            for own, panel in zip(axes, self.panels, strict=True):
                _paint(own, panel)

        return draw(paint, self.width, self.height, len(self.panels))


def _paint(axes: Any, panel: Panel) -> None:
    if panel.span:
        low, high, label = panel.span
        axes.axvspan(low, high, color=INK, alpha=0.15, label=label)
    for line in panel.lines:
        _paint_line(axes, line)
    if panel.bars:
        _paint_bars(axes, panel.bars)
    for rule in panel.rules:
        across, at = (axes.axvline, rule.x) if rule.x is not None else (axes.axhline, rule.y)
        across(at, color=INK, linestyle=rule.style, linewidth=rule.width, label=rule.label)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.set_title(panel.title, fontsize=panel.title_size)
    if panel.x_log:
        axes.set_xscale("log", base=panel.x_log)
    if panel.y_log:
        axes.set_yscale("log", base=panel.y_log)
    axes.set(**{name: limits for name, limits in (("xlim", panel.x_limits), ("ylim", panel.y_limits)) if limits})
    if panel.whole_x:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if panel.grid:
        axes.grid(True)
    if panel.legend and panel.legend_outside:
        axes.legend(fontsize=panel.legend, loc="center left", bbox_to_anchor=(1, 0.5))
    elif panel.legend:
        legend_above(axes)
    if panel.beside:
        other = axes.twinx()
        other.spines["top"].set_visible(False)
        _paint(other, panel.beside)


def legend_above(axes: Any) -> None:
    """A legend over the axes, off the lines, at most three names in a row; a title stands above it."""
    count = len(axes.get_legend_handles_labels()[1])
    axes.legend(
        fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(3, count), borderaxespad=0.3, columnspacing=1.2
    )
    if axes.get_title():
        axes.set_title(axes.get_title(), fontsize=axes.title.get_fontsize(), pad=6 + 16 * -(-count // 3))


def _paint_line(axes: Any, line: Line) -> None:
    look = {"color": line.colour, "linewidth": line.width, "markersize": line.size, "alpha": line.alpha}
    given = {name: value for name, value in look.items() if value is not None}
    (drawn,) = axes.plot(line.x, line.y, line.style, label=line.label, **given)
    if line.band:
        axes.fill_between(line.x, *line.band, alpha=line.shade, facecolor=drawn.get_color())
    if line.bars:
        axes.vlines(line.x, *line.bars, color=drawn.get_color())
    for name, *place in zip(line.names, line.x, line.y):
        axes.annotate(name, place, (3, 3), textcoords="offset points", fontsize=7)


def _paint_bars(axes: Any, bars: Bars) -> None:
    if not bars.intervals:
        drawn = axes.barh(bars.names, bars.values, color=bars.colours or None)
        axes.bar_label(drawn, fmt="%.2f", padding=3)
        return
    pairs = list(zip(bars.values, bars.intervals, strict=True))
    below = [max(0.0, value - low) for value, (low, _) in pairs]
    above = [max(0.0, high - value) for value, (_, high) in pairs]
    axes.errorbar(bars.values, range(len(pairs)), xerr=[below, above], fmt="o")
    axes.set_yticks(range(len(pairs)), bars.names)


def draw(paint: Callable[..., None], width: float = 6, height: float = 2.6, columns: int = 1) -> str:
    """Call ``paint`` with fresh matplotlib axes, one for each column; the SVG, the same bytes for the same picture."""
    import matplotlib
    from cycler import cycler
    from matplotlib import figure

    settings = {
        "svg.fonttype": "none",
        "svg.hashsalt": "mickle",
        "font.family": "sans-serif",
        "font.size": 10.5,
        "axes.prop_cycle": cycler(color=COLOURS),
        "legend.frameon": False,
        "grid.alpha": 0.25,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with matplotlib.rc_context(settings):
        canvas = figure.Figure(figsize=(width, height), layout="constrained")
        # Parts of equal width, so that a narrow page can show one below the other (`panels_of`).
        panels = [part.subplots() for part in canvas.subfigures(1, columns, squeeze=False)[0]]
        for axes in panels:
            axes.spines[["top", "right"]].set_visible(False)
        paint(*panels)
        stream = io.StringIO()
        canvas.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return stream.getvalue().replace("<svg ", f'<svg data-panels="{columns}" ', 1)


def panels_of(svg: str) -> list[str]:
    """Each panel of a picture that :func:`draw` made as a picture of its own, from the left; any other as it is."""
    found = re.search(r'<svg data-panels="([2-9])"[^>]*? width="([\d.]+)pt"', svg)
    if not found:
        return [svg]
    count, wide = int(found[1]), float(found[2])
    start, size = found.start(), wide / count

    def part(number: int) -> str:
        head, rest = svg[start:].split(">", 1)
        head = re.sub(r' width="[\d.]+pt"', f' width="{size:g}pt"', head)
        head = re.sub(r' viewBox="0 0 [\d.]+ ([\d.]+)"', rf' viewBox="{number * size:g} 0 {size:g} \1"', head)
        return f"{svg[:start]}{head}>{rest}"

    return [part(number) for number in range(count)]
