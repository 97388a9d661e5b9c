"""Exact studies of the losses on softmax bandits, where every expectation is a sum over the actions: one picture.

    python -m benchmarks.bandits --out DIR

No model and no sampling noise but where it is said. The losses are those that training runs (rl/losses.py), and their
gradients are JAX's. DIR/bandits.svg has six panels; the JSON line has the numbers that docs/stability.md quotes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from mmeureka_jax.config.schema import RLConfig
from mmeureka_jax.errors import EXIT_BAD_INPUT, UserError
from mmeureka_jax.files import write_atomic
from mmeureka_jax.models.batch import Array
from mmeureka_jax.report.charts import STYLE
from mmeureka_jax.rl.losses import PolicyLoss, make_policy_loss

NO_CLIP = {"clip_epsilon_low": 0.999999, "clip_epsilon_high": 1e9}
SETTINGS: Mapping[str, RLConfig] = {
    "PPO-clip": RLConfig(loss="ppo_clip"),
    "PPO without clip": RLConfig(loss="ppo_clip", **NO_CLIP),
    "PPO-clip, ratio cap 3": RLConfig(loss="ppo_clip", ratio_cap=3.0),
    "PG": RLConfig(loss="pg"),
    "CPG": RLConfig(loss="cpg"),
    "CPGD": RLConfig(loss="cpgd", drift_coefficient=0.1),
}
LOSSES = {name: make_policy_loss(config) for name, config in SETTINGS.items()}
LINES: Mapping[str, dict[str, Any]] = {
    "PPO-clip": {"color": "#2f6db3"},
    "PPO without clip": {"color": "#a8485b"},
    "PPO-clip, ratio cap 3": {"color": "#2a9aa0", "linestyle": (0, (4, 1.5))},
    "PG": {"color": "#d1812c"},
    "CPG": {"color": "#6f5aa8"},
    "CPGD": {"color": "#3f8f5f", "linestyle": (0, (4, 1.5))},
}
RATIOS = np.geomspace(0.25, 8, 400)
ACTIONS = 5
RATE = 0.1
BANDITS = 200
ARMS = 50
SAMPLES = 8
STEPS = 60
STEP_SIZE = 0.5


def as_tokens(x: Any) -> Float[Array, "1 n 1"]:
    """Actions as responses of one token."""
    return jnp.asarray(x, jnp.float32)[None, :, None]


def gradient_weights(loss: PolicyLoss, advantage: float) -> np.ndarray:
    """-dLoss/dl of a token for each of RATIOS: the size and direction of its push."""

    def total(log_probs: Array) -> Array:
        advantages = jnp.full(log_probs.shape, advantage)
        return loss(log_probs, jnp.zeros_like(log_probs), advantages, jnp.ones(log_probs.shape, bool)).loss.sum()

    return -np.asarray(jax.grad(total)(as_tokens(np.log(RATIOS))))[0, :, 0]


def ratio_after_step(loss: PolicyLoss, advantage: float, ratios: np.ndarray) -> np.ndarray:
    """The ratio of one of ACTIONS equally likely actions after a gradient step of RATE on only its token, for each
    ratio before."""
    action = jnp.arange(ACTIONS) == 0

    def stepped(ratio: Array) -> Array:
        logits = jnp.zeros(ACTIONS)
        old = as_tokens(jax.nn.log_softmax(logits) - jnp.log(ratio))

        def total(logits: Array) -> Array:
            now = as_tokens(jax.nn.log_softmax(logits))
            return loss(now, old, jnp.full(now.shape, advantage), as_tokens(action) > 0).loss.sum()

        after = jax.nn.log_softmax(logits - RATE * jax.grad(total)(logits))
        return jnp.exp(after[0] - old[0, 0, 0])

    return np.asarray(jax.jit(jax.vmap(stepped))(jnp.asarray(ratios, jnp.float32)))


def steps_on_one_sample(loss: PolicyLoss, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """BANDITS of ARMS actions, each right with a chance of its own; SAMPLES answers are drawn once, scored once, and
    STEPS gradient steps taken on them, as if a rollout were used again and again.

    Returns:
        After each step, over the bandits [STEPS + 1, BANDITS]: the largest ratio among the sampled answers, and the
        exact chance of a right answer.
    """
    rng = np.random.default_rng(seed)
    start = jnp.asarray(rng.normal(size=(BANDITS, ARMS)), jnp.float32)
    right = jnp.asarray(rng.random((BANDITS, ARMS)), jnp.float32)
    old = jax.nn.log_softmax(start)
    drawn = jax.random.categorical(jax.random.key(seed), old[:, None], shape=(BANDITS, SAMPLES))
    lucky = rng.random((BANDITS, SAMPLES)) < np.asarray(jnp.take_along_axis(right, drawn, axis=1))
    rewards = jnp.asarray(lucky, jnp.float32)
    advantages = rewards - rewards.mean(axis=1, keepdims=True)

    def of_drawn(logits: Array) -> Array:
        return jnp.take_along_axis(jax.nn.log_softmax(logits), drawn, axis=1)[..., None]

    def total(logits: Array) -> Array:
        mask = jnp.ones((BANDITS, SAMPLES, 1), bool)
        return loss(of_drawn(logits), of_drawn(start), advantages[..., None], mask).loss.sum()

    def descend(logits: Array, _: Any) -> tuple[Array, tuple[Array, Array]]:
        ratio = jnp.exp(of_drawn(logits) - of_drawn(start)).max(axis=(1, 2))
        chance = jnp.sum(right * jax.nn.softmax(logits), axis=1)
        return logits - STEP_SIZE * jax.grad(total)(logits), (ratio, chance)

    _, (ratios, chances) = jax.jit(lambda x: jax.lax.scan(descend, x, None, length=STEPS + 1))(start)
    return np.asarray(ratios), np.asarray(chances)


def exact_improvement(bandits: int = 200, actions: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The gain in expected reward when the expected CPGD loss is minimised from the sampling policy, and the weight of
    the drift times KL(old || new), which the gain is never below (CPGD's improvement proposition), over bandits with
    drift weights of 1e-3 to 10. By 6,000 steps of gradient descent: near the minimum, not at it, for the smallest
    weights."""
    rng = np.random.default_rng(seed)
    start = jnp.asarray(rng.normal(0, 1.5, (bandits, actions)), jnp.float32)
    rewards = np.where(
        rng.random((bandits, 1)) < 0.5, rng.integers(0, 2, (bandits, actions)), rng.normal(size=(bandits, actions))
    )
    weights = jnp.asarray(10 ** rng.uniform(-3, 1, (bandits, 1)), jnp.float32)
    old = jax.nn.log_softmax(start)
    probabilities = jnp.exp(old)
    advantages = jnp.asarray(rewards, jnp.float32)
    advantages -= jnp.sum(probabilities * advantages, axis=1, keepdims=True)
    # The drift enters by its gradient, with the same weight for all of a batch: scale the advantages instead.
    loss = make_policy_loss(RLConfig(loss="cpgd", drift_coefficient=1.0))
    scaled = advantages / weights
    rates = 0.5 / (1 + jnp.abs(scaled).max(axis=1, keepdims=True))

    def expected_loss(logits: Array) -> Array:
        now = jax.nn.log_softmax(logits)[..., None]
        mask = jnp.ones((bandits, actions, 1), bool)
        return jnp.sum(probabilities[..., None] * loss(now, old[..., None], scaled[..., None], mask).loss)

    def descend(logits: Array, number: Array) -> tuple[Array, None]:
        return logits - rates / (1 + number / 200) * jax.grad(expected_loss)(logits), None

    logits, _ = jax.jit(lambda x: jax.lax.scan(descend, x, jnp.arange(6000)))(start)
    new = jax.nn.log_softmax(logits)
    gain = jnp.sum((jnp.exp(new) - probabilities) * advantages, axis=1)
    bound = weights[:, 0] * jnp.sum(probabilities * (old - new), axis=1)
    return np.asarray(gain), np.asarray(bound)


