"""Gradients of the project's loss for Qwen2.5-7B, compiled for a TPU slice that is not there: a side of
`benchmarks.vs_tunix_compiled`.

A micro-batch of text prompts whose responses all have `--new` tokens, a prompt and its responses in one row. The
gradients are added to those of the micro-batches before, in place.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path

import jax

from benchmarks.peers.operations import operations
from mmeureka_jax.config.load import load_config
from mmeureka_jax.files import read_json
from mmeureka_jax.mesh import Program
from mmeureka_jax.planning.planned_run import open_run
from mmeureka_jax.planning.targets import open_target
from mmeureka_jax.setup.released_models import write_released_model

MODEL = "Qwen/Qwen2.5-7B-Instruct"
RECIPE = Path(__file__).parents[1] / "configs" / "gsm8k_qwen_1_5b.yaml"


def settings(args: argparse.Namespace, model: Path) -> list[str]:
    """The work as overrides of the recipe: two micro-batches an update, so that gradients are a program."""
    return [
        f"model.checkpoint={model}",
        "model.compute_dtype=bfloat16",
        "model.remat=full",
        f"data.max_prompt_tokens={args.prompt}",
        f"data.prompt_buckets=[{args.prompt}]",
        f"sampler.max_new_tokens={args.new}",
        f"rl.group_size={args.group}",
        f"rl.prompts_per_rollout={2 * args.prompts}",
        f"rl.prompts_per_update={2 * args.prompts}",
        "rl.micro_batches=2",
        "rl.row_tokens=0",
        "rl.packing=0",
        "sampler.batch_prompts=0",
        f"mesh.tensor={args.tensor}",
    ]


def gradients(args: argparse.Namespace, folder: Path) -> tuple[jax.stages.Compiled, float]:
    """The program, and its operations."""
    target = open_target(args.topology)
    model = write_released_model(MODEL, folder / "model")
    config_file = model / "config.json"
    config_file.write_text(json.dumps(read_json(config_file) | {"num_hidden_layers": args.layers}))
    run = open_run(load_config(RECIPE, settings(args, model)), target, folder)
    with jax.set_mesh(run.opened.mesh):
        (program,) = [one for one in run.programs().all if one.name.startswith("gradients")]
        return compile_program(program)


def compile_program(program: Program) -> tuple[jax.stages.Compiled, float]:
    traced = program.function.trace(*program.arguments)
    return traced.lower().compile(), operations(traced.jaxpr.jaxpr)


def main() -> None:
    parser = argparse.ArgumentParser(description="The project's gradients, compiled.", allow_abbrev=False)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--text", required=True, metavar="FILE", help="the compiled program's text goes here")
    for name in ("tensor", "layers", "prompts", "group", "prompt", "new"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compiled, count = gradients(args, Path(folder))
    Path(args.text).write_text(compiled.as_text())
    figures = {"operations": count, "peak_bytes": compiled.memory_analysis().peak_memory_in_bytes}
    print(json.dumps(figures | {"versions": {name: version(name) for name in ("jax", "libtpu")}}), flush=True)


if __name__ == "__main__":
    main()
