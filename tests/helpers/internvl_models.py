"""Tiny random InternVL checkpoints in each form that is supported, in torch and in JAX.

The torch model is transformers' own. For the original layout its tensors are renamed and put together as the reverse of
transformers' `convert_internvl_weights_to_hf.py` does, which documents how the two correspond.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from helpers.support import Lively
from safetensors.torch import save_file
from transformers import InternVLConfig, InternVLForConditionalGeneration, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from mmeureka_jax.data.pictures import read_picture
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.formats.hugging_face import added_tokens, load_params, read_config
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.setup.random_models import build_tokenizer_files

TILE = 112
MOST = 4
MEAN = [0.485, 0.456, 0.406]
STD = [0.229, 0.224, 0.225]


@dataclass(frozen=True)
class Form:
    original: bool
    language: str  # qwen2, qwen3, llama or internlm2
    large: bool = False  # InternViT-6B's norms, and no biases
    image_size: int = TILE  # that the position embeddings are for
    tied: bool = False


FORMS = {
    "native qwen2": Form(False, "qwen2", tied=True),
    "native qwen3, 6B tower": Form(False, "qwen3", large=True),
    "native llama": Form(False, "llama"),
    "original qwen2": Form(True, "qwen2", image_size=140),
    "original internlm2, 6B tower": Form(True, "internlm2", large=True),
}


def text_sizes(form: Form, vocab: dict[str, int]) -> dict:
    return {
        "vocab_size": 768, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": form.tied,
        "max_position_embeddings": 4096, "bos_token_id": vocab["<|endoftext|>"], "eos_token_id": vocab["<|im_end|>"],
        "pad_token_id": vocab["<|endoftext|>"],
    } | ({"head_dim": 24} if form.language == "qwen3" else {})  # fmt: skip


def vision_sizes(form: Form) -> dict:
    return {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2,
        "layer_norm_eps": 1e-6, "norm_type": "rms_norm" if form.large else "layer_norm", "hidden_act": "gelu",
    }  # fmt: skip


def torch_model(form: Form, vocab: dict[str, int], seed: int = 0) -> InternVLForConditionalGeneration:
    kind = {"qwen2": Qwen2Config, "qwen3": Qwen3Config, "llama": LlamaConfig, "internlm2": LlamaConfig}[form.language]
    config = InternVLConfig(
        text_config=kind(**text_sizes(form, vocab), rope_parameters={"rope_type": "default", "rope_theta": 1e5}),
        vision_config=vision_sizes(form) | {
            "attention_bias": not form.large, "use_qk_norm": form.large, "image_size": form.image_size,
            "patch_size": 14,
        },
        image_token_id=vocab["<IMG_CONTEXT>"], image_seq_length=16, tie_word_embeddings=form.tied,
    )  # fmt: skip
    config._attn_implementation = "eager"
    model = InternVLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "embeddings.cls" not in name and "position" not in name:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * (1.0 if "embed_tokens" in name else 1.5 / fan_in**0.5))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "norm" in name or "lambda" in name:
                parameter.copy_(1 + 0.2 * noise)
            else:
                parameter.copy_(0.5 * noise)
    return model.eval()


# (pattern, replacement): transformers' names in the original's. The order matters.
_VISION = (
    (r"^model\.vision_tower\.", "vision_model."), (r"\.layer\.", ".layers."), (r"cls_token", "class_embedding"),
    (r"position_embeddings", "position_embedding"), (r"patch_embeddings\.projection", "patch_embedding"),
    (r"lambda_(\d)", r"ls\1"), (r"attention\.projection_layer", "attn.proj"), (r"attention\.", "attn."),
    (r"layernorm_before", "norm1"), (r"layernorm_after", "norm2"),
)  # fmt: skip
_PROJECTOR = (
    (r"^model\.multi_modal_projector\.layer_norm", "mlp1.0"), (r"^model\.multi_modal_projector\.linear_1", "mlp1.1"),
    (r"^model\.multi_modal_projector\.linear_2", "mlp1.3"),
)  # fmt: skip
_LANGUAGE = ((r"^model\.language_model\.", "language_model.model."), (r"^lm_head", "language_model.lm_head"))
_INTERNLM2 = (
    (r"embed_tokens", "tok_embeddings"), (r"self_attn\.o_proj", "attention.wo"), (r"self_attn\.", "attention."),
    (r"mlp\.gate_proj", "feed_forward.w1"), (r"mlp\.down_proj", "feed_forward.w2"),
    (r"mlp\.up_proj", "feed_forward.w3"), (r"input_layernorm", "attention_norm"),
    (r"post_attention_layernorm", "ffn_norm"), (r"lm_head", "output"),
)  # fmt: skip


def stored(form: Form, named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors by transformers' names in memory -> as the files of `form` have them."""
    native = (
        (r"^model\.language_model\.", "language_model.model."), (r"^lm_head", "language_model.lm_head"),
        (r"^model\.", ""),
    )  # fmt: skip
    out: dict[str, torch.Tensor] = {}
    for name, tensor in named.items():
        new = name
        if not form.original:
            patterns = native
        elif "vision_tower" in name:
            patterns = _VISION
        elif "multi_modal_projector" in name:
            patterns = _PROJECTOR
        else:
            patterns = _LANGUAGE + (_INTERNLM2 if form.language == "internlm2" else ())
        for pattern, replacement in patterns:
            new = re.sub(pattern, replacement, new)
        out[new] = tensor
    if form.original:
        for name in [name for name in out if ".attn.q_proj." in name]:
            out[name.replace("q_proj", "qkv")] = torch.cat(
                [out.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv"]
            )
    if form.language == "internlm2":
        for name in [name for name in out if ".attention.q_proj." in name]:
            query, key, value = (out.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv")
            heads = [part.reshape(2, -1, 16, part.shape[-1]) for part in (query, key, value)]  # 2 key heads of 16
            out[name.replace("q_proj", "wqkv")] = torch.cat(heads, dim=1).reshape(-1, query.shape[-1])
    return {name: tensor.contiguous() for name, tensor in out.items()}


def write_original_config(folder: Path, form: Form, vocab: dict[str, int]) -> None:
    vision = vision_sizes(form) | {
        "model_type": "intern_vit_6b", "image_size": form.image_size, "patch_size": 14, "qkv_bias": not form.large,
        "qk_normalization": form.large, "drop_path_rate": 0.1,
    }  # fmt: skip
    architecture = {"internlm2": "InternLM2ForCausalLM", "qwen2": "Qwen2ForCausalLM"}[form.language]
    language = text_sizes(form, vocab) | {
        "model_type": form.language, "architectures": [architecture], "hidden_act": "silu", "rope_theta": 1e5,
        "bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.0},
    }  # fmt: skip
    config = {
        "model_type": "internvl_chat", "architectures": ["InternVLChatModel"], "vision_config": vision,
        "llm_config": language, "force_image_size": TILE, "downsample_ratio": 0.5, "dynamic_image_size": True,
        "min_dynamic_patch": 1, "max_dynamic_patch": MOST, "use_thumbnail": True, "ps_version": "v2",
        "select_layer": -1, "template": "internvl2_5", "torch_dtype": "float32",
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))


def image_processor() -> GotOcr2ImageProcessorPil:
    return GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE}, crop_to_patches=True, min_patches=1, max_patches=MOST, image_mean=MEAN,
        image_std=STD,
    )  # fmt: skip


