"""`eval.html`: scores on public benchmarks beside published ones, breakdowns, and a browser of the answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from mmeureka_jax.report.answer_browser import Browsed, Head, Problem, write_page
from mmeureka_jax.report.judges import JUDGES, judges_in

PAGE_FILE = "eval.html"
COLORS = dict(zip(JUDGES, ("var(--line-1)", "var(--line-2)", "var(--line-3)"), strict=True))
_OPEN_UP_TO = 24  # values of a breakdown


@dataclass(frozen=True)
class Section:
    """A benchmark's results, as results.json has them, and what is behind them.

    Attributes:
        published: scores of papers, each with model, score (percent), judge and source.
        answers: the rows of NAME.jsonl.
    """

    name: str
    title: str
    results: Mapping[str, Any]
    published: Sequence[Mapping[str, Any]]
    problems: Sequence[Problem]
    answers: Sequence[Mapping[str, Any]]


def write_eval_page(sections: Sequence[Section], folder: Path) -> Path:
    """Writes `eval.html` into `folder` and returns its path."""
    models = dict.fromkeys(str(one.results.get("settings", {}).get("model") or "") for one in sections)
    model = ", ".join(name for name in models if name)
    title = f"Benchmarks of {model}" if model else "Benchmarks"
    head = Head(
        title,
        " · ".join(one.title for one in sections),
        "".join(_tile(one) for one in sections),
        {one.title: _section(one) for one in sections},
        "Beside this page: results.json, and the answers as NAME.jsonl.",
    )
    browsed = [Browsed(one.name, one.title, one.problems, [one.answers]) for one in sections]
    return write_page(folder / PAGE_FILE, head, browsed, [""])


# ---------------------------------------------------------------------------------------------------------------------
# Pieces of tables, for the comparison too.


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def number(markup: object, kind: str = "") -> str:
    """A cell with a number."""
    return f'<td class="number{" " + kind if kind else ""}">{markup}</td>'


def table(headings: Sequence[str], rows: Iterable[str], *, texts: Sequence[str] = (), caption: str = "") -> str:
    """A table that scrolls by itself where the window is narrow.

    Args:
        rows: markup, a `<tr>` each.
        caption: markup.
        texts: the headings, besides the first, of columns that hold no numbers.
    """
    kinds = ["" if not place or name in ("", *texts) else " class=number" for place, name in enumerate(headings)]
    head = "".join(f"<th scope=col{kind}>{name}</th>" for kind, name in zip(kinds, headings, strict=True))
    above = f"<caption>{caption}</caption>" if caption else ""
    return f'<div class="wide"><table>{above}<thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def folded(name: str, values: int, drawn: str) -> str:
    """A breakdown among others; one of many values has to be opened."""
    if values <= _OPEN_UP_TO:
        return f"<div>{drawn}</div>"
    summary = f"<summary>{escape(name)}<span>{values} values</span></summary>"
    return f'<details class="box">{summary}{drawn}</details>'


def plot(bars: Sequence[tuple[float, str]], intervals: Sequence[Sequence[float] | None] = (), mark: float = -1) -> str:
    """Bars from 0 to 1 in a cell, one below the other, with whiskers for intervals and a line at `mark`.

    Args:
        bars: lengths and colours.
    """
    height = 14 / len(bars)
    shapes = [_line(x, 0, x, 14, "var(--grid)") for x in (25, 50, 75)]
    for place, (length, color) in enumerate(bars):
        top = place * height
        shapes.append(
            f'<rect x="0" y="{top + 1:.2f}" width="{100 * length:.2f}" height="{height - 2:.2f}" fill="{color}"/>'
        )
    for place, interval in enumerate(intervals):
        if interval is not None:
            middle = (place + 0.5) * height
            low, high = (100 * end for end in interval)
            shapes.append(_line(low, middle, high, middle, "var(--ink)"))
            shapes += [_line(end, middle - 2, end, middle + 2, "var(--ink)") for end in (low, high)]
    if mark >= 0:
        shapes.append(_line(100 * mark, 0, 100 * mark, 14, "var(--soft)"))
    return svg(shapes)


def svg(shapes: Iterable[str]) -> str:
    """A cell with a drawing that is 100 wide and 14 high; the numbers beside it are its text."""
    return (
        '<td class="plot"><svg viewBox="0 0 100 14" preserveAspectRatio="none" aria-hidden="true">'
        f"{''.join(shapes)}</svg></td>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return (
        f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" stroke="{color}" '
        'vector-effect="non-scaling-stroke"/>'
    )


def legends(judges: Sequence[str]) -> str:
    return "".join(f'<span class="key"><i style="background:{COLORS[judge]}"></i>{judge}</span>' for judge in judges)


def as_figure(value: float) -> str:
    """A figure of the authors: a share as percent, anything else as it is."""
    return percent(value) if 0 <= value <= 1 else f"{value:.4g}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """The keys and values of settings as text, nested ones with dots between their levels."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def partial(results: Mapping[str, Any]) -> str:
    """The mark of a part of a release."""
    return '<span class="partial">a part of the release</span>' if results.get("partial") else ""


# ---------------------------------------------------------------------------------------------------------------------
# A benchmark.


def _tile(section: Section) -> str:
    results = section.results
    judges = judges_in(results)
    scores = " <small>/</small> ".join(percent(results[judge]) for judge in judges)
    part = ", partial" if results.get("partial") else ""
    return (
        f'<div class="tile"><div class="name">{escape(section.title)}</div><div class="value">{scores}</div>'
        f'<div class="note">{" / ".join(judges)}, {results["count"]:,} problems{part}</div></div>'
    )


