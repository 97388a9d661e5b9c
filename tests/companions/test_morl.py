"""PRMORL's parts against plain loops and closed forms."""

from __future__ import annotations

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import mmeureka

from mmeureka_jax.companions.experiment import load_experiment
from mmeureka_jax.companions.morl import critic, point_mass, preferences, regularisers
from mmeureka_jax.companions.morl import trajectories as data
from mmeureka_jax.companions.morl.adaptation import adapt, exhausted_weights, log_density, surrogate, to_weight
from mmeureka_jax.companions.morl.fronts import hypervolume, sparsity, utility
from mmeureka_jax.companions.morl.run import COMPANION, compute
from mmeureka_jax.companions.morl.settings import MorlConfig
from mmeureka_jax.companions.morl.train import follow, make_trainer, start
from mmeureka_jax.errors import UserError

NUMBERS = np.random.default_rng(0)


def test_hypervolume_of_whole_numbers_by_counting_squares():
    for _ in range(30):
        points = NUMBERS.integers(-2, 7, size=(6, 2))
        squares = [any(x < a and y < b for a, b in points) for x, y in itertools.product(range(7), repeat=2)]
        assert hypervolume(points.astype(float)) == sum(squares)


def test_figures_of_the_best_front():
    even = point_mass.even_preferences(101)
    front = point_mass.best_front(even, 50)
    assert hypervolume(front) == pytest.approx(1632.09, abs=0.005)
    assert sparsity(front) == pytest.approx(2.3204, abs=5e-5)
    assert len(np.unique(front.round(9), axis=0)) == 68
    assert utility(even, front) == pytest.approx(38.85, abs=0.005)
    fine = point_mass.best_front(point_mass.even_preferences(100_001), 50)
    assert hypervolume(fine) == pytest.approx(2500 * 2 / 3, abs=0.05)


def test_sparsity_leaves_out_what_is_worse():
    points = np.array([[0.0, 3.0], [1.0, 1.0], [3.0, 0.0], [0.5, 0.5], [1.0, 1.0]])
    assert sparsity(points) == ((1 + 4) + (4 + 1)) / 2
    assert sparsity(points[:1]) == 0.0


def test_best_action_is_the_best_of_many():
    many = np.linspace(-1, 1, 2001)
    for omega in NUMBERS.dirichlet(np.ones(3), 20):
        of_all = np.stack([many, 1 - many**2, 1 - np.abs(many)], axis=1) @ omega
        a = point_mass.best_action(omega)
        assert a * omega[0] + (1 - a**2) * omega[1] + (1 - a) * omega[2] == pytest.approx(of_all.max(), abs=1e-6)


def test_behaviour_preference_is_the_normalised_return():
    rewards = NUMBERS.normal(size=(7, 2))
    rewards[5:] = 0
    trajectory = np.array([4, 4, 4, 2, 2, 9, 9])
    found = preferences.behaviour_preferences(rewards, trajectory)
    for row, number in enumerate(trajectory):
        total = sum(rewards[other] for other in range(7) if trajectory[other] == number)
        expected = [0.5, 0.5] if number == 9 else total / (abs(total[0]) + abs(total[1]))
        np.testing.assert_allclose(found[row], expected)


def cosine(a, b):
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("theta", [0.25, 0.5, 0.9])
def test_turned_preference_solves_the_equation_of_the_angle(theta):
    for _ in range(10):
        own = NUMBERS.dirichlet(np.ones(3))
        towards = NUMBERS.normal(size=3)
        angle = math.acos(cosine(own, towards))
        unit = own / np.linalg.norm(own)
        low = 0.0
        high = 1e6  # k of unit + k·towards: its angle grows with k
        for _ in range(100):
            k = (low + high) / 2
            if cosine(unit, unit + k * towards) > math.cos(theta * angle):
                low = k
            else:
                high = k
        expected = np.abs(unit + low * towards)
        found = preferences.turned(jnp.asarray(own[None]), jnp.asarray(towards[None]), theta)[0]
        np.testing.assert_allclose(found, expected / expected.sum(), atol=1e-4)


def test_the_ends_of_the_filter():
    own = jnp.array([[0.3, 0.7]])
    towards = jnp.array([[-3.0, 1.0]])
    np.testing.assert_allclose(preferences.turned(own, towards, 0.0), own, rtol=1e-6)
    np.testing.assert_allclose(preferences.turned(own, towards, 1.0), [[0.75, 0.25]], atol=1e-5)


