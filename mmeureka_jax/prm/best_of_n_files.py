"""The best of N answers, for the folder of an evaluation.

OUTPUT/NAME.scores.jsonl   the scores of every answer's steps (answer_scores.py)
OUTPUT/best_of_n.json      what each way to choose gives, with intervals, by benchmark and judge
OUTPUT/best_of_n.html      the same as tables and charts
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmeureka_jax.files import write_atomic
from mmeureka_jax.prm.answer_scores import AnswerScorer, ScoredAnswers
from mmeureka_jax.prm.best_of_n import best_of_n
from mmeureka_jax.prm.drawn_answers import DrawnAnswers
from mmeureka_jax.process.console import waiting
from mmeureka_jax.report.best_of_n_page import write_best_of_n_page

FIGURES_FILE = "best_of_n.json"
MAIN = "mean_odds"  # the aggregator of MM-PRM's main results


def write_best_of_n(scorer: AnswerScorer, answers: Sequence[DrawnAnswers], folder: Path) -> dict[str, Any]:
    """Scores the answers and writes the files above.

    Returns:
        What best_of_n.json holds.

    Raises:
        UserError: see `AnswerScorer.score`.
    """
    results = {}
    for drawn in answers:
        scored = scorer.score(drawn, folder)
        with waiting(f"intervals of {drawn.name}"):
            results[drawn.name] = figures_of(drawn, scored)
    content = {"prm": scorer.described, "results": results}
    write_atomic(folder / FIGURES_FILE, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
    write_best_of_n_page(content, folder)
    return content


def figures_of(drawn: DrawnAnswers, scored: ScoredAnswers) -> dict[str, Any]:
    """
    Returns:
        title, n, problems: `problems` are all that were asked.
        answers, without_steps, unscored, examples: answers, those without steps, and those that cannot be scored, the
            first of them with the reason.
        judges: by judge the figures of `BestOfN`, of the problems that count overall.
        partial: True for a part of a release, else absent.
    """
    counted = np.flatnonzero(drawn.overall).tolist()
    steps = [scored.steps[i] for i in counted]
    stated = [drawn.stated[i] for i in counted]
    return {
        "title": drawn.title,
        "n": drawn.n,
        "problems": len(drawn.ids),
        "answers": drawn.count,
        "without_steps": scored.without_steps,
        "unscored": scored.unscored,
        "examples": list(scored.examples),
        "judges": {
            judge: best_of_n(steps, right[counted], stated).figures() if len(counted) else None
            for judge, right in drawn.verdicts.items()
        },
        **({"partial": True} if drawn.is_part else {}),
    }


def in_words(name: str, results: Mapping[str, Any]) -> Iterator[str]:
    """The figures of a benchmark, a line for each judge."""
    for judge, figures in results["judges"].items():
        if figures is None:
            yield f"{name}, {judge}: no problem of this part counts in the benchmark's score"
            continue
        n = str(figures["n"])
        by_name = {aggregator: by_k[n] for aggregator, by_k in figures["best_of_k"].items()}
        highest = max(by_name, key=lambda aggregator: by_name[aggregator]["mean"])
        shown = {
            "random": figures["random"],
            "majority": figures["majority"],
            MAIN: by_name[MAIN],
            f"highest ({highest})": by_name[highest],
            f"pass@{n}": figures["pass_at_k"][n],
        }
        values = ", ".join(f"{what} {_in_percent(figure)}" for what, figure in shown.items())
        yield f"{name}, {judge}, one of {n} answers: {values}"
    if without := results["without_steps"] + results["unscored"]:
        yield (
            f"{name}: {without:,} of {results['answers']:,} answers have no steps ({results['without_steps']:,}) or "
            f"cannot be scored ({results['unscored']:,}); they score 0"
        )


def _in_percent(figure: Mapping[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{figure['mean']:.1%} ({100 * low:.1f} to {100 * high:.1f})"
