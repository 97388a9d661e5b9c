"""Losses, averagings and KL penalties against loops from the definitions, closed forms, and exact sums on a bandit."""

from __future__ import annotations

import math
from typing import get_args, get_type_hints

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from mmeureka_jax.config import RLConfig
from mmeureka_jax.rl.losses import KL_ESTIMATORS, LOSSES, cpgd, kl_penalty, make_policy_loss, ppo_clip, token_weights

AVERAGINGS = get_args(get_type_hints(RLConfig)["token_averaging"])
MAX_LENGTH = 16
CONFIGS = {
    "ppo": RLConfig(loss="ppo_clip", clip_epsilon_low=0.2, clip_epsilon_high=0.28),
    "ppo_capped": RLConfig(loss="ppo_clip", ratio_cap=3.0),
    "ppo_tightly_capped": RLConfig(loss="ppo_clip", ratio_cap=1.1),
    "cpgd": RLConfig(loss="cpgd", drift_coefficient=0.01),
    "cpgd_asymmetric": RLConfig(
        loss="cpgd", clip_epsilon_low=0.1, clip_epsilon_high=0.3, drift_coefficient=0.5, drift_cap=0.4
    ),
}
each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
each_averaging = pytest.mark.parametrize("averaging", AVERAGINGS)


def clip(x: float, low: float, high: float) -> float:
    return max(low, min(x, high))


def brute_force_token(config: RLConfig, l: float, old: float, advantage: float) -> tuple[float, float, float]:  # noqa: E741
    """(policy addend, drift addend, dLoss/dl) of one token, from the formulas as the papers write them."""
    low, high = config.clip_epsilon_low, config.clip_epsilon_high
    d = l - old
    ratio = math.exp(d)
    if config.loss == "ppo_clip":
        r = ratio if config.ratio_cap is None else min(ratio, config.ratio_cap)
        surrogate = min(r * advantage, clip(r, 1 - low, 1 + high) * advantage)
        moves = surrogate == r * advantage and (config.ratio_cap is None or ratio <= config.ratio_cap)
        return -surrogate, 0.0, -ratio * advantage if moves else 0.0
    lo, hi = math.log(1 - low), math.log(1 + high)
    surrogate = advantage * min(d, hi) if advantage > 0 else advantage * max(d, lo)
    assert surrogate == pytest.approx(min(d * advantage, clip(d, lo, hi) * advantage), abs=1e-12)
    clipped = (advantage > 0 and d > hi) or (advantage < 0 and d < lo)
    capped = min(ratio - 1, config.drift_cap)
    gradient = (0.0 if clipped else -advantage) + config.drift_coefficient * capped
    return -surrogate, config.drift_coefficient * capped * l, gradient


