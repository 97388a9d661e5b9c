"""Qwen2.5-VL as Flax modules: the vision tower and the text decoder.

Mirrors `transformers.models.qwen2_5_vl.modeling_qwen2_5_vl`; names are Hugging Face's, so that the weight mapping
(weights.py) is a handful of rules. What differs is the layout: pictures come window by window (see batch.py), decoder
layers are stacked for a scan, and a layer does not know how its queries meet keys: the caller hands it an `attend`
function, and so one layer serves prefill, the group-shared update and single-token decoding alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from mmeureka_jax.mesh import constrain
from mmeureka_jax.models.attention import PADDING, attention, keys_first, split_heads
from mmeureka_jax.models.batch import Array, ImageBatch
from mmeureka_jax.models.config import Qwen2_5VLConfig, TextConfig, VisionConfig
from mmeureka_jax.models.layers import (
    Embedding,
    GatedMLP,
    Linear,
    RMSNorm,
    Rotary,
    apply_rotary,
    parameter,
    planar_rotary,
)

VISION_NORM_EPSILON = 1e-6  # fixed in transformers, whatever the text decoder's is

# (query [B,T,H,h], key [B,T,K,h], value [B,T,K,h]) -> (attention output [B,T,H,h], what the caller wants to keep)
Attend = Callable[[Array, Array, Array], tuple[Array, Any]]

WRITTEN_OUT = 8  # layers of a stack that is not scanned


def run_stack(
    body: Callable[[Array, Any], tuple[Array, Any]], x: Array, stacked: Any, *, remat: bool
) -> tuple[Array, Any]:
    """`jax.lax.scan(body, x, stacked)`, with `body` recomputed in the backward pass if `remat`.

    A scan keeps what the backward pass needs in stacked buffers, which it fills with zeros first, and copies to and
    from them. A few layers are written out one after the other instead.
    """
    count = len(jax.tree.leaves(stacked)[0])
    if remat or count > WRITTEN_OUT:
        return jax.lax.scan(jax.checkpoint(body, prevent_cse=False) if remat else body, x, stacked)
    kept = []
    for number in range(count):
        x, more = body(x, jax.tree.map(lambda leaf, number=number: leaf[number], stacked))
        kept.append(more)
    return x, jax.tree.map(lambda *parts: jnp.stack(parts), *kept)


class SelfAttention(nnx.Module):
    def __init__(self, config: TextConfig, *, stack: int | None = None):
        query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query, ("embed", "heads"), bias=True, stack=stack)
        self.k_proj = Linear(config.hidden_size, key, ("embed", "heads"), bias=True, stack=stack)
        self.v_proj = Linear(config.hidden_size, key, ("embed", "heads"), bias=True, stack=stack)
        self.o_proj = Linear(query, config.hidden_size, ("heads", "embed"), stack=stack)
        self.head_dim = config.head_dim

    def __call__(self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend) -> tuple[Float[Array, "B T D"], Any]:
        query, key, value = (
            constrain(split_heads(project(x), self.head_dim), "batch", "seq", "act_heads", None)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out, kept = attend(apply_rotary(query, rotary), apply_rotary(key, rotary), value)
        return self.o_proj(out.reshape(*out.shape[:-2], -1)), kept


class DecoderLayer(nnx.Module):
    def __init__(self, config: TextConfig, *, stack: int | None = None):
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, stack=stack)
        self.self_attn = SelfAttention(config, stack=stack)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, stack=stack)
        self.mlp = GatedMLP(config.hidden_size, config.intermediate_size, ("embed", "mlp"), stack=stack)

    def __call__(self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend) -> tuple[Float[Array, "B T D"], Any]:
        mixed, kept = self.self_attn(self.input_layernorm(x), rotary, attend)
        x = constrain(x + mixed, "batch", "seq", "act_embed")
        x = x + self.mlp(self.post_attention_layernorm(x))
        return constrain(x, "batch", "seq", "act_embed"), kept


class Decoder(nnx.Module):
    """The text model. `layers` is one module whose parameters carry a leading layer dimension."""

    def __init__(self, config: TextConfig):
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = DecoderLayer(config, stack=config.num_layers)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        tied = config.tie_word_embeddings
        self.lm_head = None if tied else Linear(config.hidden_size, config.vocab_size, ("embed", "vocab"))

    def head_kernel(self) -> Float[Array, "D V"]:
        """The output projection, float32: the transposed embedding where the two are tied."""
        return self.embed_tokens.embedding[...].T if self.lm_head is None else self.lm_head.kernel[...]

    def scan_layers(
        self, x: Float[Array, "B T D"], rotary: Rotary, attend: Attend, *, remat: bool
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Runs all layers; what `attend` kept comes back stacked over layers."""
        definition, stacked = nnx.split(self.layers)

        def body(x: Array, parameters: nnx.State) -> tuple[Array, Any]:
            return nnx.merge(definition, parameters)(x, rotary, attend)

        return run_stack(body, x, stacked, remat=remat)

    def layer(self, parameters: Any) -> DecoderLayer:
        """One layer, from its own parameters (a slice of the stack)."""
        return nnx.merge(nnx.split(self.layers)[0], parameters)


