"""The shape of an InternVL policy (2.5, 3 and 3.5), read from and written to its `config.json`.

A checkpoint comes in one of two layouts, and is saved in the one it came in:

    original   `model_type` internvl_chat: vision_model..., mlp1..., language_model... (the hub's OpenGVLab/InternVL*)
    native     `model_type` internvl: vision_tower..., multi_modal_projector..., language_model... (InternVL*-hf)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mmeureka_jax.errors import UserError
from mmeureka_jax.models.checkpoint_config import KeptConfig, OtherFiles, read_end_tokens, refuse_misfits
from mmeureka_jax.models.config_keys import LARGEST_SIDE, MOST_LAYERS, Keys
from mmeureka_jax.models.decoder_config import TextConfig, read_decoder

CONTEXT_TOKEN = "<IMG_CONTEXT>"
START_TOKEN = "<img>"
END_TOKEN = "</img>"

# From the conversation template `internvl2_5` of the original code, which InternVL2.5, 3 and 3.5 share.
SYSTEM_MESSAGE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)


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
    stored: str  # config.json as it was read: most of its keys concern only the original code, and travel unchanged

    @classmethod
    def from_hf(
        cls,
        config_json: Mapping[str, Any],
        generation_config_json: Mapping[str, Any] | None,
        source: str,
        other_files: OtherFiles | None = None,
    ) -> InternVLConfig:
        """Reads the dictionaries of `config.json` and (where there is one) `generation_config.json`.

        Args:
            source: the file, for messages.
            other_files: the tokenizer, which in the original layout is the only one to know the picture tokens, and the
                tensors' names.

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
        other_files = other_files or OtherFiles()
        added = other_files.added_tokens()
        ids = {token: added.get(token) for token in (CONTEXT_TOKEN, START_TOKEN, END_TOKEN)}
        if not original:
            ids[CONTEXT_TOKEN] = top.integer("image_token_id")
        tokens = {token: number for token, number in ids.items() if number is not None}
        if len(tokens) < len(ids):
            missing = ", ".join(token for token in ids if token not in tokens)
            raise UserError(f"{source}: the tokenizer beside it lacks {missing}, which mark a picture")
        nested = {key: value for key, value in text_keys.values.items() if value is not None}
        end_keys = Keys({**config_json, **nested}, source, "")
        eos, pad, bos = read_end_tokens(end_keys, generation_config_json, other_files)
        config = cls(
            text=read_decoder(text_keys, _is_tied(text_keys, top, other_files)),
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
        refuse_misfits(source, checks)


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


def _is_tied(text: Keys, top: Keys, other_files: OtherFiles) -> bool:
    """Whether the output head is the embedding. transformers 4 says so in the text's section, 5 at the top; where the
    two differ, it is not if a head is stored."""
    given = (keys.get("tie_word_embeddings") for keys in (text, top))
    said = {bool(value) for value in given if value is not None}
    if len(said) < 2:
        return said == {True}
    return not any(name.endswith(("lm_head.weight", ".output.weight")) for name in other_files.tensors())
