"""How the time of a step grows with the group, the prompt, the response and the vocabulary, one at a time.

    python -m benchmarks.scaling --model tiny --out DIR
    python -m benchmarks.scaling --config 3b --prompts 2 --axes group new --out DIR

Each point is a rollout of exactly `--new` tokens a response and one update on all of it, timed separately, with their
floors at the rates that the device showed in the same run (see floors.py and roofline.py). Weights are random.
DIR/scaling.md is the table, DIR/scaling.png the plot. Where the time grows faster than the floor (`growth_over_floor`
above 1), the larger point has more of what is no product at the device's best rate; where it grows faster than the
floor of kernels (`growth_over_kernel_floor`), something in the program costs more than the kernels of its layers.
Where it grows slower, the smaller point had overhead to spare.
"""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.common import (
    WARM_UP,
    add_group_argument,
    add_prompt_arguments,
    add_training_arguments,
    make_parser,
    open_model,
    peak_memory_mb,
    positive,
    run_benchmark,
    significant,
    time_calls,
)
from benchmarks.rates import Rates, measure_rates
from benchmarks.roofline import (
    generation_floor,
    one_device,
    rollout_call,
    sizes,
    update_call,
    update_floor,
    with_vocabulary,
)
from mmeureka_jax.files import explain_write_errors, write_atomic
from mmeureka_jax.process.console import progress
from mmeureka_jax.report.charts import COLORS, STYLE
from mmeureka_jax.setup.policy import OpenedPolicy

AXES = {
    "group": (2, 4, 8, 16, 32),
    "prompt": (64, 128, 256, 512, 1024, 2048),
    "new": (16, 32, 64, 128, 256),
    "vocab": (512, 2048, 8192, 32768, 131072),
}
QUICK_AXES = {"group": (2, 4), "prompt": (32, 64), "new": (4, 8), "vocab": (512, 1024)}
QUICK_BASE = {"prompts": 2, "group": 2, "prompt": 32, "new": 4, "side": 56, "repeats": 1}
LABELS = {"group": "group size", "prompt": "prompt tokens", "new": "response tokens", "vocab": "vocabulary"}
PARTS = ("rollout", "update")


@dataclass(frozen=True)
class Point:
    """What is varied. Everything else is as the options say."""

    group: int
    prompt: int
    new: int
    vocab: int


@dataclass(frozen=True)
class Curve:
    """The points of one axis, ascending: seconds of each part, measured and as its floors."""

    axis: str
    values: list[int]
    measured: dict[str, list[float]]
    floor: dict[str, list[float]]
    kernel_floor: dict[str, list[float]]

    @classmethod
    def of(cls, axis: str, rows: Sequence[dict[str, Any]]) -> Curve:
        """From the rows of a result."""
        own = [row for row in rows if row["axis"] == axis]
        kinds = [
            {part: [row[f"{part}{end}"] for row in own] for part in PARTS}
            for end in ("_s", "_floor_s", "_kernel_floor_s")
        ]
        for seconds in kinds:
            seconds["step"] = [sum(parts) for parts in zip(*seconds.values(), strict=True)]
        return cls(axis, [row[axis] for row in own], *kinds)

    def growth(self) -> dict[str, dict[str, float | bool]]:
        """From the first point to the last, of each part: measured, of either floor, and their ratios."""
        result = {}
        for part in self.measured:
            grown, floor, kernels = (
                seconds[part][-1] / seconds[part][0] for seconds in (self.measured, self.floor, self.kernel_floor)
            )
            result[part] = {
                "growth": significant(grown),
                "floor_growth": significant(floor),
                "growth_over_floor": significant(grown / floor),
                "exceeds_floor": grown > floor,
                "kernel_floor_growth": significant(kernels),
                "growth_over_kernel_floor": significant(grown / kernels),
                "exceeds_kernel_floor": grown > kernels,
            }
        return result


