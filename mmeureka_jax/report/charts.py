"""The charts of a run's report, drawn as small SVGs with a text alternative for each."""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from mmeureka_jax.report.chart_groups import CHART_GROUPS, Chart, Panel, charts_of_benchmarks

Rows = Sequence[Mapping[str, Any]]

COLORS = ("#2f6db3", "#d1812c", "#3f8f5f", "#a8485b", "#6f5aa8", "#6b7785")
# Colours for which the page has its own shades, light and dark (template.html).
THEMED = {"#b8c0ca": "axis", "#52606d": "soft", "#e7ebf0": "grid", "#1f2933": "ink"} | {
    color: f"line-{number}" for number, color in enumerate(COLORS, start=1)
}
MAX_POINTS = 250  # per line; longer runs are averaged over equal stretches of steps
SMOOTH_FROM = 30  # points from which a moving average is drawn over the raw line
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, and in the font of the page
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#b8c0ca",
    "axes.labelcolor": "#52606d",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 5),
    "grid.color": "#e7ebf0",
    "grid.linewidth": 0.7,
    "xtick.color": "#52606d",
    "ytick.color": "#52606d",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}


def draw_charts(rows: Rows, off: frozenset[str] = frozenset()) -> dict[str, list[str]]:
    """Group title -> an HTML figure for each chart that the rows have data for.

    Args:
        off: metrics of parts that the run does not use: their lines are left out unless they move.
    """
    groups = {}
    of_benchmarks = charts_of_benchmarks({metric for row in rows for metric in row})
    for group, charts in {**CHART_GROUPS, "Public benchmarks": of_benchmarks}.items():
        figures = [figure for chart in charts if (figure := _draw(chart, rows, off))]
        if figures:
            groups[group] = figures
    return groups


