"""A point mass with two objectives, speed and energy, whose Pareto front is known in closed form.

    x <- x + dt·a,  a in [-1, 1];   rewards of a step: (a, 1 - a²), and 1 - |a| where there is a third, slowness

What is best does not depend on the state: for the preference ω it is a* = clip((ω1 - ω3) / (2 ω2), 0, 1), and the front
of an episode of T steps is (T a, T (1 - a²)) for a in [0, 1]. Its hypervolume at the reference 0 is 2/3 T², which no
finite set of points reaches. The task is ours; PRMORL's and PDOA's are robots of MuJoCo.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

STEP_SECONDS = 0.1
STATE_SIZE = 1
ACTION_SIZE = 1


def rewards_of(actions: jax.Array, objectives: int) -> jax.Array:
    """Rewards [..., n] of actions [..., 1]; n is 2, or 3 with slowness."""
    a = actions[..., 0]
    return jnp.stack([a, 1 - a**2, 1 - jnp.abs(a)][:objectives], axis=-1)


def best_action(preferences: np.ndarray) -> np.ndarray:
    """The best actions [...] for preferences [..., n] (n = 2 or 3): of largest ω·reward (closed form)."""
    slow = preferences[..., 2] if preferences.shape[-1] == 3 else 0.0
    push = preferences[..., 0] - slow
    with np.errstate(divide="ignore", invalid="ignore"):
        action = push / (2 * preferences[..., 1])
    return np.clip(np.where(push <= 0, 0.0, action), 0.0, 1.0)


def even_preferences(count: int) -> np.ndarray:
    """[count, 2]: (0, 1), ..., (1, 0)."""
    first = np.linspace(0.0, 1.0, count)
    return np.stack([first, 1 - first], axis=-1)


def best_front(preferences: np.ndarray, horizon: int) -> np.ndarray:
    """Returns [P, 2] of the best policy for each preference [P, 2]."""
    action = best_action(preferences)
    return horizon * np.stack([action, 1 - action**2], axis=-1)
