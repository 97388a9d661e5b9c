"""The accuracy rule: 1 if the answer of a response equals the gold answer, else 0.

Where the answer is taken from (MM-EUREKA's two forms):
  instruct: the first `<answer>…</answer>` on one line; without one, what follows the last `<answer>`; without that, the
    whole response.
  boxed: the last `\\boxed{…}` with balanced braces.

How it is compared, by the first of these that applies:
  choice (gold A-D): the gold letter stands alone in the answer, and no other choice letter does.
  several values (lines, `;`, `(1) … (2) …`, commas, statement numbers): the same number of values, each equal; in order
    when they fill blanks, in any order when they are a set.
  value: gold and answer, wrapped in `$…$`, are parsed by math-verify and `verify` agrees. A unit may be missing on one
    side; two different units do not agree.
  text: equal up to case, articles and spacing (`trapezoid.`, `>`, `(1,1)→(2,3)`).

Stricter than math-verify alone, which takes the rightmost thing it can read: inside the tags or the box an answer
counts only when it is one value, as a whole or as the only value of a sentence. So `3, 4, 5` is not 5, `A B C D` is not
D, a gold answer `5√2` never shrinks to 5, and neither does `8\\n8` to 8. Only for a response without any tag is the
rightmost value read, as upstream does. (math-verify's string extraction of choices adds nothing to the choice rule.)

A gold answer that cannot be compared gets a reason from `gold_problem`: it is empty, an explanation in sentences, or
broken LaTeX. The data check refuses its row, and `accuracy` is 0 (upstream: 1).

math-verify's own time limits are signals, which fail in threads and mis-score; they are off here, and `workers.py`
kills what runs too long.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TypeAlias

from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy import Basic, Float, Integer, MatrixBase

from mmeureka_jax.rewards import answer_text
from mmeureka_jax.rewards.answer_text import AnswerForm

Value: TypeAlias = Basic | MatrixBase

MAX_WORDS = 12  # a longer gold answer is an explanation
MAX_CHARACTERS = 2000  # nothing longer is one value

# Units and boxes are handled in answer_text: math-verify's own handling cuts `3\text{n}+1` down to 3.
_LATEX = LatexExtractionConfig(
    boxed_match_priority=-1,
    normalization_config=NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
    ),
)
# Signs of statements that are compared as text, since SymPy has no object for them.
_TEXT_SIGNS = re.compile(r"[<>=]|\\(?:to|parallel|perp|cong|sim|angle|triangle|leq|geq|neq|in|subset\w*)\b")
_HEDGES = frozenset({"or", "not", "than", "either", "neither", "between", "except", "maybe", "perhaps"})


def accuracy(response: str, answer: str, form: AnswerForm) -> float:
    """1.0 if the answer that `response` gives in `form` equals the gold `answer`, else 0.0."""
    text, in_tags = answer_text.extract_answer(response, form)
    return compare(text, answer, in_tags)


def compare(text: str, answer: str, in_tags: bool) -> float:
    """1.0 if `text` states the gold `answer`. `in_tags`: the text is all answer, so it must be one value, no more."""
    if gold_problem(answer) is not None or not text.strip():
        return 0.0
    gold = answer_text.clean(answer)
    if choice := re.fullmatch(r"\W*([A-Da-d])\W*", answer_text.unwrap_text(gold)):
        return float(_choices(text) == {choice[1].upper()})
    same = len(text) <= MAX_CHARACTERS and _same_whole(gold, answer_text.clean(text))
    return float(same or (not in_tags and _same_rightmost(gold, text)))


def gold_is_parsable(answer: str, form: AnswerForm) -> bool:
    """Whether `accuracy` can compare anything with this gold answer (the same for both forms)."""
    return gold_problem(answer) is None


@lru_cache(maxsize=4096)
def gold_problem(answer: str) -> str | None:
    """Why the rule cannot compare with this gold answer, as a phrase that follows "the gold answer"; None if it can."""
    gold = answer_text.clean(answer)
    if not re.search(r"\w|[<>=]|\\[a-zA-Z]", gold):
        return "is empty" if not answer.strip() else f"{answer!r} holds nothing to compare"
    if not answer_text.is_balanced(gold):
        return f"{answer!r} has unbalanced braces"
    text = answer_text.unwrap_text(gold)
    words = answer_text.words(text)
    if len(words) > MAX_WORDS or sum(len(word) for word in words if not word.isascii()) > 3 * MAX_WORDS:
        return f"is an explanation ({len(words)} words), not an answer that a rule can compare"
    for part in answer_text.split_values(gold)[0]:
        if _parse_value(answer_text.split_unit(part)[0]) is None and not _is_text(part):
            return f"{answer!r} does not parse as a mathematical expression"
    return None


def _is_text(part: str) -> bool:
    """Whether a part that does not parse is still an answer, compared as text: words, a sign, 2:30, 3–5, 40°30'."""
    text = answer_text.unwrap_text(part)
    if re.search(r"\\(?:frac|sqrt|begin|int|sum)\b", text):
        return False
    number_text = re.search(r"\d:\d\d|\d\s*–\s*\d|\\circ\s*\}?\s*\d+\s*'", text)
    return bool(
        answer_text.words(text) or _TEXT_SIGNS.search(text) or number_text or re.fullmatch(r"[A-Za-z_]\w*'*", text)
    )


