"""What the rest needs to know of a task: its sizes, how trajectories are made, how episodes go, and what is best.

There are two, the point mass and deep-sea-treasure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.morl import deep_sea, point_mass, trajectories
from mmeureka_jax.companions.morl.settings import MorlConfig, PolicyConfig
from mmeureka_jax.companions.morl.trajectories import Trajectories
from mmeureka_jax.errors import UserError

State = Any  # of P episodes, as the task has it


@dataclass(frozen=True)
class Task:
    """A task with n objectives, states of S numbers and actions of A.

    Attributes:
        name: for messages.
        objectives: what each objective is called.
        reference: [n], a return that all are better than: what hypervolumes are measured from.
        floor: [n], what is taken from returns before they tell a preference.
        make: trajectories of a seed.
        begin: the state of so many episodes at their start.
        observe: what policies see of it, [P, S].
        step: (state, actions [P, A] in [-1, 1]) -> (state, rewards [P, n]).
        best: returns [P, n] of the best policy for each preference [P, n].
        front: [M, n], all points of its Pareto front; None: they are infinitely many.
    """

    name: str
    state_size: int
    action_size: int
    objectives: tuple[str, ...]
    reference: np.ndarray
    floor: np.ndarray
    make: Callable[[int], Trajectories]
    begin: Callable[[int], State]
    observe: Callable[[State], jax.Array]
    step: Callable[[State, jax.Array], tuple[State, jax.Array]]
    best: Callable[[np.ndarray], np.ndarray]
    front: np.ndarray | None = None


def task_of(config: MorlConfig) -> Task:
    """The task that a config names.

    Raises:
        UserError: it is deep-sea-treasure, and mo-gymnasium is not installed.
    """
    if config.task == "point_mass":
        return point_mass_task(config, 2)
    return sea_task(config, deep_sea.explore(deep_sea.open_sea(config.task)))


def point_mass_task(config: PolicyConfig, objectives: int) -> Task:
    """The point mass, with 2 or 3 objectives; a state is the positions [P, 1]."""

    def step(position: jax.Array, actions: jax.Array) -> tuple[jax.Array, jax.Array]:
        return position + point_mass.STEP_SECONDS * actions, point_mass.rewards_of(actions, objectives)

    return Task(
        name="the point mass",
        state_size=point_mass.STATE_SIZE,
        action_size=point_mass.ACTION_SIZE,
        objectives=("speed", "energy", "slowness")[:objectives],
        reference=np.zeros(objectives),
        floor=np.zeros(objectives),
        make=lambda seed: trajectories.make_trajectories(config, objectives, seed),
        begin=lambda count: jnp.zeros((count, point_mass.STATE_SIZE)),
        observe=lambda position: position,
        step=step,
        best=lambda preferences: point_mass.best_front(preferences, config.horizon),
    )


def sea_task(config: MorlConfig, sea: deep_sea.Sea) -> Task:
    """Deep-sea-treasure; a state is the cells [P], and the reference is no treasure in all the time there is."""
    reference = np.array([0.0, -config.horizon])
    return Task(
        name="deep-sea-treasure",
        state_size=sea.cells.shape[1],
        action_size=deep_sea.ACTIONS,
        objectives=deep_sea.OBJECTIVES,
        reference=reference,
        floor=reference if config.spared_steps else np.zeros(2),
        make=lambda seed: deep_sea.make_trajectories(sea, config, seed),
        begin=lambda count: jnp.zeros(count, int),
        observe=lambda cell: jnp.asarray(sea.cells, jnp.float32)[cell],
        step=lambda cell, actions: deep_sea.step(sea, cell, actions),
        best=lambda preferences: deep_sea.best_returns(sea, preferences),
        front=deep_sea.front(sea),
    )


def rows_of_seeds(config: PolicyConfig, task: Task, seeds: list[int]) -> trajectories.Rows:
    """The rows of each seed, [K, R, ...]: made by the seed, or the same from a file. Where seeds have made different
    numbers of rows, the others are filled up to the most; `count` [K] tells how many count."""
    if config.data is not None:
        data = trajectories.read_trajectories(Path(config.data))
        _check_fits(Path(config.data), data, task)
        rows = [trajectories.training_rows(data, config, task.floor)] * len(seeds)
    else:
        rows = [trajectories.training_rows(task.make(seed), config, task.floor) for seed in seeds]
    counts = [len(of_seed.states) for of_seed in rows]
    most = np.arange(max(counts))
    filled = [trajectories.take(of_seed, most % count) for of_seed, count in zip(rows, counts, strict=True)]
    stacked: trajectories.Rows = jax.tree.map(lambda *arrays: np.stack(arrays), *filled)
    return stacked._replace(count=np.array(counts))


def _check_fits(file: Path, data: Trajectories, task: Task) -> None:
    """Raises a UserError for data of another task than that where policies are measured."""
    sizes = {"observations": task.state_size, "actions": task.action_size, "rewards": len(task.objectives)}
    for name, size in sizes.items():
        found = getattr(data, name).shape[1]
        if found != size:
            raise UserError(
                f"{file}, column {name!r}: {found} numbers in a row; policies are measured on {task.name}, which "
                f"has {size}"
            )
