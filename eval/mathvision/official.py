r"""MATH-V's own rule, which needs no model.

Source: `evaluation/evaluate.py` and `evaluation/utils.py` of github.com/mathllm/MATH-V (commit a1f5cc3). README.md
lists its known bugs, which are kept. Instead of `eval(str(latex2sympy(text)))`, arithmetic.py reads the number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mmeureka_jax.eval.mathvision.arithmetic import value

LETTERS = "ABCDE"

_BOX = "oxed{"
_PHRASES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_DELETED = (
    *(r"\text", r"\mbox", r"\left", r"\right", r"^{\circ}", r"^\circ"),
    *("{m}^3", "m^3", "{units}", "units", "{km}", "km"),
)
_FRACTION = re.compile(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)")


def judge(response: str, row: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether a response is right, and the text that was judged.

    None stands for a wrong response without a box, phrase, letter or number: the rule then compares the whole of it.
    """
    text, is_found = extract(response)
    golds = [str(row["answer"])]
    if row["options"]:
        golds.append(row["options"][ord(golds[0]) - ord("A")])
    right = any(is_equal(gold, text) for gold in golds)
    return right, text if text and (is_found or right) else None


def extract(response: str) -> tuple[str, bool]:
    """The cleaned answer in a response, and whether anything marks it as one."""
    text = _number(_letter(response.strip()))
    is_found = text != response.strip() or _is_number(text)
    if _BOX not in text:
        for phrase in _PHRASES:
            for spelling in (phrase, phrase.replace("the", "The")):
                before, found, after = text.rpartition(spelling)
                text = after.strip()
                if found:
                    text = text.split("\n")[0].split(". ")[0]
                    is_found = True
    else:
        is_found = True
        if text.count(_BOX) > 1:
            text = "\\b" + _BOX + text.rpartition(_BOX)[2]
    text = _cleaned(text)
    for letter in LETTERS.lower():
        text = text.replace(f"({letter})", letter)
    for letter in LETTERS.lower():
        text = text.replace(f"{{{letter}}}", letter)
    return text.rstrip(".").lstrip(":").strip(), is_found


def _letter(text: str) -> str:
    """The option that a response ends or begins with, else the response."""
    for letter in LETTERS:
        if text.endswith((f" {letter}.", f" ({letter}).")):
            text = letter
        elif text.startswith((f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")):
            text = letter
    return text


def _number(text: str) -> str:
    """The number that follows the last "is ", or is the whole text; else the text."""
    last = text.split("is ")[-1].rstrip(".")
    return last if _is_number(last) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _cleaned(text: str) -> str:
    """The content of the box, or the text, in the rule's spelling."""
    text = text.lower().replace("{}", "")
    start = text.find(_BOX)
    end = text.rfind("}")
    if 0 <= start and start + len(_BOX) <= end:  # to the last brace of the response, not to that of the box
        text = text[start + len(_BOX) : end]
    closing = text.find("}")
    if closing >= 0 and not 0 <= text.find("{") < closing:
        text = text[:closing]
    text = text.split("=")[-1].split(r"\approx")[-1]
    text = text.replace(" ", "").replace(r"\,", "").replace("∞", r"\infty").replace(r"+\infty", r"\infty")
    text = text.replace("\\\\", "\\").replace("\n", "")
    for part in _DELETED[:2]:
        text = text.replace(part, "")
    text = text.replace("bmatrix", "pmatrix")
    for part in _DELETED[2:]:
        text = text.replace(part, "")
    return _spelled(text)


def _spelled(text: str) -> str:
    text = text.replace(r"\!", "").replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for part in (r"\left", r"\right", r"^{\circ}", r"^\circ", r"\$", "$", r"\%"):
        text = text.replace(part, "")
    text = text.replace("{.", "{0.")
    text = "0" + text if text.startswith(".") else text
    for sign in ("=", r"\approx"):
        parts = text.split(sign)
        text = parts[1] if len(parts) == 2 else text
    if "sqrt" in text:  # also for fractions, which are mended nowhere else
        text = _mended_fractions(_mended_roots(text).replace(" ", ""))
    text = r"\frac{1}{2}" if text == "0.5" else text
    fraction = _FRACTION.fullmatch(text)
    return rf"\frac{{{fraction[1]}}}{{{fraction[2]}}}" if fraction else text


def _mended_roots(text: str) -> str:
    r"""`\sqrt2` as `\sqrt{2}`, but also `\sqrt[3]{8}` as `\sqrt{[}3]{8}`."""
    return re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text)


def _mended_fractions(text: str) -> str:
    r"""`\frac12` as `\frac{1}{2}`."""
    first, *others = text.split(r"\frac")
    if any(len(part) < 2 and part != "{" for part in others):
        return text
    mended = [_mended_fraction(part) for part in others]
    return first + "".join(rf"\frac{part}" for part in mended)


def _mended_fraction(part: str) -> str:
    if part.startswith("{"):
        return part
    above = part[0]
    below = part[1]
    return f"{{{above}}}{part[1:]}" if below == "{" else f"{{{above}}}{{{below}}}{part[2:]}"


def is_equal(gold: str, text: str) -> bool:
    """Equal in lower case, equal as tuples, or equal when rounded to two decimals."""
    gold = gold.lower()
    text = text.lower()
    if not gold.replace(" ", "") or not text.replace(" ", ""):
        return False
    if gold.strip() == text.strip():
        return True
    gold = _tuple(gold)
    text = _tuple(text)
    if gold == text:
        return True
    first = value(gold)
    second = value(text)
    return first is not None and second is not None and round(first, 2) == round(second, 2)


def _tuple(text: str) -> str:
    """A tuple or list with its parts evaluated and rounded; other text, or what cannot be evaluated, as it is."""
    parts = text[1:-1].split(",")
    if (text[0], text[-1]) not in (("(", ")"), ("[", "]")) or len(parts) < 2:
        return text
    values = []
    for part in parts:
        if "infty" in part or part in ("a", "-a"):
            values.append(part)
        elif (number := value(part)) is not None:
            values.append(str(round(number, 2)))
        else:
            return text
    return f"{text[0]}{','.join(values)}{text[-1]}"
