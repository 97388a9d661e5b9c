"""Token losses against loops from the definitions, closed forms, and exact sums on a bandit."""

from __future__ import annotations

import math
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.loss_cases import gradient_of_sum, kl, one_token, random_batch, random_logits
from helpers.loss_oracles import ORACLES

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.rl.averaging import token_weights
from mmeureka_jax.rl.kl import kl_penalty
from mmeureka_jax.rl.losses import LOSSES, cpg, cpgd, make_policy_loss, ppo_clip
from mmeureka_jax.rl.settings import settings_of

CONFIGS = {
    "ppo": RLConfig(loss="ppo_clip", clip_epsilon_low=0.2, clip_epsilon_high=0.28),
    "ppo_capped": RLConfig(loss="ppo_clip", ratio_cap=3.0),
    "ppo_tightly_capped": RLConfig(loss="ppo_clip", ratio_cap=1.1),
    "ppo_drift": RLConfig(loss="ppo_clip_drift", ratio_cap=3.0, drift_coefficient=0.3),
    "cpgd": RLConfig(loss="cpgd", drift_coefficient=0.01),
    "cpgd_asymmetric": RLConfig(
        loss="cpgd", clip_epsilon_low=0.1, clip_epsilon_high=0.3, drift_coefficient=0.5, drift_cap=0.4
    ),
    "cpgd_tight_to_loose": RLConfig(loss="cpgd", clip_start=0.25, drift_coefficient=0.01),
    "cpg": RLConfig(loss="cpg"),
    "pg": RLConfig(loss="pg"),
    "pg_drift": RLConfig(loss="pg_drift", drift_coefficient=0.5, drift_cap=0.4),
    "gspo": RLConfig(loss="gspo"),
    "gspo_wide": RLConfig(loss="gspo", clip_epsilon_low=0.1, clip_epsilon_high=0.05),
    "cispo": RLConfig(loss="cispo"),
    "cispo_two_bounds": RLConfig(loss="cispo", clip_epsilon_low=0.2, clip_epsilon_high=0.3),
}
NO_CLIP = ("pg", "pg_drift")
WITH_DRIFT = ("cpgd", "pg_drift", "ppo_clip_drift")
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def brute_force(config: RLConfig, log_probs, old, advantages, mask) -> dict[str, np.ndarray]:
    """What the loss's oracle says of all responses, as arrays that are 0 behind the mask."""
    result: dict[str, np.ndarray] = {}
    for index in np.ndindex(mask.shape[:2]):
        length = int(mask[index].sum())
        rows = ([float(x) for x in array[index][:length]] for array in (log_probs, old, advantages))
        for t, said in enumerate(ORACLES[config.loss](config, *rows)):
            for name, value in said.items():
                result.setdefault(name, np.zeros(mask.shape))[(*index, t)] = value
    return result


# --- token losses


