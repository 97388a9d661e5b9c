"""Two evaluations side by side: differences of scores with their intervals, and the answers that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from mmeureka_jax.report.answer_browser import Browsed, Head, Problem, write_page
from mmeureka_jax.report.eval_page import (
    as_figure,
    flatten,
    folded,
    number,
    partial,
    percent,
    several_of,
    svg,
    table,
)

SIDES = ("A", "B")
_LEAST_WIDTH = 0.05  # the difference that reaches the end of a plot, unless an interval is wider


@dataclass(frozen=True)
class Difference:
    """The scores of two evaluations on the same problems, by one judge.

    Attributes:
        count: problems.
        interval: of second - first, 95%, by bootstrap over pairs.
    """

    count: int
    first: float
    second: float
    interval: tuple[float, float]

    @property
    def difference(self) -> float:
        return self.second - self.first

    @property
    def is_sure(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.interval[0] > 0 or self.interval[1] < 0


@dataclass(frozen=True)
class Compared:
    """A benchmark in two evaluations.

    Attributes:
        results: of both, as in results.json.
        overall: by judge. breakdowns: of each the values, by judge.
        answers: of both, the rows of NAME.jsonl.
    """

    name: str
    title: str
    results: tuple[Mapping[str, Any], Mapping[str, Any]]
    overall: Mapping[str, Difference]
    breakdowns: Mapping[str, Mapping[str, Mapping[str, Difference]]]
    problems: Sequence[Problem]
    answers: Sequence[Sequence[Mapping[str, Any]]]

    @property
    def judges(self) -> list[str]:
        return list(self.overall)

    def changed(self, judge: str, direction: int) -> int:
        """How many problems have a larger (1) or smaller (-1) share of right answers in the second."""
        place = self.judges.index(judge)
        return sum(problem.change is not None and problem.change[place] == direction for problem in self.problems)


def write_comparison_page(
    compared: Sequence[Compared], folders: Sequence[str], alone: Sequence[Sequence[str]], path: Path
) -> Path:
    """Writes the page and returns its path.

    Args:
        folders: of the two evaluations.
        alone: for each the benchmarks that the other does not have.
    """
    sides = [f"{side}: {folder}" for side, folder in zip(SIDES, folders, strict=True)]
    missing = "; ".join(
        f"only {side} has {', '.join(names)}" for side, names in zip(SIDES, alone, strict=True) if names
    )
    head = Head(
        "Two evaluations",
        " · ".join(sides),
        "".join(_tile(one) for one in compared),
        {one.title: _section(one) for one in compared},
        "Differences are B - A, in points of percent; their intervals are 95%, by bootstrap over the problems, each of "
        f"which has both answers.{' Not compared: ' + escape(missing) + '.' if missing else ''}",
    )
    browsed = [Browsed(one.name, one.title, one.problems, one.answers) for one in compared]
    return write_page(path, head, browsed, sides)


def points(difference: float) -> str:
    """A difference of shares in points of percent, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def _tile(one: Compared) -> str:
    scores = " <small>/</small> ".join(points(one.overall[judge].difference) for judge in one.judges)
    return (
        f'<div class="tile"><div class="name">{escape(one.title)}</div><div class="value">{scores}</div>'
        f'<div class="note">B - A, {" / ".join(one.judges)}, {one.overall["official"].count:,} problems</div></div>'
    )


def _section(one: Compared) -> str:
    groups = [one.overall, *(by_judge for values in one.breakdowns.values() for by_judge in values.values())]
    ends = [abs(end) for by_judge in groups for own in by_judge.values() for end in own.interval]
    width = max(_LEAST_WIDTH, *ends)
    rows = []
    for judge in one.judges:
        links = [
            number(
                f'<a href="#benchmark={escape(one.name)}&amp;change={change}-{judge}">'
                f"{one.changed(judge, direction):,}</a>"
            )
            for change, direction in (("better", 1), ("worse", -1))
        ]
        rows.append(_row(f"by {judge}", one.overall[judge], width, links))
    heads = ("percent right", "problems", "A", "B", "B - A", "95%", "")
    breakdowns = "".join(
        folded(name, len(values), table(heads, _rows(values, width), caption=escape(name)))
        for name, values in one.breakdowns.items()
    )
    more = "".join(
        f"<h3>{title}</h3>{body}"
        for title, body in (
            ("Breakdowns", breakdowns and f'<div class="breakdowns pairs">{breakdowns}</div>'),
            ("What else is reported", _figures(one)),
        )
        if body
    )
    marks = "".join(f"{side} {partial(own)} " for side, own in zip(SIDES, one.results, strict=True))
    shown = f'<p class="hint">{marks}</p>' if any(own.get("partial") for own in one.results) else ""
    scale = f'<p class="hint">The plots go from {points(-width)} to {points(width)}.</p>'
    return f"{shown}{table((*heads, 'better', 'worse'), rows)}{scale}{more}{_settings(one)}"


