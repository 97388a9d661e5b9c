"""InternVL (2.5, 3 and 3.5) as Flax modules, the InternViT tower with its projector, and the names of its stored
tensors in both layouts of a checkpoint (internvl_config.py).

Sources: transformers' `InternVLForConditionalGeneration`, and OpenGVLab's `InternVLChatModel` and `InternLM2` with the
mapping of one to the other in transformers' `convert_internvl_weights_to_hf.py`.

A picture comes as tiles (data/tiles.py), and a tile is a window of `Images`: its patches are in runs of
merge_size**2 that become one image token. That is what the reference's pixel shuffle does to patches in raster order.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from mmeureka_jax.mesh import constrain
from mmeureka_jax.models.attention import attention, keys_first, split_heads
from mmeureka_jax.models.batch import Array, ImageFeatures, Images
from mmeureka_jax.models.decoder import Decoder, run_stack
from mmeureka_jax.models.internvl_config import InternViTConfig, InternVLConfig
from mmeureka_jax.models.layers import LayerNorm, Linear, RMSNorm, parameter
from mmeureka_jax.models.weight_mapping import WeightMapping, WeightMappings, add_decoder

# What transformers 5 calls the native layout's tensors in memory; its files have the names on the right.
RENAMED = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^lm_head\.", "language_model.lm_head."),
)

PROJECTOR_EPSILON = 1e-5  # torch's default, in both references
QK_NORM_EPSILON = 1e-6  # as in transformers; the original has layer_norm_eps, whose released value is the same


def _norm(config: InternViTConfig, *, stack: int) -> nnx.Module:
    kind = LayerNorm if config.norm == "layer_norm" else RMSNorm
    return kind(config.hidden_size, config.norm_epsilon, stack=stack)


def raster_places(side: int, merge: int) -> np.ndarray:
    """Where the patch at each place of a tile is in raster order: units of merge**2 patches in raster order of
    units, [side**2]."""
    units = np.arange(side**2).reshape(side // merge, merge, side // merge, merge)
    return units.transpose(0, 2, 1, 3).ravel()


def cubic_weights(size: int, wanted: int) -> np.ndarray:
    """[wanted, size], float32: bicubic interpolation of a row of `size` numbers to `wanted`.

    Source: torch's `interpolate(mode="bicubic", align_corners=False)`: Keys' kernel with a = -0.75, edges repeated.
    """
    a = -0.75
    weights = np.zeros((wanted, size), np.float64)
    for row in range(wanted):
        at = (row + 0.5) * size / wanted - 0.5
        first = math.floor(at)
        for place in range(first - 1, first + 3):
            far = abs(at - place)
            if far <= 1:
                weight = (a + 2) * far**3 - (a + 3) * far**2 + 1
            else:
                weight = a * far**3 - 5 * a * far**2 + 8 * a * far - 4 * a
            weights[row, min(max(place, 0), size - 1)] += weight
    return weights.astype(np.float32)


class TileEmbeddings(nnx.Module):
    """Patches to vectors, a class token before them, and a learnt embedding of each place."""

    def __init__(self, config: InternViTConfig):
        size = config.hidden_size
        self.side = config.image_size // config.patch_size
        self.patch = Linear(config.patch_numbers, size, ("patch", "vision_embed"), bias=True)
        self.cls_token = parameter((1, 1, size), (None, None, "vision_embed"), None)
        self.positions = parameter((1, 1 + self.side**2, size), (None, None, "vision_embed"), None)
        self.tile_side = config.tile_side
        self.merge = config.spatial_merge_size

    def __call__(self, patches: Float[Array, "B S C"]) -> Float[Array, "B S1 E"]:
        x = self.patch(patches)
        positions = self.positions[...][0]
        of_class = positions[:1]
        of_patches = positions[1:]
        if self.tile_side != self.side:
            weights = cubic_weights(self.side, self.tile_side)
            square = of_patches.reshape(self.side, self.side, -1)
            of_patches = jnp.einsum("rs,ct,ste->rce", weights, weights, square).reshape(self.tile_side**2, -1)
        of_patches = of_patches[raster_places(self.tile_side, self.merge)]
        cls_token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (len(x), 1, x.shape[-1]))
        return jnp.concatenate([cls_token, x], axis=1) + jnp.concatenate([of_class, of_patches]).astype(x.dtype)


class TileAttention(nnx.Module):
    """Its matrices are `q_proj`, `k_proj` and `v_proj`, or (`fused`, the original layout) `qkv`."""

    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    qkv: Linear

    def __init__(self, config: InternViTConfig, *, stack: int, fused: bool):
        size = config.hidden_size
        bias = config.attention_bias
        self.fused = fused
        self.qk_norm = config.qk_norm
        self.num_heads = config.num_heads
        widths = {"qkv": 3 * size} if fused else dict.fromkeys(("q_proj", "k_proj", "v_proj"), size)
        for name, width in widths.items():
            setattr(self, name, Linear(size, width, ("vision_embed", None), bias=bias, stack=stack))
        if self.qk_norm:
            self.q_norm = RMSNorm(size, QK_NORM_EPSILON, stack=stack)
            self.k_norm = RMSNorm(size, QK_NORM_EPSILON, stack=stack)
        self.proj = Linear(size, size, (None, "vision_embed"), bias=True, stack=stack)

    def __call__(self, x: Float[Array, "B T E"], segments: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        if self.fused:
            query, key, value = jnp.split(self.qkv(x), 3, axis=-1)
        else:
            query = self.q_proj(x)
            key = self.k_proj(x)
            value = self.v_proj(x)
        if self.qk_norm:
            query = self.q_norm(query)
            key = self.k_norm(key)
        query, key, value = (split_heads(part, x.shape[-1] // self.num_heads) for part in (query, key, value))
        out = attention(query, keys_first(key), keys_first(value), segments, None, heads_axis=None)
        return self.proj(out.reshape(x.shape))


class TileBlock(nnx.Module):
    def __init__(self, config: InternViTConfig, *, stack: int, fused: bool):
        size = config.hidden_size
        self.norm1 = _norm(config, stack=stack)
        self.norm2 = _norm(config, stack=stack)
        self.attn = TileAttention(config, stack=stack, fused=fused)
        self.fc1 = Linear(size, config.intermediate_size, ("vision_embed", "vision_mlp"), bias=True, stack=stack)
        self.fc2 = Linear(config.intermediate_size, size, ("vision_mlp", "vision_embed"), bias=True, stack=stack)
        self.ls1 = parameter((size,), ("norm",), stack)
        self.ls2 = parameter((size,), ("norm",), stack)

    def __call__(self, x: Float[Array, "B T E"], segments: Int[Array, "B T"]) -> Float[Array, "B T E"]:
        x = x + self.ls1[...].astype(x.dtype) * self.attn(self.norm1(x), segments)
        inner = jax.nn.gelu(self.fc1(self.norm2(x)), approximate=False)
        return x + self.ls2[...].astype(x.dtype) * self.fc2(inner)


class Projector(nnx.Module):
    """Each run of merge_size**2 patches becomes one image token of the decoder's width."""

    def __init__(self, config: InternViTConfig, hidden_size: int):
        self.width = config.hidden_size * config.spatial_merge_size**2
        self.norm = LayerNorm(self.width, PROJECTOR_EPSILON)
        self.linear_1 = Linear(self.width, hidden_size, ("vision_embed", None), bias=True)
        self.linear_2 = Linear(hidden_size, hidden_size, (None, "vision_embed"), bias=True)

    def __call__(self, x: Float[Array, "P T E"]) -> Float[Array, "P M D"]:
        x = self.norm(x.reshape(x.shape[0], -1, self.width))
        return self.linear_2(jax.nn.gelu(self.linear_1(x), approximate=False))


