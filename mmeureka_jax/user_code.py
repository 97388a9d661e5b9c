"""Functions of the user's own files, which a config names as "path/to/file.py:function"."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmeureka_jax.errors import UserError


def parse_spec(key: str, spec: str) -> tuple[Path, str]:
    """`path/to/file.py:function` -> (absolute path, function name).

    Raises:
        UserError: it has another form, or the file does not exist.
    """
    path, _, name = spec.rpartition(":")
    if not path.endswith(".py") or not name.isidentifier():
        raise UserError(f'{key}={spec!r} is not of the form "path/to/file.py:function"')
    file = Path(path).expanduser().absolute()
    if not file.is_file():
        raise UserError(f"{key}={spec!r}: there is no file {file}")
    return file, name


@functools.cache
def load_function(key: str, spec: str, signature: str, *, with_settings: bool = False) -> Callable[..., Any]:
    """Imports the file and returns its function; its folder becomes importable.

    Args:
        key: the config key, for messages.
        signature: how the function is called, such as `function(rewards) -> advantages`: as many positional arguments
            as it names.

    Raises:
        UserError: the file does not import, has no such function, or the function does not take the arguments.
    """
    file, name = parse_spec(key, spec)
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # at the end: a random.py there is not to be everybody's
    module_name = f"_user_{file.stem}_{zlib.crc32(str(file).encode()):08x}"
    module_spec = importlib.util.spec_from_file_location(module_name, file)
    assert module_spec is not None and module_spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise UserError(f"{key}: {file} does not import: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UserError(f"{key}: {file} has no function {name!r}; expected {signature}")
    arguments = signature.partition("(")[2].rpartition(") ->")[0].split(", ")
    keywords = {
        parameter.name: None
        for parameter in inspect.signature(function).parameters.values()
        if with_settings and parameter.kind is parameter.KEYWORD_ONLY
    }
    try:
        inspect.signature(function).bind(*arguments, **keywords)
    except TypeError as error:
        raise UserError(f"{key}: {name} of {file}: {error}; expected {signature}") from error
    return function
