"""KL estimators against their formulas and exact sums on a bandit; the controller of their weight."""

from __future__ import annotations

from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.loss_cases import gradient_of_sum, kl, one_token, random_batch, random_logits

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.rl.kl import KL_ESTIMATORS, kl_penalty, next_kl_coefficient


def test_the_table_holds_what_the_config_allows():
    assert set(KL_ESTIMATORS) == set(get_args(get_type_hints(RLConfig)["kl_estimator"]))


def test_kl_estimators_equal_their_formulas():
    log_probs, reference, _, mask = random_batch(spread=1.0)
    d = log_probs.astype(np.float64) - reference
    expected = {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) - 1 + d}
    for estimator, values in expected.items():
        np.testing.assert_allclose(kl_penalty(log_probs, reference, estimator), values, rtol=1e-4, atol=1e-6)
        masked = kl_penalty(log_probs, reference, estimator, response_mask=mask)
        np.testing.assert_allclose(masked, np.where(mask, values, 0), rtol=1e-4, atol=1e-6)
    assert np.all(np.asarray(kl_penalty(log_probs, reference, "k3")) >= 0)


def test_k3_of_a_token_that_became_impossible_is_finite():
    log_probs = np.full((1, 1, 1), -300.0, np.float32)
    reference = np.zeros((1, 1, 1), np.float32)
    assert np.isfinite(kl_penalty(log_probs, reference, "k3")).all()
    assert np.isfinite(gradient_of_sum(lambda x: kl_penalty(x, reference, "k3"), log_probs)).all()


@pytest.mark.parametrize("seed", range(3))
def test_kl_estimators_in_expectation(seed):
    """On-policy: k1 and k3 estimate KL(pi || ref); gradients are 0, that of KL(pi || ref), that of KL(ref || pi)."""
    with jax.enable_x64(True):
        reference_logits, logits = random_logits(seed)
        reference = one_token(jax.nn.log_softmax(reference_logits))
        policy = jnp.exp(one_token(jax.nn.log_softmax(logits)))

        def expected(logits, estimator):
            return jnp.sum(policy * kl_penalty(one_token(jax.nn.log_softmax(logits)), reference, estimator))

        for estimator in ("k1", "k3"):
            np.testing.assert_allclose(expected(logits, estimator), kl(logits, reference_logits), rtol=1e-9)
        gradients = {name: np.asarray(jax.grad(expected)(logits, name)) for name in KL_ESTIMATORS}
        np.testing.assert_allclose(gradients["k1"], 0.0, atol=1e-12)
        forward = np.asarray(jax.grad(kl)(logits, reference_logits))
        reverse = np.asarray(jax.grad(kl, argnums=1)(reference_logits, logits))
        np.testing.assert_allclose(gradients["k2"], forward, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(gradients["k3"], reverse, rtol=1e-9, atol=1e-12)


def test_the_coefficient_follows_the_kl():
    """Up to a fifth of samples / horizon a step, towards the target; without one it stays."""
    config = RLConfig(kl_target=0.1, kl_horizon=1000)
    assert next_kl_coefficient(0.5, 0.11, 100, config) == pytest.approx(0.5 * (1 + 0.1 * 0.1))
    assert next_kl_coefficient(0.5, 9.0, 100, config) == pytest.approx(0.5 * (1 + 0.2 * 0.1))
    assert next_kl_coefficient(0.5, 0.0, 100, config) == pytest.approx(0.5 * (1 - 0.2 * 0.1))
    assert next_kl_coefficient(0.5, 0.1, 100, config) == 0.5
    assert next_kl_coefficient(0.5, 9.0, 100, RLConfig()) == next_kl_coefficient(0.5, np.nan, 100, config) == 0.5