class InternViT(nnx.Module):
    """The tower and its projector; every tile is encoded by itself."""

    def __init__(self, config: InternViTConfig, hidden_size: int, *, fused: bool):
        self.embeddings = TileEmbeddings(config)
        self.blocks = TileBlock(config, stack=config.depth, fused=fused)
        self.merger = Projector(config, hidden_size)

    def __call__(self, images: Images, *, dtype: jnp.dtype, remat: bool) -> ImageFeatures:
        prompts, tiles, places, numbers = images.patches.shape
        x = self.embeddings(images.patches.astype(dtype).reshape(prompts * tiles, places, numbers))
        segments = jnp.ones(x.shape[:2], jnp.int32)
        definition, stacked = nnx.split(self.blocks)

        def body(x: Array, block: nnx.State) -> tuple[Array, None]:
            return constrain(nnx.merge(definition, block)(x, segments), "batch", None, None), None

        x, _ = run_stack(body, x, stacked, remat=remat)
        x = x[:, 1:].reshape(prompts, tiles * places, -1)
        return ImageFeatures(constrain(self.merger(x), "batch", None, "act_embed"))


class InternVL(nnx.Module):
    def __init__(self, config: InternVLConfig):
        self.vision = InternViT(config.vision, config.text.hidden_size, fused=config.layout == "original")
        self.language = Decoder(config.text)


