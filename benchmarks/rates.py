"""What a device can do, measured: operations a second of its matrix products, bytes a second of its memory."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import floors
from benchmarks.common import WARM_UP, significant
from benchmarks.floors import Work
from mmeureka_jax.models.decoder_config import TextConfig
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig


@dataclass(frozen=True)
class Rates:
    """Measured on one device: operations of matrix products a second, bytes read and written a second."""

    matmul: float
    matmul_shape: tuple[int, int, int]
    copy: float
    kernels: floors.KernelRates

    def seconds(self, parts: Iterable[Work]) -> float:
        return floors.total_seconds(parts, self.matmul, self.copy)

    def kernel_seconds(self, parts: Iterable[Work]) -> float:
        return floors.kernel_seconds(parts, self.kernels)

    def figures(self) -> dict[str, Any]:
        return {
            "matmul_tflops": significant(self.matmul / 1e12),
            "matmul_shape": self.matmul_shape,
            "copy_gb_per_s": significant(self.copy / 1e9),
            "attention_tflops": significant(self.kernels.attention / 1e12),
            "exponentials_g_per_s": significant(self.kernels.exponential / 1e9),
            "cache_gb_per_s": significant(self.kernels.cache / 1e9),
        }


def measure_rates(dtype: str, config: Qwen2_5VLConfig, tokens: int) -> Rates:
    """The best of squares that grow until one takes a while, and of the decoder's products on `tokens` rows."""
    size = config.text.hidden_size
    hidden = config.text.intermediate_size
    shapes = [(tokens, size, hidden), (tokens, hidden, size)]
    measured = {shape: matmul_rate(shape, dtype) for shape in shapes}
    square = 512
    while square <= 16384:
        shape = (square,) * 3
        measured[shape] = matmul_rate(shape, dtype)
        if 2 * square**3 / measured[shape] > 0.1:  # seconds of one product
            break
        square *= 2
    best = max(measured, key=lambda shape: measured[shape])
    matmul = measured[best]
    copy = copy_rate()
    kernels = floors.KernelRates(
        matmul, copy, attention_rate(config.text, dtype), exponential_rate(), cache_rate(config.text, dtype)
    )
    return Rates(matmul, best, copy, kernels)


def matmul_rate(shape: tuple[int, int, int], dtype: str) -> float:
    """Operations a second of one product [m, k] @ [k, n]."""
    rows, inner, columns = shape
    x = jnp.ones((rows, inner), dtype)
    y = jnp.ones((inner, columns), dtype)
    product = jax.jit(jnp.matmul)
    return 2 * math.prod(shape) / best_seconds(lambda: product(x, y))


def copy_rate() -> float:
    """Bytes a second, read and written in place, by an elementwise operation on one large array."""
    count = 2**26 if jax.default_backend() == "cpu" else 2**28  # float32 numbers
    x = jnp.zeros((1024, count // 1024), jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def call() -> jax.Array:
        nonlocal x
        x = add(x)
        return x

    return 2 * 4 * count / best_seconds(call)


def attention_rate(text: TextConfig, dtype: str) -> float:
    """Operations a second of attention's products, as many scores at a time as a cache or a chip's registers keep busy.

    A forward and a backward pass have two of each of three kinds: over the numbers of a head, over keys, over queries.
    """
    queries = 256
    keys = 1024
    batch = 4 if jax.default_backend() == "cpu" else 256
    query = jnp.ones((batch, queries, text.head_dim), dtype)
    key = jnp.ones((batch, keys, text.head_dim), dtype)
    scores = jnp.ones((batch, queries, keys), dtype)
    kinds = (("bqh,bsh->bqs", query, key), ("bqs,bsh->bqh", scores, key), ("bqh,bqs->bhs", query, scores))
    seconds = sum(product_seconds(*kind) for kind in kinds)
    return len(kinds) * 2 * scores.size * text.head_dim / seconds


def exponential_rate() -> float:
    """Exponentials a second, of numbers that a cache holds where there is one."""
    x = jnp.zeros(2**18 if jax.default_backend() == "cpu" else 2**28, jnp.float32)
    exponential = jax.jit(jnp.exp)
    return x.size / best_seconds(lambda: exponential(x))


def cache_rate(text: TextConfig, dtype: str) -> float:
    """Bytes a second of keys and values, each read for the few queries that share a head."""
    length = 256
    groups = text.num_heads // text.num_kv_heads
    rows = 2 ** (26 if jax.default_backend() == "cpu" else 30) // (length * text.head_dim)
    query = jnp.ones((rows, groups, text.head_dim), dtype)
    weights = jnp.ones((rows, groups, length), dtype)
    keys = jnp.ones((rows, text.head_dim, length), dtype)
    values = jnp.ones((rows, length, text.head_dim), dtype)
    seconds = product_seconds("rgh,rhs->rgs", query, keys) + product_seconds("rgs,rsh->rgh", weights, values)
    return (keys.nbytes + values.nbytes) / seconds


def product_seconds(subscripts: str, left: jax.Array, right: jax.Array) -> float:
    product = jax.jit(functools.partial(jnp.einsum, subscripts))
    return best_seconds(lambda: product(left, right))


def best_seconds(call: Callable[[], Any], repeats: int = 7) -> float:
    """The least of several calls, after warm-up: a rate is the device's at its best."""
    seconds = []
    for _ in range(WARM_UP + repeats):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return min(seconds[WARM_UP:])