def write_checkpoint(folder: Path, form: Form, seed: int = 0) -> InternVLForConditionalGeneration:
    """Writes the checkpoint and returns the torch model that it holds."""
    build_tokenizer_files(folder, "internvl")
    vocab = added_tokens(folder)
    model = torch_model(form, vocab, seed)
    if form.original:
        save_file(stored(form, model.state_dict()), folder / "model.safetensors", {"format": "pt"})
        write_original_config(folder, form, vocab)
        (folder / "modeling_internvl_chat.py").write_text("# the original's code\n")
    else:
        model.save_pretrained(folder)
        image_processor().save_pretrained(folder)
    return model


class LivelyInternVL(Lively):
    """One checkpoint in both frameworks; see `support.Lively`."""

    def __init__(self, folder: Path, form: Form):
        folder.mkdir(parents=True, exist_ok=True)
        self.form = form
        self.folder = folder
        self.torch = write_checkpoint(folder, form)
        self.config = read_config(folder)
        self.policy = Policy(self.config, compute_dtype="float32", remat=True, logits_mb=0.05)
        self.params = load_params(folder, self.config)
        self.processor = Processor.from_checkpoint(folder, prompt_style="plain", max_prompt_tokens=4096)

    def torch_inputs(self, item, response):
        prompt = self.processor(item)
        ids = torch.tensor(np.concatenate([prompt.tokens, response]))[None].long()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if item.images:
            images = [read_picture(image) for image in item.images]
            pixels = image_processor()(images=images, return_tensors="pt")["pixel_values"]
            inputs["pixel_values"] = pixels
        return inputs, len(prompt.tokens)

    def torch_gradients(self):
        gradients = {name: p.grad for name, p in self.torch.named_parameters() if p.grad is not None}
        return self.as_tree({name: x.numpy() for name, x in stored(self.form, gradients).items()})
