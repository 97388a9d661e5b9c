"""Attention of rows of text by JAX's splash attention, a Pallas kernel for TPUs: no score leaves the chip.

The kernel takes a mask as a function of a query's number and a key's place. The number that a query has here says where
it is in the row and where its segment begins, which is all that decides what it sees: the prompt, and its own segment
up to itself. A row's prompt is so shared by its responses in one call, exactly, whatever their lengths are.
Keys of padding have another segment than all queries.

Blocks of queries and keys that do not meet are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as library
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Bool, Float, Int

from mmeureka_jax.mesh import map_shards, shard_count
from mmeureka_jax.models.batch import Array

LONGEST_ROW = 2**16  # places: a query's number has 16 bits for its own and 16 for its segment's first
_LANES = 128  # the kernel's blocks are multiples of it
_BLOCK = 512  # places of a block, at most
_NAMES = ("batch", "act_heads", "seq", None)  # of queries


def splash_attention(
    query: Float[Array, "B T H h"],
    key: Float[Array, "B K T h"],
    value: Float[Array, "B K T h"],
    segments: Int[Array, "B T"],
    padding: Bool[Array, "B T"],
    prompt: int,
    *,
    interpret: bool,
) -> Float[Array, "B T H h"]:
    """What `attention.attention` computes for rows that have a layout with `prompt` places for the prompt.

    Args:
        padding: the places that no query sees.
        interpret: run the kernel's instructions one by one, on any device.

    Raises:
        ValueError: a row has more than `LONGEST_ROW` places.
    """
    length = query.shape[1]
    if length > LONGEST_ROW:
        raise ValueError(
            f"splash attention takes rows of at most {LONGEST_ROW:,} places, not {length:,}; set model.attention=xla, "
            "or rl.row_tokens to fewer tokens"
        )
    parts = shard_count("seq")
    keys = _Blocks.of(length)
    numbers = jnp.arange(length) | (_first_places(segments) << 16)
    unseen = jnp.pad(padding.astype(jnp.int32), ((0, 0), (0, keys.padded - length)), constant_values=1)
    queries = (query * query.shape[-1] ** -0.5).astype(query.dtype).swapaxes(1, 2)
    rows = _Rows(_Mask(prompt), _Blocks.of(length // parts), keys, interpret)
    arguments = (queries, key, value, numbers, unseen)
    if jax.sharding.get_abstract_mesh().empty:
        return rows(*arguments).swapaxes(1, 2)
    names = (_NAMES, _NAMES[:2], _NAMES[:2], ("batch", "seq"), ("batch",))
    return map_shards(rows, ("batch", "act_heads", "seq"), names, _NAMES)(*arguments).swapaxes(1, 2)


def _first_places(segments: Int[Array, "B T"]) -> Int[Array, "B T"]:
    """Where the segment of each place begins."""
    places = jnp.arange(segments.shape[1])
    begins = jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)))
    return jax.lax.cummax(jnp.where(begins, places, 0), axis=1)


def _place(numbers: Array) -> Array:
    return numbers & (LONGEST_ROW - 1)


def _first_place(numbers: Array) -> Array:
    return jax.lax.shift_right_logical(numbers, jnp.full_like(numbers, 16))


@dataclass(frozen=True)
class _Mask:
    """Which keys a query sees, by its number. Hashable, as the kernel wants it.

    Attributes:
        prompt: places of the prompt.
    """

    prompt: int

    def __call__(self, numbers: Int[Array, "..."], keys: Int[Array, "..."]) -> Bool[Array, "..."]:
        return (keys <= _place(numbers)) & ((keys < self.prompt) | (keys >= _first_place(numbers)))

    def meeting(self, numbers: Int[Array, "queries block"], blocks: _Blocks) -> Bool[Array, "queries keys"]:
        """Which blocks of queries and keys hold a pair that sees each other, or may."""
        first = jnp.arange(blocks.count) * blocks.size
        before = first <= _place(numbers).max(1, keepdims=True)
        return before & ((first < self.prompt) | (first + blocks.size > _first_place(numbers).min(1, keepdims=True)))


@dataclass(frozen=True)
class _Blocks:
    """Blocks of places of one size, which fill up a row."""

    count: int
    size: int

    @classmethod
    def of(cls, length: int) -> _Blocks:
        count = -(-length // _BLOCK)
        return cls(count, -(-length // (count * _LANES)) * _LANES)

    @property
    def padded(self) -> int:
        return self.count * self.size


@dataclass(frozen=True)
class _Rows:
    """The attention of a device's rows, one after another.

    Attributes:
        queries, keys: the blocks of both.
    """

    mask: _Mask
    queries: _Blocks
    keys: _Blocks
    interpret: bool

    def __call__(
        self,
        query: Float[Array, "B H T h"],
        key: Float[Array, "B K S h"],
        value: Float[Array, "B K S h"],
        numbers: Int[Array, "B T"],
        unseen: Int[Array, "B _"],
    ) -> Float[Array, "B H T h"]:
        rows = (query, key, value, numbers, unseen)
        if len(query) == 1:
            return self._row(*(x[0] for x in rows))[None]
        return jax.lax.map(lambda row: self._row(*row), rows)

    def _row(
        self,
        query: Float[Array, "H T h"],
        key: Float[Array, "K S h"],
        value: Float[Array, "K S h"],
        numbers: Int[Array, "T"],
        unseen: Int[Array, "_"],
    ) -> Float[Array, "H T h"]:
        length = len(numbers)
        # Queries that only fill up a block see what the last one sees.
        numbers = jnp.pad(numbers, (0, self.queries.padded - length), mode="edge")
        meeting = self.mask.meeting(numbers.reshape(self.queries.count, -1), self.keys)
        by_query = _mask_info(meeting, numbers, axis=1)
        kernel = library.SplashAttentionKernel(
            by_query,
            by_query,
            _mask_info(meeting, numbers, axis=0),
            block_sizes=self._block_sizes(),
            is_mqa=False,
            save_residuals=False,
            mask_value=library.DEFAULT_MASK_VALUE,
            attn_logits_soft_cap=None,
            residual_checkpoint_name=None,
            mask_function=self.mask,
            interpret=self.interpret,
        )
        key, value = (_filled_up(x, self.keys) for x in (key, value))
        segments = library.SegmentIds(jnp.zeros_like(numbers), unseen)
        out: Array = kernel(_filled_up(query, self.queries), key, value, segments)
        return out[:, :length]

    def _block_sizes(self) -> library.BlockSizes:
        queries = self.queries.size
        keys = self.keys.size
        return library.BlockSizes(
            block_q=queries, block_kv=keys, block_q_dq=queries, block_kv_dq=keys, block_q_dkv=queries, block_kv_dkv=keys
        )


def _filled_up(x: Float[Array, "N T h"], blocks: _Blocks) -> Float[Array, "N _ h"]:
    return jnp.pad(x, ((0, 0), (0, blocks.padded - x.shape[1]), (0, 0)))


def _mask_info(meeting: Bool[Array, "queries keys"], numbers: Int[Array, "T"], *, axis: int) -> MaskInfo:
    """What the kernel does block by block, where it goes along `axis` of the blocks. At one to skip it has the next
    one that it will read, or the last one that it read."""
    places = jax.lax.broadcasted_iota(jnp.int32, meeting.shape, axis)
    count = meeting.shape[axis]
    following = jax.lax.cummin(jnp.where(meeting, places, count), axis=axis, reverse=True)
    last = jnp.where(meeting, places, 0).max(axis, keepdims=True)
    return MaskInfo(
        data_next=jnp.minimum(following, last)[None],
        mask_next=None,
        block_mask=meeting.astype(jnp.int32)[None],
        partial_mask_blocks=None,
        q_sequence=numbers,
    )
