"""How well a process reward model tells right steps from wrong ones: measured on labelled processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from mmeureka_jax.config.schema import Config
from mmeureka_jax.models.policy import Params
from mmeureka_jax.prm.answer_validation import AnswerValidation, open_answer_validation
from mmeureka_jax.prm.form import MarkerTokens
from mmeureka_jax.prm.scorer import Processes, Scorer
from mmeureka_jax.process.console import say_facts
from mmeureka_jax.setup.policy import OpenedPolicy
from mmeureka_jax.setup.problems import open_checked

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor

BINS = 10  # of the calibration curve
_SMALLEST = np.finfo(np.float32).tiny


@dataclass(frozen=True)
class StepValidation:
    """Labelled processes, and what scores them. All hosts call `run` together.

    Attributes:
        labels: of each process.
        answers: whose choice is measured too, if `prm.answers` names any.
    """

    scorer: Scorer
    processes: Sequence[Processes]
    labels: Sequence[Float[np.ndarray, " m"]]
    answers: AnswerValidation | None = None

    @property
    def count(self) -> int:
        """Of rows that are scored."""
        return len(self.processes) + (self.answers.count if self.answers is not None else 0)

    def run(self, params: Params, on_scored: Callable[[int], object]) -> dict[str, float]:
        """The metrics under these parameters."""
        scores = dataclasses.replace(self.scorer, params=params).score_processes(self.processes, on_scored)
        measured = step_metrics(np.concatenate([own[0] for own in scores]), np.concatenate(self.labels))
        measured |= {"validation/processes": float(len(self.processes))}
        return measured if self.answers is None else measured | self.answers.run(params, on_scored)


def open_step_validation(config: Config, opened: OpenedPolicy, processor: Processor) -> StepValidation | None:
    """The processes of `prm.validation`; None without any.

    Raises:
        UserError: none of them can be used, or their problems are not there.
    """
    from mmeureka_jax.prm.examples import labelled_process, open_labels

    prm = config.prm
    if prm.validation is None or config.tracking.validate_every == 0:
        return None
    checked = open_checked(
        prm.validation,
        config.data,
        processor,
        require_answer=False,
        also_check=lambda problem, processor: labelled_process(problem, processor, config),
        bars=config.tracking.progress,
        source=open_labels(prm.validation, config.data.validation or config.data.train, config.data),
    )
    say_facts({"validation": checked.describe()})
    problems = [checked.source[row] for row in checked.indices]
    labelled = [labelled_process(problem, processor, config) for problem in problems]
    scorer = Scorer(opened, processor, MarkerTokens.of(processor), {}, prm.validation_batch)
    return StepValidation(
        scorer,
        [Processes(problem, [tokens]) for problem, (tokens, _) in zip(problems, labelled, strict=True)],
        [labels for _, labels in labelled],
        open_answer_validation(config, opened, processor, scorer),
    )


def step_metrics(scores: Float[np.ndarray, " m"], labels: Float[np.ndarray, " m"]) -> dict[str, float]:
    """The metrics of steps from their scores, and labels from 0 to 1; some of them need steps of both kinds, or a
    score in their bin."""
    scores = np.asarray(scores, np.float64)
    labels = np.asarray(labels, np.float64)
    log_yes, log_no = (np.log(np.maximum(p, _SMALLEST)) for p in (scores, 1 - scores))
    metrics = {
        "validation/cross_entropy": float(-np.mean(labels * log_yes + (1 - labels) * log_no)),
        "validation/accuracy": float(np.mean((scores >= 0.5) == (labels >= 0.5))),
        "validation/steps": float(len(labels)),
    }
    if (area := auroc(scores, labels > 0)) is not None:
        metrics["validation/auroc"] = area
    error = 0.0
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    for number in np.unique(bins):
        inside = bins == number
        score = scores[inside].mean()
        label = labels[inside].mean()
        error += abs(score - label) * inside.mean()
        name = f"validation/calibration/{number / BINS:g}"
        metrics |= {f"{name}/score": float(score), f"{name}/label": float(label), f"{name}/share": float(inside.mean())}
    return metrics | {"validation/calibration_error": float(error)}


def auroc(scores: Float[np.ndarray, " m"], positive: np.ndarray) -> float | None:
    """The chance that a positive one of two steps, one of each kind, scores higher; equal scores count one half.
    None without steps of both kinds."""
    count = int(positive.sum())
    others = len(positive) - count
    if not count or not others:
        return None
    _, place, repeats = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(repeats) - (repeats - 1) / 2)[place]  # of equal scores the mean of theirs, counted from 1
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * others))
