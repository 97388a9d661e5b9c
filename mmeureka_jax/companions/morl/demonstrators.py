"""Demonstrators on the point mass: what they want, what they show, and when an adapted preference is theirs.

For ω1 >= 2/3 all best actions are 1: those demonstrators act alike, and nothing that they do tells their preference. An
adapted preference is theirs as soon as it has the same best action, so the error is the distance to the nearest such.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmeureka_jax.companions.morl import point_mass
from mmeureka_jax.companions.morl.pdoa_settings import PdoaConfig
from mmeureka_jax.companions.morl.trajectories import Rows, act_for

_ALIKE_FROM = 2 / 3


@dataclass(frozen=True)
class Demonstrators:
    """D of them: `first` [D], their preference for speed; `threshold` [D], above which they never go; `actions` [D],
    what they want to do."""

    first: np.ndarray
    threshold: np.ndarray
    actions: np.ndarray


def make_demonstrators(config: PdoaConfig) -> Demonstrators:
    """Even preferences, each with every threshold where there are constraints."""
    even = point_mass.even_preferences(config.demonstrators)
    wanted = action_of_returns(even[:, 0]) if config.preference == "returns" else point_mass.best_action(even)
    if not config.constrained:
        return Demonstrators(even[:, 0], np.ones(len(even)), wanted)
    first = np.repeat(even[:, 0], len(config.thresholds))
    threshold = np.tile(np.array(config.thresholds), len(even))
    return Demonstrators(first, threshold, np.minimum(np.repeat(wanted, len(config.thresholds)), threshold))


def action_of_returns(first: np.ndarray) -> np.ndarray:
    """The action a in [0, 1] whose normalised return a / (1 + a - a²) is `first` (closed form)."""
    second = 1 - first
    root = np.sqrt(second**2 + 4 * first**2)
    return np.where(first > 0, (root - second) / (2 * np.where(first > 0, first, 1)), 0.0)


def demonstrations(config: PdoaConfig, who: Demonstrators, objectives: int, norm: tuple, seed: int) -> Rows:
    """What each shows in `demonstrations` trajectories, [D, R, ...]; its preference is not among it (0).

    Args:
        norm: mean and scale [S] of the states that the policies were trained with.
    """
    count = len(who.first)
    each = config.demonstrations
    numbers = np.random.default_rng([seed, 1])
    nothing = np.zeros((count * each, objectives))
    made = act_for(nothing, np.repeat(who.actions, each), config, numbers, np.repeat(who.threshold, each))
    mean, scale = norm

    def apart(array: np.ndarray) -> np.ndarray:
        return np.asarray(array, np.float32).reshape(count, -1, array.shape[-1])

    return Rows(
        apart((made.observations - mean) / scale),
        apart(made.actions),
        apart((made.next_observations - mean) / scale),
        apart(made.rewards),
        np.ones((count, each * config.horizon), np.float32),
        apart(made.preference if made.preference is not None else nothing),
        np.broadcast_to(mean, (count, len(mean))),
        np.broadcast_to(scale, (count, len(scale))),
    )


def errors(adapted: np.ndarray, first: np.ndarray, alike_from: float = _ALIKE_FROM) -> np.ndarray:
    """The distance [D] of adapted preferences for speed [D] to the nearest that acts as the demonstrators' [D] do."""
    distance = np.abs(adapted - first)
    return np.where(first >= alike_from, np.maximum(alike_from - adapted, 0.0), distance)
