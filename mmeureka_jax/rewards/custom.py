"""A reward rule from the user's own file: `reward.custom = "path/to/file.py:function"`.

    def function(response: str, answer: str, question: str, metadata: dict) -> float: ...

The file runs in the worker processes, never in the training process; its folder is importable from it. It must give the
same number for the same input: equal requests are scored once.
"""

from __future__ import annotations

import decimal
import math
import numbers
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmeureka_jax.config.schema import AccuracyRule
from mmeureka_jax.user_code import load_function, parse_spec, reason

CustomRule = Callable[[str, str, str, dict], Any]
KEY = "reward.custom"
SIGNATURE = "function(response: str, answer: str, question: str, metadata: dict) -> float"
LARGEST = 1e15  # the update is made in float32, where the square of more overflows


class RuleFailed(Exception):
    """The rule gave no usable number; the message is the reason, with the line in the user's file."""


def load_rule(spec: str, import_limit: float) -> CustomRule:
    """Imports the file and returns its function.

    Raises:
        UserError: the file does not import, has no such function, or the function does not take the four arguments.
    """
    return load_function(KEY, spec, SIGNATURE, import_limit=import_limit)


def quoted(answer: str, accuracy: AccuracyRule) -> str:
    """A response that gives an answer in the form that a run asks for, on which a rule can be tried."""
    stated = f"\\boxed{{{answer}}}" if accuracy in ("boxed", "upstream_boxed") else answer
    return f"<think>The answer is {answer}.</think><answer>{stated}</answer>"


def apply_rule(spec: str, rule: CustomRule, response: str, answer: str, question: str, metadata: dict) -> float:
    """The rule's number.

    Raises:
        RuleFailed: it raises something, `sys.exit` included, or does not return a finite number.
    """
    try:
        return finite_number(rule(response, answer, question, metadata))
    except BaseException as error:
        code = getattr(rule, "__code__", None)
        place = f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else ""
        failure = reason(error, parse_spec(KEY, spec)[0], place)
    raise RuleFailed(failure)


def finite_number(value: Any) -> float:
    """A finite number from one of Python, NumPy or JAX, or from an array of one.

    Raises:
        TypeError, ValueError: anything else.
    """
    shown = reprlib.repr(value) if value is None else f"{type(value).__name__} {reprlib.repr(value)}"
    refusal = f"the rule returned {shown}, expected one finite number"
    if callable(getattr(value, "item", None)) and hasattr(value, "shape"):  # an array, or a scalar of its library
        try:
            value = value.item()
        except Exception:
            raise TypeError(f"the rule returned an array of shape {tuple(value.shape)}, expected one number") from None
    if not isinstance(value, numbers.Real | decimal.Decimal):
        raise TypeError(refusal)
    try:
        number = float(value)
    except (OverflowError, ValueError):
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(refusal)
    if abs(number) > LARGEST:
        raise ValueError(f"the rule returned {number:g}, expected a number between {-LARGEST:g} and {LARGEST:g}")
    return number
