r"""Expressions as SymPy objects, by math-verify's LaTeX parser, and when two of them are equal.

An expression is the whole text or nothing: what holds a command that is not listed here, or is left over, is None.

SymPy evaluates whatever it is asked to, and some answers ask for more than any machine has (`9^{9^{9}}`, `(10^9)!`). So
the size of every number that an evaluation would write down is bounded from the expression first, and what is too large
is not evaluated: no honest answer needs it. Sums, products, integrals and limits are not evaluated either: an answer
that leaves them is not finished. Workers with a time limit remain for what this does not foresee.
"""

from __future__ import annotations

import math
import re
import struct
from functools import lru_cache
from typing import TypeAlias

from latex2sympy2_extended.latex2sympy2 import ConversionConfig, NormalizationConfig, latex2sympy, normalize_latex
from math_verify import verify
from math_verify.grader import should_treat_as_complex
from sympy import (
    AccumBounds,
    Add,
    Basic,
    Expr,
    Float,
    MatrixBase,
    Mul,
    Pow,
    Rational,
    Symbol,
    factorial,
    nan,
    oo,
    zoo,
)
from sympy.core.function import AppliedUndef, Derivative
from sympy.sets import FiniteSet

from mmeureka_jax.rewards.answers import notation

Value: TypeAlias = Basic | MatrixBase

MAX_CHARACTERS = 400  # of one expression
MAX_DEPTH = 8  # brackets in brackets: the parser's time doubles with each
MAX_DIGITS = 10_000  # of a number that is written down
MAX_NODES = 400
MAX_POWER_OF_SUM = 40
EXACT = Rational(0)  # the tolerance of numbers that nobody rounded
DECIMALS_OF_A_FLOAT = 8  # a number with so many significant digits was rounded, by a computer or by hand

_NORMALIZATION = NormalizationConfig(
    basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="none", equations=False
)
_CONVERSION = ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)
_COMMANDS = frozenset(
    "frac sqrt pi infty cdot times div pm mp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp "
    "binom vec hat bar overline dot tilde begin end lfloor rfloor lceil rceil max min circ det mathbf mathrm mathbb "
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron rho sigma tau upsilon phi chi "
    "psi omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega hbar ell prime emptyset imath text "
    "operatorname".split()
)
_MATRICES = frozenset(("matrix", "pmatrix", "bmatrix", "vmatrix", "Bmatrix", "Vmatrix", "array"))
_PLAIN_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<digits>\d+(?:\.\d*)?|\.\d+)(?:\s*\\(?:times|cdot)\s*10\^\{(?P<power>[-+]?\d{1,3})\})?",
    re.ASCII,
)
_PLAIN_FRACTION = re.compile(
    r"([-+]?)\s*(?:\\frac\{(-?\d{1,300})\}\{(-?\d{1,300})\}|(\d{1,300})\s*/\s*(\d{1,300}))", re.ASCII
)
# Where symbols are tried: floats, since powers of fractions are written out.
_POINTS = tuple(Float(above, 60) / below for above, below in ((31, 17), (-23, 19), (7, 29), (-5, 37)))


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
    except Exception:  # the parser raises whatever it comes across
        return None
    if isinstance(value, FiniteSet) and len(value) == 1:
        value = next(iter(value))
    if isinstance(value, Expr):
        value = value.xreplace({number: Rational(str(number)) for number in value.atoms(Float)})
        value = value.xreplace({call: Symbol(str(call)) for call in value.atoms(AppliedUndef)})
    if not isinstance(value, Basic | MatrixBase) or value.has(Derivative) or not _is_affordable(value):
        return None
    if value.has(nan, zoo, AccumBounds) or (value.has(oo) and value not in (oo, -oo)):
        return None
    return value


def parse_expression(text: str) -> Expr | None:
    """A text as a number or formula: no matrix, no set."""
    value = parse(text)
    return value if isinstance(value, Expr) else None


def parse_number(text: str) -> Value | None:
    """A plain decimal, power of ten or fraction, exactly: most answers, and far faster than the LaTeX parser."""
    if plain := _PLAIN_NUMBER.fullmatch(text):
        if len(text) > MAX_DIGITS / 4:
            return None
        number = Rational(_without_noise(plain["digits"])) * Rational(10) ** int(plain["power"] or 0)
        return -number if plain["sign"] == "-" else number
    if fraction := _PLAIN_FRACTION.fullmatch(text):
        above, below = int(fraction[2] or fraction[4]), int(fraction[3] or fraction[5])
        return None if below == 0 else Rational(above, below) * (-1 if fraction[1] == "-" else 1)
    return None


