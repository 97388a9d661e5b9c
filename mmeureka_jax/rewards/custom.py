"""A reward rule from the user's own file: `reward.custom = "path/to/file.py:function"`.

    def function(response: str, answer: str, question: str, metadata: dict) -> float: ...

The file runs in the worker processes, never in the training process; its folder is importable from it. It must give the
same number for the same input: equal requests are scored once.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import numbers
import sys
from collections.abc import Callable
from pathlib import Path

from mmeureka_jax.errors import UserError

CustomRule = Callable[[str, str, str, dict], float]
SIGNATURE = "function(response: str, answer: str, question: str, metadata: dict) -> float"


def parse_spec(spec: str) -> tuple[Path, str]:
    """`path/to/file.py:function` -> (absolute path, function name). Raises UserError if it has another form or the file
    does not exist."""
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise UserError(f'reward.custom={spec!r} is not of the form "path/to/file.py:function"')
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise UserError(f"reward.custom={spec!r}: there is no file {file}")
    return file, name


def load_rule(spec: str) -> CustomRule:
    """Imports the file and returns its function. Raises UserError if the file does not import, or has no such function,
    or the function does not take the four arguments."""
    file, name = parse_spec(spec)
    sys.path.insert(0, str(file.parent))
    module_spec = importlib.util.spec_from_file_location(file.stem, file)
    assert module_spec is not None and module_spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[file.stem] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"reward.custom: {file} does not import: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"reward.custom: {file} has no function {name!r}; expected {SIGNATURE}")
    try:
        inspect.signature(function).bind("response", "answer", "question", {})
    except TypeError as error:
        raise UserError(f"reward.custom: {name} of {file}: {error}; expected {SIGNATURE}") from error
    return function


def apply_rule(rule: CustomRule, response: str, answer: str, question: str, metadata: dict) -> float:
    """The rule's number. Raises TypeError or ValueError if what it returns is no finite number."""
    value = rule(response, answer, question, metadata)
    if not isinstance(value, numbers.Real):
        raise TypeError(f"the custom rule returned {type(value).__name__}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"the custom rule returned {float(value)}")
    return float(value)
