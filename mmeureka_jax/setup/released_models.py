"""The shapes of released models, so that a run can be planned without their weights and without a network.

A model's files say far more; here is what `read_config` reads of them. The shapes add up to `parameters`, the published
number (tests/setup/test_released_models.py). Not checked against the files on the hub: the end tokens of the InternVL
models and the rotary base of InternLM2.5-20B, neither of which changes a shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmeureka_jax.errors import UserError
from mmeureka_jax.files import explain_write_errors
from mmeureka_jax.models.internvl_config import CONTEXT_TOKEN, END_TOKEN, START_TOKEN


@dataclass(frozen=True)
class ReleasedModel:
    """What `read_config` needs of a released model.

    Attributes:
        parameters: how many it has, as published.
        source: where that number is from.
        config: `config.json`.
        generation_config: `generation_config.json`.
        added_tokens: `added_tokens.json`.
    """

    parameters: float
    source: str
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    added_tokens: Mapping[str, int] = field(default_factory=dict)

    def files(self) -> dict[str, Mapping[str, Any]]:
        """The files of its folder, by name."""
        return {
            "config.json": self.config,
            "generation_config.json": self.generation_config,
            "added_tokens.json": self.added_tokens,
        }


def write_released_model(name: str, folder: Path) -> Path:
    """Writes what is known of a released model into a folder, which `read_config` and `open_policy` then take. It has
    no weights and no tokenizer.

    Args:
        name: its hub id, one of `RELEASED_MODELS`.
        folder: made if it is not there.

    Returns:
        The folder.

    Raises:
        UserError: no such model here, or the folder cannot be written.
    """
    model = RELEASED_MODELS.get(name)
    if model is None:
        raise UserError(
            f"{name}: its sizes are not known here; give a folder with its config.json, or one of "
            + ", ".join(sorted(RELEASED_MODELS))
        )
    with explain_write_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in model.files().items():
            (folder / file).write_text(json.dumps(content, indent=2) + "\n")
    return folder


@dataclass(frozen=True)
class _Decoder:
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    head_dim: int | None = None

    def keys(self) -> dict[str, Any]:
        keys = {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "hidden_act": "silu",
        }
        return keys if self.head_dim is None else {**keys, "head_dim": self.head_dim}


_QWEN_ENDS = {"bos_token_id": 151643, "pad_token_id": 151643, "eos_token_id": [151645, 151643]}
_QWEN_TURN_END = {"<|im_end|>": 151645}


def _qwen_vl(model_type: str, decoder: _Decoder, vision: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    """`config.json` of Qwen2.5-VL and Qwen2-VL."""
    return {
        "architectures": [f"{'Qwen2VL' if model_type == 'qwen2_vl' else 'Qwen2_5_VL'}ForConditionalGeneration"],
        "model_type": model_type,
        **decoder.keys(),
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "max_position_embeddings": 128000 if model_type == "qwen2_5_vl" else 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": tied,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_config": dict(vision),
    }


def _qwen2_5_vl(count: float, source: str, decoder: _Decoder, vision_mlp: int, tied: bool = False) -> ReleasedModel:
    vision = {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": vision_mlp,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": decoder.hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
        "tokens_per_second": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }
    config = _qwen_vl("qwen2_5_vl", decoder, vision, tied)
    return ReleasedModel(count, source, config, _QWEN_ENDS, _QWEN_TURN_END)


def _qwen2_vl(count: float, source: str, decoder: _Decoder, tied: bool = False) -> ReleasedModel:
    vision = {
        "depth": 32,
        "embed_dim": 1280,
        "hidden_act": "quick_gelu",
        "hidden_size": decoder.hidden,
        "mlp_ratio": 4,
        "num_heads": 16,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "temporal_patch_size": 2,
    }
    config = _qwen_vl("qwen2_vl", decoder, vision, tied)
    return ReleasedModel(count, source, config, _QWEN_ENDS, _QWEN_TURN_END)


def _qwen2_5(count: float, source: str, decoder: _Decoder, tied: bool = False) -> ReleasedModel:
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **decoder.keys(),
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": tied,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    }
    return ReleasedModel(count, source, config, _QWEN_ENDS, _QWEN_TURN_END)


_VIT_300M = {
    "model_type": "intern_vit_6b",
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 448,
    "patch_size": 14,
    "num_channels": 3,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
    "qk_normalization": False,
}
_VIT_6B = {
    **_VIT_300M,
    "hidden_size": 3200,
    "intermediate_size": 12800,
    "num_hidden_layers": 45,
    "num_attention_heads": 25,
    "norm_type": "rms_norm",
    "qkv_bias": False,
    "qk_normalization": True,
}

# Of each decoder, what its section says besides the sizes, and its tokens.
_INTERNLM2 = {
    "architectures": ["InternLM2ForCausalLM"],
    "model_type": "internlm2",
    "bias": False,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "dynamic", "factor": 2.0},
    "max_position_embeddings": 32768,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0},
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
}
_QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "use_sliding_window": False,
    "attention_bias": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
_TOKENS = {
    "internlm2": {"<|im_end|>": 92542, START_TOKEN: 92544, END_TOKEN: 92545, CONTEXT_TOKEN: 92546},
    "qwen2": {**_QWEN_TURN_END, START_TOKEN: 151665, END_TOKEN: 151666, CONTEXT_TOKEN: 151667},
    "qwen3": {**_QWEN_TURN_END, START_TOKEN: 151669, END_TOKEN: 151670, CONTEXT_TOKEN: 151671},
}
_ENDS = {
    "internlm2": {"eos_token_id": [92542, 2], "pad_token_id": 2},
    "qwen2": _QWEN_ENDS,
    "qwen3": _QWEN_ENDS,
}


def _internvl(
    count: float, source: str, vision: Mapping[str, Any], kind: Mapping[str, Any], decoder: _Decoder, tied: bool = False
) -> ReleasedModel:
    config = {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": 448,
        "max_dynamic_patch": 12,
        "min_dynamic_patch": 1,
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "use_thumbnail": True,
        "tie_word_embeddings": tied,
        "llm_config": {**kind, **decoder.keys(), "tie_word_embeddings": tied},
        "vision_config": dict(vision),
    }
    name = kind["model_type"]
    return ReleasedModel(count, source, config, _ENDS[name], _TOKENS[name])


_INTERNLM_1_8B = _Decoder(2048, 8192, 24, 16, 8, 92553)
_INTERNLM_7B = _Decoder(4096, 14336, 32, 32, 8, 92553)
_INTERNLM_20B = _Decoder(6144, 16384, 48, 48, 8, 92553)


def _qwen(size: str, vocabulary: int) -> _Decoder:
    """The decoder of Qwen2.5 (and of Qwen2, where there is that size)."""
    return _Decoder(*_QWEN2_SIZES[size], vocabulary)


_QWEN2_SIZES = {
    "0.5B": (896, 4864, 24, 14, 2),
    "1.5B": (1536, 8960, 28, 12, 2),
    "3B": (2048, 11008, 36, 16, 2),
    "7B": (3584, 18944, 28, 28, 4),
    "14B": (5120, 13824, 48, 40, 8),
    "32B": (5120, 27648, 64, 40, 8),
    "72B": (8192, 29568, 80, 64, 8),
}


def _qwen3(*sizes: int) -> _Decoder:
    hidden, intermediate, layers, heads = sizes
    return _Decoder(hidden, intermediate, layers, heads, 8, 151936, head_dim=128)


# Where the numbers of parameters are from.
_HUB_API = "the hub's API (safetensors metadata)"
_INDEX = "total_size of its model.safetensors.index.json, 2 bytes a parameter"
_HUB_FILES = "the size of its files on the hub, 2 bytes a parameter"
_COUNTED = "published by others who counted the tensors on the hub"
_ROUNDED = "the hub's model page, rounded there; remembered, not looked up when this table was made"
_SAME_SIZES = "that of the model with the same towers"

# By hub id.
RELEASED_MODELS: Mapping[str, ReleasedModel] = {
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen2_5_vl(3754622976, _COUNTED, _qwen("3B", 151936), 3420, tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": _qwen2_5_vl(8292166656, _INDEX, _qwen("7B", 152064), 3420),
    "Qwen/Qwen2.5-VL-32B-Instruct": _qwen2_5_vl(33452718336, _INDEX, _qwen("32B", 152064), 3456),
    "Qwen/Qwen2.5-VL-72B-Instruct": _qwen2_5_vl(73.4e9, _ROUNDED, _qwen("72B", 152064), 3456),
    "Qwen/Qwen2-VL-2B-Instruct": _qwen2_vl(2208985600, _HUB_API, _qwen("1.5B", 151936), tied=True),
    "Qwen/Qwen2-VL-7B-Instruct": _qwen2_vl(8291375616, _HUB_API, _qwen("7B", 152064)),
    "Qwen/Qwen2-VL-72B-Instruct": _qwen2_vl(73405560320, _HUB_API, _qwen("72B", 152064)),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2_5(1543714304, _HUB_API, _qwen("1.5B", 151936), tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2_5(7615616512, _HUB_API, _qwen("7B", 152064)),
    "OpenGVLab/InternVL2_5-1B": _internvl(938193024, _HUB_API, _VIT_300M, _QWEN2, _qwen("0.5B", 151674)),
    "OpenGVLab/InternVL2_5-2B": _internvl(2205754368, _HUB_API, _VIT_300M, _INTERNLM2, _INTERNLM_1_8B),
    "OpenGVLab/InternVL2_5-4B": _internvl(3712637952, _HUB_API, _VIT_300M, _QWEN2, _qwen("3B", 151674)),
    "OpenGVLab/InternVL2_5-8B": _internvl(8075365376, _HUB_API, _VIT_300M, _INTERNLM2, _INTERNLM_7B),
    "OpenGVLab/InternVL2_5-26B": _internvl(25514186112, _HUB_API, _VIT_6B, _INTERNLM2, _INTERNLM_20B),
    "OpenGVLab/InternVL2_5-38B": _internvl(38388164992, _HUB_API, _VIT_6B, _QWEN2, _qwen("32B", 151674)),
    "OpenGVLab/InternVL2_5-38B-Pretrained": _internvl(38388164992, _SAME_SIZES, _VIT_6B, _QWEN2, _qwen("32B", 151674)),
    "OpenGVLab/InternVL2_5-78B": _internvl(78408318336, _HUB_API, _VIT_6B, _QWEN2, _qwen("72B", 151674)),
    "OpenGVLab/InternVL3-1B": _internvl(938193024, _SAME_SIZES, _VIT_300M, _QWEN2, _qwen("0.5B", 151674)),
    "OpenGVLab/InternVL3-2B": _internvl(2.09e9, _ROUNDED, _VIT_300M, _QWEN2, _qwen("1.5B", 151674)),
    "OpenGVLab/InternVL3-8B": _internvl(7.95e9, _HUB_FILES, _VIT_300M, _QWEN2, _qwen("7B", 151674)),
    "OpenGVLab/InternVL3-14B": _internvl(15.1e9, _HUB_FILES, _VIT_300M, _QWEN2, _qwen("14B", 151674)),
    "OpenGVLab/InternVL3-38B": _internvl(38388164992, _SAME_SIZES, _VIT_6B, _QWEN2, _qwen("32B", 151674)),
    "OpenGVLab/InternVL3-78B": _internvl(78408318336, _SAME_SIZES, _VIT_6B, _QWEN2, _qwen("72B", 151674)),
    "OpenGVLab/InternVL3_5-1B": _internvl(1.061e9, _COUNTED, _VIT_300M, _QWEN3, _qwen3(1024, 3072, 28, 16)),
    "OpenGVLab/InternVL3_5-2B": _internvl(2.35e9, _ROUNDED, _VIT_300M, _QWEN3, _qwen3(2048, 6144, 28, 16)),
    "OpenGVLab/InternVL3_5-4B": _internvl(4.73e9, _ROUNDED, _VIT_300M, _QWEN3, _qwen3(2560, 9728, 36, 32)),
    "OpenGVLab/InternVL3_5-8B": _internvl(8.53e9, _ROUNDED, _VIT_300M, _QWEN3, _qwen3(4096, 12288, 36, 32)),
    "OpenGVLab/InternVL3_5-14B": _internvl(15.1e9, _ROUNDED, _VIT_300M, _QWEN3, _qwen3(5120, 17408, 40, 40)),
    "OpenGVLab/InternVL3_5-38B": _internvl(38.4e9, _ROUNDED, _VIT_6B, _QWEN3, _qwen3(5120, 25600, 64, 64)),
}
