"""The format rule: is the response a thought in `<think>` tags and then an answer in `<answer>` tags?

instruct: exactly one of each of the four tags, both blocks non-empty, only white space between them; text before and
  after is allowed (MM-EUREKA's instruct models).
zero: the same, with only white space outside the blocks, and a thought of at least 300 characters (MM-EUREKA's
  training from a pretrained model, where shorter thoughts only please the rule).
"""

from __future__ import annotations

import re
from typing import Literal

from mmeureka_jax.rewards.base import register

FormatStyle = Literal["instruct", "zero"]

MIN_ZERO_THOUGHT = 300  # characters
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_BLOCKS = re.compile(r"<think>(?P<thought>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>", re.DOTALL)


@register("format", "the share of responses in the form asked for")
def follows_format(response: str, *, style: FormatStyle = "instruct") -> float:
    """1.0 if `response` has the form of `style`, else 0.0."""
    if any(response.count(tag) != 1 for tag in _TAGS):
        return 0.0
    blocks = _BLOCKS.search(response)
    if blocks is None or not blocks["thought"].strip() or not blocks["answer"].strip():
        return 0.0
    if style == "instruct":
        return 1.0
    outside = response[: blocks.start()] + response[blocks.end() :]
    return float(not outside.strip() and len(blocks["thought"].strip()) >= MIN_ZERO_THOUGHT)