def _section(section: Section) -> str:
    results = section.results
    more = "".join(
        f"<h3>{title}</h3>{body}"
        for title, body in (
            ("Breakdowns", _breakdowns(results)),
            ("What else is reported", _figures(results)),
            ("Several answers to each problem", _several(results)),
        )
        if body
    )
    return f"{partial(results)}{_scores(section)}{_rates(section)}{more}{_settings(results)}"


def _scores(section: Section) -> str:
    """The judges' scores with their intervals, and the published ones."""
    results = section.results
    rows = []
    for judge in judges_in(results):
        interval = (results.get("intervals") or {}).get(judge)
        ends = "" if interval is None else "–".join(percent(end) for end in interval)
        part = ", a part of the release" if results.get("partial") else ""
        rows.append(
            f'<tr class="own"><th scope="row">these answers, by {judge}</th>{number(percent(results[judge]))}'
            f'<td class="number range">{ends}</td>{plot([(results[judge], COLORS[judge])], [interval])}'
            f'<td class="source">{results["count"]:,} problems{part}</td></tr>'
        )
    for one in section.published:
        score = f"{one['score']:g}"
        rows.append(
            f'<tr><th scope="row">{escape(one["model"])}</th>{number(score)}<td></td>'
            f"{plot([(one['score'] / 100, 'var(--line-6)')])}"
            f'<td class="source">{escape(one["judge"])}; {escape(one["source"])}</td></tr>'
        )
    heads = ("percent right", "score", "95%", "", "problems, or who judged and where it is published")
    return table(heads, rows, texts=heads[4:])


def _rates(section: Section) -> str:
    """Shares of answers that ended badly, with links to them."""
    results = section.results
    where = f"#benchmark={escape(section.name)}&amp;"
    chips = [
        (f"unparsed {percent(results['unparsed'])}&thinsp;%", "unparsed=yes"),
        (f"truncated {percent(results['truncated'])}&thinsp;%", "truncated=yes"),
        (f"failed {percent(results['failed'])}&thinsp;%", "reason=yes"),
        (f"judged differently {results['disagreements']:,}", "judges=disagree"),
    ]
    if "judge_model" in results:
        alone = f"right by the judge model alone {percent(results['judge_model']['alone'])}&thinsp;%"
        chips.append((alone, "official=wrong&amp;ours=wrong&amp;model=right"))
        turned_down = f"turned down by it alone {percent(results['judge_model']['turned_down'])}&thinsp;%"
        chips.append((turned_down, "official=right&amp;ours=right&amp;model=wrong"))
    shown = "".join(f'<a class="chip" href="{where}{link}">{text}</a>' for text, link in chips)
    return f'<div class="rates">{shown}</div>'


def _breakdowns(results: Mapping[str, Any]) -> str:
    """A table with bars for each; the line in the bars is the benchmark's own official score."""
    tables = []
    judges = judges_in(results)
    for name, values in results.get("breakdowns", {}).items():
        rows = []
        for value, scores in values.items():
            count = f"{scores['count']:,}"
            bars = [(scores[judge], COLORS[judge]) for judge in judges]
            numbers = "".join(number(percent(scores[judge])) for judge in judges)
            rows.append(
                f'<tr><th scope="row">{escape(value)}</th>{number(count)}{numbers}'
                f"{plot(bars, mark=results['official'])}</tr>"
            )
        tables.append(folded(name, len(values), table((escape(name), "problems", *judges, ""), rows)))
    key = f'<figcaption class="legend">{legends(judges)}<span>line: all problems, by official</span></figcaption>'
    return f'{key}<div class="breakdowns">{"".join(tables)}</div>' if tables else ""


def _figures(results: Mapping[str, Any]) -> str:
    figures = results.get("figures", {})
    judges = judges_in(results)
    names = dict.fromkeys(name for judge in judges for name in figures.get(judge, {}))
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>'
        f"{''.join(number(as_figure(figures[judge][name])) for judge in judges)}</tr>"
        for name in names
    ]
    return _narrow(table(("percent", *judges), rows)) if rows else ""


def _several(results: Mapping[str, Any]) -> str:
    several = results.get("several")
    if not several:
        return ""
    judges = judges_in(results)
    flat = {judge: several_of(several[judge]) for judge in judges}
    rows = [
        f'<tr><th scope="row">{escape(name)}</th>{"".join(number(percent(flat[judge][name])) for judge in judges)}</tr>'
        for name in flat[judges[0]]
    ]
    return _narrow(table(("percent", *judges), rows))


def _narrow(drawn: str) -> str:
    """As wide as a breakdown."""
    return f'<div class="breakdowns"><div>{drawn}</div></div>'


def several_of(figures: Mapping[str, Any]) -> dict[str, float]:
    """avg@n, pass@k and the majority's vote by their names."""
    passes = {f"pass@{k}": rate for k, rate in figures.get("pass_at_k", {}).items()}
    others = {name: value for name, value in figures.items() if name not in ("pass_at_k", "majority")}
    return {**others, **passes, "majority vote": figures["majority"]}


def _settings(results: Mapping[str, Any]) -> str:
    """What decides the score, folded."""
    body = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>'
        for key, value in flatten(results.get("settings", {}))
    )
    return (
        f'<details class="box"><summary>Settings<span>what decides the score</span></summary><table>{body}</table>'
        "</details>"
        if body
        else ""
    )
