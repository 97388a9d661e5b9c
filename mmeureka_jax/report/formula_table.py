"""The formulas of many texts, each drawn once, for the script of a page that shows few of these texts at a time."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mmeureka_jax.process.console import progress
from mmeureka_jax.report.formulas import Tree, formulas_in, is_bare_formula, to_tree

MAX_FORMULAS = 30_000  # different ones, about 0.2 ms each
MAX_CHARACTERS = 6_000_000  # of all trees in a page

_TAG = re.compile("</?(?:think|step|answer)>")  # no formula goes across one


@dataclass(frozen=True)
class FormulaTable:
    """
    Attributes:
        trees: by the formula as it is written.
        left_out: different formulas that are not in the page, so that it stays small.
    """

    trees: dict[str, Tree]
    left_out: int


def draw_formulas(questions: Iterable[str], golds: Iterable[str], responses: Iterable[str]) -> FormulaTable:
    """The formulas of questions and gold answers, then those of responses, the most frequent first, up to the limits.

    Args:
        questions, golds, responses: the texts of a page. A formula is drawn once, however many of them have it.
    """
    latex: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for text in questions:
        latex.update(formulas_in(text))
    for gold in golds:
        latex.update([(gold, gold)] if is_bare_formula(gold) else [])
        latex.update(formulas_in(gold))
    first = list(latex)
    for response in responses:
        for part in _TAG.split(response):
            found = list(formulas_in(part))
            latex.update(found)
            counts.update(source for source, _ in found)
    sources = list(dict.fromkeys([*first, *(source for source, _ in counts.most_common())]))
    trees, tried = _trees({source: latex[source] for source in sources[:MAX_FORMULAS]})
    return FormulaTable(trees, len(sources) - tried)


def _trees(latex: dict[str, str]) -> tuple[dict[str, Tree], int]:
    """The trees of those that can be read, and how many were tried before there was no space left."""
    trees: dict[str, Tree] = {}
    left = MAX_CHARACTERS
    with progress(len(latex), "formulas", unit="formula", enabled=len(latex) > 0) as bar:
        for tried, (source, body) in enumerate(latex.items()):
            tree = to_tree(body)
            if tree is not None:
                left -= len(source) + len(json.dumps(tree, ensure_ascii=False, separators=(",", ":")))
                if left < 0:
                    return trees, tried
                trees[source] = tree
            bar.update()
    return trees, len(latex)