def test_targets_take_the_vector_of_the_smaller_critic():
    values = NUMBERS.normal(size=(2, 5, 3))
    omega = NUMBERS.dirichlet(np.ones(2), 5)
    rewards = NUMBERS.normal(size=(5, 2))
    not_done = np.array([1.0, 0, 1, 1, 0])
    chosen = critic.smaller(jnp.asarray(values), jnp.asarray(omega))
    found = critic.targets(jnp.asarray(rewards), jnp.asarray(not_done), chosen, 0.9)
    for row in range(5):
        first, second = (sum(omega[row, k] * values[twin, row, k] for k in range(2)) for twin in range(2))
        following = values[0 if first <= second else 1, row]
        expected = np.append(rewards[row], 0) + 0.9 * not_done[row] * following
        np.testing.assert_allclose(found[row], expected, rtol=1e-5)


def test_loss_of_the_critics():
    values = NUMBERS.normal(size=(2, 4, 3))
    wanted = NUMBERS.normal(size=(4, 3))
    expected = sum(np.mean([(values[i, b, k] - wanted[b, k]) ** 2 for b in range(4) for k in range(3)]) for i in (0, 1))
    assert critic.critic_loss(jnp.asarray(values), jnp.asarray(wanted)) == pytest.approx(expected, rel=1e-5)


def test_loss_of_the_policy_and_its_gradient():
    value = np.array([1.0, -3.0, 2.0])
    bc = np.array([0.1, 0.2, 0.4])
    w = np.array([0.2, 0.5, 1.0])
    terms = [(1 - w[i]) * value[i] / 2.0 - w[i] * 50 * bc[i] for i in range(3)]
    found, gradient = jax.value_and_grad(critic.policy_loss)(jnp.asarray(value), jnp.asarray(bc), jnp.asarray(w), 50.0)
    assert found == pytest.approx(-sum(terms) / 3, rel=1e-5)
    np.testing.assert_allclose(gradient, -(1 - w) / 2.0 / 3, rtol=1e-5)  # the scale is no variable


def test_loss_of_the_cvae():
    decoded, actions = NUMBERS.normal(size=(2, 3, 2))
    mean, sigma = NUMBERS.uniform(0.5, 2, size=(2, 3, 4))
    squares = np.mean([(decoded[b, a] - actions[b, a]) ** 2 for b in range(3) for a in range(2)])
    terms = [1 + math.log(s**2) - m**2 - s**2 for m, s in zip(mean.ravel(), sigma.ravel(), strict=True)]
    found = regularisers.cvae_loss(*(jnp.asarray(x) for x in (decoded, actions, mean, sigma)))
    assert found == pytest.approx(squares + 0.5 * (-0.5 * np.mean(terms)), rel=1e-5)


def small(**keys):
    return MorlConfig(hidden=(4,), trajectories=3, horizon=4, batch_size=4, updates=2, measure=1, **keys)


def test_noise_schedule_and_diffusion_loss():
    beta, kept = regularisers.noise_schedule(5)
    product = 1.0
    for t in range(1, 6):
        expected = 1 - math.exp(-0.1 / 5 - 0.5 * 9.9 * (2 * t - 1) / 25)
        product *= 1 - expected
        assert (beta[t - 1], kept[t - 1]) == (pytest.approx(expected), pytest.approx(product))
    form = regularisers.make_policy(small(regulariser="diffusion"), 1, 2, 2)
    shapes = jax.eval_shape(form.init, jax.random.key(0))
    silent = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)  # predicts no noise
    key = jax.random.key(3)
    noise = jax.random.normal(jax.random.split(key)[1], (6, 2))
    found = form.bc_loss(silent, jnp.ones((6, 1)), jnp.ones((6, 3)), jnp.zeros((6, 2)), key)
    np.testing.assert_allclose(found, (noise**2).mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("kind", ["mse", "cvae", "diffusion"])
def test_a_policy_learns_a_constant_action(kind):
    import optax

    form = regularisers.make_policy(small(regulariser=kind), 1, 1, 2)
    params = form.init(jax.random.key(0))
    rule = optax.adam(0.02)
    s = jnp.ones((64, 1))
    c = jnp.ones((64, 3))
    a = jnp.full((64, 1), 0.4)

    def step(carry, key):
        params, state = carry
        gradient = jax.grad(lambda p: form.bc_loss(p, s, c, a, key).mean())(params)
        change, state = rule.update(gradient, state)
        return (optax.apply_updates(params, change), state), None

    keys = jax.random.split(jax.random.key(1), 400)
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))((params, rule.init(params)))
    actions = form.act(params, s, c, jax.random.key(2))
    assert float(actions.mean()) == pytest.approx(0.4, abs=0.1)