def slopes(values: Sequence[float], seconds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Between neighbouring points: their geometric mean, and d log(seconds) / d log(value) (1: proportional)."""
    x = np.log(values)
    y = np.log(seconds)
    return np.exp((x[1:] + x[:-1]) / 2), np.diff(y) / np.diff(x)


# Measuring.


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    one_device()
    out = Path(args.out)
    with explain_write_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    if args.quick:
        vars(args).update(QUICK_BASE)
    axes = {axis: (QUICK_AXES if args.quick else AXES)[axis] for axis in args.axes}
    opened = open_model(args, folder)
    text = opened.policy.config.text
    base = Point(args.group, args.prompt, args.new, text.vocab_size)
    places = [(axis, Point(**asdict(base) | {axis: value})) for axis, values in axes.items() for value in values]
    rows: list[dict[str, Any]] = []
    known: dict[Point, dict[str, float]] = {}  # the base point is on several axes
    with jax.set_mesh(opened.mesh), progress(len(places) + 1, "scaling", unit="point") as bar:
        rates = measure_rates(opened.policy.compute_dtype, opened.policy.config, args.prompts * args.prompt)
        bar.update()
        for axis, point in places:
            if point not in known:
                known[point] = measure_point(args, opened, point, rates)
                jax.clear_caches()  # programs of this size are not needed again
            rows.append({"axis": axis, **asdict(point), **known[point]})
            bar.update()
    curves = [Curve.of(axis, rows) for axis in axes]
    with explain_write_errors(out):
        write_atomic(out / "scaling.md", table(curves, base, args, rates).encode())
        write_atomic(out / "scaling.png", draw(curves))
    return {
        "rows": rows,
        "growth": {curve.axis: curve.growth() for curve in curves},
        "base": asdict(base),
        **rates.figures(),
        "peak_memory_mb": peak_memory_mb(),
        "compiles": sum(row["compiles"] for row in rows),
    }


def measure_point(args: argparse.Namespace, opened: OpenedPolicy, point: Point, rates: Rates) -> dict[str, float]:
    """Seconds of a rollout and of an update at one point, and their floors."""
    here = argparse.Namespace(**vars(args) | asdict(point))
    opened = with_vocabulary(opened, point.vocab)
    batch = sizes(here, opened.policy.config)
    params = opened.load_params()
    shape = (here.prompts, here.group, here.prompt, here.new, here.side)
    rollout = time_calls(rollout_call(opened, params, *shape), here.repeats)
    del params  # the learner loads its own
    update = time_calls(update_call(opened, here, WARM_UP + here.repeats), here.repeats)
    result: dict[str, float] = {"compiles": rollout.compiles + update.compiles}
    works = (generation_floor(opened, batch), update_floor(opened, batch, here.train, here.micro_batches))
    for part, timing, work in zip(PARTS, (rollout, update), works, strict=True):
        result[f"{part}_s"] = significant(timing.median)
        result[f"{part}_floor_s"] = significant(rates.seconds(work.values()))
        result[f"{part}_kernel_floor_s"] = significant(rates.kernel_seconds(work.values()))
    return result


# Showing.


def table(curves: Sequence[Curve], base: Point, args: argparse.Namespace, rates: Rates) -> str:
    """Markdown, a table an axis."""
    lines = [
        "# Step time against size",
        "",
        f"Around {args.prompts} prompts x {base.group} responses, prompt {base.prompt}, response {base.new}, "
        f"vocabulary {base.vocab}; seconds, medians of {args.repeats}. Floors at {rates.matmul / 1e9:,.0f} GFLOP/s and "
        f"{rates.copy / 1e9:,.1f} GB/s; those of kernels with attention's products at "
        f"{rates.kernels.attention / 1e9:,.0f} GFLOP/s, {rates.kernels.exponential / 1e9:,.2f} G exponentials/s and "
        f"caches at {rates.kernels.cache / 1e9:,.1f} GB/s; all measured in the same run.",
    ]
    for curve in curves:
        lines += ["", f"## {LABELS[curve.axis].capitalize()}", ""]
        lines += [
            f"| {LABELS[curve.axis]} | rollout | floor | ratio | kernels | ratio | update | floor | ratio | kernels "
            "| ratio | step | slope | of floor |"
        ]
        lines += ["| ---: " * 14 + "|"]
        step, floor = (slopes(curve.values, seconds["step"])[1] for seconds in (curve.measured, curve.floor))
        for place, value in enumerate(curve.values):
            cells = [f"{value:,}"]
            for part in PARTS:
                seconds = curve.measured[part][place]
                cells += [f"{seconds:.3g}"]
                for least in (curve.floor[part][place], curve.kernel_floor[part][place]):
                    cells += [f"{least:.3g}", f"{seconds / least:.2f}"]
            cells += [f"{curve.measured['step'][place]:.3g}"]
            cells += [f"{step[place - 1]:.2f}", f"{floor[place - 1]:.2f}"] if place else ["", ""]
            lines.append(f"| {' | '.join(cells)} |")
        lines += [""]
        for part, growth in curve.growth().items():
            lines.append(
                f"- {part}: x {growth['growth']:.3g} from the first to the last; the floor "
                f"x {growth['floor_growth']:.3g} (ratio {growth['growth_over_floor']:.2f}), "
                f"that of kernels x {growth['kernel_floor_growth']:.3g} "
                f"(ratio {growth['growth_over_kernel_floor']:.2f})"
            )
    return "\n".join(lines) + "\n"


def draw(curves: Sequence[Curve]) -> bytes:
    """A PNG: for each axis the seconds, measured and floors, and below them the local slopes."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(3.0 * len(curves), 4.5), 4.8), dpi=160, layout="constrained")
        grid = figure.subplots(2, len(curves), squeeze=False, sharex="col", height_ratios=[5, 3])
        for column, curve in zip(grid.T, curves, strict=True):
            draw_curve(curve, *column)
        grid[0, 0].set_ylabel("seconds")
        grid[1, 0].set_ylabel("local slope")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw_curve(curve: Curve, seconds: Axes, slope: Axes) -> None:
    for part, color in zip(PARTS, COLORS, strict=False):
        for kind, values, style in lines_of(curve, part):
            label = f"{part}, {kind}"
            seconds.loglog(curve.values, values, style, color=color, markersize=3.5, label=label)
            slope.plot(*slopes(curve.values, values), style, color=color, markersize=3.5)
    seconds.set_title(LABELS[curve.axis], fontsize=9)
    slope.set_xscale("log")
    slope.set_xticks(curve.values, [f"{value:,}" for value in curve.values])
    slope.tick_params(axis="x", labelrotation=35 if max(curve.values) > 9999 else 0)
    slope.xaxis.set_minor_locator(NullLocator())
    slope.axhline(1.0, color="#b8c0ca", linewidth=0.8)
    slope.set_ylim(min(-0.1, slope.get_ylim()[0]), max(1.3, slope.get_ylim()[1]))
    plain_seconds(seconds)


def lines_of(curve: Curve, part: str) -> Iterator[tuple[str, list[float], str]]:
    yield "measured", curve.measured[part], "o-"
    yield "floor of kernels", curve.kernel_floor[part], "^--"
    yield "floor", curve.floor[part], "s:"


def plain_seconds(axes: Axes) -> None:
    """Ticks at 1, 2 and 5 of each decade where there are few decades, in plain figures."""
    low, high = axes.get_ylim()
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(decades) <= 4 else (1,)
    axes.set_yticks([step * 10.0**decade for decade in decades for step in steps])
    axes.set_ylim(low, high)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("scaling", "Step time against group, prompt, response and vocabulary.")
    parser.set_defaults(cpu_devices=1)
    add_training_arguments(parser)
    add_group_argument(parser, default=8)
    add_prompt_arguments(parser, length=128, side=112)
    parser.set_defaults(prompts=4)
    parser.add_argument("--axes", choices=tuple(AXES), nargs="+", default=list(AXES), help="what is varied")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--quick", action="store_true", help="two small points an axis: whether it runs")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the table and the plot")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(measure, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())
