"""The accuracy rule: 1 if the answer of a response is the gold answer, as a careful mathematics teacher would judge.

`answers/` reads: which text counts (`extraction`), what it states (`reading`), and whether that equals what the gold
answer states (`equality`). docs/rewards.md says what scores and what does not, with examples, and where the rule
differs from upstream's (`upstream.py`).

An answer is one claim: what lists, hedges, denies, or states more than the gold answer scores 0. A gold answer that
does not score when it is quoted back gets a reason from `gold_problem`; the data check refuses its row.
"""

from __future__ import annotations

import re
from functools import lru_cache

from mmeureka_jax.rewards.answers import choices, equality, extraction, mathematics, notation, reading, records
from mmeureka_jax.rewards.answers.boxes import boxed_answer
from mmeureka_jax.rewards.answers.extraction import MAX_CHARACTERS, AnswerForm
from mmeureka_jax.rewards.answers.verdicts import verdict

MAX_WORDS = 12  # a longer gold answer is an explanation

_OPENING = "<answer>"
_CLOSING = "</answer>"
# What may open an answer and says nothing.
_FILLER = re.compile(
    r"^(?:(?:therefore|thus|hence|so|then|finally|in conclusion),\s+"
    r"|(?:所以|因此|综上),?|(?:本题|此题)?(?:故|应)*选(?!项)择?[:,\s]*)+",
    re.IGNORECASE,
)
# What keeps a text from being words, and what makes it words or a name.
_UNREAD = re.compile(r"\\(?:frac|sqrt|int|sum)\b")
_WORDS = re.compile(r"[A-Za-z]{3}|[\u4e00-\u9fff]|[<>=]|\\[a-zA-Z]{2,}|\d:\d\d|\d_\{?\d|\d\s*–\s*\d|\\circ")
_NAME = re.compile(r"[A-Za-z_][\w{}()^\-]*'*\s?(?:\^?\{?\d?[-+]\}?)?")
_NO_VALUE = re.compile(r"(?:nan|n/a|null|undefined behaviour)", re.IGNORECASE)


def accuracy(response: str, answer: str, form: AnswerForm) -> float:
    """1.0 if the answer that `response` gives in `form` equals the gold `answer`, else 0.0."""
    return compare(extraction.answer_text(response, form), answer)


def compare(text: str, answer: str) -> float:
    """1.0 if the answer `text` states the gold `answer`, else 0.0."""
    return float(gold_problem(answer) is None and _agrees(text, answer))


@lru_cache(maxsize=4096)
def gold_problem(answer: str) -> str | None:
    """Why the rule cannot compare with this gold answer, as a phrase that follows "the gold answer"; None if it can."""
    if len(answer) > MAX_CHARACTERS:
        return f"is too long ({len(answer)} characters)"
    gold = _spelled(answer)
    if not re.search(r"\w|[<>=]|\\[a-zA-Z]", gold):
        return "is empty" if not answer.strip() else f"{answer!r} holds nothing to compare"
    if _NO_VALUE.fullmatch(gold):
        return f"{answer!r} is no value"
    if not notation.is_balanced(gold) or gold.count(r"\begin") != gold.count(r"\end{"):
        return f"{answer!r} has unbalanced braces"
    words = re.findall(r"(?<![\\a-zA-Z])[A-Za-z]{3,}|[\u4e00-\u9fff]+", notation.unwrap_text(answer))
    if len(words) > MAX_WORDS or sum(len(word) for word in words if not word.isascii()) > 3 * MAX_WORDS:
        return f"is an explanation ({len(words)} words), not an answer that a rule can compare"
    if not (choices.gold_letters(gold) or verdict(gold) or _is_read(gold)):
        return f"{answer!r} does not parse as a mathematical expression"
    for form in ("instruct", "boxed"):
        quoted = f"<answer>{answer}</answer>" if form == "instruct" else rf"\boxed{{{answer}}}"
        if not _agrees(extraction.answer_text(quoted, form), answer):
            return f"{answer!r} does not score when it is quoted back"
    return None


def _agrees(text: str, gold: str) -> bool:
    if not text.strip() or len(text) > MAX_CHARACTERS:
        return False
    gold = _spelled(gold)
    text = _spelled(text)
    if not text:
        return False
    if (choice := choices.gold_letters(gold)) is not None:
        letters, words = choice
        return choices.picked_letters(text, words) == letters or (words != "" and _agrees(text, words))
    # AC may be a name: letters that run together are compared as names, in their order.
    letters_only = text.isascii() and text.isalpha()
    if choices.is_run(gold) and not letters_only and choices.picked_letters(text) == frozenset(gold):
        return True
    if _same(gold, text):
        return True
    wanted = verdict(gold)
    return wanted is not None and verdict(text) == wanted


def _same(gold: str, text: str) -> bool:
    golds = reading.read(gold)
    answers = reading.read(text)
    return any(equality.same_answer(a, b) for a in golds for b in answers)


def _untagged(text: str) -> str:
    """The inside of answer tags, if they are around the whole text."""
    inside = text.strip()
    begins = inside[: len(_OPENING)].lower() == _OPENING
    ends = inside[-len(_CLOSING) :].lower() == _CLOSING
    if not (begins and ends and len(inside) >= len(_OPENING + _CLOSING)):
        return text
    return inside[len(_OPENING) : -len(_CLOSING)].strip()


@lru_cache(maxsize=512)  # the answers of a group share their gold answer
def _spelled(text: str) -> str:
    """An answer without the wrapping of other frameworks, in one spelling."""
    for _ in range(4):
        before = text
        text = _untagged(text)
        if (boxed := boxed_answer(text)) is not None:
            text = boxed
        text = extraction.without_asides(extraction.concluded(text))
        if (marked := extraction.marked_answer(text)) is not None:
            text = marked
        if text == before:
            break
    text = reading.without_frame(notation.normalise(text))
    return _FILLER.sub("", text) or text


def _is_read(gold: str) -> bool:
    """Whether any reading of a gold answer understands all of its parts."""
    return any(all(map(_is_comparable, answer.parts)) for answer in reading.read(gold))


def _is_comparable(part: tuple[records.Part, ...]) -> bool:
    """Whether a part has a value, or is words, a sign, a name, 2:30, 3–5."""
    if any(map(_has_value, part)):
        return True
    text = part[0].text
    return not _UNREAD.search(text) and bool(_WORDS.search(text) or _NAME.fullmatch(text))


def _has_value(part: records.Part) -> bool:
    if isinstance(part.body, records.Expression):
        return mathematics.parse(part.body.text) is not None
    return part.body is not None
