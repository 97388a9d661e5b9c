"""PDOA as an experiment: policies are trained, then each demonstrator's preference is found from what it shows.

A reconstruction (see posterior.py); the task is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmeureka_jax.companions.experiment import Advance, Companion, Rows
from mmeureka_jax.companions.morl import actor, posterior
from mmeureka_jax.companions.morl import trajectories as data
from mmeureka_jax.companions.morl.constraints import conservative
from mmeureka_jax.companions.morl.demonstrators import Demonstrators, demonstrations, errors, make_demonstrators
from mmeureka_jax.companions.morl.pdoa_settings import PdoaConfig, problems
from mmeureka_jax.companions.morl.pictures import color_of, svg_of
from mmeureka_jax.companions.morl.run import Measured, train_and_measure
from mmeureka_jax.companions.morl.tasks import Task, point_mass_task
from mmeureka_jax.companions.morl.train import Learner, Trainer

_COST = 2  # the objective that is slowness


def compute(config: PdoaConfig, seeds: Sequence[int], advance: Advance) -> list[Rows]:
    """The rows of each seed."""
    objectives = 3 if config.constrained else 2
    task = point_mass_task(config, objectives)
    who = make_demonstrators(config)

    def measure(trainer: Trainer, learner: Learner, rows: data.Rows, at_end: bool) -> Measured:
        if not at_end:
            return [{} for _ in seeds]
        shown = [
            demonstrations(config, who, objectives, (rows.mean[place], rows.scale[place]), int(seed))
            for place, seed in enumerate(seeds)
        ]
        stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *shown)
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 4))(np.array(seeds, np.int32))
        found = jax.jit(jax.vmap(lambda *given: adapted(config, trainer, task, given)))(learner, stacked, keys)
        return [numbers(config, who, jax.tree.map(lambda a, p=place: np.asarray(a[p], float), found))
                for place in range(len(seeds))]  # fmt: skip

    return train_and_measure(config, task, seeds, advance, measure)


def adapted(
    config: PdoaConfig, trainer: Trainer, task: Task, given: tuple[Learner, data.Rows, jax.Array]
) -> dict[str, jax.Array]:
    """What is found from the demonstrations [D, R, ...] of one seed: `preferences` [L, D, n] for L levels of
    conservatism (one, without constraints), `deviation` [D] of the preference for speed, `actions` [L, T, D]."""
    learner, shown, key = given
    for_fit, for_draws, for_episodes = jax.random.split(key, 3)
    count = len(shown.states)
    score = posterior.make_score(config, trainer, learner)
    fitted = jax.vmap(lambda rows, k: posterior.fit(config, score, rows, len(task.objectives), k))(
        shown, jax.random.split(for_fit, count)
    )
    draws = jax.vmap(lambda p, k: posterior.draw(p, config.posterior_samples, k))(
        fitted, jax.random.split(for_draws, count)
    )
    if config.constrained:
        preferences = jnp.stack(
            [jax.vmap(lambda d, a=level: conservative(d, _COST, a))(draws) for level in config.conservatism]
        )
    else:
        preferences = draws.mean(axis=1)[None]
    weights = jnp.full(count, config.deploy_weight)
    norm = (shown.mean[0], shown.scale[0])
    actions = jax.vmap(lambda omega: actor.episodes(trainer, task, learner, norm, (omega, weights), for_episodes)[0])(
        preferences
    )
    return {"preferences": preferences, "deviation": draws[..., 0].std(axis=1), "actions": actions[..., 0]}


def numbers(config: PdoaConfig, who: Demonstrators, found: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What is measured of the adapted preferences and of the episodes with them."""
    actions = found["actions"]
    speed = np.abs(actions[0].mean(axis=0) - who.actions)
    measured: dict[str, Any] = {"action_error": float(speed.mean())}
    if config.constrained:
        utility = _utility(actions, who)
        for place, level in enumerate(config.conservatism):
            over = actions[place] > who.threshold
            measured[f"violations/{level:g}"] = float(over.mean())
            measured[f"excess/{level:g}"] = float(np.maximum(actions[place] - who.threshold, 0).mean())
            measured[f"utility/{level:g}"] = float(utility[place])
            measured[f"cost_weight/{level:g}"] = float(found["preferences"][place, :, _COST].mean())
        measured["levels"] = list(config.conservatism)
        measured["utility/demonstrators"] = float(_utility(who.actions[None, None], who)[0])
        return measured
    preferences = found["preferences"][0, :, 0]
    alike = 1.0 if config.preference == "returns" else 2 / 3
    error = errors(preferences, who.first, alike)
    return measured | {
        "error": float(error.mean()),
        "error_max": float(error.max()),
        "within_0.05": float((error <= 0.05).mean()),
        "raw_error": float(np.abs(preferences - who.first).mean()),
        "deviation": float(found["deviation"].mean()),
        "real": np.round(who.first, 4).tolist(),
        "adapted": np.round(preferences, 4).tolist(),
    }


