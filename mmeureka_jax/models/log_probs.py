"""Log-probabilities of tokens under an output head, without an array of [tokens, vocabulary].

The vocabulary is processed block by block, as flash attention does with keys: the forward pass keeps a running maximum
and running sums for every position; the backward pass computes a block's logits again and that block's part of the
head's gradient, which is written once. Nothing else is as large as the head, and where devices share a batch, their
parts of that gradient are added once per block and not once for every chunk of positions.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from mmeureka_jax.mesh import constrain, shard_count
from mmeureka_jax.models.attention import MASKED
from mmeureka_jax.models.batch import Array


@dataclass(frozen=True)
class OutputHead:
    """The output projection of a decoder.

    Attributes:
        weights: [D, V], or [V, D] as an embedding is (`transposed`). They and their gradient stay so, without a copy.
        vocab: entries that there are; the others are padding, of probability and gradient 0. None: all.
    """

    weights: Float[Array, "D V"] | Float[Array, "V D"]
    transposed: bool = False
    vocab: int | None = None

    @property
    def entries(self) -> int:
        return self.weights.shape[0 if self.transposed else 1] if self.vocab is None else self.vocab


def log_probs_of(
    hidden: Float[Array, "P T D"],
    head: OutputHead,
    targets: Int[Array, "P T"],
    *,
    temperature: float,
    block: int,
    entropy_gradient: bool = False,
) -> tuple[Float[Array, "P T"], Float[Array, "P T"]]:
    """Log-probability of each target and entropy of its distribution, softmax(hidden @ head / temperature), in float32.

    The largest array with a vocabulary dimension is [P, T, block].

    Args:
        block: entries of the vocabulary at a time, among those that one device holds.
        entropy_gradient: whether a gradient flows through the entropy, which costs a pass over the logits.
    """
    options = _Options(temperature, block, head.entries, head.transposed, entropy_gradient)
    return _log_probs(options, hidden, head.weights, targets)


@dataclass(frozen=True)
class _Options:
    """The static arguments of `log_probs_of`."""

    temperature: float
    block: int
    vocab: int
    transposed: bool
    entropy_gradient: bool


class _Blocks:
    """A head [V, D] or [D, V] as blocks of its vocabulary, each of them spread over the devices that share it.

    All blocks have one size. Where it does not divide the vocabulary, the last block starts early. `counted` is False
    for entries that are in the block before it, and for padding.
    """

    def __init__(self, head_shape: tuple[int, ...], options: _Options):
        transposed = options.transposed
        entries, size = head_shape if transposed else head_shape[::-1]
        self.vocab = options.vocab
        self.shards = math.gcd(entries, shard_count("act_vocab"))
        self.of_shard = entries // self.shards
        self.count = -(-self.of_shard // min(options.block, self.of_shard))
        self.size = -(-self.of_shard // self.count)
        self.overlap = self.count * self.size != self.of_shard
        self.all_count = not self.overlap and self.vocab == entries
        self.axis = 1 if transposed else 2
        self.letters = "svd" if transposed else "dsv"
        whole = (self.shards, self.of_shard)
        self.shape = (*whole, size) if transposed else (size, *whole)
        self.names = ("vocab", None, "embed") if transposed else ("embed", "vocab", None)
        self.gathered = ("act_vocab", None, None) if transposed else (None, "act_vocab", None)

    def start(self, number: Array) -> Array:
        return jnp.minimum(number * self.size, self.of_shard - self.size)

    def read(self, head: Array, number: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(head, self.start(number), self.size, self.axis)
        part = constrain(part, *self.names)  # else the whole head may be gathered for every block
        return constrain(part, *self.gathered)

    def add(self, head: Array, number: Array, part: Array) -> Array:
        start = self.start(number)
        part = constrain(part, *self.names)
        if self.overlap:
            part += jax.lax.dynamic_slice_in_dim(head, start, self.size, self.axis)
        return jax.lax.dynamic_update_slice_in_dim(head, part, start, self.axis)

    def entries(self, number: Array) -> Int[Array, "s v"]:
        return jnp.arange(self.shards)[:, None] * self.of_shard + self.start(number) + jnp.arange(self.size)

    def counted(self, number: Array) -> Bool[Array, "s v"]:
        fresh = self.start(number) + jnp.arange(self.size) >= number * self.size
        return fresh & (self.entries(number) < self.vocab)

    def is_target(self, targets: Int[Array, "P T"], number: Array) -> Bool[Array, "P T s v"]:
        # A mask, not an index: it shards over the vocabulary, and its gradient needs no scatter.
        found = self.entries(number) == targets[..., None, None]
        return found if self.all_count else found & self.counted(number)

    def logits(self, hidden: Array, part: Array, number: Array, temperature: float) -> Float[Array, "P T s v"]:
        part = part.astype(hidden.dtype)
        logits = jnp.einsum(f"ptd,{self.letters}->ptsv", hidden, part, preferred_element_type=jnp.float32)
        logits = constrain(logits / temperature, "batch", "seq", "act_vocab", None)
        return logits if self.all_count else jnp.where(self.counted(number), logits, MASKED)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_probs(
    options: _Options,
    hidden: Array,
    head: Array,
    targets: Array,
) -> tuple[Float[Array, "P T"], Float[Array, "P T"]]:
    return _forward(options, hidden, head, targets)[0]


def _forward(
    options: _Options,
    hidden: Array,
    head: Array,
    targets: Array,
) -> tuple[Any, Any]:
    blocks = _Blocks(head.shape, options)
    split = head.reshape(blocks.shape)

    def body(carry: tuple[Array, Array, Array, Array], number: Array) -> tuple[Any, None]:
        peak, total, weighted, chosen = carry
        logits = blocks.logits(hidden, blocks.read(split, number), number, options.temperature)
        higher = jnp.maximum(peak, logits.max(axis=(-2, -1)))
        weights = jnp.exp(logits - higher[..., None, None])
        correction = jnp.exp(peak - higher)
        total = total * correction + weights.sum(axis=(-2, -1))
        weighted = weighted * correction + jnp.sum(weights * logits, axis=(-2, -1))
        chosen += jnp.sum(jnp.where(blocks.is_target(targets, number), logits, 0.0), axis=(-2, -1))
        return (higher, total, weighted, chosen), None

    zero = jnp.zeros(targets.shape, jnp.float32)
    (peak, total, weighted, chosen), _ = jax.lax.scan(
        body, (jnp.full_like(zero, MASKED), zero, zero, zero), jnp.arange(blocks.count)
    )
    normaliser = peak + jnp.log(total)
    entropy = normaliser - weighted / total
    saved = (hidden, head, targets, normaliser, entropy if options.entropy_gradient else None)
    return (chosen - normaliser, entropy), saved


def _backward(
    options: _Options,
    saved: Any,
    gradients: tuple[Array, Array],
) -> tuple[Array, Array, None]:
    hidden, head, targets, normaliser, entropy = saved
    blocks = _Blocks(head.shape, options)
    split = head.reshape(blocks.shape)
    scale, entropy_scale = ((gradient / options.temperature)[..., None, None] for gradient in gradients)

    def body(carry: tuple[Array, Array], number: Array) -> tuple[tuple[Array, Array], None]:
        of_head, of_hidden = carry
        part = blocks.read(split, number)
        logits = blocks.logits(hidden, part, number, options.temperature)
        log_probs = logits - normaliser[..., None, None]
        probs = jnp.exp(log_probs)
        of_logits = (blocks.is_target(targets, number) - probs) * scale
        if options.entropy_gradient:  # dH/dlogit = -p (log p + H)
            of_logits -= entropy_scale * probs * (log_probs + entropy[..., None, None])
        of_logits = of_logits.astype(hidden.dtype)
        of_part = jnp.einsum(f"ptd,ptsv->{blocks.letters}", hidden, of_logits, preferred_element_type=jnp.float32)
        of_hidden += jnp.einsum(
            f"ptsv,{blocks.letters}->ptd", of_logits, part.astype(hidden.dtype), preferred_element_type=jnp.float32
        )
        return (blocks.add(of_head, number, of_part), of_hidden), None

    # Both gradients add up in float32, over however many blocks.
    of_head = constrain(jnp.zeros(blocks.shape, jnp.float32), *blocks.names)
    (of_head, of_hidden), _ = jax.lax.scan(
        body, (of_head, jnp.zeros(hidden.shape, jnp.float32)), jnp.arange(blocks.count)
    )
    return of_hidden.astype(hidden.dtype), of_head.reshape(head.shape).astype(head.dtype), None


_log_probs.defvjp(_forward, _backward)
