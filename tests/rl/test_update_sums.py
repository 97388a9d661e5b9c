"""What an update adds up and steps by, on a policy of one number: weights of the whole batch, dropout, two norms."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.groups import N, make_group, parts_of

from mmeureka_jax.config.schema import Config, MeshConfig, RLConfig, SamplerConfig
from mmeureka_jax.mesh import make_mesh
from mmeureka_jax.rl import objective as module
from mmeureka_jax.rl.critic import Critic
from mmeureka_jax.rl.groups import Targets, make_group_batch
from mmeureka_jax.rl.losses import LOSSES
from mmeureka_jax.rl.metrics import computed
from mmeureka_jax.rl.objective import Measured, imitation_objective
from mmeureka_jax.rl.objective import policy_objective as objective_of
from mmeureka_jax.rl.train_state import Training, TrainState
from mmeureka_jax.rl.update import CompiledUpdate, Sums, apply_sums

LENGTH = 6
KEEP_GRADIENT = optax.trace(decay=0.0)  # its state is the gradient that it was given, bit for bit


def make_batch(groups, **others):
    """A batch with advantages, whose sampler's log-probabilities depend on the responses alone."""
    advantages = np.random.default_rng(1).normal(size=(len(groups), N, LENGTH)).astype(np.float32)
    batch = make_group_batch(groups, prompt_length=8, response_length=LENGTH)
    return batch, Targets(sampled_log_probs(batch.responses), advantages, np.ones(len(groups), bool), **others)


def sampled_log_probs(responses):
    return responses.astype(np.float32) / -50


@pytest.fixture(scope="module")
def groups():
    """Two groups, one of short responses and one of long ones."""
    rng = np.random.default_rng(0)
    return [make_group(rng, response=longest, windows=0) for longest in (2, LENGTH)]


def policy_objective(**rl):
    return objective_of(Config(rl=RLConfig(**{"loss": "pg"} | rl), sampler=SamplerConfig(max_new_tokens=LENGTH)))


class OneNumber:
    """A policy whose log-probabilities are those of the sampler times its one parameter, with an entropy of their
    squares; where it drops out, that parameter is another for every draw."""

    def __init__(self, dropping=False):
        self.dropping = dropping

    def abstract_params(self):
        return {"number": jax.ShapeDtypeStruct((), jnp.float32)}

    def param_axes(self):
        return {"number": ()}

    def frozen(self, prefixes):
        return prefixes

    def with_dropout(self, params, updates, tokens_before):
        factor = 1 + 0.1 * updates + 0.01 * tokens_before if self.dropping else 1
        return self, {"number": factor * params["number"]}


@pytest.fixture(autouse=True)
def forward(monkeypatch):
    def log_probs(policy, params, states, **options):
        sampled = sampled_log_probs(states.responses)
        return params["number"] * sampled, params["number"] * sampled**2

    monkeypatch.setattr(module, "batch_hidden", lambda policy, params, batch: batch)
    monkeypatch.setattr(module, "log_probs_of_hidden", log_probs)


PLAIN = OneNumber()


@functools.cache
def update(objective, policy=PLAIN):
    """update(objective)(batch, micro_batches) -> metrics, from the same state each time; nothing is learnt."""
    step, start = update_of(objective, policy)

    def run(part, micro_batches=1, updates=0, rows=None, **options):
        state = start.replace(updates=jnp.asarray(updates, jnp.int32))
        state = jax.tree.map(jnp.copy, state)  # what is passed in is donated
        _, metrics = step(state, parts_of(objective, *part, micro_batches, **(rows or {})), **options)
        return computed(jax.device_get(metrics))

    return run


def update_of(objective, policy=PLAIN):
    """The update, and a state to start from."""
    training = Training(KEEP_GRADIENT, lambda count: jnp.zeros(()), max_grad_norm=1e9)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    step = CompiledUpdate(policy, objective, training, training.shardings(policy, mesh))
    return step, training.init(policy, {"number": jnp.asarray(0.9)})


