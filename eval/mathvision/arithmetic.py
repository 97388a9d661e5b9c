r"""The number that a LaTeX text stands for in MATH-V's rule, read without `eval()`.

The rule evaluates `eval(str(latex2sympy(text)))`, with the names of Python's `math`. What has a value there is an
arithmetic expression: numbers, `+ - * / : \times \cdot \div`, powers, roots, `\frac`, `\binom`, `!`, `\pi` and
functions. Variables, `e` alone, `\ln`, `|x|`, sets and relations have none. Nor has what the grammar of latex2sympy2
does not know, such as `\frac12` and `\sqrt2`. Integers stay integers, as in Python, since the rule compares the parts
of tuples as text.

The grammar is that of latex2sympy2 1.9.1 (PS.g4), which ends at the first closing bracket that was never opened.
Its successor, latex2sympy2_extended, is no substitute: it reads `(2)(3)` as 5.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TypeAlias

Number: TypeAlias = int | float

_TOKEN = re.compile(r"\s*(?:(\d+(?:,\d{3})*(?:\.\d+)?|\.\d+)|(\\[a-z]+|\\%)|(.))", re.DOTALL)
_IGNORED = re.compile(r"[$~]|\\,|\\q?quad|\\displaystyle")
_AFTER = frozenset(("", "}", ")", "]", "_", "'", "."))  # what may follow a whole expression
_OPENING = {"(": ")", "[": "]", "{": "}"}
_TIMES = frozenset(("*", r"\times", r"\cdot"))
_OVER = frozenset(("/", ":", r"\div"))
_BETWEEN = _TIMES | _OVER | {r"\rfloor", r"\%"}
_FUNCTIONS: dict[str, Callable[[float], float]] = {
    **{rf"\{name}": getattr(math, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp")},
    **{rf"\arc{name}": getattr(math, f"a{name}") for name in ("sin", "cos", "tan")},
    r"\log": lambda value: math.log(value, 10),
}
_INVERSES = {rf"\{name}": getattr(math, f"a{name}") for name in ("sin", "cos", "tan")}
_DEEPEST = 50  # brackets in brackets
_LARGEST_POWER = 1 << 20  # bits of a result
_LARGEST_FACTORIAL = 5000


class _NoValueError(ValueError):
    """The text has no value."""


def value(text: str) -> Number | None:
    """The number, or None where the rule's evaluation fails."""
    try:
        result = _Reader(text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")).whole()
        return result if isinstance(result, int | float) else None
    except (ValueError, ArithmeticError, TypeError):
        return None


class _Reader:
    """Reads an expression from left to right."""

    def __init__(self, text: str) -> None:
        self._tokens = [match[0].strip() for match in _TOKEN.finditer(_IGNORED.sub(" ", text)) if match[0].strip()]
        self._tokens += [""]
        self._at = 0
        self._depth = 0

    @property
    def _next(self) -> str:
        return self._tokens[self._at]

    def _take(self, token: str | None = None) -> str:
        found = self._next
        if token not in (None, found) or not found:
            raise _NoValueError(f"{found!r} instead of {token!r}")
        self._at += 1
        return found

    def whole(self) -> Number:
        result = self._sum()
        if self._next not in _AFTER:
            raise _NoValueError(f"{self._next!r} is left over")
        return result

    def _sum(self) -> Number:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _NoValueError("too deep")
        result = self._product()
        while self._next in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            result += sign * self._product()
        self._depth -= 1
        return result

    def _product(self) -> Number:
        result = self._signed()
        while self._next in _TIMES or self._next in _OVER:
            result = result * self._signed() if self._take() in _TIMES else result / self._signed()
        return result

    def _signed(self) -> Number:
        sign = 1
        while self._next in ("+", "-"):
            sign *= 1 if self._take() == "+" else -1
        result = self._factorial()
        while self._begins_factor():
            result *= self._factorial()
        return sign * result

    def _begins_factor(self) -> bool:
        begin = self._next[:1]
        is_number = self._next[-1:].isdigit()
        return is_number or begin == "e" or begin in _OPENING or (begin == "\\" and self._next not in _BETWEEN)

    def _factorial(self) -> Number:
        result = self._power()
        while self._next == "!":
            self._take()
            if result > _LARGEST_FACTORIAL:
                raise _NoValueError("too large")
            result = math.factorial(result)  # type: ignore[arg-type]  # of a float: TypeError, as in the rule
        return result

    def _power(self) -> Number:
        result = self._unit()
        while self._next == "^":
            result = _raised(result, self._exponent())
        return result

    def _exponent(self) -> Number:
        self._take("^")
        return self._group("{") if self._next == "{" else self._atom()

    def _group(self, opening: str) -> Number:
        self._take(opening)
        result = self._sum()
        self._take(_OPENING[opening])
        return result

    def _unit(self) -> Number:
        match self._next:
            case "(" | "[" | "{":
                return self._group(self._next)
            case r"\frac":
                self._take()
                above = self._group("{")
                return above / self._group("{")
            case r"\binom":
                self._take()
                above = self._group("{")
                return math.comb(above, self._group("{"))  # type: ignore[arg-type]
            case r"\sqrt":
                return self._root()
            case r"\lfloor":
                self._take()
                result = self._sum()
                self._take(r"\rfloor")
                return math.floor(result)
            case "e":  # exp(x); alone it is a name that nothing defines
                self._take()
                return math.exp(self._exponent())
        return self._function() if self._next in _FUNCTIONS else self._atom()

    def _root(self) -> Number:
        self._take()
        index = self._group("[") if self._next == "[" else None
        base = self._group("{")
        return math.sqrt(base) if index is None else _raised(base, 1 / index)

    def _function(self) -> Number:
        name = self._take()
        function = _FUNCTIONS[name]
        power: Number = 1
        if self._next == "_" and name == r"\log":
            self._take()
            base = self._group("{") if self._next == "{" else self._atom()
            function = lambda value: math.log(value, base)  # noqa: E731
        if self._next == "^":
            power = self._exponent()
            if power == -1 and name in _INVERSES:
                function = _INVERSES[name]
                power = 1
        argument = self._group("(") if self._next == "(" else self._signed()
        return _raised(function(argument), power)

    def _atom(self) -> Number:
        token = self._take()
        if token == r"\pi":
            return math.pi
        if not token[-1].isdigit():
            raise _NoValueError(f"{token!r} is no number")
        digits = token.replace(",", "")
        number = float(digits)
        result = int(number) if "." in digits and number.is_integer() else number if "." in digits else int(digits)
        if self._next == r"\%":
            self._take()
            return result // 100 if result % 100 == 0 else result / 100
        return result


def _raised(base: Number, exponent: Number) -> Number:
    if base and exponent and abs(exponent) * abs(math.log2(abs(base))) > _LARGEST_POWER:
        raise _NoValueError("too large")
    result = base**exponent
    if isinstance(result, complex):
        raise _NoValueError("a complex number")
    return result
