"""A reward rule from the user's own file: `reward.custom = "path/to/file.py:function"`.

    def function(response: str, answer: str, question: str, metadata: dict) -> float: ...

The file runs in the worker processes, never in the training process; its folder is importable from it. It must give the
same number for the same input: equal requests are scored once.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

from mmeureka_jax.user_code import load_function

CustomRule = Callable[[str, str, str, dict], float]
KEY = "reward.custom"
SIGNATURE = "function(response: str, answer: str, question: str, metadata: dict) -> float"


def load_rule(spec: str) -> CustomRule:
    """Imports the file and returns its function. Raises UserError if the file does not import, or has no such function,
    or the function does not take the four arguments."""
    return load_function(KEY, spec, SIGNATURE)


def apply_rule(rule: CustomRule, response: str, answer: str, question: str, metadata: dict) -> float:
    """The rule's number. Raises TypeError or ValueError if what it returns is no finite number."""
    value = rule(response, answer, question, metadata)
    if not isinstance(value, numbers.Real):
        raise TypeError(f"the custom rule returned {type(value).__name__}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"the custom rule returned {float(value)}")
    return float(value)
