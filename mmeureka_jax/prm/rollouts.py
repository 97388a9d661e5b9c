"""Rollouts of many states in one call of the sampler, and the verdicts on their answers.

    open trees     state that it waits for         row of the call           drawn
    tree 7         problem, step 1, step 2    -->  prompt + 2 steps    -->   16 rollouts
    tree 9         problem                    -->  prompt              -->   16 rollouts
    tree 12        problem, step 1            -->  prompt + 1 step     -->   16 rollouts

A call has a row for every tree that may be open, whether one is there or not, so that few programs serve all calls. The
rollouts of a state share their prompt, its steps so far included: it is prefilled once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mmeureka_jax.data.steps import begun_solution, has_answer, steps_of
from mmeureka_jax.errors import UserError
from mmeureka_jax.hosts import max_over_hosts, text_of_all
from mmeureka_jax.models.batch import collate, pick_bucket
from mmeureka_jax.models.policy import Params
from mmeureka_jax.prm.search import RolloutRequest
from mmeureka_jax.prm.tree import Rollout
from mmeureka_jax.process.console import first_time, plural
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.sampling.request import Samples
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.spread import Spread

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem
    from mmeureka_jax.rewards.base import RewardResult
    from mmeureka_jax.rewards.workers import RewardWorkers


@dataclass
class Drawn:
    """What the calls so far add up to, over all hosts.

    Attributes:
        rollouts: all of them.
        tokens: of these.
        with_steps: those that have a step besides the final answer.
        unjudged: those that count as wrong since the rule did not come to an end on them.
    """

    rollouts: int = 0
    tokens: int = 0
    with_steps: int = 0
    unjudged: int = 0


@dataclass
class RolloutDrawer:
    """Draws rollouts from a policy and has their answers judged. All hosts of a run call it together, each with the
    same requests; each processes and judges a share of them.

    A solution has at most as many tokens as the sampler's longest response: a rollout from a state has what the steps
    so far leave, and from a state without any left each rollout is wrong, and has no steps (see `room_after`).

    Attributes:
        processor: takes prompts with all steps so far.
        sizes: of a call.
    """

    sampler: Sampler
    spread: Spread
    params: Params
    processor: Processor
    rewards: RewardWorkers
    sizes: PromptSizes
    drawn: Drawn = field(default_factory=Drawn)

    def __call__(self, requests: Sequence[RolloutRequest]) -> list[list[Rollout]]:
        """The rollouts that each state asks for, in their order."""
        count = self.spread.prompts_of_host
        first = self.spread.shares.index * count
        own = range(first, min(first + count, len(requests)))
        samples, left = self._sample([requests[i] for i in own])
        shares = self.spread.shares
        judged = own[shares.rank :: len(shares.sharing)]
        rows = [self._rows(requests[i], samples, i - first, left[i - first]) for i in judged]
        texts = text_of_all(
            json.dumps(dict(zip(judged, self._judged([requests[i] for i in judged], rows), strict=True)))
        )
        found = {int(i): rollouts for text in texts for i, rollouts in json.loads(text).items()}
        for rollouts in found.values():
            self._count(rollouts)
        return [[Rollout(tuple(row["steps"]), row["right"]) for row in found[i]] for i in range(len(requests))]

    def _sample(self, requests: Sequence[RolloutRequest]) -> tuple[Samples, list[int]]:
        """Responses to this host's states, and for each state the tokens that a response may have."""
        begun = [begun_solution(request.steps) for request in requests]
        left = [room_after(self.processor, text, self.sampler.settings.max_new_tokens) for text in begun]
        problems = [_continued(request.problem, text) for request, text in zip(requests, begun, strict=True)]
        with ThreadPoolExecutor(max_workers=4) as pool:
            pairs = zip(problems, left, strict=True)
            prompts = list(pool.map(lambda pair: self.processor(pair[0]) if pair[1] > 0 else None, pairs))
        ids = [
            None if prompt is None else f"{request.problem.id}/{request.node}"
            for request, prompt in zip(requests, prompts, strict=True)
        ]
        rows = [prompt if prompt is not None else self.processor.filler() for prompt in prompts]
        rows += [self.processor.filler()] * (self.spread.prompts_of_host - len(rows))
        length = pick_bucket(int(max_over_hosts(max(len(row.tokens) for row in rows))), self.sizes.buckets)
        limits = np.ones((len(rows), self.spread.group_size), np.int32)
        limits[: len(left)] = np.maximum(left, 1)[:, None]
        request = self.spread.request(ids, collate(rows, length, self.sizes.image_windows), limits)
        shape = request.prompts.tokens.shape
        text = f"drawing from {plural(shape[0], 'state')} of up to {length} tokens, which compiles the sampler for them"
        speaks = first_time((self.sampler.policy, self.sampler.settings, shape), text)
        with jax.set_mesh(self.spread.mesh), speaks:
            samples, _ = self.sampler.sample(self.params, request)
        return self.spread.groups(samples), left

    def _rows(self, request: RolloutRequest, samples: Samples, row: int, left: int) -> list[dict[str, Any]]:
        """The rollouts of a state, not judged yet."""
        if left <= 0:
            return [{"text": "", "steps": [], "tokens": 0}] * request.count
        texts = [
            self.processor.decode(tokens[:length])
            for tokens, length in zip(samples.tokens[row], samples.lengths[row], strict=True)
        ]
        return [
            {"text": text, "steps": list(steps_of(text)), "tokens": int(length)}
            for text, length in zip(texts, samples.lengths[row], strict=True)
        ]

    def _judged(
        self, requests: Sequence[RolloutRequest], rows: Sequence[Sequence[dict[str, Any]]]
    ) -> list[list[dict[str, Any]]]:
        """Each rollout with the verdict on it. One without an answer block is wrong, whatever its text says."""
        from mmeureka_jax.rewards.base import RewardRequest

        asked = [
            RewardRequest(
                self.processor.response_prefix + begun_solution(request.steps) + row["text"],
                request.problem.answer or "",
                request.problem.question,
                request.problem.metadata,
            )
            for request, of_state in zip(requests, rows, strict=True)
            for row in of_state
        ]
        scores = iter(self.rewards.score(asked))

        def judged(row: dict[str, Any], score: RewardResult) -> dict[str, Any]:
            right = score.parts["accuracy"] > 0.5 and has_answer(row["text"])
            return {"steps": row["steps"], "tokens": row["tokens"], "right": right, "failed": bool(score.failures)}

        return [[judged(row, next(scores)) for row in of_state] for of_state in rows]

    def _count(self, rollouts: Sequence[dict[str, Any]]) -> None:
        self.drawn.rollouts += len(rollouts)
        self.drawn.tokens += sum(row["tokens"] for row in rollouts)
        self.drawn.with_steps += sum(len(row["steps"]) > 1 for row in rollouts)
        self.drawn.unjudged += sum(row["failed"] for row in rollouts)


def room_after(processor: Processor, begun: str, longest: int) -> int:
    """Tokens that are left for a solution which has begun, of the most that it may have; 0 or less: none.

    There are none either behind a step that spells out a special token: no prompt may hold it.
    """
    try:
        return longest - len(processor.encode_response(begun, finished=False))
    except UserError:
        return 0


def _continued(problem: Problem, begun: str) -> Problem:
    """The problem with a solution that has begun."""
    if not begun:
        return problem
    turn = {"role": "assistant", "content": [{"type": "text", "text": begun}]}
    return replace(problem, messages=(*problem.messages, turn))
