"""Games with one decision for each player: biased rock-paper-scissors, and random ones."""

from __future__ import annotations

import numpy as np

from mmeureka_jax.companions.games.trees import Game, Player

# Utilities of player 1, arXiv 2501.00533's published code (kkkaiaiai/NM-Method @6e315a0).
BIASED_ROCK_PAPER_SCISSORS = np.array([[0.0, -1, 3], [1, 0, -1], [-3, 1, 0]])


def matrix_game(utilities: np.ndarray) -> Game:
    """A game from the utilities of player 1, [A, B]: one information set for each player."""
    rows, columns = np.indices(utilities.shape)
    players = tuple(_one_decision(count) for count in utilities.shape)
    return Game(
        players=(players[0], players[1]),
        rows=1 + rows.ravel(),
        columns=1 + columns.ravel(),
        payoffs=utilities.astype(np.float64).ravel(),
    )


def random_utilities(seed: int, actions: int) -> np.ndarray:
    """Utilities of player 1 in a random game, [actions, actions], from 0 to 1.

    An antisymmetric normal matrix with a strength for each action, W - W' over 2 plus s - s', scaled to its range: a
    form that stands, commented out, in the published code (kkkaiaiai/NM-Method @6e315a0). Numbers are those of numpy's
    RandomState.
    """
    random = np.random.RandomState(seed)
    weights = random.randn(actions, actions)
    strengths = random.randn(actions)
    utilities = (weights - weights.T) / 2 + strengths[:, None] - strengths[None, :]
    spread = np.ptp(utilities)
    return (utilities - utilities.min()) / spread if spread else np.zeros_like(utilities)


def _one_decision(actions: int) -> Player:
    return Player(
        legal=np.ones((1, actions), bool),
        parents=np.zeros(1, int),
        histories=np.ones(1, int),
        levels=((0, 1),),
        keys=("",),
        actions=(tuple(range(actions)),),
    )