# ---------------------------------------------------------------------------------------------------------------------
# Micro-batches.


OBJECTIVES = {
    "sequence_mean": policy_objective(token_averaging="sequence_mean"),
    "token_mean": policy_objective(token_averaging="token_mean"),
    "prompt_token_mean": policy_objective(token_averaging="prompt_token_mean"),
    "constant": policy_objective(token_averaging="constant"),
    "imitation": imitation_objective(),
}


A_GROUP_EACH = (2, {})
SOME_ROWS_OF_EACH = (2, {"row_tokens": LENGTH})
EMPTY_ROWS = [(1, {"shards": 5}), (1, {"shards": 8})]


@pytest.mark.parametrize(
    ("name", "layouts"),
    [*((name, [A_GROUP_EACH]) for name in OBJECTIVES), ("token_mean", [SOME_ROWS_OF_EACH, *EMPTY_ROWS])],
)
def test_tokens_have_the_weights_of_the_whole_batch_in_any_part(groups, name, layouts):
    """One group has short responses and one long ones. No metric tells."""
    run = update(OBJECTIVES[name])
    batch, targets = make_batch(groups)
    whole, *parts = (
        run((batch, dataclasses.replace(targets, fresh=np.array([False, True]))), count, rows=rows)
        for count, rows in ((1, {}), *layouts)
    )
    assert whole["policy/sampler_gap_max"] > 0 and whole["policy/ratio_max"] > 1
    for row in parts:
        assert row == pytest.approx(whole, rel=1e-5)


def choices(name):
    return get_args(get_type_hints(RLConfig)[name])


@pytest.mark.parametrize(
    ("loss", "averaging", "estimator"),
    [
        *itertools.product(LOSSES, ["token_mean"], ["k3"]),
        *itertools.product(["ppo_clip"], choices("token_averaging"), ["k2"]),
        ("ppo_clip", "token_mean", "k1"),
    ],
)
def test_every_objective_of_a_config_can_be_traced(groups, loss, averaging, estimator):
    objective = policy_objective(loss=loss, token_averaging=averaging, kl_estimator=estimator, kl_coefficient=0.1)
    part = make_batch(groups, reference_log_probs=make_batch(groups)[1].old_log_probs)
    step, state = update_of(objective)
    _, metrics = jax.eval_shape(step, state, parts_of(objective, *part))
    assert {"loss/total", "loss/policy", "loss/kl", "policy/entropy", "policy/kl_reference"} <= metrics.keys()
    assert all(leaf.shape == () and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(metrics))


# ---------------------------------------------------------------------------------------------------------------------
# Dropout.


@pytest.fixture(scope="module")
def dropping():
    return update(policy_objective(), OneNumber(dropping=True))


def test_each_part_drops_out_anew(dropping, groups):
    """Two parts of one group each, the same one: together they would be as one of them is, were they dropped alike."""
    alone = dropping(make_batch(groups[1:]))["policy/entropy"]
    tokens = groups[1].lengths.sum()
    twice = dropping(make_batch(groups[1:] * 2), 2)["policy/entropy"]
    assert twice == pytest.approx(alone * (1 + (1 + 0.01 * tokens)) / 2, rel=1e-5)


