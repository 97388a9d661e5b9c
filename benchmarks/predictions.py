"""Predicted times by formulas: next to published ones, and against the number of chips. Nothing is compiled or run.

    python -m benchmarks.predictions --out DIR        # published.md, chips.md, chips.png

Published: MFU of MaxText's models on TPU v5e and v5p, and EasyR1's step on 8 H100, with the settings of their sources.
Against chips: the 7B recipe, with its own batches and with 8 times as many prompts, each at the mesh and the sizes that
are estimated best for so many chips (planning/search.py). The plot also shows what `benchmarks.scale` holds of compiled
programs on v5e, at the settings that the recipe names.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from benchmarks.common import significant
from benchmarks.scale import MORE_CHIPS, RESULTS
from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.schema import Config
from mmeureka_jax.files import explain_write_errors, write_atomic
from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.models.decoder_config import TextConfig
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.planning.arithmetic import Model, language_parameters
from mmeureka_jax.planning.links import Route
from mmeureka_jax.planning.search import Estimate, as_overrides, best_candidates, estimate, with_changes
from mmeureka_jax.planning.step_time import Assumptions
from mmeureka_jax.report.charts import COLORS, STYLE
from mmeureka_jax.rl.optimizer import split_frozen
from mmeureka_jax.setup.chips import CHIPS, Chip
from mmeureka_jax.setup.released_models import write_released_model

RECIPE = "configs/mm_eureka_qwen_7b.yaml"
GEOMETRY = "configs/geometry3k_qwen_7b.yaml"
CHIP_COUNTS = (16, 32, 64, 128, 256, 512, 1024)
PARTS = ("prefill", "decode", "decode links", "update", "update links")

# EasyR1 v0.3.2: seconds a step, and tokens a second and GPU, with examples/config.yaml (512 prompts of 5 responses).
EASYR1 = "https://github.com/hiyouga/EasyR1/blob/f9e34640f09bc76300a77023c6a2253ea63a21a0/assets/baselines.md"
EASYR1_SECONDS = 145
EASYR1_TOKENS = 1600
EASYR1_PROMPT = 400  # tokens, taken: pictures of data.min_pixels are 334, the rest are responses


@dataclass(frozen=True)
class Published:
    """A row of MaxText's tables. Sizes follow from `global_parameter_scale` (its configs/base.yml and pyconfig.py)."""

    name: str
    chip: str
    chips: int
    size: int  # hidden
    batch: int  # sequences of 2,048 tokens on a chip
    remat: bool
    tensor: int
    mfu: float


MAXTEXT = "https://github.com/AI-Hypercomputer/maxtext/tree/main/src/MaxText/configs"
TABLE = (
    Published("16B", "v5e", 256, 4096, 6, True, 1, 0.611),
    Published("32B", "v5e", 256, 8192, 4, True, 1, 0.6686),
    Published("32B", "v5p", 64, 8192, 7, False, 4, 0.6776),
)
LENGTH = 2048


def chip_of(name: str) -> Chip:
    return next(chip for chip in CHIPS if chip.name == name)