# Stored tensors.

_NATIVE = {
    "tower": "vision_tower", "patch": "patch_embeddings.projection", "cls_token": "cls_token",
    "positions": "position_embeddings", "block": "encoder.layer.{}", "norm1": "layernorm_before",
    "norm2": "layernorm_after", "ls1": "lambda_1", "ls2": "lambda_2", "attn": "attention",
    "proj": "attention.projection_layer", "norm": "multi_modal_projector.layer_norm",
    "linear_1": "multi_modal_projector.linear_1", "linear_2": "multi_modal_projector.linear_2",
}  # fmt: skip
_ORIGINAL = {
    "tower": "vision_model", "patch": "patch_embedding", "cls_token": "class_embedding",
    "positions": "position_embedding", "block": "encoder.layers.{}", "norm1": "norm1", "norm2": "norm2", "ls1": "ls1",
    "ls2": "ls2", "attn": "attn", "proj": "attn.proj", "norm": "mlp1.0", "linear_1": "mlp1.1", "linear_2": "mlp1.3",
}  # fmt: skip


def weight_mappings(config: InternVLConfig) -> tuple[WeightMapping, ...]:
    """Every parameter of the policy, with its stored name and shape, in the order of the forward pass."""
    v = config.vision
    weights = WeightMappings()
    names = _NATIVE if config.layout == "native" else _ORIGINAL
    size = v.hidden_size
    places = 1 + (v.image_size // v.patch_size) ** 2
    leaf = "vision/embeddings"
    tensor = f"{names['tower']}.embeddings"
    patch = f"{tensor}.{names['patch']}"
    weights.add(f"{leaf}/patch/kernel", f"{patch}.weight", (size, v.in_channels, *(v.patch_size,) * 2), "convolution")
    weights.add(f"{leaf}/patch/bias", f"{patch}.bias", (size,))
    weights.add(f"{leaf}/cls_token", f"{tensor}.{names['cls_token']}", (1, 1, size))
    weights.add(f"{leaf}/positions", f"{tensor}.{names['positions']}", (1, places, size))

    leaf = "vision/blocks"
    tensor = f"{names['tower']}.{names['block']}"
    norm_bias = v.norm == "layer_norm"
    weights.scale(f"{leaf}/norm1", f"{tensor}.{names['norm1']}", size, v.depth, bias=norm_bias)
    projections = {"qkv": 3 * size}
    if config.layout == "native":
        projections = dict.fromkeys(("q_proj", "k_proj", "v_proj"), size)
    for name, width in projections.items():
        stored = f"{tensor}.{names['attn']}.{name}"
        weights.linear(f"{leaf}/attn/{name}", stored, size, width, v.depth, bias=v.attention_bias)
    if v.qk_norm:
        for name in ("q_norm", "k_norm"):
            weights.scale(f"{leaf}/attn/{name}", f"{tensor}.{names['attn']}.{name}", size, v.depth)
    weights.linear(f"{leaf}/attn/proj", f"{tensor}.{names['proj']}", size, size, v.depth, bias=True)
    weights.add(f"{leaf}/ls1", f"{tensor}.{names['ls1']}", (size,), layers=v.depth)
    weights.scale(f"{leaf}/norm2", f"{tensor}.{names['norm2']}", size, v.depth, bias=norm_bias)
    weights.linear(f"{leaf}/fc1", f"{tensor}.mlp.fc1", size, v.intermediate_size, v.depth, bias=True)
    weights.linear(f"{leaf}/fc2", f"{tensor}.mlp.fc2", v.intermediate_size, size, v.depth, bias=True)
    weights.add(f"{leaf}/ls2", f"{tensor}.{names['ls2']}", (size,), layers=v.depth)

    merged = size * v.spatial_merge_size**2
    hidden = config.text.hidden_size
    weights.scale("vision/merger/norm", names["norm"], merged, bias=True)
    weights.linear("vision/merger/linear_1", names["linear_1"], merged, hidden, bias=True)
    weights.linear("vision/merger/linear_2", names["linear_2"], hidden, hidden, bias=True)
    add_decoder(weights, config.text, "language_model.model", config.head_name.removesuffix(".weight"))
    return tuple(weights.mappings)


def module_names(config: InternVLConfig) -> tuple[tuple[str, str], ...]:
    """See `Family`. The original layout's code has the stored names in memory too."""
    if config.layout == "original":
        return ()
    return (
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
    )
