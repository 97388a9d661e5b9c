"""The figures of the best of N, and their page, from scores that are made up."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from helpers.choices import recounted

from mmeureka_jax.prm.aggregators import AGGREGATORS, aggregate
from mmeureka_jax.prm.answer_scores import ScoredAnswers
from mmeureka_jax.prm.best_of_n_files import figures_of, in_words
from mmeureka_jax.prm.drawn_answers import DrawnAnswers
from mmeureka_jax.report.best_of_n_page import write_best_of_n_page

N = 4
EVIL = "</table><script>alert(1)</script>"


def drawn_answers(right, stated, overall) -> DrawnAnswers:
    responses = [["text"] * len(row) for row in right]
    ids = [f"p{i}" for i in range(len(right))]
    return DrawnAnswers("mmk12", EVIL, ids, responses, stated, {"ours": right}, np.asarray(overall), [], {})


def test_figures_are_of_the_problems_that_count(tmp_path):
    """The problems that do not count are all right, and would show."""
    generator = np.random.default_rng(0)
    overall = np.asarray([False, True, True, False, True, False])
    right = generator.random((6, N)) < 0.4
    right[~overall] = True
    steps = generator.random((6, N, 2)).tolist()
    steps[1][0] = []
    stated = [[None] + [f"{i}"] * i + [f"{j}" for j in range(N - 1 - i)] for i in range(N)] + [
        ["4", "8", None, "8"]
    ] * 2
    commonest = [next(iter(Counter(text for text in row if text).most_common(1)))[0] for row in stated]
    example = {"id": EVIL, "sample": 1, "reason": EVIL}
    scored = ScoredAnswers(steps, without_steps=1, unscored=2, examples=[example])
    results = figures_of(drawn_answers(right, stated, overall), scored)
    figures = results["judges"]["ours"]
    assert (results["problems"], figures["problems"], results["answers"]) == (6, 3, 24)
    own = [i for i in range(6) if overall[i]]
    assert figures["random"]["mean"] == pytest.approx(right[own].mean())
    votes = [right[i, stated[i].index(commonest[i])] for i in own]
    assert figures["majority"]["mean"] == pytest.approx(np.mean(votes))
    for name in AGGREGATORS:
        scores = [[aggregate(name, one) for one in steps[i]] for i in own]
        for k in (1, 2, 4):
            assert figures["best_of_k"][name][str(k)]["mean"] == pytest.approx(recounted(scores, right[own], k))
    *lines, last = in_words("mmk12", results)
    assert len(lines) == 1 and "mmk12: 3 of 24 answers have no steps (1) or cannot be scored (2)" in last

    page = write_best_of_n_page({"prm": {"model": EVIL}, "results": {"mmk12": results}}, tmp_path).read_text()
    assert "<script" not in page and "3 problems count in the benchmark" in page
    for figure in [figures["random"], figures["majority"], *figures["best_of_k"]["last"].values()]:
        ends = "–".join(f"{100 * end:.1f}" for end in figure["interval"])
        assert f"{100 * figure['mean']:.1f}<small>{ends}</small>" in page
    nothing = figures_of(drawn_answers(right, stated, [False] * 6), scored)
    assert nothing["judges"] == {"ours": None}
    assert "no problem of this part counts" in next(in_words("mmk12", nothing))
    write_best_of_n_page({"prm": {"model": "m"}, "results": {"mmk12": nothing}}, tmp_path)