def draw(path: Path) -> dict[str, Any]:
    """Writes the picture and returns the numbers."""
    numbers: dict[str, Any] = {}
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": "bandits", "font.family": "sans-serif"}):
        figure = Figure(figsize=(10.5, 6.2), layout="constrained", facecolor="white")
        panels = figure.subplots(2, 3)
        for axes, advantage, title in zip(panels[0], (1.0, -1.0), ("right answer", "wrong answer"), strict=False):
            for name, loss in LOSSES.items():
                axes.plot(RATIOS, gradient_weights(loss, advantage), label=name, **LINES[name])
            axes.set_title(f"gradient weight of a token, {title} (A = {advantage:+.0f})", loc="left", fontsize=9)
            ratio_axis(axes)
        panels[0, 1].set_ylim(-4, 0.5)
        numbers["weight_at_ratio_8"] = {
            name: round(float(gradient_weights(loss, -1.0)[-1]), 3) + 0.0 for name, loss in LOSSES.items()
        }

        inside = np.linspace(0.805, 1.195, 79)  # both bounds within
        axes = panels[0, 2]
        for name in ("PPO-clip", "CPG"):
            for advantage, style in ((1.0, "solid"), (-1.0, (0, (1, 1.2)))):
                after = ratio_after_step(LOSSES[name], advantage, inside)
                label = f"{name}, A = {advantage:+.0f}"
                axes.plot(inside, after - inside, color=LINES[name]["color"], linestyle=style, label=label)
                numbers[f"move_{name}_{advantage:+.0f}"] = [round(float(x), 4) for x in (after - inside)[[0, -1]]]
        axes.set_title("how far one step moves the ratio", loc="left", fontsize=9)
        axes.set_xlabel("ratio before the step")
        axes.legend(frameon=False, fontsize=7)

        for name, loss in LOSSES.items():
            ratios, chances = steps_on_one_sample(loss)
            panels[1, 0].plot(np.median(ratios, axis=1), **LINES[name])
            panels[1, 1].plot(chances.mean(axis=1), **LINES[name])
            numbers[f"steps_{name}"] = {
                "ratio_median": round(float(np.median(ratios[-1])), 2),
                "ratio_p90": round(float(np.quantile(ratios[-1], 0.9)), 2),
                "chance_best": round(float(chances.mean(axis=1).max()), 4),
                "chance_end": round(float(chances[-1].mean()), 4),
            }
        panels[1, 0].set_yscale("log")
        panels[1, 0].set_title("largest ratio of a sample used again", loc="left", fontsize=9)
        panels[1, 1].set_title("chance of a right answer meanwhile", loc="left", fontsize=9)
        for axes in panels[1, :2]:
            axes.set_xlabel("gradient steps on the same answers")

        gain, bound = exact_improvement()
        axes = panels[1, 2]
        ends = (1e-5, 3.0)
        axes.plot(
            np.maximum(bound, ends[0]), np.maximum(gain, ends[0]), "o", markersize=2.5, color="#3f8f5f", alpha=0.6
        )
        axes.plot(ends, ends, color="#6b7785", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xlabel="drift weight · KL(old ‖ new)")
        axes.set_title("gain of an exact CPGD step", loc="left", fontsize=9)
        moved = bound > 0  # where all rewards are equal, nothing moves
        numbers["improvement"] = {
            "bandits": int(moved.sum()),
            "smallest_margin": float(np.min(gain - bound)),
            "smallest_gain_over_bound": round(float(np.min(gain[moved] / bound[moved])), 2),
        }
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    write_atomic(path, buffer.getvalue())
    return numbers


def ratio_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([0.25, 0.5, 1, 2, 4, 8]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("ratio")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bandits", description="Exact studies of the losses.", allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the picture")
    args = parser.parse_args(arguments)
    try:
        figures = draw(args.out / "bandits.svg")
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(json.dumps(figures | {"jax": jax.__version__}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
