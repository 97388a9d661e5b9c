"""InSPO with tables: every expectation over the data is exact.

A round, in a random order of the agents; `b` is an action of the other agent, whose policy is its newest one:

    values       Q_i(s, a) = sum over seen b of  w(b) (r(s, a, b) + gamma V_i(s'))  +  (1 - sum of w) unseen,
                 w(b) = pi_other(b | s)
    improvement  pi_i(a | s)  ~  mu_i(a | s)^(alpha / (alpha + beta))  exp(Q_i(s, a) / (alpha + beta)),  seen a only

The improvement maximises E[Q_i] - alpha KL(pi_i | mu_i) + beta H(pi_i), the objective of the paper (arXiv 2412.07639).
The forms of both lines are a reconstruction from it, since the paper's formulas could not be read and no code was
released. What else is open is a setting: weights that are normalised over seen b, the joint mu in place of mu_i, and
whether V_i holds the divergence and the entropy.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmeureka_jax.companions.inspo.baselines import METHODS
from mmeureka_jax.companions.inspo.game import Data
from mmeureka_jax.companions.inspo.settings import InspoConfig

AGENTS = 2
NEVER = -1e9  # the logarithm of 0 that can be multiplied
RARELY = -23.0  # the logarithm of the share that unseen joint actions have in the joint divergence, 1e-10


class View(NamedTuple):
    """The data as one agent sees them: axis 1 is its own action, axis 2 the other's. Arrays as in `Data`."""

    seen: jax.Array
    reward: jax.Array
    following: jax.Array
    done: jax.Array
    joint: jax.Array  # logarithms of the joint actions' shares in a state
    own: jax.Array  # logarithms of its own actions' shares, `[S, A]`
    known: jax.Array  # whether a state was seen, `[S]`


class Tables(NamedTuple):
    """What is learnt: policies and values of each agent, `[2, S, A]`."""

    policies: jax.Array
    values: jax.Array


def behaviour(counts: jax.Array) -> jax.Array:
    """The share of each agent's actions, `[2, S, A]`, from counts `[S, A, A]`; uniform where nothing was seen."""
    each = jnp.stack([counts.sum(2), counts.sum(1)])
    total = each.sum(-1, keepdims=True)
    return jnp.where(total > 0, each / jnp.maximum(total, 1e-9), 1.0 / counts.shape[-1])


def initial_tables(data: Data, config: InspoConfig, key: jax.Array) -> Tables:
    """The data's own policies, with noise on their logits."""
    policies = behaviour(data.counts)
    if config.noise and METHODS[config.method].learns:
        logits = _log(policies, NEVER) + config.noise * jax.random.normal(key, policies.shape)
        policies = jnp.where(policies > 0, jax.nn.softmax(logits), 0.0)
    return Tables(policies, jnp.zeros_like(policies))


def view_of(data: Data, agent: jax.Array) -> View:
    """The data as an agent sees them; `agent` may be traced."""

    def turned(table: jax.Array) -> jax.Array:
        return jnp.where(agent == 0, table, table.swapaxes(1, 2))

    counts = turned(data.counts)
    total = counts.sum((1, 2))
    share = counts / jnp.maximum(total, 1e-9)[:, None, None]
    return View(
        seen=counts > 0,
        reward=turned(data.reward),
        following=turned(data.following),
        done=turned(data.done),
        joint=_log(share, RARELY),
        own=_log(behaviour(data.counts)[agent], NEVER),
        known=total > 0,
    )


def backed_up(view: View, own: jax.Array, other: jax.Array, states: jax.Array, config: InspoConfig) -> jax.Array:
    """An agent's values after one backup, `[S, A]`; 0 for actions that were not seen.

    Args:
        own: the log of its share in the data of each of its actions, `[S, A]`.
        other: weights of the other agent's actions, `[S, A]` or, if they depend on its own, `[S, A, A]`.
        states: values of states, `[S]`.
    """
    target = view.reward + config.gamma * jnp.where(view.done, 0.0, states[view.following])
    weights = jnp.where(view.seen, other[:, None, :] if other.ndim == 2 else other, 0.0)
    total = weights.sum(-1)
    if config.normalise:
        mean = (weights * target).sum(-1) / jnp.maximum(total, 1e-30)
        # where the other does nothing that was seen, what was seen counts alike
        alike = (view.seen * target).sum(-1) / jnp.maximum(view.seen.sum(-1), 1)
        found = jnp.where(total > 1e-30, mean, alike)
    else:
        found = (weights * target).sum(-1) + (1.0 - total) * config.unseen
    return jnp.where(own > NEVER, found, 0.0)


def state_values(
    view: View, policy: jax.Array, values: jax.Array, scales: tuple[jax.Array, jax.Array], config: InspoConfig
) -> jax.Array:
    """The value of each state under an agent's policy, `[S]`; states that were not seen have `unseen`.

    Args:
        scales: alpha and beta, which count if `regularised_values` is set.
    """
    gains = values
    if config.regularised_values:
        log_policy = _log(policy, NEVER)
        gains = values - scales[0] * (log_policy - view.own) - scales[1] * log_policy
    found = jnp.where(policy > 0, policy * gains, 0.0).sum(-1)
    return jnp.where(view.known, found, config.unseen)


def improved(prior: jax.Array, values: jax.Array, alpha: jax.Array, beta: jax.Array) -> jax.Array:
    """The policy that maximises value - alpha * divergence + beta * entropy, `[S, A]`.

    Args:
        prior: the log of mu, `[S, A]`; where it is `NEVER` the policy is 0.
    """
    logits = jnp.where(prior > NEVER, (alpha * prior + values) / (alpha + beta), NEVER)
    return jnp.where(prior > NEVER, jax.nn.softmax(logits), 0.0)


def learnt_by(
    data: Data, tables: Tables, others: jax.Array, agent: jax.Array, scales: tuple[jax.Array, jax.Array],
    config: InspoConfig,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """An agent's turn: its policy and values after it, `[S, A]` each.

    Args:
        others: policies that the agents count as having, `[2, S, A]`.
    """
    method = METHODS[config.method]
    view = view_of(data, agent)
    policy = tables.policies[agent]
    other = others[1 - agent]
    # as in the data: how the other acted when this agent took that action
    weights = other if method.resampled else jnp.exp(view.joint - view.own[:, :, None])

    def sweep(_: int, values: jax.Array) -> jax.Array:
        return backed_up(view, view.own, weights, state_values(view, policy, values, scales, config), config)

    values = jax.lax.fori_loop(0, config.sweeps, sweep, tables.values[agent])
    prior = view.own
    if config.regulariser == "joint":
        prior = jnp.where(view.own > NEVER, (other[:, None, :] * view.joint).sum(-1), NEVER)
    return improved(prior, values, *scales), values


def learning_round(
    data: Data, tables: Tables, key: jax.Array, scales: tuple[jax.Array, jax.Array], config: InspoConfig
) -> Tables:
    """One round: each agent learns once.

    Args:
        key: of the order of the agents.
        scales: alpha and beta.
    """
    before = tables.policies

    def turn(tables: Tables, agent: jax.Array) -> tuple[Tables, None]:
        others = tables.policies if METHODS[config.method].sequential else before
        policy, values = learnt_by(data, tables, others, agent, scales, config)
        return Tables(tables.policies.at[agent].set(policy), tables.values.at[agent].set(values)), None

    return jax.lax.scan(turn, tables, jax.random.permutation(key, AGENTS))[0]


def _log(share: jax.Array, of_zero: float) -> jax.Array:
    return jnp.where(share > 0, jnp.log(jnp.where(share > 0, share, 1.0)), of_zero)
