"""What a number of the config may be, declared next to its key: `steps: Annotated[int, POSITIVE] = 100`."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any

from mmeureka_jax.config.yaml_text import describe

LARGEST = 2**31 - 1  # devices count in 32 bits
LARGEST_REAL = 1e30  # float32 ends a little above


@dataclasses.dataclass(frozen=True)
class Limit:
    """What a key's number must be. A key that is null has no number."""

    words: str  # complete "must be ..."
    holds: Callable[[float], bool]


@dataclasses.dataclass(frozen=True)
class AtMost:
    """The largest number that a key may be: more is a slip that would take all memory, or start processes without end.

    Keys without one are limited to `LARGEST`, or to `LARGEST_REAL` if they are floats.
    """

    number: float
    or_infinite: bool = False


POSITIVE = Limit("positive", lambda x: x > 0)
POSITIVE_OR_NULL = Limit("positive or null", lambda x: x > 0)
NOT_NEGATIVE = Limit("0 or more", lambda x: x >= 0)
FRACTION = Limit("between 0 and 1", lambda x: 0 <= x <= 1)
BELOW_ONE = Limit("0 or more and below 1", lambda x: 0 <= x < 1)
PROCESSES = AtMost(1024)
COUNT = AtMost(2**20)  # prompts, responses, tokens or devices
PIXELS = AtMost(2**28)


def limits_of_keys(cls: type) -> dict[str, tuple[Any, ...]]:
    """The limits that each field of a section declares."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: getattr(hints[field.name], "__metadata__", ()) for field in dataclasses.fields(cls)}


def _numbers(section: Any, prefix: str) -> Iterator[tuple[str, tuple[Any, ...], float]]:
    """The key, its limits and each number of it, of all that is below a section."""
    for name, limits in limits_of_keys(type(section)).items():
        value = getattr(section, name)
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{prefix}{name}.")
            continue
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not isinstance(number, bool):
                yield f"{prefix}{name}", limits, number


def out_of_range(section: Any, prefix: str = "") -> list[str]:
    """A problem for every number that is not finite, or larger than its key may be.

    Args:
        section: the tree, or a section of it.
        prefix: the key of the section and a dot.
    """
    problems: list[str] = []
    for key, limits, number in _numbers(section, prefix):
        default = AtMost(LARGEST if isinstance(number, int) else LARGEST_REAL)
        most = next((limit for limit in limits if isinstance(limit, AtMost)), default)
        if isinstance(number, float) and not math.isfinite(number):
            if not (most.or_infinite and number == math.inf):
                problems.append(f"{key} must be finite; got {number}")
        elif abs(number) > most.number:
            side = f"at most {most.number:,}" if number > 0 else f"at least -{most.number:,}"
            problems.append(f"{key} must be {side}; got {describe(number)}")
    return problems


def broken_limits(section: Any, prefix: str = "") -> list[str]:
    """A problem for every number that is not what its key declares; arguments as `out_of_range`."""
    return [
        f"{key} must be {limit.words}; got {number}"
        for key, limits, number in _numbers(section, prefix)
        for limit in limits
        if isinstance(limit, Limit) and not limit.holds(number)
    ]
