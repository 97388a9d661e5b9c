"""The three policies of PRMORL, each with the loss that keeps it near the data.

    mse        an action from state and condition; loss: squared distance to the action of the data
    cvae       a decoder of state, condition and latent; loss: reconstruction and the latents' distance to N(0, 1)
    diffusion  an action denoised in N steps from noise; loss: squared error of the predicted noise

With cvae and diffusion the generative model itself is the policy. Losses are those of qianlin04/PRMORL @a742815; the
loss of the CVAE is one number for the batch there, and is here the same number for each row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.morl.networks import Mlp, Params, forward, mish, time_embedding
from mmeureka_jax.companions.morl.settings import PolicyConfig

_LATENT_CLIP = 0.5
_LOG_SIGMA = (-4.0, 15.0)
_TIME_SIZE = 16


@dataclass(frozen=True)
class PolicyForm:
    """A policy as functions of its parameters, for states s [B, S], conditions c [B, n + 1] and actions a [B, A].

    Attributes:
        init: a key -> parameters.
        act: (params, s, c, key) -> actions [B, A] in [-1, 1], differentiable.
        bc_loss: (params, s, c, a, key) -> the loss of each row [B].
        samples: whether actions are random.
    """

    init: Callable[[jax.Array], Params]
    act: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]
    bc_loss: Callable[[Params, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
    samples: bool


def make_policy(config: PolicyConfig, state_size: int, action_size: int, objectives: int) -> PolicyForm:
    """The policy that `regulariser` names."""
    make = {"mse": _mse, "cvae": _cvae, "diffusion": _diffusion}[config.regulariser]
    return make(config, state_size + objectives + 1, action_size)


def _mse(config: PolicyConfig, inputs: int, action_size: int) -> PolicyForm:
    network = Mlp(config.hidden, action_size, jax.nn.relu)

    def act(params: Params, s: jax.Array, c: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.tanh(forward(network, params, jnp.concatenate([s, c], axis=-1)))

    def bc_loss(params: Params, s: jax.Array, c: jax.Array, a: jax.Array, key: jax.Array) -> jax.Array:
        return ((act(params, s, c, key) - a) ** 2).mean(axis=-1)

    return PolicyForm(lambda key: network.init(key, jnp.zeros((1, inputs))), act, bc_loss, False)


def _cvae(config: PolicyConfig, inputs: int, action_size: int) -> PolicyForm:
    latent = config.latent * action_size
    encoder = Mlp(config.hidden, 2 * latent, jax.nn.relu)
    decoder = Mlp(config.hidden, action_size, jax.nn.relu)

    def init(key: jax.Array) -> Params:
        first, second = jax.random.split(key)
        return {
            "encoder": encoder.init(first, jnp.zeros((1, inputs + action_size))),
            "decoder": decoder.init(second, jnp.zeros((1, inputs + latent))),
        }

    def decode(params: Params, s: jax.Array, c: jax.Array, z: jax.Array) -> jax.Array:
        return jnp.tanh(forward(decoder, params["decoder"], jnp.concatenate([s, c, z], axis=-1)))

    def act(params: Params, s: jax.Array, c: jax.Array, key: jax.Array) -> jax.Array:
        z = jax.random.normal(key, (*s.shape[:-1], latent))
        return decode(params, s, c, jnp.clip(z, -_LATENT_CLIP, _LATENT_CLIP))

    def bc_loss(params: Params, s: jax.Array, c: jax.Array, a: jax.Array, key: jax.Array) -> jax.Array:
        coded = forward(encoder, params["encoder"], jnp.concatenate([s, c, a], axis=-1))
        mean, log_sigma = jnp.split(coded, 2, axis=-1)
        sigma = jnp.exp(jnp.clip(log_sigma, *_LOG_SIGMA))
        z = mean + sigma * jax.random.normal(key, mean.shape)
        return jnp.full(len(a), cvae_loss(decode(params, s, c, z), a, mean, sigma))

    return PolicyForm(init, act, bc_loss, True)


def cvae_loss(decoded: jax.Array, actions: jax.Array, mean: jax.Array, sigma: jax.Array) -> jax.Array:
    """One number for a batch: MSE + KL/2, where KL = -½·mean(1 + log σ² - μ² - σ²)."""
    divergence = -0.5 * (1 + 2 * jnp.log(sigma) - mean**2 - sigma**2).mean()
    return ((decoded - actions) ** 2).mean() + 0.5 * divergence


def noise_schedule(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """β_t = 1 - exp(-0.1/N - ½·9.9·(2t - 1)/N²) for t = 1 ... N, and the products of the 1 - β up to each, both [N]."""
    t = np.arange(1, steps + 1)
    beta = 1 - np.exp(-0.1 / steps - 0.5 * 9.9 * (2 * t - 1) / steps**2)
    return beta, np.cumprod(1 - beta)


def _diffusion(config: PolicyConfig, inputs: int, action_size: int) -> PolicyForm:
    count = config.diffusion_steps
    beta, kept = noise_schedule(count)
    before = np.append(1.0, kept[:-1])
    # The mean of the next step is `of_clean`·x0 + `of_noisy`·x (Ho et al., arXiv 2006.11239, equation 7).
    of_clean = beta * np.sqrt(before) / (1 - kept)
    of_noisy = (1 - before) * np.sqrt(1 - beta) / (1 - kept)
    deviation = np.sqrt(beta * (1 - before) / (1 - kept))
    kept_of = jnp.asarray(kept, jnp.float32)
    network = Mlp(config.hidden, action_size, mish)
    clock = Mlp((2 * _TIME_SIZE,), _TIME_SIZE, mish)

    def init(key: jax.Array) -> Params:
        first, second = jax.random.split(key)
        return {
            "network": network.init(first, jnp.zeros((1, inputs + action_size + _TIME_SIZE))),
            "clock": clock.init(second, jnp.zeros((1, _TIME_SIZE))),
        }

    def noise_in(params: Params, s: jax.Array, c: jax.Array, x: jax.Array, step: jax.Array) -> jax.Array:
        time = forward(clock, params["clock"], time_embedding(step, _TIME_SIZE))
        time = jnp.broadcast_to(time, (*s.shape[:-1], _TIME_SIZE))
        return forward(network, params["network"], jnp.concatenate([x, time, s, c], axis=-1))

    def act(params: Params, s: jax.Array, c: jax.Array, key: jax.Array) -> jax.Array:
        noise = jax.random.normal(key, (count + 1, *s.shape[:-1], action_size))
        x = noise[count]
        for step in reversed(range(count)):
            predicted = noise_in(params, s, c, x, jnp.full((1,), float(step)))
            clean = jnp.clip((x - np.sqrt(1 - kept[step]) * predicted) / np.sqrt(kept[step]), -1, 1)
            x = of_clean[step] * clean + of_noisy[step] * x + deviation[step] * noise[step]
        return jnp.clip(x, -1, 1)

    def bc_loss(params: Params, s: jax.Array, c: jax.Array, a: jax.Array, key: jax.Array) -> jax.Array:
        for_step, for_noise = jax.random.split(key)
        step = jax.random.randint(for_step, (len(a),), 0, count)
        noise = jax.random.normal(for_noise, a.shape)
        share = kept_of[step][:, None]
        x = jnp.sqrt(share) * a + jnp.sqrt(1 - share) * noise
        return ((noise_in(params, s, c, x, step.astype(jnp.float32)) - noise) ** 2).mean(axis=-1)

    return PolicyForm(init, act, bc_loss, True)
