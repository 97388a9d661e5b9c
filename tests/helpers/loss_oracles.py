"""Token losses as the papers write them, token by token: an oracle for each. `l` are the log-probabilities of one
response, `old` those that it was sampled with."""

from __future__ import annotations

import math

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.rl.losses import LOSSES
from mmeureka_jax.rl.settings import settings_of


def clip(x: float, low: float, high: float) -> float:
    return max(low, min(x, high))


def setting(config: RLConfig, name: str) -> float:
    """The config's value, or the loss's own where that is null."""
    value = getattr(config, name)
    return settings_of(LOSSES[config.loss].function)[name] if value is None else value


def token(policy, gradient, *, low=False, high=False, drift=0.0, drift_gradient=0.0):
    """What an oracle says of a token: the policy addend, its gradient summed over the response, clipped low or high,
    and the drift addend."""
    return {
        "policy": policy,
        "gradient": gradient,
        "low": low,
        "high": high,
        "drift": drift,
        "drift_gradient": drift_gradient,
    }


def bounds(config):
    return 1 - setting(config, "clip_epsilon_low"), 1 + setting(config, "clip_epsilon_high")


def clipped_ratio(config, ratio, advantage, cap=math.inf):
    """A token of PPO's surrogate, whose ratio is cut at `cap` before anything else."""
    low, high = bounds(config)
    cut = min(ratio, cap)
    below = advantage < 0 and cut < low
    above = (advantage > 0 and cut > high) or (advantage != 0 and ratio > cap)
    policy = -min(cut * advantage, clip(cut, low, high) * advantage)
    return token(policy, 0.0 if below or above else -ratio * advantage, low=below, high=above)


def oracle_of_ppo_clip(config, l, old, advantages):  # noqa: E741
    cap = config.ratio_cap or math.inf
    return [clipped_ratio(config, math.exp(x - y), a, cap) for x, y, a in zip(l, old, advantages, strict=True)]


def oracle_of_gspo(config, l, old, advantages):  # noqa: E741
    """The ratio is that of the response, which every token moves."""
    length = len(l)
    ratio = math.exp(sum(x - y for x, y in zip(l, old, strict=True)) / max(length, 1))
    tokens = [clipped_ratio(config, ratio, advantage) for advantage in advantages]
    together = sum(one["gradient"] for one in tokens) / max(length, 1)
    return [one | {"gradient": together} for one in tokens]


def oracle_of_cispo(config, l, old, advantages):  # noqa: E741
    tokens = []
    for x, y, advantage in zip(l, old, advantages, strict=True):
        ratio = math.exp(x - y)
        weight = clip(ratio, *bounds(config))
        below = advantage != 0 and ratio < weight
        above = advantage != 0 and ratio > weight
        tokens.append(token(-weight * advantage * x, -weight * advantage, low=below, high=above))
    return tokens


def oracle_of_pg(config, l, old, advantages):  # noqa: E741
    return [token(-advantage * x, -advantage) for x, advantage in zip(l, advantages, strict=True)]


def oracle_of_cpg(config, l, old, advantages):  # noqa: E741
    """Its bounds widen from the first token to the last."""
    tokens = []
    for number, (x, y, advantage) in enumerate(zip(l, old, advantages, strict=True), start=1):
        share = config.clip_start + (1 - config.clip_start) * number / len(l)
        low = math.log(1 - share * setting(config, "clip_epsilon_low"))
        high = math.log(1 + share * setting(config, "clip_epsilon_high"))
        policy = -min((x - y) * advantage, clip(x - y, low, high) * advantage)
        below = advantage < 0 and x - y < low
        above = advantage > 0 and x - y > high
        tokens.append(token(policy, 0.0 if below or above else -advantage, low=below, high=above))
    return tokens


def with_drift(oracle):
    def drifting(config, l, old, advantages):  # noqa: E741
        slopes = [
            config.drift_coefficient * min(math.exp(x - y) - 1, config.drift_cap) for x, y in zip(l, old, strict=True)
        ]
        return [
            one | {"drift": slope * x, "drift_gradient": slope}
            for one, slope, x in zip(oracle(config, l, old, advantages), slopes, l, strict=True)
        ]

    return drifting


ORACLES = {
    "ppo_clip": oracle_of_ppo_clip,
    "ppo_clip_drift": with_drift(oracle_of_ppo_clip),
    "cpgd": with_drift(oracle_of_cpg),
    "cpg": oracle_of_cpg,
    "pg": oracle_of_pg,
    "pg_drift": with_drift(oracle_of_pg),
    "gspo": oracle_of_gspo,
    "cispo": oracle_of_cispo,
}
