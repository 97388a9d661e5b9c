"""Bridge: two agents that stand on a bridge for one must each get to the side behind the other.

    . . # # . .       1 and 2: where the agents start        cells are (row, column), the upper left one (0, 0)
    . . 1 2 . .       #: water                               the first agent's goal is (2, 5), the other's (0, 0)
    . . # # . .

So one of them has to step back and let the other pass first; if both do, time is lost, and if none does, nobody gets
anywhere. Rules are those of dematsunaga/alberdice @4d69f0e (marl_env/marl/env/bridge.py, map 4): a move off the grid
or into water fails. Where both want one cell, the first agent gets it; if two want to swap, neither moves; an agent
may always enter its own goal, stays there, and is then in nobody's way. The reward is -0.1 times the mean of the
agents' Euclidean distances to their goals after the move, 0 where both are there, which ends the game. Their code
makes the reward of the last step before the limit 0 too; here that step is like any other.
"""

from __future__ import annotations

import itertools

import numpy as np

from mmeureka_jax.companions.inspo.game import Game

MAP = ("..##..", "......", "..##..")
STARTS = ((1, 2), (1, 3))
GOALS = ((2, 5), (0, 0))
MOVES = ((0, 0), (-1, 0), (1, 0), (0, 1), (0, -1))  # stay, up, down, right, left
OPTIMUM = -1.2354525995574734  # by value iteration; a test computes it

Cell = tuple[int, int]
CELLS = tuple((row, column) for row, line in enumerate(MAP) for column, kind in enumerate(line) if kind == ".")
STATES = tuple(itertools.product(CELLS, CELLS))


def moved(cells: tuple[Cell, Cell], actions: tuple[int, int]) -> tuple[Cell, Cell]:
    """Where the agents are after their actions."""
    first = cells[0] if cells[0] == GOALS[0] else _target(cells[0], actions[0])
    second = cells[1] if cells[1] == GOALS[1] else _target(cells[1], actions[1])
    if cells[0] == GOALS[0] or cells[1] == GOALS[1]:  # who has arrived is in nobody's way
        return first, second
    if first == cells[1] and second == cells[0] and first != GOALS[0]:
        return cells
    if first == second:
        if first == cells[1]:  # the second stays
            return (first if first == GOALS[0] else cells[0]), second
        return first, (second if second == GOALS[1] and first == cells[0] else cells[1])
    return first, second


def reward_of(cells: tuple[Cell, Cell]) -> float:
    """Of coming to these cells."""
    return -0.1 * float(np.linalg.norm(np.subtract(cells, GOALS), axis=1).mean())


def bridge_game() -> Game:
    """The game as tables, with 14 * 14 states and 5 actions."""
    index = {state: number for number, state in enumerate(STATES)}
    shape = (len(STATES), len(MOVES), len(MOVES))
    reward = np.zeros(shape)
    following = np.zeros(shape, int)
    for state, (first, second) in itertools.product(STATES, itertools.product(range(len(MOVES)), repeat=2)):
        cells = moved(state, (first, second))
        where = (index[state], first, second)
        following[where] = index[cells]
        reward[where] = reward_of(cells)
    return Game(
        reward=reward,
        following=following,
        done=following == index[GOALS],
        features=_features(),
        start=index[STARTS],
    )


def _target(cell: Cell, action: int) -> Cell:
    target = (cell[0] + MOVES[action][0], cell[1] + MOVES[action][1])
    return target if target in CELLS else cell


def _features() -> np.ndarray:
    """Each agent's cell and goal as AlberDICE's observation has them, scaled to -1 ... 1, `[S, 8]`."""
    size = np.array([len(MAP) - 1, len(MAP[0]) - 1])
    # each agent's cell, then its goal
    rows = [np.stack([cells, GOALS], axis=1) / size for cells in STATES]
    return 2 * np.stack(rows).reshape(len(STATES), -1) - 1
