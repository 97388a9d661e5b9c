"""A small random policy in the real file format, with a real tokenizer: where demo, tests and smoke runs start.

The tokenizer is byte-level BPE as Qwen's is (the same special tokens and splitting rules), trained on the built-in
problems. It keeps what those are made of short: every word that they use, every digit and each tag is one token.
Unlike Qwen's it does not normalise Unicode, so that any text comes back as it was.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmeureka_jax.config.reading import to_dict
from mmeureka_jax.config.schema import PromptStyle, RandomModelConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import temporary_folder
from mmeureka_jax.formats.hugging_face import write_checkpoint
from mmeureka_jax.models.checkpoint_config import OtherFiles
from mmeureka_jax.models.decoder_config import TextConfig
from mmeureka_jax.models.families import PolicyConfig, weight_mappings
from mmeureka_jax.models.internvl_config import CONTEXT_TOKEN, END_TOKEN, START_TOKEN, InternVLConfig
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig, VisionConfig
from mmeureka_jax.models.text_only import TextOnlyConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Never part of decoded text. The order is Qwen2.5's.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_INTERNVL_TOKENS = (START_TOKEN, END_TOKEN, CONTEXT_TOKEN)  # after all but the step tags, for that family
# One token each, but ordinary text: they stay when special tokens are skipped.
TAG_TOKENS = ("<think>", "</think>", "<answer>", "</answer>")
STEP_TOKENS = ("<step>", "</step>")  # the last ones, so that all others have the ids of tokenizers without them

RANDOM_MODEL_FILE = "random_model.json"  # the settings that the weights were drawn with

# What the tokenizer is trained on must stay, as every other token id depends on it.
_CORPUS_STYLES: tuple[PromptStyle, ...] = ("plain", "instruct", "zero", "cpgd")
_MAX_BPE_TOKENS = 1000  # bytes and merges; with the tokens above the table stays within 1024 rows
_VOCAB_MULTIPLE = 128  # spare rows at the end, as the released models have

# Qwen2's splitting: contractions, words with the one character before them, single digits, runs of other signs, spaces.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Qwen2.5-VL's turns, without the system turn that it makes up when none is given.
_CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}
{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part['type'] == 'video' -%}
{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
{%- else -%}
{{- part['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\n' -}}
{%- endif -%}
"""

# InternVL's: the context token is the picture's, the processor puts its start and end around it.
_INTERNVL_TEMPLATE = _CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", CONTEXT_TOKEN + "\\n")

_PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "min_pixels": 4 * 28 * 28,
    "max_pixels": 16384 * 28 * 28,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