def _rows(values: Mapping[str, Mapping[str, Difference]], width: float) -> list[str]:
    return [_row(f"{value}, by {judge}", own[judge], width) for value, own in values.items() for judge in own]


def _row(name: str, one: Difference, width: float, more: Sequence[str] = ()) -> str:
    """A row of a table.

    Args:
        width: the difference that reaches the end of its plot.
        more: further cells.
    """
    kind = "" if not one.is_sure else "better" if one.difference > 0 else "worse"
    ends = " to ".join(points(end) for end in one.interval)
    cells = [
        number(f"{one.count:,}"),
        number(percent(one.first)),
        number(percent(one.second)),
        number(points(one.difference), kind),
        f'<td class="number range">{ends}</td>',
        _plot(one, width),
    ]
    return f'<tr><th scope="row">{escape(name)}</th>{"".join([*cells, *more])}</tr>'


def _plot(one: Difference, width: float) -> str:
    """The interval as a band and the difference as a line, around 0 in the middle."""

    def place(difference: float) -> float:
        return 50 + 50 * difference / width

    low, high = (place(end) for end in one.interval)
    color = "var(--faint)" if not one.is_sure else "var(--good)" if one.difference > 0 else "var(--bad)"
    at = place(one.difference)
    return svg(
        [
            '<line x1="50" y1="0" x2="50" y2="14" stroke="var(--axis)" vector-effect="non-scaling-stroke"/>',
            f'<rect x="{low:.2f}" y="4" width="{max(high - low, 0.5):.2f}" height="6" fill="{color}" opacity="0.45"/>',
            f'<line x1="{at:.2f}" y1="2" x2="{at:.2f}" y2="12" stroke="{color}" stroke-width="2" '
            'vector-effect="non-scaling-stroke"/>',
        ]
    )


def _figures(one: Compared) -> str:
    """What the authors report, and what several answers say, of both, without intervals."""
    both = [
        {judge: dict(own.get("figures", {}).get(judge, {})) | _several(own, judge) for judge in one.judges}
        for own in one.results
    ]
    rows = []
    for judge in one.judges:
        first, second = (own[judge] for own in both)
        for name in (name for name in first if name in second):
            cells = [as_figure(first[name]), as_figure(second[name])]
            rows.append(
                f'<tr><th scope="row">{escape(name)}, by {judge}</th>{"".join(number(cell) for cell in cells)}</tr>'
            )
    return table(("percent", *SIDES), rows) if rows else ""


def _several(results: Mapping[str, Any], judge: str) -> dict[str, float]:
    return several_of(results["several"][judge]) if results.get("several") else {}


def _settings(one: Compared) -> str:
    """The settings in which the two differ."""
    first, second = (dict(flatten(own.get("settings", {}))) for own in one.results)
    names = [name for name in dict.fromkeys([*first, *second]) if first.get(name) != second.get(name)]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        f"<td>{escape(first.get(name, '–'))}</td><td>{escape(second.get(name, '–'))}</td></tr>"
        for name in names
    )
    head = "<thead><tr><th scope=col>setting</th><th scope=col>A</th><th scope=col>B</th></tr></thead>"
    title = f"Settings that differ<span>{len(names)} of them</span>"
    return (
        f'<details class="box"><summary>{title}</summary><table>{head}<tbody>{rows}</tbody></table></details>'
        if names
        else ""
    )
