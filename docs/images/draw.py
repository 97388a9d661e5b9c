"""The pictures of the README.

python docs/images/draw.py group                                     a prompt and its group of answers
python docs/images/draw.py demo [RUN]                                the two curves of `make demo`, from RUN (runs/demo)
"""

from __future__ import annotations

import io
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.image
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from mmeureka_jax.data.shapes.problems import generate
from mmeureka_jax.report.charts import STYLE
from mmeureka_jax.rewards.accuracy import accuracy
from mmeureka_jax.rewards.rules.format import follows_format
from mmeureka_jax.rl.advantages import grpo

FOLDER = Path(__file__).parent
RIGHT = "#3f8f5f"
WRONG = "#c0504d"
INK = "#2b3440"
GREY = "#6b7785"
FORMAT_WEIGHT = 0.5  # the default of reward.format_weight
COLUMNS = {"accuracy": 0.70, "format": 0.775, "reward": 0.85, "advantage": 0.94}


def draw_group() -> Figure:
    """A problem of the built-in data, four answers to it, their rewards by the rules and their GRPO advantages."""
    mixture = [("dots", "easy")]
    problem = generate(4, split="train", mixture=mixture)
    guesses = [generate(index, split="train", mixture=mixture).hasty for index in (1, 2)]
    untagged = "glancing at it, maybe this. <answer>5</answer>"
    responses = [problem.careful, guesses[0], guesses[1], untagged]
    scores = np.array([[accuracy(r, problem.answer, "instruct"), follows_format(r)] for r in responses])
    rewards = scores @ [1.0, FORMAT_WEIGHT]
    advantages = grpo(rewards[None])[0]

    figure = Figure(figsize=(9.6, 3.5), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    picture = figure.add_axes((0.02, 0.26, 0.19, 0.52))
    picture.imshow(matplotlib.image.imread(io.BytesIO(problem.image)), interpolation="nearest")
    picture.set(xticks=[], yticks=[])
    axes.text(0.115, 0.92, "one prompt, computed once", ha="center", color=GREY, fontsize=9)
    axes.text(0.115, 0.16, problem.question, ha="center", color=INK, fontsize=8.5)
    axes.text(0.115, 0.08, f"gold answer: {problem.answer}", ha="center", color=GREY, fontsize=9)
    axes.text(0.285, 0.92, f"n = {len(responses)} responses to it, sampled", color=GREY, fontsize=9)
    for name, x in COLUMNS.items():
        axes.text(x, 0.92, name, ha="center", color=GREY, fontsize=9)
    for row, response in enumerate(responses):
        values = [*scores[row], rewards[row], advantages[row]]
        _draw_response(axes, 0.77 - 0.2 * row, response, dict(zip(COLUMNS, values, strict=True)))
    return figure


def _draw_response(axes: Axes, y: float, response: str, values: dict[str, float]) -> None:
    """One row: an arrow from the prompt, the text, its rewards and its advantage."""
    colour = RIGHT if values["advantage"] > 0 else WRONG
    axes.annotate("", (0.275, y), (0.22, 0.52), arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 0.9})
    thought, answer = response.split("<answer>")
    text = "\n".join([*textwrap.wrap(thought, 60), f"<answer>{answer}"])
    axes.text(0.285, y, text, va="center", color=INK, fontsize=7.2, family="monospace")
    for name, value in values.items():
        form = "{:+.2f}" if name == "advantage" else "{:g}"
        weight = "bold" if name == "advantage" else "normal"
        shown = form.format(value)
        axes.text(COLUMNS[name], y, shown, ha="center", va="center", fontsize=10, color=colour, weight=weight)


def draw_demo(run: Path) -> Figure:
    """Imitation (its loss) and reinforcement learning (accuracy), step by step."""
    imitation = _rows(run / "sft/metrics.jsonl")
    learning = _rows(run / "rl/metrics.jsonl")
    figure = Figure(figsize=(9.6, 3.0), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    left.plot(*_series(imitation, "sft/loss"), color=GREY, linewidth=1.4)
    left.set(xlabel="step", ylabel="loss per token", ylim=(0, None))
    left.set_title("1. Imitation of worked solutions, careful and hasty", loc="left", fontsize=10)

    right.plot(*_series(learning, "reward/accuracy"), color=GREY, linewidth=1.2, label="sampled, training problems")
    steps, held_out = _series(learning, "validation/accuracy")
    right.plot(steps, held_out, "o-", color=RIGHT, linewidth=1.8, markersize=4, label="greedy, held-out problems")
    for step, value, offset in ((steps[0], held_out[0], (8, -3)), (steps[-1], held_out[-1], (-22, -14))):
        right.annotate(f"{value:.1%}", (step, value), offset, textcoords="offset points", color=RIGHT, weight="bold")
    right.set(xlabel="step", ylabel="accuracy", ylim=(0, 1))
    right.yaxis.set_major_formatter(PercentFormatter(1.0))
    right.set_title("2. Reinforcement learning with rewards by rule (CPGD)", loc="left", fontsize=10)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _series(rows: list[dict[str, Any]], metric: str) -> tuple[list[int], list[float]]:
    kept = [row for row in rows if metric in row]
    return [row["step"] for row in kept], [row[metric] for row in kept]


def main(what: str, run: str = "runs/demo") -> None:
    style = STYLE | {"svg.hashsalt": what, "font.family": "sans-serif", "svg.fonttype": "path"}
    with matplotlib.rc_context(style):
        figure = draw_group() if what == "group" else draw_demo(Path(run))
        figure.savefig(FOLDER / f"{what}.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
