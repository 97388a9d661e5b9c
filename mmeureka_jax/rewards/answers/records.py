"""What a reading of an answer is made of: small records, nothing evaluated but the numbers of a region."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from sympy import Set

from mmeureka_jax.rewards.answers.units import Unit


@dataclass(frozen=True)
class Expression:
    """A number or formula. scale: what it is multiplied by (`7 thousand`, `1 half`, `minus 7`)."""

    text: str
    scale: Fraction = Fraction(1)


@dataclass(frozen=True)
class Sequence:
    """Items in brackets, in order: a point, a vector, an interval."""

    left: str
    items: tuple[tuple[Part, ...], ...]
    right: str


@dataclass(frozen=True)
class Collection:
    """Items in braces."""

    items: tuple[tuple[Part, ...], ...]


@dataclass(frozen=True)
class Ratio:
    items: tuple[str, ...]
    is_time: bool = False  # 2:30 may be a time of day: as a gold answer it accepts only itself


@dataclass(frozen=True)
class Compound:
    """Amounts of several units that add up: 3 h 20 min, 22°30'."""

    amounts: tuple[tuple[str, Unit], ...]


@dataclass(frozen=True)
class Region:
    """The numbers that a condition on one variable leaves, or an interval without a variable."""

    variable: str
    numbers: Set


@dataclass(frozen=True)
class Relation:
    """A relation between two sides that names no value: an equation of a line, parallel segments."""

    sign: str
    left: str
    right: str


Body: TypeAlias = Expression | Sequence | Collection | Ratio | Compound | Region | Relation


@dataclass(frozen=True)
class Part:
    """One thing that an answer states.

    text: all of it, as words are compared. body: None where it is words. name: x of `x = 5`. counted: `apples` of
    `5 apples`. equation: `x = 5` itself, which a name and a body come from.
    """

    text: str
    body: Body | None = None
    name: str = ""
    unit: Unit | None = None
    counted: tuple[str, ...] = ()
    equation: Relation | None = None


@dataclass(frozen=True)
class Answer:
    """Parts, each with all its readings."""

    parts: tuple[tuple[Part, ...], ...]
    ordered: bool = False
    alternatives: bool = False  # joined only by `or`
