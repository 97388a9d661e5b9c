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

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int

from mmeureka_jax.hosts import gather_rows, local_rows
from mmeureka_jax.mesh import ONE_HOST, Program, RowShares, abstract, batch_shards
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.sampling.decode_state import axes_of
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
        number: of its prompt among this host's.
    """

    number: int
    tokens: Int[np.ndarray, "t"]
    log_probs: Float[np.ndarray, "t"]
    finished: bool


@dataclass(frozen=True)
class QueueSampler:
    """Draws one response to each prompt of a queue. All hosts call it together, under `jax.set_mesh` of the sampler's
    mesh.

    Attributes:
        settings: with a group size of 1.
        stream, seed: see `Sampler`.
        rows: responses that are drawn at a time, on all devices.
        prompt: tokens of the longest prompt.
        shares: which rows each host has; by default there is one host.
    """

    policy: Policy
    settings: SamplingSettings
    stream: str
    rows: int
    prompt: int
    seed: int = 0
    shares: RowShares = ONE_HOST

    @property
    def admitted(self) -> int:
        """How many prompts are admitted together, on all hosts."""
        shards = batch_shards()
        return max(1, self.rows // shards // _ADMITTED) * shards

    def run(self, params: Params, count: int, request_of: Callable[[Sequence[int]], Request]) -> Iterator[Drawn]:
        """The responses to this host's prompts, each as soon as it is found to be done.

        Args:
            count: the prompts of the host that has most.
            request_of: the request for this host's prompts of these numbers, as many as are admitted on a host. There
                is nobody for `NOBODY` and for a number beyond this host's prompts. Active prompts come first in each
                shard's part.
        """
        weights = weights_of(self.policy, self.settings, params)
        host = _Host(nobody(self.policy, self.settings, self.rows, self.prompt))
        waiting = list(range(count))
        sizes = row_sizes(self.rows // batch_shards(), self.settings.shrink)
        own = self.admitted // self.shares.count
        while True:
            while waiting and (rows := host.free_rows(self.admitted)) is not None:
                numbers = self._places(waiting[:own])
                waiting = waiting[own:]
                place = np.empty(self.admitted, np.int32)
                place[self.shares.order(self.admitted)] = np.tile(numbers, self.shares.count)
                given = Admission(request_of(numbers.tolist()), rows, place, np.int32(self.seed))
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

    def programs(self, params: Params, request: Request) -> Iterator[Program]:
        """Every program that `run` may need for requests of these shapes, under `jax.set_mesh`.

        Args:
            params: parameters, or their shapes with shardings.
            request: a request for as many prompts as are admitted together, or its shapes with shardings.
        """
        policy = self.policy
        settings = self.settings
        first = Program("weights of a queue", weights_of, (policy, settings, params))
        yield first
        weights = first.outputs().with_axes(policy.param_axes(), lambda leaf, names: abstract(leaf, *names))
        empty = Program(f"empty queue, rows {self.rows}", nobody, (policy, settings, self.rows, self.prompt), weights)
        yield empty
        state = _abstract(empty.outputs())
        none = np.zeros(self.admitted, np.int32)
        given = Admission(request, none, none, np.int32(0))
        name = f"admit, prompt {request.prompts.tokens.shape[1]}"
        yield Program(name, admit, (policy, settings, self.stream, params, weights, state, given))
        shards = batch_shards()
        for rows, fewer in itertools.pairwise([*row_sizes(self.rows // shards, settings.shrink), None]):
            at = f"prompt {self.prompt}, rows {rows}"
            yield Program(f"advance, {at}", advance, (policy, settings, params, weights, state, np.int32(0)))
            if fewer is not None:
                shrinkage = Program(f"shrink, {at}, to rows {fewer}", shrink, (fewer, state), weights)
                yield shrinkage
                state = _abstract(shrinkage.outputs())

    def _places(self, numbers: Sequence[int]) -> Int[np.ndarray, "P"]:
        """Which prompt of a host comes to which of its places in an admission: the shards take turns, so that none has
        many more prompts than another."""
        shards = batch_shards() // self.shares.count
        places = np.full(self.admitted // self.shares.count, NOBODY, np.int32)
        in_turns = np.arange(len(places)).reshape(shards, -1).T.reshape(-1)
        places[in_turns[: len(numbers)]] = numbers
        return places


def _abstract(state: QueueState) -> QueueState:
    """The shapes of a state, laid out as `lay_out` does."""
    return jax.tree.map(lambda leaf: abstract(leaf, *axes_of(leaf)), state)


class _Host:
    """What a host knows of a state: which rows of all hosts are done, and which responses of its own were handed on."""

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
        """The responses of this host that were not done before."""
        state = self.state
        self._done = gather_rows(state.done)
        done, place, lengths, finished = local_rows((state.done, state.place, state.lengths, state.finished))
        new = [row for row in np.flatnonzero(done & (place >= 0)) if int(place[row]) not in self._handed_on]
        if not new:
            return
        tokens, log_probs = local_rows((state.tokens, state.log_probs))
        for row in new:
            self._handed_on.add(int(place[row]))
            length = int(lengths[row])
            yield Drawn(int(place[row]), tokens[row, :length], log_probs[row, :length], bool(finished[row]))
