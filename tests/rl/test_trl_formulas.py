"""The formulas that TRL publishes (its paper index and the trainers' documentation), in torch, on random tensors.

Where the project differs on purpose the test says how, and docs/algorithms.md ("Against TRL") lists it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.loss_cases import random_batch

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.rl.advantages import Outcomes, compute_advantages, dr_grpo, grpo, rloo
from mmeureka_jax.rl.averaging import token_weights
from mmeureka_jax.rl.kl import kl_penalty
from mmeureka_jax.rl.losses import make_policy_loss

LONGEST = 7


def rewards_of(seed: int) -> np.ndarray:
    rewards = np.random.default_rng(seed).normal(size=(6, 8)).astype(np.float32)
    rewards[2] = 0.9  # a group without a difference
    return rewards


def group_advantages(rewards: np.ndarray, epsilon: float | None) -> np.ndarray:
    """(r - mean) / (std + epsilon), std as torch has it (ddof = 1); None: no scaling."""
    values = torch.tensor(rewards, dtype=torch.float64)
    centred = values - values.mean(1, keepdim=True)
    return (centred if epsilon is None else centred / (values.std(1, keepdim=True) + epsilon)).numpy()


@pytest.mark.parametrize("seed", range(3))
def test_group_advantages(seed):
    rewards = rewards_of(seed)
    np.testing.assert_allclose(grpo(rewards), group_advantages(rewards, 1e-9), atol=1e-5)
    np.testing.assert_allclose(dr_grpo(rewards), group_advantages(rewards, None), atol=1e-6)
    # TRL adds 1e-4 to the standard deviation: the same to as much of it.
    np.testing.assert_allclose(grpo(rewards), group_advantages(rewards, 1e-4), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out(seed):
    rewards = rewards_of(seed)
    values = torch.tensor(rewards, dtype=torch.float64)
    expected = values - (values.sum(1, keepdim=True) - values) / (values.shape[1] - 1)
    np.testing.assert_allclose(rloo(rewards), expected.numpy(), atol=1e-6)
    # Normalised over the batch: per response with ddof = 1 and 1e-4 there, per token with ddof = 0 here. With answers
    # of one length those are the same but for the two constants.
    normalised = (expected - expected.mean()) / (expected.std() + 1e-4)
    lengths = np.full(rewards.shape, 3)
    outcomes = Outcomes(rewards, rewards, lengths, lengths > 0)
    whitened = compute_advantages(outcomes, RLConfig(advantage="rloo"), 3)
    count = rewards.size
    ratio = np.sqrt((count - 1) / count)
    np.testing.assert_allclose(whitened[..., 0] * ratio, normalised.numpy(), rtol=1e-3, atol=1e-5)


def test_reinforce_with_a_group_baseline_is_whitened_over_the_batch():
    rewards = rewards_of(1)
    lengths = np.random.default_rng(0).integers(1, LONGEST + 1, rewards.shape)
    outcomes = Outcomes(rewards, rewards, lengths, lengths > 0)
    ours = compute_advantages(outcomes, RLConfig(advantage="reinforce_baseline"), LONGEST)
    mask = torch.tensor(outcomes.mask(LONGEST))
    tokens = torch.tensor(group_advantages(rewards, None))[..., None].expand(mask.shape)
    tokens = torch.where(torch.tensor(np.ptp(rewards, axis=1) > 0)[:, None, None], tokens, 0.0)
    values = tokens[mask]
    expected = torch.where(mask, (tokens - values.mean()) / values.std(unbiased=False), 0.0)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-5)


def torch_loss(kind: str, log_probs, old, advantages, mask, low: float, high: float):
    """Sum of the per-token loss over a response / its length, averaged over responses (`loss_type="grpo"`)."""
    log_ratio = log_probs - old
    if kind == "gspo":  # importance_sampling_level="sequence"
        log_ratio = ((log_ratio * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).unsqueeze(-1)
    ratio = torch.exp(log_ratio)
    if kind == "cispo":  # its epsilon_high is the bound itself: 1 + ours
        loss = -torch.clamp(ratio, max=1 + high).detach() * advantages * log_probs
    else:
        loss = -torch.min(ratio * advantages, torch.clamp(ratio, 1 - low, 1 + high) * advantages)
    return ((loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [("ppo_clip", 0.2, 0.28), ("gspo", 3e-4, 4e-4), ("gspo", 0.1, 0.05), ("cispo", 1.0, 4.0), ("cispo", 1.0, 0.2)],
)
@pytest.mark.parametrize("seed", range(3))
def test_losses_and_gradients(kind, low, high, seed):
    log_probs, old, advantages, mask = random_batch(seed=seed, shape=(4, 6, LONGEST), spread=0.5)
    mask[..., 0] = True  # an empty response counts below the line in TRL, and not here
    advantages = np.broadcast_to(advantages[..., :1], mask.shape)
    tensors = [torch.tensor(np.array(x, np.float64)) for x in (log_probs, old, advantages, mask)]
    tensors[0].requires_grad_()
    expected = torch_loss(kind, *tensors, low, high)
    expected.backward()

    loss = make_policy_loss(RLConfig(loss=kind, clip_epsilon_low=low, clip_epsilon_high=high))
    weights = token_weights(mask, "sequence_mean")
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(weights * loss(x, old, advantages, mask).loss))(log_probs)
    assert float(value) == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    np.testing.assert_allclose(gradient, tensors[0].grad.numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_dr_grpo_and_dapo_averages(seed):
    """`loss_type="dr_grpo"`: over responses times the limit; `"dapo"`: over the tokens of the batch."""
    log_probs, old, advantages, mask = random_batch(seed=seed)
    loss = make_policy_loss(RLConfig())(log_probs, old, advantages, mask).loss
    per_token = torch.tensor(np.asarray(loss, np.float64))
    there = torch.tensor(mask, dtype=torch.float64)
    expected = {
        "constant": (per_token * there).sum() / (mask.shape[0] * mask.shape[1] * 16),
        "token_mean": (per_token * there).sum() / there.sum(),
    }
    for averaging, value in expected.items():
        ours = float(jnp.sum(token_weights(mask, averaging, max_length=16) * loss))
        assert ours == pytest.approx(value.item(), rel=1e-5), averaging


def test_kl_to_the_reference():
    log_probs, reference, _, _ = random_batch(spread=0.5)
    now, base = (torch.tensor(x, dtype=torch.float64) for x in (log_probs, reference))
    expected = torch.exp(base - now) - (base - now) - 1
    np.testing.assert_allclose(kl_penalty(log_probs, reference, "k3"), expected.numpy(), rtol=1e-4, atol=1e-6)
