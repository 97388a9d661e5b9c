r"""Regions of numbers: conditions on one variable, and intervals.

`x > 2`, `2 \leq x < 5`, `x < 2 or x > 3`, `k < 1, k \neq 0`, `x \in [1, 3]`, `\{x | x > 2\}`,
`(1, 2) \cup [3, 4]`.
"""

from __future__ import annotations

import re

from sympy import Complement, EmptySet, Expr, FiniteSet, Intersection, Interval, S, Set, Union, oo

from mmeureka_jax.rewards.answers import mathematics, notation
from mmeureka_jax.rewards.answers.parts import ORDER, SIGN, split_top
from mmeureka_jax.rewards.answers.records import Part, Region

_FLIPPED = {"<": ">", ">": "<", r"\leq": r"\geq", r"\geq": r"\leq", r"\neq": r"\neq"}


def read_region(text: str) -> Part | None:
    """The region that a whole answer states, or None."""
    if not re.search(r"[<>|\[(]|\\(?:leq|geq|neq|cup|in|mathbb)(?![a-zA-Z])", text) or len(text) > 300:
        return None
    region = _region(text.strip())
    if region is None or not region.numbers.args and region.numbers is not S.Reals and region.numbers is not EmptySet:
        return None
    return Part(notation.trim(text), region)


def _region(text: str) -> Region | None:
    if builder := re.fullmatch(
        r"\\?\{\s*([a-zA-Z])\s*(?:\\in\s*\\mathbb\{?R\}?\s*)?[|:]\s*(.+?)\\?\}", text, re.DOTALL
    ):
        region = _region(builder[2].strip())
        return Region("", region.numbers) if region is not None and region.variable in ("", builder[1]) else None
    alternatives, joints = split_top(text, re.compile(r"(?<![a-zA-Z\\])or(?![a-zA-Z])|\\vee(?![a-zA-Z])|或"))
    if joints:
        return _joined(alternatives, Union) if all(map(SIGN.search, alternatives)) else None
    conditions, joints = split_top(text, re.compile(r",|;|(?<![a-zA-Z\\])and(?![a-zA-Z])|\\wedge(?![a-zA-Z])|且"))
    if joints and any(SIGN.search(condition) for condition in conditions):
        both = _joined(conditions, Intersection)
        if both is not None and both.numbers == S.EmptySet and set(joints) <= {",", ";"}:
            return _joined(conditions, Union)
        return both
    sides, signs = split_top(text, SIGN)
    if signs == [r"\in"]:
        region = _region(sides[1])
        return (
            Region(sides[0], region.numbers) if region is not None and re.fullmatch(r"\\?[a-zA-Z]+", sides[0]) else None
        )
    if signs:
        return _inequality(sides, signs)
    return _interval_union(text)


def _joined(texts: list[str], join: type[Set]) -> Region | None:
    regions = [_region(text) for text in texts if text]
    if not regions or any(region is None for region in regions):
        return None
    variables = {region.variable for region in regions if region is not None and region.variable}
    if len(variables) > 1:
        return None
    return Region(next(iter(variables), ""), join(*(region.numbers for region in regions if region is not None)))


def _inequality(sides: list[str], signs: list[str]) -> Region | None:
    """`2 < x`, `2 <= x < 5`: only the variable on one side, numbers on the others."""
    places = [
        i
        for i, side in enumerate(sides)
        if re.fullmatch(r"\\?[a-zA-Z]+(?:_\{?\w+\}?)?", side) and not mathematics.is_number(mathematics.parse(side))
    ]
    if len(places) != 1 or len(sides) > 3 or any(sign not in ORDER for sign in signs):
        return None
    place = places[0]
    if len(sides) == 3 and place != 1:
        return None
    numbers: list[Set] = []
    for i, sign in enumerate(signs):
        bound = _bound(sides[i if i < place else i + 1])
        if bound is None:
            return None
        numbers.append(_half_line(_FLIPPED[sign] if i < place else sign, bound))
    if len(sides) == 3 and ({signs[0], signs[1]} - {"<", r"\leq"} and {signs[0], signs[1]} - {">", r"\geq"}):
        return None
    return Region(sides[place], Intersection(*numbers))


def _bound(text: str) -> Expr | None:
    """A real number or an infinity."""
    bound = mathematics.parse_expression(text.rstrip(". "))
    return bound if bound is not None and not bound.free_symbols and bound.is_extended_real else None


def _half_line(sign: str, bound: Expr) -> Set:
    if sign == r"\neq":
        return Complement(S.Reals, FiniteSet(bound))
    if sign in ("<", r"\leq"):
        return Interval(-oo, bound, True, sign == "<")
    return Interval(bound, oo, sign == ">", True)


def _interval_union(text: str) -> Region | None:
    whole, without = split_top(text, re.compile(r"\\setminus(?![a-zA-Z])"))
    if len(without) == 1:
        return _without(*whole)
    pieces, _ = split_top(text, re.compile(r"\\cup(?![a-zA-Z])"))
    numbers: list[Set] = []
    for piece in pieces:
        if piece in (r"\mathbb{R}", "R"):
            numbers.append(S.Reals)
        elif collection := re.fullmatch(r"\\\{(.*)\\\}", piece):
            values = [mathematics.parse(item) for item in collection[1].split(",")]
            if len(pieces) == 1 or not all(mathematics.is_number(value) for value in values):
                return None
            numbers.append(FiniteSet(*values))
        elif interval := re.fullmatch(r"([(\[])(.+)([)\]])", piece):
            bounds, commas = split_top(interval[2], re.compile(","))
            ends = [end for bound in bounds if (end := _bound(bound)) is not None]
            if len(commas) != 1 or len(ends) != 2 or not mathematics.is_below(*ends):
                return None
            numbers.append(Interval(ends[0], ends[1], interval[1] == "(", interval[3] == ")"))
        else:
            return None
    return Region("", Union(*numbers))


def _without(whole: str, left_out: str) -> Region | None:
    r"""`\mathbb{R} \setminus \{2\}`."""
    region = _interval_union(whole)
    values = [mathematics.parse(item) for item in re.sub(r"[\\{}]", "", left_out).split(",")]
    if region is None or not all(mathematics.is_number(value) for value in values):
        return None
    return Region("", Complement(region.numbers, FiniteSet(*values)))