class VisionAttention(nnx.Module):
    def __init__(self, config: VisionConfig, *, stack: int | None = None):
        size = config.hidden_size
        self.qkv = Linear(size, 3 * size, ("vision_embed", None), bias=True, stack=stack)
        self.proj = Linear(size, size, (None, "vision_embed"), bias=True, stack=stack)
        self.num_heads = config.num_heads

    def __call__(self, x: Float[Array, "B T E"], rotary: Rotary, segments: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        qkv = self.qkv(x)
        query, key, value = (split_heads(part, x.shape[-1] // self.num_heads) for part in jnp.split(qkv, 3, axis=-1))
        query, key = apply_rotary(query, rotary), apply_rotary(key, rotary)
        out = attention(query, keys_first(key), keys_first(value), segments, None, heads_axis=None)
        return self.proj(out.reshape(x.shape))


class VisionBlock(nnx.Module):
    def __init__(self, config: VisionConfig, *, stack: int | None = None):
        self.norm1 = RMSNorm(config.hidden_size, VISION_NORM_EPSILON, stack=stack)
        self.norm2 = RMSNorm(config.hidden_size, VISION_NORM_EPSILON, stack=stack)
        self.attn = VisionAttention(config, stack=stack)
        self.mlp = GatedMLP(
            config.hidden_size, config.intermediate_size, ("vision_embed", "vision_mlp"), bias=True, stack=stack
        )

    def __call__(self, x: Float[Array, "B T E"], rotary: Rotary, segments: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        x = x + self.attn(self.norm1(x), rotary, segments)
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nnx.Module):
    """Linear map of a patch. Released checkpoints hold a kernel for two frames in time; a still picture repeats its
    one frame, so
    the sum of the two kernels is applied to it: (k0 + k1) x = k0 x + k1 x."""

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
        self.ln_q = RMSNorm(config.hidden_size, VISION_NORM_EPSILON)
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

    def __call__(self, images: ImageBatch, *, dtype: jnp.dtype, remat: bool) -> Float[Array, "P M D"]:
        prompts, windows, places, _ = images.patches.shape
        x = self.patch_embed(images.patches.astype(dtype))
        rotary = planar_rotary(images.patch_positions, self.head_dim)

        def by_window(a: Array) -> Array:
            return a.reshape(prompts * windows, places, *a.shape[3:])

        def by_prompt(a: Array) -> Array:
            return a.reshape(prompts, windows * places, *a.shape[3:])

        # Patches see those of their own picture. Its number is above 0: segment 0 is one that all see.
        pictures = jnp.where(images.patch_mask, images.image_ids[..., None] + 1, PADDING)
        definition, stacked = nnx.split(self.blocks)

        def body(x: Array, block_and_kind: tuple[nnx.State, Array]) -> tuple[Array, None]:
            block, is_full = nnx.merge(definition, block_and_kind[0]), block_and_kind[1]

            def full(x: Array) -> Array:
                return block(by_prompt(x), jax.tree.map(by_prompt, rotary), by_prompt(pictures)).reshape(x.shape)

            def window(x: Array) -> Array:
                return block(by_window(x), jax.tree.map(by_window, rotary), by_window(pictures)).reshape(x.shape)

            x = jax.lax.cond(is_full, full, window, x)
            return constrain(x, "batch", None, None, None), None

        x, _ = run_stack(body, x, (stacked, np.asarray(self.is_full)), remat=remat)
        return constrain(self.merger(by_prompt(x)), "batch", "seq", "act_embed")


class Qwen2_5VL(nnx.Module):
    def __init__(self, config: Qwen2_5VLConfig):
        self.vision = VisionTower(config.vision)
        self.language = Decoder(config.text)
