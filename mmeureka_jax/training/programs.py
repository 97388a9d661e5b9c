"""The programs that a run compiles, from its config and its mesh only: no weights, no data, and nothing is computed.

All of it is under `jax.set_mesh`. What a device keeps while a program runs, next to the program's own arguments, is
`Learner.abstract_state`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import numpy as np

from mmeureka_jax.mesh import Program, abstract
from mmeureka_jax.models.batch import Prompt
from mmeureka_jax.models.families import PolicyConfig
from mmeureka_jax.models.policy import Params
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler


def sampler_programs(sampler: Sampler, params: Params, sizes: PromptSizes) -> Iterator[Program]:
    """What sampling may need, for prompts of every bucket.

    Args:
        params: parameters, or their shapes with shardings.
    """
    for bucket in sizes.buckets:
        prompts = prompt_shapes(sampler.policy.config, sizes.prompts, bucket, sizes.image_windows)
        names = by_row(np.zeros((sizes.prompts, 2), np.uint32))
        active = by_row(np.zeros(sizes.prompts, bool))
        for program in sampler.programs(params, Request(prompts, names, active)):
            yield dataclasses.replace(program, name=f"{program.name}, prompt {bucket}")


def prompt_shapes(config: PolicyConfig, count: int, length: int, image_windows: int) -> Prompt:
    """Shapes of `count` prompts of the loader, padded to `length` tokens and so many vision windows."""
    from mmeureka_jax.data.processor import collate, filler

    one = collate([filler(config)], length, image_windows)
    return jax.tree.map(lambda x: by_row(jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)), one)


def by_row(x: np.ndarray | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """The shape of an array that `to_global` spreads over the mesh."""
    return abstract(x, "batch", *(None,) * (x.ndim - 1))