def precision(text: str) -> Rational:
    """What a decimal of very many digits, as `str` of a float or a calculator writes it, may be off by: half a unit in
    its last place. 0 for every other number, which is exact."""
    plain = _PLAIN_NUMBER.fullmatch(text.strip())
    if plain is None or "." not in plain["digits"]:
        return EXACT
    whole, _, decimals = _without_noise(plain["digits"]).partition(".")
    if len((whole + decimals).lstrip("0")) < DECIMALS_OF_A_FLOAT:
        return EXACT
    return Rational(1, 2) * Rational(10) ** (int(plain["power"] or 0) - len(decimals))


def same(gold: Value, value: Value, tolerance: Rational = EXACT) -> bool:
    """Whether two parsed expressions are equal: exactly, or within `tolerance` for numbers."""
    try:
        return _same(gold, value, tolerance)
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
    if not gold.is_finite or not value.is_finite:
        infinite = [part for part in (gold, value) if part.is_infinite]
        if infinite:
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


def proportional(gold: Value, value: Value) -> int:
    """The sign of k where `value` is k times `gold` with a constant k that is no zero; 0 if it is not."""
    ratios = []
    for point in range(len(_POINTS)):
        above, below = _at_point(value, gold, point), _at_point(gold, value, point)
        if above is None or below is None:
            continue
        if abs(below) < 1e-12 or abs(above) < 1e-12:
            return 0
        ratios.append(above / below)
    if len(ratios) < 2 or any(abs(ratio - ratios[0]) > 1e-12 * abs(ratios[0]) for ratio in ratios):
        return 0
    return 0 if abs(ratios[0].imag) > 1e-12 * abs(ratios[0]) else (1 if ratios[0].real > 0 else -1)


def _same_matrices(gold: Value, value: Value) -> bool:
    if not isinstance(gold, MatrixBase) or not isinstance(value, MatrixBase) or gold.shape != value.shape:
        return False
    return all(same(a, b) for a, b in zip(gold.flat(), value.flat(), strict=True))


def _same_at_points(gold: Expr, value: Expr, tolerance: Rational) -> bool:
    """Expressions that agree at points that nobody chose for them are equal; numbers are compared to 30 digits."""
    symbols = gold.free_symbols | value.free_symbols
    tried = 0
    for point in range(len(_POINTS) if symbols else 1):
        a, b = _at_point(gold, value, point, 40), _at_point(value, gold, point, 40)
        if a is None or b is None:
            continue
        if abs(a - b) > max(abs(a), abs(b)) * Rational(1, 10**30) + tolerance:
            return False
        tried += 1
    if tried >= min(2, len(_POINTS) if symbols else 1):
        return True
    return not symbols and bool(verify(gold, value, float_rounding=12, timeout_seconds=None))


