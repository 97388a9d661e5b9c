"""Attention against a softmax written out, and against itself in chunks and in the repeated layout."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmeureka_jax.models import attention as module
from mmeureka_jax.models.attention import attention, shared_prefix_attention

P, N, T, H, K, HEAD = 2, 3, 7, 4, 2, 8
PREFIX = 5


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def brute_force(query, key, value, mask):
    """query [T, H, h], key and value [K, S, h], mask [T, S]."""
    out = np.zeros(query.shape)
    for t in range(query.shape[0]):
        for head in range(query.shape[1]):
            k, v = key[head // (query.shape[1] // key.shape[0])], value[head // (query.shape[1] // key.shape[0])]
            scores = np.asarray([query[t, head] @ k[s] for s in range(k.shape[0])]) / np.sqrt(query.shape[2])
            weights = np.where(mask[t], np.exp(scores - scores[mask[t]].max()), 0)
            out[t, head] = weights @ v / weights.sum()
    return out


@pytest.fixture
def group():
    """Arguments of `shared_prefix_attention`: the second prompt is shorter than its padding."""
    lengths = np.array([PREFIX, 3])
    return (
        normal(0, P, N, T, H, HEAD),
        normal(1, P, K, PREFIX, HEAD),
        normal(2, P, K, PREFIX, HEAD),
        jnp.asarray(np.arange(PREFIX) < lengths[:, None]),
        normal(3, P, K, N, T, HEAD),
        normal(4, P, K, N, T, HEAD),
        jnp.tril(jnp.ones((T, T), bool))[None, None],
    )


def test_attention_equals_a_softmax_written_out():
    query, key, value = normal(0, 1, T, H, HEAD), normal(1, 1, K, T, HEAD), normal(2, 1, K, T, HEAD)
    mask = np.tril(np.ones((T, T), bool))
    np.testing.assert_allclose(
        attention(query, key, value, jnp.asarray(mask)[None])[0],
        brute_force(query[0], key[0], value[0], mask),
        atol=1e-5,
    )


def test_shared_prefix_equals_the_repeated_sequences(group):
    query, prefix_key, prefix_value, prefix_mask, own_key, own_value, own_mask = group
    out = shared_prefix_attention(*group)
    for p in range(P):
        for j in range(N):
            key = np.concatenate([prefix_key[p], own_key[p, :, j]], axis=1)
            value = np.concatenate([prefix_value[p], own_value[p, :, j]], axis=1)
            mask = np.concatenate([np.broadcast_to(prefix_mask[p], (T, PREFIX)), own_mask[0, 0]], axis=1)
            np.testing.assert_allclose(out[p, j], brute_force(query[p, j], key, value, mask), atol=1e-5)


@pytest.mark.parametrize("rows", [1, 6, 9, 20])
def test_chunks_of_queries_change_neither_result_nor_gradient(group, rows, monkeypatch):
    def value_and_gradients():
        weight = normal(9, P, N, T, H, HEAD)

        def total(query, prefix_key, own_value):
            return jnp.sum(weight * shared_prefix_attention(query, prefix_key, *group[2:5], own_value, group[6]))

        return jax.value_and_grad(total, argnums=(0, 1, 2))(group[0], group[1], group[5])

    whole = value_and_gradients()
    monkeypatch.setattr(module, "QUERY_ROWS", rows)
    monkeypatch.setattr(module, "SCORES", 1)
    for expected, chunked in zip(jax.tree.leaves(whole), jax.tree.leaves(value_and_gradients()), strict=True):
        np.testing.assert_allclose(chunked, expected, rtol=1e-4, atol=1e-5)


def test_chunks_with_one_mask_for_all_queries(monkeypatch):
    """As in window attention, whose mask says only which keys are padding."""
    query, key, value = normal(0, 2, 10, H, HEAD), normal(1, 2, K, 10, HEAD), normal(2, 2, K, 10, HEAD)
    mask = jnp.asarray(np.arange(10) < np.array([[10], [6]]))[:, None]
    whole = attention(query, key, value, mask)
    monkeypatch.setattr(module, "QUERY_ROWS", 4)
    monkeypatch.setattr(module, "SCORES", 1)
    np.testing.assert_allclose(attention(query, key, value, mask), whole, atol=1e-6)
    expected = brute_force(query[1], key[1], value[1], np.broadcast_to(mask[1], (10, 10)))
    np.testing.assert_allclose(whole[1], expected, atol=1e-5)
