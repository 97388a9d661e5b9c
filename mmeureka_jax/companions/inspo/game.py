"""A game of two agents with one reward, as tables over states and joint actions; and what data of it show.

    reward [S, A, A]   following [S, A, A]   done [S, A, A]        axis 1: the first agent's action, axis 2: the other's

A matrix game is one state in which every joint action ends the game.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Game(NamedTuple):
    """A deterministic game.

    Attributes:
        reward: of both agents, `[S, A, A]`.
        following: the state after a joint action, `[S, A, A]`.
        done: whether the game ends with it, `[S, A, A]`.
        features: what networks see of a state, `[S, F]`.
        start: the first state.
    """

    reward: np.ndarray
    following: np.ndarray
    done: np.ndarray
    features: np.ndarray
    start: int


class Data(NamedTuple):
    """What has been seen of a game. Cells that were not seen hold nothing: they cannot leak into learning.

    Attributes:
        counts: how often each joint action was taken, `[S, A, A]`.
        reward, following, done: of the game where it was taken, else 0, `[S, A, A]`.
        features: of every state, `[S, F]`.
    """

    counts: jax.Array
    reward: jax.Array
    following: jax.Array
    done: jax.Array
    features: jax.Array


def seen(game: Game, counts: np.ndarray) -> Data:
    """The data of a game in which joint actions were taken so many times."""
    known = counts > 0
    return Data(
        counts=jnp.asarray(counts, jnp.float32),
        reward=jnp.asarray(np.where(known, game.reward, 0), jnp.float32),
        following=jnp.asarray(np.where(known, game.following, 0), jnp.int32),
        done=jnp.asarray(np.where(known, game.done, False)),
        features=jnp.asarray(game.features, jnp.float32),
    )
