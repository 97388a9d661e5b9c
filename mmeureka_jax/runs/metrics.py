"""What each metric of a run means, by the name that `metrics.jsonl`, TensorBoard and the report have for it.

A metric that a run logs has a line here; a test reads what runs log. Parts in capitals stand for several names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from mmeureka_jax.rewards.rules import RULES


@dataclass(frozen=True)
class Metric:
    """One metric, or several that differ in a part of their name.

    Attributes:
        name: its name; a part in capitals is filled in, as in `reward/pass_at_K`.
        unit: what its number counts.
        meaning: a noun phrase.
    """

    name: str
    unit: str
    meaning: str

    def matches(self, name: str) -> bool:
        """Whether a logged name is this metric's."""
        return re.fullmatch(re.sub(r"[A-Z]+", "[^/]+(?:/[^/]+)*", self.name), name) is not None


# Means are over all responses of a step and all hosts, before the online filter, unless a line says otherwise.
METRICS = (
    Metric("reward/total", "reward", "mean reward of a response: the sum of weight times rule"),
    Metric("reward/accuracy", "reward", "mean of the accuracy rule: the share of right answers"),
    *(Metric(f"reward/{name}", "reward", f"mean of the {name} rule: {rule.meaning}") for name, rule in RULES.items()),
    Metric("reward/custom", "reward", "mean of your own rule; only with `reward.custom`"),
    Metric("reward/overlong", "reward", "mean penalty for length, 0 to -1; only with `reward.overlong_buffer`"),
    Metric("reward/failures", "share", "responses of which a rule failed, such as by its time limit"),
    Metric("reward/pass_at_K", "share", "chance that K responses to a problem hold a right one"),
    Metric("response/length", "tokens", "mean length of a response, the end token included"),
    Metric("response/truncated", "share", "responses that reached `sampler.max_new_tokens` without an end"),
    Metric("process/score", "share", "mean score of the steps that the step trains on; only with `reward.process`"),
    Metric("process/steps", "count", "mean number of scored steps of a response that is trained on"),
    Metric("process/unscored", "share", "of these responses those without a scored step"),
    Metric("filter/rounds", "count", "sampler calls that the step needed; 0: waiting groups were enough"),
    Metric("filter/kept", "share", "groups that the online filter kept"),
    Metric("filter/too_easy", "share", "groups above `rl.filter.upper`"),
    Metric("filter/too_hard", "share", "groups below `rl.filter.lower`"),
    Metric("filter/kept_all", "count", "sampler calls of which all groups were kept because none had passed"),
    Metric("filter/buffer", "groups", "groups that wait for the next step"),
    Metric("filter/staleness", "steps", "mean age of the step's groups: updates since then / updates of a step"),
    Metric("loss/total", "loss", "the loss that is minimised, the value loss of a critic apart"),
    Metric("loss/policy", "loss", "the part of the loss that moves the policy by its advantages"),
    Metric("loss/drift", "loss", "the weighted policy drift; only losses `cpgd`, `pg_drift`, `ppo_clip_drift`"),
    Metric("loss/entropy", "loss", "the weighted entropy, negative; only with `rl.entropy_coefficient`"),
    Metric("loss/kl", "loss", "the weighted KL to the initial policy; only with `rl.kl_coefficient` in the loss"),
    Metric("loss/value", "loss", "the squared error of the critic's values; only with a critic"),
    Metric("sft/loss", "nats", "mean negative log-probability of a token of the solutions (`mmeureka sft`)"),
    Metric("prm/loss", "nats", "mean cross-entropy of a step label (`mmeureka prm train`)"),
    Metric("prm/accuracy", "share", "labels on the same side of 0.5 as the score, which is at least 0.5 or below"),
    Metric("prm/label", "share", "mean label of the step's processes"),
    Metric("prm/labels", "count", "mean labels of a process"),
    Metric("policy/entropy", "nats", "mean entropy of the policy at a token"),
    Metric("policy/ratio", "ratio", "mean ratio of a token's probability to that under the policy that sampled it"),
    Metric("policy/ratio_max", "ratio", "the largest such ratio of a token"),
    Metric("policy/ratio_p01", "ratio", "the first percentile of such ratios over tokens"),
    Metric("policy/ratio_p99", "ratio", "their 99th percentile"),
    Metric("policy/ratio_p999", "ratio", "their 99.9th percentile"),
    Metric("policy/effective_sample_size", "share", "tokens that still count if each is weighted by its ratio"),
    Metric("policy/drift", "nats", "mean of r - 1 - ln r: an estimate of the KL from the policy that sampled"),
    Metric("policy/clip_fraction_low", "share", "tokens without a policy gradient because their ratio is too low"),
    Metric("policy/clip_fraction_high", "share", "tokens without one because it is too high, `rl.ratio_cap` included"),
    Metric("policy/importance", "ratio", "mean weight of a token; only with `rl.importance_cap`"),
    Metric("policy/kl_reference", "nats", "mean log-ratio to the initial policy; only with `rl.kl_coefficient`"),
    Metric("policy/kl_coefficient", "factor", "the weight of the KL in this step; only with `rl.kl_coefficient`"),
    Metric("policy/sampler_gap_mean", "nats", "mean difference of a log-probability in the sampler and in the update"),
    Metric("policy/sampler_gap_max", "nats", "the largest such difference"),
    Metric("critic/value_mean", "reward", "mean value that the critic predicts"),
    Metric("critic/return_mean", "reward", "mean return that it is to predict"),
    Metric("critic/explained_variance", "share", "the returns' variance that the values foresee; 1: all of it"),
    Metric("critic/clip_fraction", "share", "values held by `rl.critic.value_clip`"),
    Metric("critic/grad_norm", "norm", "norm of the critic's gradient before clipping"),
    Metric("optimizer/grad_norm", "norm", "global norm of the gradient before clipping"),
    Metric("optimizer/grad_norm/MODULE", "norm", "norm of a module's gradient before clipping"),
    Metric("optimizer/learning_rate", "rate", "learning rate of the update"),
    Metric("optimizer/skipped", "count", "updates left out for a loss or gradient that was not finite"),
    Metric("update/padding", "share", "places in the rows of an update that hold no token"),
    Metric("validation/accuracy", "share", "right greedy answers to the problems; `prm train`: as `prm/accuracy`"),
    Metric("validation/response_length", "tokens", "mean length of those answers"),
    Metric("validation/problems", "count", "problems that were validated on"),
    Metric("validation/processes", "count", "labelled processes of `prm.validation`"),
    Metric("validation/steps", "count", "their labels"),
    Metric("validation/cross_entropy", "nats", "mean cross-entropy of these labels"),
    Metric("validation/auroc", "share", "chance that a step with a label above 0 scores higher than one with 0"),
    Metric("validation/calibration_error", "share", "mean distance of score and label over the bins, by their steps"),
    Metric("validation/calibration/BIN/score", "share", "mean score of the steps with scores from BIN to BIN + 0.1"),
    Metric("validation/calibration/BIN/label", "share", "their mean label"),
    Metric("validation/calibration/BIN/share", "share", "these steps among all"),
    Metric("validation/best_of_n/AGGREGATOR", "share", "problems of `prm.answers` whose best answer is right"),
    Metric("validation/random_choice", "share", "right answers among all of these"),
    Metric("validation/majority_vote", "share", "their problems whose commonest answer is right"),
    Metric("validation/pass_at_n", "share", "their problems with a right answer"),
    Metric("benchmark/NAME/official", "share", "right answers by the benchmark's rule; with `tracking.benchmarks`"),
    Metric("benchmark/NAME/ours", "share", "right answers by the project's accuracy rule"),
    Metric("benchmark/NAME/unparsed", "share", "answers in which the benchmark's rule found nothing to judge"),
    Metric("benchmark/NAME/truncated", "share", "answers cut at the limit of tokens"),
    Metric("benchmark/NAME/failed", "share", "problems that could not be asked, and answers that could not be judged"),
    Metric("time/step", "s", "the whole step"),
    Metric("time/rollout", "s", "sampling"),
    Metric("time/reward", "s", "waiting for scores after sampling"),
    Metric("time/process", "s", "scoring steps; only with `reward.process`"),
    Metric("time/experience", "s", "advantages, and the log-probabilities and values that updates compare with"),
    Metric("time/update", "s", "optimiser steps"),
    Metric("time/validation", "s", "validation; only in validated steps"),
    Metric("time/benchmarks", "s", "public benchmarks, judging included; only in steps with them"),
    Metric("time/checkpoint", "s", "what the step before waited for its checkpoint"),
    Metric("time/compiles", "count", "programs that were compiled during the step"),
    Metric("time/rollout_tokens_per_s", "tokens/s", "response tokens sampled in a second"),
    Metric("time/update_tokens_per_s", "tokens/s", "tokens of prompts and responses updated on in a second"),
)  # fmt: skip


def metric_of(name: str) -> Metric | None:
    """The metric that a logged name belongs to; None if it has no description."""
    return next((metric for metric in METRICS if metric.matches(name)), None)
