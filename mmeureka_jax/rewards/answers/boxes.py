r"""The last `\boxed{…}` of a text, and whether the text around it leaves it the answer.

Linear in the length of the text: models write a megabyte of braces.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_BOX = re.compile(r"\\(?:f?boxed|fbox)(?:\s{0,9}\{|\s?(?P<bare>[0-9A-Z])(?![A-Za-z0-9]))")
_BRACE = re.compile(r"(?<!\\)[{}]")
_MAX_BOXES = 40  # in one list
_CONTEXT = 60  # characters before and after a box that are looked at

# Boxes of one list are side by side, or are numbered one after another.
_MAX_GAP = 60  # characters between two boxes that are side by side
_SIDE_BY_SIDE = re.compile(
    r"[\s$.,;:、，；。*]*(?:\\text\s?\{\s?)?(?:(?:and|or|和|或|与)[\s$,，}]*)?(?:\$?[a-zA-Z](?:_\{?\w+\}?)?\s?=\s?)?"
)
_NUMBER = re.compile(r"\((\d)\)|([①-⑨])")
# What before a box, and what after it, makes something else of its content.
_CHANGED_BEFORE = re.compile(
    r"""
    (?: \b(?: (?:not|never|cannot)(?:\ be|\ equal)? | except | neither | nor | no | either | or | than
            | at\ least | at\ most | (?:anything|all|everything)\ but | up\ to | above | below | minus | negative
            | half\ of | twice )
      | n't(?:\ be|\ equal)? | \\neq? | ≠ | 不是 | 非 | 除了? | 至少 | 至多 | 大于 | 小于 | 或
    ) [\s$:({]* $
    | (?: (?<=[\w)}$])\s?[+/^] | (?<=[\w)}$])\s?\*(?!\*) | [<≤≥] | (?<!answer)(?<!think)(?<![=-])>
        | \\(?:[lg]eq?|sqrt|frac|times|cdot|div|pm)(?:\{[^{}]*\})? ) \s* [\s${(]* $
    | -$
    """,
    re.IGNORECASE | re.VERBOSE,
)
_CHANGED_BEHIND = re.compile(
    r"""
    [\s$.,)*]{0,9} (?: (?:is|was|seems)\ (?:not\b|wrong|incorrect|false|impossible) | isn't | 不对 | 错 | \?\ *no\b )
    | [\s$}]{0,9} (?:\\text\s?\{)? \s{0,9} (?:or|或)\b
    | [$ ]? (?: [+/^>] | \*\s?[\w\\(] | <(?![/a-z|]) | \\(?:times|cdot|div|pm|neq?|%) )
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True)
class _Box:
    start: int
    end: int
    content: str


def boxed_answer(text: str) -> str | None:
    r"""The content of the last box, None without a box, and "" where the text around it denies or changes it, or where
    it never closes.

    Boxes side by side (`\boxed{3} and \boxed{5}`) and numbered ones (`(1) … \boxed{3} (2) … \boxed{5}`) are one list.
    Boxes within a box are part of its content.
    """
    boxes = _outermost_boxes(text)
    if not boxes:
        return None
    first = len(boxes) - 1
    joints: list[str] = []
    while first > 0 and len(joints) < _MAX_BOXES and (joint := _joint(text, boxes, first)) is not None:
        joints.append(joint)
        first -= 1
    start = boxes[first].start
    end = boxes[-1].end
    while text[start - 1 : start] == text[end : end + 1] == "*":  # **bold**
        start -= 1
        end += 1
    contents = [box.content.strip() for box in boxes[first:]]
    if not all(contents):
        return ""
    if _CHANGED_BEFORE.search(text, max(start - _CONTEXT, 0), start) or _CHANGED_BEHIND.match(text, end):
        return ""
    if len(set(contents)) == 1:
        return contents[0]
    return contents[0] + "".join(joint + content for joint, content in zip(joints[::-1], contents[1:], strict=True))


def _outermost_boxes(text: str) -> list[_Box]:
    """All boxes outside of others. The last one has no content if it never closes."""
    ends = brace_ends(text)
    boxes: list[_Box] = []
    for match in _BOX.finditer(text):
        if boxes and match.start() < boxes[-1].end:
            continue
        if match["bare"]:
            boxes.append(_Box(match.start(), match.end(), match["bare"]))
        elif (end := ends.get(match.end())) is not None:
            boxes.append(_Box(match.start(), end + 1, text[match.end() : end]))
        else:
            boxes.append(_Box(match.start(), len(text), ""))
    return boxes


def _joint(text: str, boxes: list[_Box], index: int) -> str | None:
    """What joins a box to the one before it in a list; None if it begins an answer of its own."""
    gap = text[boxes[index - 1].end : boxes[index].start]
    if len(gap) <= _MAX_GAP and _SIDE_BY_SIDE.fullmatch(gap):
        return " or " if re.search(r"\bor\b|或", gap) else ", "
    number = _number_before(text, boxes, index)
    return "; " if number > 1 and number == _number_before(text, boxes, index - 1) + 1 else None


def _number_before(text: str, boxes: list[_Box], index: int) -> int:
    """The k of the last `(k)` or ⓚ between a box and the one before it; 0 without one."""
    start = boxes[index - 1].end if index else 0
    numbers = [found[1] or found[2] for found in _NUMBER.finditer(text, start, boxes[index].start)]
    return unicodedata.digit(numbers[-1]) if numbers else 0


def brace_ends(text: str, brace: re.Pattern[str] = _BRACE) -> dict[int, int]:
    """Where the brace that opens just before a position closes. `brace` says which braces count."""
    opened: list[int] = []
    ends = {}
    for match in brace.finditer(text):
        if match[0] == "{":
            opened.append(match.end())
        elif opened:
            ends[opened.pop()] = match.start()
    return ends
