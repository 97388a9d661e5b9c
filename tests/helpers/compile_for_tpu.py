"""Plans a config for a TPU slice that is not there, and looks into its programs; run by test_tpu_compile.py.

    python -m tests.helpers.compile_for_tpu TARGET CONFIG [key.sub=value ...]

Prints one JSON object: the plan, and of each program which collectives it has and how its arrays are laid out. It is a
process of its own because libtpu is loaded into it.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import jax

from mmeureka_jax.config.load import load_config
from mmeureka_jax.planning.memory import PlannedProgram
from mmeureka_jax.planning.plan import make_plan
from mmeureka_jax.planning.printing import as_json
from mmeureka_jax.planning.targets import open_target


def main(target: str, config_file: str, *overrides: str) -> dict[str, Any]:
    devices = open_target(target)
    jax.config.update("jax_enable_compilation_cache", False)  # libtpu without a TPU cannot load what is in it
    plan = make_plan(load_config(config_file, overrides), devices)
    leaves = jax.tree.leaves(plan.run.learner.abstract_state())
    return {
        "plan": as_json(plan),
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        "programs": {program.name.partition(",")[0]: describe(program) for program in plan.programs},
    }


def describe(program: PlannedProgram) -> dict[str, Any]:
    assert program.compiled is not None
    text = program.compiled.as_text() or ""
    return {
        "arguments": program.memory.arguments,
        "aliased": program.memory.aliased,
        "collectives": sorted(set(re.findall(r"\b(all-gather|all-reduce|reduce-scatter|all-to-all)\b", text))),
        "bfloat16_products": len(re.findall(r"bf16\[[^]]*\]\S* (?:convolution|dot)\(", text)),
        "tiled_layouts": text.count(":T("),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
