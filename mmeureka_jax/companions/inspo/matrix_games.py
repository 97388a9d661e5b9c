"""Games of one step: XOR, and a stand-in for the paper's M-NE game.

      XOR      A    B                 M-NE stand-in    0    1    2
        A      0    1                       0          5  -20  -20
        B      1   -2                       1        -20   10  -20
                                            2        -20  -20   20

Agents that do not coordinate on one of AB and BA get AA or BB: what XOR is for. Payoffs and AlberDICE's counts are
those of dematsunaga/alberdice @4d69f0e (marl_env/marl/env/mmdp_game_1.py and its data files); whether InSPO's paper has
the same is not verified. The payoffs and data of the paper's M-NE game were not found: the stand-in has three
equilibria as well, and data that hold mostly the worst.
"""

from __future__ import annotations

import math

import numpy as np

from mmeureka_jax.companions.inspo.game import Game
from mmeureka_jax.companions.inspo.settings import InspoConfig

PAYOFFS = {
    "xor": (0.0, 1.0, 1.0, -2.0),
    "m_ne": (5.0, -20.0, -20.0, -20.0, 10.0, -20.0, -20.0, -20.0, 20.0),
}
# How often each joint action is in the data, in the order of the payoffs.
COUNTS = {
    "ab": (0.0, 100.0, 0.0, 0.0),
    "ab_ba": (0.0, 1.0, 1.0, 0.0),
    "aa_ab_ba": (1.0, 1.0, 1.0, 0.0),
    "all": (1.0, 1.0, 1.0, 1.0),
    "alberdice_02_20": (0.0, 53.0, 47.0, 0.0),
    "alberdice_00_02_20": (26.0, 42.0, 32.0, 0.0),
    "alberdice_random": (31.0, 23.0, 19.0, 27.0),
    "balanced": (1.0,) * 9,
    "imbalanced": (100 / 3, 4.0, 1.0, 4.0, 4.0, 1.0, 1.0, 1.0, 1.0),
}


def matrix_game(payoffs: np.ndarray) -> Game:
    """The game of one step with these payoffs `[A, A]`."""
    reward = payoffs[None]
    return Game(
        reward=reward,
        following=np.zeros(reward.shape, int),
        done=np.ones(reward.shape, bool),
        features=np.ones((1, 1)),
        start=0,
    )


def configured_matrix_game(config: InspoConfig) -> tuple[Game, np.ndarray]:
    """The matrix game of a config, and the counts of its data `[1, A, A]`."""
    payoffs = np.array(config.payoffs or PAYOFFS[config.game])
    counts = np.array(config.counts or COUNTS[config.data])
    actions = math.isqrt(len(payoffs))
    return matrix_game(payoffs.reshape(actions, actions)), counts.reshape(1, actions, actions)
