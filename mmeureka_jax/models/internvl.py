"""InternVL (2.5, 3 and 3.5): sizes, the InternViT tower with its projector, and the names of its stored tensors.

A checkpoint comes in one of two layouts, and is saved in the one it came in:

    original   `model_type` internvl_chat: vision_model..., mlp1..., language_model... (the hub's OpenGVLab/InternVL*)
    native     `model_type` internvl: vision_tower..., multi_modal_projector..., language_model... (InternVL*-hf)

Sources: transformers' `InternVLForConditionalGeneration`, and OpenGVLab's `InternVLChatModel` and `InternLM2` with the
mapping of one to the other in transformers' `convert_internvl_weights_to_hf.py`.

A picture comes as tiles (data/tiles.py), and a tile is a window of `ImageBatch`: its patches stand in runs of
merge_size**2 that become one image token. That is what the reference's pixel shuffle does to patches in raster order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from mmeureka_jax.errors import UserError
from mmeureka_jax.mesh import constrain
from mmeureka_jax.models.attention import attention, keys_first, split_heads
from mmeureka_jax.models.batch import Array, ImageBatch
from mmeureka_jax.models.config import Beside, KeptConfig, TextConfig, read_decoder, read_end_tokens
from mmeureka_jax.models.config_keys import LARGEST_SIDE, MOST_LAYERS, Keys
from mmeureka_jax.models.decoder import Decoder, run_stack
from mmeureka_jax.models.layers import LayerNorm, Linear, RMSNorm, parameter
from mmeureka_jax.models.stored_tensors import Rule, Rules, decoder_rules

# What transformers 5 calls the native layout's tensors in memory; its files have the names on the right.
RENAMED = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^lm_head\.", "language_model.lm_head."),
)

PROJECTOR_EPSILON = 1e-5  # torch's default, in both references
QK_NORM_EPSILON = 1e-6  # of transformers; the original has layer_norm_eps, whose released value is the same

CONTEXT_TOKEN = "<IMG_CONTEXT>"
START_TOKEN = "<img>"
END_TOKEN = "</img>"

# Of the original's conversation template `internvl2_5`, the one of InternVL2.5, 3 and 3.5.
SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


# Sizes.


@dataclass(frozen=True)
class InternViTConfig:
    """InternViT and the projector behind it (HF `InternVLVisionConfig`, OpenGVLab's `InternVisionConfig`)."""

    hidden_size: int
    intermediate_size: int
    depth: int
    num_heads: int
    patch_size: int  # pixels a side
    image_size: int  # pixels a side of the pictures that the position embeddings are for
    tile_size: int  # pixels a side of a tile
    norm: Literal["layer_norm", "rms_norm"]
    norm_epsilon: float
    attention_bias: bool
    qk_norm: bool  # queries and keys are normalised, all heads together (the 6B tower)
    spatial_merge_size: int  # patches a side that become one image token
    in_channels: int = 3

    @property
    def tile_side(self) -> int:
        """Patches a side of a tile."""
        return self.tile_size // self.patch_size

    @property
    def patches_per_window(self) -> int:
        """S, the places of a window: the patches of a tile."""
        return self.tile_side**2

    @property
    def patch_numbers(self) -> int:
        """C, the numbers in a patch."""
        return self.in_channels * self.patch_size**2


MOST_TILES = 1024  # at most, for a picture


@dataclass(frozen=True)
class Tiling:
    """How the reference cuts pictures (see data/tiles.py)."""

    fewest: int
    most: int  # tiles, the thumbnail apart
    thumbnail: bool


@dataclass(frozen=True)
class InternVLConfig(KeptConfig):
    """An InternVL policy: its towers, its picture tokens, and the `config.json` that it came with."""

    text: TextConfig
    vision: InternViTConfig
    layout: Literal["original", "native"]
    tiling: Tiling | None  # None: the image processor's file says it (native)
    system: str | None  # what the system turn says if the messages have none (original)
    image_token_id: int  # <IMG_CONTEXT>, one for each merged patch
    start_token_id: int  # <img>
    end_token_id: int  # </img>
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    bos_token_id: int | None
    stored: str  # config.json as it was read: most of its keys are the original code's alone, and travel unchanged

    @classmethod
    def from_hf(
        cls,
        config_json: Mapping[str, Any],
        generation_config_json: Mapping[str, Any] | None,
        source: str,
        beside: Beside | None = None,
    ) -> InternVLConfig:
        """Reads the dictionaries of `config.json` and (where there is one) `generation_config.json`.

        Args:
            source: the file, for messages.
            beside: the tokenizer, which in the original layout alone knows the picture tokens, and the tensors' names.

        Raises:
            UserError: a missing or malformed key, sizes that do not fit together, a picture token that the tokenizer
                lacks, or a feature that this policy does not have.
        """
        original = config_json.get("model_type") == "internvl_chat"
        top = Keys(config_json, source, "")
        towers = {}
        for section in ("llm_config" if original else "text_config", "vision_config"):
            if not isinstance(config_json.get(section), Mapping):
                raise UserError(f"{source}: key {section!r} is missing")
            towers[section] = Keys(config_json[section], source, f"{section}.")
        text_keys, vision_keys = towers.values()
        read = _original if original else _native
        merge_size, tile_size, tiling = read(top, vision_keys)
        beside = beside or Beside()
        added = beside.added_tokens()
        ids = {token: added.get(token) for token in (CONTEXT_TOKEN, START_TOKEN, END_TOKEN)}
        if not original:
            ids[CONTEXT_TOKEN] = top.integer("image_token_id")
        tokens = {token: number for token, number in ids.items() if number is not None}
        if len(tokens) < len(ids):
            missing = ", ".join(token for token in ids if token not in tokens)
            raise UserError(f"{source}: the tokenizer beside it lacks {missing}, which mark a picture")
        nested = {key: value for key, value in text_keys.values.items() if value is not None}
        end_keys = Keys({**config_json, **nested}, source, "")
        eos, pad, bos = read_end_tokens(end_keys, generation_config_json or {}, added)
        config = cls(
            text=read_decoder(text_keys, _is_tied(text_keys, top, beside)),
            vision=_read_vision(vision_keys, tile_size, merge_size, original),
            layout="original" if original else "native",
            tiling=tiling,
            system=str(top.get("system_message", SYSTEM_MESSAGE)) if original else None,
            image_token_id=tokens[CONTEXT_TOKEN],
            start_token_id=tokens[START_TOKEN],
            end_token_id=tokens[END_TOKEN],
            eos_token_ids=eos,
            pad_token_id=pad,
            bos_token_id=bos,
            stored=json.dumps(config_json),
        )
        config.check_sizes(source)
        return config

    @property
    def placeholders(self) -> dict[str, int]:
        """The tokens that mark pictures, which no text may contain."""
        return {CONTEXT_TOKEN: self.image_token_id, START_TOKEN: self.start_token_id, END_TOKEN: self.end_token_id}

    @property
    def forbidden_tokens(self) -> tuple[int, ...]:
        """Tokens that are never sampled: a placeholder without its picture would break the next forward pass."""
        return (self.image_token_id,)

    @property
    def head_name(self) -> str:
        """What the stored output head is called."""
        return f"language_model.{'output' if self.text.fused_qkv else 'lm_head'}.weight"

    def check_sizes(self, source: str) -> None:
        """Raises a `UserError` about `source` that lists every pair of sizes that do not fit together."""
        text = self.text
        vision = self.vision
        sizes = [text.vocab_size, text.hidden_size, text.intermediate_size, text.num_layers, text.num_kv_heads]
        sizes += [vision.hidden_size, vision.intermediate_size, vision.depth, vision.num_heads, vision.patch_size]
        if min(*sizes, vision.image_size, vision.tile_size, vision.spatial_merge_size) <= 0:
            raise UserError(f"{source}: a size is not positive: {text}, {vision}")
        unit = vision.patch_size * vision.spatial_merge_size
        checks = [
            (
                text.num_heads % text.num_kv_heads == 0,
                f"{text.num_heads} heads over {text.num_kv_heads} key/value heads",
            ),
            (text.head_dim % 2 == 0, f"head_dim {text.head_dim} is odd"),
            (
                vision.hidden_size % vision.num_heads == 0,
                f"vision hidden_size {vision.hidden_size} over {vision.num_heads} heads",
            ),
            (vision.tile_size % unit == 0, f"tiles of {vision.tile_size} pixels are no multiple of {unit}"),
            (
                vision.in_channels == 3,
                f"pictures of {vision.in_channels} channels; the policy has three",
            ),
            (
                vision.image_size % vision.patch_size == 0,
                f"image_size {vision.image_size} is no multiple of patch_size {vision.patch_size}",
            ),
        ]
        checks += [
            (0 <= token < text.vocab_size, f"{name} is token {token}, outside the vocabulary of {text.vocab_size}")
            for name, token in self.placeholders.items()
        ]
        problems = [message for fits, message in checks if not fits]
        if problems:
            raise UserError(f"{source}: sizes do not fit together: " + "; ".join(problems))


def _original(top: Keys, vision: Keys) -> tuple[int, int, Tiling]:
    """Merge size, tile size and tiling of an internvl_chat config."""
    top.require("ps_version", "v2", default="v1")
    top.require("template", "internvl2_5")
    top.require("select_layer", -1, vision.integer("num_hidden_layers"))
    top.require("pad2square", False)
    tile_size = top.integer("force_image_size", default=vision.integer("image_size"), at_most=LARGEST_SIDE)
    dynamic = bool(top.get("dynamic_image_size", False))
    most = top.integer("max_dynamic_patch", default=6, at_most=MOST_TILES) if dynamic else 1
    fewest = top.integer("min_dynamic_patch", default=1, at_most=MOST_TILES) if dynamic else 1
    tiling = Tiling(fewest, most, bool(top.get("use_thumbnail", False)))
    return _merge_size(top), tile_size, tiling


def _native(top: Keys, vision: Keys) -> tuple[int, int, None]:
    """Merge size and tile size of an internvl config."""
    top.require("vision_feature_layer", -1)
    top.require("vision_feature_select_strategy", "default")
    top.require("projector_hidden_act", "gelu")
    vision.require("use_absolute_position_embeddings", True)
    vision.require("use_mask_token", False)
    vision.require("use_mean_pooling", True)
    return _merge_size(top), _side(vision, "image_size"), None


def _merge_size(top: Keys) -> int:
    ratio = top.real("downsample_ratio", default=0.5)
    size = round(1 / ratio) if ratio > 0 else 0
    if not 1 <= size <= LARGEST_SIDE or 1 / size != ratio:
        raise UserError(f"{top.source}: downsample_ratio is {ratio}, expected 1 over a whole number")
    return size


def _side(keys: Keys, name: str) -> int:
    """A size that is a number, or a list of two equal ones."""
    value = keys.get(name)
    if isinstance(value, (list, tuple)) and value and all(side == value[0] for side in value):
        keys = Keys({name: value[0]}, keys.source, keys.prefix)
    return keys.integer(name, at_most=LARGEST_SIDE)


def _read_vision(keys: Keys, tile_size: int, merge_size: int, original: bool) -> InternViTConfig:
    keys.require("hidden_act", "gelu")
    keys.require("norm_type", "layer_norm", "rms_norm")
    bias, qk_norm = ("qkv_bias", "qk_normalization") if original else ("attention_bias", "use_qk_norm")
    return InternViTConfig(
        hidden_size=keys.integer("hidden_size"),
        intermediate_size=keys.integer("intermediate_size"),
        depth=keys.integer("num_hidden_layers", at_most=MOST_LAYERS),
        num_heads=keys.integer("num_attention_heads"),
        patch_size=_side(keys, "patch_size"),
        image_size=_side(keys, "image_size"),
        tile_size=tile_size,
        norm=keys.get("norm_type", "rms_norm" if original else "layer_norm"),
        norm_epsilon=keys.real("layer_norm_eps", default=1e-6),
        attention_bias=bool(keys.get(bias, False)),
        qk_norm=bool(keys.get(qk_norm, original)),
        spatial_merge_size=merge_size,
        in_channels=keys.integer("num_channels", default=3),
    )


def _is_tied(text: Keys, top: Keys, beside: Beside) -> bool:
    """Whether the output head is the embedding. transformers 4 says so in the text's section, 5 at the top; where they
    differ, a head that is stored is one of its own."""
    given = (keys.get("tie_word_embeddings") for keys in (text, top))
    said = {bool(value) for value in given if value is not None}
    if len(said) < 2:
        return said == {True}
    return not any(name.endswith(("lm_head.weight", ".output.weight")) for name in beside.tensors())


# Modules.


def _norm(config: InternViTConfig, *, stack: int) -> nnx.Module:
    kind = LayerNorm if config.norm == "layer_norm" else RMSNorm
    return kind(config.hidden_size, config.norm_epsilon, stack=stack)


def raster_places(side: int, merge: int) -> np.ndarray:
    """Where the patch at each place of a tile stands in raster order: units of merge**2 patches in raster order of
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
    """Every tile by itself."""

    def __init__(self, config: InternViTConfig, hidden_size: int, *, fused: bool):
        self.embeddings = TileEmbeddings(config)
        self.blocks = TileBlock(config, stack=config.depth, fused=fused)
        self.merger = Projector(config, hidden_size)

    def __call__(self, images: ImageBatch, *, dtype: jnp.dtype, remat: bool) -> Float[Array, "P M D"]:
        prompts, tiles, places, numbers = images.patches.shape
        x = self.embeddings(images.patches.astype(dtype).reshape(prompts * tiles, places, numbers))
        segments = jnp.ones(x.shape[:2], jnp.int32)
        definition, stacked = nnx.split(self.blocks)

        def body(x: Array, block: nnx.State) -> tuple[Array, None]:
            return constrain(nnx.merge(definition, block)(x, segments), "batch", None, None), None

        x, _ = run_stack(body, x, stacked, remat=remat)
        x = x[:, 1:].reshape(prompts, tiles * places, -1)
        return constrain(self.merger(x), "batch", "seq", "act_embed")


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


def rules(config: InternVLConfig) -> tuple[Rule, ...]:
    """Every parameter of the policy, with its stored name and shape, in the order of the forward pass."""
    v = config.vision
    found = Rules()
    names = _NATIVE if config.layout == "native" else _ORIGINAL
    size = v.hidden_size
    places = 1 + (v.image_size // v.patch_size) ** 2
    leaf = "vision/embeddings"
    tensor = f"{names['tower']}.embeddings"
    patch = f"{tensor}.{names['patch']}"
    found.add(f"{leaf}/patch/kernel", f"{patch}.weight", (size, v.in_channels, *(v.patch_size,) * 2), "convolution")
    found.add(f"{leaf}/patch/bias", f"{patch}.bias", (size,))
    found.add(f"{leaf}/cls_token", f"{tensor}.{names['cls_token']}", (1, 1, size))
    found.add(f"{leaf}/positions", f"{tensor}.{names['positions']}", (1, places, size))

    leaf = "vision/blocks"
    tensor = f"{names['tower']}.{names['block']}"
    norm_bias = v.norm == "layer_norm"
    found.scale(f"{leaf}/norm1", f"{tensor}.{names['norm1']}", size, v.depth, bias=norm_bias)
    projections = {"qkv": 3 * size}
    if config.layout == "native":
        projections = dict.fromkeys(("q_proj", "k_proj", "v_proj"), size)
    for name, width in projections.items():
        stored = f"{tensor}.{names['attn']}.{name}"
        found.linear(f"{leaf}/attn/{name}", stored, size, width, v.depth, bias=v.attention_bias)
    if v.qk_norm:
        for name in ("q_norm", "k_norm"):
            found.scale(f"{leaf}/attn/{name}", f"{tensor}.{names['attn']}.{name}", size, v.depth)
    found.linear(f"{leaf}/attn/proj", f"{tensor}.{names['proj']}", size, size, v.depth, bias=True)
    found.add(f"{leaf}/ls1", f"{tensor}.{names['ls1']}", (size,), layers=v.depth)
    found.scale(f"{leaf}/norm2", f"{tensor}.{names['norm2']}", size, v.depth, bias=norm_bias)
    found.linear(f"{leaf}/fc1", f"{tensor}.mlp.fc1", size, v.intermediate_size, v.depth, bias=True)
    found.linear(f"{leaf}/fc2", f"{tensor}.mlp.fc2", v.intermediate_size, size, v.depth, bias=True)
    found.add(f"{leaf}/ls2", f"{tensor}.{names['ls2']}", (size,), layers=v.depth)

    merged = size * v.spatial_merge_size**2
    hidden = config.text.hidden_size
    found.scale("vision/merger/norm", names["norm"], merged, bias=True)
    found.linear("vision/merger/linear_1", names["linear_1"], merged, hidden, bias=True)
    found.linear("vision/merger/linear_2", names["linear_2"], hidden, hidden, bias=True)
    decoder_rules(found, config.text, "language_model.model", config.head_name.removesuffix(".weight"))
    return tuple(found.found)


def module_names(config: InternVLConfig) -> tuple[tuple[str, str], ...]:
    """See `Family`. The original layout's code has the stored names in memory too."""
    if config.layout == "original":
        return ()
    return (
        (r"^language_model\.model\.", "model.language_model."),
        (r"^(vision_tower|multi_modal_projector)\.", r"model.\1."),
    )
