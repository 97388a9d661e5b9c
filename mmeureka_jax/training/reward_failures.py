"""What a run says and does about rules that fail: an answer that a rule cannot score gets 0 from it, which must not go
unnoticed.

A rule of the user's own is tried before the first step. During the run each new reason is said once. A run in
which a rule fails on every answer, step after step, stops.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import RunStopped
from mmeureka_jax.rewards.base import RewardRequest, RewardResult, kind_of_failure
from mmeureka_jax.rewards.chosen import rule_weights, weight_key
from mmeureka_jax.rewards.custom import quoted

if TYPE_CHECKING:
    from mmeureka_jax.rewards.workers import RewardWorkers
    from mmeureka_jax.setup.problems import CheckedProblems

logger = logging.getLogger(__name__)


def check_custom(config: RewardConfig, rewards: RewardWorkers, problems: CheckedProblems) -> None:
    """Tries the custom rule, if there is one, with the gold answer of a problem; says so if it does not count.

    Raises:
        UserError: it fails.
    """
    if config.custom is None:
        return
    if config.custom_weight == 0:
        logger.warning("reward.custom_weight is 0: reward.custom is computed and logged, but does not count")
    if config.custom_trial:
        problem = problems.source[problems.indices[0]]
        response = quoted(problem.answer or "", config.accuracy)
        request = RewardRequest(response, problem.answer or "", problem.question, problem.metadata)
        rewards.try_custom(request, f"the gold answer of problem {problem.id!r}")


class FailureWatch:
    """Follows the failures of a run's rules."""

    def __init__(self, config: RewardConfig) -> None:
        self._limit = config.max_failed_steps
        self._counts = [rule for rule, weight in rule_weights(config).items() if weight]
        self._said: set[tuple[str, str]] = set()
        self._last: dict[str, str] = {}
        self._steps: Counter[str] = Counter()

    def note(self, scores: Iterable[RewardResult], step: int) -> None:
        """Says each reason that has not been there before, with its share of these answers."""
        scores = list(scores)
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for score in scores:
            for rule, reason in score.failures.items():
                found[rule, kind_of_failure(reason)].append(reason)
                self._last[rule] = reason
        for kind in found.keys() - self._said:
            logger.warning(
                "step %d: the %s rule failed on %d of %d answers (%.3g%%), which get 0 from it: %s",
                step, kind[0], len(found[kind]), len(scores), 100 * len(found[kind]) / len(scores), found[kind][0],
            )  # fmt: skip
        self._said |= found.keys()

    def end_step(self, failed: Mapping[str, np.ndarray], step: int) -> None:
        """Counts the steps in which a rule with a weight failed on every answer. All hosts call it with the same.

        Args:
            failed: of each rule, whether it failed, for all answers of the step.

        Raises:
            RunStopped: there were `reward.max_failed_steps` such steps in a row.
        """
        for rule in self._counts:
            if rule not in failed:
                continue
            self._steps[rule] = self._steps[rule] + 1 if np.all(failed[rule]) else 0
            if self._limit and self._steps[rule] >= self._limit:
                why = f", the last time for this reason: {self._last[rule]}" if rule in self._last else ""
                raise RunStopped(
                    f"step {step}: the {rule} rule failed on every answer of {self._limit} steps in a row{why}. "
                    f"Correct it, set {weight_key(rule)} to 0, or raise reward.max_failed_steps (0: no limit)"
                )
