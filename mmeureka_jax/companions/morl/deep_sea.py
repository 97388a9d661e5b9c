"""Deep-sea-treasure: a submarine that gains more the longer it travels; rewards (treasure, -1 for each step).

    . . . .      . water, T a treasure, where an episode ends, # the ground
    T . . .      actions: up, down, left, right
    # T . .
    # # T T

The environment is mo-gymnasium's, and is imported only when it is asked for. All its cells are found by trying every
action in each, from its start on; episodes then run on what was found, as arrays. Policies act with a vector of four
numbers in [-1, 1], of which the environment takes the place of the largest (ours: PRMORL's actions are continuous).
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.morl.fronts import undominated
from mmeureka_jax.companions.morl.settings import PolicyConfig
from mmeureka_jax.companions.morl.trajectories import Trajectories
from mmeureka_jax.errors import UserError

ACTIONS = 4
OBJECTIVES = ("treasure", "time")
_AMATEUR_SHARE = 0.2  # steps of amateurs that are random (ours)


@dataclass(frozen=True)
class Sea:
    """An environment as arrays over its C cells, of which the first is the start.

    Attributes:
        cells: [C, 2], row and column.
        following: [C, 4], the cell that each action leads to; itself where an episode has ended.
        rewards: [C, 4, 2]; 0 where an episode has ended.
        ended: [C], whether an episode ends there: at a treasure.
    """

    cells: np.ndarray
    following: np.ndarray
    rewards: np.ndarray
    ended: np.ndarray


def open_sea(name: str) -> Any:
    """The environment of mo-gymnasium with this name.

    Raises:
        UserError: mo-gymnasium is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # which would be printed where --json prints
    try:
        import mo_gymnasium

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*precision lowered by casting", UserWarning)  # of its own reward space
            return mo_gymnasium.make(name)
    except ImportError as error:  # of itself, or of what it needs for this environment
        raise UserError(
            f"task {name} needs mo-gymnasium ({error}); install it with pip install 'mmeureka-jax[morl]', "
            "or set task=point_mass"
        ) from None


def explore(environment: Any) -> Sea:
    """All cells that can be reached in an environment without chance, which has gymnasium's `reset` and `step`."""

    def after(way: tuple[int, ...]) -> tuple[tuple[int, ...], np.ndarray, bool]:
        seen, _ = environment.reset(seed=0)
        reward = np.zeros(len(OBJECTIVES))
        ended = False
        for action in way:
            seen, reward, ended, *_ = environment.step(action)
        return tuple(int(number) for number in seen), np.round(np.asarray(reward, float), 4), bool(ended)

    begin, _, _ = after(())
    ways: dict[tuple[int, ...], tuple[int, ...]] = {begin: ()}
    places = [begin]
    ends: set[tuple[int, ...]] = set()
    found: list[list[tuple[tuple[int, ...], np.ndarray]]] = []
    for place in places:  # which grows
        found.append([])
        for action in range(ACTIONS):
            if place in ends:
                found[-1].append((place, np.zeros(len(OBJECTIVES))))
                continue
            way = (*ways[place], action)
            reached, reward, ended = after(way)
            found[-1].append((reached, reward))
            if ended:
                ends.add(reached)
            if reached not in ways:
                ways[reached] = way
                places.append(reached)
    number = {place: at for at, place in enumerate(places)}
    return Sea(
        cells=np.array(places, float),
        following=np.array([[number[reached] for reached, _ in of_cell] for of_cell in found]),
        rewards=np.array([[reward for _, reward in of_cell] for of_cell in found]),
        ended=np.array([place in ends for place in places]),
    )


def distances(sea: Sea, goal: int) -> np.ndarray:
    """Steps [C] from each cell to a goal, which cannot lead past another treasure; infinite where there is no way."""
    steps = np.full(len(sea.cells), np.inf)
    steps[goal] = 0
    for _ in sea.cells:
        steps = np.minimum(steps, 1 + steps[sea.following].min(axis=1))
    return steps


def treasures(sea: Sea) -> np.ndarray:
    """Returns [G, 2] of the shortest ways to each treasure, in the order of `np.flatnonzero(sea.ended)`."""
    found = []
    for goal in np.flatnonzero(sea.ended).tolist():
        value = sea.rewards[sea.following == goal][:, 0].max()
        found.append([value, -distances(sea, goal)[0]])
    return np.array(found)


def front(sea: Sea) -> np.ndarray:
    """The Pareto front [M, 2] of returns without discount, by treasure, rising."""
    return undominated(treasures(sea))


def best_returns(sea: Sea, preferences: np.ndarray) -> np.ndarray:
    """Returns [P, 2] of the best policy for each preference [P, 2], which lie on the front's convex hull."""
    points = front(sea)
    return points[(preferences @ points.T).argmax(axis=1)]


def make_trajectories(sea: Sea, config: PolicyConfig, seed: int) -> Trajectories:
    """Trajectories to treasures by turns, by shortest ways, any of them; a share of an amateur's steps is random.

    An action is 1 at its place and -1 elsewhere, with `action_noise`; rewards have `reward_noise`. A trajectory ends at
    a treasure, also if it is another one, or after `horizon` steps.
    """
    numbers = np.random.default_rng(seed)
    goals = np.flatnonzero(sea.ended).tolist()
    far = {goal: distances(sea, goal) for goal in goals}
    share = _AMATEUR_SHARE if config.behaviour == "amateur" else 0.0
    before: list[int] = []
    chosen: list[int] = []
    trajectory: list[int] = []
    for number in range(config.trajectories):
        steps = far[goals[number % len(goals)]]
        cell = 0
        for _ in range(config.horizon):
            nearer = np.flatnonzero(steps[sea.following[cell]] < steps[cell])
            options = np.arange(ACTIONS) if numbers.random() < share else nearer
            action = int(numbers.choice(options))
            before.append(cell)
            chosen.append(action)
            trajectory.append(number)
            cell = int(sea.following[cell, action])
            if sea.ended[cell]:
                break
    actions = 2 * np.eye(ACTIONS)[chosen] - 1
    rewards = sea.rewards[before, chosen]
    return Trajectories(
        observations=sea.cells[before].astype(np.float32),
        actions=np.clip(actions + config.action_noise * numbers.normal(size=actions.shape), -1, 1).astype(np.float32),
        next_observations=sea.cells[sea.following[before, chosen]].astype(np.float32),
        rewards=(rewards + config.reward_noise * numbers.normal(size=rewards.shape)).astype(np.float32),
        trajectory=np.array(trajectory),
    )


def step(sea: Sea, cell: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """From cells [P] to where actions [P, 4] lead, with rewards [P, 2], which are 0 when an episode has ended."""
    action = jnp.argmax(actions, axis=-1)
    return jnp.asarray(sea.following)[cell, action], jnp.asarray(sea.rewards, jnp.float32)[cell, action]
