"""The calibration curve of a process reward model: how often steps of a score are right."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from mmeureka_jax.report.charts import COLORS, STYLE, format_number, legend, to_svg

_TITLE = "Calibration of step scores"
_SCORE = re.compile(r"validation/calibration/([\d.]+)/score")


def draw_calibration(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """An HTML figure of the first and the last validation; None for rows without any."""
    validated = [row for row in rows if any(map(_SCORE.fullmatch, row))]
    if not validated:
        return None
    chosen = validated[:1] + validated[1:][-1:]
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": _TITLE}):
        figure = Figure(figsize=(4.3, 2.4), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color="#b8c0ca", linewidth=0.9)
        legends = []
        sentences = []
        for row, color in zip(chosen, COLORS, strict=False):
            points = _points(row)
            axes.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3)
            error = 100 * float(row["validation/calibration_error"])
            legends.append(
                legend(color, f"step {row['step']}, mean distance", f"{format_number(_round(error))}&thinsp;%")
            )
            pairs = "; ".join(f"{score:.0f} to {label:.0f}" for score, label in points)
            sentences.append(f"Step {row['step']}, score to label in percent: {pairs}.")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="mean score", ylabel="mean label")
        svg = to_svg(figure, _TITLE)
    alternative = html.escape(f"{_TITLE}. {' '.join(sentences)}", quote=True)
    return (
        f'<figure class="chart"><h4>{_TITLE}</h4><div role="img" aria-label="{alternative}">{svg}</div>'
        f"<figcaption>{''.join(legends)}</figcaption></figure>"
    )


def _points(row: Mapping[str, Any]) -> list[tuple[float, float]]:
    """(mean score, mean label) of each bin with a score, in percent, by score."""
    bins = [found[1] for name in row if (found := _SCORE.fullmatch(name))]
    pairs = [
        (row[f"validation/calibration/{name}/score"], row[f"validation/calibration/{name}/label"]) for name in bins
    ]
    return sorted((100 * score, 100 * label) for score, label in pairs)


def _round(value: float) -> float:
    return float(f"{value:.2g}")
