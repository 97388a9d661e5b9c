"""InSPO with small networks: for each agent a policy, the data's policy and values, learnt from batches of the data.

A turn of agent i, `b` being what the other agent did in a row of the data:

    ratio     rho = pi_other(b | s) / mu_other(b | s), from the other's newest policy
    values    normalise:  rows of a batch are drawn again with probabilities ~ rho;  Q_i(s, a) -> y = r + gamma V_i(s')
              otherwise:  Q_i(s, a) -> rho y + (1 - rho) unseen, on the batch as it is
    policy    maximise the mean of  omega log pi_i(a | s),
              omega = mu_i(a | s)^(-beta / (alpha + beta)) exp((Q_i(s, a) - V_i(s)) / (alpha + beta))

`V_i` is such that omega mu_i, the improved policy of tabular.py, sums to 1. beta = 0 is advantage-weighted regression.
Drawing rows again divides, for each action of the agent, by the sum of its weights, as `normalise` does with tables;
the other form does not. Both are reconstructions (see tabular.py).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from mmeureka_jax.companions.inspo.baselines import METHODS
from mmeureka_jax.companions.inspo.game import Data
from mmeureka_jax.companions.inspo.settings import InspoConfig
from mmeureka_jax.companions.inspo.tabular import AGENTS, NEVER

Params = Any
Scales = tuple[jax.Array, jax.Array]  # alpha and beta


class Mlp(nn.Module):
    """Two hidden layers; the weights of the last layer begin at 0. `[..., F] -> [..., outputs]`."""

    hidden: int
    outputs: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        for _ in range(2):
            features = nn.relu(nn.Dense(self.hidden)(features))
        return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros, name="last")(features)


class Learner(NamedTuple):
    """What is learnt. Every tree but `joint` has a leading axis for the agents."""

    behaviours: Params  # logits of each agent's policy in the data
    joint: Params  # logits of the joint actions in the data
    policies: Params
    values: Params
    targets: Params  # values that follow slowly
    policy_states: Any  # of Adam
    value_states: Any


class Rows(NamedTuple):
    """Batches as one agent sees them, each field `[steps, B]`, and the features with an axis more; or one of them."""

    features: jax.Array
    own: jax.Array
    other: jax.Array
    reward: jax.Array
    done: jax.Array
    following: jax.Array  # features of the following states


def drawn(data: Data, key: jax.Array, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """State and both actions of rows of the data, drawn with replacement, arrays of this shape."""
    bounds = jnp.cumsum(data.counts.ravel())
    places = jnp.searchsorted(bounds, jax.random.uniform(key, shape) * bounds[-1], side="right")
    # rounding must not choose a place after the last that was seen
    last = jnp.argmax(bounds)
    state, first, second = jnp.unravel_index(jnp.minimum(places, last), data.counts.shape)
    return state, first, second


def rows_of(data: Data, key: jax.Array, shape: tuple[int, ...], agent: jax.Array) -> Rows:
    """Batches of the data, `[steps, B]`, as an agent sees them."""
    where = drawn(data, key, shape)
    state, first, second = where
    return Rows(
        features=data.features[state],
        own=jnp.where(agent == 0, first, second),
        other=jnp.where(agent == 0, second, first),
        reward=data.reward[where],
        done=data.done[where],
        following=data.features[data.following[where]],
    )


def policy_weights(
    own: jax.Array, prior: jax.Array, values: jax.Array, actions: jax.Array, scales: Scales, config: InspoConfig
) -> jax.Array:
    """omega of rows, `[...]`: how much likelier their action becomes than it was in the data.

    Args:
        own: log mu_i, `[..., A]`; actions less likely than `support` are as those that were not seen.
        prior: what the divergence is measured from, a logarithm, `[..., A]`: log mu_i, or the joint mu's expectation.
        values: Q_i, `[..., A]`.
    """
    alpha, beta = scales
    logits = jnp.where(own >= jnp.log(config.support), (alpha * prior + values) / (alpha + beta), NEVER)
    log_weights = jax.nn.log_softmax(logits) - own
    return jnp.exp(jnp.minimum(chosen(log_weights, actions), config.weight_cap))


def chosen(table: jax.Array, actions: jax.Array) -> jax.Array:
    """The number of each row's action, `[..., A] -> [...]`."""
    return jnp.take_along_axis(table, actions[..., None], axis=-1)[..., 0]


def of_agent(tree: Any, agent: jax.Array | int) -> Any:
    """One agent's part of a tree."""
    return jax.tree.map(lambda leaf: leaf[agent], tree)


def with_agent(tree: Any, agent: jax.Array, part: Any) -> Any:
    """The tree with one agent's part put in."""
    return jax.tree.map(lambda leaf, new: leaf.at[agent].set(new), tree, part)


