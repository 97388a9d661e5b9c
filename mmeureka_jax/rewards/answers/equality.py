"""When two readings are the same answer.

text        equal up to case, articles, quotes and spacing (`trapezoid.`, `>`, `(1,1)→(2,3)`)
names       `x = 5` is `5` and is not `y = 5`; names of points may be read from their other end
units       may be missing on one side; two different ones do not agree. Percent is a factor of 1/100, and only the
            sign of a gold answer may be missing (`7` answers `7%`, `0.5` does not answer `0.5%`)
bodies      by mathematics; a sequence is no set, an interval is the inequality that says the same
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from fractions import Fraction
from typing import Any

from sympy import Expr, Interval, MatrixBase, Rational, Set, fraction, together
from sympy.sets import Union

from mmeureka_jax.rewards.answers import mathematics, wording
from mmeureka_jax.rewards.answers.names import (
    is_formula_of_elements,
    is_word,
    same_name,
    same_variable,
    text_key,
    variable,
)
from mmeureka_jax.rewards.answers.numbers import parse_number, precision
from mmeureka_jax.rewards.answers.records import (
    Answer,
    Collection,
    Compound,
    Expression,
    Part,
    Ratio,
    Region,
    Relation,
    Sequence,
)
from mmeureka_jax.rewards.answers.regions import read_region
from mmeureka_jax.rewards.answers.units import ARC_MINUTE, ARC_SECOND, DEGREE, Unit

Readings = tuple[Part, ...]
_SYMMETRIC = frozenset(("=", r"\parallel", r"\perp", r"\cong", r"\sim", r"\neq", r"\equiv"))
_DOMAIN = re.compile(r"[kmn]\s?\\in \\mathbb\{[ZN]\}(?:[_^]?\{?[+*]\}?)?")
_PARTS_OF_A_DEGREE = {DEGREE: 1, ARC_MINUTE: 60, ARC_SECOND: 3600}


def same_answer(gold: Answer, answer: Answer) -> bool:
    """Whether an answer states what the gold answer does."""
    gold = _without_domain(gold)
    answer = _without_domain(answer)
    if len(gold.parts) == 1 and len(answer.parts) > 1:
        answer = _without_steps(answer)
    if len(gold.parts) == len(answer.parts):
        if gold.alternatives != answer.alternatives and (_states_conditions(gold) or _states_conditions(answer)):
            return False
        if len(gold.parts) == 1:
            return same_part(gold.parts[0], answer.parts[0])
        ordered = gold.ordered or _names_say_order(gold, answer)
        return _same_items(gold.parts, answer.parts, ordered)
    if len(gold.parts) == 1 and answer.alternatives:  # 3/4 or 0.75
        keys = {text_key(part[0].text) for part in answer.parts}
        if len(keys) == len(answer.parts) and all(same_part(gold.parts[0], part) for part in answer.parts):
            return True
    if _same_coordinates(gold, answer) or _same_unions(gold, answer):
        return True
    if gold.ordered or answer.ordered:
        return False
    for one, many in ((gold, answer), (answer, gold)):
        if len(one.parts) == 1 and len(many.parts) > 1:
            for part in one.parts[0]:
                if isinstance(part.body, Collection) and len(part.body.items) == len(many.parts):
                    items = (part.body.items, many.parts) if one is gold else (many.parts, part.body.items)
                    return _same_items(*items, ordered=False)
    return False


def _without_domain(answer: Answer) -> Answer:
    r"""Without `k \in \mathbb{Z}` after a formula: it goes without saying."""
    parts = tuple(part for part in answer.parts if not _DOMAIN.fullmatch(part[0].text))
    return replace(answer, parts=parts) if parts else answer


def _without_steps(answer: Answer) -> Answer:
    """`2x = 14, x = 7` with nothing but its last part: equations before it are the way to it."""
    *steps, last = answer.parts
    named = any(part.name for part in last)
    is_step = [len(part) > 1 and all(isinstance(reading.body, Relation) for reading in part[1:]) for part in steps]
    return Answer((last,)) if named and all(is_step) and not answer.alternatives else answer


def _states_conditions(answer: Answer) -> bool:
    """Whether `and` and `or` say different things between the parts: inequalities, or values of different variables."""
    if len(answer.parts) < 2:
        return False
    if any(isinstance(part.body, Relation) and part.body.sign != "=" for readings in answer.parts for part in readings):
        return True
    return len({variable(name) for name in _names(answer)} - {""}) > 1


def _names(answer: Answer) -> list[str]:
    """The name of each part, "" where it has none."""
    return [next((part.name for part in readings if part.name), "") for readings in answer.parts]


def _same_coordinates(gold: Answer, answer: Answer) -> bool:
    """(3, -4) is x = 3, y = -4: the coordinates of a point, in the order of the alphabet."""
    for one, many in ((gold, answer), (answer, gold)):
        names = _names(many)
        if len(one.parts) > 1 or many.alternatives or len(set(names)) != len(names) or set(map(len, names)) != {1}:
            continue
        values = tuple(
            tuple(replace(part, name="") for part in readings if part.body is not None)
            for _, readings in sorted(zip(names, many.parts, strict=True), key=lambda pair: pair[0])
        )
        for part in one.parts[0]:
            if isinstance(part.body, Sequence) and part.body.left == "(" and len(part.body.items) == len(values):
                pairs = zip(part.body.items, values, strict=True)
                if all(same_part(item, value) if one is gold else same_part(value, item) for item, value in pairs):
                    return True
    return False


def _same_unions(gold: Answer, answer: Answer) -> bool:
    r"""`(-\infty, 1) \cup (2, \infty)` is `(-\infty, 1)` and `(2, \infty)`: where a function increases."""
    union = _as_union(gold)
    other = _as_union(answer)
    return union is not None and other is not None and _same_sets(union, other)


def _as_union(answer: Answer) -> Set | None:
    regions = [next(filter(None, map(_as_region, readings)), None) for readings in answer.parts]
    if None in regions:
        return None
    union = Union(*regions)
    # Intervals that overlap are a hedge.
    return union if len(regions) == 1 or len(union.args) == len(regions) and isinstance(union, Union) else None


def _as_region(part: Part) -> Set | None:
    if isinstance(part.body, Region):
        return part.body.numbers
    if not isinstance(part.body, Sequence) or len(part.body.items) != 2:
        return None
    ends = ",".join(item[0].text for item in part.body.items)
    region = read_region(f"{part.body.left}{ends}{part.body.right}")
    return region.body.numbers if region is not None and isinstance(region.body, Region) else None


def same_part(gold: Readings, answer: Readings) -> bool:
    """Whether any reading of one part agrees with any of another."""
    if text_key(gold[0].text) == text_key(answer[0].text):
        return True
    if same_name(gold[0].text, answer[0].text) or text_key(gold[0].text) == _stated_words(answer[0].text):
        return True
    return any(_same_reading(a, b) for a in gold for b in answer if a.body is not None and b.body is not None)


def _stated_words(text: str) -> str | None:
    """What a sentence says that something is: `The colour is blue`."""
    sentence = re.fullmatch(r"(.{1,60}?)(?: (?:is|are) |(?<=[\u4e00-\u9fff])是)([^\d]*)", text)
    if sentence is None or wording.denies(text) or re.search(r"\b(?:says?|said|thinks?|believes?)\b", text):
        return None
    return text_key(sentence[2])


def _same_items(gold: tuple[Readings, ...], answer: tuple[Readings, ...], ordered: bool) -> bool:
    if len(gold) != len(answer):
        return False
    if ordered:
        return all(map(same_part, gold, answer))
    rest = list(answer)
    for item in gold:
        found = next((i for i, other in enumerate(rest) if same_part(item, other)), None)
        if found is None:
            return False
        del rest[found]
    return True


def _names_say_order(gold: Answer, answer: Answer) -> bool:
    """x = 1, y = 2 is answered by 1, 2 only in this order; x_1 and x_2 are two values of one thing."""
    names = [variable(name) for name in _names(gold)]
    return not any(_names(answer)) and all(names) and len(set(names)) == len(names)


def _same_reading(gold: Part, answer: Part) -> bool:
    # An equation of several symbols is a curve, and any equation of the curve is as good; x = 5 wants its value.
    curve = gold.body if isinstance(gold.body, Relation) else gold.equation
    equation = answer.body if isinstance(answer.body, Relation) else answer.equation
    if curve is not None and equation is not None and (curve is gold.body or _several_symbols(curve)):
        if _same_relations(curve, equation):
            return True
    if gold.name and answer.name and not same_variable(gold.name, answer.name):
        return False
    if not _same_units(gold, answer):
        return False
    return _same_bodies(gold, answer)


def _same_bodies(gold: Part, answer: Part) -> bool:
    match gold.body, answer.body:
        case Expression(), Expression():
            return _same_expressions(gold, answer)
        case Sequence() as a, Sequence() as b:
            return (a.left, a.right) == (b.left, b.right) and _same_items(a.items, b.items, ordered=True)
        case Collection() as a, Collection() as b:
            return _same_items(a.items, b.items, ordered=False)
        case Collection((item,)), _:
            return not _is_empty_set(item) and same_part(item, (answer,))
        case _, Collection((item,)):
            return not _is_empty_set(item) and same_part((gold,), item)
        case Sequence("(", items, ")"), Expression(text=text):
            return _same_vectors(items, text)
        case Expression(text=text), Sequence("(", items, ")"):
            return _same_vectors(items, text)
        case Ratio() as a, Ratio() as b:
            return not a.is_time and _same_ratios(a, b)
        case Ratio((x, y), False), Expression() if answer.unit is None and not answer.counted:
            return _same_expressions(Part("", Expression(rf"\frac{{{x}}}{{{y}}}")), answer)
        case Expression(text=text), Ratio((x, y)) if gold.unit is None and not gold.counted and not text.isdigit():
            return _same_expressions(gold, Part("", Expression(rf"\frac{{{x}}}{{{y}}}")))
        case Compound() as a, Compound() as b:
            return _same_compounds(a, b) or _degrees(gold) is not None and _degrees(gold) == _degrees(answer)
        case (Compound(), Expression()) | (Expression(), Compound()):
            return _degrees(gold) is not None and _degrees(gold) == _degrees(answer)
        case Region() as a, Region() as b:
            return (not a.variable or not b.variable or a.variable == b.variable) and _same_sets(a.numbers, b.numbers)
        case Relation() as a, Relation() as b:
            return _same_relations(a, b)
    return False


def _is_empty_set(item: Readings) -> bool:
    return item[0].text == r"\emptyset"


def _same_vectors(items: tuple[Readings, ...], text: str) -> bool:
    """A point is the matrix of one row or column that has its coordinates."""
    matrix = mathematics.parse(text)
    if not isinstance(matrix, MatrixBase) or 1 not in matrix.shape or len(matrix) != len(items):
        return False
    values = [mathematics.parse(item[0].text) for item in items]
    return all(
        value is not None and mathematics.same(value, entry) for value, entry in zip(values, matrix, strict=True)
    )


def _same_expressions(gold: Part, answer: Part) -> bool:
    assert isinstance(gold.body, Expression) and isinstance(answer.body, Expression)
    if gold.body == answer.body and gold.unit == answer.unit:
        return True
    if is_word(gold.body.text) and is_word(answer.body.text):
        return False  # no products of their letters
    if is_formula_of_elements(gold.body.text):
        return False
    a = mathematics.parse(gold.body.text)
    b = mathematics.parse(answer.body.text)
    if a is None or b is None:
        return False
    tolerance = precision(gold.body.text) * Rational(abs(gold.body.scale))
    is_plain = gold.body.scale == answer.body.scale == 1 and not _is_percent(gold) and not _is_percent(answer)
    if not is_plain and not (isinstance(a, Expr | MatrixBase) and isinstance(b, Expr | MatrixBase)):
        return False
    a = _scaled(a, gold.body.scale)
    b = _scaled(b, answer.body.scale)
    gold_percent = _is_percent(gold)
    percent = _is_percent(answer)
    if gold_percent != percent:
        worth = a * _share(gold_percent)
        other = b * _share(percent)
        if mathematics.same(worth, other, tolerance * _share(gold_percent)):
            return True
        # The sign of a gold answer may be missing where nobody can take its number for a proportion.
        number = mathematics.numeric(a)
        return gold_percent and number is not None and abs(number) >= 1 and mathematics.same(a, b, tolerance)
    return mathematics.same(a, b, tolerance)


def _scaled(value: Any, scale: Fraction) -> Any:
    return value if scale == 1 else value * Rational(scale)


def _share(is_percent: bool) -> Rational:
    return Rational(1, 100 if is_percent else 1)


def _is_percent(part: Part) -> bool:
    return part.unit is not None and part.unit.is_percent


def _same_units(gold: Part, answer: Part) -> bool:
    if isinstance(gold.body, Compound) or isinstance(answer.body, Compound):
        return True  # their bodies hold units
    if gold.unit is not None and answer.unit is not None:
        return gold.unit == answer.unit
    if gold.unit is None and answer.unit in (ARC_MINUTE, ARC_SECOND):
        return False  # 7'
    if _is_degrees_of_pi(gold, answer) or _is_degrees_of_pi(answer, gold):
        return False
    if gold.counted and answer.counted:
        return _count_alike(gold.counted, answer.counted)
    if gold.counted and answer.unit is not None:
        return answer.unit.is_generic
    if answer.counted and gold.unit is not None:
        return gold.unit.is_generic
    return True


def _count_alike(gold: tuple[str, ...], answer: tuple[str, ...]) -> bool:
    """Whether two counts are of one thing: apples and red apples, 只 and 只鸡."""
    if {_stem(word) for word in gold} & {_stem(word) for word in answer}:
        return True
    return not gold[0].isascii() and not answer[0].isascii() and (gold[0] in answer[0] or answer[0] in gold[0])


def _is_degrees_of_pi(one: Part, other: Part) -> bool:
    """Whether only one side has degrees where the other has a multiple of π, which is in radians."""
    degrees = one.unit is not None and one.unit == DEGREE
    return degrees and other.unit is None and isinstance(other.body, Expression) and r"\pi" in other.body.text


def _stem(word: str) -> str:
    return word[:-1] if word.endswith("s") and len(word) > 3 else word


def _same_ratios(gold: Ratio, answer: Ratio) -> bool:
    if len(gold.items) != len(answer.items):
        return False
    a, b = ([mathematics.parse_expression(item) for item in ratio.items] for ratio in (gold, answer))
    if a[0] in (None, 0) or b[0] in (None, 0) or None in (*a, *b):
        return False
    return all(mathematics.same(x * b[0], y * a[0]) for x, y in zip(a[1:], b[1:], strict=True))


def _same_compounds(gold: Compound, answer: Compound) -> bool:
    return len(gold.amounts) == len(answer.amounts) and all(
        unit == other_unit and mathematics.same(mathematics.parse(number), mathematics.parse(other))
        for (number, unit), (other, other_unit) in zip(gold.amounts, answer.amounts, strict=True)
    )


def _degrees(part: Part) -> Rational | None:
    """An angle in degrees: 22°30' and 22.5°. None for anything else."""
    amounts: tuple[tuple[str, Unit], ...] = ()
    if isinstance(part.body, Compound):
        amounts = part.body.amounts
    elif isinstance(part.body, Expression) and part.unit is not None:
        amounts = ((part.body.text, part.unit),)
    total = Rational(0)
    for number, unit in amounts:
        value = parse_number(number)
        if value is None or unit not in _PARTS_OF_A_DEGREE:
            return None
        total += value / _PARTS_OF_A_DEGREE[unit]
    return total if amounts else None


