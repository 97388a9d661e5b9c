"""Tiny lively checkpoints that have the tokens of a process reward model, in torch and in JAX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from helpers.support import PIXELS, TORCH_MODELS, Lively

from mmeureka_jax.data.processor import Processor
from mmeureka_jax.formats.hugging_face import load_params, read_config
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.prm.form import MarkerTokens
from mmeureka_jax.prm.growth import write_grown


class Marked(Lively):
    """A lively checkpoint after it has grown: `torch` is transformers' model of the grown folder."""

    def __init__(self, folder: Path, *, tied: bool, family: str = "qwen2_5_vl", **settings: int):
        super().__init__(folder, tied=tied, family=family, **settings)
        self.folder = folder.with_name(f"{folder.name}_marked")
        write_grown(folder, self.folder)
        self.torch = (
            TORCH_MODELS[family].from_pretrained(self.folder, dtype=torch.float32, attn_implementation="eager").eval()
        )
        self.config = read_config(self.folder)
        self.policy = Policy(self.config, compute_dtype="float32", remat=True)
        self.params = load_params(self.folder, self.config)
        self.processor = Processor.from_checkpoint(self.folder, prompt_style="plain", max_prompt_tokens=4096, **PIXELS)
        self.tokens = MarkerTokens.of(self.processor)

    def torch_choices(self, item, process: np.ndarray) -> torch.Tensor:
        """transformers' logits of Yes and No at each marker of a process, [m, 2]."""
        inputs, start = self.torch_inputs(item, process)
        at = start + np.flatnonzero(process == self.tokens.marker)
        return self.torch(**inputs).logits[0, at][:, [self.tokens.yes, self.tokens.no]]
