"""Words and names: what two of them are compared by, and which names may name one thing."""

from __future__ import annotations

import re
from functools import lru_cache

from mmeureka_jax.rewards.answers import notation

_FORMULA = re.compile(r"(?=.*[\d+\-*/^=\\])(?:\\[a-zA-Z]+|[A-Za-z]{1,2}(?![A-Za-z])|[^A-Za-z])*")
_DIRECTIONS = frozenset("NESW")
_ACRONYMS = frozenset(("HL",))
_OPENING = re.compile(
    r"^(?:there (?:is|are) |it is |it's |(?:the (?:equation|system|inequality|problem) |it )?has )"
    "|^(?:原?方程|不等式)组?(?=无)"
)


def variable(name: str) -> str:
    """A name without its subscripts."""
    return re.sub(r"_\s*(?:\{[^{}]*\}|\w)|\s|\\angle", "", name)


def same_variable(gold: str, answer: str) -> bool:
    """Whether two names may name one thing. Words may name anything, and so may a function's value."""
    if any(_is_phrase(name) for name in (gold, answer)):
        return True
    a, b = (re.sub(r"\([^()]*\)$", "()", variable(name)) for name in (gold, answer))
    if a.endswith("()") != b.endswith("()"):
        return "'" not in a + b
    return a.casefold() == b.casefold() or same_name(a, b)


def _is_phrase(name: str) -> bool:
    return re.search(r"(?<![\\A-Za-z])[a-z]{3,}|[A-Z][a-z]{2,}|[\u4e00-\u9fff]", name) is not None


def same_name(gold: str, answer: str) -> bool:
    """Whether two names of points are the same segment, angle or triangle. Letters alone may be read from the other end
    where the gold answer has them in the order of the alphabet; in any other order they are a sequence."""
    match = re.fullmatch(r"(\\(?:angle|triangle)|)\s*([A-Za-z]{2,8})", gold.strip())
    other = re.fullmatch(r"(\\(?:angle|triangle)|)\s*([A-Za-z]{2,8})", answer.strip())
    if match is None or other is None or match[1] != other[1]:
        return False
    a, b = match[2], other[2]
    if match[1] == r"\triangle":
        return sorted(a) == sorted(b)
    if match[1] == r"\angle":
        return a in (b, b[::-1])
    return a == b or (
        a == b[::-1]
        and list(a) == sorted(a)
        and len(set(a)) == len(a)
        and a not in _ACRONYMS
        and not set(a) <= _DIRECTIONS
    )


def is_word(text: str) -> bool:
    """Whether letters are a name or word. Small and capital ones together are a product: BLv."""
    return len(text) > 1 and text.isalpha() and (text.isupper() or text.islower() or text.istitle())


def _case_folded(text: str) -> str:
    """In small letters, but for formulas (2ab is not 2AB) and names that a capital tells apart (Mg and mg)."""
    if _FORMULA.fullmatch(text):
        return text
    if text.isalpha() and len(text) <= 4 and not is_word(text):
        return text  # BLv
    if len(text) == 2 and text.istitle() and text.lower() not in ("no", "on", "up"):
        return text
    return text.casefold()


@lru_cache(maxsize=4096)
def text_key(value: str) -> str:
    """What two answers in words are compared by: case, articles, spaces around signs and quotes do not matter."""
    value = notation.unwrap_text(value)
    if _FORMULA.fullmatch(value):
        value = re.sub(r"(?<!\d) | (?!\d)", "", value)
    value = _case_folded(value)
    value = re.sub(r"\s*([_^])\s*", r"\1", value)
    value = re.sub(r"\\mathbb\{(\w)\}", r"\1", value)
    value = _OPENING.sub("", value)
    value = re.sub(r"[\"'`*]", "", value) if not re.search(r"\d'|[a-z]'", value) else value
    value = re.sub(r"^(?:the|an?) (?=\w{3})", "", notation.trim(value))
    value = re.sub(r"(?<![\d:])0(?=\d:\d\d)", "", value)  # 03:45 is 3:45
    value = re.sub(r"_\s*(?:\{(\w+)\}|(\w))", r"\1\2", value)  # H_2O is H2O
    value = re.sub(r"\\(?:vec|overline|overrightarrow)\s*\{?(\w+)\}?", r"\\vec\1", value) if r"\vec" in value else value
    value = re.sub(r"\{([^{}])\}", r"\1", value)
    value = re.sub(r"\bno (?:real )?(solution|root|answer)s?\b", r"no \1", value)
    value = re.sub(r"\s+", " ", value)
    return re.sub(r" ?([^\w\s]) ?", r"\1", value).strip(" .")
