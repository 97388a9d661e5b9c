"""PDOA's parts against plain loops and closed forms."""

from __future__ import annotations

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import mmeureka

from mmeureka_jax.companions.experiment import load_experiment
from mmeureka_jax.companions.morl import demonstrators, posterior
from mmeureka_jax.companions.morl.constraints import conservative, upper_tail_mean
from mmeureka_jax.companions.morl.pdoa_run import COMPANION, numbers
from mmeureka_jax.companions.morl.pdoa_settings import PdoaConfig
from mmeureka_jax.companions.morl.trajectories import Rows
from mmeureka_jax.errors import UserError

NUMBERS = np.random.default_rng(0)


@pytest.mark.parametrize("level, count", [(0.0, 20), (0.25, 15), (0.9, 2), (0.95, 1), (0.99, 1)])
def test_upper_tail_mean(level, count):
    samples = NUMBERS.normal(size=20)
    expected = sum(sorted(samples)[-count:]) / count
    assert upper_tail_mean(jnp.asarray(samples), level) == pytest.approx(expected, rel=1e-5)


def test_conservative_weight_leaves_the_ratio_of_the_others():
    draws = NUMBERS.dirichlet(np.ones(3), 50)
    mean = draws.mean(axis=0)
    np.testing.assert_allclose(conservative(jnp.asarray(draws), 2, 0.0), mean, rtol=1e-4)
    found = np.asarray(conservative(jnp.asarray(draws), 2, 0.8))
    assert found[2] == pytest.approx(np.sort(draws[:, 2])[-10:].mean(), rel=1e-4)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert found[0] / found[1] == pytest.approx(mean[0] / mean[1], rel=1e-4)


def test_rewards_of_the_score():
    deltas = NUMBERS.normal(size=(4, 2))
    omega = np.array([0.3, 0.7])
    expected = -np.mean([sum(omega[k] * deltas[b, k] ** 2 for k in range(2)) for b in range(4)])
    assert posterior.td_reward(jnp.asarray(deltas), jnp.asarray(omega)) == pytest.approx(expected, rel=1e-5)
    actions, wanted = NUMBERS.normal(size=(2, 4, 1))
    logs = [
        -0.5 * ((a - m) / 0.2) ** 2 - math.log(0.2 * math.sqrt(2 * math.pi))
        for a, m in zip(actions[:, 0], wanted[:, 0], strict=True)
    ]
    found = posterior.log_likelihood(jnp.asarray(actions), jnp.asarray(wanted), 0.2)
    assert found == pytest.approx(np.mean(logs), rel=1e-5)


def test_divergence_by_integration():
    x = np.linspace(-10, 10, 20001)
    total = 0.0
    for mean, log_sigma in ((0.5, -0.3), (-1.0, 0.2)):
        density = np.exp(-0.5 * ((x - mean) / np.exp(log_sigma)) ** 2) / (np.exp(log_sigma) * np.sqrt(2 * np.pi))
        prior = -0.5 * x**2 - 0.5 * np.log(2 * np.pi)
        total += np.trapezoid(density * (np.log(density + 1e-300) - prior), x)
    found = posterior.divergence(posterior.Posterior(jnp.array([0.5, -1.0]), jnp.array([-0.3, 0.2])))
    assert found == pytest.approx(total, rel=1e-4)


def test_posterior_finds_the_best_of_a_known_score():
    config = PdoaConfig(prior_weight=0.001)
    target = jnp.array([0.2, 0.5, 0.3])
    rows = Rows(*(jnp.zeros((4, 1)) for _ in range(6)), jnp.zeros(1), jnp.ones(1))
    found = jax.jit(
        lambda: posterior.fit(config, lambda w, *_: -50 * ((w - target) ** 2).sum(), rows, 3, jax.random.key(0))
    )()
    mean = posterior.draw(found, 2000, jax.random.key(1)).mean(axis=0)
    np.testing.assert_allclose(mean, target, atol=0.03)


