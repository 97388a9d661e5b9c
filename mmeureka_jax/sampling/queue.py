"""A queue of prompts: rows whose response is done are given to the next prompts, so that the batch stays full.

    admit      a few prompts -> their keys and values, and the first tokens, into the rows that are done
    advance    tokens for all rows, until enough of them are done for the next prompts
    shrink     when no prompt waits any more, the responses still running continue as a smaller batch

        rows    |######|####|###########|##         Each row is a response; a bar where one ends and the next begins.
                |##|########|####|######|#          All rows write their tokens to the same place of the own caches, a
                |##########|##|#####|######         ring; those of a row are the last so many that it has drawn.

Which token is drawn depends on none of this: see token_draws.py. `Sampler` draws the same responses, and shares a
prompt among several; a queue has one response to each prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int

from mmeureka_jax.mesh import batch_shards
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.sampling.queue_programs import (
    NOBODY,
    Admission,
    QueueState,
    admit,
    advance,
    nobody,
    shrink,
    weights_of,
)
from mmeureka_jax.sampling.repack import row_sizes
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.token_draws import SamplingSettings

_ADMITTED = 16  # of so many rows, one has to be done before the next prompts are admitted


@dataclass(frozen=True)
class Drawn:
    """A response as it comes out of a queue.

    Attributes:
        number: of its prompt in the queue.
    """

    number: int
    tokens: Int[np.ndarray, "t"]
    log_probs: Float[np.ndarray, "t"]
    finished: bool


@dataclass(frozen=True)
class QueueSampler:
    """Draws one response to each prompt of a queue. In one process, under `jax.set_mesh` of the sampler's mesh.

    Attributes:
        settings: with a group size of 1.
        stream, seed: see `Sampler`.
        rows: responses that are drawn at a time, on all devices.
        prompt: tokens of the longest prompt.
    """

    policy: Policy
    settings: SamplingSettings
    stream: str
    rows: int
    prompt: int
    seed: int = 0

    @property
    def admitted(self) -> int:
        """How many prompts are admitted together."""
        shards = batch_shards()
        return max(1, self.rows // shards // _ADMITTED) * shards

    def run(self, params: Params, count: int, request_of: Callable[[Sequence[int]], Request]) -> Iterator[Drawn]:
        """The responses to `count` prompts, each as soon as it is found to be done.

        Args:
            request_of: the request for the prompts of these numbers, filled up to `admitted` with inactive ones. Active
                prompts come first in each shard's part.
        """
        weights = weights_of(self.policy, self.settings, params)
        host = _Host(nobody(self.policy, self.settings, self.rows, self.prompt))
        waiting = list(range(count))
        sizes = row_sizes(self.rows // batch_shards(), self.settings.shrink)
        while True:
            while waiting and (rows := host.free_rows(self.admitted)) is not None:
                numbers = waiting[: self.admitted]
                waiting = waiting[self.admitted :]
                place = np.full(self.admitted, NOBODY, np.int32)
                place[_spread(len(numbers), self.admitted)] = numbers
                given = Admission(request_of(place.tolist()), rows, place, np.int32(self.seed))
                host.state = admit(self.policy, self.settings, self.stream, params, weights, host.state, given)
                yield from host.collect()
            if not host.running:
                if not waiting:
                    return
                continue
            if waiting:
                stop_at = sizes[0] - self.admitted // batch_shards()
            else:
                while len(sizes) > 1 and host.most_running <= sizes[1]:
                    sizes = sizes[1:]
                    host.state = shrink(sizes[0], host.state)
                stop_at = sizes[1] if len(sizes) > 1 else 0
            host.state = advance(self.policy, self.settings, params, weights, host.state, np.int32(stop_at))
            yield from host.collect()


def _spread(count: int, places: int) -> np.ndarray:
    """Where the prompts of an admission go: the shards take turns, so that none has many more than another."""
    shards = batch_shards()
    return np.arange(places).reshape(shards, -1).T.reshape(-1)[:count]


class _Host:
    """What the host knows of a state: which rows are done, and which responses were handed on."""

    def __init__(self, state: QueueState):
        self.state = state
        self._handed_on: set[int] = set()
        self._done = np.ones(len(state.done), bool)

    @property
    def running(self) -> int:
        return int((~self._done).sum())

    @property
    def most_running(self) -> int:
        """In the shard that has most."""
        return int((~self._done).reshape(batch_shards(), -1).sum(axis=-1).max())

    def free_rows(self, count: int) -> np.ndarray | None:
        """Rows that are done, as many in each shard, counted within it; None where a shard has fewer."""
        each = count // batch_shards()
        done = self._done.reshape(batch_shards(), -1)
        if done.sum(axis=-1).min() < each:
            return None
        return np.argsort(~done, axis=-1, kind="stable")[:, :each].reshape(-1).astype(np.int32)

    def collect(self) -> Iterator[Drawn]:
        """The responses that were not done before."""
        done, place, lengths, finished = jax.device_get(
            (self.state.done, self.state.place, self.state.lengths, self.state.finished)
        )
        self._done = done
        new = [row for row in np.flatnonzero(done & (place >= 0)) if int(place[row]) not in self._handed_on]
        if not new:
            return
        tokens, log_probs = jax.device_get((self.state.tokens, self.state.log_probs))
        for row in new:
            self._handed_on.add(int(place[row]))
            length = int(lengths[row])
            yield Drawn(int(place[row]), tokens[row, :length], log_probs[row, :length], bool(finished[row]))
