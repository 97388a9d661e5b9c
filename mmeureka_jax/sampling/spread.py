"""How the prompts of a sampler call are spread over a mesh, where they are fewer than its shards too.

    4 shards, 2 prompts, 8 responses to each:       shard 0     prompt a, responses 0 to 3
    each prompt comes twice, and each copy          shard 1     prompt a, responses 4 to 7
    draws half of its responses                     shard 2     prompt b, responses 0 to 3
                                                    shard 3     prompt b, responses 4 to 7

A response has the random numbers of its number among all n, so that the same tokens are drawn on any mesh.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from mmeureka_jax.errors import UserError
from mmeureka_jax.hosts import gather_rows, rows_of_all
from mmeureka_jax.mesh import RowShares, batch_divisor, row_shares, to_global
from mmeureka_jax.models.batch import Prompt
from mmeureka_jax.sampling.request import Request, Samples

T = TypeVar("T")


def copies_of_prompts(prompts: int, shards: int, group_size: int) -> int:
    """How often each prompt of a sampler call is there: the smallest divisor of `group_size` with which `shards`
    divides the rows.

    Raises:
        UserError: there is none.
    """
    for copies in range(1, group_size + 1):
        if group_size % copies == 0 and prompts * copies % shards == 0:
            return copies
    raise UserError(
        f"mesh: {prompts} prompts in a sampler call, with {group_size} responses to each, cannot be spread evenly over "
        f"data x fsdp x context = {shards} shards; choose a multiple of {shards // math.gcd(shards, group_size)} "
        "(sampler.batch_prompts, or where that is 0 rl.prompts_per_rollout)"
    )


@dataclass(frozen=True)
class Spread:
    """The prompts of the sampler calls of a run, over the hosts and devices of a mesh.

    Attributes:
        mesh: the sampler's (see `mesh.sampler_mesh`).
        prompts: in a call, over all hosts.
        group_size: responses to each.
        copies: rows of the batch that each prompt has; each draws `group_size` / `copies` of its responses.
        shares: which hosts load which prompts.
    """

    mesh: Mesh
    prompts: int
    group_size: int
    copies: int
    shares: RowShares

    @classmethod
    def of(cls, mesh: Mesh, prompts: int, group_size: int) -> Spread:
        """
        Raises:
            UserError: see `copies_of_prompts`.
        """
        rows = row_shares(mesh)
        copies = copies_of_prompts(prompts, batch_divisor(mesh), group_size)
        return cls(mesh, prompts, group_size, copies, rows.merged(math.gcd(rows.count, prompts)))

    @property
    def prompts_of_host(self) -> int:
        """Prompts that this host loads. Those of its share load the same."""
        return self.prompts // self.shares.count

    def request(
        self, ids: Sequence[str | None], prompts: Prompt, limits: Int[np.ndarray, "P n"] | None = None
    ) -> Request:
        """The request for a call.

        Args:
            ids: a name for each of this host's prompts; see `Request.of`.
            prompts: this host's prompts, padded to one length.
            limits: see `Request`.
        """
        one = Request.of(ids, prompts)
        first = None
        if self.copies > 1:
            numbers = np.arange(0, self.group_size, self.group_size // self.copies, dtype=np.int32)
            first = np.tile(numbers, len(prompts.tokens))
        arrays = jax.tree.map(lambda x: np.repeat(x, self.copies, axis=0), (one.prompts, one.names, one.active))
        if limits is not None:
            limits = limits.reshape(-1, self.group_size // self.copies)
        on_devices = to_global(self.mesh, self._rows_of_host((*arrays, first, limits)))
        prompts, names, active, first, limits = on_devices
        return Request(prompts, names, active, limits=limits, first=first, copies=self.copies)

    def groups(self, samples: Samples) -> Samples:
        """All responses to this host's prompts, of the responses to its rows."""
        rows = row_shares(self.mesh)
        if rows.count > self.shares.count:  # other hosts have some of them
            samples = rows_of_all(samples, rows.hosts)
            size = self.prompts_of_host * self.copies
            start = self.shares.index * size
            samples = jax.tree.map(lambda x: x[start : start + size], samples)
        return jax.tree.map(lambda x: x.reshape(-1, self.group_size, *x.shape[2:]), samples)

    def prompts_of_all(self, tree: Any) -> Any:
        """What devices hold for each row, as NumPy arrays of a row for each prompt of all hosts, share after share."""
        order = row_shares(self.mesh).order(self.prompts * self.copies)[:: self.copies]
        return jax.tree.map(lambda x: x[order], gather_rows(tree))

    def _rows_of_host(self, arrays: T) -> T:
        """Of the rows of this host's prompts those that its devices hold."""
        rows = row_shares(self.mesh)
        parts = rows.count // self.shares.count

        def part(x: np.ndarray) -> np.ndarray:
            return np.split(x, parts)[rows.index % parts]

        return arrays if parts == 1 else jax.tree.map(part, arrays)
