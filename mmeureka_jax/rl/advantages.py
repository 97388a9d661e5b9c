"""Advantages: the rewards of each group [P, n] turned into one advantage per response [P, n].

A response is judged against the other answers to the same prompt, so no critic is needed. The value is the same for all
tokens of a response; the losses (rl/losses.py) spread it over them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Bool, Float

from mmeureka_jax.config import RLConfig
from mmeureka_jax.models.batch import Array


def _centre(rewards: Float[Array, "P n"]) -> tuple[Float[Array, "P n"], Bool[Array, "P 1"]]:
    """Rewards minus their group's mean, and whether a group's rewards differ at all.

    Where they do not, the result is set to 0: the float32 mean of eight times 0.9 is not 0.9, and the rounding error
    divided by its own standard deviation would be an advantage of order 1.
    """
    varied = jnp.any(rewards != rewards[:, :1], axis=1, keepdims=True)
    centred = rewards - jnp.mean(rewards, axis=1, keepdims=True)
    return jnp.where(varied, centred, 0.0), varied


def _standard_deviation(centred: Float[Array, "P n"]) -> Float[Array, "P 1"]:
    """The sample standard deviation (ddof = 1) of each group; 0 for a group of one."""
    n = centred.shape[1]
    return jnp.sqrt(jnp.sum(centred**2, axis=1, keepdims=True) / max(n - 1, 1))


def grpo(rewards: Float[Array, "P n"]) -> Float[Array, "P n"]:
    """Group-relative advantages, (R - mean) / (std + 1e-9), in float32.

    The standard deviation has ddof = 1, as in MM-EUREKA's code (`group_norm` there). A group whose rewards are
    all equal has advantage exactly 0.

    Source: DeepSeekMath (arXiv 2402.03300), section 4.1.2, outcome supervision; MM-EUREKA (arXiv 2503.07365).
    """
    centred, _ = _centre(jnp.asarray(rewards, jnp.float32))
    return centred / (_standard_deviation(centred) + 1e-9)


def cpgd(
    rewards: Float[Array, "P n"], weight: Literal["equal", "std", "clip_filter"], cap: float = 3.0
) -> Float[Array, "P n"]:
    """CPGD's weighted advantages, w(x) * (R - mean), in float32.

    A group whose rewards are all equal has advantage exactly 0.

    Args:
        weight: how much a prompt x counts.
            `equal`: w = 1.
            `std`: w = 1 / (std + 1e-6), with ddof = 1; prompts that are nearly solved or nearly hopeless count as much
            as the others.
            `clip_filter`: w = min(cap, #prompts / #prompts with std > 0), the same for all prompts; makes up for the
            prompts that teach nothing. It counts the rows given, so give it all the groups that are trained on
            together (every host's, every micro-batch's), not a share of them.
        cap: the largest weight of `clip_filter`; the other two ignore it.

    Source: CPGD (arXiv 2505.12504), the weighting factor of the advantage.
    """
    centred, varied = _centre(jnp.asarray(rewards, jnp.float32))
    if weight == "equal":
        return centred
    if weight == "std":
        return centred / (_standard_deviation(centred) + 1e-6)
    if weight == "clip_filter":
        return centred * jnp.minimum(cap, rewards.shape[0] / jnp.maximum(jnp.sum(varied), 1))
    raise ValueError(f"CPGD weights are equal, std and clip_filter; got {weight!r}")


ADVANTAGES: Mapping[str, Callable[[Float[Array, "P n"], RLConfig], Float[Array, "P n"]]] = {
    "grpo": lambda rewards, config: grpo(rewards),
    "cpgd": lambda rewards, config: cpgd(rewards, config.cpgd_weight, config.cpgd_weight_cap),
}


def compute_advantages(rewards: Float[Array, "P n"], config: RLConfig) -> Float[Array, "P n"]:
    """The advantages that `rl.advantage` names. Give it all the groups that are trained on together (see `cpgd`)."""
    return ADVANTAGES[config.advantage](rewards, config)
