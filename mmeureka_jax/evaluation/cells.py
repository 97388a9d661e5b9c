"""Cells of released rows: nested values as files without types hold them, and options as gold answers."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

LONGEST_OPTION = 12  # words; the accuracy rule compares no longer text (its MAX_WORDS)

# Texts that the accuracy rule would take for another option's, or another's for them: a letter (`(b)`), one that is
# named as options are (`Figure A`), a range (`0.2 - 0.4`, for the rule a difference), a sentence (it reads a value in
# it).
_NAMED = r"(?:options?|choices?|answers?|statements?|figures?|graphs?|diagrams?|pictures?|images?)"
_LETTER_ALONE = re.compile(rf"(?:(?:[A-Za-z ]+\s)?(?i:{_NAMED})\s)?\(?[A-Z]\)?|\(?[a-j]\)?")
_RANGE = re.compile(r"\d+(?:\.\d+)?\s*%?\s*[-–—]\s*\d+(?:\.\d+)?\s*%?")
_SENTENCE = re.compile(r".*[A-Za-z]{2}.*\s.*[.?!]", re.DOTALL)
_NOTHING = ("", "None", "null", "nan")


def nested(cell: Any) -> Any:
    """A list, an object or null; tables of text, such as TSV, hold them as JSON or as Python writes them.

    Raises:
        ValueError: a text that is neither.
    """
    if not isinstance(cell, str):
        return cell
    if cell.strip() in _NOTHING:
        return None
    try:
        return json.loads(cell)
    except ValueError:
        try:
            return ast.literal_eval(cell)
        except (SyntaxError, ValueError):
            raise ValueError(f"expected a list or an object, got {cell[:80]!r}") from None


def gold_option(letter: str, text: str) -> str:
    """An option as the accuracy rule takes it: `(B) 4 cm`, which `B`, `(B)` and `4 cm` equal; or the letter alone where
    the rule could not tell the text from others', or does not compare it."""
    text = text.strip()
    is_long = len(re.findall(r"[A-Za-z]{3,}", text)) > LONGEST_OPTION
    if not text or is_long or any(form.fullmatch(text) for form in (_LETTER_ALONE, _RANGE, _SENTENCE)):
        return letter
    return f"({letter}) {text}"