def test_density_of_a_weight_integrates_to_one():
    parameters = jnp.array([0.3, -0.4])
    x = jnp.linspace(-3.5, 3.5, 4001)
    w = np.asarray(to_weight(x, 0.2), np.float64)
    density = np.exp(np.asarray(log_density(x, parameters, 0.2), np.float64))
    assert np.trapezoid(density, w) == pytest.approx(1.0, abs=2e-3)


def test_surrogate_of_the_adaptation():
    x = np.array([-0.5, 0.2, 1.0])
    scores = np.array([1.0, 4.0, 2.5])

    def density(x, m, log_sigma):
        sigma = math.exp(log_sigma)
        normal = math.exp(-0.5 * ((x - m) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        return normal / (0.4 * (1 - math.tanh(x) ** 2))  # dw/dx, with w_min 0.2

    expected = 0.0
    for value, score in zip(x, scores, strict=True):
        expected -= density(value, 0.1, -0.2) / (density(value, 0, 0) + 1e-6) * (score - 2.5)
    found = surrogate(jnp.array([0.1, -0.2]), jnp.zeros(2), jnp.asarray(x), jnp.asarray(scores), 0.2)
    assert found == pytest.approx(expected, rel=1e-4)


def test_adapted_weights_stay_near_the_middle():
    config = MorlConfig()
    best = jnp.array([0.2, 0.4, 0.7, 1.0])

    def mean_weight(at):
        keys = jax.random.split(jax.random.key(0), 40)
        return jax.vmap(lambda key: adapt(config, lambda w, _: -((w - at) ** 2), key).weight)(keys).mean()

    found = jax.jit(jax.vmap(mean_weight))(best)
    np.testing.assert_allclose(found, [0.38, 0.42, 0.77, 0.81], atol=0.06)
    assert len(exhausted_weights(0.2)) == 17


def test_diffusion_target_moves_now_and_then():
    config = small(regulariser="diffusion", target_after=4, target_every=2, soft_update=0.5)
    trainer = make_trainer(config, 1, 1, 2)
    learner = trainer.init(jax.random.key(0))
    learner = learner._replace(policy=jax.tree.map(lambda x: x + 1, learner.policy))
    moved = []
    for updates in range(2, 14, 2):
        after = follow(config, learner._replace(updates=jnp.array(updates)))
        moved.append(
            bool(jax.tree.leaves(after.target_policy)[0].sum() != jax.tree.leaves(learner.target_policy)[0].sum())
        )
    assert moved == [False, True, False, True, False, True]


def test_made_trajectories_and_their_rows():
    config = MorlConfig(trajectories=3, horizon=4, reward_noise=0.0)
    made = data.make_trajectories(config, 2, 7)
    a = made.actions[:, 0]
    np.testing.assert_allclose(made.rewards, np.stack([a, 1 - a**2], axis=1), atol=1e-6)
    np.testing.assert_allclose(made.next_observations - made.observations, 0.1 * made.actions, atol=1e-6)
    assert (made.observations[::4] == 0).all()
    rows = data.training_rows(made, config)
    assert rows.not_done.all()  # all have timed out
    np.testing.assert_allclose(rows.states * rows.scale + rows.mean, made.observations, atol=1e-6)
    shorter = data.training_rows(made, MorlConfig(horizon=5))
    assert shorter.not_done.tolist() == [1, 1, 1, 0] * 3


@pytest.fixture(scope="module")
def made():
    return data.make_trajectories(MorlConfig(trajectories=2, horizon=3), 2, 0)


def as_columns(made):
    return {name: getattr(made, name) for name in (*data.COLUMNS, "preference")}


def test_files_give_back_what_was_written(made, tmp_path):
    import pyarrow
    from pyarrow import parquet

    data.write_trajectories(tmp_path / "a.npz", made)
    parquet.write_table(pyarrow.table({k: v.tolist() for k, v in as_columns(made).items()}), tmp_path / "a.parquet")
    for file in ("a.npz", "a.parquet"):
        found = data.read_trajectories(tmp_path / file)
        for name, column in as_columns(made).items():
            np.testing.assert_array_equal(getattr(found, name), column)


def broken(column, row, value):
    def change(columns):
        columns[column][row] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.pop("actions"), r"no column 'actions'"),
        (broken("rewards", (4, 1), np.nan), r"row 4, column 'rewards': must be finite"),
        (broken("actions", (3, 0), 2.0), r"row 3, column 'actions': must lie in \[-1, 1\]"),
        (broken("trajectory", 5, 0), r"row 5: trajectory 0 begins again"),
        (lambda c: c.update(actions=c["actions"][:5]), r"'actions': 5 rows, and observations has 6"),
        (lambda c: c.update(next_observations=np.zeros((6, 2))), r"'next_observations': 2 numbers in a row"),
        (lambda c: c.update(trajectory=np.zeros((6, 2))), r"'trajectory': must be a number; got the shape \[6, 2\]"),
        (lambda c: c.update(actions=np.array([{}] * 6)), r"holds Python objects \(pickle\), which are not read"),
    ],
)
def test_what_is_wrong_with_a_file(made, tmp_path, change, message):
    columns = {name: np.array(column) for name, column in as_columns(made).items()}
    change(columns)
    np.savez(tmp_path / "a.npz", **columns)
    with pytest.raises(UserError, match=message):
        data.read_trajectories(tmp_path / "a.npz")