def random_batch(seed: int = 0, shape: tuple[int, int, int] = (4, 3, 7), spread: float = 0.4):
    """Uneven lengths, an empty response, a group that is empty altogether, and an advantage of 0."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, shape[2] + 1, shape[:2])
    lengths.flat[0] = 0
    lengths[-1] = 0
    mask = np.arange(shape[2]) < lengths[..., None]
    old = -rng.exponential(1.5, shape).astype(np.float32)
    log_probs = old + rng.normal(0, spread, shape).astype(np.float32)
    advantages = rng.normal(size=shape[:2]).astype(np.float32)
    advantages.flat[1] = 0.0
    return log_probs, old, advantages, mask


def gradient_of_sum(function, log_probs):
    return np.asarray(jax.jit(jax.grad(lambda x: jnp.sum(function(x))))(jnp.asarray(log_probs)))


# --- token losses


@each_config
@pytest.mark.parametrize("spread", [0.05, 0.4, 3.0])
def test_value_and_gradient_equal_brute_force(config, spread):
    log_probs, old, advantages, mask = random_batch(spread=spread)
    loss = make_policy_loss(config)
    result = loss(log_probs, old, advantages, mask)
    gradient = gradient_of_sum(lambda x: loss(x, old, advantages, mask).loss, log_probs)
    policy, drift, expected_gradient = np.zeros((3, *mask.shape))
    for index in zip(*np.nonzero(mask), strict=True):
        values = brute_force_token(config, float(log_probs[index]), float(old[index]), float(advantages[index[:2]]))
        policy[index], drift[index], expected_gradient[index] = values
    np.testing.assert_allclose(result.parts["policy"], policy, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(result.loss, policy + drift, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(sum(result.parts.values()), result.loss, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-6, atol=1e-6)
    assert ("drift" in result.parts) == (config.loss == "cpgd")


@each_config
def test_diagnostics_equal_brute_force(config):
    log_probs, old, advantages, mask = random_batch(seed=2, shape=(5, 4, 6), spread=0.8)
    diagnostics = make_policy_loss(config)(log_probs, old, advantages, mask).diagnostics
    assert set(diagnostics) == {"ratio", "clip_fraction_low", "clip_fraction_high", "drift"}
    seen = {"low": 0, "high": 0}
    for index in np.ndindex(mask.shape):
        d = float(log_probs[index]) - float(old[index])
        advantage, real = advantages[index[:2]], mask[index]
        low = bool(real and advantage < 0 and math.exp(d) < 1 - config.clip_epsilon_low)
        high = bool(real and advantage > 0 and math.exp(d) > 1 + config.clip_epsilon_high)
        if config.loss == "ppo_clip" and config.ratio_cap is not None:
            high |= bool(real and advantage != 0 and math.exp(d) > config.ratio_cap)
        seen["low"] += low
        seen["high"] += high
        assert diagnostics["clip_fraction_low"][index] == low
        assert diagnostics["clip_fraction_high"][index] == high
        assert float(diagnostics["ratio"][index]) == pytest.approx(math.exp(d) if real else 0, rel=2e-6)
        assert float(diagnostics["drift"][index]) == pytest.approx(math.expm1(d) - d if real else 0, rel=1e-4, abs=1e-7)
    assert seen["low"] and seen["high"]


@each_config
def test_a_clipped_token_has_no_policy_gradient_and_is_counted(config):
    log_probs, old, advantages, mask = random_batch(seed=3, spread=0.8)
    loss = make_policy_loss(config)
    diagnostics = loss(log_probs, old, advantages, mask).diagnostics
    gradient = gradient_of_sum(lambda x: loss(x, old, advantages, mask).parts["policy"], log_probs)
    still = (np.asarray(diagnostics["clip_fraction_low"]) + np.asarray(diagnostics["clip_fraction_high"])) > 0
    still |= ~mask | (advantages == 0)[..., None]
    np.testing.assert_array_equal(gradient == 0, still)


@each_config
def test_policy_gradient_equals_finite_differences(config):
    """In float64; away from the kinks."""
    with jax.enable_x64(True):
        log_probs, old, advantages, mask = (np.asarray(x) for x in random_batch(seed=5))
        log_probs, old, advantages = (x.astype(np.float64) for x in (log_probs, old, advantages))
        loss = make_policy_loss(config)

        def policy(x):
            return np.asarray(loss(jnp.asarray(x), old, advantages, mask).parts["policy"])

        gradient = gradient_of_sum(lambda x: loss(x, old, advantages, mask).parts["policy"], log_probs)
        step = 1e-6
        differences = (policy(log_probs + step) - policy(log_probs - step)) / (2 * step)
        bounds = [1 - config.clip_epsilon_low, 1 + config.clip_epsilon_high, config.ratio_cap or 1e9]
        ratio = np.exp(log_probs - old)
        assert min(np.abs(ratio - bound).min() for bound in bounds) > 10 * step
        np.testing.assert_allclose(gradient, differences, rtol=1e-6, atol=1e-8)


def test_drift_has_the_gradient_of_k3_below_the_cap_and_no_more_than_the_cap_above():
    with jax.enable_x64(True):
        d = np.array([-3.0, -0.5, -1e-3, 0.0, 1e-3, 0.5, 1.0, 1.2, 5.0])[None, None]
        old = np.full_like(d, -2.0)

        def drift(x):
            return cpgd(
                x, old, np.zeros((1, 1)), epsilon_low=0.2, epsilon_high=0.2, drift_coefficient=0.25, drift_cap=2.0
            ).parts["drift"]

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
    zeros, advantages = jnp.zeros((1, 2, 1)), np.array([[1.0, -1.0]], np.float32)
    ppo = gradient_of_sum(lambda x: ppo_clip(x, zeros, advantages, epsilon_low=0.0, epsilon_high=0.0).loss, zeros)
    np.testing.assert_array_equal(ppo.ravel(), [-1.0, 1.0])
    settings_ = {"epsilon_low": 0.0, "epsilon_high": 0.0, "drift_coefficient": 0.1, "drift_cap": 2.0}
    cpg = gradient_of_sum(lambda x: cpgd(x, zeros, advantages, **settings_).loss, zeros)
    np.testing.assert_array_equal(cpg.ravel(), [-1.0, 1.0])


def test_gradient_weights_of_a_bad_token_that_became_likely():
    """A < 0, r >> 1: r |A| for PPO-clip (unbounded), |A| for CPG, 0 with the ratio cap; CPGD adds at most alpha * c."""
    d, advantage = np.array([0.0, 2.0, 10.0, 50.0], np.float32)[None, None], np.array([[-0.5]], np.float32)
    mask, old = np.ones(d.shape, bool), np.full(d.shape, -55.0, np.float32)

    def weight(**kwargs):
        loss = make_policy_loss(RLConfig(**kwargs))
        return gradient_of_sum(lambda x: loss(x, old, advantage, mask).loss, old + d).ravel()

    ratio = np.exp(d.astype(np.float64)).ravel()
    np.testing.assert_allclose(weight(loss="ppo_clip"), 0.5 * ratio, rtol=1e-5)
    np.testing.assert_array_equal(weight(loss="ppo_clip", ratio_cap=3.0), [0.5, 0, 0, 0])
    np.testing.assert_array_equal(weight(loss="cpgd", drift_coefficient=0.0), 0.5)
    drift = weight(loss="cpgd", drift_coefficient=0.01, drift_cap=2.0)
    np.testing.assert_allclose(drift, 0.5 + 0.01 * np.minimum(ratio - 1, 2.0), rtol=1e-6)


@each_config
def test_huge_log_ratios_give_no_nan(config):
    d = np.array([-300.0, -50.0, 50.0, 79.0, 300.0], np.float32)
    advantages, mask = np.array([[-1.0, 0.0, 1.0]], np.float32), np.ones((1, 3, 5), bool)
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
    assert np.isnan(result.loss[index]) and np.isnan(result.loss).sum() == 1


@each_config
def test_inputs_are_left_alone_and_jit_changes_nothing(config):
    batch = random_batch()
    copies = [x.copy() for x in batch]
    loss = make_policy_loss(config)
    eager, compiled = loss(*batch), jax.jit(loss)(*batch)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), eager, compiled)
    for x, copy in zip(batch, copies, strict=True):
        np.testing.assert_array_equal(x, copy)


def test_the_table_holds_what_the_config_allows():
    hints = get_type_hints(RLConfig)
    assert set(LOSSES) == set(get_args(hints["loss"]))
    assert set(KL_ESTIMATORS) == set(get_args(hints["kl_estimator"]))


# --- averaging


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


@each_averaging
@pytest.mark.parametrize("name", ["ppo", "cpgd"])
def test_micro_batches_add_up_to_the_full_batch(averaging, name):
    """Loss and gradient of a shared parameter, for micro-batches of 1, 2 and 4 prompts, with empty responses."""
    log_probs, old, advantages, mask = random_batch(seed=7, shape=(8, 3, 11))
    features = np.random.default_rng(8).normal(0, 0.1, (*mask.shape, 5)).astype(np.float32)
    weights = token_weights(mask, averaging, max_length=MAX_LENGTH)
    loss = make_policy_loss(CONFIGS[name])

    @jax.jit
    def value_and_gradient(theta, rows):
        def total(theta):
            current = log_probs[rows] + features[rows] @ theta
            penalty = kl_penalty(current, old[rows], "k2", response_mask=mask[rows])
            return jnp.sum(
                weights[rows] * (loss(current, old[rows], advantages[rows], mask[rows]).loss + 0.1 * penalty)
            )

        return jax.value_and_grad(total)(theta)

    log_probs, old, advantages, mask, features = map(jnp.asarray, (log_probs, old, advantages, mask, features))
    theta = jnp.linspace(-0.5, 0.5, 5)
    value, gradient = value_and_gradient(theta, np.arange(8))
    for size in (1, 2, 4):
        parts = [value_and_gradient(theta, rows) for rows in np.arange(8).reshape(size, -1).T]
        assert float(sum(part[0] for part in parts)) == pytest.approx(float(value), rel=1e-6)
        error = np.linalg.norm(sum(part[1] for part in parts) - gradient) / np.linalg.norm(gradient)
        assert error < 1e-6


# --- KL to a reference


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
    log_probs, reference = np.full((1, 1, 1), -300.0, np.float32), np.zeros((1, 1, 1), np.float32)
    assert np.isfinite(kl_penalty(log_probs, reference, "k3")).all()
    assert np.isfinite(gradient_of_sum(lambda x: kl_penalty(x, reference, "k3"), log_probs)).all()


# --- a softmax bandit, where every expectation is an exact sum over the actions


def random_logits(seed: int, actions: int = 6) -> tuple[jax.Array, jax.Array]:
    first, second = np.random.default_rng(seed).normal(size=(2, actions))
    return jnp.asarray(first), jnp.asarray(first + 0.5 * second)


def kl(p_logits, q_logits):
    p, q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(p) * (p - q))


def one_token(log_probs):
    """Actions as the n one-token responses of one prompt."""
    return log_probs[None, :, None]


@pytest.mark.parametrize("seed", range(5))
def test_expected_drift_gradient_is_the_gradient_of_the_kl(seed):
    """E_old[(r - 1) grad l] = grad KL(pi_old || pi)."""
    with jax.enable_x64(True):
        old_logits, logits = random_logits(seed)
        old = jax.nn.log_softmax(old_logits)

        def expected_drift(logits):
            result = cpgd(
                one_token(jax.nn.log_softmax(logits)), one_token(old), jnp.zeros((1, 6)),
                epsilon_low=0.2, epsilon_high=0.2, drift_coefficient=1.0, drift_cap=math.inf,
            )  # fmt: skip
            return jnp.sum(one_token(jnp.exp(old)) * result.loss)

        expected = jax.grad(kl, argnums=1)(old_logits, logits)
        np.testing.assert_allclose(jax.grad(expected_drift)(logits), expected, rtol=1e-9, atol=1e-12)
        # and the diagnostic estimates that KL without bias
        diagnostics = cpgd(
            one_token(jax.nn.log_softmax(logits)), one_token(old), jnp.zeros((1, 6)),
            epsilon_low=0.2, epsilon_high=0.2, drift_coefficient=1.0, drift_cap=2.0,
        ).diagnostics  # fmt: skip
        mean = jnp.sum(one_token(jnp.exp(old)) * diagnostics["drift"])
        np.testing.assert_allclose(mean, kl(old_logits, logits), rtol=1e-9)


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
        advantages = jnp.full((1, 5), advantage)

        def ratio_after(config, rate=0.1):
            loss = make_policy_loss(config)

            def total(logits):
                x = one_token(jax.nn.log_softmax(logits))
                return jnp.sum(loss(x, one_token(old), advantages, one_token(action)).loss)

            stepped = jax.nn.log_softmax(logits - rate * jax.grad(total)(logits))
            return float(jnp.exp(stepped - old)[2])

        after_ppo = ratio_after(RLConfig(loss="ppo_clip"))
        after_cpg = ratio_after(RLConfig(loss="cpgd", drift_coefficient=0.0))
        if advantage > 0:
            assert after_ppo > after_cpg > ratio
        else:
            assert after_cpg < after_ppo < ratio


def test_an_exact_cpgd_step_never_lowers_the_expected_reward():
    """Minimising the expected CPGD loss from pi_old gains at least alpha * KL(pi_old || pi), over many bandits."""
    bandits, actions = 200, 5
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
            jax.nn.log_softmax(logits)[..., None], old[..., None], advantages,
            epsilon_low=0.2, epsilon_high=0.2, drift_coefficient=alphas[:, None, None], drift_cap=2.0,
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
