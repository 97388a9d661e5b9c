"""The rows of an update, on the host: which responses share a row, and which rows a micro-batch.

A row is a prompt and responses to it, one after another. Its arrays are those of the whole group, and the mask is False
for responses that another row of the group holds. A row without any response fills a micro-batch up to what the mesh
divides. Token weights, which are those of the whole batch, go along, so a loss does not depend on how rows are made.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from mmeureka_jax.config.schema import Config
from mmeureka_jax.models.batch import Array, GroupBatch, pick_bucket


class MicroBatch(NamedTuple):
    """Rows that one program computes the gradients of.

    Attributes:
        targets: see `Part`.
        weights: of each token in the loss of the whole batch; see rl/averaging.py.
    """

    batch: GroupBatch
    targets: Any
    weights: Float[Array, "R n Lr"]


@dataclass(frozen=True)
class Rows:
    """The rows of a micro-batch.

    Attributes:
        groups: the group that each row is of, by its place in the batch.
        holds: which of its responses are in the row; none in a row that only fills up.
        width: places for the responses; None: each has as many as the longest may have.
    """

    groups: Int[np.ndarray, "R"]
    holds: Bool[np.ndarray, "R n"]
    width: int | None

    def mask(self, groups: GroupBatch) -> GroupBatch:
        """A batch with the groups of these rows, row by row, without the responses that other rows hold."""
        return dataclasses.replace(groups, response_mask=groups.response_mask & self.holds[..., None], width=self.width)

    def take(self, batch: GroupBatch, targets: Any, weights: Float[np.ndarray, "P n Lr"]) -> MicroBatch:
        """The micro-batch of these rows (host arrays)."""
        batch, targets, weights = jax.tree.map(lambda x: x[self.groups], (batch, targets, weights))
        return MicroBatch(self.mask(batch), targets, weights * self.holds[..., None])


@dataclass(frozen=True)
class Packing:
    """How batches become rows, and rows micro-batches.

    With `row_tokens`, a group takes as many rows as its responses need, and the number of micro-batches follows from
    the lengths. Without, a group is one row and a micro-batch has an equal part of the groups; if `shards` does not
    divide these, a group is dealt out to several rows with equal numbers of responses.

    Attributes:
        groups: groups of a batch.
        group_size: responses of a group, n.
        longest: the most tokens that a response may have, Lr.
        micro_batches: parts that the groups are cut into. With `row_tokens`, which makes as many parts as it needs: the
            rows of a part are the groups by this.
        ratio: see `packed_widths`. With `row_tokens` there is a second width, half of it, unless this is 0.
        row_tokens: places for the responses of a row, from `longest` to those of a group; 0: whole groups.
        shards: the rows of a micro-batch are a multiple of this.
    """

    groups: int
    group_size: int
    longest: int
    micro_batches: int = 1
    ratio: float = 0.0
    row_tokens: int = 0
    shards: int = 1

    @classmethod
    def of(cls, config: Config) -> Packing:
        """That of a config's reinforcement learning, on one shard."""
        rl = config.rl
        return cls(
            groups=rl.prompts_per_update,
            group_size=rl.group_size,
            longest=config.sampler.max_new_tokens,
            micro_batches=rl.micro_batches,
            ratio=rl.packing,
            row_tokens=min(rl.row_tokens, rl.group_size * config.sampler.max_new_tokens),
        )

    def of_host(self, hosts: int) -> Packing:
        """That of a host's share of the groups."""
        return dataclasses.replace(self, groups=self.groups // hosts, shards=self.shards // hosts)

    @property
    def _groups_of_part(self) -> int:
        return self.groups // self.micro_batches

    @functools.cached_property
    def _rows_of_group(self) -> int:
        """Rows that each group is dealt out to without `row_tokens`: the fewest of equal numbers of responses that the
        shards divide. Where none do, the fewest that give each shard a row, some of them empty."""
        counts = [count for count in range(1, self.group_size + 1) if self.group_size % count == 0]
        dividing = [count for count in counts if self._groups_of_part * count % self.shards == 0]
        enough = [count for count in counts if self._groups_of_part * count >= self.shards]
        return (dividing or enough or counts[-1:])[0]

    @property
    def rows(self) -> int:
        """Rows of a micro-batch."""
        rows = self._groups_of_part * (1 if self.row_tokens else self._rows_of_group)
        return -(-rows // self.shards) * self.shards

    @property
    def most_micro_batches(self) -> int:
        """The most that a batch may need."""
        if not self.row_tokens:
            return self.micro_batches
        # A group gets another row only when each that it has is full, with as many responses as fit at their longest.
        rows = self.groups * -(-self.group_size // (self.row_tokens // self.longest))
        return -(-rows // self.rows)

    @functools.cached_property
    def widths(self) -> tuple[int | None, ...]:
        """The widths of rows, ascending; of whole groups the last is None, where every response is padded."""
        if self.row_tokens:
            half = -(-self.row_tokens // 32) * 16
            return (half, self.row_tokens) if self.ratio and half < self.row_tokens else (self.row_tokens,)
        places = self.group_size // self._rows_of_group * self.longest
        widths = packed_widths(places, self.ratio)
        return widths if self._rows_of_group > 1 else (*widths[:-1], None)

    def places(self, width: int | None) -> int:
        """Places for responses in a row of one of `widths`."""
        return self.group_size * self.longest if width is None else width

    def layout(
        self, lengths: Int[np.ndarray, "P n"], longest_of: Callable[[np.ndarray], np.ndarray] = lambda x: x
    ) -> list[Rows]:
        """The rows of groups with responses of these lengths, micro-batch by micro-batch, the fullest rows first.

        Every response is in exactly one row. The same lengths give the same rows on all hosts.

        Args:
            longest_of: without `row_tokens`: called with the tokens of each part's fullest row; returns what to go by
                instead, if other hosts hold other groups of the same batch.
        """
        parts = self._by_capacity(lengths) if self.row_tokens else self._by_group(lengths)
        most = longest_of(np.asarray([max(lengths[group, held].sum() for group, held in part) for part in parts]))
        places = [self.places(width) for width in self.widths]
        chosen = [self.widths[places.index(pick_bucket(int(tokens), places))] for tokens in most]
        return list(map(self._rows, parts, chosen))

    def split(
        self,
        batch: GroupBatch,
        targets: Any,
        weights: Float[np.ndarray, "P n Lr"],
        longest_of: Callable[[np.ndarray], np.ndarray] = lambda x: x,
    ) -> list[MicroBatch]:
        """A batch of host arrays in micro-batches; see `layout`."""
        mask = batch.response_mask
        assert (np.diff(mask.astype(np.int8), axis=-1) <= 0).all(), "a response has a hole in its mask"
        return [rows.take(batch, targets, weights) for rows in self.layout(batch.lengths, longest_of)]

    def _by_capacity(self, lengths: Int[np.ndarray, "P n"]) -> list[_Held]:
        rows = [(group, held) for group, own in enumerate(lengths) for held in _best_fit(own, self.row_tokens)]
        rows.sort(key=lambda row: -lengths[row].sum())  # stable
        return [rows[start : start + self.rows] for start in range(0, len(rows), self.rows)]

    def _by_group(self, lengths: Int[np.ndarray, "P n"]) -> list[_Held]:
        order = np.argsort(-lengths.sum(1), kind="stable").reshape(-1, self._groups_of_part)
        count = self._rows_of_group
        return [[(group, held) for group in part for held in _dealt(lengths[group], count)] for part in order]

    def _rows(self, part: _Held, width: int | None) -> Rows:
        """The rows of a part, filled up with empty ones, which have a prompt as any other."""
        groups = np.full(self.rows, part[0][0], np.int32)
        holds = np.zeros((self.rows, self.group_size), bool)
        for row, (group, held) in enumerate(part):
            groups[row] = group
            holds[row, held] = True
        return Rows(groups, holds, width)


_Held = list[tuple[int, list[int]]]  # for each row of a micro-batch, its group and the responses that it holds


def _best_fit(lengths: Int[np.ndarray, "n"], places: int) -> list[list[int]]:
    """Responses by the row that they are in: from the longest on, each where it leaves the least room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for response in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[response])
        fitting = [row for row, left in enumerate(room) if length <= left]
        if fitting:
            row = min(fitting, key=room.__getitem__)
        else:
            row = len(rows)
            rows.append([])
            room.append(places)
        rows[row].append(response)
        room[row] -= length
    return rows


def _dealt(lengths: Int[np.ndarray, "n"], rows: int) -> list[list[int]]:
    """Responses in rows of equally many: from the longest on, one to each row, then back."""
    turns = np.argsort(-lengths, kind="stable").reshape(-1, rows)
    turns[1::2] = turns[1::2, ::-1]
    return turns.T.tolist()


def packed_widths(places: int, packing: float) -> tuple[int, ...]:
    """The widths, ascending, of packed rows whose responses have `places` if each of them is padded: each `packing`
    times the next one, rounded down to a multiple of 16. None is less than a sixteenth of the widest. `packing` 0: only
    the widest."""
    widths = [places]
    while (less := int(widths[-1] * packing) // 16 * 16) > 0 and less * 16 >= places:
        widths.append(less)
    return tuple(reversed(widths))


def padding(parts: Sequence[MicroBatch], whole: GroupBatch) -> float:
    """Share of the places in the rows of these parts (prompts and responses) that hold no token of `whole`, or one that
    another row has too: the prompt of a group counts once."""
    places = 0
    for batch, _, _ in parts:
        rows, n, longest = batch.responses.shape
        places += rows * (batch.prompts.tokens.shape[1] + (batch.width or n * longest))
    return 1 - (int(whole.prompts.length.sum()) + int(whole.lengths.sum())) / places
