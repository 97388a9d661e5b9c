"""The data that agents learn from: of matrix games their counts, of Bridge episodes that are drawn here.

Bridge's `mix` is made by what is known of AlberDICE's set of this name (dematsunaga/alberdice): 500 episodes of 8 steps
with returns of about -1.24, -1.26 and -1.29, each a third of them, and 500 of random actions. Here an episode of the
first part is drawn among all of 8 steps with one of these returns: which return, and then which episode, uniformly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.inspo.bridge import bridge_game
from mmeureka_jax.companions.inspo.game import Data, Game, seen
from mmeureka_jax.companions.inspo.matrix_games import configured_matrix_game
from mmeureka_jax.companions.inspo.settings import InspoConfig

RETURNS = (-1.23545, -1.25906, -1.29040)  # of the shortest episodes in the data
Episode = tuple[float, list[tuple[int, int, int]]]  # return; state and both actions of each step


def configured_data(config: InspoConfig, seeds: Sequence[int]) -> tuple[Game, Data]:
    """The game, and the data of each seed: arrays `[seeds, ...]`."""
    if config.game != "bridge":
        game, counts = configured_matrix_game(config)
        sets = [seen(game, counts)] * len(seeds)
    else:
        game = bridge_game()
        shortest = list(shortest_episodes(game)) if config.data != "random" else []
        sets = [seen(game, _counts(game, bridge_episodes(game, shortest, config, seed))) for seed in seeds]
    return game, jax.tree.map(lambda *arrays: jnp.stack(arrays), *sets)


def bridge_episodes(game: Game, shortest: Sequence[Episode], config: InspoConfig, seed: int) -> list[Episode]:
    """The episodes of one data set."""
    rng = np.random.default_rng([seed, 2412])
    episodes = []
    if config.data in ("mix", "optimal"):
        classes = [[episode for episode in shortest if abs(episode[0] - value) < 1e-4] for value in RETURNS]
        for kind in rng.integers(len(classes), size=config.episodes):
            episodes.append(classes[kind][rng.integers(len(classes[kind]))])
    if config.data in ("mix", "random"):
        episodes += [random_episode(game, config.horizon, rng) for _ in range(config.episodes)]
    return episodes


def random_episode(game: Game, horizon: int, rng: np.random.Generator) -> Episode:
    """An episode in which both agents draw their actions uniformly, cut off after `horizon` steps."""
    steps: list[tuple[int, int, int]] = []
    state = game.start
    total = 0.0
    for first, second in rng.integers(game.reward.shape[1], size=(horizon, 2)):
        where = (state, int(first), int(second))
        steps.append(where)
        total += float(game.reward[where])
        if game.done[where]:
            break
        state = int(game.following[where])
    return total, steps


def shortest_episodes(game: Game) -> Iterator[Episode]:
    """All episodes that end the game in as few steps as it can be ended in."""
    left = steps_to_end(game)

    def continued(state: int, total: float, steps: list[tuple[int, int, int]]) -> Iterator[Episode]:
        to_go = np.where(game.done[state], 0, left[game.following[state]])
        for first, second in np.argwhere(to_go == left[state] - 1).tolist():
            where = (state, first, second)
            reward = total + float(game.reward[where])
            if game.done[where]:
                yield reward, [*steps, where]
            else:
                yield from continued(int(game.following[where]), reward, [*steps, where])

    yield from continued(game.start, 0.0, [])


def steps_to_end(game: Game) -> np.ndarray:
    """The fewest steps in which the game can be ended from each state, `[S]`; infinite where it cannot."""
    left = np.full(len(game.reward), np.inf)
    for _ in range(len(left)):
        left = 1 + np.where(game.done, 0, left[game.following]).min((1, 2))
    return left


def _counts(game: Game, episodes: Sequence[Episode]) -> np.ndarray:
    counts = np.zeros(game.reward.shape)
    rows = np.array([step for _, steps in episodes for step in steps])
    np.add.at(counts, tuple(rows.T), 1)
    return counts
