"""Compiles the update and the sampler of a config for a TPU v5e:2x2 that is not there; run by test_tpu_compile.py.

    python -m tests.helpers.compile_for_tpu CONFIG WORK_DIR [key.sub=value ...]

Prints one JSON object: for each program, what its memory is used for (bytes on one chip) and which collectives it has.
It is a process of its own because libtpu is loaded into it, and set up by environment variables.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

TOPOLOGY = "v5e:2x2"
os.environ |= {
    "JAX_PLATFORMS": "cpu",  # the process's own devices
    "TPU_SKIP_MDS_QUERY": "1",  # there is no machine whose metadata could be asked for
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is taken, so none has to be locked
}

import jax  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from mmeureka_jax.config.load import load_config  # noqa: E402
from mmeureka_jax.mesh import Program  # noqa: E402
from mmeureka_jax.setup.policy import find_checkpoint, open_policy  # noqa: E402
from mmeureka_jax.training.job import make_learner  # noqa: E402
from mmeureka_jax.training.programs import run_programs  # noqa: E402
from mmeureka_jax.training.rl import recipe  # noqa: E402


def main(config_file: str, work_dir: str, *overrides: str) -> dict[str, Any]:
    config = load_config(config_file, overrides)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    checkpoint = find_checkpoint(config.model, Path(work_dir))
    opened = open_policy(checkpoint, config.model, config.mesh, devices=list(devices))
    job = recipe(config)
    learner = make_learner(config, job, opened)
    state = learner.abstract_state()
    described: dict[str, Any] = {"state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))}
    with jax.set_mesh(opened.mesh):  # nothing can be executed on devices that are not there
        programs = run_programs(config, job, opened, learner, image_windows=1)
        for name, program in some_of(programs).items():
            described[name] = describe(program.lower().compile())
    return described


def some_of(programs: list[Program]) -> dict[str, Program]:
    """A program of each kind; of decoding one with all rows and one with fewer."""

    def first(kind: str) -> Program:
        return next(program for program in programs if program.name.startswith(kind))

    decode = [program for program in programs if program.name.startswith("decode, ")]
    fewer = [program for program in decode if len(program.arguments[4].done) < len(decode[0].arguments[4].done)]
    return {
        "start": first("start"),
        "decode": decode[0],
        "decode_half": fewer[0],
        "repack": next(program for program in programs if "to rows" in program.name),
        "gradients": first("gradients"),
        "optimiser": first("optimiser"),
    }


def describe(program: jax.stages.Compiled) -> dict[str, Any]:
    memory = program.memory_analysis()
    text = program.as_text()
    return {
        "arguments": memory.argument_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "collectives": sorted(set(re.findall(r"\b(all-gather|all-reduce|reduce-scatter|all-to-all)\b", text))),
        "bfloat16_products": len(re.findall(r"bf16\[[^]]*\]\S* (?:convolution|dot)\(", text)),
        "tiled_layouts": text.count(":T("),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
