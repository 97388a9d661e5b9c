"""Trajectories: rows of what was seen and done, made on the point mass or read from a file without pickle.

    column             of a row                            shape in .npz; in Parquet a column of lists
    observations       the state                           [R, S]
    actions            what was done, in [-1, 1]           [R, A]
    next_observations  the state after it                  [R, S]
    rewards            of each objective                   [R, n]
    trajectory         the number of its trajectory        [R]; rows of a trajectory follow each other
    preference         the one it was made with, optional  [R, n]

Pickles are not read: opening one runs whatever code its author put there.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.morl import point_mass
from mmeureka_jax.companions.morl.preferences import behaviour_preferences
from mmeureka_jax.companions.morl.settings import PolicyConfig
from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.files import refuse_address

COLUMNS = ("observations", "actions", "next_observations", "rewards", "trajectory")
_AMATEUR_SHARE = 0.65  # steps with an action of the wrong size, and by which factors: as D4MORL's (baitingzbt/PEDA)
_AMATEUR_SCALE = (0.35, 1.65)


@dataclass(frozen=True)
class Trajectories:
    """Rows as the table above says, in float32; `preference` is None if the data tell none."""

    observations: np.ndarray
    actions: np.ndarray
    next_observations: np.ndarray
    rewards: np.ndarray
    trajectory: np.ndarray
    preference: np.ndarray | None = None


class Rows(NamedTuple):
    """What training reads, arrays of R rows: normalised states [R, S], actions [R, A], rewards [R, n], `not_done` [R]
    (0 after a true end), preferences [R, n]; mean and scale [S] of the states; the number of rows, where the last ones
    only fill up."""

    states: Any
    actions: Any
    next_states: Any
    rewards: Any
    not_done: Any
    preferences: Any
    mean: Any
    scale: Any
    count: Any = None


def take(rows: Rows, picked: Any) -> Rows:
    """The rows at some places [B]."""
    return rows._replace(**{name: getattr(rows, name)[picked] for name in Rows._fields[:6]})


def make_trajectories(config: PolicyConfig, objectives: int, seed: int) -> Trajectories:
    """Trajectories of the point mass, each after a preference of its own, uniform over the simplex."""
    numbers = np.random.default_rng(seed)
    preferences = numbers.dirichlet(np.ones(objectives), config.trajectories)
    return act_for(preferences, point_mass.best_action(preferences), config, numbers)


def act_for(
    preferences: np.ndarray,
    wanted: np.ndarray,
    config: PolicyConfig,
    numbers: np.random.Generator,
    highest: np.ndarray | None = None,
) -> Trajectories:
    """Trajectories [N·T rows] with noise around wanted actions [N], for preferences [N, n].

    Args:
        highest: [N], actions that none of a trajectory is above; default: 1.
    """
    count, objectives = preferences.shape
    shape = (count, config.horizon)
    actions = np.broadcast_to(wanted[:, None], shape)
    if config.behaviour == "amateur":
        factor = numbers.uniform(*_AMATEUR_SCALE, size=shape)
        actions = np.where(numbers.random(shape) < _AMATEUR_SHARE, actions * factor, actions)
    ceiling = np.ones((count, 1)) if highest is None else highest[:, None]
    actions = np.clip(actions + config.action_noise * numbers.normal(size=shape), -1, ceiling)
    position = np.cumsum(actions, axis=1) * point_mass.STEP_SECONDS
    before = np.concatenate([np.zeros((count, 1)), position[:, :-1]], axis=1)
    rewards = np.asarray(point_mass.rewards_of(jnp.asarray(actions[..., None]), objectives))
    rewards = rewards + config.reward_noise * numbers.normal(size=rewards.shape)
    rows = count * config.horizon
    return Trajectories(
        observations=before.reshape(rows, 1).astype(np.float32),
        actions=actions.reshape(rows, 1).astype(np.float32),
        next_observations=position.reshape(rows, 1).astype(np.float32),
        rewards=rewards.reshape(rows, objectives).astype(np.float32),
        trajectory=np.repeat(np.arange(count), config.horizon),
        preference=np.repeat(preferences, config.horizon, axis=0).astype(np.float32),
    )


def training_rows(data: Trajectories, config: PolicyConfig, floor: Any = 0.0) -> Rows:
    """States normalised by mean and standard deviation + 0.001; the end of a trajectory that is shorter than the
    horizon is a true end, and a time-out is none.

    Args:
        floor: see `behaviour_preferences`.

    Raises:
        UserError: `preference: stored`, and the data tell none.
    """
    if config.preference == "stored" and data.preference is None:
        raise UserError(f"{config.data}: no column 'preference'; add it, or set preference=returns")
    own = data.preference
    if config.preference == "returns" or own is None:
        own = behaviour_preferences(data.rewards, data.trajectory, floor)
    mean = data.observations.mean(axis=0)
    scale = data.observations.std(axis=0) + 1e-3
    _, place, lengths = np.unique(data.trajectory, return_inverse=True, return_counts=True)
    last = np.append(data.trajectory[1:] != data.trajectory[:-1], True)
    done = last & (lengths[place] < config.horizon)
    arrays = (
        (data.observations - mean) / scale,
        data.actions,
        (data.next_observations - mean) / scale,
        data.rewards,
        1.0 - done,
        own,
        mean,
        scale,
    )
    return Rows(*(np.asarray(array, np.float32) for array in arrays))


def write_trajectories(file: Path, data: Trajectories) -> None:
    """Writes an .npz that `read_trajectories` reads."""
    arrays = {name: getattr(data, name) for name in (*COLUMNS, "preference") if getattr(data, name) is not None}
    np.savez_compressed(file, **arrays)


def read_trajectories(file: Path) -> Trajectories:
    """Reads an .npz or Parquet file.

    Raises:
        UserError: it is none, or a column or row is not what the table says.
    """
    refuse_address("data", file)
    if file.suffix not in (".npz", ".parquet"):
        raise UserError(
            f"{file}: trajectories are read from .npz and .parquet files; see 'Data from elsewhere' in "
            "docs/companions/morl.md for how to convert others, pickles among them"
        )
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    columns = _read_npz(file) if file.suffix == ".npz" else _read_parquet(file)
    for name in COLUMNS:
        if name not in columns:
            raise UserError(f"{file}: no column {name!r}; it must have {', '.join(COLUMNS)}")
    checked = {name: _checked(file, name, column) for name, column in columns.items()}
    _check_together(file, checked)
    number = checked.pop("trajectory")[:, 0]
    starts = np.append(True, number[1:] != number[:-1])
    if len(np.unique(number)) != starts.sum():
        again = next(row for row in np.flatnonzero(starts) if number[row] in number[:row])
        raise UserError(f"{file} row {again}: trajectory {number[again]:g} begins again; sort rows by trajectory")
    return Trajectories(trajectory=number.astype(np.int64), **{k: v.astype(np.float32) for k, v in checked.items()})


def _read_npz(file: Path) -> dict[str, Any]:
    if not zipfile.is_zipfile(file):
        raise UserError(f"{file}: not a readable .npz file; write it with numpy.savez_compressed")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if name in (*COLUMNS, "preference")}
    except ValueError as error:
        if "pickle" in str(error):
            raise UserError(
                f"{file}: it holds Python objects (pickle), which are not read; save arrays of numbers"
            ) from None
        raise UserError(f"{file}: not a readable .npz file ({brief(error)})") from None
    except Exception as error:  # zipfile and zlib raise their own kinds
        raise UserError(f"{file}: not a readable .npz file ({brief(error)})") from None


def _read_parquet(file: Path) -> dict[str, Any]:
    import pyarrow.parquet as parquet

    try:
        names = [name for name in parquet.read_schema(file).names if name in (*COLUMNS, "preference")]
        table = parquet.read_table(file, columns=names, use_threads=False)
        return {name: table[name].to_pylist() for name in names}
    except Exception as error:  # pyarrow raises its own kinds and OSError
        raise UserError(f"{file}: not a readable Parquet file ({brief(error)})") from None


def _checked(file: Path, name: str, column: Any) -> np.ndarray:
    """A column as [R, width] in float64. Raises UserError with the row of what is not finite or not of that width."""
    wanted = "a number" if name == "trajectory" else "numbers, as many in each row"
    try:
        array = np.asarray(column, np.float64)
    except (TypeError, ValueError):
        row = next((row for row, value in enumerate(column) if not _is_like(value, column[0])), 0)
        raise UserError(f"{file} row {row}, column {name!r}: must be {wanted}; got {column[row]!r:.80}") from None
    if array.ndim != (1 if name == "trajectory" else 2) or array.size == 0:
        raise UserError(f"{file}, column {name!r}: must be {wanted}; got the shape {list(array.shape)}")
    array = array.reshape(len(array), -1)
    bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
    if len(bad):
        raise UserError(f"{file} row {bad[0]}, column {name!r}: must be finite; got {array[bad[0]].tolist()}")
    return array


def _is_like(value: Any, first: Any) -> bool:
    """Whether a row's value is of numbers, and as long as the first row's."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return False
    return np.shape(array) == np.shape(first)


def _check_together(file: Path, columns: dict[str, np.ndarray]) -> None:
    rows = len(columns["observations"])
    for name, column in columns.items():
        if len(column) != rows:
            raise UserError(f"{file}, column {name!r}: {len(column)} rows, and observations has {rows}")
    for name, like in (("next_observations", "observations"), ("preference", "rewards")):
        if name in columns and columns[name].shape != columns[like].shape:
            raise UserError(
                f"{file}, column {name!r}: {columns[name].shape[1]} numbers in a row, and {like} has "
                f"{columns[like].shape[1]}"
            )
    outside = np.flatnonzero((np.abs(columns["actions"]) > 1 + 1e-6).any(axis=1))
    if len(outside):
        row = outside[0]
        raise UserError(
            f"{file} row {row}, column 'actions': must lie in [-1, 1]; got {columns['actions'][row].tolist()}; "
            "divide actions by their largest size"
        )