class Networks:
    """How the networks of a config learn. All methods are pure functions of arrays."""

    def __init__(self, config: InspoConfig):
        self.config = config
        self.method = METHODS[config.method]
        self.adam = optax.adam(config.learning_rate)

    def apply(self, params: Params, features: jax.Array) -> jax.Array:
        outputs = params["params"]["last"]["bias"].shape[-1]
        return Mlp(self.config.hidden, outputs).apply(params, features)  # type: ignore[return-value]

    def log_policy(self, params: Params, features: jax.Array) -> jax.Array:
        return jax.nn.log_softmax(self.apply(params, features))

    def policies(self, data: Data, learner: Learner) -> jax.Array:
        """Of both agents in every state, `[2, S, A]`."""
        return jnp.exp(jax.vmap(self.log_policy, in_axes=(0, None))(learner.policies, data.features))

    def start(self, data: Data, key: jax.Array) -> Learner:
        """Networks after behaviour cloning; the policies are the data's, with noise on their logits."""
        of_networks, of_rows, of_noise = jax.random.split(key, 3)
        actions = data.counts.shape[-1]
        keys = jax.random.split(of_networks, 2 * AGENTS + 1)
        small = Mlp(self.config.hidden, actions)
        networks = jax.vmap(small.init, in_axes=(0, None))(keys[1:], data.features[:1])
        behaviours = jax.tree.map(lambda leaf: leaf[:AGENTS], networks)
        values = jax.tree.map(lambda leaf: leaf[AGENTS:], networks)
        joint = Mlp(self.config.hidden, actions**2).init(keys[0], data.features[:1])
        behaviours, joint = self.cloned(data, of_rows, (behaviours, joint))
        policies = behaviours
        if self.config.noise and self.method.learns:
            bias = behaviours["params"]["last"]["bias"]
            noisy = bias + self.config.noise * jax.random.normal(of_noise, bias.shape)
            policies = {"params": {**behaviours["params"], "last": {**behaviours["params"]["last"], "bias": noisy}}}
        states = jax.vmap(self.adam.init)
        return Learner(behaviours, joint, policies, values, values, states(policies), states(values))

    def cloned(self, data: Data, key: jax.Array, networks: tuple[Params, Params]) -> tuple[Params, Params]:
        """The data's policies, each agent's and the joint one, by maximum likelihood."""

        rows = drawn(data, key, (self.config.bc_steps, self.config.batch))

        def loss(networks: tuple[Params, Params], state: jax.Array, first: jax.Array, second: jax.Array) -> jax.Array:
            features = data.features[state]
            each = jax.vmap(self.log_policy, in_axes=(0, None))(networks[0], features)
            joint = self.log_policy(networks[1], features)
            together = chosen(joint, first * data.counts.shape[-1] + second)
            return -(chosen(each[0], first) + chosen(each[1], second) + together).mean()

        def step(carry: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], None]:
            return self.stepped(*carry, jax.grad(loss)(carry[0], *batch)), None

        return jax.lax.scan(step, (networks, self.adam.init(networks)), rows)[0][0]

    def learning_round(self, data: Data, learner: Learner, key: jax.Array, scales: Scales) -> Learner:
        """One round: each agent learns once, in a random order.

        Args:
            scales: alpha and beta.
        """
        before = learner.policies
        keys = jax.random.split(key, 1 + AGENTS)

        def turn(learner: Learner, agent_key: tuple[jax.Array, jax.Array]) -> tuple[Learner, None]:
            agent, key = agent_key
            other = of_agent(learner.policies if self.method.sequential else before, 1 - agent)
            learner = self.with_values(data, learner, agent, other, scales, key)
            return self.with_policy(data, learner, agent, other, scales, key), None

        order = jax.random.permutation(keys[0], AGENTS)
        return jax.lax.scan(turn, learner, (order, keys[1:]))[0]

    def value_loss(
        self, values: Params, rows: Rows, targets: jax.Array, ratios: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Squared error of an agent's values.

        Args:
            targets: y, `[B]`.
            ratios: rho, `[B]`.
        """
        found = chosen(self.apply(values, rows.features), rows.own)
        if self.config.normalise:
            again = jax.random.categorical(key, jnp.log(ratios + 1e-30), shape=ratios.shape)
            return jnp.square(found[again] - targets[again]).mean()
        return jnp.square(found - (ratios * targets + (1 - ratios) * self.config.unseen)).mean()

    def ratios(self, behaviour: Params, other: Params, rows: Rows) -> jax.Array:
        """rho of rows, at most `ratio_cap`; 1 where the others count as acting as in the data."""
        if not self.method.resampled:
            return jnp.ones_like(rows.reward)
        now = chosen(self.log_policy(other, rows.features), rows.other)
        then = chosen(self.log_policy(behaviour, rows.features), rows.other)
        return jnp.minimum(jnp.exp(now - then), self.config.ratio_cap)

    def next_policy(
        self, learner: Learner, agent: jax.Array, rows: Rows, scales: Scales
    ) -> tuple[jax.Array, jax.Array]:
        """The agent's policy in following states, `[..., A]`, and what regularisers add to their values, `[...]`."""
        log_policy = self.log_policy(of_agent(learner.policies, agent), rows.following)
        own = self.log_policy(of_agent(learner.behaviours, agent), rows.following)
        policy = jax.nn.softmax(jnp.where(own >= jnp.log(self.config.support), log_policy, NEVER))
        added = -scales[0] * (log_policy - own) - scales[1] * log_policy
        return policy, (policy * added).sum(-1) * self.config.regularised_values

    def with_values(
        self, data: Data, learner: Learner, agent: jax.Array, other: Params, scales: Scales, key: jax.Array
    ) -> Learner:
        """The learner after an agent's values were fitted to the other's policy."""
        config = self.config
        of_rows, of_again = jax.random.split(jax.random.fold_in(key, 0))
        rows = rows_of(data, of_rows, (config.value_steps, config.batch), agent)
        ratios = self.ratios(of_agent(learner.behaviours, 1 - agent), other, rows)
        policy, added = self.next_policy(learner, agent, rows, scales)

        def step(carry: tuple[Params, Params, Any], batch: Any) -> tuple[tuple[Params, Params, Any], None]:
            values, targets, state = carry
            rows, ratios, policy, added, again = batch
            following = (policy * self.apply(targets, rows.following)).sum(-1) + added
            aims = rows.reward + config.gamma * jnp.where(rows.done, 0.0, following)
            values, state = self.stepped(values, state, jax.grad(self.value_loss)(values, rows, aims, ratios, again))
            return (values, optax.incremental_update(values, targets, config.target_rate), state), None

        trees = (learner.values, learner.targets, learner.value_states)
        batches = (rows, ratios, policy, added, jax.random.split(of_again, config.value_steps))
        values, targets, states = jax.lax.scan(step, of_agent(trees, agent), batches)[0]
        return learner._replace(
            values=with_agent(learner.values, agent, values),
            targets=with_agent(learner.targets, agent, targets),
            value_states=with_agent(learner.value_states, agent, states),
        )

    def with_policy(
        self, data: Data, learner: Learner, agent: jax.Array, other: Params, scales: Scales, key: jax.Array
    ) -> Learner:
        """The learner after an agent's policy was moved towards the improved one."""
        config = self.config
        rows = rows_of(data, jax.random.fold_in(key, 1), (config.policy_steps, config.batch), agent)
        own = self.log_policy(of_agent(learner.behaviours, agent), rows.features)
        prior = own
        if config.regulariser == "joint":
            prior = self.joint_prior(learner.joint, other, rows.features, agent)
        values = self.apply(of_agent(learner.values, agent), rows.features)
        weights = policy_weights(own, prior, values, rows.own, scales, config)

        def loss(policy: Params, features: jax.Array, actions: jax.Array, weights: jax.Array) -> jax.Array:
            return -(weights * chosen(self.log_policy(policy, features), actions)).mean()

        def step(carry: tuple[Params, Any], batch: Any) -> tuple[tuple[Params, Any], None]:
            return self.stepped(*carry, jax.grad(loss)(carry[0], *batch)), None

        trees = (learner.policies, learner.policy_states)
        policy, state = jax.lax.scan(step, of_agent(trees, agent), (rows.features, rows.own, weights))[0]
        return learner._replace(
            policies=with_agent(learner.policies, agent, policy),
            policy_states=with_agent(learner.policy_states, agent, state),
        )

    def joint_prior(self, joint: Params, other: Params, features: jax.Array, agent: jax.Array) -> jax.Array:
        """The expectation of log mu(a, b) over the other's action b, `[..., A]`."""
        other_policy = jnp.exp(self.log_policy(other, features))
        actions = other_policy.shape[-1]
        table = self.log_policy(joint, features).reshape(*features.shape[:-1], actions, actions)
        mine = jnp.where(agent == 0, table, table.swapaxes(-1, -2))
        return (mine * other_policy[..., None, :]).sum(-1)

    def stepped(self, params: Params, state: Any, gradient: Params) -> tuple[Params, Any]:
        """Parameters and state after a step of Adam."""
        updates, state = self.adam.update(gradient, state, params)
        return optax.apply_updates(params, updates), state
