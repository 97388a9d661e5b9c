"""Which recipes fit on which devices: `mmeureka plan` for each row of the table in docs/scale.md.

    python -m benchmarks.scale                                # every row: hours of CPU time, no accelerator
    python -m benchmarks.scale --only "7B v5e:4x4" "7B h100:8"
    python -m benchmarks.scale --table                        # only the table of what is stored

A row is a recipe, the overrides that it names for the target, and the target. What `mmeureka plan --json` prints is
kept in `--results` (benchmarks/scale.json) with the parts of a step, the date and the versions; rows that are not
computed stay as they are. The tables are printed, and take the place of those in `--page` (docs/scale.md): all rows,
and those of one recipe from few chips to many.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mmeureka_jax.config.load import load_config
from mmeureka_jax.errors import EXIT_BAD_INPUT, UserError
from mmeureka_jax.files import write_atomic
from mmeureka_jax.planning.plan import Which, make_plan
from mmeureka_jax.planning.planned_run import stage_of
from mmeureka_jax.planning.printing import as_json
from mmeureka_jax.planning.targets import open_target

RESULTS = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).parents[1] / "docs" / "scale.md"
_BEGIN = "<!-- {}: python -m benchmarks.scale --table -->\n"
_END = "\n<!-- end of {} -->"
PACKAGES = ("jax", "jaxlib", "libtpu", "jax-cuda12-pjrt")


@dataclass(frozen=True)
class Row:
    """A line of the table: its name, and what `mmeureka plan` is called with."""

    name: str
    recipe: str
    target: str
    overrides: str = ""

    @property
    def command(self) -> str:
        return " ".join(["mmeureka plan", self.recipe, *self.overrides.split(), "--on", self.target])


QWEN_7B = "configs/mm_eureka_qwen_7b.yaml"
QWEN_32B = "configs/mm_eureka_qwen_32b.yaml"
INTERNVL_8B = "configs/mm_eureka_internvl_8b.yaml"
EIGHT_TIMES = "rl.prompts_per_update=128 rl.prompts_per_rollout=1024 rl.micro_batches=128"
ROWS = (
    Row("7B v5e:4x4", QWEN_7B, "v5e:4x4", "mesh.tensor=4 sampler.batch_prompts=16"),
    Row("7B v5e:8x8", QWEN_7B, "v5e:8x8", "mesh.tensor=4"),
    Row("7B v5e:16x16", QWEN_7B, "v5e:16x16", "mesh.tensor=4 sampler.batch_prompts=128"),
    Row("7B v6e:4x4", QWEN_7B, "v6e:4x4", "mesh.tensor=2"),
    Row("7B v5p:2x2x2", QWEN_7B, "v5p:2x2x2"),
    Row("7B h100:8", QWEN_7B, "h100:8"),
    Row("32B v5p:4x4x4", QWEN_32B, "v5p:4x4x4"),
    Row("32B v5e:16x16", QWEN_32B, "v5e:16x16", "mesh.tensor=8"),
    Row("InternVL2.5-8B v5e:4x4", INTERNVL_8B, "v5e:4x4", "mesh.tensor=4 sampler.batch_prompts=8"),
    Row("InternVL2.5-38B v5p:4x4x4", "configs/mm_eureka_zero_38b.yaml", "v5p:4x4x4", "mesh.tensor=4"),
    Row("7B LoRA v5e:2x2", QWEN_7B, "v5e:2x2", "model.lora={} mesh.tensor=4 sampler.batch_prompts=4"),
    Row("3B v5e:2x4", "configs/small/qwen_3b.yaml", "v5e:2x4"),
    Row("3B LoRA v5e:2x4", "configs/small/qwen_3b_lora.yaml", "v5e:2x4"),
    Row("3B LoRA v5e:1x1", "configs/small/qwen_3b_lora_v5e.yaml", "v5e:1x1"),
    Row("3B LoRA v6e:1x1", "configs/small/qwen_3b_lora_v6e.yaml", "v6e:1x1"),
    Row(
        "7B, 8 x the batch, 4xv5e:16x16", QWEN_7B, "4xv5e:16x16",
        f"mesh.tensor=4 mesh.slices=4 mesh.data=4 {EIGHT_TIMES} sampler.batch_prompts=1024",
    ),
)  # fmt: skip
KINDS = ("start", "decode", "gradients")
# The rows of the table from few chips to many, of one recipe.
MORE_CHIPS = ("7B v5e:4x4", "7B v5e:8x8", "7B v5e:16x16", "7B, 8 x the batch, 4xv5e:16x16")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="+", metavar="ROW", choices=names, help="these rows")
    parser.add_argument("--programs", choices=("largest", "all"), default="largest", help="see mmeureka plan")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where results are kept")
    parser.add_argument("--page", type=Path, default=PAGE, help="the Markdown page with the tables")
    parser.add_argument("--table", action="store_true", help="compute nothing")
    parser.add_argument("--row", metavar="ROW", choices=names, help="only print what a row's process hands to this one")
    args = parser.parse_args(arguments)
    if args.row is not None:
        return print_row(next(row for row in ROWS if row.name == args.row), args.programs)
    results = json.loads(args.results.read_text()) if args.results.is_file() else {}
    for row in ROWS:
        if not args.table and (args.only is None or row.name in args.only):
            results[row.name] = computed(row, args.programs)
            write_atomic(args.results, (json.dumps(results, indent=1) + "\n").encode())
    page = args.page.read_text()
    for name, lines in (("table", table(results)), ("chips", more_chips(results))):
        before, rest = page.split(_BEGIN.format(name))
        page = before + _BEGIN.format(name) + "\n".join(lines) + _END.format(name) + rest.split(_END.format(name))[1]
        print("\n".join(lines))
    write_atomic(args.page, page.encode())
    return 0


def print_row(row: Row, programs: Which) -> int:
    """What `mmeureka plan --json` prints for a row, and the parts of a step."""
    config = load_config(Path(row.recipe), row.overrides.split())
    try:
        plan = make_plan(stage_of(config, 1), open_target(row.target), which=programs, quiet=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    phases = {phase.name: dataclasses.asdict(phase.cost) | {"seconds": phase.seconds} for phase in plan.time.phases}
    print(json.dumps({"plan": as_json(plan), "phases": phases}))
    return 0


def computed(row: Row, programs: str) -> dict[str, Any]:
    """What a row's process prints, or why it prints nothing."""
    print(f"{row.name}: {row.command}", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "benchmarks.scale", "--row", row.name, "--programs", programs]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    content: dict[str, Any] = {
        "command": row.command,
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
        "wall_s": round(time.monotonic() - started),
    }
    if done.returncode != 0:
        return content | {"error": done.stderr.strip()[-2000:]}
    return content | json.loads(done.stdout.splitlines()[-1])


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def table(results: Mapping[str, Any]) -> list[str]:
    """The rows in Markdown, each with the program that needs the most.

    GB are 10^9 bytes of one device; `needed` is the compiler's peak and what lies there besides.
    """
    header = ("recipe and target", "overrides", "largest program", "peak", "resident", "needed", "limit", "free")
    header = (*header, "step", "verdict")
    lines = [f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    return lines + [f"| {' | '.join(cells_of(row, results.get(row.name)))} |" for row in ROWS]


def cells_of(row: Row, result: Mapping[str, Any] | None) -> tuple[str, ...]:
    name = f"{row.name} ([recipe](../{row.recipe}))"
    overrides = f"`{row.overrides}`" if row.overrides else "none"
    if result is None or result["command"] != row.command:
        return (name, overrides, "not computed", *[""] * 7)
    if "error" in result:
        return (name, overrides, *[""] * 7, f"refused: {result['error'].splitlines()[-1]}")
    plan = result["plan"]
    limit = plan["limit_bytes"]
    worst = max(plan["programs"], key=lambda program: program["peak_bytes"] + program["resident_bytes"])
    needed = worst["peak_bytes"] + worst["resident_bytes"]
    sizes = [f"{size / 1e9:.1f}" for size in (worst["peak_bytes"], worst["resident_bytes"], needed, limit)]
    step = f"{plan['step_s']:.0f} s, {plan['binding']}" if plan["step_s"] is not None else ""
    verdict = "fits" if plan["fits"] else "**does not fit**"
    return (name, overrides, worst["name"], *sizes, f"{1 - needed / limit:.0%}", step, verdict)


def more_chips(results: Mapping[str, Any]) -> list[str]:
    """The rows of `MORE_CHIPS` in Markdown: what a chip needs for each program, and what a step takes."""
    header = ("recipe and target", "chips", "state", *(f"`{kind}`" for kind in KINDS), "prefill", "decode", "update")
    header = (*header, "of it links", "step")
    lines = [f"| {' | '.join(header)} |", "| --- |" + " ---: |" * (len(header) - 1)]
    return lines + [f"| {' | '.join(cells_of_chips(name, results.get(name)))} |" for name in MORE_CHIPS]


def cells_of_chips(name: str, result: Mapping[str, Any] | None) -> tuple[str, ...]:
    command = next(row.command for row in ROWS if row.name == name)
    if result is None or result["command"] != command or "phases" not in result:
        return (name, "not computed", *[""] * (len(KINDS) + 6))
    plan = result["plan"]
    by_kind = {program["name"].partition(",")[0]: program for program in plan["programs"]}
    needed = [by_kind[kind]["peak_bytes"] + by_kind[kind]["resident_bytes"] for kind in KINDS]
    state = by_kind["optimiser"]["resident_bytes"] + by_kind["optimiser"]["peak_bytes"]
    phases = result["phases"]
    links = sum(phase["ahead"] + phase["waited"] for phase in phases.values())
    seconds = [phases[phase]["seconds"] for phase in ("prefill", "decode", "update")]
    return (
        name,
        f"{plan['chips']:,}",
        *(f"{size / 1e9:.1f}" for size in (state, *needed)),
        *(f"{value:.0f}" for value in (*seconds, links)),
        f"{plan['step_s']:.0f} s",
    )


if __name__ == "__main__":
    sys.exit(main())
