"""How the tokens of a batch are averaged: a weight for each of them, computed on the whole batch first, on the host.

    loss of a batch = sum over tokens of token_weights(...) * token loss

The weights hold every denominator, so that micro-batches and devices only add up.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float


def token_weights(
    response_mask: Bool[np.ndarray, "P n T"],
    averaging: Literal["sequence_mean", "token_mean", "prompt_token_mean", "constant"],
    *,
    max_length: int | None = None,
) -> Float[np.ndarray, "P n T"]:
    """The weight of every token in the loss, so that loss = sum(weights * token_loss). 0 for masked tokens.

    `sequence_mean`: the mean over a response's tokens, then over the responses (GRPO, arXiv 2402.03300, equation 3).
    `token_mean`: the mean over all tokens (DAPO, arXiv 2503.14476, section 3.3).
    `prompt_token_mean`: the mean over the tokens of a prompt's group, then over the prompts (CPGD, arXiv 2505.12504).
    `constant`: the sum over tokens / (P * n * max_length) (Dr. GRPO, arXiv 2503.20783), with no bias by length.

    Responses and groups without a token count neither above nor below the line, except for `constant`, whose
    denominator is fixed. Computed on the whole batch of an optimiser step, the weights make micro-batches and devices
    add up to the full batch's loss by plain sums.

    Args:
        max_length: for `constant` (and needed by it): the longest response that the sampler may draw. Not the padded
            length T, which differs from batch to batch.
    """
    weights = np.asarray(response_mask, np.float32)
    lengths = np.asarray(response_mask).sum(-1, dtype=np.int64)  # in integers: float32 is exact up to 2**24 only

    def mean_over(counts: np.ndarray) -> np.ndarray:
        """1 / (tokens of this unit) / (units that have any)."""
        units = np.float32(max(int((counts > 0).sum()), 1))
        return np.float32(1) / (np.maximum(counts, 1).astype(np.float32) * units)

    if averaging == "sequence_mean":
        return weights * mean_over(lengths)[:, :, None]
    if averaging == "token_mean":
        return weights / np.float32(max(int(lengths.sum()), 1))
    if averaging == "prompt_token_mean":
        return weights * mean_over(lengths.sum(1))[:, None, None]
    if averaging == "constant":
        if max_length is None:
            raise ValueError("token averaging `constant` divides by max_length, which was not given")
        return weights / np.float32(lengths.size * max_length)
    raise ValueError(
        f"token averagings are sequence_mean, token_mean, prompt_token_mean and constant; got {averaging!r}"
    )
