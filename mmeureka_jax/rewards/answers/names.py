"""Words and names: what two of them are compared by, and which names may name one thing."""

from __future__ import annotations

import re
from functools import lru_cache

from mmeureka_jax.rewards.answers import notation

# Commands, runs of at most two letters, and no letters; possessive, since a command must not be tried in pieces.
_FORMULA = re.compile(
    r"(?=.*[\d+\-*/^=\\])(?:\\[a-zA-Z]++|[A-Za-z]{1,2}+(?![A-Za-z])|\\(?![A-Za-z])|[^A-Za-z\\])*+", re.DOTALL
)
_ELEMENTS = re.compile(
    r"\d*(?:(?:He|Li|Be|Ne|Na|Mg|Al|Si|Cl|Ar|Ca|Mn|Fe|Cu|Zn|Ag|Ba|Pb|Hg|Br|H|B|C|N|O|F|P|S|K|I)\d*|[()]\d*)+"
)
_DIRECTIONS = frozenset("NESW")
_ACRONYMS = frozenset(("HL",))
_SHORT_WORDS = frozenset("on no am as is it at in an do go so to up us we he me my be by if of or ox pa".split())
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
    """Whether two names of points are the same segment, angle or triangle. Letters without a sign may be read from the
    other end if they are two, or if the gold answer has them in the order of the alphabet; else they are a sequence."""
    match = re.fullmatch(r"(\\(?:angle|triangle)|)\s*([A-Za-z]{2,8})", gold.strip())
    other = re.fullmatch(r"(\\(?:angle|triangle)|)\s*([A-Za-z]{2,8})", answer.strip())
    if match is None or other is None or match[1] != other[1]:
        return False
    a = match[2]
    b = other[2]
    if match[1] == r"\triangle":
        return sorted(a) == sorted(b)
    if match[1] == r"\angle":
        return a in (b, b[::-1])
    if a == b or a != b[::-1] or len(set(a)) < len(a) or a in _ACRONYMS or set(a) <= _DIRECTIONS:
        return a == b
    return not {a, b} & _SHORT_WORDS if len(a) == 2 else list(a) == sorted(a)


def is_formula_of_elements(text: str) -> bool:
    """Whether a text is a chemical formula, which is no product of its letters: CO2, NaOH."""
    plain = re.sub(r"[_{}]", "", text)
    found = _ELEMENTS.fullmatch(plain)
    if found is None:
        return False
    return re.search(r"[A-Za-z]\d", plain) is not None or (len(plain) > 2 and re.search("[a-z]", plain) is not None)


def is_word(text: str) -> bool:
    """Whether letters are a name or word. Small and capital ones together are a product: BLv."""
    return len(text) > 1 and text.isalpha() and (text.isupper() or text.islower() or text.istitle())


def _case_folded(text: str) -> str:
    """In small letters, except for formulas (2ab is not 2AB) and names that a capital tells apart (Mg and mg)."""
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
    value = re.sub("^一个|^互相", "", value)
    value = re.sub(r"[\"'`*]", "", value) if not re.search(r"\d'|[a-z]'", value) else value
    value = re.sub(r"^(?:the|an?) (?=\w{3})", "", notation.trim(value))
    value = re.sub(r"(?<![\d:])0(?=\d:\d\d)", "", value)  # 03:45 is 3:45
    value = re.sub(r"_\s*(?:\{(\w+)\}|(\w))", r"\1\2", value)  # H_2O is H2O
    value = re.sub(r"\\(?:vec|overline)\s*\{?(\w+)\}?", r"\\vec\1", value) if r"\vec" in value else value
    value = re.sub(r"\{([^{}])\}", r"\1", value)
    value = "does not exist" if value in ("dne", "limit does not exist") else value
    value = re.sub(r"\bno (?:real )?(solution|root|answer)s?\b", r"no \1", value)
    value = re.sub(r"\s+", " ", value)
    value = re.sub(r"(?<=[A-Za-z\d)])\^?\{?(\d*[-+])\}?$", r"^\1", value)  # Cu2+ is Cu^{2+}
    value = re.sub(r" ?([^\w\s]) ?", r"\1", value)
    return value.strip() if value.endswith("..") else value.strip(" .")
