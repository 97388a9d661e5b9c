"""Qwen2.5-VL and Qwen2-VL as Flax modules, and the names of their stored tensors.

Mirrors `transformers.models.qwen2_5_vl.modeling_qwen2_5_vl` and its `qwen2_vl` sibling, which differ in the vision
tower's blocks (`VisionConfig.plain_blocks`) and in that the older one has no windows; names are Hugging Face's. What
differs is the layout: pictures come window by window (see batch.py). The text decoder is in decoder.py.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from mmeureka_jax.mesh import constrain
from mmeureka_jax.models.attention import PADDING, attention, keys_first, split_heads
from mmeureka_jax.models.batch import Array, ImageFeatures, Images
from mmeureka_jax.models.decoder import Decoder, run_stack
from mmeureka_jax.models.layers import (
    GatedMLP,
    LayerNorm,
    Linear,
    RMSNorm,
    Rotary,
    apply_rotary,
    parameter,
    planar_rotary,
)
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig, VisionConfig
from mmeureka_jax.models.weight_mapping import WeightMapping, WeightMappings, add_decoder

# Newer transformers name the towers model.visual and model.language_model; the hub's names are used here.
RENAMED = ((r"^model\.visual\.", "visual."), (r"^model\.language_model\.", "model."))

VISION_NORM_EPSILON = 1e-6  # fixed in transformers, whatever the text decoder's is


def _norm(config: VisionConfig, *, stack: int | None = None) -> nnx.Module:
    kind = LayerNorm if config.plain_blocks else RMSNorm
    return kind(config.hidden_size, VISION_NORM_EPSILON, stack=stack)


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, *, stack: int | None = None):
        size = config.hidden_size
        self.qkv = Linear(size, 3 * size, ("vision_embed", None), bias=True, stack=stack)
        self.proj = Linear(size, size, (None, "vision_embed"), bias=True, stack=stack)
        self.num_heads = config.num_heads

    def __call__(self, x: Float[Array, "B T E"], rotary: Rotary, segments: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        qkv = self.qkv(x)
        query, key, value = (split_heads(part, x.shape[-1] // self.num_heads) for part in jnp.split(qkv, 3, axis=-1))
        query = apply_rotary(query, rotary)
        key = apply_rotary(key, rotary)
        out = attention(query, keys_first(key), keys_first(value), segments, None, heads_axis=None)
        return self.proj(out.reshape(x.shape))


class PlainMLP(nnx.Module):
    """fc2(quick_gelu(fc1(x))), where quick_gelu(x) = x * sigmoid(1.702 x) (`VisionMlp` of Qwen2-VL)."""

    def __init__(self, size: int, hidden: int, axes: tuple[str, str], *, bias: bool = False, stack: int | None = None):
        outer, inner = axes
        self.fc1 = Linear(size, hidden, (outer, inner), bias=bias, stack=stack)
        self.fc2 = Linear(hidden, size, (inner, outer), bias=bias, stack=stack)

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... d"]:
        inner = self.fc1(x)
        return self.fc2(inner * jax.nn.sigmoid(1.702 * inner))


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, *, stack: int | None = None):
        self.norm1 = _norm(config, stack=stack)
        self.norm2 = _norm(config, stack=stack)
        self.attn = VisionAttention(config, stack=stack)
        kind = PlainMLP if config.plain_blocks else GatedMLP
        axes = ("vision_embed", "vision_mlp")
        self.mlp = kind(config.hidden_size, config.intermediate_size, axes, bias=True, stack=stack)

    def __call__(self, x: Float[Array, "B T E"], rotary: Rotary, segments: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        x = x + self.attn(self.norm1(x), rotary, segments)
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nnx.Module):
    """Linear map of a patch. Released checkpoints hold a kernel for two frames in time; a still picture repeats its
    one frame, so the sum of the two kernels is applied to it: (k0 + k1) x = k0 x + k1 x."""

    def __init__(self, config: VisionConfig):
        numbers = config.in_channels * config.patch_size**2
        self.kernel = parameter(
            (config.temporal_patch_size, numbers, config.hidden_size), (None, "patch", "vision_embed"), None
        )

    def __call__(self, patches: Float[Array, "... C"]) -> Float[Array, "... E"]:
        return patches @ self.kernel[...].sum(0).astype(patches.dtype)


class PatchMerger(nnx.Module):
    """Merges each run of merge_size**2 patches into one image token of the decoder's width."""

    def __init__(self, config: VisionConfig):
        self.width = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = _norm(config)
        self.mlp_0 = Linear(self.width, self.width, ("vision_embed", None), bias=True)
        self.mlp_2 = Linear(self.width, config.out_hidden_size, (None, "vision_embed"), bias=True)

    def __call__(self, x: Float[Array, "P T E"]) -> Float[Array, "P M D"]:
        x = self.ln_q(x).reshape(x.shape[0], -1, self.width)
        return self.mlp_2(jax.nn.gelu(self.mlp_0(x), approximate=False))