@each_config
def test_value_and_gradient_equal_brute_force(config):
    loss = make_policy_loss(config)

    @jax.jit
    def gradient_and_result(log_probs, old, advantages, mask):
        def summed(log_probs):
            result = loss(log_probs, old, advantages, mask)
            return jnp.sum(result.loss), result

        return jax.grad(summed, has_aux=True)(log_probs)

    for spread in (0.05, 0.4, 3.0):
        batch = random_batch(spread=spread)
        gradient, result = gradient_and_result(*batch)
        expected = brute_force(config, *batch)
        np.testing.assert_allclose(result.parts["policy"], expected["policy"], rtol=3e-6, atol=2e-6)
        np.testing.assert_allclose(result.loss, expected["policy"] + expected["drift"], rtol=3e-6, atol=2e-6)
        np.testing.assert_allclose(sum(result.parts.values()), result.loss, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(gradient, expected["gradient"] + expected["drift_gradient"], rtol=3e-6, atol=2e-6)
        assert ("drift" in result.parts) == (config.loss in WITH_DRIFT)


@each_config
def test_clipped_tokens_are_counted(config):
    batch = random_batch(seed=2, shape=(5, 4, 6), spread=2.0 if config.loss == "cispo" else 0.8)
    diagnostics = make_policy_loss(config)(*batch).diagnostics
    expected = brute_force(config, *batch)
    np.testing.assert_array_equal(diagnostics["clip_fraction_low"], expected["low"])
    np.testing.assert_array_equal(diagnostics["clip_fraction_high"], expected["high"])
    assert expected["high"].any() == (config.loss not in NO_CLIP)
    assert expected["low"].any() == (config.loss not in NO_CLIP and config is not CONFIGS["cispo"])


@pytest.mark.parametrize(
    "config", [c for c in CONFIGS.values() if c.loss in ("ppo_clip", "ppo_clip_drift", "cpg", "cpgd")]
)
def test_a_clipped_token_has_no_policy_gradient_and_is_counted(config):
    log_probs, old, advantages, mask = random_batch(seed=3, spread=0.8)
    loss = make_policy_loss(config)
    diagnostics = loss(log_probs, old, advantages, mask).diagnostics
    gradient = gradient_of_sum(lambda x: loss(x, old, advantages, mask).parts["policy"], log_probs)
    still = (np.asarray(diagnostics["clip_fraction_low"]) + np.asarray(diagnostics["clip_fraction_high"])) > 0
    still |= ~mask | (advantages == 0)
    np.testing.assert_array_equal(gradient == 0, still)


@pytest.mark.parametrize("config", [c for c in CONFIGS.values() if c.loss != "cispo"])
def test_policy_gradient_equals_finite_differences(config):
    """In float64; away from the kinks. (CISPO's weight takes no part in its gradient, so values do not tell of it.)"""
    with jax.enable_x64(True):
        log_probs, old, advantages, mask = (np.asarray(x) for x in random_batch(seed=5))
        log_probs, old, advantages = (x.astype(np.float64) for x in (log_probs, old, advantages))
        loss = make_policy_loss(config)

        @jax.jit
        def policy(x):
            return jnp.sum(loss(x, old, advantages, mask).parts["policy"])

        gradient = np.asarray(jax.grad(policy)(log_probs))
        step = 1e-6
        for index in np.ndindex(mask.shape):
            moved = np.zeros(mask.shape)
            moved[index] = step
            difference = float(policy(log_probs + moved) - policy(log_probs - moved)) / (2 * step)
            assert gradient[index] == pytest.approx(difference, rel=1e-6, abs=1e-8), index


def test_drift_has_the_gradient_of_k3_up_to_the_cap():
    with jax.enable_x64(True):
        d = np.array([-3.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 1.0, 1.2, 5.0])[None, None]
        old = np.full_like(d, -2.0)

        def drift(x):
            mask = np.ones(old.shape, bool)
            return cpgd(x, old, np.zeros(old.shape), mask, drift_coefficient=0.25, drift_cap=2.0).parts["drift"]

        def k3(x):
            return np.exp(x - old) - 1 - (x - old)

        gradient = gradient_of_sum(drift, old + d)
        step = 1e-6
        differences = 0.25 * (k3(old + d + step) - k3(old + d - step)) / (2 * step)
        below = d < math.log(3.0)
        assert below.sum() == 7
        np.testing.assert_allclose(gradient[below], differences[below], rtol=1e-6, atol=1e-9)
        np.testing.assert_array_equal(gradient[~below], 0.25 * 2.0)


def test_the_boundary_itself_is_not_clipped():
    """At a tie, min() would give half the gradient."""
    zeros = jnp.zeros((1, 2, 1))
    advantages = np.array([[[1.0], [-1.0]]], np.float32)
    mask = np.ones(zeros.shape, bool)
    epsilons = {"clip_epsilon_low": 0.0, "clip_epsilon_high": 0.0}
    for loss in (ppo_clip, cpg, cpgd):
        gradient = gradient_of_sum(lambda x, loss=loss: loss(x, zeros, advantages, mask, **epsilons).loss, zeros)
        np.testing.assert_array_equal(gradient.ravel(), [-1.0, 1.0])


def test_gradient_weights_of_a_bad_token_that_became_likely():
    """A < 0, r >> 1: r |A| for PPO-clip (unbounded), |A| for CPG, 0 with the ratio cap; CPGD adds at most alpha * c."""
    d = np.array([0.0, 2.0, 10.0, 50.0], np.float32)[None, None]
    mask = np.ones(d.shape, bool)
    old = np.full(d.shape, -55.0, np.float32)
    advantage = np.full_like(d, -0.5)

    def weight(**kwargs):
        loss = make_policy_loss(RLConfig(**kwargs))
        return gradient_of_sum(lambda x: loss(x, old, advantage, mask).loss, old + d).ravel()

    ratio = np.exp(d.astype(np.float64)).ravel()
    np.testing.assert_allclose(weight(loss="ppo_clip"), 0.5 * ratio, rtol=1e-5)
    np.testing.assert_array_equal(weight(loss="ppo_clip", ratio_cap=3.0), [0.5, 0, 0, 0])
    np.testing.assert_array_equal(weight(loss="cpg"), 0.5)
    np.testing.assert_array_equal(weight(loss="pg"), 0.5)
    np.testing.assert_allclose(weight(loss="cispo"), 0.5 * np.minimum(ratio, 5.0), rtol=1e-5)
    drift = weight(loss="cpgd", drift_coefficient=0.01, drift_cap=2.0)
    np.testing.assert_allclose(drift, 0.5 + 0.01 * np.minimum(ratio - 1, 2.0), rtol=1e-6)


@each_config
def test_huge_log_ratios_give_no_nan(config):
    d = np.array([-300.0, -50.0, 50.0, 79.0, 300.0], np.float32)
    mask = np.ones((1, 3, 5), bool)
    advantages = np.broadcast_to(np.array([[[-1.0], [0.0], [1.0]]], np.float32), mask.shape)
    old = np.full(mask.shape, -400.0, np.float32)
    loss = make_policy_loss(config)
    leaves = jax.tree.leaves(loss(old + d, old, advantages, mask))
    gradient = gradient_of_sum(lambda x: loss(x, old, advantages, mask).loss, old + d)
    assert all(np.isfinite(leaf).all() for leaf in [*leaves, gradient])


# --- masks


@each_config
def test_garbage_behind_the_mask_reaches_nothing(config):
    log_probs, old, advantages, mask = random_batch(seed=1)
    reference = old - 0.1
    loss = make_policy_loss(config)
    weights = token_weights(mask, "token_mean")

    @jax.jit
    def run(log_probs, old, reference):
        def total(log_probs):
            token_loss = loss(log_probs, old, advantages, mask)
            penalty = kl_penalty(log_probs, reference, "k3", response_mask=mask)
            return jnp.sum(weights * (token_loss.loss + penalty)), (token_loss, penalty)

        return jax.value_and_grad(total, has_aux=True)(log_probs)

    clean = run(log_probs, old, reference)
    for garbage in np.array([math.nan, math.inf, -math.inf, 1e30, -1e30], np.float32):
        for fill in [(garbage, 0, 0), (0, garbage, 0), (0, 0, garbage), (garbage,) * 3, (garbage, -garbage, garbage)]:
            dirty = [np.where(mask, x, y) for x, y in zip((log_probs, old, reference), fill, strict=True)]
            assert all(x.dtype == np.float32 for x in dirty)
            jax.tree.map(np.testing.assert_array_equal, run(*dirty), clean)
    for leaf in jax.tree.leaves(clean[0][1]):
        np.testing.assert_array_equal(np.asarray(leaf)[~mask], 0.0)


@each_config
def test_a_nan_at_a_real_token_stays_visible(config):
    log_probs, old, advantages, mask = random_batch()
    index = tuple(np.argwhere(mask)[0])
    log_probs[index] = np.nan
    result = make_policy_loss(config)(log_probs, old, advantages, mask)
    spread = mask[index[:2]].sum() if config.loss == "gspo" else 1  # the ratio of a response is that of all its tokens
    assert np.isnan(result.loss[index]) and np.isnan(result.loss).sum() == spread


@each_config
def test_inputs_are_left_alone_and_jit_changes_nothing(config):
    batch = random_batch()
    copies = [x.copy() for x in batch]
    loss = make_policy_loss(config)
    eager = loss(*batch)
    compiled = jax.jit(loss)(*batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), eager, compiled)
    for x, copy in zip(batch, copies, strict=True):
        np.testing.assert_array_equal(x, copy)


