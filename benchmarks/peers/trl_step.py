"""Seconds of a GRPO step of TRL's GRPOTrainer: rollout by transformers' generate, reward, one update of all parameters.

The work of `benchmarks.step --train all`: noise pictures with one question, `--new` tokens in every response, no
checkpointing of activations, no KL term, AdamW. What is timed is the trainer's loop from the end of one step to the end
of the next.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import benchmarks.peers.torchvision_operators  # noqa: F401

# isort: split
import numpy as np
import torch
import torchvision  # noqa: F401  the processor's
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.peers.measuring import WARM_UP, cores, print_result

QUESTION = "How many dots are there in the picture?"
PROBLEMS = 64


class Clock(TrainerCallback):
    """Notes when each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


class ContainsAnswer:
    """The reward: whether the answer's text is in the response. Notes how long responses were."""

    __name__ = "contains_answer"

    def __init__(self) -> None:
        self.lengths: set[int] = set()

    def __call__(self, completions: list, completion_ids: list, answer: list[str], **_: Any) -> list[float]:
        self.lengths.update(map(len, completion_ids))
        texts = [messages[0]["content"] for messages in completions]
        return [float(right in text) for text, right in zip(texts, answer, strict=True)]


def random_pictures(side: int) -> Dataset:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 255, (side, side, 3), dtype=np.uint8) for _ in range(PROBLEMS)]
    return Dataset.from_dict(
        {
            "prompt": [[{"role": "user", "content": QUESTION}]] * PROBLEMS,
            "image": [Image.fromarray(picture) for picture in pictures],
            "answer": [str(row % 9) for row in range(PROBLEMS)],
        }
    )


def prompt_tokens(processor: Any, picture: Image.Image) -> int:
    content = [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]
    tokens = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
    )
    return len(tokens["input_ids"][0])


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(cores())
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(args.model, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(args.model)
    problems = random_pictures(args.side)
    clock = Clock()
    reward = ContainsAnswer()
    with tempfile.TemporaryDirectory() as folder:
        config = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=args.prompts * args.group,
            num_generations=args.group,
            max_completion_length=args.new,
            generation_kwargs={"min_new_tokens": args.new},
            max_steps=WARM_UP + args.steps,
            learning_rate=1e-5,
            beta=0.0,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            dataloader_pin_memory=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=reward,
            args=config,
            train_dataset=problems,
            processing_class=processor,
            callbacks=[clock],
        )
        trainer.train()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert reward.lengths == {args.new}, reward.lengths
    seconds = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)][WARM_UP - 1 :]
    figures = {
        "s_per_step": round(statistics.median(seconds), 4),
        "prompt_tokens": prompt_tokens(processor, problems[0]["image"]),
    }
    print_result(figures, seconds, ("trl", "transformers", "torch"))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Seconds of a GRPO step of TRL.", allow_abbrev=False)
    parser.add_argument("--model", required=True, metavar="DIR")
    for name in ("prompts", "group", "new", "side", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