class VisionTower(nnx.Module):
    """Window attention in most blocks, attention over the whole picture in `full_attention_blocks`."""

    def __init__(self, config: VisionConfig):
        self.patch_embed = PatchEmbedding(config)
        self.blocks = VisionBlock(config, stack=config.depth)
        self.merger = PatchMerger(config)
        self.head_dim = config.hidden_size // config.num_heads
        self.is_full = tuple(i in config.full_attention_blocks for i in range(config.depth))

    def __call__(self, images: Images, *, dtype: jnp.dtype, remat: bool) -> ImageFeatures:
        prompts, windows, places, _ = images.patches.shape

        def by_window(a: Array) -> Array:
            return a.reshape(prompts * windows, places, *a.shape[2:])

        def by_prompt(a: Array) -> Array:
            return a.reshape(prompts, windows * places, *a.shape[3:])

        x = by_prompt(self.patch_embed(images.patches.astype(dtype)))
        rotary = jax.tree.map(by_prompt, planar_rotary(images.patch_positions, self.head_dim))
        # Patches see those of their own picture. Numbers of pictures begin at 1: segment 0 is seen by all.
        pictures = by_prompt(jnp.where(images.patch_mask, images.image_ids[..., None] + 1, PADDING))
        definition, stacked = nnx.split(self.blocks)

        def body(x: Array, block_and_kind: tuple[nnx.State, Array]) -> tuple[Array, None]:
            block = nnx.merge(definition, block_and_kind[0])
            is_full = block_and_kind[1]

            def full(x: Array) -> Array:
                return block(x, rotary, pictures)

            def window(x: Array) -> Array:
                return block(by_window(x), jax.tree.map(by_window, rotary), by_window(pictures)).reshape(x.shape)

            x = full(x) if all(self.is_full) else jax.lax.cond(is_full, full, window, x)
            return constrain(x, "batch", None, None), None

        x, _ = run_stack(body, x, (stacked, np.asarray(self.is_full)), remat=remat)
        return ImageFeatures(constrain(self.merger(x), "batch", None, "act_embed"))


class Qwen2_5VL(nnx.Module):
    def __init__(self, config: Qwen2_5VLConfig):
        self.vision = VisionTower(config.vision)
        self.language = Decoder(config.text)


def weight_mappings(config: Qwen2_5VLConfig) -> tuple[WeightMapping, ...]:
    """Every parameter of the policy, with its stored name and shape, in the order of the forward pass."""
    v = config.vision
    weights = WeightMappings()
    merged = v.hidden_size * v.spatial_merge_size**2
    patch = (v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    weights.add("vision/patch_embed/kernel", "visual.patch_embed.proj.weight", (v.hidden_size, *patch), "patches")
    leaf = "vision/blocks"
    tensor = "visual.blocks.{}"
    weights.scale(f"{leaf}/norm1", f"{tensor}.norm1", v.hidden_size, v.depth, bias=v.plain_blocks)
    weights.linear(f"{leaf}/attn/qkv", f"{tensor}.attn.qkv", v.hidden_size, 3 * v.hidden_size, v.depth, bias=True)
    weights.linear(f"{leaf}/attn/proj", f"{tensor}.attn.proj", v.hidden_size, v.hidden_size, v.depth, bias=True)
    weights.scale(f"{leaf}/norm2", f"{tensor}.norm2", v.hidden_size, v.depth, bias=v.plain_blocks)
    *inputs, output = ("fc1", "fc2") if v.plain_blocks else ("gate_proj", "up_proj", "down_proj")
    for name in inputs:
        weights.linear(
            f"{leaf}/mlp/{name}", f"{tensor}.mlp.{name}", v.hidden_size, v.intermediate_size, v.depth, bias=True
        )
    weights.linear(
        f"{leaf}/mlp/{output}", f"{tensor}.mlp.{output}", v.intermediate_size, v.hidden_size, v.depth, bias=True
    )
    weights.scale("vision/merger/ln_q", "visual.merger.ln_q", v.hidden_size, bias=v.plain_blocks)
    weights.linear("vision/merger/mlp_0", "visual.merger.mlp.0", merged, merged, bias=True)
    weights.linear("vision/merger/mlp_2", "visual.merger.mlp.2", merged, v.out_hidden_size, bias=True)
    add_decoder(weights, config.text)
    return tuple(weights.mappings)


def module_names(config: Qwen2_5VLConfig) -> tuple[tuple[str, str], ...]:
    """See `Family`."""
    return (r"^model\.", "model.language_model."), (r"^visual\.", "model.visual.")
