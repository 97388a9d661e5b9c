"""What choosing among drawn answers gives, while a process reward model is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from helpers.simulated_policy import problem_of

from mmeureka_jax.config.load import load_config
from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.aggregators import AGGREGATORS, aggregate
from mmeureka_jax.prm.answer_scores import AnswersToScore
from mmeureka_jax.prm.answer_validation import AnswerValidation
from mmeureka_jax.prm.drawn_answers import DrawnAnswers
from mmeureka_jax.setup.checks import validate_config

RIGHT = np.array([[True, False, False], [False, True, True], [False, False, False], [True, True, False]])
STATED = [["5", "4", "4"], ["1", "2", "2"], ["7", None, "8"], ["3", "3", "9"]]
SCORES = [[[0.9, 0.8], [0.2], [0.85, 0.1, 0.3]], [[0.7], [], [0.6]], [], [[0.3, 0.4], [0.35], [0.9, 0.05]]]


@dataclass(frozen=True)
class Table:
    """A scorer that looks its scores up."""

    params: Any

    def score_processes(self, items, on_scored):
        on_scored(len(items))
        return [[np.asarray(self.params[int(token[0])][int(token[1])]) for token in item.tokens] for item in items]


def validation() -> AnswerValidation:
    """Answer 1 to problem 1 has no steps, and no answer to problem 2 has any."""
    read = []
    for place, own in enumerate(SCORES):
        tokens = {sample: np.array([place, sample]) for sample, scores in enumerate(own) if scores}
        read.append(AnswersToScore(problem_of(place) if own else None, tokens))
    drawn = DrawnAnswers(
        name="rows", title="", ids=list("abcd"), responses=[[""] * 3] * 4, stated=STATED, verdicts={"accuracy": RIGHT},
        overall=np.ones(4, bool), source=None, places={},
    )  # fmt: skip
    return AnswerValidation(Table(None), drawn, read)


def test_metrics_are_those_of_a_plain_recount():
    seen = []
    row = validation().run(SCORES, seen.append)
    assert sum(seen) == 4
    assert row["validation/random_choice"] == pytest.approx(5 / 12)
    assert row["validation/pass_at_n"] == 0.75
    assert row["validation/majority_vote"] == 0.5  # 4, 2, 7 and 3
    for name in AGGREGATORS:
        chosen = 0
        for own, right in zip([own or [[], [], []] for own in SCORES], RIGHT, strict=True):
            scores = [aggregate(name, steps) for steps in own]
            chosen += bool(right[scores.index(max(scores))])
        assert row[f"validation/best_of_n/{name}"] == pytest.approx(chosen / 4), name
    assert len({row[f"validation/best_of_n/{name}"] for name in AGGREGATORS}) > 1


def test_answers_without_validation_are_refused():
    config = load_config(None, ["prm.labels=l.jsonl", "prm.answers=folder", "model.checkpoint=m"])
    with pytest.raises(UserError, match="prm.answers is looked at in validation: set prm.validation"):
        validate_config(config, command="prm")