def _at_point(expression: Value, other: Value, point: int, digits: int = 20):
    """The value of an expression where every symbol of the two has a value of its own; None where it has none."""
    names = sorted(symbol.name for symbol in expression.free_symbols | other.free_symbols)
    values = {
        symbol: _POINTS[(point + i) % len(_POINTS)] + Float(i // len(_POINTS), 60) / 7
        for i, name in enumerate(names)
        for symbol in expression.free_symbols
        if symbol.name == name
    }
    try:
        result = expression.subs(values).doit().evalf(digits)
        if result.has(nan, zoo, oo, -oo) or not result.is_number:
            return None
        if values and result.is_real is False:
            return None  # a root of a negative number, of which there are several
        return result if digits > 20 else complex(result)
    except Exception:
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
        text = re.sub("[A-Z]{2}", lambda match: rf"\overline{{{''.join(sorted(match[0]))}}}", text)
    # The parser adds numbers that stand side by side, and is told here which it may add.
    text = re.sub(r"(?<=[\d)])\s*\((?=[\d(])", r" \\cdot (", text)
    text = re.sub(r"(?<![\d.^_}])(\d+)\s*(\\frac\{\d+\}\{\d+\})", r"(\1+\2)", text)
    text = re.sub(r"\\det(?![a-zA-Z])", "", text)
    return re.sub(r"(?<=\d)!!", "?", text)


def _is_safe(text: str) -> bool:
    """Whether a text may be given to the parser."""
    if not text or len(text) > MAX_CHARACTERS or "\n" in text:
        return False
    if re.search(r"[^\x20-\x7e]", text) or re.search(r"\d'|'\d|\d_|\b0x[\dA-F]|[@#$?;:\"`]|\.\.|\d{301}", text):
        return False
    if any(command not in _COMMANDS for command in re.findall(r"\\([a-zA-Z]+)", text)):
        return False
    if any(name not in _MATRICES for name in re.findall(r"\\begin\{(\w+)\}", text)):
        return False
    if r"\pm" in text or r"\mp" in text:  # `reading` makes two values of it
        return False
    if text.count("|") > 8 or (r"\max" in text or r"\min" in text) and "^" in text:
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


def _without_noise(digits: str) -> str:
    """A decimal as it was before a computer wrote it: 0.30000000000000004 is 0.3, and so is 0.30000001192092896, which
    is what float32 makes of it."""
    whole, _, decimals = digits.partition(".")
    if len((whole + decimals).strip("0")) < 15 or not decimals.strip("0"):
        return digits
    value = float(digits)
    if value < 3e38 and struct.unpack("f", struct.pack("f", value))[0] == value:
        for digits_ in range(1, 9):
            short = f"{value:.{digits_}g}"
            if struct.pack("f", float(short)) == struct.pack("f", value):
                return f"{float(short):.60f}".rstrip("0") if "e" in short else short
    short = f"{value:.15g}"
    return digits if "e" in short else short


def _is_affordable(value: Value) -> bool:
    """Whether evaluating an expression writes no number of more than MAX_DIGITS digits, and no very long sum."""
    if isinstance(value, MatrixBase):
        return len(value) <= 64 and all(_is_affordable(entry) for entry in value.flat())
    nodes = 0
    for node in _nodes(value):
        nodes += 1
        if nodes > MAX_NODES or type(node).__name__ in ("Sum", "Product", "Integral", "Limit"):
            return False
    return _digits(value) <= MAX_DIGITS


def _nodes(value: Basic):
    stack = [value]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.args)


def _digits(value: Basic) -> float:
    """An upper bound of the digits of a number, above or below the decimal point; symbols count 1."""
    if isinstance(value, Rational):
        return (value.p.bit_length() if isinstance(value.p, int) else int(value.p).bit_length()) * 0.302 + int(
            value.q
        ).bit_length() * 0.302
    if not value.args:
        return 1.0
    sizes = [_digits(argument) for argument in value.args]
    if max(sizes) == math.inf:
        return math.inf
    if isinstance(value, Add):
        return max(sizes) + math.log10(len(sizes)) + 1
    if isinstance(value, Mul):
        return sum(sizes)
    if isinstance(value, Pow):
        base, exponent = value.args
        size = _magnitude(exponent, sizes[1])
        if isinstance(base, Add) and base.free_symbols and size > MAX_POWER_OF_SUM:
            return math.inf
        if any(isinstance(node, Pow) and node.exp.free_symbols for node in _nodes(exponent)):
            return math.inf  # x^{x^{x}}
        return sizes[0] * max(size, 1.0)
    if isinstance(value, factorial) or type(value).__name__ in ("factorial2", "subfactorial", "gamma"):
        size = _magnitude(value.args[0], sizes[0])
        return math.inf if size > 1e6 else size * math.log10(size + 2)
    if type(value).__name__ in ("exp", "cosh", "sinh"):
        return max(_magnitude(value.args[0], sizes[0]), 1.0)
    if type(value).__name__ == "binomial":
        return 2 * max(_magnitude(argument, size) for argument, size in zip(value.args, sizes, strict=True))
    return max(sizes)


def _magnitude(value: Basic, digits: float) -> float:
    """The absolute value of an exponent, or a bound of it."""
    if digits < 16 and not value.free_symbols:
        return abs(complex(value.evalf(15)))
    if isinstance(value, Rational):
        return abs(float(value)) if digits < 300 else math.inf
    return 10.0 ** min(digits, 300.0) if not value.free_symbols else 1.0