_INTERNVL_PREPROCESSOR = {
    "image_processor_type": "GotOcr2ImageProcessor",
    "processor_class": "InternVLProcessor",
    "crop_to_patches": True,
    "min_patches": 1,
    "max_patches": 12,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def build_tokenizer_files(path: str | Path, family: str = "qwen2_5_vl") -> Tokenizer:
    """Trains the built-in tokenizer and writes `tokenizer.json`, `tokenizer_config.json` and the chat template.

    The result is the same every time. transformers' `AutoTokenizer` loads it, without torch.
    """
    from tokenizers import AddedToken

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _train_tokenizer(_corpus())
    internvl = family == "internvl"
    if internvl:
        tokenizer.add_special_tokens(list(_INTERNVL_TOKENS))
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in STEP_TOKENS])
    tokenizer.save(str(path / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": [*SPECIAL_TOKENS[1:], *(_INTERNVL_TOKENS if internvl else ())],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
    }
    if internvl:  # attributes that transformers' InternVLProcessor asks its tokenizer for
        names = ("start_image_token", "end_image_token", "context_image_token")
        tokenizer_config |= {
            "extra_special_tokens": dict(zip(names, _INTERNVL_TOKENS, strict=True)) | {"video_token": "<|video_pad|>"}
        }
    _write_json(path / "tokenizer_config.json", tokenizer_config)
    (path / "chat_template.jinja").write_text(_INTERNVL_TEMPLATE if internvl else _CHAT_TEMPLATE, encoding="utf-8")
    return tokenizer


def write_tiny_checkpoint(path: str | Path, config: RandomModelConfig) -> None:
    """Writes a complete checkpoint folder: random float32 weights, config, tokenizer and processor files.

    Weights follow transformers' initialisation (normal with deviation 0.02, norms 1, biases 0); each tensor's draw
    depends only on `config.seed` and its name. For one process.

    Raises:
        UserError: sizes that do not fit together, or `path` is taken or cannot be written.
    """
    with temporary_folder(Path(path).with_name(f"{Path(path).name}.files")) as companions:
        tokenizer = build_tokenizer_files(companions, config.family)
        if config.family == "internvl":
            size = {"height": config.tile_size, "width": config.tile_size}
            _write_json(companions / "preprocessor_config.json", {**_INTERNVL_PREPROCESSOR, "size": size})
        elif config.family != "qwen2":
            kind = "Qwen2VLProcessor" if config.family == "qwen2_vl" else "Qwen2_5_VLProcessor"
            _write_json(companions / "preprocessor_config.json", {**_PREPROCESSOR, "processor_class": kind})
        model_config = _model_config(config, tokenizer)
        write_checkpoint(
            _random_tensors(model_config, config.seed),
            model_config,
            Path(path),
            source=companions,
            dtype=np.float32,
            files={RANDOM_MODEL_FILE: json.dumps(to_dict(config), indent=2).encode()},
        )


def write_tiny_config(path: Path, config: RandomModelConfig) -> Path:
    """Writes only the configs of the checkpoint that `write_tiny_checkpoint` writes, which say its shapes.

    Returns:
        The folder.

    Raises:
        UserError: sizes that do not fit together.
    """
    model_config = _model_config(config, build_tokenizer_files(path, config.family))
    _write_json(path / "config.json", model_config.to_hf("float32"))
    _write_json(path / "generation_config.json", model_config.to_hf_generation())
    return path


def _model_config(config: RandomModelConfig, tokenizer: Tokenizer) -> PolicyConfig:
    """The sizes of a policy, in the configuration of its family.

    Raises:
        UserError: they do not fit together.
    """
    if min(config.num_heads, config.num_kv_heads, config.vision_num_heads) < 1:
        raise UserError("model.random: every number of heads must be at least 1")
    if config.hidden_size % config.num_heads:
        raise UserError(
            f"model.random.hidden_size {config.hidden_size} is not a multiple of num_heads {config.num_heads}"
        )
    if config.family == "internvl":
        return _internvl_config(config, tokenizer.get_vocab())
    if config.family == "qwen2":
        text = {"architectures": ["Qwen2ForCausalLM"], **_qwen2_text(config, tokenizer.get_vocab())}
        return TextOnlyConfig.from_hf(text, None, "model.random")
    head_dim = config.hidden_size // config.num_heads
    time = head_dim // 8  # a quarter of the frequencies, as in the released models; the rest for row and column
    row = (head_dim // 2 - time) // 2
    ids = tokenizer.get_vocab()
    plain = config.family == "qwen2_vl"
    full = range(config.vision_depth) if plain else config.vision_full_attention_blocks
    model_config = Qwen2_5VLConfig(
        text=TextConfig(
            vocab_size=_table_size(ids),
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=head_dim,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            mrope_section=(time, row, head_dim // 2 - time - row),
            tie_word_embeddings=config.tie_word_embeddings,
            max_position_embeddings=32768,
        ),
        vision=VisionConfig(
            hidden_size=config.vision_hidden_size,
            intermediate_size=config.vision_intermediate_size,
            depth=config.vision_depth,
            num_heads=config.vision_num_heads,
            patch_size=14,
            temporal_patch_size=2,
            spatial_merge_size=2,
            window_size=28 if plain else 112,
            full_attention_blocks=tuple(full),
            in_channels=3,
            out_hidden_size=config.hidden_size,
            plain_blocks=plain,
        ),
        **special_token_ids(ids),
    )
    model_config.check_sizes("model.random")
    return model_config


def _table_size(vocab: Mapping[str, int]) -> int:
    """The rows of the embedding for a vocabulary."""
    return -(-len(vocab) // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE


def _qwen2_text(config: RandomModelConfig, vocab: Mapping[str, int]) -> dict[str, Any]:
    """The section of a Qwen2 decoder."""
    ids = special_token_ids(vocab)
    return {
        "model_type": "qwen2",
        "vocab_size": _table_size(vocab),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": config.tie_word_embeddings,
        "max_position_embeddings": 32768,
        "bos_token_id": ids["bos_token_id"],
        "eos_token_id": ids["eos_token_ids"][0],
        "pad_token_id": ids["pad_token_id"],
    }


def _internvl_config(config: RandomModelConfig, vocab: Mapping[str, int]) -> InternVLConfig:
    """InternVL in transformers' own layout, with a Qwen2 decoder and the settings of InternVL2.5-8B's vision tower."""
    vision = {
        "model_type": "internvl_vision",
        "hidden_size": config.vision_hidden_size,
        "intermediate_size": config.vision_intermediate_size,
        "num_hidden_layers": config.vision_depth,
        "num_attention_heads": config.vision_num_heads,
        "attention_bias": True,
        "use_qk_norm": False,
        "hidden_act": "gelu",
        "norm_type": "layer_norm",
        "layer_norm_eps": 1e-6,
        "image_size": [config.tile_size] * 2,
        "patch_size": [14, 14],
        "num_channels": 3,
        "layer_scale_init_value": 1.0,
        "use_mean_pooling": True,
        "use_absolute_position_embeddings": True,
    }
    config_json = {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "text_config": _qwen2_text(config, vocab),
        "vision_config": vision,
        "image_token_id": vocab[CONTEXT_TOKEN],
        "image_seq_length": (config.tile_size // 28) ** 2,
        "downsample_ratio": 0.5,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": config.tie_word_embeddings,
    }
    return InternVLConfig.from_hf(config_json, None, "model.random", OtherFiles(lambda: vocab))


def special_token_ids(vocab: Mapping[str, int]) -> dict[str, Any]:
    """The fields of a model's config that name tokens, for a vocabulary that has `SPECIAL_TOKENS`."""
    return {
        "image_token_id": vocab["<|image_pad|>"],
        "video_token_id": vocab["<|video_pad|>"],
        "vision_start_token_id": vocab["<|vision_start|>"],
        "vision_end_token_id": vocab["<|vision_end|>"],
        "eos_token_ids": (vocab["<|im_end|>"],),
        "pad_token_id": vocab["<|endoftext|>"],
        "bos_token_id": vocab["<|endoftext|>"],
    }


def _random_tensors(config: PolicyConfig, seed: int) -> Iterator[np.ndarray]:
    """The stored tensors, in the order of `stored_shapes`."""
    for mapping in weight_mappings(config):
        for name, _ in mapping.tensors():
            if mapping.leaf.endswith(("/scale", "/ls1", "/ls2")):
                yield np.ones(mapping.shape, np.float32)
            elif mapping.leaf.endswith("/bias"):
                yield np.zeros(mapping.shape, np.float32)
            else:
                generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
                # InternVL's own first position embeddings: smaller ones are lost next to what patches look like.
                spread = 1.0 if mapping.leaf.endswith(("/positions", "/cls_token")) else 0.02
                yield generator.standard_normal(mapping.shape, np.float32) * np.float32(spread)


def _corpus() -> list[str]:
    """What the built-in problems and the prompt styles say, cut at the tags, and each of their words after a space."""
    from mmeureka_jax.data.prompts import apply_prompt_style
    from mmeureka_jax.data.shapes.problems import vocabulary_corpus

    texts = vocabulary_corpus()
    for style in _CORPUS_STYLES:
        messages = apply_prompt_style([{"role": "user", "content": [{"type": "text", "text": ""}]}], style)
        texts += [part["text"] for message in messages for part in message["content"]]
    texts += ["system\n", "user\n", "assistant\n"]
    pieces = [piece for text in texts for piece in re.split("|".join(TAG_TOKENS), text)]
    words = sorted({word for text in texts for word in re.findall("[a-z]+", text)})
    return pieces + [f" {word}" for word in words]


def _train_tokenizer(corpus: list[str]) -> Tokenizer:
    """A byte-level BPE tokenizer of the pieces of text, with `SPECIAL_TOKENS` and `TAG_TOKENS`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_MAX_BPE_TOKENS,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in TAG_TOKENS])
    return tokenizer


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