def format_number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def series_of(rows: Rows, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that have a finite value of `metric`."""
    pairs = [(row["step"], row[metric]) for row in rows if isinstance(row.get(metric), int | float)]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)


def _draw(chart: Chart, rows: Rows, off: frozenset[str]) -> str | None:
    panels = []
    for panel in chart.panels:
        series = {metric: series_of(rows, metric) for metric in panel.series}
        data = {
            panel.series[metric]: xy
            for metric, xy in series.items()
            if metric not in off or len(xy[1]) and np.ptp(xy[1]) > 0
        }
        data = {label: (steps, values * panel.scale) for label, (steps, values) in data.items() if len(steps)}
        # A metric that is 0 all through the run (a rule of weight 0, an unused filter) is not worth a line, unless it
        # is the only one of the panel.
        used = {label: xy for label, xy in data.items() if np.any(xy[1])}
        if not used and len(panel.series) == 1 and panel.kind not in ("area", "count"):
            used = data
        if used:
            panels.append((panel, used))
    if not panels:
        return None

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": chart.title}):
        figure = Figure(figsize=(4.3, 2.4), layout="constrained")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[3, 2][: len(panels)])
        legends = []
        descriptions = []
        color = iter(COLORS * 2)
        for axes, (panel, data) in zip(grid[:, 0], panels, strict=True):
            colors = [next(color) for _ in data]
            (_draw_areas if panel.kind in ("area", "count") else _draw_lines)(axes, panel, data, colors)
            axes.set_ylabel("" if panel.unit == "%" else panel.unit)
            if panel.unit.startswith("%"):
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
            if panel.whole:
                axes.set_ylim(0, 100)
                axes.set_yticks((0, 50, 100) if len(panels) > 1 else (0, 25, 50, 75, 100))
            for (label, (steps, values)), shade in zip(data.items(), colors, strict=True):
                number = format_number(values.sum() if panel.kind == "count" else values[-1])
                unit = "&thinsp;%" if panel.unit.startswith("%") else " in all" if panel.kind == "count" else ""
                legends.append(legend(shade, label, f"{number}{unit}"))
                descriptions.append(_describe(label, steps, values, panel.unit))
        grid[-1, 0].set_xlabel("step")
        grid[-1, 0].xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        svg = to_svg(figure, chart.title)
    return chart_to_html(chart.title, svg, legends, descriptions)


def legend(color: str, label: str, value: str) -> str:
    """An entry of a chart's legend; `label` and `value` are markup."""
    return f'<span class="key"><i style="background:{themed(color)}"></i>{label} <b>{value}</b></span>'


def chart_to_html(title: str, svg: str, legends: Sequence[str], descriptions: Sequence[str]) -> str:
    """A chart as an HTML figure. `descriptions` are its text alternative, a sentence for each line."""
    alternative = html.escape(f"Chart of {title} by step. " + " ".join(descriptions), quote=True)
    return (
        f'<figure class="chart"><h4>{html.escape(title)}</h4>'
        f'<div role="img" aria-label="{alternative}">{svg}</div>'
        f"<figcaption>{''.join(legends)}</figcaption></figure>"
    )


def _draw_lines(axes: Axes, panel: Panel, data: dict[str, tuple[np.ndarray, np.ndarray]], colors: list[str]) -> None:
    for (steps, values), color in zip(data.values(), colors, strict=True):
        steps, values = thin(steps, values)
        if panel.kind == "points" or len(steps) < 2:
            axes.plot(steps, values, color=color, marker="o", markersize=3)
        elif panel.smooth and len(steps) >= SMOOTH_FROM:
            axes.plot(steps, values, color=color, alpha=0.28, linewidth=0.9)
            axes.plot(steps, smooth(values), color=color)
        else:
            axes.plot(steps, values, color=color)
    everything = np.concatenate([values for _, values in data.values()])
    if panel.log and everything.min() > 0 and everything.max() > 10 * everything.min():
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        if panel.from_zero and everything.min() >= 0:
            axes.set_ylim(bottom=0, top=None if everything.max() > 0 else 1)


def _draw_areas(axes: Axes, panel: Panel, data: dict[str, tuple[np.ndarray, np.ndarray]], colors: list[str]) -> None:
    steps = np.unique(np.concatenate([steps for steps, _ in data.values()]))
    centers, _ = thin(steps, steps)
    middles = (centers[1:] + centers[:-1]) / 2
    width = centers[-1] - centers[-2] if len(centers) > 1 else 1.0
    edges = np.concatenate([[centers[0] - width / 2], middles, [centers[-1] + width / 2]])
    bottom = np.zeros(len(centers))
    for (at, values), color in zip(data.values(), colors, strict=True):
        whole = np.zeros(len(steps))  # in a step without the entry it is 0
        whole[np.searchsorted(steps, at)] = values
        top = bottom + thin(steps, whole)[1]
        axes.stairs(top, edges, baseline=bottom, fill=True, color=color, linewidth=0)
        bottom = top
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=panel.kind == "count", min_n_ticks=1))
    axes.set_ylim(bottom=0)
    axes.grid(False, axis="x")


def thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A line of at most MAX_POINTS points."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), MAX_POINTS)
    return np.array([steps[p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a fifteenth of the line; shorter at the ends, so that they are not bent."""
    half = max(1, len(values) // 30)
    return np.array([values[max(0, i - half) : i + half + 1].mean() for i in range(len(values))])


def _describe(label: str, steps: np.ndarray, values: np.ndarray, unit: str) -> str:
    numbers = [format_number(x) for x in (values[0], values[-1], values.min(), values.max())]
    return (
        f"{label}, in {unit}: first {numbers[0]} (step {steps[0]:.0f}), last {numbers[1]} (step {steps[-1]:.0f}), "
        f"lowest {numbers[2]}, highest {numbers[3]}."
    )


def themed(markup: str) -> str:
    """The markup with the page's colours by name, which have a light and a dark shade."""
    return re.sub("|".join(THEMED), lambda found: f"var(--{THEMED[found[0]]})", markup)


def svg_file(name: str, size: tuple[float, float], draw: Callable[[Figure], object]) -> bytes:
    """What `draw` draws on a figure, as an SVG file that stands alone: on white, with fonts that every viewer has.

    Args:
        name: decides the ids inside the file.
        size: in inches.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name, "font.family": "sans-serif"}):
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        draw(figure)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def to_svg(figure: Figure, name: str) -> str:
    """The figure as an `<svg>` element that fills its container; its ids are unique in the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    prefix = re.sub(r"\W+", "-", name.lower())
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", svg)
    # A hundredth of a point is enough. Only inside tags: the other numbers are the labels of the axes.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d{2})\d+", r"\1", tag[0]), svg)
    return themed(svg).replace("<svg ", '<svg aria-hidden="true" ', 1)
