"""PRMORL as an experiment: training, the fronts of fixed weights, and adapted weights in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.experiment import Advance, Companion, Rows
from mmeureka_jax.companions.morl import actor, fronts, point_mass
from mmeureka_jax.companions.morl import trajectories as data
from mmeureka_jax.companions.morl.adaptation import adapt, exhausted_weights
from mmeureka_jax.companions.morl.pictures import pictures
from mmeureka_jax.companions.morl.settings import MorlConfig, PolicyConfig, problems
from mmeureka_jax.companions.morl.tasks import Task, rows_of_seeds, task_of
from mmeureka_jax.companions.morl.train import Learner, Trainer, make_train, make_trainer, start

_CHUNKS = 10  # of the updates between two measurements, so that the bar moves
Measured = list[dict[str, Any]]  # one for each seed


def train_and_measure(
    config: PolicyConfig,
    task: Task,
    seeds: Sequence[int],
    advance: Advance,
    measure: Callable[[Trainer, Learner, data.Rows, bool], Measured],
) -> list[Rows]:
    """Trains all seeds, and measures them `measure` times on the way; `measure` is told whether it is the end."""
    numbers = [int(seed) for seed in seeds]
    rows = rows_of_seeds(config, task, numbers)
    trainer = make_trainer(config, task.state_size, task.action_size, len(task.objectives))
    learner = start(trainer, numbers)
    found: list[Rows] = [[] for _ in numbers]
    rounds = config.updates // config.policy_every // config.measure
    chunks = next(count for count in range(min(_CHUNKS, rounds), 0, -1) if rounds % count == 0)
    train = make_train(trainer, numbers, rounds // chunks)
    for number in range(1, config.measure + 1):
        for _ in range(chunks):
            learner, losses = train(learner, rows)
            jax.block_until_ready(losses)
            advance(rounds // chunks * config.policy_every)
        measured = measure(trainer, learner, rows, number == config.measure)
        step = number * rounds * config.policy_every
        for place, of_seed in enumerate(found):
            own = {name: float(values[place]) for name, values in losses.items()}
            of_seed.append({"step": step, **own, **measured[place]})
    return found


def compute(config: MorlConfig, seeds: Sequence[int], advance: Advance) -> list[Rows]:
    """The rows of each seed."""
    task = task_of(config)
    preferences = point_mass.even_preferences(config.preferences)
    few = point_mass.even_preferences(config.adapt_preferences) if config.adapt_preferences else None
    of_functions: dict[str, Any] = {}

    def measure(trainer: Trainer, learner: Learner, rows: data.Rows, at_end: bool) -> Measured:
        if not of_functions:
            of_functions["front"] = jax.jit(jax.vmap(_front(trainer, task, preferences)))
            of_functions["adapt"] = jax.jit(jax.vmap(_adapted(trainer, task, few))) if few is not None else None
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 3))(np.array(seeds, np.int32))
        measured: Measured = []
        found = np.asarray(of_functions["front"](learner, (rows.mean, rows.scale), keys), np.float64)
        for of_weights in found:
            measured.append({})
            for weight, points in zip(config.weights, of_weights, strict=True):
                measured[-1] |= front_numbers(task, preferences, points, f"w{weight:g}")
                if at_end:
                    measured[-1][f"front/w{weight:g}"] = np.round(points, 4).tolist()
        if at_end:
            measured = [numbers | best_numbers(task, preferences) for numbers in measured]
        if at_end and few is not None:
            adapted = of_functions["adapt"](learner, (rows.mean, rows.scale), keys)
            for place, numbers in enumerate(measured):
                numbers |= adaptation_numbers(few, jax.tree.map(lambda a, p=place: np.asarray(a[p], float), adapted))
        return measured

    return train_and_measure(config, task, seeds, advance, measure)


def front_numbers(task: Task, preferences: np.ndarray, points: np.ndarray, name: str) -> dict[str, float]:
    """Hypervolume, sparsity and utility of a front [P, 2]. Where the task's front has so many points, the share of them
    that are among the front, and the share of preferences that fail: with a return that is not above the reference."""
    above = points - task.reference
    shares = {}
    if task.front is not None:
        failed = float((above <= 0).any(axis=1).mean())
        shares = {f"front_share/{name}": fronts.share(points, task.front), f"failed/{name}": failed}
    return shares | {
        f"hypervolume/{name}": fronts.hypervolume(above),
        f"sparsity/{name}": fronts.sparsity(points),
        f"utility/{name}": fronts.utility(preferences, points),
    }


def best_numbers(task: Task, preferences: np.ndarray) -> dict[str, Any]:
    """What the best policy for each preference [P, 2] has, and the task's front; pictures read it."""
    best = task.best(preferences)
    return {
        "best/hypervolume": fronts.hypervolume(best - task.reference),
        "best/utility": fronts.utility(preferences, best),
        "best/front": np.round(best if task.front is None else task.front, 4).tolist(),
        "objectives": list(task.objectives),
    }


