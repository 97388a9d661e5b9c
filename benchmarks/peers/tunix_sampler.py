"""Tokens sampled per second by tunix's Sampler from the text backbone of a Qwen2.5-VL checkpoint.

The work of `benchmarks.generate --side 0`. Prompts are not padded, and the cache has `--cache` times the places that
prompt and response take.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2.model import ModelConfig, Qwen2
from tunix.models.qwen2.params import create_model_from_safe_tensors

from benchmarks.peers.measuring import print_result, time_calls


class TokenIds:
    """The tokenizer that Sampler asks for: a text is token ids with spaces between them."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> None:
        """No token is put before a prompt."""

    def eos_id(self) -> int:
        return self.config["eos_token_id"]

    def pad_id(self) -> int:
        return self.config["pad_token_id"]


def load_model(folder: Path, config: dict[str, Any]) -> tuple[Qwen2, ModelConfig]:
    sizes = ModelConfig(
        num_layers=config["num_hidden_layers"],
        vocab_size=config["vocab_size"],
        embed_dim=config["hidden_size"],
        hidden_dim=config["intermediate_size"],
        num_heads=config["num_attention_heads"],
        head_dim=config["hidden_size"] // config["num_attention_heads"],
        num_kv_heads=config["num_key_value_heads"],
        rope_theta=int(config["rope_theta"]),
        norm_eps=config["rms_norm_eps"],
        use_tied_embedding=config["tie_word_embeddings"],
    )
    return create_model_from_safe_tensors(str(folder), sizes), sizes


def main() -> None:
    args = parse_arguments()
    config = json.loads((args.model / "config.json").read_text())
    model, sizes = load_model(args.model, config)
    cache = CacheConfig(args.cache * (args.prompt + args.new), sizes.num_layers, sizes.num_kv_heads, sizes.head_dim)
    tokenizer = TokenIds(config)
    sampler = Sampler(model, tokenizer, cache)
    special = [tokenizer.eos_id(), tokenizer.pad_id()]
    text_tokens = np.setdiff1d(np.arange(sizes.vocab_size), special)
    rows = np.random.default_rng(0).choice(text_tokens, (args.batch // args.group, args.prompt))
    prompts = [tokenizer.decode(row.tolist()) for row in rows.repeat(args.group, 0)]
    seeds = itertools.count()

    def generate() -> None:
        output = sampler(
            prompts,
            max_generation_steps=args.new,
            max_prompt_length=args.prompt,
            temperature=1.0,
            top_p=1.0,
            seed=next(seeds),
            return_logprobs=True,
            forbidden_tokens=special,
        )
        assert [len(tokens) for tokens in output.tokens] == [args.new] * args.batch

    seconds = time_calls(generate, args.steps)
    figures = {"tok_per_s": round(args.batch * args.new / statistics.median(seconds), 1)}
    print_result(figures, seconds, ("google-tunix", "jax"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokens sampled per second by tunix.", allow_abbrev=False)
    parser.add_argument("--model", type=Path, required=True, metavar="DIR")
    for name in ("batch", "group", "prompt", "new", "cache", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
