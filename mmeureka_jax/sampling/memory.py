"""Which way the weights of decoding lie (see models/decoding.py), by what a device can hold."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mmeureka_jax.config.schema import SamplerConfig
from mmeureka_jax.mesh import abstract, batch_shards, bytes_of_device, shard_count
from mmeureka_jax.models.policy import decoder_weights
from mmeureka_jax.process.console import say_facts
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.setup.chips import chip_of_kind
from mmeureka_jax.setup.policy import OpenedPolicy

# The part of a device's memory that what is counted may take; the rest is for what prefill and decoding compute with.
# At 7B on v5e:4x4, where 65% are counted, the compiled start of a rollout took 95%.
_USABLE = 0.6


def with_weights_chosen(
    sampler: SamplerConfig, opened: OpenedPolicy, sizes: PromptSizes, group_size: int, resident_bytes: int = 0
) -> SamplerConfig:
    """The settings with `decode_weights: auto` replaced by `gathered` or `split`; a choice of split weights is said.

    Weights are gathered if the device then has room for parameters, caches, these weights and what else lies on it.
    They are, too, on devices that setup/chips.py does not know. The choice depends on shapes only, so that all hosts
    make the same one.

    Args:
        sizes: of the batches of prompts; the longest bucket counts.
        resident_bytes: what lies on a device beyond the parameters.
    """
    if sampler.decode_weights != "auto":
        return sampler
    chip = chip_of_kind(opened.mesh.devices.flat[0].device_kind)
    weights: Literal["gathered", "split"] = "gathered"
    if chip is not None and opened.mesh.size > 1:
        needed = rollout_bytes(sampler, opened, sizes, group_size) + resident_bytes
        if needed > _USABLE * chip.memory_bytes:
            weights = "split"
            say_facts(
                {
                    "decoding": f"weights stay split over {opened.mesh.size} devices; gathered, a device would hold "
                    f"{needed / 1e9:.1f} of {chip.memory_bytes / 1e9:.1f} GB (sampler.decode_weights)"
                }
            )
    return dataclasses.replace(sampler, decode_weights=weights)


def rollout_bytes(
    sampler: SamplerConfig, opened: OpenedPolicy, sizes: PromptSizes, group_size: int, *, split: bool = False
) -> int:
    """What lies on a device while it decodes: parameters, decoding's weights, and full caches."""
    policy = opened.policy
    text = policy.config.text
    shapes = policy.abstract_params()
    with jax.set_mesh(opened.sampler_mesh):
        weights = jax.eval_shape(lambda params: decoder_weights(policy, params, split=split), shapes)
        weights = weights.with_axes(policy.param_axes(), lambda leaf, names: abstract(leaf, *names))
        prompts = -(-sizes.prompts // batch_shards())
        responses = -(-sizes.prompts * group_size // batch_shards())
        heads = text.num_kv_heads // shard_count("act_heads")
    place = 2 * text.num_layers * heads * text.head_dim * jnp.dtype(policy.compute_dtype).itemsize
    caches = (prompts * max(sizes.buckets) + responses * sampler.max_new_tokens) * place
    params = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, opened.shardings()
    )
    return bytes_of_device((params, weights)) + caches
