"""MathVerse's own rule without a model: `--quick_match`, equality of strings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def judge(response: str, row: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether a response is right, and the text that was compared: all of it, without blanks around it.

    The authors extract answers with a model only. Their README calls that step optional for models whose whole response
    is the answer; so is the whole response here.

    Source: `match_answer`, github.com/ZrrSkywalker/MathVerse, evaluation/score_answer_s2.py.
    """
    text = response.strip()
    return text == row["answer"], text or None
