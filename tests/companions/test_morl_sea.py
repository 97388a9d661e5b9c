"""Deep-sea-treasure on a small map, against plain walks; and mo-gymnasium's own, where it is installed."""

from __future__ import annotations

import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import mmeureka

from mmeureka_jax.companions.experiment import load_experiment, read_rows
from mmeureka_jax.companions.morl import deep_sea, fronts
from mmeureka_jax.companions.morl import trajectories as data
from mmeureka_jax.companions.morl.preferences import behaviour_preferences
from mmeureka_jax.companions.morl.run import COMPANION, compute, front_numbers
from mmeureka_jax.companions.morl.settings import MorlConfig
from mmeureka_jax.companions.morl.tasks import rows_of_seeds, sea_task
from mmeureka_jax.companions.morl.train import draw
from mmeureka_jax.errors import UserError

GROUND = -10
MAP = [
    [0, 0, 0, 0],
    [1, 0, 0, 0],
    [GROUND, 3, 0, 0],
    [GROUND, GROUND, 2, 9],
]
MOVES = [(-1, 0), (1, 0), (0, -1), (0, 1)]  # up, down, left, right
FRONT = [(1, -1), (3, -3), (9, -6)]  # 2 takes 5 steps, which is never worth it


class SmallSea:
    """The rules of deep-sea-treasure on the map above."""

    def reset(self, seed=None):
        self.place = (0, 0)
        return np.array(self.place), {}

    def step(self, action):
        row = self.place[0] + MOVES[action][0]
        column = self.place[1] + MOVES[action][1]
        if 0 <= row < 4 and 0 <= column < 4 and MAP[row][column] != GROUND:
            self.place = (row, column)
        value = MAP[self.place[0]][self.place[1]]
        return np.array(self.place), np.array([value, -1.0]), value != 0, False, {}


@pytest.fixture(scope="module")
def sea():
    return deep_sea.explore(SmallSea())


def walk(environment, actions):
    """Places, and the rewards of a walk, which ends at a treasure."""
    places = [tuple(environment.reset(seed=0)[0])]
    rewards = []
    for action in actions:
        seen, reward, ended, *_ = environment.step(action)
        places.append(tuple(seen))
        rewards.append(reward)
        if ended:
            break
    return places, np.array(rewards)


def test_all_cells_are_found(sea):
    wet = {(row, column) for row in range(4) for column in range(4) if MAP[row][column] != GROUND}
    places = [tuple(place) for place in sea.cells.astype(int).tolist()]
    assert places[0] == (0, 0)
    assert sorted(places) == sorted(wet)
    assert [MAP[row][column] > 0 for row, column in places] == sea.ended.tolist()
    at_sea = SmallSea()
    for number, place in enumerate(places):
        for action in range(4):
            if sea.ended[number]:
                assert sea.following[number, action] == number
                continue
            at_sea.place = place
            seen, reward, *_ = at_sea.step(action)
            assert places[sea.following[number, action]] == tuple(seen)
            assert sea.rewards[number, action].tolist() == reward.tolist()


def test_the_front_is_that_of_all_walks(sea):
    returns = {tuple(walk(SmallSea(), actions)[1].sum(axis=0)) for actions in itertools.product(range(4), repeat=6)}
    assert fronts.undominated(np.array(sorted(returns))).tolist() == [list(map(float, point)) for point in FRONT]
    np.testing.assert_array_equal(deep_sea.front(sea), FRONT)
    assert sorted(deep_sea.treasures(sea).tolist()) == [[1, -1], [2, -5], [3, -3], [9, -6]]


def test_best_returns_lie_on_the_hull(sea):
    even = np.array([[0, 1], [0.3, 0.7], [0.5, 0.5], [1, 0]])
    for omega, found in zip(even, deep_sea.best_returns(sea, even), strict=True):
        assert omega @ found == max(omega @ np.array(point) for point in FRONT)


def test_experts_walk_shortest_ways_by_turns(sea):
    config = MorlConfig(trajectories=24, horizon=20, reward_noise=0.0)
    made = deep_sea.make_trajectories(sea, config, 3)
    returns = []
    ways = set()
    for number in range(24):
        rows = made.trajectory == number
        actions = made.actions[rows].argmax(axis=1)
        places, rewards = walk(SmallSea(), actions)
        np.testing.assert_array_equal(made.observations[rows], places[:-1])
        np.testing.assert_array_equal(made.next_observations[rows], places[1:])
        np.testing.assert_array_equal(made.rewards[rows], rewards)
        returns.append(tuple(rewards.sum(axis=0).tolist()))
        ways.add(tuple(actions.tolist()))
    goals = np.flatnonzero(sea.ended)
    assert returns == [tuple(deep_sea.treasures(sea)[number % len(goals)].tolist()) for number in range(24)]
    assert len(ways) > len(goals)  # any of the shortest
    rows = data.training_rows(made, config)
    assert (rows.not_done == 0).sum() == 24  # all have truly ended
    assert np.abs(made.actions).max() <= 1


def test_amateurs_wander_and_time_out(sea):
    config = MorlConfig(trajectories=40, horizon=7, reward_noise=0.0, behaviour="amateur")
    made = deep_sea.make_trajectories(sea, config, 0)
    lengths = np.bincount(made.trajectory)
    shortest = -deep_sea.treasures(sea)[:, 1]
    assert lengths.max() == 7
    assert lengths.sum() > shortest.sum() * 10
    same = made.trajectory[1:] == made.trajectory[:-1]
    np.testing.assert_array_equal(made.next_observations[:-1][same], made.observations[1:][same])


