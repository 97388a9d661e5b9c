"""A page with a browser of judged answers: what `eval.html` and the comparison of two evaluations have in common.

Answers are data in the page, and a script makes cards of the few that are looked at. Nothing that a model or a data set
wrote can become markup: the script sets texts only, the data cannot end their element, and the page's content policy
allows no script but this one, by its hash. Formulas are trees of known elements in the data, which the script makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from mmeureka_jax.files import write_atomic
from mmeureka_jax.report.formula_table import FormulaTable, draw_formulas
from mmeureka_jax.report.formulas import pattern_for_scripts
from mmeureka_jax.report.judges import MODEL
from mmeureka_jax.report.scripted_page import fill_template, note_of_formulas, read_element, to_element_text

LEFT_OUT = ""  # a picture that is not in the page

_NOT_IN_PAGE = -1
_UNREADABLE = -2


@dataclass(frozen=True)
class Problem:
    """A problem as it is shown.

    Attributes:
        groups: for each breakdown the values that it counts for.
        pictures: `data:` addresses; LEFT_OUT, or None for one that cannot be read.
        change: of a comparison, for each judge 1 where the second side is better, -1 where it is worse.
    """

    id: str
    question: str
    answer: str
    groups: Mapping[str, Sequence[str]]
    pictures: Sequence[str | None] = ()
    change: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Browsed:
    """The answers to a benchmark.

    Attributes:
        answers: for each side the rows of its NAME.jsonl.
    """

    name: str
    title: str
    problems: Sequence[Problem]
    answers: Sequence[Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Head:
    """What is above the browser; all but `title` and `subtitle` is markup.

    Attributes:
        sections: by title.
    """

    title: str
    subtitle: str
    tiles: str
    sections: Mapping[str, str]
    footer: str


def write_page(path: Path, head: Head, browsed: Sequence[Browsed], sides: Sequence[str]) -> Path:
    """Writes the page and returns its path.

    Args:
        sides: names of those whose answers stand side by side; one alone has none.
    """
    pictures: dict[str, int] = {}
    data = {"sides": list(sides), "benchmarks": [_packed(one, pictures) for one in browsed]}
    formulas = _formulas(browsed)
    anchors = {title: f"section-{number}" for number, title in enumerate(head.sections)} | {"Answers": "answers"}
    page = fill_template(
        "eval_template.html",
        title=escape(head.title),
        subtitle=escape(head.subtitle),
        tiles=head.tiles,
        nav="".join(f'<a href="#{anchor}">{escape(title)}</a>' for title, anchor in anchors.items()),
        sections="".join(
            f'<h2 id="{anchors[title]}">{escape(title)}</h2>{body}' for title, body in head.sections.items()
        ),
        note=" ".join(filter(None, [_note_of_pictures(browsed), note_of_formulas(formulas)])),
        footer=head.footer,
        data=to_element_text(data),
        pictures=to_element_text(list(pictures)),
        formulas=to_element_text({"pattern": pattern_for_scripts(), "trees": formulas.trees}),
    )
    write_atomic(path, page)
    return path


def pictures_of(page: str) -> dict[tuple[str, str], list[str | None]]:
    """The pictures in a page by benchmark and id of problem. Raises ValueError if it is no such page."""
    pictures = [*read_element(page, "pictures"), None, LEFT_OUT]  # unreadable ones have the number -2, others -1
    try:
        return {
            (benchmark["name"], problem[0]): [pictures[number] for number in problem[4]]
            for benchmark in read_element(page, "data")["benchmarks"]
            for problem in benchmark["problems"]
        }
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"unexpected data ({error!r})") from None


def _packed(browsed: Browsed, pictures: dict[str, int]) -> dict[str, Any]:
    """A benchmark as the script reads it, in lists without names; adds to the page's pictures."""
    names = list(dict.fromkeys(name for problem in browsed.problems for name in problem.groups))
    values = {
        name: sorted({value for problem in browsed.problems for value in problem.groups.get(name, ())})
        for name in names
    }
    places = {name: {value: place for place, value in enumerate(own)} for name, own in values.items()}
    numbers = {problem.id: number for number, problem in enumerate(browsed.problems)}

    def picture(address: str | None) -> int:
        if address is None:
            return _UNREADABLE
        return _NOT_IN_PAGE if address == LEFT_OUT else pictures.setdefault(address, len(pictures))

    return {
        "name": browsed.name,
        "title": browsed.title,
        "samples": 1 + max((row["sample"] for side in browsed.answers for row in side), default=0),
        "breakdowns": [[name, own] for name, own in values.items()],
        "problems": [
            [
                problem.id,
                problem.question,
                problem.answer,
                [[places[name][value] for value in problem.groups.get(name, ())] for name in names],
                [picture(address) for address in problem.pictures],
                *([] if problem.change is None else [problem.change]),
            ]
            for problem in browsed.problems
        ],
        "answers": [
            [
                *(numbers[row["id"]], side, row["sample"], row["official"], row["ours"], int(row["truncated"])),
                *(_text(row["extracted"]), _text(row["reason"]), row["response"]),
                *([row[MODEL]] if MODEL in row else []),
            ]
            for side, rows in enumerate(browsed.answers)
            for row in rows
        ],
    }


def _text(value: Any) -> str | None:
    return value if value is None else str(value)


def _formulas(browsed: Sequence[Browsed]) -> FormulaTable:
    problems = [problem for one in browsed for problem in one.problems]
    return draw_formulas(
        (problem.question for problem in problems),
        (problem.answer for problem in problems),
        (row["response"] for one in browsed for side in one.answers for row in side),
    )


def _note_of_pictures(browsed: Sequence[Browsed]) -> str:
    """How many problems are shown with their pictures, where not all are."""
    with_pictures = [problem for one in browsed for problem in one.problems if problem.pictures]
    whole = sum(LEFT_OUT not in problem.pictures for problem in with_pictures)
    if whole == len(with_pictures):
        return "Pictures are scaled down." if with_pictures else ""
    return (
        f"This page has the pictures of {whole:,} of {len(with_pictures):,} problems, scaled down, so that it stays "
        "small: first of those that were not answered right every time."
    )
