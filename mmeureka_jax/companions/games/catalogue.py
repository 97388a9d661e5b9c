"""Games by their names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmeureka_jax.companions.games.kuhn import KuhnState
from mmeureka_jax.companions.games.leduc import LeducState
from mmeureka_jax.companions.games.matrix import BIASED_ROCK_PAPER_SCISSORS, matrix_game, random_utilities
from mmeureka_jax.companions.games.openspiel import BUILT_IN, load_spiel_game, spiel_game
from mmeureka_jax.companions.games.trees import Game, build


def open_games(
    name: str, seeds: Sequence[int], actions: int = 25, perturbation: float = 0.0
) -> tuple[Game, np.ndarray]:
    """A game, and its payoffs by seed.

    Args:
        actions: of each player in the game random, the only one that differs between seeds by itself.
        perturbation: payoffs are multiplied by 1 + this * (a normal number), drawn with the seed.

    Returns:
        The game; and its payoffs [seeds, N], or [1, N] where they are the same for all seeds.

    Raises:
        UserError: no such game, or OpenSpiel is needed and not installed.
    """
    games = [open_game(name, seed, actions) for seed in (seeds if name == "random" else seeds[:1])]
    game = games[0]
    payoffs = np.stack([of_seed.payoffs for of_seed in games])
    if perturbation:
        factors = [1 + perturbation * np.random.RandomState(seed).randn(len(game.payoffs)) for seed in seeds]
        payoffs = payoffs * np.stack(factors)
    return game, payoffs


def check_game(name: str) -> None:
    """Raises a UserError for a game that is not there, without walking over its tree."""
    if name not in BUILT_IN:
        load_spiel_game(name)


def open_game(name: str, seed: int = 0, actions: int = 25) -> Game:
    """One game; arguments and errors as `open_games`."""
    if name == "kuhn":
        return build(name, KuhnState())
    if name == "leduc":
        return build(name, LeducState())
    if name == "rps":
        return matrix_game(BIASED_ROCK_PAPER_SCISSORS)
    if name == "random":
        return matrix_game(random_utilities(seed, actions))
    return spiel_game(name)