def predicted_mfu(row: Published, rates: Assumptions) -> float:
    """Of a training step: products, or gathers of the weights (twice) and the scatter of gradients; and the activations
    that tensor parallelism adds up."""
    text = TextConfig(
        vocab_size=32000, hidden_size=row.size, intermediate_size=28672, num_layers=32, num_heads=64, num_kv_heads=64,
        head_dim=128, rms_norm_eps=1e-5, rope_theta=1e4, mrope_section=(64, 0, 0), tie_word_embeddings=False,
        attention_bias=False,
    )  # fmt: skip
    chip = chip_of(row.chip)
    model = Model(text, None, 0, language_parameters(text), "frozen", row.remat, 2, 4)
    work = model.update(0, (LENGTH,)) * row.batch
    compute = work.hardware / (rates.compute * chip.flops)
    ring = Route(row.chips // row.tensor, 1, chip.interconnect_bandwidth, 16, False, chip.network_bandwidth)
    weights = 3 * ring.seconds("all-gather", 2 * model.trained / row.tensor) / rates.links
    tensor = Route(row.tensor, 1, 2 * chip.link_bandwidth, 2, False, chip.network_bandwidth)
    activations = 4 * text.num_layers * tensor.seconds("all-reduce", row.batch * row.tensor * LENGTH * row.size * 2)
    seconds = max(compute, weights) + (activations / rates.links if row.tensor > 1 else 0.0)
    return work.model / seconds / chip.flops


def model_of(config: Config, folder: Path) -> Model:
    assert config.model.checkpoint is not None
    released = write_released_model(config.model.checkpoint, folder / config.model.checkpoint.replace("/", "_"))
    policy = Policy(read_config(released), compute_dtype="bfloat16", remat=config.model.remat == "full")
    trainable, _ = split_frozen(policy.abstract_params(), policy.frozen(config.optimizer.frozen))
    return Model.of(policy, trainable)


def easyr1(folder: Path) -> dict[str, Any]:
    """EasyR1's step with the recipe of the same settings, as it is and with larger sampler calls."""
    config = load_config(GEOMETRY)
    tokens = EASYR1_TOKENS * 8 * EASYR1_SECONDS / (config.rl.prompts_per_rollout * config.rl.group_size)
    rates = Assumptions(response=tokens - EASYR1_PROMPT, prompt=EASYR1_PROMPT)
    model = model_of(config, folder)
    result: dict[str, Any] = {"published_s": EASYR1_SECONDS, "tokens_of_a_sequence": significant(tokens)}
    for calls in (config.sampler.batch_prompts, 128, 512):
        changed = with_changes(config, {"sampler.batch_prompts": calls})
        one = estimate(changed, model, chip_of("h100"), 8, rates)
        result[f"{calls} prompts a call"] = {part: significant(value) for part, value in one.parts.items()} | {
            "seconds": significant(one.seconds)
        }
    return result


def against_chips(config: Config, model: Model, chip: Chip) -> list[tuple[int, tuple[str, ...], Estimate]]:
    """The settings estimated best for each number of chips, and what they take."""
    rows = []
    for chips in CHIP_COUNTS:
        overrides, one = best_candidates(config, model, chip, chips, Assumptions())[0]
        rows.append((chips, as_overrides(overrides), one))
    return rows


def links_bind_from(rows: Sequence[tuple[int, tuple[str, ...], Estimate]]) -> int | None:
    """The first number of chips where waiting for other chips is more than half of a step."""
    waits = ((chips, one.parts["decode links"] + one.parts["update links"], one.seconds) for chips, _, one in rows)
    return next((chips for chips, waited, seconds in waits if waited > seconds / 2), None)


def chips_table(title: str, rows: Sequence[tuple[int, tuple[str, ...], Estimate]]) -> list[str]:
    lines = [f"## {title}", "", "| chips | " + " | ".join(PARTS) + " | step | GB a chip | settings |"]
    lines += ["| ---: " * (len(PARTS) + 3) + "| --- |"]
    for chips, overrides, one in rows:
        cells = [f"{one.parts[part]:.3g}" for part in PARTS]
        settings = f"`{' '.join(overrides)}`"
        lines.append(f"| {chips:,} | {' | '.join(cells)} | {one.seconds:.3g} | {one.bytes / 1e9:.1f} | {settings} |")
    return [*lines, ""]


def compiled_steps() -> list[list[tuple[int, float]]]:
    """(chips, seconds of a step) of compiled programs, for the recipe's batch and for 8 times as many prompts."""
    results = json.loads(RESULTS.read_text())
    plans = {name: results[name]["plan"] for name in MORE_CHIPS if name in results and "plan" in results[name]}
    steps = {name: (plan["chips"], plan["step_s"]) for name, plan in plans.items()}
    return [[step for name, step in steps.items() if ("8 x" in name) == larger] for larger in (False, True)]


def draw(
    panels: dict[str, list[tuple[int, tuple[str, ...], Estimate]]], compiled: Sequence[Sequence[tuple[int, float]]] = ()
) -> bytes:
    """A PNG: seconds of a step and of its parts against chips, on logarithmic axes. `compiled` are further steps of
    each panel, as (chips, seconds)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 3.8), dpi=160, layout="constrained")
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)
        for number, (title, rows) in enumerate(panels.items()):
            axes = grid[0, number]
            chips = [count for count, _, _ in rows]
            steps = [one.seconds for _, _, one in rows]
            axes.loglog(chips, steps, "o-", color="#1f2933", lw=2, markersize=4, label="step")
            for part, color in zip(PARTS, COLORS, strict=False):
                axes.loglog(chips, [one.parts[part] for _, _, one in rows], "-", color=color, label=part)
            ideal = [steps[0] * chips[0] / count for count in chips]
            axes.loglog(chips, ideal, ":", color="#6b7785", lw=1, label="step, 1 / chips")
            points = compiled[number] if compiled else ()
            if points:
                axes.loglog(*zip(*points, strict=True), "D", color="#1f2933", mfc="white", label="step, compiled")
            bound = links_bind_from(rows)
            if bound is not None:
                here = steps[chips.index(bound)]
                arrow = {"arrowstyle": "->", "lw": 0.8}
                axes.annotate("links bind", (bound, here), (bound, 1200), ha="center", fontsize=8, arrowprops=arrow)
            axes.set_xticks(chips, [f"{count:,}" for count in chips])
            axes.xaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.set_ylim(0.1, 2000)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel("chips")
        grid[0, 0].set_ylabel("seconds, estimated")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=8, frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    out = Path(args.out)
    rates = Assumptions()
    mfu = {f"{row.name} {row.chip}": (row.mfu, significant(predicted_mfu(row, rates))) for row in TABLE}
    recipe = load_config(RECIPE)
    larger = replace(
        recipe,
        rl=replace(recipe.rl, prompts_per_rollout=8 * 128, prompts_per_update=8 * 16, micro_batches=8),
    )
    model = model_of(recipe, folder)
    chip = chip_of(args.chip)
    panels = {
        "the paper's batch": against_chips(recipe, model, chip),
        "8 times as many prompts": against_chips(larger, model, chip),
    }
    published = ["| model | published MFU | estimated |", "| --- | ---: | ---: |"]
    published += [f"| {name} | {given:.1%} | {own:.1%} |" for name, (given, own) in mfu.items()]
    tables = [line for title, rows in panels.items() for line in chips_table(title, rows)]
    with explain_write_errors(out):
        write_atomic(out / "published.md", ("\n".join(published) + "\n").encode())
        write_atomic(out / "chips.md", "\n".join(tables).encode())
        write_atomic(out / "chips.png", draw(panels, compiled_steps() if args.chip == "v5e" else ()))
    bound = {title: links_bind_from(rows) for title, rows in panels.items()}
    return {"mfu": mfu, "links_bind_from": bound, "easyr1": easyr1(folder), "sources": [MAXTEXT, EASYR1]}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.predictions", description="Predicted times by formulas.")
    parser.add_argument("--chip", choices=[chip.name for chip in CHIPS], default="v5e", help="against chips: which")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder of the tables and the plot")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="predictions-") as folder:
        print(json.dumps({"benchmark": "predictions", **measure(args, Path(folder))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