def test_rows_of_parquet_of_different_lengths(made, tmp_path):
    import pyarrow
    from pyarrow import parquet

    columns = {name: column.tolist() for name, column in as_columns(made).items()}
    columns["rewards"][2] = [1.0]
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet row 2, column 'rewards'.*\[1.0\]"):
        data.read_trajectories(tmp_path / "a.parquet")


@pytest.mark.parametrize("name, message", [("a.pkl", "pickles among them"), ("a.npz", "not a readable .npz")])
def test_files_that_are_none(tmp_path, name, message):
    (tmp_path / name).write_bytes(b"nothing")
    with pytest.raises(UserError, match=message):
        data.read_trajectories(tmp_path / name)


@pytest.mark.parametrize(
    "override, message",
    [
        ("updates=10", r"updates must be a multiple of policy_every x measure \(8\); got 10"),
        ("min_weight=1", r"min_weight must be below 1"),
        ("weights=[0.1]", r"weights must be numbers from min_weight"),
        ("theta=2", r"theta must be between 0 and 1; got 2"),
        ("regulariser=kl", r"regulariser.*one of mse, cvae, diffusion"),
    ],
)
def test_bad_settings(override, message):
    with pytest.raises(UserError, match=message):
        load_experiment(COMPANION, None, [override])


TINY = dict(hidden=(4,), trajectories=4, horizon=3, batch_size=8, updates=4, measure=1, preferences=5)


@pytest.mark.slow
def test_a_seed_does_not_depend_on_the_others():
    config = MorlConfig(**TINY, adapt_preferences=0, discount=0.9)
    alone = compute(config, [3], lambda units: None)[0]
    beside = compute(config, [1, 3], lambda units: None)[1]
    assert alone[-1]["step"] == 4
    np.testing.assert_allclose(alone[-1]["front/w0.2"], beside[-1]["front/w0.2"], atol=1e-3)
    assert alone[-1]["loss/critic"] == pytest.approx(beside[-1]["loss/critic"], rel=1e-4)


def test_the_command(tmp_path, capsys):
    keys = [f"{key}={list(value) if isinstance(value, tuple) else value}" for key, value in TINY.items()]
    keys += ["adapt_preferences=2", "adapt_rounds=1", f"run_dir={tmp_path}"]
    keys += ["regulariser=diffusion", "target_after=0", "candidates=2", "diffusion_steps=1"]
    assert mmeureka("companions", "morl", *keys, "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kinds"]["run"]["last hypervolume/w0.2"]["mean"] >= 0
    assert {"front.svg", "hypervolume.svg", "adapted_weight.svg"} <= {path.name for path in tmp_path.iterdir()}
    assert mmeureka("companions", "morl", "nothing.yaml") == 2


@pytest.mark.slow
def test_the_filter_keeps_the_front_and_its_lack_loses_it():
    keys = dict(discount=0.0, updates=1600, batch_size=128, measure=1, adapt_preferences=0)
    kept = compute(MorlConfig(theta=0.0, **keys), [0], lambda units: None)[0][-1]
    lost = compute(MorlConfig(theta=1.0, **keys), [0], lambda units: None)[0][-1]
    assert kept["hypervolume/w0.2"] >= 1600
    assert lost["hypervolume/w0.2"] <= 1300
    assert kept["utility/w0.2"] - lost["utility/w0.2"] >= 4


def test_start_is_of_the_seed():
    trainer = make_trainer(small(), 1, 1, 2)
    both = start(trainer, [0, 1])
    alone = start(trainer, [1])
    np.testing.assert_allclose(jax.tree.leaves(both.policy)[1][1], jax.tree.leaves(alone.policy)[1][0])