@pytest.mark.parametrize("name", LOSSES)
def test_settings_are_keys_of_the_config_and_have_its_defaults(name):
    for setting, own in settings_of(LOSSES[name].function).items():
        default = getattr(RLConfig(), setting)
        assert default is None or default == own, setting


# --- micro-batches


@each_config
def test_micro_batches_add_up_to_the_full_batch(config):
    """Loss and gradient of a shared parameter, for micro-batches of 1 and 4 prompts, with empty responses."""
    log_probs, old, advantages, mask = map(jnp.asarray, random_batch(seed=7, shape=(8, 3, 11)))
    features = jnp.asarray(np.random.default_rng(8).normal(0, 0.1, (*mask.shape, 5)), jnp.float32)
    loss = make_policy_loss(config)

    @jax.jit
    def value_and_gradient(theta, weights, rows):
        def total(theta):
            current = log_probs[rows] + features[rows] @ theta
            penalty = kl_penalty(current, old[rows], "k2", response_mask=mask[rows])
            losses = loss(current, old[rows], advantages[rows], mask[rows]).loss
            return jnp.sum(weights[rows] * (losses + 0.1 * penalty))

        return jax.value_and_grad(total)(theta)

    theta = jnp.linspace(-0.5, 0.5, 5)
    for averaging in get_args(get_type_hints(RLConfig)["token_averaging"]):
        weights = token_weights(mask, averaging, max_length=16)
        value, gradient = value_and_gradient(theta, weights, np.arange(8))
        for size in (1, 4):
            parts = [value_and_gradient(theta, weights, rows) for rows in np.arange(8).reshape(size, -1).T]
            assert float(sum(part[0] for part in parts)) == pytest.approx(float(value), rel=1e-6)
            error = np.linalg.norm(sum(part[1] for part in parts) - gradient) / np.linalg.norm(gradient)
            assert error < 1e-6


