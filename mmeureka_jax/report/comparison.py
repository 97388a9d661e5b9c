"""Runs drawn over one another: mean and spread of each metric over the runs of a kind, as one page and as tables.

COMPARISON/comparison.html   curves, and the summary      summary.md, summary.csv   a row for each kind of run
           comparison.svg    the curves, one picture      runs.csv                  a row for each run
"""

from __future__ import annotations

import base64
import csv
import html
import io
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from mmeureka_jax.errors import UserError
from mmeureka_jax.files import write_atomic
from mmeureka_jax.process.console import plural
from mmeureka_jax.report.charts import (
    STYLE,
    Rows,
    chart_to_html,
    format_number,
    legend,
    series_of,
    smooth,
    svg_file,
    thin,
    to_svg,
)
from mmeureka_jax.runs.metadata import read_metadata

PAGE_FILE = "comparison.html"
PICTURE_FILE = "comparison.svg"
SUMMARY_FILE = "summary"
RUNS_FILE = "runs.csv"
Curve = tuple[np.ndarray, np.ndarray, np.ndarray]  # steps, mean, standard deviation
COLORS = (
    "#2f6db3", "#d1812c", "#3f8f5f", "#a8485b", "#6f5aa8", "#6b7785", "#b59a2c", "#2a9aa0", "#c2589f", "#7a5230",
    "#8fb8e0", "#e3b98a", "#9ccfae", "#1f2933",
)  # fmt: skip
DASHES = ("solid", (0, (4, 1.5)), (0, (1, 1.2)))  # for more kinds than colours
METRICS = (
    "validation/accuracy",
    "reward/accuracy",
    "reward/pass_at_1",
    "reward/pass_at_8",
    "response/length",
    "policy/entropy",
    "policy/ratio_max",
    "policy/clip_fraction_high",
    "policy/clip_fraction_low",
    "policy/drift",
    "optimizer/grad_norm",
)
SUMMARY = ("last validation/accuracy", "max validation/accuracy", "end reward/accuracy", "end response/length")
REDUCERS: Mapping[str, Callable[[list[float]], float]] = {
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "end": lambda values: float(np.mean(values[-max(1, len(values) // 10) :])),  # the last tenth
    "max": max,
    "min": min,
    "mean": lambda values: float(np.mean(values)),
}


@dataclass(frozen=True)
class Run:
    """A run to be compared.

    Attributes:
        kind: the name of the settings that it repeats; runs of one kind are averaged.
        name: what distinguishes it from others of its kind, such as its seed.
        rows: its metrics.
        state: "done", or what stopped it.
        settings: the settings in which the kind differs from others, for the tables.
    """

    kind: str
    name: str
    rows: Rows
    state: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def state_of(run_dir: Path, rows: Rows) -> str:
    """ "done", or how far a run has come, by its metadata; "unknown" without."""
    metadata = read_metadata(run_dir)
    step = int(rows[-1]["step"]) if rows else 0
    if metadata is None:
        return "unknown"
    steps = metadata["config"]["steps"]
    return "done" if step >= steps else f"at step {step} of {steps}"


def parse_summary(text: str) -> tuple[str, str]:
    """`last validation/accuracy` -> its two words.

    Raises:
        UserError: it is not a reducer and a metric.
    """
    reducer, _, metric = text.partition(" ")
    if reducer not in REDUCERS or not metric.strip():
        raise UserError(
            f"summary entry {text!r}: expected one of {', '.join(REDUCERS)} and a metric, such as 'last reward/total'"
        )
    return reducer, metric.strip()


def write_comparison(
    runs: Sequence[Run],
    folder: Path,
    *,
    title: str,
    metrics: Sequence[str] = METRICS,
    summary: Sequence[str] = SUMMARY,
    pictures: Sequence[str] = (),
) -> Path:
    """Writes the page and the tables into `folder`, and returns the page's path.

    Args:
        pictures: SVG files of the folder that the page shows too.

    Raises:
        UserError: nothing to draw, a bad summary entry, or the folder cannot be written.
    """
    if not any(run.rows for run in runs):
        raise UserError(f"{title}: no run has logged a step yet; let one finish a step")
    entries = [parse_summary(text) for text in summary]
    kinds = _by_kind(runs)
    table = [_summary_row(kind, members, entries) for kind, members in kinds.items()]
    header = ["kind", "runs", *(f"{reducer} {metric}" for reducer, metric in entries), "state"]
    curves = {metric: of_kinds for metric in metrics if (of_kinds := _curves(kinds, metric))}
    figures = [draw(list(kinds), metric, of_kinds) for metric, of_kinds in curves.items()]
    if curves:
        write_atomic(folder / PICTURE_FILE, draw_all(list(kinds), curves))
    write_atomic(folder / RUNS_FILE, _runs_csv(runs, entries).encode())
    write_atomic(folder / f"{SUMMARY_FILE}.csv", _csv([header, *table]).encode())
    write_atomic(folder / f"{SUMMARY_FILE}.md", _markdown(header, table).encode())
    template = Template((Path(__file__).parent / "template.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=html.escape(title),
        subtitle=f"{plural(len(runs), 'run')} of {plural(len(kinds), 'kind')}: mean, and one standard deviation over "
        "the runs of a kind that have come so far",
        tiles="",
        nav='<a href="#curves">Curves</a><a href="#summary">Summary</a>',
        sections=f'<h2 id="curves">Curves</h2><div class="charts">{"".join(figures)}</div>'
        f"{_pictures_section(folder, pictures)}"
        f'<h2 id="summary">Summary</h2>{_html_table(header, table)}',
        footer=f"Beside this page: {PICTURE_FILE}, the curves as one picture; tables {SUMMARY_FILE}.md, "
        f"{SUMMARY_FILE}.csv, {RUNS_FILE}.",
    )
    path = folder / PAGE_FILE
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


def _pictures_section(folder: Path, pictures: Sequence[str]) -> str:
    """Pictures beside the page, as data: the page stays one file."""
    if not pictures:
        return ""
    figures = []
    for name in pictures:
        data = base64.b64encode((folder / name).read_bytes()).decode()
        label = html.escape(Path(name).stem.replace("_", " "))
        figures.append(f'<figure><img alt="{label}" src="data:image/svg+xml;base64,{data}"></figure>')
    return f'<h2 id="pictures">Pictures</h2>{"".join(figures)}'


def _by_kind(runs: Sequence[Run]) -> dict[str, list[Run]]:
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        kinds.setdefault(run.kind, []).append(run)
    return kinds


# ---------------------------------------------------------------------------------------------------------------------
# Tables.


def reduce(rows: Rows, reducer: str, metric: str) -> float | None:
    """The one number of a run's metric; None where it has none."""
    values = series_of(rows, metric)[1].tolist()
    return float(REDUCERS[reducer](values)) if values else None


def _summary_row(kind: str, members: Sequence[Run], entries: Sequence[tuple[str, str]]) -> list[str]:
    cells = []
    for reducer, metric in entries:
        values = [value for run in members if (value := reduce(run.rows, reducer, metric)) is not None]
        of = f" (of {len(values)})" if 0 < len(values) < len(members) else ""  # the others have no value
        cells.append(_mean_and_spread(values) + of)
    states = [run.state for run in members]
    state = (
        "done" if set(states) == {"done"} else "; ".join(f"{r.name}: {r.state}" for r in members if r.state != "done")
    )
    return [kind, str(len(members)), *cells, state]


def _mean_and_spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.4g}"
    return f"{mean:.4g} ± {statistics.stdev(values):.2g}"


def _runs_csv(runs: Sequence[Run], entries: Sequence[tuple[str, str]]) -> str:
    keys = list(dict.fromkeys(key for run in runs for key in run.settings))
    header = ["kind", "run", *keys, "steps", *(f"{reducer} {metric}" for reducer, metric in entries), "state"]
    body = []
    for run in runs:
        numbers = (reduce(run.rows, *entry) for entry in entries)
        cells = ["" if number is None else repr(number) for number in numbers]
        settings = [str(run.settings.get(key, "")) for key in keys]
        steps = str(run.rows[-1]["step"]) if run.rows else "0"
        body.append([run.kind, run.name, *settings, steps, *cells, run.state])
    return _csv([header, *body])


def _csv(rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)]) + "\n"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th scope='col'>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr><th scope='row'>{html.escape(row[0])}</th>{''.join(f'<td>{html.escape(c)}</td>' for c in row[1:])}</tr>"
        for row in rows
    )
    return f'<div class="box"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


# ---------------------------------------------------------------------------------------------------------------------
# Curves.


def mean_and_spread(runs: Sequence[Rows], metric: str) -> Curve:
    """(steps, mean, standard deviation) over the runs that have a value at a step; 0 deviation where one has."""
    by_step: dict[float, list[float]] = {}
    for rows in runs:
        for step, value in zip(*series_of(rows, metric), strict=True):
            by_step.setdefault(float(step), []).append(float(value))
    steps = np.array(sorted(by_step))
    mean = np.array([np.mean(by_step[step]) for step in steps])
    spread = np.array([np.std(by_step[step], ddof=1) if len(by_step[step]) > 1 else 0.0 for step in steps])
    return steps, mean, spread


def _curves(kinds: Mapping[str, Sequence[Run]], metric: str) -> dict[str, Curve]:
    """The curve of each kind that has this metric."""
    curves = {kind: mean_and_spread([run.rows for run in members], metric) for kind, members in kinds.items()}
    return {kind: curve for kind, curve in curves.items() if len(curve[0])}


def _style(number: int) -> tuple[str, Any]:
    """Colour and dash of the kind of this number."""
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


def _plot(axes: Axes, curves: Mapping[str, Curve], kinds: Sequence[str]) -> None:
    """A line for each kind, in a band of one standard deviation; on a logarithmic axis the band is as wide below."""
    everything = []
    bands = []
    for kind, (steps, mean, spread) in curves.items():
        color, dash = _style(kinds.index(kind))
        dense = len(steps) > 30
        at, line = thin(steps, smooth(mean) if dense else mean)
        _, band = thin(steps, smooth(spread) if dense else spread)
        axes.plot(at, line, color=color, linestyle=dash, marker=None if len(at) > 12 else "o", markersize=2.5)
        bands.append((at, line, band, color))
        everything.append(line)
    values = np.concatenate(everything)
    logarithmic = values.min() > 0 and values.max() > 50 * values.min()
    for at, line, band, color in bands:
        if band.any():
            low = line**2 / (line + band) if logarithmic else line - band
            axes.fill_between(at, low, line + band, color=color, alpha=0.14, linewidth=0)
    if logarithmic:
        axes.set_yscale("log")
    elif values.min() >= 0:
        axes.set_ylim(bottom=0, top=None if values.max() > 0 else 1)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))


