"""Scores of the steps of solutions, by a process reward model.

    scorer = open_scorer(opened)                          # a policy of setup/policy.py
    scores = scorer.score([Solutions(problem, [["first step", "second step"], ["another solution"]])])
    scores[0][1]                                          # [0.73]: one score for each step of its second solution

The solutions of a problem share its prompt. Batches have few shapes, each compiled once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Float, Int

from mmeureka_jax.data.record import Problem
from mmeureka_jax.hosts import gather_rows, max_over_hosts
from mmeureka_jax.mesh import batch_divisor, row_shares, to_global
from mmeureka_jax.models.batch import SMALLEST_BUCKET, Array, GroupBatch, Prompt, collate
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.models.token_odds import log_odds_of_hidden
from mmeureka_jax.prm.form import MarkerTokens, process_problem, tokens_of_steps
from mmeureka_jax.process.console import first_time, plural
from mmeureka_jax.rl.objective import batch_hidden
from mmeureka_jax.setup.policy import OpenedPolicy

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor

Tokens = Int[np.ndarray, " T"]


@dataclass(frozen=True)
class Solutions:
    """Solutions to a problem, each as the texts of its steps."""

    problem: Problem
    solutions: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Processes:
    """A prompt of `process_problem`, and processes that follow it, as tokens.

    Attributes:
        prompt: or what makes it, which only those hosts call that read it.
    """

    prompt: Problem | Callable[[], Problem]
    tokens: Sequence[Tokens]

    @property
    def total(self) -> int:
        return sum(map(len, self.tokens))


@dataclass(frozen=True)
class Scorer:
    """Scores steps. All hosts call its methods together, with the same arguments.

    Attributes:
        params: of the policy; `dataclasses.replace(scorer, params=...)` scores by others.
        batch_size: problems that are computed together, raised to what the mesh divides.
    """

    opened: OpenedPolicy
    processor: Processor
    tokens: MarkerTokens
    params: Params
    batch_size: int = 16

    @property
    def rows(self) -> int:
        """Problems of a batch, over all hosts."""
        divisor = batch_divisor(self.opened.mesh)
        return -(-self.batch_size // divisor) * divisor

    def score(
        self, items: Sequence[Solutions], on_scored: Callable[[int], object] = lambda count: None
    ) -> list[list[list[float]]]:
        """The probability that each step is right, by problem, solution and step.

        Args:
            on_scored: called with the number of problems that are done.

        Raises:
            UserError: a step is empty or has a special token in it (see `tokens_of_steps`), or a prompt cannot be used.
        """
        processes = [
            Processes(
                process_problem(item.problem),
                [tokens_of_steps(self.processor, steps) for steps in item.solutions],
            )
            for item in items
        ]
        scored = self.score_processes(processes, on_scored)
        return [[scores.tolist() for scores in own] for own in scored]

    def score_processes(
        self, items: Sequence[Processes], on_scored: Callable[[int], object] = lambda count: None
    ) -> list[list[Float[np.ndarray, " m"]]]:
        """The score at each marker, by problem and process. Raises a UserError for a prompt that cannot be used."""
        scored: list[list[np.ndarray]] = [[np.zeros(0, np.float32)] * len(item.tokens) for item in items]
        order = sorted((i for i, item in enumerate(items) if item.total), key=lambda i: (items[i].total, i))
        on_scored(len(items) - len(order))
        batches = [order[start : start + self.rows] for start in range(0, len(order), self.rows)]
        n = max((len(item.tokens) for item in items), default=0)
        with jax.set_mesh(self.opened.mesh), ThreadPoolExecutor(max_workers=4) as pool:
            prompts = self._prompts(pool, items, batches[:1])
            for number, batch in enumerate(batches):
                ready = [future.result() for future in prompts]
                prompts = self._prompts(pool, items, batches[number + 1 : number + 2])  # while this one is computed
                places, scores = self._scores(*self._batch([items[i] for i in batch], ready, n))
                for place, rows in zip(places, scores, strict=True):
                    for process, tokens in enumerate(items[batch[place]].tokens if place < len(batch) else ()):
                        scored[batch[place]][process] = rows[process, : len(tokens)][self.tokens.labelled(tokens)]
                on_scored(len(batch))
        return scored

    def _own(self, rows: int) -> range:
        """The places of this host's rows among those of a batch that are of a problem."""
        shares = row_shares(self.opened.mesh)
        size = self.rows // shares.count
        return range(shares.index * size, min((shares.index + 1) * size, rows))

    def _prompts(
        self, pool: ThreadPoolExecutor, items: Sequence[Processes], batches: Sequence[Sequence[int]]
    ) -> list[Future[Prompt]]:
        """This host's prompts of the first of these batches, if there is one."""
        return [pool.submit(self._prompt, items[batch[i]]) for batch in batches for i in self._own(len(batch))]

    def _prompt(self, item: Processes) -> Prompt:
        return self.processor(item.prompt() if callable(item.prompt) else item.prompt)

    def _batch(
        self, items: Sequence[Processes], prompts: Sequence[Prompt], n: int
    ) -> tuple[GroupBatch, Int[np.ndarray, "P 2"], Int[np.ndarray, " P"]]:
        """This host's rows, filled up with rows of no problem: what is read, the tokens of the answers, and the places
        of the rows in the batch."""
        rows = self.rows // row_shares(self.opened.mesh).count
        longest = _doubled(max(len(tokens) for item in items for tokens in item.tokens))
        width = _doubled(max(item.total for item in items))
        responses = np.zeros((rows, n, longest), np.int32)
        mask = np.zeros(responses.shape, bool)
        own = self._own(len(items))
        for row, place in enumerate(own):
            for process, tokens in enumerate(items[place].tokens):
                responses[row, process, : len(tokens)] = tokens
                mask[row, process, : len(tokens)] = True
        padded = [*prompts, *[self.processor.filler()] * (rows - len(prompts))]
        sizes = [[len(prompt.tokens), prompt.images.num_windows] for prompt in padded]
        length, windows = max_over_hosts(np.max(sizes, axis=0)).tolist()
        batch = GroupBatch(
            prompts=collate(padded, _doubled(length), _doubled(windows, 1) if windows else 0),
            image_features=None,
            responses=responses,
            response_mask=mask,
            width=width if width < n * longest else None,
        )
        first = row_shares(self.opened.mesh).index * rows
        return batch, np.tile(self.tokens.choices, (rows, 1)), np.arange(first, first + rows, dtype=np.int32)

    def _scores(
        self, batch: GroupBatch, choices: Int[np.ndarray, "P 2"], places: Int[np.ndarray, " P"]
    ) -> tuple[Int[np.ndarray, " P"], Float[np.ndarray, "P n Lr"]]:
        """All rows' places in the batch, in the order in which they lie on the mesh, and for every token the score of
        the state before it."""
        responses = batch.width or batch.responses.shape[1] * batch.responses.shape[2]
        shape = f"{plural(self.rows, 'problem')} of up to {batch.prompts.tokens.shape[1]} + {responses} tokens"
        on_device = to_global(self.opened.mesh, (batch, choices))
        with first_time(("prm score", self.opened.policy, shape), f"scoring {shape}, which compiles a program"):
            scores = _scores(self.opened.policy, self.params, *on_device)
            return gather_rows((to_global(self.opened.mesh, places), scores))


