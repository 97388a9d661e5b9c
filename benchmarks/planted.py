"""Random checkpoints whose answers follow a table of tokens: what comes after a token, and how often."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

_LOGIT = 16.0  # of a token that always follows; those of all other tokens are near 0
_SIZE = 8.0  # of what is planted in an embedding, next to random numbers of deviation 0.02


def plant_table(checkpoint: Path, table: Mapping[str, Mapping[str, float]]) -> None:
    """Changes the weights of a checkpoint of `write_tiny_checkpoint`, whose head must not be tied to its embeddings.

    The embedding of a token and the output rows of those that follow it share a dimension. All other weights stay
    random, and cost what they cost in any model of the size.

    Args:
        table: for each token, as text, the probabilities of the tokens after it.
    """
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    (embeddings,) = (tensors[name] for name in tensors if name.endswith("embed_tokens.weight"))
    (head,) = (tensors[name] for name in tensors if name.endswith("lm_head.weight"))
    scale = math.sqrt(embeddings.shape[1])  # of a planted dimension, after the last norm
    for dimension, (token, following) in enumerate(table.items()):
        embeddings[_token_id(tokenizer, token), dimension] = _SIZE
        for text, probability in following.items():
            head[_token_id(tokenizer, text), dimension] = (_LOGIT + math.log(probability)) / scale
    save_file({name: np.ascontiguousarray(x) for name, x in tensors.items()}, file, {"format": "pt"})


def steps_table(steps: str, answers: str, length: float, count: float) -> dict[str, dict[str, float]]:
    """A policy that writes steps of random digits and then one digit as its answer.

    Args:
        steps, answers: the digits, which differ.
        length, count: the mean digits of a step and steps of a solution, both drawn from geometric distributions.
    """
    more = 1 - 1 / length
    any_step = dict.fromkeys(steps, 1 / len(steps))
    after_digit = {digit: more / len(steps) for digit in steps if more} | {"</step>": 1 / length}
    return {
        "\n": {"<step>": 1 - 1 / (count + 1), "<answer>": 1 / (count + 1)},
        "<step>": any_step,
        **dict.fromkeys(steps, after_digit),
        "</step>": {"\n": 1.0},
        "<answer>": dict.fromkeys(answers, 1 / len(answers)),
        **dict.fromkeys(answers, {"</answer>": 1.0}),
        "</answer>": {"<|im_end|>": 1.0},
    }


def _token_id(tokenizer: Tokenizer, text: str) -> int:
    (token_id,) = tokenizer.encode(text).ids
    return token_id
