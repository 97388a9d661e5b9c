"""The options of a We-Math problem, from either form of the release."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

LETTERS = "ABCDEFGH"

# A letter with a point at the beginning, after a semicolon or a space. Some texts name a point after a semicolon and
# are followed by the next (`get Shape ;C.; C. Shape A is ...`): such a letter has no text of its own.
_LABEL = re.compile(r"(?:^|[;；\s])\s*([A-H])\s*[.．](?!\s*[;；])")
# Texts that could be mistaken for another option: lists, whose order may be all that differs, what names a point or a
# figure by a letter, and numbers of things, whose kind may differ.
_AMBIGUOUS = re.compile(r"[,;，；、]|(?<![A-Za-z])[A-Z](?![A-Za-z])|\d.*[A-Za-z]{3,}\s+[A-Za-z]{3,}")
_MAX_WORDS = 8


def options_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The texts of the options by their letters: from `option`, or (VLMEvalKit's table) the columns A, B, ..."""
    if isinstance(row.get("option"), str):
        return _split(row["option"])
    return {letter: row[letter].strip() for letter in LETTERS if isinstance(row.get(letter), str) and row[letter]}


def gold_answer(letter: str, options: Mapping[str, str]) -> str:
    """The gold answer for the accuracy rule: `(B) 4 cm`, or the letter alone where the text would not decide."""
    text = options.get(letter, "")
    if not text or _AMBIGUOUS.search(text) or len(text.split()) > _MAX_WORDS:
        return letter
    return f"({letter}) {text}"


def _split(text: str) -> dict[str, str]:
    """The options of `A. 1;B. 2; C. 3`; letters come in their order, some left out."""
    labels: list[re.Match[str]] = []
    for match in _LABEL.finditer(text):
        last = labels[-1][1] if labels else ""
        following = chr(ord(last) + 1) if last else "A"
        rest = _LABEL.finditer(text, match.start())
        if match[1] == following or (match[1] > last and all(later[1] != following for later in rest)):
            labels.append(match)
    ends = [label.start() for label in labels[1:]] + [len(text)]
    return {label[1]: text[label.end() : end].strip(" \n;；") for label, end in zip(labels, ends, strict=True)}
