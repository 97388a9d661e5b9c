"""The best of N answers: exact means over all choices, compared with making each choice."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest

from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.intervals import bootstrap
from mmeureka_jax.prm.aggregators import AGGREGATORS, aggregate
from mmeureka_jax.prm.best_of_n import best_of_k, best_of_n


def by_choosing(scores: list[float], right: list[bool], k: int) -> float:
    """The mean over all parts of k answers; of equal scores the first counts."""
    verdicts = []
    for part in itertools.combinations(range(len(scores)), k):
        best = part[0]
        for number in part[1:]:
            if scores[number] > scores[best]:
                best = number
        verdicts.append(right[best])
    return sum(verdicts) / len(verdicts)


def test_the_best_of_k_is_the_mean_over_all_parts():
    generator = np.random.default_rng(0)
    for n in range(1, 7):
        for scores in (generator.random((20, n)), generator.integers(3, size=(20, n)).astype(float)):
            right = generator.random((20, n)) < 0.4
            for k in range(1, n + 1):
                expected = [
                    by_choosing(list(row), list(verdicts), k) for row, verdicts in zip(scores, right, strict=True)
                ]
                np.testing.assert_allclose(best_of_k(scores, right, k), expected, atol=1e-12)


def drawn(problems: int, n: int, seed: int = 0):
    chance = random.Random(seed)
    lengths = [[chance.randint(0, 3) for _ in range(n)] for _ in range(problems)]
    steps = [[[chance.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(length)] for length in row] for row in lengths]
    answers = [[chance.choice(["a", "b", "c", None]) for _ in range(n)] for _ in range(problems)]
    right = [[answer == "a" for answer in row] for row in answers]
    return steps, np.asarray(right), answers


def by_vote(answers: list[str | None], right: list[bool]) -> float:
    best = max((answers.count(answer) for answer in answers if answer is not None), default=0)
    first = [number for number, answer in enumerate(answers) if answer is not None and answers.count(answer) == best]
    return float(right[first[0]]) if first else 0.0


def test_every_way_to_choose_is_what_a_loop_makes_of_it():
    steps, right, answers = drawn(problems=40, n=6)
    answers[0] = [None] * 6
    right[0] = False
    result = best_of_n(steps, right, answers)
    figures = json.loads(json.dumps(result.figures()))
    assert (figures["n"], figures["problems"]) == (6, 40)

    verdicts = right.tolist()
    assert figures["random"]["mean"] == pytest.approx(np.mean([sum(row) / 6 for row in verdicts]))
    votes = [by_vote(row, given) for row, given in zip(answers, verdicts, strict=True)]
    assert result.majority.tolist() == votes
    assert list(figures["pass_at_k"]) == ["1", "2", "4", "6"] and list(figures["best_of_k"]) == list(AGGREGATORS)
    for name, by_k in figures["best_of_k"].items():
        scores = [[aggregate(name, answer) for answer in row] for row in steps]
        assert list(by_k) == ["1", "2", "4", "6"]
        for k, figure in by_k.items():
            shares = [by_choosing(row, given, int(k)) for row, given in zip(scores, verdicts, strict=True)]
            assert figure["mean"] == pytest.approx(np.mean(shares), abs=1e-12)
            assert figure["interval"] == pytest.approx(bootstrap(np.asarray(shares)), abs=1e-12)
            assert figure["mean"] <= figures["pass_at_k"][k]["mean"] + 1e-12
        assert by_k["1"]["mean"] == pytest.approx(figures["random"]["mean"])
    assert best_of_n(steps, right).figures()["majority"] is None


@pytest.mark.parametrize(
    ("steps", "right", "answers", "message"),
    [
        ([], [], None, "at least one"),
        ([[]], [[]], None, "at least one"),
        ([[[0.5]]], [[True, False]], None, "needs scores of 2 answers to each of 1 problems"),
        ([[[0.5], []]], [[True, False]], [["1"]], "needs answers of 2 answers to each of 1 problems"),
        ([[[0.5], []]], [[True, False]], [], "needs answers of"),
    ],
)
def test_what_does_not_fit_together_is_refused(steps, right, answers, message):
    with pytest.raises(UserError, match=message):
        best_of_n(steps, np.asarray(right, bool), answers)
