"""The format rule: is the response a thought in `<think>` tags, or steps in `<step>` tags, and then an answer in
`<answer>` tags?

instruct: exactly one of each of the four tags, both blocks non-empty, only white space between them; text before and
  after is allowed (MM-EUREKA's instruct models).
zero: the same, with only white space outside the blocks, and a thought of at least 300 characters (MM-EUREKA's
  training from a pretrained model, where shorter thoughts only please the rule).
steps: one step or more, then one answer, all non-empty, with only white space between and around them and no tags
  within them (MM-PRM's policies).
"""

from __future__ import annotations

import re
from typing import Literal

from mmeureka_jax.rewards.base import register

FormatStyle = Literal["instruct", "zero", "steps"]

MIN_ZERO_THOUGHT = 300  # characters
_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_ANY_TAG = re.compile("(</?(?:step|think|answer)>)")
_BLOCKS = re.compile(r"<think>(?P<thought>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>", re.DOTALL)


@register("format", "the share of responses in the form asked for")
def follows_format(response: str, *, style: FormatStyle = "instruct") -> float:
    """1.0 if `response` has the form of `style`, else 0.0."""
    if style == "steps":
        return float(_is_in_steps(response))
    if any(response.count(tag) != 1 for tag in _TAGS):
        return 0.0
    blocks = _BLOCKS.search(response)
    if blocks is None or not blocks["thought"].strip() or not blocks["answer"].strip():
        return 0.0
    if style == "instruct":
        return 1.0
    outside = response[: blocks.start()] + response[blocks.end() :]
    return float(not outside.strip() and len(blocks["thought"].strip()) >= MIN_ZERO_THOUGHT)


def _is_in_steps(response: str) -> bool:
    pieces = _ANY_TAG.split(response)
    outside = pieces[::4]
    tags = pieces[1::2]
    inside = pieces[2::4]
    wanted = ["<step>", "</step>"] * (len(tags) // 2 - 1) + ["<answer>", "</answer>"]
    return len(tags) >= 4 and tags == wanted and all(map(str.strip, inside)) and not any(map(str.strip, outside))