def adaptation_numbers(preferences: np.ndarray, found: dict[str, np.ndarray]) -> dict[str, Any]:
    """What adaptation found for preferences [P, 2], and how it compares to the best of all weights."""
    return {
        "adapted/weight": float(found["weight"].mean()),
        "adapted/weight_min": float(found["weight"].min()),
        "adapted/weight_max": float(found["weight"].max()),
        "adapted/utility": fronts.utility(preferences, found["returns"]),
        "adapted/exploring": float(found["exploring"].mean()),
        "exhaust/utility": float(found["best"].mean()),
        "exhaust/weight": float(found["best_weight"].mean()),
        "adapted/preferences": np.round(preferences[:, 0], 4).tolist(),
        "adapted/weights": np.round(found["weight"], 4).tolist(),
        "exhaust/weights": np.round(found["best_weight"], 4).tolist(),
    }


def _front(trainer: Trainer, task: Task, preferences: np.ndarray) -> Callable[..., jax.Array]:
    """A function of a learner: returns [W, P, 2] with each fixed weight, mean over the episodes."""
    config = trainer.config
    assert isinstance(config, MorlConfig)
    weights = np.repeat(np.array(config.weights, np.float32), len(preferences))
    repeats = config.final_episodes if trainer.policy.samples else 1
    wish = (
        jnp.tile(jnp.asarray(preferences, jnp.float32), (len(config.weights) * repeats, 1)),
        jnp.tile(weights, repeats),
    )

    def of_learner(learner: Learner, norm: tuple[Any, Any], key: jax.Array) -> jax.Array:
        found = actor.returns(trainer, task, learner, norm, wish, key)
        return found.reshape(repeats, len(config.weights), len(preferences), len(task.objectives)).mean(axis=0)

    return of_learner


def _adapted(trainer: Trainer, task: Task, preferences: np.ndarray) -> Callable[..., dict[str, jax.Array]]:
    """A function of a learner: what `adaptation_numbers` reads, each with a first axis of P."""
    config = trainer.config
    assert isinstance(config, MorlConfig)
    every = jnp.asarray(exhausted_weights(config.min_weight), jnp.float32)
    repeats = config.final_episodes if trainer.policy.samples else 1

    def of_learner(learner: Learner, norm: tuple[Any, Any], key: jax.Array) -> dict[str, jax.Array]:
        def run(omega: jax.Array, weights: jax.Array, key: jax.Array) -> jax.Array:
            wish = (jnp.broadcast_to(omega, (len(weights), len(task.objectives))), weights)
            return actor.returns(trainer, task, learner, norm, wish, key)

        def of_preference(omega: jax.Array, key: jax.Array) -> dict[str, jax.Array]:
            first, second, third = jax.random.split(key, 3)
            found = adapt(config, lambda weights, k: run(omega, weights, k) @ omega, first)
            final = run(omega, jnp.full(repeats, found.weight), second).mean(axis=0)
            utilities = run(omega, every, third) @ omega
            return {
                "weight": found.weight,
                "exploring": found.exploring,
                "returns": final,
                "best": utilities.max(),
                "best_weight": every[jnp.argmax(utilities)],
            }

        keys = jax.random.split(jax.random.fold_in(key, 1), len(preferences))
        return jax.vmap(of_preference)(jnp.asarray(preferences, jnp.float32), keys)

    return of_learner


COMPANION = Companion(
    "PRMORL",
    MorlConfig,
    problems,
    lambda config: config.updates,
    compute,
    ("hypervolume/w0.2", "utility/w0.2", "loss/critic", "loss/policy", "loss/bc"),
    (
        "last hypervolume/w0.2", "last hypervolume/w0.5", "last hypervolume/w1", "last front_share/w0.2",
        "last front_share/w0.5", "last front_share/w1", "last failed/w0.2", "last sparsity/w0.2",
        "last utility/w0.2", "last adapted/weight", "last adapted/weight_min", "last adapted/weight_max",
        "last adapted/utility", "last adapted/exploring", "last exhaust/utility", "last exhaust/weight",
    ),
    pictures,
)  # fmt: skip
