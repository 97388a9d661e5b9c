"""The prompt styles: which instructions surround a question, as in the papers.

A style is what is put around the last user turn and, for some, a system turn. The wording is our own; what it asks for
is that of MM-EUREKA (arXiv 2503.07365; `instruct` for Qwen2.5-VL instruct, `zero` for pretrained models) and of CPGD
(arXiv 2505.12504; `cpgd`); `steps` asks for solutions in the form of MM-PRM (arXiv 2505.13427). The reward rules of
`rewards/` read the tags and the box that these prompts ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmeureka_jax.config.schema import PROMPT_STYLES, PromptStyle
from mmeureka_jax.data.steps import solution
from mmeureka_jax.errors import UserError

Message = dict[str, Any]

_THINK_FIRST = (
    "Solve the question that the user asks. First think about the reasoning in your mind, then give the user the "
    "answer."
)
_EXAMPLE = "<think> Since $1 + 1 = 2$, the answer is $2$. </think><answer> {answer} </answer>"
_STEPS_EXAMPLE = solution(["The sum asked for is $1 + 1$.", "Adding gives $2$."], "The Final Answer is $2$")


@dataclass(frozen=True)
class _Template:
    system: str = ""
    before: str = ""  # in the last user turn, before its first text
    after: str = ""  # and after its last part


_TEMPLATES = {
    "plain": _Template(),
    "instruct": _Template(
        before=(
            f"{_THINK_FIRST} Write the answer in LaTeX, wrapped in $...$. Put the reasoning between <think> and "
            "</think> tags and the answer between <answer> and </answer> tags, like this: "
            f"{_EXAMPLE.format(answer='$2$')} Your reply starts with <think> and ends with </answer>.\nQuestion: "
        )
    ),
    "zero": _Template(
        system=(
            "A conversation between User and Assistant. The User asks a question and the Assistant solves it. The "
            "Assistant first thinks about the reasoning in its mind and then gives the User the answer. The reasoning "
            "is between <think> and </think> tags and the answer is between <answer> and </answer> tags: <think> "
            "reasoning here </think><answer> answer here </answer>"
        ),
        before="Answer the following question: ",
        after="\nPlease reason step by step, and put your final answer within \\boxed{}.",
    ),
    "cpgd": _Template(
        system=(
            f"{_THINK_FIRST} Wrap the final answer in \\boxed{{}}. Put the reasoning between <think> and </think> tags "
            "and the answer between <answer> and </answer> tags, like this: "
            f"{_EXAMPLE.format(answer=chr(92) + 'boxed{2}')} Your reply starts with <think> and ends with </answer>."
        )
    ),
    "steps": _Template(
        before=(
            "Solve the question that the user asks in several steps. Put each step, which has one thought, between "
            "<step> and </step> tags on a line of its own, without a number. Then put the final answer between "
            "<answer> and </answer> tags. Write nothing outside the tags. For example, a solution of 1 + 1 is:\n"
            f"{_STEPS_EXAMPLE}\nQuestion: "
        )
    ),
}


def apply_prompt_style(messages: Sequence[Message], style: PromptStyle) -> list[Message]:
    """Puts the instructions of `style` around the last user turn; the messages given are left as they are.

    Pictures keep their places: the instructions start where the turn's text starts, so a picture before the text stays
    before it. Earlier turns (worked examples, say) are not touched. A system turn that the messages already have is
    kept, after the style's own.

    Args:
        messages: `{"role", "content": [{"type": "text", "text": str} | {"type": "image"}]}`.
        style: "plain" changes nothing; "instruct" (tags, LaTeX answer, all in the user turn); "zero" (system turn with
            the tags, boxed answer asked for in the user turn); "cpgd" (system turn as instruct, answer boxed);
            "steps" (tagged steps and answer, all in the user turn).

    Raises:
        UserError: an unknown style, or no user turn.
    """
    if style not in _TEMPLATES:
        raise UserError(f"prompt style {style!r} is not one of {', '.join(PROMPT_STYLES)}")
    styled = list(messages)
    if style == "plain":
        return styled
    template = _TEMPLATES[style]
    turn = max((index for index, message in enumerate(styled) if message["role"] == "user"), default=None)
    if turn is None:
        raise UserError(f"its messages have no user turn for the instructions of prompt style {style!r}")
    parts = list(styled[turn]["content"])
    first_text = next((index for index, part in enumerate(parts) if part["type"] == "text"), len(parts))
    parts.insert(first_text, _text(template.before))
    parts.append(_text(template.after))
    styled[turn] = {**styled[turn], "content": _join_texts(parts)}
    if template.system:
        own = [_text(template.system)]
        if styled[0]["role"] == "system":
            own += [_text("\n\n"), *styled.pop(0)["content"]]
        styled.insert(0, {"role": "system", "content": _join_texts(own)})
    return styled


def _text(text: str) -> Message:
    return {"type": "text", "text": text}


def _join_texts(parts: Sequence[Message]) -> list[Message]:
    """Joins neighbouring texts into one part and drops empty ones."""
    joined: list[Message] = []
    for part in parts:
        if part["type"] == "text" and joined and joined[-1]["type"] == "text":
            joined[-1] = _text(joined[-1]["text"] + part["text"])
        elif part["type"] != "text" or part["text"]:
            joined.append(dict(part))
    return joined
