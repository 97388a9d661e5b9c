"""Models without a vision tower, Qwen2, Qwen2.5 and Qwen3: a decoder, and the names of its stored tensors.

Mirrors transformers' `Qwen2ForCausalLM` and `Qwen3ForCausalLM`. The decoder itself is in decoder.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flax import nnx

from mmeureka_jax.errors import UserError
from mmeureka_jax.models.checkpoint_config import KeptConfig, OtherFiles, read_end_tokens
from mmeureka_jax.models.config_keys import Keys
from mmeureka_jax.models.decoder import Decoder
from mmeureka_jax.models.decoder_config import TextConfig, read_decoder
from mmeureka_jax.models.weight_mapping import WeightMapping, WeightMappings, add_decoder


@dataclass(frozen=True)
class TextOnlyConfig(KeptConfig):
    """A policy that reads no pictures: its decoder, and the `config.json` that it came with."""

    text: TextConfig
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    bos_token_id: int | None
    stored: str  # config.json as it was read; it travels unchanged

    image_token_id: ClassVar[None] = None  # no token is a picture's, ...
    placeholders: ClassVar[dict[str, int]] = {}  # ... none marks one, so none is kept out of texts
    forbidden_tokens: ClassVar[tuple[int, ...]] = ()  # or never sampled
    head_name: ClassVar[str] = "lm_head.weight"

    @classmethod
    def from_hf(
        cls,
        config_json: Mapping[str, Any],
        generation_config_json: Mapping[str, Any] | None,
        source: str,
        other_files: OtherFiles | None = None,
    ) -> TextOnlyConfig:
        """Reads the dictionaries of `config.json` and (where there is one) `generation_config.json`.

        Args:
            source: the file, for messages.
            other_files: the tokenizer, which knows whether turns have an end.

        Raises:
            UserError: a missing or malformed key, sizes that do not fit together, or a feature that this policy does
                not have.
        """
        keys = Keys(config_json, source, "")
        eos, pad, bos = read_end_tokens(keys, generation_config_json, other_files or OtherFiles())
        config = cls(
            text=read_decoder(keys, tied=bool(keys.get("tie_word_embeddings", False))),
            eos_token_ids=eos,
            pad_token_id=pad,
            bos_token_id=bos,
            stored=json.dumps(config_json),
        )
        config.check_sizes(source)
        return config

    def check_sizes(self, source: str) -> None:
        """Raises a `UserError` about `source` if sizes do not fit together."""
        text = self.text
        sizes = (text.vocab_size, text.hidden_size, text.intermediate_size, text.num_layers, text.num_kv_heads)
        if min(*sizes, text.head_dim) <= 0:
            raise UserError(f"{source}: a size is not positive: {text}")
        if text.num_heads % text.num_kv_heads or text.head_dim % 2:
            raise UserError(
                f"{source}: sizes do not fit together: {text.num_heads} heads over {text.num_kv_heads} key/value "
                f"heads, head_dim {text.head_dim} (the heads must divide evenly, and head_dim be even)"
            )


class TextOnly(nnx.Module):
    def __init__(self, config: TextOnlyConfig):
        self.language = Decoder(config.text)


def weight_mappings(config: TextOnlyConfig) -> tuple[WeightMapping, ...]:
    """Every parameter of the policy, with its stored name and shape, in the order of the forward pass."""
    weights = WeightMappings()
    add_decoder(weights, config.text)
    return tuple(weights.mappings)
