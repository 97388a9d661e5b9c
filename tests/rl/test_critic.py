"""The critic: advantages and returns against a loop, its loss and gradients against torch, what it may not change."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers.groups import parts_of
from helpers.support import PROBLEMS, Lively
from hypothesis import given, settings
from hypothesis import strategies as st

from mmeureka_jax.config.schema import Config, CriticConfig, MeshConfig, OptimizerConfig, RLConfig
from mmeureka_jax.mesh import make_mesh, to_global
from mmeureka_jax.models.batch import GroupBatch
from mmeureka_jax.rl.advantages import Outcomes, gae, gae_advantages, whiten
from mmeureka_jax.rl.critic import Critic, value_loss
from mmeureka_jax.rl.groups import Targets
from mmeureka_jax.rl.metrics import computed
from mmeureka_jax.rl.objective import batch_values, policy_objective
from mmeureka_jax.rl.train_state import Training, make_training
from mmeureka_jax.rl.update import CompiledUpdate

KEEP_GRADIENT = optax.trace(decay=0.0)  # its state is the gradient that it was given, bit for bit
ITEMS = [PROBLEMS[name] for name in ("text only", "one window")] * 2
GROUP = 2
LENGTH = 6
CLIP = 0.3
SHARE = 0.25


# ---------------------------------------------------------------------------------------------------------------------
# Advantages.


def make_outcomes(rng, prompts=3, n=4, longest=7):
    lengths = rng.integers(1, longest + 1, (prompts, n))
    rewards = rng.integers(0, 4, (prompts, n)) / 2
    return Outcomes(rewards, rewards > 0.5, lengths, rng.random((prompts, n)) < 0.8)


def gae_by_definition(rewards, values, gamma, lam):
    """Of one response: the sum of all its later errors, each term by itself."""
    count = len(rewards)
    errors = [rewards[t] + (gamma * values[t + 1] if t + 1 < count else 0.0) - values[t] for t in range(count)]
    return [sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, count)) for t in range(count)]


@given(st.integers(0, 2**32 - 1), st.sampled_from([(1.0, 1.0), (1.0, 0.95), (0.9, 0.0), (0.97, 0.5)]), st.booleans())
@settings(max_examples=40, deadline=None)
def test_advantages_and_returns_are_those_of_a_loop(seed, discounts, with_kl):
    gamma, lam = discounts
    rng = np.random.default_rng(seed)
    outcomes = make_outcomes(rng)
    shape = (3, 4, 9)
    values = rng.normal(size=shape).astype(np.float32)
    kl = rng.normal(scale=0.1, size=shape)
    critic = CriticConfig(kind="head", gamma=gamma, gae_lambda=lam)
    config = RLConfig(advantage="gae", critic=critic, whiten="off")
    advantages, returns = gae_advantages(outcomes, config, values, kl if with_kl else None)
    for row, j in np.ndindex(3, 4):
        length = outcomes.lengths[row, j]
        rewards = -kl[row, j, :length] if with_kl else np.zeros(length)
        rewards[-1] += outcomes.rewards[row, j]
        expected = gae_by_definition(rewards, values[row, j, :length].astype(np.float64), gamma, lam)
        np.testing.assert_allclose(advantages[row, j, :length], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(returns[row, j, :length], expected + values[row, j, :length], rtol=1e-5, atol=1e-6)
        assert not advantages[row, j, length:].any() and not returns[row, j, length:].any()

    whitened, same = gae_advantages(outcomes, replace(config, whiten="auto"), values, kl if with_kl else None)
    np.testing.assert_array_equal(same, returns)  # what the critic learns is not whitened
    expected = whiten(advantages.astype(np.float64), outcomes.mask(9))
    np.testing.assert_allclose(whitened, expected, rtol=1e-4, atol=1e-5)


def test_gae_does_not_look_beyond_a_response_nor_at_the_others():
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(2, 3, 5))
    values = rng.normal(size=(2, 3, 5))
    mask = np.arange(5) < rng.integers(0, 6, (2, 3))[..., None]
    mask[0, 0] = False  # an empty response
    expected = gae(rewards, values, mask, gamma=0.9, gae_lambda=0.8)
    noisy = [np.where(mask, x, np.nan) for x in (rewards, values)]
    np.testing.assert_array_equal(gae(*noisy, mask, gamma=0.9, gae_lambda=0.8), expected)
    longer = [
        np.concatenate([x, np.full((2, 3, 4), fill)], axis=-1) for x, fill in [*((x, 7.0) for x in noisy), (mask, 0)]
    ]
    padded = gae(longer[0], longer[1], longer[2].astype(bool), gamma=0.9, gae_lambda=0.8)
    np.testing.assert_array_equal(padded[..., :5], expected)
    order = np.asarray([1, 0])
    np.testing.assert_array_equal(
        gae(*(x[order] for x in (rewards, values, mask)), gamma=0.9, gae_lambda=0.8), expected[order]
    )


def test_a_critic_that_is_right_leaves_no_advantage():
    """Values equal to the reward to come: nothing is better or worse than expected."""
    outcomes = Outcomes(np.full((2, 3), 1.5), np.ones((2, 3)), np.full((2, 3), 4), np.ones((2, 3), bool))
    config = RLConfig(advantage="gae", critic=CriticConfig(kind="head", gae_lambda=0.9))
    advantages, returns = gae_advantages(outcomes, config, np.full((2, 3, 4), 1.5))
    np.testing.assert_array_equal(advantages, 0.0)  # and whitening makes nothing of it
    np.testing.assert_array_equal(returns, 1.5)


# ---------------------------------------------------------------------------------------------------------------------
# The loss.


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_equals_the_published_formula_in_torch(clip):
    """`vf_loss` of TRL's PPO trainer: half the larger of the two squared errors; autograd gives the gradient."""
    rng = np.random.default_rng(0)
    values, old, returns = (rng.normal(scale=0.5, size=(3, 4, 5)).astype(np.float32) for _ in range(3))
    now = torch.tensor(values, requires_grad=True)
    expected = torch.square(now - torch.tensor(returns))
    if clip is not None:
        limited = torch.clamp(now, torch.tensor(old) - clip, torch.tensor(old) + clip)
        expected = torch.max(expected, torch.square(limited - torch.tensor(returns)))
    (0.5 * expected).sum().backward()
    loss, clipped = value_loss(jnp.asarray(values), jnp.asarray(old), jnp.asarray(returns), clip)
    gradient = jax.grad(lambda x: value_loss(x, jnp.asarray(old), jnp.asarray(returns), clip)[0].sum())(values)
    np.testing.assert_allclose(loss, 0.5 * expected.detach(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, now.grad, rtol=1e-5, atol=1e-6)
    assert bool(clipped.any()) == (clip is not None) and not np.asarray(gradient)[np.asarray(clipped)].any()


# ---------------------------------------------------------------------------------------------------------------------
# The update.


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    lively = Lively(tmp_path_factory.mktemp("checkpoint") / "model", tied=True, layers=2, depth=2)
    lively.policy = replace(lively.policy, remat=False, logits_mb=1000.0)
    return lively


@pytest.fixture(scope="module")
def head(model):
    rng = np.random.default_rng(5)
    kernel = rng.normal(scale=0.1, size=model.config.text.hidden_size)
    return {"kernel": kernel.astype(np.float32), "bias": np.float32(0.2)}


@pytest.fixture(scope="module")
def part(model):
    """Without advantages, so that a gradient of the policy can come from the critic alone."""
    rng = np.random.default_rng(0)
    shape = (len(ITEMS), GROUP, LENGTH)
    batch = GroupBatch(
        prompts=model.batch(ITEMS),
        image_features=None,
        responses=rng.integers(5, 250, shape).astype(np.int32),
        response_mask=np.arange(LENGTH) < rng.integers(1, LENGTH + 1, shape[:2])[..., None],
    )
    return batch, Targets(
        old_log_probs=np.full(shape, -5, np.float32),
        advantages=np.zeros(shape, np.float32),
        fresh=np.zeros(len(ITEMS), bool),
        values=rng.normal(size=shape).astype(np.float32),
        returns=rng.normal(size=shape).astype(np.float32),
    )


@pytest.fixture(scope="module")
def of_torch(model, head, part):
    """The value loss, by loops over responses; its gradients of the model and of the head; the share clipped."""
    batch, targets = part
    kernel, bias = (torch.tensor(head[name], requires_grad=True) for name in ("kernel", "bias"))
    model.torch.zero_grad()
    loss = 0.0
    clipped = []
    for row, item in enumerate(ITEMS):
        for j in range(GROUP):
            length = int(batch.lengths[row, j])
            inputs, start = model.torch_inputs(item, batch.responses[row, j, :length])
            values = model.torch.model(**inputs).last_hidden_state[0, start - 1 : -1] @ kernel + bias
            old, returns = (torch.tensor(x[row, j, :length]) for x in (targets.values, targets.returns))
            plain = (values - returns) ** 2
            limited = (torch.clamp(values, old - CLIP, old + CLIP) - returns) ** 2
            loss = loss + 0.5 * torch.max(plain, limited).mean() / (len(ITEMS) * GROUP)
            clipped += (limited > plain).tolist()
    loss.backward()
    gradients = {"kernel": kernel.grad.numpy(), "bias": bias.grad.numpy()}
    return loss.item(), jax.tree.map(np.copy, model.torch_gradients()), gradients, np.mean(clipped)


def gradients_of(model, head, part, kind, *, frozen=(), micro_batches=1, packing=0.0, sizes=(1, 1, 1)):
    """Gradients of the policy and of the critic, and metrics, of one update that changes nothing."""
    critic = Critic(kind, KEEP_GRADIENT, CLIP, SHARE)
    training = Training(KEEP_GRADIENT, lambda count: jnp.zeros(()), frozen, 1e9, critic)
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
    with jax.set_mesh(mesh):
        shardings = training.shardings(model.policy, mesh)
        objective = policy_objective(Config(rl=RLConfig(loss="pg")))
        step = CompiledUpdate(model.policy, objective, training, shardings)
        state = training.init(model.policy, jax.device_get(model.params))
        state = state.replace(critic=state.critic | {"head": jax.tree.map(jnp.asarray, head)})
        parts = to_global(mesh, parts_of(objective, *part, micro_batches, packing))
        state, metrics = step(jax.device_put(state, shardings), parts)
    policy, critic = jax.device_get((state.optimizer.trace, state.critic_optimizer.trace))
    return policy, critic, computed(jax.device_get(metrics))


def assert_close(ours, expected, tolerance):
    ours, expected = (
        {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (ours, expected)
    )
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert np.linalg.norm(ours[name] - value) <= tolerance * np.linalg.norm(value) + 1e-7, name


@pytest.mark.slow
def test_a_head_on_the_policy_has_the_gradients_of_torch(model, head, part, of_torch):
    """The head's whole gradient, and `trunk_coefficient` times that of the policy's parameters."""
    loss, of_model, of_head, clipped = of_torch
    policy, critic, metrics = gradients_of(model, head, part, "head")
    assert_close(critic, {"head": of_head}, 1e-4)
    assert_close(policy, jax.tree.map(lambda x: SHARE * x, of_model), 1e-3)
    np.testing.assert_allclose(metrics["loss/value"], loss, rtol=1e-4)
    np.testing.assert_allclose(metrics["critic/clip_fraction"], clipped, rtol=1e-5)
    np.testing.assert_allclose(metrics["critic/grad_norm"], optax.tree.norm(critic), rtol=1e-5)
    assert 0.1 < clipped < 0.9 and metrics["loss/total"] == 0  # which is the policy's


@pytest.mark.slow
def test_a_model_of_its_own_has_the_gradients_of_torch(model, head, part, of_torch):
    """With a frozen tower, which both share; in micro-batches of packed rows; on a mesh of two devices."""
    loss, of_model, of_head, _ = of_torch
    expected = {"head": of_head, "trunk": {"language": of_model["language"]}}
    for ways in ({}, {"micro_batches": 2, "packing": 0.8, "sizes": (1, 2, 1)}):
        policy, critic, metrics = gradients_of(model, head, part, "model", frozen=("vision",), **ways)
        assert_close(critic, expected, 1e-3)
        assert all(not leaf.any() for leaf in jax.tree.leaves(policy))
        np.testing.assert_allclose(metrics["loss/value"], loss, rtol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_its_own_starts_as_the_policy_without_its_projection(model, head, part, tied):
    training = make_training(Config(), 10, Critic("model", optax.adam(1e-3)))
    config = replace(model.config, text=replace(model.config.text, tie_word_embeddings=tied))
    policy = replace(model.policy, config=config)
    state = training.abstract_state(policy)
    assert ("lm_head" in state.trainable["language"]) == (not tied)
    assert "lm_head" not in state.critic["trunk"]["language"] and "vision" not in state.critic["trunk"]
    mesh = make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])
    shardings = training.shardings(policy, mesh)
    assert jax.tree.structure(shardings) == jax.tree.structure(state)
    trunk = shardings.critic["trunk"]["language"]
    assert (
        trunk["layers"]
        == shardings.trainable["language"]["layers"]
        == shardings.critic_optimizer[0].mu["trunk"]["language"]["layers"]
    )
    if tied:
        zero = training.init(policy, model.params)
        assert zero.critic["trunk"]["language"] is not None
        both = [
            jax.jit(batch_values, static_argnums=(0, 1))(policy, critic, state_of, part[0])
            for critic, state_of in (
                (Critic("model", KEEP_GRADIENT), zero.replace(critic=zero.critic | {"head": head})),
                (Critic("head", KEEP_GRADIENT), zero.replace(critic={"head": head})),
            )
        ]
        np.testing.assert_allclose(*both, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_average_follows_the_parameters(model, part):
    """mean <- decay mean + (1 - decay) new, from the start on, of what is trained alone."""
    config = Config(
        rl=RLConfig(loss="pg"),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_fraction=0.0, ema_decay=0.75),
    )
    training = make_training(config, 10)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    objective = policy_objective(config)
    step = CompiledUpdate(model.policy, objective, training, training.shardings(model.policy, mesh))
    state = training.init(model.policy, jax.tree.map(jnp.copy, model.params))
    expected = jax.device_get(state.trainable)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.average), expected)
    text = replace_rows(part, model)
    for _ in range(3):
        state, _ = step(state, parts_of(objective, *text))
        new = jax.device_get(state.trainable)
        expected = jax.tree.map(lambda mean, x: 0.75 * mean + 0.25 * x, expected, new)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), jax.device_get(state.average), expected
    )
    difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), expected, new)
    assert max(jax.tree.leaves(difference)) > 1e-3 and "vision" not in state.average


def replace_rows(part, model):
    """Text alone, with advantages: a small program that moves the parameters."""
    batch, targets = part
    advantages = np.random.default_rng(1).normal(size=targets.advantages.shape).astype(np.float32)
    return (
        batch.replace(prompts=model.batch([PROBLEMS["text only"]] * len(ITEMS))),
        targets.replace(advantages=advantages, values=None, returns=None),
    )
