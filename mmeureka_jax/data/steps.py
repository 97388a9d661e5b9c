"""Solutions in steps, as MM-PRM's policies write them (arXiv 2505.13427):

<step>The board has 4 rows of 3 cells, so 12 cells.</step>
<step>Of these, 5 are shaded.</step>
<answer>5/12</answer>
"""

from __future__ import annotations

from collections.abc import Sequence

from mmeureka_jax.rewards.answers.step_blocks import blocks


def steps_of(response: str) -> tuple[str, ...]:
    """The texts within the step tags of a response, and the final answer last.

    What is outside of the tags is left out, and so is all that follows the first answer, a block that does not end, and
    an empty one. A response that was cut before its answer has its whole steps only.
    """
    found: list[str] = []
    for block in blocks(response):
        if block.ends and block.text.strip():
            found.append(block.text.strip())
        if block.kind == "answer":
            break
    return tuple(found)


def has_answer(response: str) -> bool:
    """Whether a response has an answer block with a text."""
    return any(block.kind == "answer" and block.ends and block.text.strip() for block in blocks(response))


def has_step(response: str) -> bool:
    """Whether a response has a step block with a text."""
    return any(block.kind == "step" and block.ends and block.text.strip() for block in blocks(response))


def begun_solution(steps: Sequence[str]) -> str:
    """The beginning of a response that has these steps already, none of which is the final answer."""
    return "".join(f"<step>{step}</step>\n" for step in steps)


def solution(steps: Sequence[str], answer: str) -> str:
    """A whole response of these steps."""
    return f"{begun_solution(steps)}<answer>{answer}</answer>"