def test_steps_are_those_of_the_environment(sea):
    numbers = np.random.default_rng(0)
    actions = numbers.uniform(-1, 1, size=(30, 8, 4))
    task = sea_task(MorlConfig(horizon=10), sea)
    cells = task.begin(30)
    step = jax.jit(task.step)
    total = np.zeros((30, 2))
    for number in range(8):
        cells, rewards = step(cells, jnp.asarray(actions[:, number]))
        total += np.asarray(rewards)
    for number, of_episode in enumerate(actions):
        places, rewards = walk(SmallSea(), of_episode.argmax(axis=1))
        np.testing.assert_allclose(total[number], rewards.sum(axis=0))
        assert tuple(task.observe(cells)[number].astype(int).tolist()) == places[-1]
    assert 0 < sea.ended[np.asarray(cells)].sum() < 30


def test_preferences_are_of_the_steps_spared(sea):
    returns = np.array([[9.0, -6.0], [1.0, -1.0]])
    found = behaviour_preferences(returns, np.array([0, 1]), np.array([0.0, -10.0]))
    np.testing.assert_allclose(found, [[9 / 13, 4 / 13], [0.1, 0.9]])
    floors = [sea_task(MorlConfig(horizon=10, spared_steps=spared), sea).floor.tolist() for spared in (True, False)]
    assert floors == [[0, -10], [0, 0]]


def test_share_of_the_front_and_failures(sea):
    task = sea_task(MorlConfig(horizon=10), sea)
    points = np.array([[9.0, -6.0], [2.0, -5.0], [0.0, -10.0], [1.0, -1.0]])
    found = front_numbers(task, np.full((4, 2), 0.5), points, "w1")
    assert found["front_share/w1"] == pytest.approx(2 / 3)
    assert found["failed/w1"] == 0.25
    assert found["hypervolume/w1"] == 9 * 4 + 2 * (5 - 4) + 1 * (9 - 5)


TINY = dict(
    task="deep-sea-treasure-v0", hidden=(4,), trajectories=6, horizon=20, batch_size=8, updates=4, measure=1,
    preferences=5, adapt_preferences=0, discount=0.9,
)  # fmt: skip


def test_seeds_with_more_rows_do_not_change_others(sea):
    config = MorlConfig(**TINY, behaviour="amateur")
    task = sea_task(config, sea)
    rows = rows_of_seeds(config, task, [1, 3])
    alone = rows_of_seeds(config, task, [1])
    assert rows.count[0] == alone.count[0] == alone.states.shape[1]
    assert rows.count[0] < rows.count[1] == rows.states.shape[1]
    for key in jax.random.split(jax.random.key(0), 5):
        drawn = jax.jit(jax.vmap(lambda rows, key=key: draw(config, rows, key)))
        for of_both, of_one in zip(drawn(rows)[:6], drawn(alone)[:6], strict=True):
            np.testing.assert_array_equal(of_both[0], of_one[0])


def test_the_command(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(deep_sea, "open_sea", lambda name: SmallSea())
    keys = [f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in TINY.items()]
    assert mmeureka("companions", "morl", *keys, "behaviour=amateur", f"run_dir={tmp_path}", "--json") == 0
    printed = json.loads(capsys.readouterr().out)["kinds"]["run"]
    assert 0 <= printed["last front_share/w0.2"]["mean"] <= 1
    assert {"front.svg", "hypervolume.svg"} <= {path.name for path in tmp_path.iterdir()}
    assert read_rows(tmp_path / "run" / "seed0")[-1]["best/front"] == [list(point) for point in FRONT]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["horizon=19"], r"horizon must be above 19, the steps to the farthest treasure of deep-sea-treasure-v0"),
        (["preference=stored"], r"preference must be returns for made trajectories"),
        (["task=deep-sea-treasure-mirrored-v0"], r"task.*one of point_mass, deep-sea-treasure-v0"),
    ],
)
def test_bad_settings(overrides, message):
    with pytest.raises(UserError, match=message):
        load_experiment(COMPANION, None, ["task=deep-sea-treasure-v0", *overrides])


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "mo_gymnasium", None)
    with pytest.raises(UserError, match=r"needs mo-gymnasium .* pip install 'mmeureka-jax\[morl\]', or set task="):
        compute(MorlConfig(**TINY), [0], lambda units: None)


def test_data_of_the_other_task_are_refused(sea, tmp_path):
    file = tmp_path / "a.npz"
    data.write_trajectories(file, data.make_trajectories(MorlConfig(trajectories=2, horizon=3), 2, 0))
    with pytest.raises(UserError, match=r"'observations': 1 numbers in a row; .* on deep-sea-treasure, which has 2"):
        rows_of_seeds(MorlConfig(data=str(file)), sea_task(MorlConfig(), sea), [0])


NAMES = ["deep-sea-treasure-v0", "deep-sea-treasure-concave-v0"]


@pytest.mark.parametrize("name", NAMES)
def test_the_environment_and_its_own_front(name):
    pytest.importorskip("mo_gymnasium")
    environment = deep_sea.open_sea(name)
    found = deep_sea.explore(environment)
    np.testing.assert_allclose(deep_sea.front(found), environment.unwrapped.pareto_front(gamma=1), atol=1e-4)
    assert found.ended.sum() == 10
    assert deep_sea.treasures(found)[:, 1].min() == -19
    numbers = np.random.default_rng(0)
    for _ in range(20):
        actions = numbers.choice(4, p=[0.1, 0.3, 0.1, 0.5], size=20)
        places, rewards = walk(environment, actions)
        cell = 0
        for number, action in enumerate(actions[: len(rewards)]):
            np.testing.assert_allclose(found.rewards[cell, action], rewards[number], atol=1e-4)
            cell = found.following[cell, action]
            assert tuple(found.cells[cell]) == places[number + 1]
