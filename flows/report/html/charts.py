"""Charts of the report as SVG, drawn by matplotlib. Numbers and our own words go in, never a label of a delivery.

Charts are narrow, so that their letters stay readable on a phone. Colours are names of variables of report.css: the page
is shown in light, in dark and in print.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Drawing

INK, MUTED, LINE, FIRST, SECOND, BAD = COLOURS = tuple(f"#0a0a{i:02x}" for i in range(6))
NAMES = ("ink", "muted", "line", "first", "second", "bad")  # of the variables, in the order of COLOURS
FACE = "DejaVu Sans"  # comes with matplotlib, which measures with it; the page then shows its own font
SETTINGS: Any = {
    "svg.fonttype": "none",  # text stays text: to be searched, read aloud, and drawn in the reader's font
    "svg.hashsalt": "report",  # the same numbers give the same bytes
    "text.parse_math": False,
    "font.family": [FACE],
    "font.size": 9,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
WIDTH = 4.2  # inches of 72 units each
ROW = 0.27  # inches per bar
MOST = 30  # bars of one chart
# Parts of matplotlib's file that a page does not need, or that would reach beyond their picture.
UNWANTED = re.compile(
    rf"<metadata>.*?</metadata>|<style.*?</style>|font-family: '{FACE}'(?:, sans-serif)?; |(?<=<g) id=\"[^\"]*\"",
    re.DOTALL,
)


@contextmanager
def drawn(height: float, alt: str) -> Iterator[tuple[Axes, list[Markup]]]:
    """Axes to draw on, and a list that holds the picture afterwards. `alt` says what it shows to those who cannot see it."""
    with matplotlib.rc_context(SETTINGS):
        drawing = Drawing(figsize=(WIDTH, height), layout="constrained")
        made: list[Markup] = []
        yield drawing.add_subplot(), made
        made.append(svg(drawing, alt))


def svg(drawing: Drawing, alt: str) -> Markup:
    """The picture as an element of the page: without the head of a file and with the colours of the page."""
    file = io.StringIO()
    FigureCanvasSVG(drawing).print_svg(file, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = UNWANTED.sub("", file.getvalue())
    box, inside = re.search(r'<svg [^>]*(viewBox="[^"]*")[^>]*>(.*)', text, re.DOTALL).groups()  # type: ignore[union-attr]  # matplotlib writes one
    text = f'<svg {box} role="img" aria-label="{escape(alt)}">{inside}'
    for colour, name in zip(COLOURS, NAMES, strict=True):
        text = text.replace(colour, f"var(--{name})")
    return Markup(text)


def bars(
    names: Sequence[str],
    values: Sequence[float],
    *,
    alt: str,
    texts: Sequence[str],
    colours: Sequence[str] = (),
    ends: Sequence[tuple[float, float] | None] = (),
) -> Markup:
    """Horizontal bars from zero, the first on top, each with a text beside it and, where `ends` has them, an interval."""
    count = min(len(values), MOST)
    place = range(count)
    with drawn(0.35 + ROW * count, alt) as (axes, made):
        axes.barh(place, values[:count], height=0.62, color=colours[:count] or FIRST)
        reach = list(values[:count])
        for i, end in enumerate(ends[:count]):
            if end is not None:
                axes.plot(end, (i, i), color=INK, linewidth=1.2, marker="|", markersize=5)
                reach[i] = max(values[i], end[1])
        low, high = min(0.0, *values[:count], *(end[0] for end in ends[:count] if end)), max(0.0, *reach)
        span = (high - low) or 1.0
        for i in place:
            axes.text(max(reach[i], 0) + 0.02 * span, i, texts[i], va="center", color=MUTED)
        axes.set_yticks(place, names[:count])
        axes.set_xlim(low - 0.03 * span * (low < 0), high + 0.3 * span)
        axes.set_ylim(count - 0.4, -0.6)
        _without_frame(axes, zero=low < 0)
    return made[0]


def columns(names: Sequence[str], series: Mapping[str, Sequence[float | None]], *, alt: str) -> Markup:
    """Pairs of vertical bars, one bar of each of two series of shares."""
    with drawn(2.6, alt) as (axes, made):
        for (name, values), shift, colour in zip(series.items(), (-0.2, 0.2), (FIRST, SECOND), strict=True):
            place = [each + shift for each in range(len(names))]
            axes.bar(place, [each or 0 for each in values], 0.37, color=colour, label=name)
            for x, value in zip(place, values, strict=True):
                text = "-" if value is None else f"{value:.0%}"
                axes.text(x, (value or 0) + 0.015, text, ha="center", fontsize=7.5, color=MUTED)
        axes.set_xticks(range(len(names)), names)
        _shares(axes)
        _legend(axes)
    return made[0]


def stack(names: Sequence[str], series: Mapping[str, Sequence[int]], *, alt: str, xlabel: str) -> Markup:
    """Vertical bars of two series of counts on top of each other."""
    with drawn(2.6, alt) as (axes, made):
        below = [0] * len(names)
        for (name, counts), colour in zip(series.items(), (FIRST, BAD), strict=True):
            axes.bar(range(len(names)), counts, 0.86, bottom=below, color=colour, label=name)
            below = [one + other for one, other in zip(below, counts, strict=True)]
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel(xlabel)
        axes.set_ylabel("photos")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _legend(axes)
    return made[0]


def reliability(rows: Sequence[Mapping[str, Any]], *, alt: str) -> Markup:
    """The share of right answers against the probability that the model gave them; larger points stand for more photos."""
    said, right = ([row[name] for row in rows] for name in ("mean probability", "right"))
    most = max(row["photos"] for row in rows)
    with drawn(3.4, alt) as (axes, made):
        axes.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle="--", label="right as often as it says")
        axes.plot(said, right, color=FIRST, linewidth=1, marker=".", label="this model")
        axes.scatter(said, right, [12 + 90 * row["photos"] / most for row in rows], color=FIRST, zorder=3)
        axes.set_xlabel("probability that the model says")
        axes.set_ylabel("share of right answers")
        axes.xaxis.set_major_formatter(_percent)
        axes.set_xlim(0, 1.02)
        _shares(axes)
        _legend(axes)
    return made[0]


def _percent(value: float, _: object = None) -> str:
    return f"{value:.0%}"


def _shares(axes: Axes) -> None:
    axes.set_ylim(0, 1.06)
    axes.yaxis.set_major_formatter(_percent)
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, labelcolor=INK, borderaxespad=0.2)


def _without_frame(axes: Axes, *, zero: bool) -> None:
    """Leaves only what a bar needs: its name, and a line at zero if bars lie on both sides of it."""
    for side in ("bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.axvline(0, color=INK if zero else LINE, linewidth=1)
