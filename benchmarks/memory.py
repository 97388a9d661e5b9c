"""Memory that the update needs, by the compiler's own account, for several vocabularies and group sizes.

    python -m benchmarks.memory --model tiny --train all --vocab 8192 131072 --group 8
    python -m benchmarks.memory --model tiny --train all --group 2 8 --prompt 1024 --new 16
    python -m benchmarks.memory --model tiny --train all --lora 0 8 16 32

Nothing is run: the program of training is compiled for the devices at hand and its buffers are read off.
`temporary_mb` is what an update needs on each device apart from the state (parameters, optimiser) and the batch. In it
are the gradients of the embedding and of the output head, `vocab_gradients_mb`, which are as large as their parameters.
`--lora` compares ranks of adapters on the decoder's layers (0: all parameters are trained).
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from benchmarks.common import (
    add_prompt_arguments,
    add_training_arguments,
    make_parser,
    open_model,
    positive,
    run_benchmark,
    training_config,
)
from benchmarks.update import random_batch
from mmeureka_jax.commands.arguments import count
from mmeureka_jax.mesh import to_global
from mmeureka_jax.models.lora import Lora
from mmeureka_jax.rl.objective import policy_objective
from mmeureka_jax.rl.rows import Packing
from mmeureka_jax.rl.train_state import make_training
from mmeureka_jax.rl.update import CompiledUpdate
from mmeureka_jax.setup.policy import OpenedPolicy


def megabytes(count: int) -> float:
    return round(count / 2**20, 1)


def update_memory(
    args: argparse.Namespace, opened: OpenedPolicy, vocab_size: int, group: int, rank: int
) -> dict[str, Any]:
    """The buffers of the update on one device."""
    text = replace(opened.policy.config.text, vocab_size=vocab_size)
    lora = Lora(rank, 2.0 * rank, ("language/layers/.*",)) if rank else None
    policy = replace(opened.policy, config=replace(opened.policy.config, text=text), lora=lora)
    options = argparse.Namespace(**vars(args) | {"group": group})
    config = training_config(options, opened)
    training = make_training(config, 1)
    shardings = training.shardings(policy, opened.mesh)
    objective = policy_objective(config)
    update = CompiledUpdate(policy, objective, training, shardings, most_parts=args.micro_batches)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        training.abstract_state(policy),
        shardings,
    )
    batch, targets = random_batch(options, policy)
    packing = replace(Packing.of(config), ratio=0.0)
    parts = to_global(opened.mesh, packing.split(batch, targets, objective.token_weights(batch.response_mask)))
    programs = update.programs(state, {"parts": parts[0]})  # all parts have one shape
    temporary = max(program.lower().compile().memory_analysis().temp_size_in_bytes for program in programs)
    if len(parts) > 1:  # the gradients so far are an argument then
        temporary += sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.trainable)) // opened.mesh.size

    def on_device(tree: Any) -> int:
        return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    tables = 0 if rank else 1 if text.tie_word_embeddings else 2
    return {
        "vocab": vocab_size,
        "group": group,
        "lora": rank,
        "temporary_mb": megabytes(temporary),
        "vocab_gradients_mb": megabytes(4 * tables * vocab_size * text.hidden_size // opened.mesh.size),
        "trained_mb": megabytes(on_device(state.trainable)),
        "optimizer_mb": megabytes(on_device(state.optimizer)),
        "state_mb": megabytes(on_device(state)),
    }


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    opened = open_model(args, folder)
    vocabularies = args.vocab or [opened.policy.config.text.vocab_size]
    with jax.set_mesh(opened.mesh):
        cases = itertools.product(vocabularies, args.group, args.lora)
        rows = [update_memory(args, opened, *case) for case in cases]
    return {"temporary_mb": rows[-1]["temporary_mb"], "rows": rows}


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("memory", "Memory that the compiled update needs.")
    parser.set_defaults(cpu_devices=1)
    parser.add_argument("--vocab", type=positive, nargs="+", help="vocabulary sizes (default: the model's)")
    parser.add_argument("--group", type=positive, nargs="+", default=[8], help="responses to a prompt")
    parser.add_argument("--lora", type=count, nargs="+", default=[0], help="ranks of adapters; 0: none (default)")
    add_training_arguments(parser)
    add_prompt_arguments(parser, length=104, side=224)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    return run_benchmark(measure, build_parser(), arguments)


if __name__ == "__main__":
    sys.exit(main())