def _same_sets(gold: Set, answer: Set) -> bool:
    if gold == answer:
        return True
    if gold.is_empty or answer.is_empty:
        return False
    pieces, others = (s.args if isinstance(s, Union) else (s,) for s in (gold, answer))
    if len(pieces) != len(others):
        return False
    for piece, other in zip(sorted(pieces, key=_lower_end), sorted(others, key=_lower_end), strict=True):
        if isinstance(piece, Interval) and isinstance(other, Interval):
            if (piece.left_open, piece.right_open) != (other.left_open, other.right_open):
                return False
            if not (_same_bound(piece.start, other.start) and _same_bound(piece.end, other.end)):
                return False
        elif piece != other:
            return False
    return True


def _lower_end(piece: Set) -> float:
    return float(piece.inf) if piece.inf.is_finite else -math.inf


def _same_bound(gold: Any, answer: Any) -> bool:
    return bool(gold == answer) or (gold.is_finite and answer.is_finite and mathematics.same(gold, answer))


def _several_symbols(relation: Relation) -> bool:
    values = [mathematics.parse(relation.left), mathematics.parse(relation.right)]
    return len(set().union(*(value.free_symbols for value in values if value is not None))) > 1


def _same_relations(gold: Relation, answer: Relation) -> bool:
    if gold.sign != answer.sign or ("'" in gold.left) != ("'" in answer.left):
        return False
    sides = (gold.left, gold.right)
    others = (answer.left, answer.right)
    if gold.sign in (r"\cong", r"\sim"):  # vertices correspond
        keys, other_keys = ([text_key(side) for side in pair] for pair in (sides, others))
        return keys in (other_keys, other_keys[::-1])
    if _same_sides(sides, others) or (gold.sign in _SYMMETRIC and _same_sides(sides, others[::-1])):
        return True
    if gold.sign not in ("=", "<", r"\leq", r"\neq"):
        return False
    a, b, c, d = (mathematics.parse_expression(side) for side in (*sides, *others))
    if a is None or b is None or c is None or d is None:
        return False
    left = a - b
    right = c - d
    if gold.sign == "=":  # y = 6/x is xy = 6
        left, right = (fraction(together(difference))[0] for difference in (left, right))
    if left.free_symbols != right.free_symbols or not left.free_symbols:
        return False
    sign = mathematics.proportional(left, right)
    return sign != 0 if gold.sign in ("=", r"\neq") else sign > 0


def _same_sides(sides: tuple[str, str], others: tuple[str, str]) -> bool:
    return all(text_key(a) == text_key(b) or same_name(a, b) for a, b in zip(sides, others, strict=True))
