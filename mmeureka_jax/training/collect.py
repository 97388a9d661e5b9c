"""Rollouts: problems in, groups with rewards out, until enough of them have passed the online filter.

Every host processes, and scores, its own share of the prompts; hosts that hold the same rows process the same prompts,
and each of them scores a part. What came out is then gathered, so that all hosts hold the same groups in the same order
and take the same decisions.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import numpy as np

from mmeureka_jax.config.schema import Config
from mmeureka_jax.errors import RunStopped
from mmeureka_jax.evaluation.pass_at_k import pass_at_k
from mmeureka_jax.hosts import is_main, max_over_hosts, rows_of_all
from mmeureka_jax.models.batch import ImageFeatures, Prompt, collate, pick_bucket, take_row
from mmeureka_jax.models.policy import Params
from mmeureka_jax.process.console import first_time, plural
from mmeureka_jax.rewards.chosen import fallible_rules
from mmeureka_jax.rewards.overlong import overlong_penalty
from mmeureka_jax.rl.groups import Group
from mmeureka_jax.rl.metrics import Mean, Metrics, Sum, computed
from mmeureka_jax.rl.online_filter import KEPT, TOO_EASY, TOO_HARD, GroupBuffer, classify, staleness
from mmeureka_jax.runs.rollout_samples import ResponseSample, RolloutSample
from mmeureka_jax.sampling.request import Samples
from mmeureka_jax.sampling.spread import Spread
from mmeureka_jax.setup.policy import OpenedPolicy
from mmeureka_jax.training.programs import rollout_sampler
from mmeureka_jax.training.reward_failures import FailureWatch

if TYPE_CHECKING:
    from mmeureka_jax.data.loader import LoadedProblem, ProblemLoader
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.base import RewardResult
    from mmeureka_jax.rewards.workers import RewardWorkers

T = TypeVar("T")


@dataclass
class Collected:
    """What one step's rollouts gave."""

    groups: list[Group]
    metrics: dict[str, float]
    lengths: np.ndarray  # every sampled response's, for the histogram
    samples: list[RolloutSample]


@dataclass
class Tally:
    """What the sampler calls of a step add up to."""

    metrics: dict[str, Any] = field(default_factory=dict)
    lengths: list[np.ndarray] = field(default_factory=list)  # the responses' lengths, for each call
    failed: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))  # for each rule and call

    def add(self, metrics: Metrics) -> None:
        for name, metric in metrics.items():
            self.metrics[name] = self.metrics[name] + metric if name in self.metrics else metric

    def row(self) -> dict[str, float]:
        """The metrics of the step. A step that needed no sampler call has none."""
        return computed(self.metrics) if self.metrics else {"filter/rounds": 0.0}


def rollout_samples(
    loaded: Sequence[LoadedProblem],
    texts: Sequence[Sequence[str]],
    scores: Sequence[Sequence[RewardResult]],
    lengths: np.ndarray,
    finished: np.ndarray,
) -> list[RolloutSample]:
    """The groups of this host as the report shows them."""
    samples = []
    for i, item in enumerate(loaded):
        responses = [
            ResponseSample(
                text=text,
                reward=score.total,
                parts=score.parts,
                length=int(lengths[i, j]),
                finish_reason="stop" if finished[i, j] else "length",
                failures=score.failures,
            )
            for j, (text, score) in enumerate(zip(texts[i], scores[i], strict=True))
        ]
        problem = item.problem
        images = [image.read_bytes() for image in problem.images]
        samples.append(RolloutSample(problem.id, problem.question, images, problem.answer or "", responses))
    return samples


def _nothing_kept(rounds: int, tally: Tally, step: int) -> RunStopped:
    easy, hard = (tally.metrics[f"filter/{name}"].total for name in (TOO_EASY, TOO_HARD))
    return RunStopped(
        f"step {step + 1}: {rounds} rollouts in a row left no group between the filter's bounds "
        f"({easy:.0f} groups too easy, {hard:.0f} too hard). Use easier or harder problems, widen rl.filter.lower "
        "and rl.filter.upper, or raise rl.filter.max_empty_rounds"
    )


