"""Gradients of tunix's GRPO loss for Qwen2.5-7B, compiled for a TPU slice that is not there.

Its model is sharded by its own rules over (fsdp, tp), recomputes each layer in the backward pass and computes in
bfloat16. The gradients are added to those so far, in place, as `optax.MultiSteps` does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

os.environ |= {  # for libtpu, before it is loaded: there is no TPU
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_STDERR_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec  # noqa: E402
from tunix.models.qwen2 import model as qwen2  # noqa: E402
from tunix.rl import algo_core, common  # noqa: E402

from benchmarks.peers.operations import operations  # noqa: E402

# What `GRPOConfig` has by default, without a KL to a reference policy.
ALGORITHM = {"beta": 0.0, "epsilon": 0.2, "loss_algo": "grpo", "loss_agg_mode": "sequence-mean-token-mean"}
END = 151645
PADDING = 151643


def compile_gradients(args: argparse.Namespace) -> tuple[jax.stages.Compiled, float]:
    """The program, and its operations."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=args.topology).devices
    mesh = Mesh(np.asarray(devices).reshape(-1, args.tensor), ("fsdp", "tp"))
    # Tunix constrains nothing where the process's own devices are a CPU, as they are here.
    qwen2.shard = lambda x, spec: jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*spec)))
    sizes = dataclasses.replace(
        qwen2.ModelConfig.qwen2p5_7b(),
        num_layers=args.layers,
        dtype=jnp.bfloat16,
        remat_config=qwen2.RematConfig.DECODER,
        use_flash_attention=args.attention == "splash",
    )
    with mesh:
        graph, state = nnx.split(nnx.eval_shape(lambda: qwen2.Qwen2(sizes, rngs=nnx.Rngs(0))))

        def place(x: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

        state = jax.tree.map(place, state, nnx.get_partition_spec(state))
        algorithm = SimpleNamespace(**ALGORITHM, temperature=1.0, num_generations=args.group)

        def add_gradients(sums: nnx.State, state: nnx.State, example: common.TrainExample) -> Any:
            def loss(model: nnx.Module) -> Any:
                return algo_core.grpo_loss_fn(model, example, algo_config=algorithm, pad_id=PADDING, eos_id=END)

            (value, metrics), gradients = nnx.value_and_grad(loss, has_aux=True)(nnx.merge(graph, state))
            return jax.tree.map(jnp.add, sums, gradients), value, metrics

        traced = jax.jit(add_gradients, donate_argnums=0).trace(state, state, example_of(args, mesh))
        return traced.lower().compile(), operations(traced.jaxpr.jaxpr)


def example_of(args: argparse.Namespace, mesh: Mesh) -> common.TrainExample:
    """The shapes of `--rows` responses, each after its prompt."""

    def rows(*shape: int, dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec("fsdp", *(None,) * len(shape))
        return jax.ShapeDtypeStruct((args.rows, *shape), dtype, sharding=NamedSharding(mesh, spec))

    return common.TrainExample(
        prompt_ids=rows(args.prompt),
        prompt_mask=rows(args.prompt, dtype=jnp.bool_),
        completion_ids=rows(args.new),
        completion_mask=rows(args.new),
        advantages=rows(dtype=jnp.float32),
        ref_per_token_logps=None,
        old_per_token_logps=rows(args.new, dtype=jnp.float32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Tunix's GRPO gradients, compiled.", allow_abbrev=False)
    parser.add_argument("--topology", required=True)
    parser.add_argument("--attention", choices=("splash", "einsum"), required=True)
    parser.add_argument("--text", required=True, metavar="FILE", help="the compiled program's text goes here")
    for name in ("tensor", "layers", "rows", "group", "prompt", "new"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    compiled, count = compile_gradients(args)
    with open(args.text, "w") as file:
        file.write(compiled.as_text())
    memory = compiled.memory_analysis()
    figures = {"operations": count, "peak_bytes": memory.peak_memory_in_bytes}
    versions = {name: version(name) for name in ("google-tunix", "jax", "libtpu")}
    print(json.dumps(figures | {"versions": versions}), flush=True)


if __name__ == "__main__":
    main()
