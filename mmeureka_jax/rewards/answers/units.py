r"""Units of measurement in any spelling: `cm^2`, `square centimetres`, `10\,\mathrm{cm}^{2}`, 平方厘米.

A unit is read from a text as a product of powers of named units: `kg·m/s` is {kg: 1, m: 1, s: -1}. Names are those of
the table below and nothing else; a word that is not there is no unit (`wording` decides what it does to a value).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# A line a unit: its name and other spellings. The plural in -s of a word is understood.
_TABLE = r"""
"  mm MM millimeter millimetre 毫米  cm CM cms centimeter centimetre 厘米 公分  dm decimeter decimetre 分米
m meter metre 米  km KM kilometer kilometre 千米 公里  nm nanometer nanometre 纳米
um micrometer micrometre micron 微米  inch inches in 英寸  foot feet ft 英尺  yard yd  mile mi 英里  ha hectare 公顷
acre  mu 亩  mg milligram 毫克  g gram gm 克  kg KG kgs kilogram kilogramme kilo 千克 公斤  ton tonne 吨
pound lb lbs GBP £ 英镑 磅  oz ounce  ml mL milliliter millilitre 毫升  l L liter litre 升  gallon gal
s sec second 秒 秒钟  ms millisecond 毫秒  min minute mins 分钟 分  h hr hour hrs 小时 时  day 天 日  week 周 星期
month 个月 月  year yr yrs 年 岁  deg degree ^{\circ} 度  arcmin '  arcsec ''  rad radian 弧度
celsius ^{\circ}C 摄氏度  fahrenheit ^{\circ}F 华氏度  K kelvin 开尔文 开  N newton 牛 牛顿  J joule 焦 焦耳
kJ kilojoule 千焦  W watt 瓦 瓦特  kW kilowatt 千瓦  Pa pascal 帕 帕斯卡  kPa kilopascal 千帕  MPa megapascal 兆帕
Hz hertz 赫兹 赫  kHz kilohertz 千赫  MHz megahertz 兆赫  V volt 伏 伏特  kV kilovolt 千伏  mV millivolt 毫伏
A amp ampere 安 安培  mA milliampere milliamp 毫安  ohm \Omega 欧 欧姆  kohm k\Omega  C coulomb 库仑 库
F farad 法拉  T tesla 特斯拉  Wb weber 韦伯  eV electronvolt electron_volt electron_volts 电子伏特
us microsecond \mu_s  ug microgram \mu_g  uA microampere microamp \mu_A  uF microfarad \mu_F  uC microcoulomb \mu_C
uL microliter \mu_L  mol mole 摩尔 摩  cal calorie 卡  kcal kilocalorie 千卡  kWh 度电 千瓦时  atm atmosphere  bar
lx lux  lm lumen  dB decibel  u amu  pixel px  byte bytes  bit bits  knot  rpm r/min 转/分  person people 人 名
dollar USD \dollar 美元  cent 美分  yuan RMB CNY ¥ 元 块  euro EUR € 欧元  jiao 角  percent % percentage pct
unit 单位
"""
_DERIVED = {
    "mph": (("mile", 1), ("h", -1)),
    "kmph": (("km", 1), ("h", -1)),
    "kph": (("km", 1), ("h", -1)),
    "kWh": (("kW", 1), ("h", 1)),
    "cc": (("cm", 3),),
}
_CURRENCY = {
    r"\dollar": "dollar", "USD": "dollar", "¥": "yuan", "RMB": "yuan", "CNY": "yuan", "€": "euro", "£": "pound",
}  # fmt: skip
# A single letter is a unit only where it cannot be a variable: outside $…$ and after a number.
_LETTERS = frozenset("mgshlLNVWAJKTCF")
_WITHOUT_POWERS = frozenset(("deg", "arcmin", "arcsec", "percent"))


def _spellings() -> dict[str, str]:
    """Every spelling of the table, and its plural, with the name of the unit."""
    found = {name: name for name in _DERIVED}
    for entry in re.split(r"\n|\s{2,}", _TABLE.strip()):
        words = [word.replace("_", " ") for word in entry.split()]
        for word in words:
            found[word] = words[0]
            if len(word) > 2 and word.isascii() and word.isalpha():
                found.setdefault(f"{word}s", words[0])
    found[r"\mu m"] = "um"
    return found


def _pattern(word: str) -> str:
    return re.escape(word) + (r"(?![a-zA-Z])" if word[-1].isascii() and word[-1].isalpha() else "")


_WORDS = _spellings()
_LONG = {word.lower(): name for word, name in _WORDS.items() if word.isascii() and word.isalpha() and len(word) > 3}
_LONG_WORD = re.compile(r"[A-Za-z]{4,}")
_ATOM = re.compile("|".join(map(_pattern, sorted(_WORDS, key=len, reverse=True))))
_POWER = re.compile(r"\s?\^\s?\{?(-?\d)\}?|(\d)(?![\d.])| (squared|cubed)\b")
_PRODUCT = re.compile(r"\s?(?:\\cdot|\\times|\*|·|-)\s?|\s(?=\\?[a-zA-Z])")
_QUOTIENT = re.compile(r"\s?(?:/|\bper\b|每)\s?(?:an? |one )?")
_PREFIX_POWER = re.compile(r"(?:(square|sq\.?|平方)|cubic|cu\.?|立方)\s?", re.IGNORECASE)


@dataclass(frozen=True)
class Unit:
    """powers: (name, power), sorted by name. Percent and degrees are units here; `equality` knows what they do."""

    powers: tuple[tuple[str, int], ...]

    @property
    def is_percent(self) -> bool:
        return self.powers == (("percent", 1),)

    @property
    def is_generic(self) -> bool:
        """Units of nothing in particular: 8 units^2."""
        return all(name == "unit" for name, _ in self.powers)


DEGREE = Unit((("deg", 1),))
ARC_MINUTE = Unit((("arcmin", 1),))
ARC_SECOND = Unit((("arcsec", 1),))
HOUR = Unit((("h", 1),))
MINUTE = Unit((("min", 1),))
METRE = Unit((("m", 1),))
SECOND = Unit((("s", 1),))


@lru_cache(maxsize=4096)
def match_unit(text: str) -> tuple[Unit, str] | None:
    """The unit that a text begins with, the longest one, and the rest of the text; None if it begins with none."""
    powers: dict[str, int] = {}
    rest = _read_product(text.lstrip(), powers, 1)
    unit = Unit(tuple(sorted((name, power) for name, power in powers.items() if power)))
    return None if rest is None or not unit.powers else (unit, rest)


def match_currency(text: str) -> tuple[Unit, str] | None:
    """The currency in front of an amount, and the rest of the text."""
    text = text.lstrip()
    for sign, name in _CURRENCY.items():
        if text.startswith(sign):
            return Unit(((name, 1),)), text[len(sign) :].lstrip()
    return None


def is_letter_unit(text: str) -> bool:
    """Whether a text is a unit of one letter, which could be a variable as well."""
    return text in _LETTERS


def _read_product(text: str, powers: dict[str, int], sign: int) -> str | None:
    """Adds the powers of a product or quotient of units, and returns the rest of the text; None if it begins with no
    unit."""
    rest = _read_power(text, powers, sign)
    while rest is not None:
        after = None
        if quotient := _QUOTIENT.match(rest):
            after = _read_power(rest[quotient.end() :], powers, -1)
        elif product := _PRODUCT.match(rest):
            after = _read_power(rest[product.end() :], powers, sign)
        if after is None:
            return rest
        rest = after
    return None


def _read_power(text: str, powers: dict[str, int], sign: int) -> str | None:
    """One unit with its power, or several in parentheses."""
    if text.startswith("("):
        inner: dict[str, int] = {}
        rest = _read_product(text[1:].lstrip(), inner, sign)
        if rest is None or not rest.lstrip().startswith(")"):
            return None
        for unit, times in inner.items():
            powers[unit] = powers.get(unit, 0) + times
        return rest.lstrip()[1:]
    exponent = 1
    if prefix := _PREFIX_POWER.match(text):
        exponent = 2 if prefix[1] else 3
        text = text[prefix.end() :]
    found = _read_name(text)
    if found is None:
        return None
    name, rest = found
    if name not in _WITHOUT_POWERS and (power := _POWER.match(rest)):
        digits = power[1] or power[2]
        exponent = int(digits) if digits else {"squared": 2, "cubed": 3}[power[3]]
        rest = rest[power.end() :]
    for part, times in _DERIVED.get(name, ((name, 1),)):
        powers[part] = powers.get(part, 0) + sign * exponent * times
    return rest


def _read_name(text: str) -> tuple[str, str] | None:
    if (word := _LONG_WORD.match(text)) and word[0].lower() in _LONG:
        name = _LONG[word[0].lower()]
        rest = text[word.end() :]
    elif atom := _ATOM.match(text):
        name = _WORDS[atom[0]]
        rest = text[atom.end() :]
    else:
        return None
    if name == "deg":
        for scale, letter in (("celsius", "c|centigrade"), ("fahrenheit", "f")):
            if degrees := re.match(rf"\s?(?:{scale}|{letter})(?![a-zA-Z])", rest, re.IGNORECASE):
                return scale, rest[degrees.end() :]
    return name, rest
