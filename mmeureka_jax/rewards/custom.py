"""A reward rule from the user's own file: `reward.custom = "path/to/file.py:function"`.

    def function(response: str, answer: str, question: str, metadata: dict) -> float: ...

The file runs in the worker processes, never in the training process; its folder is importable from it. It must give the
same number for the same input: equal requests are scored once. A judge model of the user's own is run in the same way.
"""

from __future__ import annotations

import decimal
import math
import numbers
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmeureka_jax.config.schema import AccuracyRule
from mmeureka_jax.user_code import load_function, parse_spec, reason

CustomRule = Callable[..., Any]
LARGEST = 1e15  # the update is made in float32, where the square of more overflows


@dataclass(frozen=True)
class Purpose:
    """What a function of the user's own is for.

    Attributes:
        key: what names the function, for messages.
        signature: how it is called, for messages too.
        says_yes_or_no: it returns true or false instead of any number.
    """

    key: str
    signature: str
    says_yes_or_no: bool = False

    @property
    def arguments(self) -> list[str]:
        """The names of what it is called with, in order."""
        named = self.signature.partition("(")[2].partition(")")[0].split(", ")
        return [one.partition(":")[0] for one in named]


REWARD = Purpose("reward.custom", "function(response: str, answer: str, question: str, metadata: dict) -> float")
JUDGE = Purpose("--judge-model", "function(question: str, answer: str, response: str) -> bool", says_yes_or_no=True)
KEY = REWARD.key


class RuleFailed(Exception):
    """The rule gave no usable number; the message is the reason, with the line in the user's file."""


def load_rule(spec: str, import_limit: float, purpose: Purpose = REWARD) -> CustomRule:
    """Imports the file and returns its function.

    Raises:
        UserError: the file does not import, has no such function, or the function does not take the arguments.
    """
    return load_function(purpose.key, spec, purpose.signature, import_limit=import_limit)


def quoted(answer: str, accuracy: AccuracyRule) -> str:
    """A response that gives an answer in the form that a run asks for, on which a rule can be tried."""
    if accuracy == "steps":
        return f"<step>The answer is {answer}.</step>\n<answer>{answer}</answer>"
    stated = f"\\boxed{{{answer}}}" if accuracy in ("boxed", "upstream_boxed") else answer
    return f"<think>The answer is {answer}.</think><answer>{stated}</answer>"


def apply_rule(spec: str, rule: CustomRule, *arguments: Any, purpose: Purpose = REWARD) -> float:
    """The rule's number; of one that says yes or no, 1 or 0.

    Raises:
        RuleFailed: it raises something, `sys.exit` included, or does not return a finite number, or yes or no.
    """
    try:
        said = rule(*arguments)
        return yes_or_no(said) if purpose.says_yes_or_no else finite_number(said)
    except BaseException as error:
        code = getattr(rule, "__code__", None)
        place = f"{Path(code.co_filename).name}:{code.co_firstlineno}" if code else ""
        failure = reason(error, parse_spec(purpose.key, spec)[0], place)
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


def yes_or_no(value: Any) -> float:
    """1 or 0 from true or false, of Python, NumPy or JAX, or from these numbers.

    Raises:
        TypeError, ValueError: anything else.
    """
    shown = reprlib.repr(value) if value is None else f"{type(value).__name__} {reprlib.repr(value)}"
    try:
        number = finite_number(value)
    except (TypeError, ValueError):
        number = math.nan
    if number not in (0.0, 1.0):
        raise TypeError(f"the function returned {shown}, expected True or False")
    return number