def _scored_rows(
    loaded: Sequence[LoadedProblem], scores: Sequence[Sequence[RewardResult]], fallible: Iterable[str]
) -> dict[str, Any]:
    """What the rules say of responses to some problems, as arrays [P, n]: the total, each rule's part, which failed."""
    failed = {rule: np.asarray([[rule in s.failures for s in row] for row in scores]) for rule in fallible}
    names = sorted(scores[0][0].parts)
    return {
        "orders": np.asarray([item.order for item in loaded]),
        "total": np.asarray([[s.total for s in row] for row in scores], np.float32),
        "failures": np.any(list(failed.values()), axis=0).astype(np.float32),
        "failed": failed,
        "parts": {name: np.asarray([[s.parts[name] for s in row] for row in scores], np.float32) for name in names},
    }


def _metrics_of_call(scored: Mapping[str, Any], samples: Samples) -> Metrics:
    """The metrics of one sampler call's responses, of all hosts."""
    rewards = {"total": scored["total"], **scored["parts"], "failures": scored["failures"]}
    metrics = {f"reward/{name}": Mean.of(values) for name, values in rewards.items()}
    for k, rates in pass_at_k(scored["parts"]["accuracy"] > 0.5).items():
        metrics[f"reward/pass_at_{k}"] = Mean.of(rates)
    metrics["response/length"] = Mean.of(samples.lengths)
    metrics["response/truncated"] = Mean.of(~samples.finished)
    return metrics


@dataclass
class _Round:
    """One sampler call, whose responses are being scored."""

    sampled_by: int  # see `Group`
    loaded: list[LoadedProblem]  # this host's
    prompts: Prompt  # all hosts'
    features: ImageFeatures | None  # all hosts', where the tower is frozen
    samples: Samples  # to the problems of this host
    seconds: float  # that sampling took
    scored: range  # which of this host's problems it scores
    texts: list[list[str]]  # responses to those
    scores: Future[list[list[RewardResult]]]