# --- a softmax bandit, where every expectation is an exact sum over the actions


@pytest.mark.parametrize("seed", range(5))
def test_expected_drift_gradient_is_the_gradient_of_the_kl(seed):
    """E_old[(r - 1) grad l] = grad KL(pi_old || pi)."""
    with jax.enable_x64(True):
        old_logits, logits = random_logits(seed)
        old = jax.nn.log_softmax(old_logits)

        def expected_drift(logits):
            now = one_token(jax.nn.log_softmax(logits))
            none = jnp.zeros((1, 6, 1))
            result = cpgd(now, one_token(old), none, none == 0, drift_coefficient=1.0, drift_cap=math.inf)
            return jnp.sum(one_token(jnp.exp(old)) * result.loss)

        expected = jax.grad(kl, argnums=1)(old_logits, logits)
        np.testing.assert_allclose(jax.grad(expected_drift)(logits), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 1.2), (-1.0, 0.8)])
def test_one_ppo_step_against_one_cpg_step_at_the_clip_boundary(advantage, ratio):
    """From r = 1 + epsilon with A > 0, PPO's step moves r further than CPG's: their weights are r |A| and |A|.

    For the same reason it moves r less far in the mirrored case (A < 0, r = 1 - epsilon), where CPGD's proposition
    claims otherwise.
    """
    with jax.enable_x64(True):
        logits = jnp.zeros(5)
        action = jnp.arange(5) == 2
        log_prob = jax.nn.log_softmax(logits)
        old = log_prob - math.log(ratio) + np.sign(advantage) * 1e-9  # a hair inside the boundary
        advantages = jnp.full((1, 5, 1), advantage)

        def ratio_after(config, rate=0.1):
            loss = make_policy_loss(config)

            def total(logits):
                x = one_token(jax.nn.log_softmax(logits))
                return jnp.sum(loss(x, one_token(old), advantages, one_token(action)).loss)

            stepped = jax.nn.log_softmax(logits - rate * jax.grad(total)(logits))
            return float(jnp.exp(stepped - old)[2])

        after_ppo = ratio_after(RLConfig(loss="ppo_clip"))
        after_cpg = ratio_after(RLConfig(loss="cpg"))
        if advantage > 0:
            assert after_ppo > after_cpg > ratio
        else:
            assert after_cpg < after_ppo < ratio


def test_an_exact_cpgd_step_never_lowers_the_expected_reward():
    """Minimising the expected CPGD loss from pi_old gains at least alpha * KL(pi_old || pi), over many bandits."""
    bandits = 200
    actions = 5
    rng = np.random.default_rng(0)
    start = jnp.asarray(rng.normal(0, 1.5, (bandits, actions)), jnp.float32)
    rewards = np.where(
        rng.random((bandits, 1)) < 0.5, rng.integers(0, 2, (bandits, actions)), rng.normal(size=(bandits, actions))
    )
    alphas = jnp.asarray(10 ** rng.uniform(-3, 1, bandits), jnp.float32)
    old = jax.nn.log_softmax(start)
    probabilities = jnp.exp(old)
    advantages = jnp.asarray(rewards, jnp.float32)
    advantages = advantages - jnp.sum(probabilities * advantages, axis=1, keepdims=True)
    rates = 0.5 / (alphas + jnp.abs(advantages).max(1))

    def expected_loss(logits):
        result = cpgd(
            jax.nn.log_softmax(logits)[..., None], old[..., None], advantages[..., None],
            np.ones((bandits, actions, 1), bool), drift_coefficient=alphas[:, None, None],
        )  # fmt: skip
        return jnp.sum(probabilities[..., None] * result.loss)

    def descend(logits, i):
        return logits - (rates / (1 + i / 200))[:, None] * jax.grad(expected_loss)(logits), None

    logits, _ = jax.jit(lambda logits: jax.lax.scan(descend, logits, jnp.arange(6000)))(start)
    new = jax.nn.log_softmax(logits)
    gain = np.asarray(jnp.sum((jnp.exp(new) - probabilities) * advantages, axis=1))
    divergence = np.asarray(jnp.sum(probabilities * (old - new), axis=1))
    varied = np.ptp(rewards, axis=1) > 0
    assert varied.sum() > 150 and np.median(divergence[varied]) > 1e-4  # the steps go somewhere
    assert np.all(gain >= np.asarray(alphas) * divergence - 1e-5)
    assert np.all(gain[varied] > 0)
