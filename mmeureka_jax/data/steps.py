"""Solutions in steps, as MM-PRM's policies write them (arXiv 2505.13427):

<step>The board has 4 rows of 3 cells, so 12 cells.</step>
<step>Of these, 5 are shaded.</step>
<answer>5/12</answer>
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_BLOCK = re.compile(r"<step>(?P<step>.*?)</step>|<answer>(?P<answer>.*?)</answer>", re.DOTALL)


def steps_of(response: str) -> tuple[str, ...]:
    """The texts within the step tags of a response, and the final answer last.

    What is outside of the tags is left out, and so is all that follows the first answer, a step that does not end, and
    an empty step. A response that was cut before its answer has its whole steps only.
    """
    found: list[str] = []
    for block in _BLOCK.finditer(response):
        text = (block["step"] if block["answer"] is None else block["answer"]).strip()
        if text:
            found.append(text)
        if block["answer"] is not None:
            break
    return tuple(found)


def has_answer(response: str) -> bool:
    """Whether a response has an answer block with a text."""
    return any(block["answer"] is not None and block["answer"].strip() for block in _BLOCK.finditer(response))


def begun_solution(steps: Sequence[str]) -> str:
    """The beginning of a response that has these steps already, none of which is the final answer."""
    return "".join(f"<step>{step}</step>\n" for step in steps)


def solution(steps: Sequence[str], answer: str) -> str:
    """A whole response of these steps."""
    return f"{begun_solution(steps)}<answer>{answer}</answer>"
