"""A tiny random Qwen2.5-VL in torch and on disk, with weights lively enough that every part of the model matters to its output."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import Qwen2_5_VLForConditionalGeneration

from mmeureka_jax.config import RandomModelConfig
from mmeureka_jax.data.problems import ImageRef, Problem
from mmeureka_jax.models.tiny import write_tiny_checkpoint


def make_checkpoint(folder: Path, *, tied: bool = True, seed: int = 0) -> Qwen2_5_VLForConditionalGeneration:
    """Writes the checkpoint to `folder` and returns the torch model (float32, eager attention) that it holds."""
    start = folder.with_name(folder.name + "_start")
    config = RandomModelConfig(
        hidden_size=64, intermediate_size=128, num_layers=3, num_heads=4, num_kv_heads=2, tie_word_embeddings=tied,
        vision_hidden_size=32, vision_intermediate_size=48, vision_depth=4, vision_num_heads=2,
        vision_full_attention_blocks=(1, 3),
    )  # fmt: skip
    write_tiny_checkpoint(start, config)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(start, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                parameter.copy_(noise * (1.0 if "embed_tokens" in name else 1.5 / fan_in**0.5))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(1 + 0.2 * noise)
    model.save_pretrained(folder)
    for file in start.iterdir():
        if file.suffix != ".safetensors" and not (folder / file.name).exists():
            (folder / file.name).write_bytes(file.read_bytes())
    return model.eval()


def picture(width: int, height: int, seed: int = 0) -> ImageRef:
    import io

    pixels = np.random.default_rng([width, height, seed]).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return ImageRef(data=buffer.getvalue())


def problem(name: str, text: str, *sizes: tuple[int, int]) -> Problem:
    """A problem whose question stands between its pictures."""
    content = [{"type": "image"} for _ in sizes[:1]]
    content += [{"type": "text", "text": text}]
    content += [{"type": "image"} for _ in sizes[1:]]
    images = tuple(picture(*size, seed=i) for i, size in enumerate(sizes))
    return Problem(id=name, messages=({"role": "user", "content": content},), images=images, answer="1", metadata={})
