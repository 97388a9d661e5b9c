"""Reading the keys of a checkpoint's JSON files: what is missing or malformed is named by file and key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmeureka_jax.errors import UserError

# Sizes that nothing is made of before the stored tensors have confirmed them, and those that something is.
LARGEST = 2**31 - 1
MOST_LAYERS = 1000
LARGEST_SIDE = 2**12  # pixels of a window, a tile or a patch


@dataclass(frozen=True)
class Keys:
    """A section of a config file whose getters name the file and the key when a value is missing or malformed."""

    values: Mapping[str, Any]
    source: str
    prefix: str

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def integer(self, *names: str, default: int | None = None, at_most: int = LARGEST) -> int:
        """The first of `names` that is given; without any, `default` (None: an error)."""
        return int(self._number(names, default, int, "an integer", at_most))

    def real(self, *names: str, default: float | None = None) -> float:
        return float(self._number(names, default, (int, float), "a number", 1e30))

    def section(self, key: str) -> Mapping[str, Any]:
        """What is nested under a key; empty where it is not there."""
        value = first_given(self.values.get(key), {})
        if not isinstance(value, Mapping):
            raise UserError(f"{self.source}: key '{self.prefix}{key}' is {value!r:.100}, expected an object")
        return value

    def _number(self, names: tuple[str, ...], default: Any, kind: Any, expected: str, at_most: float) -> Any:
        value = first_given(*(self.values.get(name) for name in names), default)
        if value is None:
            raise UserError(f"{self.source}: key '{self.prefix}{names[0]}' is missing")
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{self.source}: key '{self.prefix}{names[0]}' is {value!r:.100}, expected {expected}")
        if not abs(value) <= at_most:  # NaN is not
            key = f"{self.prefix}{names[0]}"
            raise UserError(f"{self.source}: key '{key}' is {value!r:.100}, expected {expected} of at most {at_most:g}")
        return value

    def integers(self, key: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        value = first_given(self.get(key), default)
        if not isinstance(value, (list, tuple)) or not all(type(x) is int and abs(x) <= LARGEST for x in value):
            raise UserError(f"{self.source}: key '{self.prefix}{key}' is {value!r:.100}, expected a list of integers")
        return tuple(value)

    def require(self, key: str, *allowed: Any, default: Any = None) -> None:
        """
        Args:
            default: the value of a key that is missing; null, and None here, are allowed values.

        Raises:
            UserError: the value is none of `allowed`.
        """
        value = first_given(self.values.get(key, default), allowed[0])
        if value not in allowed:
            only = " or ".join(repr(choice) for choice in allowed)
            raise UserError(f"{self.source}: {self.prefix}{key} is {value!r:.100}; the policy has only {only}")


def first_given(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
