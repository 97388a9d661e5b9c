"""A tiny policy in the real file format that answers `<answer>d</answer>` with a random digit d.

Of a random policy no answer is ever right, so the online filter keeps no group. Of this one some are.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from benchmarks.planted import plant_table, steps_table
from mmeureka_jax.config.schema import RandomModelConfig
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

MODEL = RandomModelConfig(
    hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4, num_kv_heads=2, tie_word_embeddings=False,
    vision_hidden_size=32, vision_intermediate_size=64, vision_depth=2, vision_num_heads=2,
    vision_full_attention_blocks=(1,),
)  # fmt: skip


def write_guessing_checkpoint(path: Path, digits: str = "1348", family: str = "qwen2_5_vl", layers: int = 2) -> None:
    """Each token of the chain below points to the next: its embedding and the next one's output row share a
    dimension."""
    write_tiny_checkpoint(path, replace(MODEL, family=family, **_sizes(layers)))
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    before = tokenizer.encode("<|im_start|>assistant\n").ids[-1]
    chain = [[before], *[[tokenizer.token_to_id(token) for token in link] for link in (
        ["<answer>"], list(digits), ["</answer>"], ["<|im_end|>"],
    )]]  # fmt: skip
    tensors = load_file(path / "model.safetensors")
    for dimension, (here, following) in enumerate(zip(chain, chain[1:], strict=False)):
        prefix = "language_model." if family == "internvl" else ""
        tensors[f"{prefix}model.embed_tokens.weight"][here, dimension] = 8.0
        tensors[f"{prefix}lm_head.weight"][following, dimension] = 2.0
    save_file(
        {name: np.ascontiguousarray(x) for name, x in tensors.items()}, path / "model.safetensors", {"format": "pt"}
    )


def write_stepping_checkpoint(
    path: Path, steps: str = "13", answers: str = "48", family: str = "qwen2", layers: int = 2
) -> None:
    """A policy that writes any number of steps, each a random digit of `steps`, and then a random one of `answers`."""
    write_tiny_checkpoint(path, replace(MODEL, family=family, **_sizes(layers)))
    plant_table(path, steps_table(steps, answers, length=1, count=1))


def _sizes(layers: int) -> dict[str, Any]:
    full = tuple(range(1, layers, 2)) or (0,)
    return {"num_layers": layers, "vision_depth": layers, "vision_full_attention_blocks": full}
