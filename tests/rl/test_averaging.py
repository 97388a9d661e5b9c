"""Token weights against loops from the definitions of the averages."""

from __future__ import annotations

from typing import get_args, get_type_hints

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.rl.averaging import token_weights

AVERAGINGS = get_args(get_type_hints(RLConfig)["token_averaging"])
MAX_LENGTH = 16
each_averaging = pytest.mark.parametrize("averaging", AVERAGINGS)


def brute_force_average(values, mask, averaging: str) -> float:
    groups = [[[float(v) for v, m in zip(*row, strict=True) if m] for row in zip(*group, strict=True)]
              for group in zip(values, mask, strict=True)]  # fmt: skip
    responses = [tokens for group in groups for tokens in group]
    if averaging == "sequence_mean":
        means = [sum(tokens) / len(tokens) for tokens in responses if tokens]
        return sum(means) / len(means) if means else 0.0
    if averaging == "token_mean":
        count = sum(map(len, responses))
        return sum(map(sum, responses)) / count if count else 0.0
    if averaging == "prompt_token_mean":
        pooled = [[token for tokens in group for token in tokens] for group in groups]
        means = [sum(tokens) / len(tokens) for tokens in pooled if tokens]
        return sum(means) / len(means) if means else 0.0
    return sum(map(sum, responses)) / (len(responses) * MAX_LENGTH)


masks = st.tuples(st.sampled_from([1, 4]), st.sampled_from([1, 3]), st.sampled_from([1, 5])).flatmap(
    lambda shape: st.tuples(
        st.just(shape), st.lists(st.integers(0, shape[2]), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    )
)


@settings(max_examples=30, deadline=None)
@given(masks, st.integers(0, 2**16))
def test_averages_equal_brute_force(drawn, seed):
    (prompts, n, length), lengths = drawn
    mask = np.arange(length) < np.reshape(lengths, (prompts, n, 1))
    values = np.random.default_rng(seed).normal(size=mask.shape).astype(np.float32)
    for averaging in AVERAGINGS:
        weights = np.asarray(token_weights(mask, averaging, max_length=MAX_LENGTH), np.float64)
        assert weights.shape == mask.shape and np.all(weights[~mask] == 0) and np.all(weights[mask] > 0)
        expected = brute_force_average(values, mask, averaging)
        assert np.sum(weights * values) == pytest.approx(expected, rel=1e-5, abs=1e-6)
        if averaging != "constant":
            assert weights.sum() == pytest.approx(1.0 if mask.any() else 0.0)


@each_averaging
def test_a_batch_without_any_token_weighs_nothing(averaging):
    weights = token_weights(np.zeros((2, 2, 3), bool), averaging, max_length=3)
    np.testing.assert_array_equal(weights, 0.0)


def test_averagings_differ_where_lengths_do():
    mask = np.arange(4) < np.array([[[4], [1]], [[1], [1]]])
    weights = {a: np.asarray(token_weights(mask, a, max_length=5)) for a in AVERAGINGS}
    first_token = {a: (w[0, 0, 0], w[0, 1, 0], w[1, 0, 0]) for a, w in weights.items()}
    expected = {
        "sequence_mean": (1 / 16, 1 / 4, 1 / 4),
        "token_mean": (1 / 7, 1 / 7, 1 / 7),
        "prompt_token_mean": (1 / 10, 1 / 10, 1 / 4),
        "constant": (1 / 20, 1 / 20, 1 / 20),
    }
    for averaging in AVERAGINGS:
        np.testing.assert_allclose(first_token[averaging], expected[averaging], rtol=1e-6)


def test_constant_averaging_is_by_the_limit_not_by_padding():
    mask = np.ones((1, 2, 3), bool)
    with pytest.raises(ValueError, match="max_length"):
        token_weights(mask, "constant")
    padded = np.concatenate([mask, np.zeros((1, 2, 5), bool)], axis=2)
    np.testing.assert_array_equal(
        token_weights(padded, "constant", max_length=10)[..., :3], token_weights(mask, "constant", max_length=10)
    )
    with pytest.raises(ValueError, match="median"):
        token_weights(mask, "median")
