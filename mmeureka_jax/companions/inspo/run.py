"""InSPO as a companion: rounds in chunks, measured after each, for all seeds at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.experiment import Advance, Companion, Rows
from mmeureka_jax.companions.inspo import network, tabular
from mmeureka_jax.companions.inspo.baselines import METHODS
from mmeureka_jax.companions.inspo.data import configured_data
from mmeureka_jax.companions.inspo.evaluate import measured
from mmeureka_jax.companions.inspo.game import Data, Game
from mmeureka_jax.companions.inspo.settings import InspoConfig, problems

Learner = Any  # Tables, or the state of networks
Scales = tuple[jax.Array, jax.Array]  # alpha and beta
Metrics = dict[str, jax.Array]


def scales_of(config: InspoConfig) -> np.ndarray:
    """alpha and beta in each round, `[rounds, 2]`."""
    shrunk = config.decay ** np.arange(config.rounds)
    alpha = np.maximum(config.alpha * shrunk, min(config.least_alpha, config.alpha))
    beta = config.beta * shrunk if METHODS[config.method].entropy else np.zeros(config.rounds)
    return np.stack([alpha, beta], axis=1).astype(np.float32)


def compute(config: InspoConfig, seeds: Sequence[int], advance: Advance) -> list[Rows]:
    """The rows of each seed: before the first round, and after every `measure_every`."""
    game, data = configured_data(config, seeds)
    start, learn = programs(_without_numbers(config))
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    scales = scales_of(config)
    learner, metrics = start(game, data, keys)
    table = [(0, jax.device_get(metrics))]
    for first in range(0, config.rounds, config.measure_every):
        last = min(first + config.measure_every, config.rounds)
        numbers = jnp.arange(first, last)
        if METHODS[config.method].learns:
            learner, metrics = learn(game, data, learner, keys, (numbers, scales[first:last]))
        table.append((last, jax.device_get(metrics)))
        advance(last - first)
    return [_rows(table, number) for number in range(len(seeds))]


@lru_cache(maxsize=64)
def programs(config: InspoConfig) -> tuple[Callable, Callable]:
    """The start and some rounds of learning, compiled for all seeds. Kinds of run that differ in numbers share them."""
    initial, one_round, policies_of = {"tabular": tabular_form, "network": network_form}[config.form](config)

    def start(game: Game, data: Data, key: jax.Array) -> tuple[Learner, Metrics]:
        learner = initial(data, jax.random.fold_in(key, 2**31 - 1))
        return learner, measured(game, policies_of(data, learner), config.horizon)

    def learn(
        game: Game, data: Data, learner: Learner, key: jax.Array, rounds: tuple[jax.Array, jax.Array]
    ) -> tuple[Learner, Metrics]:
        def step(learner: Learner, number_scales: tuple[jax.Array, jax.Array]) -> tuple[Learner, None]:
            number, scales = number_scales
            return one_round(data, learner, jax.random.fold_in(key, number), (scales[0], scales[1])), None

        learner = jax.lax.scan(step, learner, rounds)[0]
        return learner, measured(game, policies_of(data, learner), config.horizon)

    return (
        jax.jit(jax.vmap(start, in_axes=(None, 0, 0))),
        jax.jit(jax.vmap(learn, in_axes=(None, 0, 0, 0, None))),
    )


def _without_numbers(config: InspoConfig) -> InspoConfig:
    """The config without what programs are given, or do not read."""
    given = ("run_dir", "seeds", "data", "payoffs", "counts", "alpha", "beta", "decay", "least_alpha", "rounds")
    defaults = InspoConfig()
    return dataclasses.replace(config, measure_every=1, episodes=1, **{name: getattr(defaults, name) for name in given})


def tabular_form(config: InspoConfig) -> tuple[Callable, Callable, Callable]:
    """Start, round and policies of the tabular form."""

    def start(data: Data, key: jax.Array) -> tabular.Tables:
        return tabular.initial_tables(data, config, key)

    return start, partial(tabular.learning_round, config=config), lambda data, tables: tables.policies


def network_form(config: InspoConfig) -> tuple[Callable, Callable, Callable]:
    """Start, round and policies of the form with networks."""
    networks = network.Networks(config)
    return networks.start, networks.learning_round, networks.policies


def _rows(table: Sequence[tuple[int, dict[str, np.ndarray]]], number: int) -> Rows:
    return [
        {"step": step, **{name: float(values[number]) for name, values in of_step.items()}} for step, of_step in table
    ]


INSPO = Companion(
    name="inspo",
    config=InspoConfig,
    problems=problems,
    length=lambda config: config.rounds,
    compute=compute,
    metrics=("return", "greedy_return", "entropy"),
    summary=("last return", "last greedy_return", "first return"),
)
