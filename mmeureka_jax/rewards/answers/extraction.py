r"""Which text of a response counts as its answer.

A thought (`<think>…</think>`) never counts, and a response that is cut in the middle of its thought has no answer.
  instruct: the first `<answer>` block after the thought, on any number of lines, closed or cut at the end of the
    response; in it the last `\boxed{…}` where there is one. Without a block, what the response states in so many words:
    its last box, what follows "the answer is", or else its last sentence.
  boxed: the last `\boxed{…}`, within the answer block where there is one. A last box that never closes is no answer.
  steps: the first `<answer>` block outside of `<step>` blocks, which must end and come after the last step; in it the
    last box where there is one. Nothing else is an answer.

All of it is linear in the length of the response; what follows a marker is looked for in its last 2,000 characters.
"""

from __future__ import annotations

import re
from typing import Literal

from mmeureka_jax.rewards.answers.boxes import boxed_answer
from mmeureka_jax.rewards.answers.step_blocks import final_answer

AnswerForm = Literal["instruct", "boxed", "steps"]

MAX_CHARACTERS = 2000  # nothing longer is an answer

_MAX_TOKENS = 8  # special ones at the end

_TAG = re.compile(r"<(/?)(think|answer)\b\s?>?", re.IGNORECASE)
_CUT_TAG = re.compile(r"<(?:/[a-z]{0,5})?$", re.IGNORECASE)
# What introduces an answer and ends the argument before it.
_MARKER = re.compile(
    r"\b(?:answers?|option|choice)\*{0,2} (?:is|are|would be|should be)\b[ *]{0,3}[:：]?"
    r"|\b(?:answers?|ans|solution|result)\*{0,2} ?[:：]|\bans\. |答案\s?[是为]?\s?[:：]?|答[:：]|故选\s?[:：]?|####",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(r"(?:[,.;:\n，。；]\s*)(?:(?:so|therefore|thus|hence)\b,?|所以|因此|故)\s*", re.IGNORECASE)
_DOUBT = re.compile(
    r"\b(?:not|never|wrong|incorrect|false|cannot|doubt|if|unless|whether|maybe|perhaps|multiple|several)\b|n't|[不非错]",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？\n]")


def answer_text(response: str, form: AnswerForm) -> str:
    """The text that the accuracy rule reads, or "" where the response gives no answer."""
    if form == "steps":
        return _unboxed(final_answer(response) or "")
    spoken = _after_thought(_without_special_tokens(response))
    block = _answer_block(spoken)
    if form == "boxed":
        box = boxed_answer(spoken)
        if block is not None and box is not None and not _TAG.search(box):  # a box around the block is the answer's
            box = boxed_answer(block)
        return box or ""
    if block is None:
        return stated_answer(spoken)
    return _unboxed(block)


def _unboxed(block: str) -> str:
    """The last box of an answer block, or else all of it."""
    boxed = boxed_answer(block)
    return block.strip() if boxed is None else boxed


def _without_special_tokens(response: str) -> str:
    """Without `<|im_end|>` and the like at the end."""
    for _ in range(_MAX_TOKENS):
        response = response.rstrip()
        start = response.rfind("<|", -40) if response.endswith("|>") else -1
        if start < 0:
            break
        response = response[:start]
    return response


def _after_thought(response: str) -> str:
    """The response without its thought, whose beginning may be in the prompt (templates that open `<think>`).

    The thought ends at the first `</think>` that an `<answer>` follows at once, or else at the last one before the last
    `<answer>`, so that tags which a thought quotes do not count.
    """
    opened: int | None = None
    closed: int | None = None
    closed_before_answer: int | None = None
    after_closed: int | None = None  # where the tag before this one ended, if that was </think>
    for match in _TAG.finditer(response):
        tag = match[1] + match[2].lower()
        if tag == "answer":
            if after_closed is not None and not response[after_closed : match.start()].strip():
                return response[after_closed:]
            closed_before_answer = closed
        after_closed = None
        if tag == "/think":
            closed = after_closed = match.end()
        elif tag == "think" and opened is None:
            opened = match.start()
    if closed is None:
        return response[:opened]
    return response[closed if closed_before_answer is None else closed_before_answer :]


def _answer_block(text: str) -> str | None:
    """The content of the first `<answer>`, up to its end or the end of the text; None without one.

    Where a block ends that never began, the prompt may have begun it: it is what comes before.
    """
    start: int | None = None
    for match in _TAG.finditer(text):
        if match[2].lower() != "answer":
            continue
        is_second = start is not None and not match[1] and not text[start : match.start()].strip()  # <answer><answer>
        if start is not None and not is_second:
            return text[start : match.start()]
        if match[1]:
            return text[: match.start()]
        start = match.end()
    return None if start is None else _CUT_TAG.sub("", text[start:])


def stated_answer(text: str) -> str:
    """What a text without tags states: its last box or marked answer, whichever comes later, or its last sentence."""
    tail = text.rstrip()[-MAX_CHARACTERS:]
    boxed = boxed_answer(text)
    last_box = max(tail.rfind(r"\boxed"), tail.rfind(r"\fbox"))
    last_marker = max((match.start() for match in _MARKER.finditer(tail)), default=-1)
    if boxed is not None and last_box >= last_marker:
        return boxed
    if last_marker >= 0:
        return marked_answer(tail) or ""
    sentences = [sentence for sentence in _SENTENCE_END.split(tail) if sentence.strip()]
    return sentences[-1].strip() if sentences else ""


def marked_answer(text: str) -> str | None:
    """What follows the last "the answer is", "Answer:" or 答案：, up to the end of its sentence; None without one.

    "" where the sentence doubts it, or an earlier marker introduces something else.
    """
    found = []
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    for match in _MARKER.finditer(text):
        start = max((end for end in ends if end <= match.start()), default=0)
        rest = text[match.end() :].lstrip(" *:：\n")
        end = _SENTENCE_END.search(rest)
        sentence = rest if end is None else rest[: end.start()]
        found.append("" if _DOUBT.search(text, start, match.start()) else sentence.strip(" *"))
    if not found:
        return None
    return found[-1] if len(set(found)) == 1 else ""


def without_asides(text: str) -> str:
    """A text without the sentences after its first one that state no value: `It is 1.5. This is the final answer.`"""
    first, *others = re.split(r"(?<=[.。!])\s+(?=[A-Z\u4e00-\u9fff])", text)
    if not re.search(r"\d|\\", first) or any(re.search(r"\d|[\\$]", s) or _DOUBT.search(s) for s in others):
        return text
    return first


def concluded(text: str) -> str:
    """The conclusion of a short argument: `AB = 3, BC = 4, so AC = 5` concludes `AC = 5`."""
    conclusions = list(_CONCLUSION.finditer(text))
    if not conclusions or _DOUBT.search(text, 0, conclusions[-1].start()):
        return text
    return text[conclusions[-1].end() :].strip() or text
