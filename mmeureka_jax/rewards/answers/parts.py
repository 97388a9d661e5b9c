r"""How an answer falls into parts: blanks in order (lines, `;`, `(1) … (2) …`) or a set (commas, `and`, `or`, ②④)."""

from __future__ import annotations

import re

from mmeureka_jax.rewards.answers import notation

EQUAL = ("=", r"\approx", r"\equiv")
ORDER = ("<", ">", r"\leq", r"\geq", r"\neq")
SIGN = re.compile(
    r"\\(?:leq|geq|neq|approx|equiv|in|notin|subseteq|subset|to|Rightarrow|parallel|perp|cong|sim)(?![a-zA-Z])|[<>=]"
)
_STATEMENTS = (
    re.compile(r"(?:[①-⑳](?:[\s,.;和与及]|and)*)+"),  # ②④⑤
    re.compile(r"(?:\(\d\)[\s,.;]*){2,}"),  # (2)(4)
    re.compile(r"\d(?:\.\s?\d){2,}\.?"),  # 2.4.5.
)
_NUMBER = r"[-+]?\d+(?:\.\d+)?"


def split_parts(text: str) -> tuple[list[str], bool, bool]:
    """The parts of an answer, whether their order counts, and whether they are alternatives, joined only by `or`.

    Lines, `;`, `(1) … (2) …`, neighbouring `$…$ $…$` and numbers between spaces are the blanks of a question, in order.
    Commas outside brackets, `and` and `or` make a set, and so do numbered statements (`②④⑤`, `(2)(4)`, `2.4.5.`).
    """
    bare = text.replace("$", "").strip()
    if any(pattern.fullmatch(bare) for pattern in _STATEMENTS):
        marks = [ord(mark) - 0x245F if mark > "9" else int(mark) for mark in re.findall(r"[①-⑳]|\d", bare)]
        return [str(mark) for mark in marks], marks != sorted(marks), False
    if re.fullmatch(rf"{_NUMBER}(?:\s+{_NUMBER})+", bare):
        return bare.split(), True, False
    if re.match(r"\(1\).*\(2\)|①[^①-⑳]+②", text, re.DOTALL):
        blanks = re.split(r"\(\d\)|[①-⑳]", text)[1:]
    else:
        spans = re.split(r"(\$[^$]*\$)", text)  # odd positions are the $…$ spans
        spans[2:-1:2] = ["\n" if gap and not gap.strip() else gap for gap in spans[2:-1:2]]
        separators = r"[\n;]" if r"\begin" in text else r"[\n;]|\\\\(?![a-zA-Z])"
        blanks = re.split(separators, "".join(spans))
    blanks = [part for blank in blanks if (part := notation.trim(blank))]
    if len(blanks) > 1:
        return blanks, True, False
    pieces, joints = _split_list(text)
    parts = [part for piece in pieces if (part := notation.trim(piece))]
    return parts, False, bool(joints) and set(joints) <= {"or", "或"}


def _split_list(text: str) -> tuple[list[str], list[str]]:
    """The pieces between commas, `and`, `or`, 和, 或 outside brackets, and these joints. 12,000 has no joint."""
    parts: list[str] = []
    joints: list[str] = []
    depth = 0
    start = 0
    for match in re.finditer(r"\\?[(\[{]|\\?[)\]}]|,|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|[和或与且]", text):
        token = match[0][-1]
        if token in "([{":
            depth += 1
        elif token in ")]}":
            depth -= 1
        elif depth <= 0 and not (token == "," and _is_thousands(text, match.start())):
            if joints and joints[-1] == "," and not text[start : match.start()].strip():
                joints[-1] = match[0]  # ", or" is "or"
            else:
                parts.append(text[start : match.start()])
                joints.append(match[0])
            start = match.end()
    parts.append(text[start:])
    return [part.strip().strip("$") if part.count("$") % 2 else part for part in parts], joints


def _is_thousands(text: str, comma: int) -> bool:
    return bool(re.match(r",\d{3}(?!\d)", text[comma:]) and re.search(r"(?<![\d.])\d{1,3}(?:,\d{3})*$", text[:comma]))


def split_top(text: str, separators: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """The pieces of a text between separators outside brackets, and the separators."""
    pieces = []
    found = []
    start = 0
    around = depths(text)
    for match in separators.finditer(text):
        if around[match.start()] == 0:
            pieces.append(text[start : match.start()].strip())
            found.append(match[0])
            start = match.end()
    return [*pieces, text[start:].strip()], found


def depths(text: str) -> list[int]:
    """How many brackets are open around each character; the brackets themselves are outside."""
    found = []
    depth = 0
    for character in text:
        if character in ")]}":
            depth = max(depth - 1, 0)
        found.append(depth)
        if character in "([{":
            depth += 1
    return found