class Collector:
    """Fills the buffer with kept groups, sampling with one policy until a full training batch is there.

    Responses are scored while the next are sampled, where it is certain that the next are needed.
    """

    def __init__(
        self,
        config: Config,
        opened: OpenedPolicy,
        processor: Processor,
        loader: ProblemLoader,
        rewards: RewardWorkers,
        *,
        num_windows: int,
        vision_frozen: bool,
    ):
        self._config = config
        self._processor = processor
        self._loader = loader
        self._rewards = rewards
        self._num_windows = num_windows
        self._vision_frozen = vision_frozen
        self._buckets = config.data.prompt_lengths
        self._prompts_per_call = config.sampler.batch_prompts or config.rl.prompts_per_rollout
        self._failures = FailureWatch(config.reward)
        self._scoring = ThreadPoolExecutor(1, thread_name_prefix="scoring")
        self.spread = Spread.of(opened.sampler_mesh, self._prompts_per_call, config.rl.group_size)
        self.sampler = rollout_sampler(opened.policy, processor, config)

    def collect(
        self, params: Params, buffer: GroupBuffer, *, step: int, updates: int, on_round: Callable[[int], None]
    ) -> Collected:
        """Samples until `buffer` holds `rl.prompts_per_rollout` groups, and takes exactly that many.

        Args:
            step: the loop's step, for `filter.freeze_steps`.
            updates: optimiser steps that `params` have taken.
            on_round: called with the number of groups in the buffer after each sampler call (progress).

        Raises:
            RunStopped: `filter.max_empty_rounds` sampler calls in a row gave no group that survives the filter; or see
            `FailureWatch`.
        """
        wanted = self._config.rl.prompts_per_rollout
        empty = 0
        tally = Tally()
        samples: list[RolloutSample] = []
        waiting: deque[_Round] = deque()
        while len(buffer) < wanted:
            # One call ahead of the scores, if even with all groups of the call before the buffer would not be full.
            while not waiting or (len(waiting) == 1 and len(buffer) + self._prompts_per_call < wanted):
                waiting.append(self._sample(params, updates))
            groups, shown = self._scored(waiting.popleft(), tally, step, show=not samples)
            outcomes = classify(np.stack([group.accuracies for group in groups]), self._config.rl.filter, step)
            tally.add({f"filter/{name}": Mean.of(outcomes == name) for name in (KEPT, TOO_EASY, TOO_HARD)})
            kept = [group for group, outcome in zip(groups, outcomes, strict=True) if outcome == KEPT]
            keep_all = not kept and self._config.rl.filter.if_none_kept == "keep_all"
            if keep_all:
                kept = groups
            tally.add({"filter/kept_all": Sum(int(keep_all))})
            buffer.add(kept)
            samples = samples or shown
            empty = 0 if kept else empty + 1
            if empty >= self._config.rl.filter.max_empty_rounds:
                raise _nothing_kept(empty, tally, step)
            on_round(min(len(buffer), wanted))
        if tally.failed:
            self._failures.end_step({rule: np.concatenate(failed) for rule, failed in tally.failed.items()}, step + 1)
        taken = buffer.take(wanted)
        if not self._config.rl.filter.keep_leftovers:
            buffer.clear()
        metrics = tally.row() | {
            "filter/buffer": float(len(buffer)),
            "filter/staleness": staleness(taken, updates, self._config.rl.updates_per_step),
        }
        lengths = np.concatenate(tally.lengths) if tally.lengths else np.zeros(0)
        return Collected(taken, metrics, lengths, samples)

    def _sample(self, params: Params, updates: int) -> _Round:
        """One sampler call over all hosts; the scoring of this host's responses has begun."""
        start = time.perf_counter()
        loaded = next(self._loader)
        longest = max_over_hosts(max(len(item.prompt.tokens) for item in loaded))
        batch = collate([item.prompt for item in loaded], pick_bucket(int(longest), self._buckets), self._num_windows)
        # The place in the data stream is in a prompt's name: a problem that comes twice is answered anew each time.
        # The number of the call is not: what is drawn does not depend on how many prompts a call has.
        request = self.spread.request([f"{item.order}/{item.problem.id}" for item in loaded], batch)
        with jax.set_mesh(self.spread.mesh), self._compiling(request.prompts):
            drawn, features = self.sampler.sample(params, request)
        samples = self.spread.groups(drawn)
        shares = self.spread.shares
        scored = range(shares.rank % len(loaded), len(loaded), len(shares.sharing))  # at least one
        texts = [
            [self._processor.decode(row[:length]) for row, length in zip(rows, counts, strict=True)]
            for rows, counts in zip(samples.tokens[scored], samples.lengths[scored], strict=True)
        ]
        scores = self._scoring.submit(self.score, [loaded[row] for row in scored], texts)
        prompts: Any = request.prompts
        if self._vision_frozen:  # the update reads the features, so the pictures need not be gathered or kept
            count = self._prompts_per_call
            none = jax.tree.map(lambda x: np.zeros((count, 0, *x.shape[2:]), x.dtype), batch.images)
            prompts = self.spread.prompts_of_all(prompts.replace(images=None)).replace(images=none)
            kept = self.spread.prompts_of_all(features)
        else:
            prompts = self.spread.prompts_of_all(prompts)
            kept = None
        return _Round(updates, loaded, prompts, kept, samples, time.perf_counter() - start, scored, texts, scores)

    def _compiling(self, batch: Prompt) -> AbstractContextManager[None]:
        """Says so where a sampler call has to compile its programs."""
        if self._config.sampler.compile_ahead:
            return nullcontext()
        prompts, length = batch.tokens.shape
        text = f"sampling for {plural(prompts, 'prompt')} of up to {length} tokens, which compiles the sampler for them"
        return first_time((self.sampler.policy, self.sampler.settings, batch.tokens.shape), text)

    def _scored(self, sampled: _Round, tally: Tally, step: int, show: bool) -> tuple[list[Group], list[RolloutSample]]:
        """The groups of all hosts, once this host's are scored; and some to show, on the host that writes them."""
        start = time.perf_counter()
        samples = sampled.samples
        scored = sampled.scored
        scores = self._with_length_penalty(sampled.scores.result(), samples.lengths[scored])
        seconds = time.perf_counter() - start
        self._failures.note((score for row in scores for score in row), step + 1)
        problems = [sampled.loaded[row] for row in scored]
        own = self._in_place(scored, _scored_rows(problems, scores, fallible_rules(self._config.reward)))
        everyone, full = rows_of_all((own, samples), self.spread.shares.hosts)
        tally.add(_metrics_of_call(everyone, full))
        tally.add({"filter/rounds": Sum(1), "time/rollout": Sum(sampled.seconds), "time/reward": Sum(seconds)})
        tally.add({"time/rollout_tokens_per_s": Mean(float(np.sum(full.lengths)), sampled.seconds)})
        tally.lengths.append(full.lengths.ravel())
        for rule, failed in everyone["failed"].items():
            tally.failed[rule].append(failed.ravel())
        groups = _groups(sampled.sampled_by, everyone, sampled.prompts, sampled.features, full)
        if not (show and is_main() and self._config.tracking.rollouts_every):
            return groups, []
        shown = slice(0, self._config.tracking.rollouts_logged)
        return groups, rollout_samples(
            problems[shown], sampled.texts[shown], scores[shown], samples.lengths[scored], samples.finished[scored]
        )

    def _in_place(self, rows: range, tree: T) -> T:
        """Arrays of some of this host's prompts, each at its place among all of these."""

        def placed(x: np.ndarray) -> np.ndarray:
            whole = np.zeros((self.spread.prompts_of_host, *x.shape[1:]), x.dtype)
            whole[rows] = x
            return whole

        return jax.tree.map(placed, tree)

    def _with_length_penalty(self, scores: list[list[RewardResult]], lengths: np.ndarray) -> list[list[RewardResult]]:
        reward = self._config.reward
        if not reward.overlong_buffer:
            return scores
        limit = self._config.sampler.max_new_tokens

        def penalised(score: RewardResult, length: int) -> RewardResult:
            penalty = overlong_penalty(length, limit, reward.overlong_buffer)
            total = score.total + reward.overlong_weight * penalty
            return dataclasses.replace(score, total=total, parts=score.parts | {"overlong": penalty})

        return [
            [penalised(*pair) for pair in zip(row, counts.tolist(), strict=True)]
            for row, counts in zip(scores, lengths, strict=True)
        ]

    def score(self, loaded: Sequence[LoadedProblem], texts: Sequence[Sequence[str]]) -> list[list[RewardResult]]:
        from mmeureka_jax.rewards.base import RewardRequest

        begun = self._processor.response_prefix
        flat = self._rewards.score(
            [
                RewardRequest(begun + text, item.problem.answer or "", item.problem.question, item.problem.metadata)
                for item, row in zip(loaded, texts, strict=True)
                for text in row
            ]
        )
        n = len(texts[0])
        return [flat[i : i + n] for i in range(0, len(flat), n)]


def _groups(
    sampled_by: int, scored: dict[str, Any], prompts: Prompt, features: ImageFeatures | None, samples: Samples
) -> list[Group]:
    """All hosts' groups of one sampler call, in the order of the data stream."""

    def group(row: int) -> Group:
        prompt, image_features, sampled = take_row((prompts, features, samples), row)
        return Group(
            sampled_by=sampled_by,
            order=int(scored["orders"][row]),
            prompt=prompt,
            image_features=image_features,
            responses=sampled.tokens,
            log_probs=sampled.log_probs,
            lengths=sampled.lengths,
            finished=sampled.finished,
            rewards=np.array(scored["total"][row]),
            accuracies=np.array(scored["parts"]["accuracy"][row]),
        )

    return [group(row) for row in np.argsort(scored["orders"])]
