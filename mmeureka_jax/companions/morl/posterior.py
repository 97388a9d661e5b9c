"""PDOA's adaptation: a distribution over preferences from a few demonstrations. A reconstruction.

    ω = softmax(z),  z ~ N(m, diag σ²)
    score(ω) = mean over demonstrations of  -η·Σ_k ω_k·δ_k²  +  λ·log π(a | s, ω)     δ = r + γQ(s', ω, a') - Q(s, ω, a)
    maximised: E_z[score(softmax z)] - ρ·KL(N(m, σ²) ‖ N(0, 1)), by reparametrised gradients

arXiv 2409.09958 has a TD reward and an action-likelihood reward in a surrogate of the posterior; it has no public code,
and these formulas are not verified against the paper. For a diffusion policy log π is replaced by minus the error of
the predicted noise, and for the others it is that of a normal around the policy's action.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mmeureka_jax.companions.morl import critic
from mmeureka_jax.companions.morl.pdoa_settings import PdoaConfig
from mmeureka_jax.companions.morl.preferences import condition
from mmeureka_jax.companions.morl.train import Learner, Trainer
from mmeureka_jax.companions.morl.trajectories import Rows, take

Score = Callable[[jax.Array, Rows, jax.Array], jax.Array]  # (ω [n], rows of demonstrations, key) -> a number


class Posterior(NamedTuple):
    """Mean and logarithm of the standard deviation of z, [n] each."""

    mean: jax.Array
    log_sigma: jax.Array


def td_reward(deltas: jax.Array, omega: jax.Array) -> jax.Array:
    """-mean of Σ_k ω_k·δ_k² for TD errors [B, n] and a preference [n]."""
    return -(omega * deltas**2).sum(axis=-1).mean()


def log_likelihood(actions: jax.Array, wanted: jax.Array, deviation: float) -> jax.Array:
    """The mean of log N(a; π(s), deviation²) over rows, for actions [B, A] and the policy's [B, A]."""
    log_density = -0.5 * ((actions - wanted) / deviation) ** 2 - jnp.log(deviation * jnp.sqrt(2 * jnp.pi))
    return log_density.sum(axis=-1).mean()


def divergence(posterior: Posterior) -> jax.Array:
    """KL(N(m, diag σ²) ‖ N(0, 1))."""
    mean, log_sigma = posterior
    return 0.5 * (jnp.exp(2 * log_sigma) + mean**2 - 1 - 2 * log_sigma).sum()


def make_score(config: PdoaConfig, trainer: Trainer, learner: Learner) -> Score:
    """The score of a preference by demonstrations, whose policy and critics are these."""

    def score(omega: jax.Array, rows: Rows, key: jax.Array) -> jax.Array:
        for_policy, for_target = jax.random.split(key)
        size = len(rows.actions)
        wishes = jnp.broadcast_to(omega, (size, len(omega)))
        c = condition(wishes, jnp.full(size, config.deploy_weight))
        values = critic.smaller(trainer.critics(learner.critics, rows.states, c, rows.actions), wishes)
        wanted = critic.padded(rows.rewards)
        if config.discount > 0:
            action = trainer.policy.act(learner.target_policy, rows.next_states, c, for_target)
            following = critic.smaller(trainer.critics(learner.target_critics, rows.next_states, c, action), wishes)
            wanted = critic.targets(rows.rewards, rows.not_done, following, config.discount)
        td = td_reward((wanted - values)[:, : len(omega)], omega)
        if config.regulariser == "diffusion":
            likelihood = -trainer.policy.bc_loss(learner.policy, rows.states, c, rows.actions, for_policy).mean()
        else:
            action = trainer.policy.act(learner.policy, rows.states, c, for_policy)
            likelihood = log_likelihood(rows.actions, action, config.action_deviation)
        return config.td_weight * td + config.likelihood_weight * likelihood

    return score


def fit(config: PdoaConfig, score: Score, rows: Rows, objectives: int, key: jax.Array) -> Posterior:
    """The posterior by some steps of Adam, from the prior on.

    Args:
        rows: of the demonstrations of one demonstrator; each step draws some.
    """
    rule = optax.adam(config.posterior_rate)
    start = Posterior(jnp.zeros(objectives), jnp.zeros(objectives))

    def loss(posterior: Posterior, key: jax.Array) -> jax.Array:
        for_z, for_rows, for_score = jax.random.split(key, 3)
        noise = jax.random.normal(for_z, (config.draws, objectives))
        omegas = to_preference(posterior.mean + jnp.exp(posterior.log_sigma) * noise)
        picked = jax.random.randint(for_rows, (config.posterior_rows,), 0, len(rows.states))
        batch = take(rows, picked)
        scores = jax.vmap(score, in_axes=(0, None, None))(omegas, batch, for_score)
        return config.prior_weight * divergence(posterior) - scores.mean()

    def step(carry: tuple[Posterior, optax.OptState], key: jax.Array) -> tuple[tuple[Posterior, optax.OptState], None]:
        posterior, state = carry
        change, state = rule.update(jax.grad(loss)(posterior, key), state)
        return (optax.apply_updates(posterior, change), state), None

    keys = jax.random.split(key, config.posterior_steps)
    return jax.lax.scan(step, (start, rule.init(start)), keys)[0][0]


def to_preference(z: jax.Array) -> jax.Array:
    """softmax over the last axis."""
    return jax.nn.softmax(z, axis=-1)


def draw(posterior: Posterior, count: int, key: jax.Array) -> jax.Array:
    """Preferences [count, n] of the posterior."""
    noise = jax.random.normal(key, (count, len(posterior.mean)))
    return to_preference(posterior.mean + jnp.exp(posterior.log_sigma) * noise)