def test_posterior_without_a_score_is_the_prior():
    config = PdoaConfig(prior_weight=1.0)
    rows = Rows(*(jnp.zeros((4, 1)) for _ in range(6)), jnp.zeros(1), jnp.ones(1))
    found = posterior.fit(config, lambda w, *_: 0.0 * w.sum(), rows, 2, jax.random.key(0))
    np.testing.assert_allclose(np.concatenate(found), 0, atol=1e-3)


def test_demonstrators_keep_below_their_threshold():
    config = PdoaConfig(constrained=True, demonstrators=3, thresholds=(0.2, 0.6), demonstrations=2, horizon=5)
    who = demonstrators.make_demonstrators(config)
    np.testing.assert_allclose(who.actions, [0, 0, 0.2, 0.5, 0.2, 0.6])
    shown = demonstrators.demonstrations(config, who, 3, (np.zeros(1), np.ones(1)), 0)
    assert shown.actions.shape == (6, 10, 1)
    assert (shown.actions[..., 0] <= who.threshold[:, None] + 1e-6).all()
    other = demonstrators.demonstrations(config, who, 3, (np.zeros(1), np.ones(1)), 1)
    assert not np.array_equal(shown.actions, other.actions)


def test_actions_whose_return_is_the_preference():
    first = np.linspace(0, 1, 11)
    action = demonstrators.action_of_returns(first)
    np.testing.assert_allclose(action / (1 + action - action**2), first, atol=1e-12)


def test_errors_where_demonstrators_act_alike():
    found = demonstrators.errors(np.array([0.25, 0.7, 0.6, 0.9]), np.array([0.3, 0.9, 0.7, 0.6]))
    np.testing.assert_allclose(found, [0.05, 0, 2 / 3 - 0.6, 0.3])


def test_violations_are_counted():
    config = PdoaConfig(constrained=True, demonstrators=2, thresholds=(0.5,), conservatism=(0.0, 0.9))
    who = demonstrators.make_demonstrators(config)
    actions = np.array([[[0.6, 0.4], [0.6, 0.6]], [[0.5, 0.2], [0.3, 0.9]]])  # level, step, demonstrator
    found = numbers(config, who, {"actions": actions, "preferences": np.ones((2, 2, 3)) / 3, "deviation": np.ones(2)})
    assert found["violations/0"] == 3 / 4
    assert found["violations/0.9"] == 1 / 4
    assert found["excess/0.9"] == pytest.approx(0.4 / 4)


@pytest.mark.parametrize(
    "override, message",
    [
        ("deploy_weight=0.1", r"deploy_weight must be from min_weight"),
        ("demonstrators=1", r"demonstrators must be 2 or more"),
        ("conservatism=[1.0]", r"conservatism must be 0 or more and below 1"),
    ],
)
def test_bad_settings(override, message):
    with pytest.raises(UserError, match=message):
        load_experiment(COMPANION, None, [override])


TINY = ("hidden=[4]", "trajectories=4", "horizon=3", "batch_size=8", "updates=4", "measure=1", "posterior_steps=2",
        "demonstrators=3", "posterior_samples=20", "draws=2", "demonstrations=1")  # fmt: skip


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    variants = "variants={two: {}, three: {constrained: true, regulariser: diffusion, target_after: 0}}"
    assert mmeureka("companions", "pdoa", *TINY, "diffusion_steps=1", variants, f"run_dir={tmp_path}", "--json") == 0
    kinds = json.loads(capsys.readouterr().out)["kinds"]
    assert 0 <= kinds["two"]["last error"]["mean"] <= 1
    assert 0 <= kinds["three"]["last violations/0.9"]["mean"] <= 1
    assert {"preference.svg", "violations.svg"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_a_preference_is_found_again(tmp_path, capsys):
    keys = ("updates=1600", "batch_size=128", "measure=1", "demonstrators=6", f"run_dir={tmp_path}")
    assert mmeureka("companions", "pdoa", *keys, "--json") == 0
    kinds = json.loads(capsys.readouterr().out)["kinds"]
    assert kinds["run"]["last error"]["mean"] <= 0.05
