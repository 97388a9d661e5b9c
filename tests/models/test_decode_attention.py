"""Attention of one new token against a softmax written out, with caches read whole and in chunks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from mmeureka_jax.models import decode_attention as subject
from mmeureka_jax.models.decode_attention import CachePart, decode_attention

P = 3  # prompts
N = 2  # rows of each
K = 2  # key heads
G = 3  # query heads for each of them
HEAD = 4
LENGTHS = np.array([5, 11, 1])  # of the prompts
OWN = 9  # tokens of a row
RECENT = 3  # and tokens of its block


def written_out(query, keys, values):
    """One query [h], and the keys and values [T, h] that it sees."""
    scores = keys @ query / np.sqrt(len(query))
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum()


@pytest.mark.parametrize(("platform", "chunk"), [("cpu", 4), ("tpu", 4), ("tpu", 8)])
def test_it_equals_a_softmax_written_out(platform, chunk, monkeypatch):
    """14 places for prompts and own tokens: the last chunk begins early, and chunks of 4 are not all reached."""
    monkeypatch.setattr(subject, "platform", lambda: platform)
    monkeypatch.setattr(subject, "_CHUNK", chunk)
    rng = np.random.default_rng(0)

    def cache(rows, places):
        return [rng.normal(size=(rows, K, places, HEAD)).astype(np.float32) for _ in range(2)]

    def part(of, mask, filled=None):
        return CachePart(jnp.swapaxes(jnp.asarray(of[0]), 2, 3), jnp.asarray(of[1]), jnp.asarray(mask), filled)

    query = rng.normal(size=(P * N, K, G, HEAD)).astype(np.float32)
    prompt = cache(P, 14)
    past = cache(P * N, 14)
    recent = cache(P * N, RECENT + 1)
    out = decode_attention(
        jnp.asarray(query),
        part(prompt, np.arange(14) < LENGTHS[:, None], jnp.int32(LENGTHS.max())),
        [
            part(past, np.arange(14) < OWN, jnp.int32(OWN)),
            part(recent, np.arange(RECENT + 1) < RECENT),
        ],
        lambda x: x.reshape(P, N, *x.shape[1:]),
        lambda x: x.reshape(P * N, *x.shape[2:]),
    )
    for row, head, group in np.ndindex(P * N, K, G):
        own = row // N
        seen = [
            np.concatenate([of_prompt[own, head, : LENGTHS[own]], of_past[row, head, :OWN], new[row, head, :RECENT]])
            for of_prompt, of_past, new in zip(prompt, past, recent, strict=True)
        ]
        np.testing.assert_allclose(
            out[row, head, group], written_out(query[row, head, group], *seen), rtol=2e-6, atol=1e-6
        )