def _utility(actions: np.ndarray, who: Demonstrators) -> np.ndarray:
    """The mean over demonstrators of their ω·reward of a step, [L], for actions [L, T, D]: speed and energy only."""
    return (who.first * actions + (1 - who.first) * (1 - actions**2)).mean(axis=(1, 2))


def pictures(runs: Mapping[str, Sequence[Rows]]) -> dict[str, bytes]:
    """SVG by file name: preference.svg, real against adapted; violations.svg, against conservatism."""
    last = {kind: [rows[-1] for rows in of_kind] for kind, of_kind in runs.items()}
    found = {}
    for file, key, draw in (
        ("preference.svg", "real", _draw_preferences),
        ("violations.svg", "levels", _draw_violations),
    ):
        has = {kind: [row for row in rows if key in row] for kind, rows in last.items()}
        has = {kind: rows for kind, rows in has.items() if rows}
        if has:
            found[file] = svg_of(file, lambda axes, draw=draw, has=has: draw(axes, has))
    return found


def _draw_preferences(axes: Any, has: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    axes.plot([0, 1], [0, 1], color="#1f2933", linewidth=0.9, label="equal")
    for number, (kind, rows) in enumerate(has.items()):
        values = np.array([row["adapted"] for row in rows])
        deviation = values.std(axis=0, ddof=1) if len(values) > 1 else None
        axes.errorbar(
            rows[0]["real"], values.mean(axis=0), yerr=deviation, fmt="o-", markersize=3, color=color_of(number),
            label=kind,
        )  # fmt: skip
    axes.set_xlabel("preference for speed: demonstrator's")
    axes.set_ylabel("adapted")
    axes.legend(frameon=False)


def _draw_violations(axes: Any, has: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    for number, (kind, rows) in enumerate(has.items()):
        levels = rows[0]["levels"]
        values = np.array([[row[f"violations/{level:g}"] for level in levels] for row in rows])
        deviation = values.std(axis=0, ddof=1) if len(values) > 1 else None
        axes.errorbar(
            levels, values.mean(axis=0), yerr=deviation, fmt="o-", markersize=3, color=color_of(number), label=kind
        )
    axes.set_ylim(bottom=0)
    axes.set_xlabel("conservatism (level of the CVaR)")
    axes.set_ylabel("share of steps above the threshold")
    axes.legend(frameon=False)


_LEVELS = ("0", "0.25", "0.5", "0.75", "0.9", "0.95")
COMPANION = Companion(
    "PDOA",
    PdoaConfig,
    problems,
    lambda config: config.updates,
    compute,
    ("loss/critic", "loss/policy", "loss/bc"),
    (
        "last error", "last error_max", "last within_0.05", "last raw_error", "last deviation", "last action_error",
        *(f"last violations/{level}" for level in _LEVELS), *(f"last cost_weight/{level}" for level in _LEVELS),
        *(f"last utility/{level}" for level in _LEVELS), "last utility/demonstrators",
    ),
    pictures,
)  # fmt: skip