def draw(names: Sequence[str], metric: str, curves: Mapping[str, Curve]) -> str:
    """An HTML figure of one metric.

    Args:
        names: those of all kinds; a kind's place among them decides its colour.
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": metric}):
        figure = Figure(figsize=(4.3, 2.6), layout="constrained")
        _plot(figure.subplots(), curves, names)
        svg = to_svg(figure, f"compare {metric}")
    legends = [
        legend(_style(names.index(kind))[0], html.escape(kind), format_number(mean[-1]))
        for kind, (_, mean, _) in curves.items()
    ]
    descriptions = [
        f"{kind}: first {format_number(mean[0])}, last {format_number(mean[-1])} (step {steps[-1]:.0f})."
        for kind, (steps, mean, _) in curves.items()
    ]
    return chart_to_html(metric, svg, legends, descriptions)


def draw_all(names: Sequence[str], metrics: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """The curves of all metrics in one SVG picture with one legend, to put into a text."""
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)

    def draw_on(figure: Figure) -> None:
        grid = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (metric, curves) in zip(grid, metrics.items(), strict=False):
            _plot(axes, curves, names)
            axes.set_title(metric, loc="left", fontsize=9)
        for axes in grid[len(metrics) :]:
            axes.set_axis_off()
        lines = [Line2D([], [], color=_style(number)[0], linestyle=_style(number)[1]) for number in range(len(names))]
        labels = [name.replace("$", r"\$") for name in names]  # matplotlib would read formulas
        figure.legend(lines, labels, loc="outside lower center", ncols=min(5, len(names)), frameon=False)

    return svg_file("compare", (3.4 * columns, 2.3 * rows + 0.5), draw_on)
