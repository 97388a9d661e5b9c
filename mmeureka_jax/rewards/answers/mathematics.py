r"""Expressions as SymPy objects, by math-verify's LaTeX parser, and when two of them are equal.

An expression is the whole text or nothing: what holds a command that is not listed here, or is left over, is None.
What would cost too much to evaluate is none either (`cost`). Workers with a time limit remain for what that does not
foresee.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, TypeAlias

from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import (
    Abs,
    AccumBounds,
    Basic,
    Expr,
    Float,
    MatrixBase,
    Max,
    Min,
    Rational,
    Symbol,
    ceiling,
    floor,
    nan,
    oo,
    sign,
    zoo,
)
from sympy.core.function import AppliedUndef, Derivative
from sympy.sets import FiniteSet

from mmeureka_jax.rewards.answers import notation
from mmeureka_jax.rewards.answers.cost import is_affordable
from mmeureka_jax.rewards.answers.numbers import EXACT, parse_number

Value: TypeAlias = Basic | MatrixBase

MAX_CHARACTERS = 400  # in one expression
MAX_DEPTH = 8  # brackets in brackets: the parser's time doubles with each
MAX_BARS = 8  # |x|: as with brackets
MAX_POWERS = 24

_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
)
_CONVERSION = ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)
_COMMANDS = frozenset(
    "frac sqrt pi infty cdot times div pm mp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp "
    "binom vec hat bar overline dot tilde begin end lfloor rfloor lceil rceil circ det mathbf mathrm mathbb "
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron rho sigma tau upsilon phi chi "
    "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar ell prime emptyset imath text "
    "operatorname".split()
)
_MATRICES = frozenset(("matrix", "pmatrix", "bmatrix", "vmatrix", "Bmatrix", "Vmatrix", "array"))
# Where symbols are tried: floats, since powers of fractions are written out.
_POINTS = tuple(Float(above, 60) / below for above, below in ((31, 17), (-23, 19), (7, 29), (-5, 37)))
_PIECEWISE = (Abs, Max, Min, floor, ceiling, sign)
_STEP = Float(1, 60) / 7  # from the points of the first symbols to those of the next
_DIGITS_OF_VALUES = 40
_NEGLIGIBLE = Rational(1, 10**30)  # relative difference of equal values


@lru_cache(maxsize=1024)
def parse(text: str) -> Value | None:
    """A text without `$` as one SymPy object, not evaluated; None if it is none."""
    text = text.strip()
    if (number := parse_number(text)) is not None:
        return number
    text = _prepared(text)
    if not _is_safe(text):
        return None
    try:
        value = latex2sympy(
            normalize_latex(text, _NORMALIZATION),
            is_real=not should_treat_as_complex(text),
            convert_degrees=True,
            normalization_config=None,
            conversion_config=_CONVERSION,
        )
        return _checked(value)
    except MemoryError:
        raise
    except Exception:  # the parser and SymPy raise whatever they come across
        return None


def _checked(value: Any) -> Value | None:
    """What the parser made of a text, if it may be compared: decimals made exact, no infinity within a formula."""
    if isinstance(value, FiniteSet) and len(value) == 1:
        value = next(iter(value))
    if isinstance(value, Expr):
        exact = {number: Rational(str(number)) for number in value.atoms(Float)}
        named = {call: Symbol(str(call)) for call in value.atoms(AppliedUndef)}
        value = value.xreplace(exact | named)
    if not isinstance(value, Basic | MatrixBase) or value.has(Derivative) or not is_affordable(value):
        return None
    if value.has(nan, zoo, AccumBounds) or (value.has(oo) and value not in (oo, -oo)):
        return None
    return value


def parse_expression(text: str) -> Expr | None:
    """A text as a number or formula: no matrix, no set."""
    value = parse(text)
    return value if isinstance(value, Expr) else None


def same(gold: Value, value: Value, tolerance: Rational = EXACT) -> bool:
    """Whether two parsed expressions are equal: exactly, or within `tolerance` for numbers."""
    try:
        return _same(gold, value, tolerance)
    except MemoryError:
        raise
    except Exception:  # SymPy raises whatever it comes across, and what it cannot compare is not known to be equal
        return False


def _same(gold: Value, value: Value, tolerance: Rational) -> bool:
    if isinstance(gold, Rational) and isinstance(value, Rational):
        return bool(abs(gold - value) <= tolerance)
    if isinstance(gold, MatrixBase) or isinstance(value, MatrixBase):
        return _same_matrices(gold, value)
    if not isinstance(gold, Expr) or not isinstance(value, Expr):
        return bool(verify(gold, value, float_rounding=12, timeout_seconds=None))
    if gold == value:
        return True
    names, others = ({symbol.name for symbol in part.free_symbols} for part in (gold, value))
    if names != others and (gold.has(*_PIECEWISE) or value.has(*_PIECEWISE)):
        return False  # |x - 100| + x - 93 is 7 wherever it is tried
    if gold.is_infinite or value.is_infinite:
        return False
    return _same_at_points(gold, value, tolerance)


def is_number(value: Value | None) -> bool:
    """Whether an expression has a numeric value: no symbols in it, no infinity."""
    return isinstance(value, Expr) and not value.free_symbols and value.is_infinite is not True


def numeric(value: Value) -> complex | None:
    """The approximate value of a number, or None."""
    try:
        return complex(value.evalf(15))
    except Exception:
        return None


def is_below(low: Expr, high: Expr) -> bool:
    """Whether the first of two real numbers, which may be infinite, is the smaller one."""
    try:
        return bool(low < high)
    except TypeError:  # it is no real number
        return False


def proportional(gold: Expr, value: Expr) -> int:
    """The sign of k where `value` is k times `gold` with a constant k that is no zero; 0 if it is not."""
    ratios = []
    for point in range(len(_POINTS)):
        above = _at_point(value, gold, point)
        below = _at_point(gold, value, point)
        if above is None or below is None:
            continue
        if abs(below) < _NEGLIGIBLE or abs(above) < _NEGLIGIBLE:
            return 0
        ratios.append(above / below)
    if len(ratios) < 2 or any(abs(ratio - ratios[0]) > _NEGLIGIBLE * abs(ratios[0]) for ratio in ratios):
        return 0
    return 1 if ratios[0] > 0 else -1


def _same_matrices(gold: Value, value: Value) -> bool:
    if not isinstance(gold, MatrixBase) or not isinstance(value, MatrixBase) or gold.shape != value.shape:
        return False
    return all(same(a, b) for a, b in zip(gold.flat(), value.flat(), strict=True))


def _same_at_points(gold: Expr, value: Expr, tolerance: Rational) -> bool:
    """Expressions that agree at points that nobody chose for them are equal; numbers are compared to 30 digits."""
    symbols = gold.free_symbols | value.free_symbols
    tried = 0
    for point in range(len(_POINTS) if symbols else 1):
        a = _at_point(gold, value, point)
        b = _at_point(value, gold, point)
        if a is None or b is None:
            continue
        if abs(a - b) > max(abs(a), abs(b)) * _NEGLIGIBLE + tolerance:
            return False
        tried += 1
    if tried >= (2 if symbols else 1):
        return True
    return not symbols and bool(verify(gold, value, float_rounding=12, timeout_seconds=None))


def _at_point(expression: Expr, other: Expr, point: int) -> Expr | None:
    """The value of an expression where every symbol of the two has a value of its own; None where it has none."""
    names = sorted({symbol.name for symbol in expression.free_symbols | other.free_symbols})
    values = {}
    for symbol in expression.free_symbols:
        round_, place = divmod(names.index(symbol.name) + point, len(_POINTS))
        values[symbol] = _POINTS[place] + round_ * _STEP
    try:
        result = expression.subs(values).doit().evalf(_DIGITS_OF_VALUES)
        if result.has(nan, zoo, oo, -oo) or not result.is_number:
            return None
        if values and result.is_real is False:
            return None  # a root of a negative number, of which there are several
        return result
    except MemoryError:
        raise
    except Exception:  # SymPy raises whatever it comes across
        return None


def _prepared(text: str) -> str:
    """A text in the parser's own dialect."""
    if matrix := re.fullmatch(r"[(\[]?\s*\\begin\{(array|matrix)\}(?:\{[^{}]*\})?(.*)\\end\{\1\}\s*[)\]]?", text):
        text = rf"\begin{{pmatrix}}{matrix[2]}\end{{pmatrix}}"
    text = notation.collapse(text)
    text = re.sub(r"\\lg(?![a-zA-Z])", r"\\log", text)
    text = re.sub(r"\\log_(?:\{(\w+)\}|(\w))\s*(\d+(?:\.\d+)?)", r"\\log_{\1\2}{\3}", text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\log_(\w)\s*\(", r"\\log_{\1}(", text)
    text = re.sub(r"\\(ln|log|lg|sin|cos|tan) ?([a-z]|\\[a-z]+)/", r"(\\\1 \2)/", text)
    # Where all letters are pairs of capitals, they name segments, from either end, and are no products of letters.
    if not re.search(r"[a-z]|(?<![A-Z])[A-Z](?![A-Z])|[A-Z]{3}|[A-Z][_(]", re.sub(r"\\[a-zA-Z]+", " ", text)):
        text = re.sub(r"(?<!\{)[A-Z]{2}", lambda match: rf"\overline{{{''.join(sorted(match[0]))}}}", text)
    # The parser adds numbers that are side by side, and is told here which it may add.
    text = re.sub(r"(?<=[\d)])\s*\((?=[\d(])", r" \\cdot (", text)
    text = re.sub(r"(?<![\d.^_}])(\d+)\s*(\\frac\{\d+\}\{\d+\})", r"(\1+\2)", text)
    return re.sub(r"\\det(?![a-zA-Z])", "", text)


def _is_safe(text: str) -> bool:
    """Whether a text may be given to the parser."""
    if not text or len(text) > MAX_CHARACTERS or "\n" in text:
        return False
    if re.search(r"[^\x20-\x7e]", text) or re.search(
        r"\d'|'\d|\d\s?_|\d\s?\^\s?\{?T|!!|\b0x[\dA-F]|[@#$?;:\"`]|\.\.|\d{301}", text
    ):
        return False
    if any(command not in _COMMANDS for command in re.findall(r"\\([a-zA-Z]+)", text)):
        return False
    if any(name not in _MATRICES for name in re.findall(r"\\begin\{(\w+)\}", text)):
        return False
    if r"\pm" in text or r"\mp" in text:  # `reading` makes two values of it
        return False
    if text.count("|") > MAX_BARS or text.count("^") > MAX_POWERS:
        return False
    if re.search(r"\\binom[^0-9]*\d{5}|\\binom[^0-9]*\d+[^0-9]*\d{5}", text):  # evaluated by the parser
        return False
    # Two numbers side by side are no product, and a sign at the end wants something after it.
    if re.search(r"\d\s+\d|[-+*/^_=]\s*$|^\s*[*/^_]|\d\s*\{\d", text):
        return False
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
        if depth < 0:
            return False
    return depth == 0 and deepest <= MAX_DEPTH
