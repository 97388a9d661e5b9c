"""Plain numbers, exactly, and how far one that was rounded may be off."""

from __future__ import annotations

import re
import struct
from decimal import Decimal

from sympy import Rational

EXACT = Rational(0)  # the tolerance of numbers that nobody rounded
ROUNDED_DIGITS = 8  # a decimal of so many significant digits was rounded, by a computer or by hand

_MAX_LENGTH = 2000  # characters
_FLOAT_DIGITS = (15, 17)  # significant digits that a float is written with
_LARGEST_FLOAT32 = 3.4e38
_NUMBER = re.compile(
    r"(?P<sign>[-+]?)\s*(?P<digits>\d+(?:\.\d*)?|\.\d+)(?:\s*\\(?:times|cdot)\s*10\^\{(?P<power>[-+]?\d{1,3})\})?",
    re.ASCII,
)
_FRACTION = re.compile(
    r"(?P<sign>[-+]?)\s*(?:\\frac\{(-?\d{1,300})\}\{(-?\d{1,300})\}|(\d{1,300})\s*/\s*(\d{1,300}))", re.ASCII
)


def parse_number(text: str) -> Rational | None:
    """A plain decimal, power of ten or fraction: most answers, and far faster than the LaTeX parser."""
    if len(text) > _MAX_LENGTH:
        return None
    if plain := _NUMBER.fullmatch(text):
        number = Rational(*_without_noise(plain).as_integer_ratio())
        return -number if plain["sign"] == "-" else number
    if fraction := _FRACTION.fullmatch(text):
        above = int(fraction[2] or fraction[4])
        below = int(fraction[3] or fraction[5])
        return None if below == 0 else Rational(above, below) * (-1 if fraction["sign"] == "-" else 1)
    return None


def precision(text: str) -> Rational:
    """What a decimal of very many digits, as `str` of a float or a calculator writes it, may be off by: half a unit in
    its last place. 0 for every other number, which is exact."""
    plain = _NUMBER.fullmatch(text.strip())
    if plain is None or "." not in plain["digits"]:
        return EXACT
    number = _without_noise(plain).as_tuple()
    if len(number.digits) < ROUNDED_DIGITS:
        return EXACT
    return Rational(1, 2) * Rational(10) ** int(number.exponent)


def _without_noise(plain: re.Match[str]) -> Decimal:
    """A decimal, without its sign, as it was before a computer wrote it: 0.30000000000000004 is 0.3, and so is
    0.30000001192092896, which is what float32 makes of it."""
    number = Decimal(f"{plain['digits']}e{plain['power'] or 0}")
    few, many = _FLOAT_DIGITS
    if not plain["digits"].partition(".")[2].strip("0") or not few <= len(number.as_tuple().digits) <= many:
        return number
    value = float(number)
    if number not in (Decimal(repr(value)), Decimal(f"{value:.{many}g}")):
        return number  # no computer writes it so
    short = _shortest_float32(value) or f"{value:.{few}g}"
    return number if "e" in short and not plain["power"] else Decimal(short)


def _shortest_float32(value: float) -> str | None:
    """The shortest decimal that float32 rounds to a value; None if the value is no float32."""
    if value > _LARGEST_FLOAT32 or struct.unpack("f", struct.pack("f", value))[0] != value:
        return None
    spellings = (f"{value:.{digits}g}" for digits in range(1, 10))
    return next(short for short in spellings if struct.pack("f", float(short)) == struct.pack("f", value))
