"""We-Math's own rule: the letter after the last "Answer"."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_LETTERS = "ABCDEFGH"
_DROPPED = re.compile(r"[><:.]")


def judge(response: str, row: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether a response is right, and the letter that was compared; None where there is none.

    Everything after the last "Answer" (the whole response where the word does not occur) without `>`, `<`, `:` and `.`
    must begin with a letter from A to H.

    Source: github.com/We-Math/We-Math (commit a57a0e8), evaluation/four_dimensional_metrics.py and accuracy.py.
    """
    text = _DROPPED.sub("", response.rpartition("Answer")[2].strip()).strip()
    letter = text[:1]
    if not letter or letter not in _LETTERS:
        return False, None
    return letter == row["answer"], letter
