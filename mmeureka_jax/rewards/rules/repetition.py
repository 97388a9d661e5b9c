"""The repetition rule: a penalty for saying the same n words again.

MM-EUREKA's code logs a constant 0 under this name; here it is a real penalty (the share of repeated n-grams, usual in
work on long chains of thought), and off by its weight of 0.
"""

from __future__ import annotations

import re

from mmeureka_jax.rewards.base import register

# Words, single signs, and single Chinese characters, which have no spaces between words.
_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+|[^\w\s]")


@register("repetition", "the penalty for repeated words, 0 to -1")
def repetition_penalty(response: str, *, ngram: int = 10) -> float:
    """Minus the share of n-grams of words that occurred before: 0.0 if all are distinct, towards -1.0 for a loop."""
    words = _WORD.findall(response)
    count = len(words) - ngram + 1
    if count <= 1:
        return 0.0
    distinct = len({tuple(words[i : i + ngram]) for i in range(count)})
    return distinct / count - 1.0
