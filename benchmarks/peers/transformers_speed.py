"""Tokens per second of transformers with torch on Qwen2.5-VL: generate, or one update of all parameters.

The work of `benchmarks.generate` and `benchmarks.update --train all`, with a prompt and its picture computed for every
response. The update is forward, backward and AdamW (the fused one) of the plain policy gradient: without clipping of
ratios and gradients, which the project's has, and with logits only for the responses.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import benchmarks.peers.torchvision_operators  # noqa: F401

# isort: split
import numpy as np
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from benchmarks.peers.measuring import cores, print_result, time_calls


def random_prompts(args: argparse.Namespace, config: Any, text_tokens: np.ndarray) -> dict[str, torch.Tensor]:
    """Prompts of random tokens, each with a picture of noise (`--side 0`: without), `--group` times each."""
    rng = np.random.default_rng(0)
    count = args.batch // args.group
    vision = config.vision_config
    tokens = rng.choice(text_tokens, (count, args.prompt))
    inputs = {}
    if args.side:
        patches = args.side // vision.patch_size  # a side
        image_tokens = (patches // vision.spatial_merge_size) ** 2
        tokens[:, 1] = config.vision_start_token_id
        tokens[:, 2 : 2 + image_tokens] = config.image_token_id
        tokens[:, 2 + image_tokens] = config.vision_end_token_id
        values = 3 * vision.temporal_patch_size * vision.patch_size**2
        pixels = rng.standard_normal((count, patches**2, values), np.float32).repeat(args.group, 0)
        inputs["pixel_values"] = torch.tensor(pixels.reshape(-1, values))
        inputs["image_grid_thw"] = torch.tensor([[1, patches, patches]] * args.batch)
    return {"input_ids": torch.tensor(tokens.repeat(args.group, 0)), **inputs}


def complete(inputs: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """The prompts with the inputs that follow from their tokens."""
    tokens = inputs["input_ids"]
    kinds = (tokens == config.image_token_id).int()
    return {**inputs, "attention_mask": torch.ones_like(tokens), "mm_token_type_ids": kinds}


def generation(args: argparse.Namespace, model: Any, prompts: dict[str, torch.Tensor]) -> Callable[[], None]:
    inputs = complete(prompts, model.config)
    forbidden = [model.config.image_token_id, model.config.video_token_id]

    def generate() -> None:
        with torch.no_grad():
            tokens = model.generate(
                **inputs,
                do_sample=True,
                top_k=0,
                min_new_tokens=args.new,
                max_new_tokens=args.new,
                suppress_tokens=forbidden,
            )
        assert tokens.shape == (args.batch, args.prompt + args.new)

    return generate


def training(
    args: argparse.Namespace, model: Any, prompts: dict[str, torch.Tensor], text_tokens: np.ndarray
) -> Callable[[], None]:
    rng = np.random.default_rng(1)
    responses = torch.tensor(rng.choice(text_tokens, (args.batch, args.new)))
    advantages = torch.tensor(rng.standard_normal((args.batch, 1), np.float32))
    tokens = torch.cat([prompts["input_ids"], responses], 1)
    inputs = complete({**prompts, "input_ids": tokens}, model.config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    model.train()

    def update() -> None:
        logits = model(**inputs, use_cache=False, logits_to_keep=args.new + 1).logits[:, :-1]
        log_probs = torch.log_softmax(logits, -1).gather(-1, responses[..., None])[..., 0]
        (-(advantages * log_probs).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return update


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32).eval()
    config = model.config
    special = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
    special += [model.generation_config.eos_token_id, model.generation_config.pad_token_id]
    text_tokens = np.setdiff1d(np.arange(config.text_config.vocab_size), special)
    prompts = random_prompts(args, config, text_tokens)
    if args.what == "generate":
        seconds = time_calls(generation(args, model, prompts), args.steps)
        figures = {"tok_per_s": round(args.batch * args.new / statistics.median(seconds), 1)}
    else:
        seconds = time_calls(training(args, model, prompts, text_tokens), args.steps)
        logical = args.batch * (args.prompt + args.new)
        figures = {"logical_tok_per_s": round(logical / statistics.median(seconds), 1), "logical_tokens": logical}
    print_result(figures, seconds, ("transformers", "torch"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Tokens per second of transformers with torch.", allow_abbrev=False)
    parser.add_argument("--what", choices=("generate", "update"), required=True)
    parser.add_argument("--model", required=True, metavar="DIR")
    for name in ("batch", "group", "prompt", "new", "side", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
