"""MathVista's own rule as far as it needs no model: quick extraction, normalisation, equality of strings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmeureka_jax.evaluation.cells import nested

_OPENING = 'The answer is "'
_CLOSING = '".'
_LETTER = re.compile(r"\(([a-zA-Z])\)")


def judge(response: str, row: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether a response is right, and the extracted text; None where the rule extracts nothing.

    Where nothing is extracted the authors ask a model. Without one the answer is wrong, as with their option
    `--ignore_empty_extractions`: without that option an empty text would count as the shortest choice.

    Source: `extract_answer` with `--quick_extract` and `normalize_extracted_answer`, github.com/lupantech/MathVista,
    evaluation/extract_answer.py and evaluation/calculate_score.py.
    """
    extracted = extract(response, row)
    if extracted is None or not extracted.strip():
        return False, None
    return normalised(extracted, row) == row["answer"], extracted


def extract(response: str, row: Mapping[str, Any]) -> str | None:
    """The answer that the rule finds without a model: the whole response where it is a choice or a number of the type
    asked for, else what stands in quotes after `The answer is`, up to the last `".` of that line."""
    if row["question_type"] == "multi_choice" and response in options_of(row):
        return response
    number = {"integer": int, "float": float}.get(row["answer_type"])
    if number is not None:
        try:
            return str(number(response))
        except ValueError:
            pass
    for line in response.split("\n"):
        start = line.find(_OPENING)
        end = line.rfind(_CLOSING)
        if 0 <= start and start + len(_OPENING) <= end:
            return line[start + len(_OPENING) : end]
    return None


def normalised(extracted: str, row: Mapping[str, Any]) -> str | None:
    """An extracted answer in the form of the gold answers; None if it is not of the type asked for."""
    if row["question_type"] == "multi_choice":
        return _choice(extracted.strip(), options_of(row))
    try:
        match row["answer_type"]:
            case "integer":
                return str(int(float(extracted)))
            case "float":
                precision = precision_of(row)
                return None if precision is None else str(round(float(extracted), precision))
            case _:
                return extracted
    except (ValueError, OverflowError):
        return None


def options_of(row: Mapping[str, Any]) -> list[str]:
    """The choices of a row; none where it asks for a value."""
    return list(nested(row["choices"]) or ())


def precision_of(row: Mapping[str, Any]) -> int | None:
    """Decimal places; Parquet files hold them as floating-point numbers, and tables of text as text."""
    precision = nested(row["precision"]) if isinstance(row["precision"], str) else row["precision"]
    return None if precision is None or precision != precision else int(precision)


def _choice(extracted: str, options: Sequence[str]) -> str:
    """The choice that is meant: by a letter in parentheses anywhere, by a letter alone, or the most similar text."""
    if letter := _LETTER.search(extracted):
        extracted = letter[1].upper()
    letters = [chr(ord("A") + i) for i in range(len(options))]
    if extracted in letters:
        return options[letters.index(extracted)]
    return min(options, key=lambda option: _edit_distance(extracted, option))


def _edit_distance(one: str, other: str) -> int:
    """How many characters must be inserted, deleted or replaced (Levenshtein)."""
    distances = list(range(len(other) + 1))
    for i, character in enumerate(one, 1):
        diagonal = distances[0]
        distances[0] = i
        for j, against in enumerate(other, 1):
            replaced = diagonal + (character != against)
            diagonal = distances[j]
            distances[j] = min(replaced, diagonal + 1, distances[j - 1] + 1)
    return distances[-1]
