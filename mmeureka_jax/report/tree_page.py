"""The page of search trees: what the values of a process reward model's labels come from.

Trees are data in the page, each compressed by itself, and a script draws the one that is looked at. What a model wrote
cannot become markup, as on the pages of answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from mmeureka_jax.files import write_atomic
from mmeureka_jax.process.console import plural
from mmeureka_jax.report.eval_page import flatten
from mmeureka_jax.report.formula_table import draw_formulas
from mmeureka_jax.report.formulas import pattern_for_scripts
from mmeureka_jax.report.scripted_page import fill_template, note_of_formulas, packed, to_element_text

Steps = Sequence[str]
_BINS = 10  # of values above 0 and below 1


@dataclass(frozen=True)
class ShownNode:
    """
    Attributes:
        parent: its number in the list of nodes; the root, which comes first, has -1.
        segment: the steps that it adds to its parent's.
        rollouts: for each whether it is right, and its steps.
    """

    parent: int
    segment: Steps
    value: float
    visits: int
    rollouts: Sequence[tuple[bool, Steps]]


@dataclass(frozen=True)
class ShownPath:
    """A path in the training set.

    Attributes:
        nodes: the numbers of those whose segments its markers follow.
        labels: of the markers.
    """

    nodes: Sequence[int]
    labels: Sequence[float]


@dataclass(frozen=True)
class ShownTree:
    """
    Attributes:
        pictures: `data:` addresses, or None for one that cannot be read.
        notes: what there is to say about the problem, such as that its picture is not there.
        left_out: paths that are not in the training set, counted by the reason.
    """

    id: str
    question: str
    answer: str
    nodes: Sequence[ShownNode]
    paths: Sequence[ShownPath]
    left_out: Sequence[tuple[int, str]]
    pictures: Sequence[str | None] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class TreeNumbers:
    """A line of the list of all trees."""

    id: str
    value: float
    searches: int
    rollouts: int
    negative: int
    positive: int
    labels: int


@dataclass(frozen=True)
class Summary:
    """
    Attributes:
        source: the files of trees, for the head.
        trees: all of them; the page shows the first ones.
        labels: the table of what is in the training set.
        made_with: the settings of the trees; where they differ, a list of the values.
        notes: what there is to say about all of them.
    """

    source: str
    trees: Sequence[TreeNumbers]
    labels: str
    made_with: Mapping[str, Any]
    notes: Sequence[str] = ()


def write_tree_page(path: Path, summary: Summary, shown: Sequence[ShownTree]) -> None:
    """Writes the page."""
    steps = [step for tree in shown for node in tree.nodes for step in node.segment]
    formulas = draw_formulas(
        [tree.question for tree in shown],
        [tree.answer for tree in shown],
        [*steps, *(step for tree in shown for node in tree.nodes for _, own in node.rollouts for step in own)],
    )
    whole = len(shown) == len(summary.trees)
    part = "" if whole else f"The first {len(shown):,} of {len(summary.trees):,} trees; --id and --limit show others."
    notes = [*summary.notes, part, note_of_formulas(formulas)]
    page = fill_template(
        "tree_template.html",
        title="Search trees",
        subtitle=escape(summary.source),
        tiles=_tiles(summary.trees),
        histogram=_histogram([tree.value for tree in summary.trees]),
        labels=_label_table(summary.labels),
        settings=_settings(summary.made_with),
        notes="".join(f'<p class="hint">{escape(note)}</p>' for note in notes if note),
        data=to_element_text({"list": [_line(tree) for tree in summary.trees[: len(shown)]]}),
        trees=to_element_text([packed(_packed(tree)) for tree in shown]),
        formulas=to_element_text(packed({"pattern": pattern_for_scripts(), "trees": formulas.trees})),
    )
    write_atomic(path, page)


def _line(tree: TreeNumbers) -> list[str | float]:
    return [tree.id, tree.value, tree.searches, tree.rollouts, tree.negative, tree.positive, tree.labels]


def _packed(tree: ShownTree) -> dict[str, Any]:
    """A tree as the script reads it: a text that occurs more than once is there once."""
    texts: dict[str, int] = {}

    def numbers(steps: Steps) -> list[int]:
        return [texts.setdefault(step, len(texts)) for step in steps]

    nodes = [
        [node.parent, numbers(node.segment), node.value, node.visits]
        + [[[int(right), *numbers(steps)] for right, steps in node.rollouts]]
        for node in tree.nodes
    ]
    return {
        "id": tree.id,
        "question": tree.question,
        "answer": tree.answer,
        "pictures": list(tree.pictures),
        "notes": list(tree.notes),
        "nodes": nodes,
        "texts": list(texts),
        "paths": [[list(path.nodes), list(path.labels)] for path in tree.paths],
        "left": [list(reason) for reason in tree.left_out],
    }


def _tiles(trees: Sequence[TreeNumbers]) -> str:
    used = sum(0 < tree.value < 1 for tree in trees)
    searches = sum(tree.searches for tree in trees)
    rollouts = sum(tree.rollouts for tree in trees)
    negative = sum(tree.negative for tree in trees)
    positive = sum(tree.positive for tree in trees)
    labels = sum(tree.labels for tree in trees)
    tiles = [
        ("trees", len(trees), f"{used:,} solved sometimes, so used"),
        ("searches", searches, f"{searches / len(trees):.1f} a tree"),
        ("rollouts", rollouts, f"{rollouts / len(trees):,.0f} a tree"),
        ("paths for training", negative + positive, f"{negative:,} negative, {positive:,} positive"),
        ("labels", labels, "one after each segment of a path"),
    ]
    return "".join(
        f'<div class="tile"><div class="name">{name}</div><div class="value">{value:,}</div>'
        f'<div class="note">{note}</div></div>'
        for name, value, note in tiles
    )


def _histogram(values: Sequence[float]) -> str:
    """How many trees have a root of each value; 0 and 1 have bars of their own, as their trees are not used."""
    counts = [0] * (_BINS + 2)
    for value in values:
        counts[0 if value == 0 else _BINS + 1 if value == 1 else 1 + min(int(value * _BINS), _BINS - 1)] += 1
    most = max(counts)
    width = 30
    shapes = []
    for place, count in enumerate(counts):
        left = place * width + (place > 0) * 8 + (place > _BINS) * 8
        height = 90 * count / most
        color = "var(--axis)" if place in (0, _BINS + 1) else mixed((place - 0.5) / _BINS)
        shapes.append(
            f'<rect x="{left + 2}" y="{110 - height:.1f}" width="{width - 4}" height="{height:.1f}" fill="{color}"/>'
        )
        if count:
            shapes.append(_words(left + width / 2, 105 - height, f"{count:,}"))
    edge = width + 8
    right = edge + (_BINS + 1) * width + 8
    for place in range(2, _BINS, 2):
        shapes.append(_words(edge + place * width, 126, f"{place / _BINS:g}", "axis"))
    shapes.append(_words(width / 2, 126, "0", "axis"))
    shapes.append(_words(right - width / 2, 126, "1", "axis"))
    shapes.append(f'<line x1="0" x2="{right}" y1="110" y2="110" stroke="var(--axis)"/>')
    name = "trees by the value of their root"
    return f'<svg viewBox="0 0 {right} 132" role="img" aria-label="{name}">{"".join(shapes)}</svg>'


def mixed(value: float) -> str:
    """The colour of a value."""
    return f"color-mix(in oklab, var(--good) {100 * value:.0f}%, var(--bad))"


def _words(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" class="{kind}">{escape(text)}</text>'


def _label_table(table: str) -> str:
    rows = []
    for line in table.split("\n"):
        count, _, what = line.strip().partition("  ")
        inner = " class=inner" if what.startswith(" ") else ""
        rows.append(
            f'<tr><th scope="row"{inner}>{escape(what.strip())}</th><td class="number">{escape(count)}</td></tr>'
        )
    return f"<table>{''.join(rows)}</table>"


def _settings(made_with: Mapping[str, Any]) -> str:
    rows = [f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in flatten(made_with)]
    summary = f"<summary>Settings<span>{plural(len(rows), 'value')} that the trees are made with</span></summary>"
    return f'<details class="box">{summary}<table>{"".join(rows)}</table></details>' if rows else ""
