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
    return tuple(text for text, _ in placed_steps(response))


def placed_steps(response: str) -> list[tuple[str, int]]:
    """The steps as `steps_of` has them, each with the place in the response where its closing tag ends."""
    found: list[tuple[str, int]] = []
    for block in blocks(response):
        if block.end is not None and block.text.strip():
            found.append((block.text.strip(), block.end))
        if block.kind == "answer":
            break
    return found


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
