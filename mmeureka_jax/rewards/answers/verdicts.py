"""Yes and no, true and false, in English and Chinese, with what may follow them."""

from __future__ import annotations

import re

_WORDS = {
    "yes": "yes", "是": "yes", "是的": "yes",
    "no": "no", "否": "no", "不是": "no",
    "true": "true", "correct": "true", "对": "true", "正确": "true",
    "false": "false", "incorrect": "false", "not true": "false", "错": "false", "错误": "false",
}  # fmt: skip
_VERDICT = re.compile(
    rf"(?:(?:the |this )?(?:statement|claim|answer|it|this) is )?({'|'.join(_WORDS)})"
    r"((?:[,;.!:，；。！]|\s+-|\s+(?:it|they|he|she|this|that|the|because|since)\b).*)?",
    re.DOTALL | re.IGNORECASE,
)
_CONTRARY_TO_NO = re.compile(r"\b(?:yes|true|but|or|maybe|unless|sometimes|except)\b", re.IGNORECASE)
_CONTRARY_TO_YES = re.compile(r"\b(?:no|false|but|or|maybe|unless|sometimes|except)\b", re.IGNORECASE)


def verdict(text: str) -> str | None:
    """yes, no, true or false, where a text begins with it and continues without taking it back."""
    found = _VERDICT.fullmatch(text)
    if found is None or len(text) > 200:
        return None
    word = _WORDS[found[1].casefold()]
    contrary = _CONTRARY_TO_NO if word in ("no", "false") else _CONTRARY_TO_YES
    return None if contrary.search(found[2] or "") else word
