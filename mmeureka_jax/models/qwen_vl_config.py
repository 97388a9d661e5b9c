"""The shape of a Qwen2.5-VL or Qwen2-VL policy, read from and written to the `config.json` of transformers 4 and 5.

transformers 4 (and the files on the hub) keep the text decoder's keys at the top level and its rotary settings in
`rope_theta` and `rope_scaling`; transformers 5 nests them in `text_config` and `rope_parameters`. `from_hf` reads both;
`to_hf` writes the hub's flat form, the one that every transformers from 4.49 on reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmeureka_jax.errors import UserError
from mmeureka_jax.models.checkpoint_config import OtherFiles, generation_config, read_end_tokens, refuse_misfits
from mmeureka_jax.models.config_keys import LARGEST_SIDE, MOST_LAYERS, Keys
from mmeureka_jax.models.decoder_config import DecoderKind, TextConfig, read_decoder

_MOST_PATCHES = 2**14  # at most, in a window
_DECODER = DecoderKind(attention_bias=True, multimodal=True, rms_norm_eps=1e-5, rope_theta=1e6)

# `model_type` of `config.json`.
QWEN2_VL = "qwen2_vl"
QWEN2_5_VL = "qwen2_5_vl"


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower (HF `Qwen2_5_VLVisionConfig`, and `Qwen2VLVisionConfig`, whose names are others)."""

    hidden_size: int
    intermediate_size: int
    depth: int
    num_heads: int
    patch_size: int  # pixels a side
    temporal_patch_size: int
    spatial_merge_size: int  # patches a side that become one image token
    window_size: int  # pixels a side of an attention window (Qwen2-VL: of one image token)
    full_attention_blocks: tuple[int, ...]  # Qwen2-VL: all
    in_channels: int
    out_hidden_size: int
    tokens_per_second: int = 2  # video only; kept for the exported file
    plain_blocks: bool = False  # LayerNorms and an MLP of two layers (Qwen2-VL), not RMSNorms and a gated MLP

    @property
    def patches_per_window(self) -> int:
        """S, the places of a window."""
        return (self.window_size // self.patch_size) ** 2

    @property
    def patch_numbers(self) -> int:
        """C, the numbers in a patch of a still picture."""
        return self.in_channels * self.patch_size**2


@dataclass(frozen=True)
class Qwen2_5VLConfig:
    """A Qwen2.5-VL or Qwen2-VL policy: its two towers and the token ids that have a meaning."""

    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    bos_token_id: int | None = None

    @classmethod
    def from_hf(
        cls,
        config_json: Mapping[str, Any],
        generation_config_json: Mapping[str, Any] | None,
        source: str,
        other_files: OtherFiles | None = None,
    ) -> Qwen2_5VLConfig:
        """Reads the dictionaries of `config.json` and (where there is one) `generation_config.json`.

        Args:
            config_json: as transformers 4 (flat or nested) or 5 wrote it.
            generation_config_json: decides the end and padding tokens when it names them, as in transformers.
            source: the file, for messages.
            other_files: the tokenizer, which knows whether turns have an end.

        Raises:
            UserError: a missing or malformed key, sizes that do not fit together, or a feature that this policy does
                not have (sliding windows in the decoder, scaled rotary embedding, other activations).
        """
        # The nested keys of text_config win over flat ones, except where they are null.
        sections = Keys(config_json, source, "")
        nested = {k: v for k, v in sections.section("text_config").items() if v is not None}
        text_keys = Keys({**config_json, **nested}, source, "")
        if not isinstance(config_json.get("vision_config"), Mapping):
            raise UserError(f"{source}: key 'vision_config' is missing: no settings of a vision tower")
        read_vision = _read_plain_vision if config_json.get("model_type") == QWEN2_VL else _read_vision
        vision = read_vision(Keys(config_json["vision_config"], source, "vision_config."))
        # transformers 5: tied if either level says so.
        tied = bool(config_json.get("tie_word_embeddings") or nested.get("tie_word_embeddings"))
        text = read_decoder(text_keys, tied, _DECODER)
        eos_ids, pad, bos = read_end_tokens(text_keys, generation_config_json, other_files or OtherFiles())
        config = cls(
            text=text,
            vision=vision,
            image_token_id=text_keys.integer("image_token_id"),
            video_token_id=text_keys.integer("video_token_id"),
            vision_start_token_id=text_keys.integer("vision_start_token_id"),
            vision_end_token_id=text_keys.integer("vision_end_token_id"),
            eos_token_ids=eos_ids,
            pad_token_id=pad,
            bos_token_id=bos,
        )
        config.check_sizes(source)
        return config

    def to_hf(self, dtype: str = "float32") -> dict[str, Any]:
        """The dictionary of `config.json` in the hub's flat form; `dtype` is that of the weights next to it.

        All end tokens are in `to_hf_generation`; `config.json` names the first, as the hub's files do.
        """
        text = self.text
        plain = self.model_type == QWEN2_VL
        config = {
            "architectures": [f"{'Qwen2VL' if plain else 'Qwen2_5_VL'}ForConditionalGeneration"],
            "model_type": self.model_type,
            "torch_dtype": dtype,
            "attention_dropout": 0.0,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_ids[0],
            "pad_token_id": self.pad_token_id,
            "vision_start_token_id": self.vision_start_token_id,
            "vision_end_token_id": self.vision_end_token_id,
            "image_token_id": self.image_token_id,
            "video_token_id": self.video_token_id,
            "hidden_act": "silu",
            "hidden_size": text.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": text.intermediate_size,
            "max_position_embeddings": text.max_position_embeddings,
            "max_window_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_hidden_layers": text.num_layers,
            "num_key_value_heads": text.num_kv_heads,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_theta": text.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
            "sliding_window": 32768,  # transformers 4 wants a number here; use_sliding_window switches it off
            "use_sliding_window": False,
            "tie_word_embeddings": text.tie_word_embeddings,
            "use_cache": True,
            "vocab_size": text.vocab_size,
            "vision_config": _plain_vision_to_hf(self.vision) if plain else _vision_to_hf(self.vision),
        }
        if text.head_dim * text.num_heads != text.hidden_size:
            config["head_dim"] = text.head_dim
        return config

    def to_hf_generation(self) -> dict[str, Any]:
        """The dictionary of a `generation_config.json` with every end token."""
        return generation_config(self.eos_token_ids, self.pad_token_id, self.bos_token_id)

    @property
    def model_type(self) -> str:
        return QWEN2_VL if self.vision.plain_blocks else QWEN2_5_VL

    @property
    def placeholders(self) -> dict[str, int]:
        """The tokens that mark pictures, which no text may contain, by their keys in `config.json`."""
        names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return {name: getattr(self, name) for name in names}

    @property
    def forbidden_tokens(self) -> tuple[int, ...]:
        """Tokens that are never sampled: a placeholder without its picture would break the next forward pass."""
        return (self.image_token_id, self.video_token_id)

    @property
    def head_name(self) -> str:
        """What the stored output head is called."""
        return "lm_head.weight"

    def check_sizes(self, source: str) -> None:
        """Raises a `UserError` about `source` that lists every pair of sizes that do not fit together."""
        text = self.text
        vision = self.vision
        sizes = [getattr(text, name) for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers")]
        sizes += [text.num_kv_heads, text.head_dim, vision.hidden_size, vision.intermediate_size, vision.depth]
        sizes += [vision.num_heads, vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size]
        sizes += [vision.in_channels]
        if min(sizes) <= 0:
            raise UserError(f"{source}: a size is not positive: {text}, {vision}")
        patch = vision.patch_size * vision.spatial_merge_size
        checks = [
            (
                text.num_heads % text.num_kv_heads == 0,
                f"{text.num_heads} heads over {text.num_kv_heads} key/value heads",
            ),
            (
                2 * sum(text.mrope_section) == text.head_dim and min(text.mrope_section) >= 0,
                f"mrope_section {list(text.mrope_section)} does not sum to half of head_dim {text.head_dim}",
            ),
            (
                vision.hidden_size % (4 * vision.num_heads) == 0,
                f"vision hidden_size {vision.hidden_size} over {vision.num_heads} heads is no multiple of 4",
            ),
            (
                vision.window_size > 0 and vision.window_size % patch == 0,
                f"window_size {vision.window_size} is no multiple of patch_size x spatial_merge_size = {patch}",
            ),
            (
                vision.patches_per_window <= _MOST_PATCHES,
                f"a window of {vision.patches_per_window} patches; at most {_MOST_PATCHES} are possible",
            ),
            (
                vision.out_hidden_size == text.hidden_size,
                f"vision out_hidden_size {vision.out_hidden_size} differs from hidden_size {text.hidden_size}",
            ),
            (
                all(0 <= block < vision.depth for block in vision.full_attention_blocks),
                f"full attention blocks {list(vision.full_attention_blocks)} are not all in 0..{vision.depth - 1}",
            ),
            (
                not vision.plain_blocks or vision.intermediate_size % vision.hidden_size == 0,
                f"vision intermediate_size {vision.intermediate_size} is no multiple of hidden_size "
                f"{vision.hidden_size}, which a {QWEN2_VL} file tells it by",
            ),
        ]
        for name, token in self.placeholders.items():
            checks.append(
                (0 <= token < text.vocab_size, f"{name} {token} is outside the vocabulary of {text.vocab_size}")
            )
        refuse_misfits(source, checks)


def _require_plain_angles(vision: Keys) -> None:
    rope = Keys(vision.section("rope_parameters"), vision.source, f"{vision.prefix}rope_parameters.")
    rope.require("rope_theta", 10000.0)


def _read_vision(keys: Keys) -> VisionConfig:
    """What a file leaves out is as in transformers' `Qwen2_5_VLVisionConfig`, whose defaults some versions do not
    write."""
    keys.require("hidden_act", "silu")
    _require_plain_angles(keys)
    return VisionConfig(
        hidden_size=keys.integer("hidden_size", default=3584),
        intermediate_size=keys.integer("intermediate_size", default=3420),
        depth=keys.integer("depth", default=32, at_most=MOST_LAYERS),
        num_heads=keys.integer("num_heads", default=16),
        patch_size=keys.integer("patch_size", "spatial_patch_size", default=14, at_most=LARGEST_SIDE),
        temporal_patch_size=keys.integer("temporal_patch_size", default=2, at_most=LARGEST_SIDE),
        spatial_merge_size=keys.integer("spatial_merge_size", default=2, at_most=LARGEST_SIDE),
        window_size=keys.integer("window_size", default=112, at_most=LARGEST_SIDE),
        full_attention_blocks=keys.integers("fullatt_block_indexes", default=(7, 15, 23, 31)),
        in_channels=keys.integer("in_channels", "in_chans", default=3, at_most=3),
        out_hidden_size=keys.integer("out_hidden_size", default=3584),
        tokens_per_second=int(keys.real("tokens_per_second", default=4)),
    )


def _vision_to_hf(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": QWEN2_5_VL,
        "depth": vision.depth,
        "hidden_act": "silu",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_heads": vision.num_heads,
        "in_chans": vision.in_channels,  # the hub files' name; transformers itself reads in_channels
        "in_channels": vision.in_channels,
        "out_hidden_size": vision.out_hidden_size,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "spatial_patch_size": vision.patch_size,
        "window_size": vision.window_size,
        "fullatt_block_indexes": list(vision.full_attention_blocks),
        "tokens_per_second": vision.tokens_per_second,
        "temporal_patch_size": vision.temporal_patch_size,
    }


def _read_plain_vision(keys: Keys) -> VisionConfig:
    """Qwen2-VL's section: `hidden_size` is there what the later one calls `out_hidden_size`. Defaults as above."""
    keys.require("hidden_act", "quick_gelu")
    _require_plain_angles(keys)
    size = keys.integer("embed_dim", default=1280)
    depth = keys.integer("depth", default=32, at_most=MOST_LAYERS)
    ratio = keys.real("mlp_ratio", default=4)
    if not ratio.is_integer():
        raise UserError(f"{keys.source}: key 'vision_config.mlp_ratio' is {ratio}, expected a whole number")
    patch_size = keys.integer("patch_size", "spatial_patch_size", default=14, at_most=LARGEST_SIDE)
    merge_size = keys.integer("spatial_merge_size", default=2, at_most=LARGEST_SIDE)
    return VisionConfig(
        hidden_size=size,
        intermediate_size=size * int(ratio),
        depth=depth,
        num_heads=keys.integer("num_heads", default=16),
        patch_size=patch_size,
        temporal_patch_size=keys.integer("temporal_patch_size", default=2, at_most=LARGEST_SIDE),
        spatial_merge_size=merge_size,
        window_size=patch_size * merge_size,
        full_attention_blocks=tuple(range(depth)),
        in_channels=keys.integer("in_channels", "in_chans", default=3, at_most=3),
        out_hidden_size=keys.integer("hidden_size", default=3584),
        plain_blocks=True,
    )


def _plain_vision_to_hf(vision: VisionConfig) -> dict[str, Any]:
    return {
        "model_type": QWEN2_VL,
        "depth": vision.depth,
        "embed_dim": vision.hidden_size,
        "hidden_act": "quick_gelu",
        "hidden_size": vision.out_hidden_size,
        "mlp_ratio": vision.intermediate_size // vision.hidden_size,
        "num_heads": vision.num_heads,
        "in_chans": vision.in_channels,
        "in_channels": vision.in_channels,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.spatial_merge_size,
        "spatial_patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