def _choices(text: str) -> set[str]:
    """The choice letters that stand alone in an answer. Small letters count only when the answer is nothing else, since
    `a` is also an article."""
    text = answer_text.unwrap_text(answer_text.clean(text))
    if small := re.fullmatch(r"\W*([a-d])\W*", text):
        return {small[1].upper()}
    return set(re.findall(r"(?<![A-Za-z\\_^])([A-D])(?![A-Za-z_^0-9'])", text))


def _same_whole(gold: str, text: str) -> bool:
    gold_values, ordered = answer_text.split_values(gold)
    values, _ = answer_text.split_values(text)
    if len(gold_values) > 1 and len(values) == len(gold_values):
        if ordered or len(values) > 8:
            return all(map(_same_value, gold_values, values))
        return _same_set(gold_values, values)
    if len(gold_values) > 1 and ordered:
        return False
    # One value, or a set that one side writes as one expression: ±3 and "3 or -3".
    if len(values) == 1:
        return _same_value(gold, text) if len(gold_values) > 1 else _same_value(gold_values[0], values[0])
    return _same_parsed(gold, text)


def _same_set(gold_values: list[str], values: list[str]) -> bool:
    rest = list(values)
    for gold in gold_values:
        found = next((index for index, value in enumerate(rest) if _same_value(gold, value)), None)
        if found is None:
            return False
        del rest[found]
    return True


def _same_value(gold: str, text: str) -> bool:
    """Whether one gold value equals one value of an answer."""
    if answer_text.text_key(gold) == answer_text.text_key(text):
        return True
    if _same_parsed(gold, text):
        return True
    gold_number, gold_unit = answer_text.split_unit(gold)
    number, unit = answer_text.split_unit(text)
    if (gold_unit or unit) and (not gold_unit or not unit or gold_unit == unit) and _same_parsed(gold_number, number):
        return True
    stated = _stated_value(text)
    return stated is not None and stated != text and _same_value(gold, stated)


def _same_parsed(gold: str, text: str) -> bool:
    gold_value = _parse_value(gold)
    value = None if gold_value is None else _parse_value(text)
    return value is not None and verify(gold_value, value, timeout_seconds=None)


def _same_rightmost(gold: str, response: str) -> bool:
    """math-verify's own reading of free text: the rightmost value, or the one after "answer is"."""
    if len(answer_text.split_values(gold)[0]) != 1:
        return False
    gold_value = _parse_value(answer_text.split_unit(gold)[0])
    if gold_value is None:
        return False
    found = parse(
        answer_text.unwrap_commands(response),
        [LatexExtractionConfig(), ExprExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return verify(gold_value, found, timeout_seconds=None)


def _stated_value(text: str) -> str | None:
    """The only value of a sentence, else None: `The area is $5$ cm^{2}` -> `$5$ cm^{2}`, `it is 5` -> `5`."""
    spans = [span for span in re.finditer(r"\$[^$]*\$", text) if answer_text.has_value(span[0])]
    numbers = spans or list(re.finditer(r"(?<![\w.\\])[-+]?\d[\d.,]*(?:/\d+)?\\?%?(?![\w\\^(/*+])", text))
    if not numbers:
        return None
    start, end = numbers[0].span()
    if answer_text.split_unit(text[start:])[1]:
        end = len(text)
    sentence, value = f"{text[:start]} {text[end:]}", text[start:end].rstrip(".,")
    found = {word.lower() for word in re.findall(r"[A-Za-z]+", sentence)}
    if answer_text.has_value(sentence) or not answer_text.words(sentence) or found & _HEDGES:
        return None
    return value


@lru_cache(maxsize=256)
def _parse_value(text: str) -> Value | None:
    """The whole text as one SymPy object, or None: words, several lines or anything left over is no value."""
    text = answer_text.unwrap_text(text)
    if not text or "\n" in text or answer_text.words(text) or not answer_text.is_balanced(text):
        return None
    # Two numbers side by side are no product, 3:45 is a time and not 1/15, and 40°30' is not 40 + 30.
    if re.search(r"\d\s+\d|^\d{1,2}:\d\d$|\\circ", text) or text.count(":") > 1:
        return None
    # Most answers; ten times faster than the LaTeX parser. SymPy's own reading of text refuses 007.
    if re.fullmatch(r"-?(?:\d+(?:\.\d+)?|\.\d+)", text, re.ASCII):
        return Float(text) if "." in text else Integer(int(text))
    # First match: the whole $…$ or nothing. Plain expressions are LaTeX too; math-verify's extraction of them would
    # take a part (`1` of `1 +`).
    found = parse(
        f"${text}$", [_LATEX], fallback_mode="no_fallback", extraction_mode="first_match", parsing_timeout=None
    )
    return found[0] if found else None
