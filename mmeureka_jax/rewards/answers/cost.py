r"""What evaluating an expression would cost, worked out before anything is evaluated.

SymPy evaluates whatever it is asked to, and some answers ask for more than any machine has (`9^{9^{9}}`, `(10^9)!`). So
the digits of every number that an evaluation would write down are bounded first; no honest answer needs many. Sums,
products, integrals and limits are never evaluated: an answer that leaves them is not finished.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from sympy import (
    Add,
    Basic,
    Function,
    Integral,
    Limit,
    MatrixBase,
    Mul,
    Pow,
    Product,
    Rational,
    Sum,
    binomial,
    cosh,
    exp,
    factorial,
    factorial2,
    gamma,
    sinh,
    subfactorial,
)

MAX_DIGITS = 10_000  # in a number that is written down
MAX_NODES = 400  # in an expression
MAX_ENTRIES = 64  # in a matrix
MAX_POWER_OF_SUM = 40  # (x + 1)^n
MAX_FACTORIAL = 1e6
MAX_NESTED_FUNCTIONS = 3  # log(log(log(...))): each needs more digits of the one within

_UNFINISHED = (Sum, Product, Integral, Limit)
_FACTORIALS = (factorial, factorial2, subfactorial, gamma)
_EXPONENTIALS = (exp, cosh, sinh)
_EXACT_DIGITS = 16  # a number of fewer digits can be worked out as a float
_LARGEST_EXPONENT = 300  # a float's


def is_affordable(value: Basic | MatrixBase) -> bool:
    """Whether evaluating an expression writes down no number of more than MAX_DIGITS digits, and no very long sum."""
    if isinstance(value, MatrixBase):
        return len(value) <= MAX_ENTRIES and all(is_affordable(entry) for entry in value.flat())
    if _nested_functions(value) > MAX_NESTED_FUNCTIONS:
        return False
    for count, node in enumerate(_nodes(value), start=1):
        if count > MAX_NODES or isinstance(node, _UNFINISHED):
            return False
    return _digits(value) <= MAX_DIGITS


def _nested_functions(value: Basic) -> int:
    """How many functions, or powers with an exponent that is no number, are nested."""
    within = max(map(_nested_functions, value.args), default=0)
    is_function = isinstance(value, Function) or (isinstance(value, Pow) and not isinstance(value.exp, Rational))
    return within + is_function


def _nodes(value: Basic) -> Iterator[Basic]:
    stack = [value]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.args)


def _digits(value: Basic) -> float:
    """An upper bound of the digits of a number, before or after the decimal point. A symbol counts 1."""
    if isinstance(value, Rational):
        return (int(value.p).bit_length() + int(value.q).bit_length()) * math.log10(2)
    if not value.args:
        return 1.0
    if isinstance(value, MatrixBase):
        return math.inf
    sizes = [_digits(argument) for argument in value.args]
    if max(sizes) == math.inf:
        return math.inf
    match value:
        case Add():
            return max(sizes) + math.log10(len(sizes)) + 1
        case Mul():
            return sum(sizes)
        case Pow():
            return _digits_of_power(value, *sizes)
        case binomial():
            return 2 * max(_magnitude(argument, size) for argument, size in zip(value.args, sizes, strict=True))
    if isinstance(value, _FACTORIALS):
        size = _magnitude(value.args[0], sizes[0])
        return math.inf if size > MAX_FACTORIAL else size * math.log10(size + 2)
    if isinstance(value, _EXPONENTIALS):
        return max(_magnitude(value.args[0], sizes[0]), 1.0)
    return max(sizes)


def _digits_of_power(power: Pow, base_digits: float, exponent_digits: float) -> float:
    exponent = _magnitude(power.exp, exponent_digits)
    if isinstance(power.base, Add) and power.base.free_symbols and exponent > MAX_POWER_OF_SUM:
        return math.inf
    if any(isinstance(node, Pow) and node.exp.free_symbols for node in _nodes(power.exp)):
        return math.inf  # x^{x^{x}}
    return base_digits * max(exponent, 1.0)


def _magnitude(value: Basic, digits: float) -> float:
    """The absolute value of an exponent, or a bound of it; 1 for one with symbols."""
    if not value.is_commutative:  # a matrix
        return math.inf
    if value.free_symbols:
        return 1.0
    if digits < _EXACT_DIGITS:
        return abs(complex(value.evalf(15)))
    return 10.0 ** min(digits, _LARGEST_EXPONENT)
