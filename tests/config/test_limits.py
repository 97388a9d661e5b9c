"""Limits are declared next to their keys, and hold wherever a key is."""

import dataclasses
import math
import typing
from collections.abc import Iterator
from typing import Annotated

import pytest

from mmeureka_jax.config.limits import (
    BELOW_ONE,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_OR_NULL,
    AtMost,
    Limit,
    broken_limits,
    limits_of_keys,
    out_of_range,
)
from mmeureka_jax.config.reading import field_types, section_of
from mmeureka_jax.config.schema import Config

# Numbers that may have any sign, or whose limits depend on other keys and are in config/checks.py and rl/checks.py.
WITHOUT_A_LIMIT = {
    "model.random.vision_full_attention_blocks",
    "data.prompt_buckets",
    "data.max_pixels",
    "data.difficulty_lower",
    "data.difficulty_upper",
    "reward.accuracy_weight",
    "reward.format_weight",
    "reward.repetition_weight",
    "reward.custom_weight",
    "reward.overlong_weight",
    "reward.process.weight",
    "rl.entropy_coefficient",
    "rl.filter.lower",
    "rl.filter.upper",
    "rl.filter.freeze_steps",
    "mesh.data",
    "mesh.fsdp",
    "mesh.context",
    "mesh.tensor",
}


def numbers_without_a_limit(cls: type, prefix: str = "") -> Iterator[str]:
    for name, annotation in field_types(cls).items():
        if section := section_of(annotation):
            yield from numbers_without_a_limit(section, f"{prefix}{name}.")
        elif {int, float} & set(typing.get_args(annotation) or [annotation]):
            if not any(isinstance(limit, Limit) for limit in limits_of_keys(cls)[name]):
                yield f"{prefix}{name}"


def test_each_number_has_its_limit_next_to_its_key():
    assert set(numbers_without_a_limit(Config)) == WITHOUT_A_LIMIT


@pytest.mark.parametrize(
    ("limit", "inside", "outside"),
    [
        (POSITIVE, [1, 1e-9], [0, -1]),
        (POSITIVE_OR_NULL, [1e-9], [0.0]),
        (NOT_NEGATIVE, [0, 7], [-1e-9]),
        (FRACTION, [0, 0.5, 1], [-0.1, 1.1]),
        (BELOW_ONE, [0, 0.999], [-0.1, 1]),
    ],
    ids=lambda value: value.words if isinstance(value, Limit) else None,
)
def test_the_ends_of_a_limit(limit, inside, outside):
    assert all(map(limit.holds, inside)) and not any(map(limit.holds, outside))


@dataclasses.dataclass(frozen=True)
class Inner:
    sizes: Annotated[tuple[int, ...], POSITIVE, AtMost(10)] = (1, 2)
    share: Annotated[float | None, FRACTION] = None
    free: float = 0.0
    long: Annotated[float, AtMost(5.0, or_infinite=True)] = 1.0


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner | None = None
    is_on: Annotated[bool, AtMost(0)] = True


def problems_of(**values) -> list[str]:
    outer = Outer(Inner(**values))
    return out_of_range(outer, "top.") + broken_limits(outer, "top.")


def test_null_flags_and_sections_that_are_not_there_have_no_number():
    assert problems_of() == [] and out_of_range(Outer()) == broken_limits(Outer()) == []


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"sizes": (3, 0)}, "top.inner.sizes must be positive; got 0"),
        ({"sizes": (3, 11)}, "top.inner.sizes must be at most 10; got 11"),
        ({"share": 1.5}, "top.inner.share must be between 0 and 1; got 1.5"),
        ({"free": -math.inf}, "top.inner.free must be finite; got -inf"),
        ({"free": -1e31}, "top.inner.free must be at least -1e+30; got -1e+31"),
        ({"long": 6.0}, "top.inner.long must be at most 5.0; got 6.0"),
        ({"long": -math.inf}, "top.inner.long must be finite; got -inf"),
    ],
)
def test_a_broken_limit_names_the_whole_key(values, problem):
    (line,) = problems_of(**values)
    assert line.startswith(problem)


def test_a_key_may_be_infinite_where_it_says_so():
    assert problems_of(long=math.inf) == []
