"""The settings of an algorithm: the keyword-only arguments of its function, which are config keys of the same names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from mmeureka_jax.errors import UserError

NO_DEFAULT = inspect.Parameter.empty


def settings_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The settings of a function and their defaults, `NO_DEFAULT` where it has none."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}


def chosen_settings(function: Callable[..., Any], section: Any) -> dict[str, Any]:
    """What a section of the config says for the settings of a function; those that are null are left to the function.

    Raises:
        UserError: the function needs a setting that the config does not have, or has as null.
    """
    chosen = {}
    for name, default in settings_of(function).items():
        value = getattr(section, name, None)
        if value is not None:
            chosen[name] = value
        elif default is NO_DEFAULT:
            problem = "is null; set it" if hasattr(section, name) else "is no key of rl"
            raise UserError(
                f"{function.__qualname__} needs a setting {name!r}: rl.{name} {problem}, or give the argument a default"
            )
    return chosen
