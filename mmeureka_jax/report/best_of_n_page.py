"""`best_of_n.html`: what each way to choose among several answers gives, as tables and charts without a script."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from mmeureka_jax.files import write_atomic
from mmeureka_jax.process.console import plural
from mmeureka_jax.report.charts import COLORS, STYLE, legend, to_svg
from mmeureka_jax.report.eval_page import number, partial, percent, table

PAGE_FILE = "best_of_n.html"
_NAMES = {"sum_log_p": "sum of log p", "sum_logit": "sum of logits", "mean_odds": "mean odds"}
_INK = "#1f2933"
_SOFT = "#52606d"
_STYLE = """<style>
.wide { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: 8px; padding: 4px 16px 10px; margin: 10px 0; }
.wide tbody th { min-width: 104px; }
.wide td.number, .wide th.number { white-space: nowrap; padding-left: 8px; }
.wide td small { display: block; color: var(--faint); }
.wide td.top { font-weight: 600; }
.wide td.top small { font-weight: 400; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr)); gap: 14px; align-items: start; }
.sides > * { min-width: 0; }
.sides .chart { margin: 10px 0; }
.partial { color: var(--bad); font-size: 13px; }
</style>"""  # noqa: E501

Figures = Mapping[str, Any]


def write_best_of_n_page(content: Figures, folder: Path) -> Path:
    """Writes the page of what best_of_n.json holds into `folder`. Returns its path."""
    results = content["results"]
    sections = "".join(_section(name, one) for name, one in results.items())
    template = Template((Path(__file__).parent / "template.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title="Best of N",
        subtitle=f"answers scored by {html.escape(str(content['prm']['model']))}",
        tiles="".join(_tile(one, judge) for one in results.values() for judge in one["judges"]),
        nav="".join(f'<a href="#{name}">{html.escape(one["title"])}</a>' for name, one in results.items()),
        sections=f"{_STYLE}{_HINT}{sections}",
        footer="Beside this page: best_of_n.json, and the scores of all steps as NAME.scores.jsonl.",
    )
    path = folder / PAGE_FILE
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


_HINT = (
    '<p class="hint" style="margin-top:16px">Percent right, with 95% intervals by bootstrap over problems. For k below '
    "N each number is the exact mean over all choices of k of the N answers. No choice among k answers can exceed "
    "pass@k. The highest aggregator of each k is bold; it looks better here than it is, since it was picked by these "
    "numbers, so choose an aggregator on other problems.</p>"
)


def _tile(results: Figures, judge: str) -> str:
    figures = results["judges"][judge]
    if figures is None:
        return ""
    n = str(figures["n"])
    scores = [figures["random"], figures["best_of_k"]["mean_odds"][n], figures["pass_at_k"][n]]
    shown = " <small>/</small> ".join(percent(one["mean"]) for one in scores)
    return (
        f'<div class="tile"><div class="name">{html.escape(results["title"])}, {judge}</div>'
        f'<div class="value">{shown}</div><div class="note">random / mean odds / pass@{n}</div></div>'
    )


def _section(name: str, results: Figures) -> str:
    parts = [f'<h2 id="{name}">{html.escape(results["title"])}</h2>', partial(results)]
    parts.append(f'<p class="hint">{_counts(results)}</p>{_examples(results)}')
    for judge, figures in results["judges"].items():
        if figures is None:
            parts.append(f"<h3>by {judge}</h3><p>No problem of this part counts in the benchmark's score.</p>")
        else:
            drawn = _chart(figures, f"{results['title']}, by {judge}", f"{name}-{judge}")
            parts.append(f'<h3>by {judge}</h3><div class="sides">{_table(figures)}{drawn}</div>')
    return "".join(parts)


def _counts(results: Figures) -> str:
    parts = [f"{results['answers']:,} answers to {plural(results['problems'], 'problem')}"]
    if without := results["without_steps"]:
        parts.append(f"{without:,} of them have no steps and score 0")
    if unscored := results["unscored"]:
        parts.append(f"{unscored:,} cannot be scored and score 0")
    counted = {figures["problems"] for figures in results["judges"].values() if figures is not None}
    if counted and counted != {results["problems"]}:
        parts.append(f"{min(counted):,} problems count in the benchmark's score, and here")
    return "; ".join(parts) + "."


def _examples(results: Figures) -> str:
    if not results["examples"]:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(str(one["id"]))}, answer {one["sample"]}</th>'
        f"<td>{html.escape(one['reason'])}</td></tr>"
        for one in results["examples"]
    )
    what = f"the first of {results['unscored']:,}"
    return (
        f'<details class="box"><summary>Answers that cannot be scored<span>{what}</span></summary>'
        f"<table>{rows}</table></details>"
    )


def _table(figures: Figures) -> str:
    ks = list(figures["pass_at_k"])
    of_aggregators = {name: [by_k[k] for k in ks] for name, by_k in figures["best_of_k"].items()}
    highest = [max(own[place]["mean"] for own in of_aggregators.values()) for place in range(len(ks))]
    rows = [_row("random choice", [figures["random"]] * len(ks))]
    rows.append(_row("majority vote", [None] * (len(ks) - 1) + [figures["majority"]]))
    for name, own in of_aggregators.items():
        tops = [place > 0 and one["mean"] == top for place, (one, top) in enumerate(zip(own, highest, strict=True))]
        rows.append(_row(_name(name), own, tops))
    rows.append(_row("pass@k", [figures["pass_at_k"][k] for k in ks]))
    return table(("best of k =", *ks), rows)


def _row(name: str, cells: Sequence[Figures | None], tops: Sequence[bool] = ()) -> str:
    shown = []
    for place, one in enumerate(cells):
        if one is None:
            shown.append("<td></td>")
            continue
        ends = "–".join(percent(end) for end in one["interval"])
        top = "top" if place < len(tops) and tops[place] else ""
        shown.append(number(f"{percent(one['mean'])}<small>{ends}</small>", top))
    return f'<tr><th scope="row">{name}</th>{"".join(shown)}</tr>'


def _name(aggregator: str) -> str:
    return _NAMES.get(aggregator, aggregator)


def _chart(figures: Figures, title: str, name: str) -> str:
    """The table as lines over k, the majority's vote as a mark at N."""
    ks = [int(k) for k in figures["pass_at_k"]]
    lines = {_name(aggregator): list(by_k.values()) for aggregator, by_k in figures["best_of_k"].items()}
    legends = []
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(4.9, 3.3), layout="constrained")
        axes = figure.subplots()
        drawn = [("pass@k", list(figures["pass_at_k"].values()), _INK, "solid")]
        drawn += [
            (label, own, COLORS[place % len(COLORS)], "solid" if place < len(COLORS) else "dashed")
            for place, (label, own) in enumerate(lines.items())
        ]
        drawn.append(("random choice", [figures["random"]] * len(ks), _SOFT, "dotted"))
        for label, own, color, style in drawn:
            values = [100 * one["mean"] for one in own]
            axes.plot(ks, values, color=color, linestyle=style, marker="o", markersize=0 if style == "dotted" else 2.5)
            legends.append(
                legend(color, f"{label}{'' if style == 'solid' else f' ({style})'}", percent(own[-1]["mean"]))
            )
        axes.plot([ks[-1]], [100 * figures["majority"]["mean"]], color=_INK, marker="D", markersize=5, linestyle="none")
        legends.append(legend(_INK, "majority vote (diamond)", percent(figures["majority"]["mean"])))
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}%"))
        axes.set_xlabel("k answers, of which one is chosen")
        svg = to_svg(figure, name)
    sentences = [f"{label}: {_points(ks, own)}." for label, own, _, _ in drawn]
    sentences.append(f"Majority vote of {ks[-1]}: {percent(figures['majority']['mean'])}.")
    alternative = html.escape(f"{title}, percent right by k. {' '.join(sentences)}", quote=True)
    return (
        f'<figure class="chart"><h4>{html.escape(title)}</h4><div role="img" aria-label="{alternative}">{svg}</div>'
        f"<figcaption>{''.join(legends)}</figcaption></figure>"
    )


def _points(ks: Sequence[int], own: Sequence[Figures]) -> str:
    return ", ".join(f"{percent(one['mean'])} at {k}" for k, one in zip(ks, own, strict=True))