def test_each_update_drops_out_anew(dropping, groups):
    first, third = (dropping(make_batch(groups[1:]), updates=count)["policy/entropy"] for count in (0, 3))
    assert third == pytest.approx(1.3 * first, rel=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# What is added to the loss.


def test_importance_multiplies_the_policy_loss_and_nothing_else(groups):
    rng = np.random.default_rng(3)
    reference = make_batch(groups)[1].old_log_probs - 0.5
    batch, targets = make_batch(groups, reference_log_probs=reference)
    run = update(policy_objective(entropy_coefficient=0.1, kl_coefficient=0.3))
    plain = run((batch, targets), kl_coefficient=0.3)
    importance = np.full(targets.old_log_probs.shape, 2.0, np.float32)
    doubled = run((batch, targets.replace(importance=importance)), kl_coefficient=0.3)
    assert doubled["loss/policy"] == pytest.approx(2 * plain["loss/policy"], rel=1e-5)
    for name in ("loss/kl", "loss/entropy", "policy/kl_reference"):
        assert doubled[name] == pytest.approx(plain[name], rel=1e-5) and plain[name] != 0, name
    for metrics in (plain, doubled):
        parts = (metrics[f"loss/{name}"] for name in ("policy", "kl", "entropy"))
        assert metrics["loss/total"] == pytest.approx(sum(parts), rel=1e-5)
    varied = rng.uniform(0.5, 2, importance.shape).astype(np.float32)
    metrics = run((batch, targets.replace(importance=varied)), kl_coefficient=0.3)
    assert metrics["policy/importance"] == pytest.approx(varied[batch.response_mask].mean(), rel=1e-5)


def test_kl_in_the_loss_counts_as_often_as_its_coefficient_says(groups):
    batch = make_batch(groups, reference_log_probs=make_batch(groups)[1].old_log_probs - 0.5)
    run = update(policy_objective(entropy_coefficient=0.1, kl_coefficient=0.3))
    once, thrice = (run(batch, kl_coefficient=coefficient)["loss/kl"] for coefficient in (0.1, 0.3))
    assert thrice == pytest.approx(3 * once, rel=1e-5) and once > 0


# ---------------------------------------------------------------------------------------------------------------------
# The step.


def stepped(gradient, critic_gradient, loss=1.0):
    """The state and the metrics after a step by gradients of one number each, clipped to a norm of 1."""
    training = Training(KEEP_GRADIENT, lambda count: jnp.zeros(()), (), 1.0, Critic("head", KEEP_GRADIENT))
    params = {"a": jnp.zeros(1)}
    state = TrainState(
        updates=jnp.zeros((), jnp.int32),
        trainable=params,
        frozen={},
        optimizer=KEEP_GRADIENT.init(params),
        critic=params,
        critic_optimizer=KEEP_GRADIENT.init(params),
    )
    sums = Sums(
        gradients={"a": jnp.full(1, gradient)},
        critic_gradients={"a": jnp.full(1, critic_gradient)},
        measured=Measured(
            losses={"loss/total": jnp.asarray(loss)},
            tokens=dict.fromkeys(("tokens", "gap", "fresh_tokens"), jnp.ones(())),
            ratios={},
            peaks={"policy/sampler_gap_max": jnp.ones(())},
        ),
    )
    state, metrics = apply_sums(training, state, sums)
    return state, computed(jax.device_get(metrics))


def test_the_policy_and_the_critic_are_clipped_each_by_its_own_norm():
    for gradient, critic_gradient in ((4.0, 0.5), (0.5, 4.0), (0.5, 0.25), (3.0, 4.0)):
        state, metrics = stepped(gradient, critic_gradient)
        assert state.optimizer.trace["a"][0] == pytest.approx(min(gradient, 1.0))
        assert state.critic_optimizer.trace["a"][0] == pytest.approx(min(critic_gradient, 1.0))
        assert metrics["optimizer/grad_norm"] == gradient and metrics["critic/grad_norm"] == critic_gradient


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", range(3))
def test_a_step_is_skipped_whichever_number_is_not_finite(bad, place):
    """The policy's gradient, the critic's, or the loss: neither the policy nor the critic moves."""
    numbers = [0.5, 0.5, 1.0]
    numbers[place] = bad
    state, metrics = stepped(*numbers)
    assert metrics["optimizer/skipped"] == 1 and state.updates == 0
    for leaf in jax.tree.leaves((state.trainable, state.critic, state.optimizer, state.critic_optimizer)):
        np.testing.assert_array_equal(leaf, 0.0)
    after, metrics = stepped(0.5, 0.5)
    assert metrics["optimizer/skipped"] == 0 and after.updates == 1 and after.critic["a"][0] != 0