@functools.partial(jax.jit, static_argnums=0)
def _scores(policy: Policy, params: Params, batch: GroupBatch, choices: Int[Array, "P 2"]) -> Float[Array, "P n Lr"]:
    return jax.nn.sigmoid(log_odds_of_hidden(policy, params, batch_hidden(policy, params, batch), choices))


def _doubled(size: int, smallest: int = SMALLEST_BUCKET) -> int:
    """The size that is padded to: the smallest, doubled until it is enough. Few programs serve whatever comes."""
    return smallest << max(0, -(-size // smallest) - 1).bit_length()


def open_scorer(
    opened: OpenedPolicy,
    *,
    max_prompt_tokens: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    batch_size: int = 16,
) -> Scorer:
    """Reads a process reward model.

    Args:
        max_prompt_tokens: longer prompts are refused; None: than the model's context.
        min_pixels, max_pixels: see `Processor.from_checkpoint`.
        batch_size: see `Scorer`.

    Raises:
        UserError: the checkpoint is damaged, or is no process reward model.
    """
    from mmeureka_jax.data.processor import Processor

    context = opened.policy.config.text.max_position_embeddings
    processor = Processor.from_checkpoint(
        opened.checkpoint,
        prompt_style="plain",
        max_prompt_tokens=max_prompt_tokens or context,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
    )
    tokens = MarkerTokens.of(processor)  # before weights are read
    return Scorer(opened, processor, tokens, opened.load_params("the process reward model"), batch_size)
