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
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

from mmeureka_jax.config.load import load_config  # noqa: E402
from mmeureka_jax.data.processor import collate  # noqa: E402
from mmeureka_jax.data.record import ImageRef, Problem  # noqa: E402
from mmeureka_jax.data.shapes.problems import generate  # noqa: E402
from mmeureka_jax.mesh import batch_divisor, sharding  # noqa: E402
from mmeureka_jax.rl.groups import UpdateBatch, split_batch  # noqa: E402
from mmeureka_jax.sampling.decode import decode, start  # noqa: E402
from mmeureka_jax.sampling.repack import cache_sizes, repack  # noqa: E402
from mmeureka_jax.sampling.request import Request  # noqa: E402
from mmeureka_jax.sampling.token_draws import SamplingSettings  # noqa: E402
from mmeureka_jax.setup.policy import find_checkpoint, open_policy  # noqa: E402
from mmeureka_jax.setup.problems import open_processor  # noqa: E402
from mmeureka_jax.training.job import check_batch_sizes  # noqa: E402
from mmeureka_jax.training.learner import Learner  # noqa: E402
from mmeureka_jax.training.rl import recipe  # noqa: E402


def main(config_file: str, work_dir: str, *overrides: str) -> dict[str, Any]:
    config = load_config(config_file, overrides)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    checkpoint = find_checkpoint(config.model, Path(work_dir))
    loaded = open_policy(checkpoint, config.model, config.mesh, seed=config.seed, devices=list(devices))
    job = recipe(config)
    check_batch_sizes(loaded.mesh, job.batch_sizes)
    processor = open_processor(loaded.checkpoint, config.data)

    shape = generate(0, split="train", mixture=[("dots", "easy")])
    content = [{"type": "image"}, {"type": "text", "text": shape.question}]
    prompt = processor(Problem("0", ({"role": "user", "content": content},), (ImageRef(data=shape.image),), None))

    def rows(count: int) -> Any:
        return collate([prompt] * count, config.data.max_prompt_tokens, prompt.images.num_windows)

    def abstract(tree: Any) -> Any:
        """Shapes of arrays [rows, ...] that are spread over the mesh as the trainer spreads them."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=sharding(loaded.mesh, "batch", *(None,) * (x.ndim - 1))
            ),
            tree,
        )

    learner = Learner(
        config,
        loaded,
        job.objective,
        total_updates=config.steps * job.updates_per_step,
        micro_batches=job.micro_batches,
        packing=job.packing,
        with_critic=job.with_critic,
    )
    state = learner.abstract_state()
    sampler = config.sampler
    settings = SamplingSettings.of(processor, sampler, config.rl.group_size)
    count = job.prompts_per_batch
    request = abstract(Request.of(["0"] * count, rows(count)).replace(rollout=None)).replace(rollout=0)

    count = config.rl.prompts_per_update
    responses = np.zeros((count, config.rl.group_size, sampler.max_new_tokens), np.int32)
    batch = UpdateBatch(
        prompts=rows(count),
        image_features=None,
        responses=responses,
        response_mask=responses == 0,
        old_log_probs=responses.astype(np.float32),
        advantages=responses.astype(np.float32),
        fresh=np.ones(count, bool),
        **(dict.fromkeys(("values", "returns"), responses.astype(np.float32)) if job.with_critic else {}),
    )
    with jax.set_mesh(loaded.mesh):  # around the lowering alone: nothing can be executed on devices that are not there
        capacity = cache_sizes(settings.max_new_tokens)[0]
        first = start.lower(
            loaded.policy, settings, "rollout", capacity, state.params, request, config.seed
        )  # fmt: skip
        started = first.compile()
        rows, weights, _ = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            first.out_info, started.output_shardings,
        )  # fmt: skip
        half = repack.lower(len(rows.done) // batch_divisor(loaded.mesh) // 2, capacity, rows)
        halved = half.compile()
        fewer = jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
            half.out_info, halved.output_shardings,
        )  # fmt: skip
        whole, later = (
            decode.lower(loaded.policy, settings, state.params, weights, x, 0).compile() for x in (rows, fewer)
        )
        parts = abstract(split_batch(batch, job.micro_batches, job.packing))
        gradients, optimiser = (x.compile() for x in learner.compiled.lower(state, parts).values())
    return {
        "state_bytes": sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "start": describe(started),
        "decode": describe(whole),
        "repack": describe(halved),
        "decode_half": describe(later),
        "gradients": describe(gradients),
        "optimiser": describe(optimiser),
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
