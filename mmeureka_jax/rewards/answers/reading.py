r"""The grammar of answers: what an answer states, as small records.

    answer    one part, or several: blanks in order (lines, `;`, `(1) … (2) …`) or a set (commas, `and`, `or`, ②④)
    part      [name =] body [unit], with words around it (`wording`) that must leave the value as it is
    body      an expression, a sequence `(1, 2)`, a collection `{1, 2}`, a ratio `1:2:3`, a compound `3 h 20 min`,
              a region `x > 2`, `[2, 5)`, `A \cup B`, or a relation `AB \parallel CD`, `2x - y = 0`
    words     whatever is none of these: it equals only the same words

Some texts have several readings (`5m` is five metres or five times m; `(2, 5)` a point or an interval). All of them are
kept, and two answers agree if any reading of one agrees with any of the other. Nothing is evaluated here, but that the
sides of a chain have to be equal.
"""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache

from sympy import Expr, Rational

from mmeureka_jax.rewards.answers import mathematics, notation, wording
from mmeureka_jax.rewards.answers.names import is_word
from mmeureka_jax.rewards.answers.parts import EQUAL, ORDER, SIGN, depths, split_parts, split_top
from mmeureka_jax.rewards.answers.records import (
    Answer,
    Collection,
    Compound,
    Expression,
    Part,
    Ratio,
    Relation,
    Sequence,
)
from mmeureka_jax.rewards.answers.regions import read_region
from mmeureka_jax.rewards.answers.units import (
    ARC_MINUTE,
    ARC_SECOND,
    DEGREE,
    HOUR,
    METRE,
    MINUTE,
    SECOND,
    Unit,
    is_letter_unit,
    match_currency,
    match_unit,
)

MAX_PARTS = 40

_STATEMENT = re.compile(
    r"([^\d\n]*?[A-Za-z)}|]\s+(?:is equal to|equals|is|are)\s+|[^\d\n]*?(?:是|为|等于|共|有|得|剩)\s*)"
    r"(?=[\d\\$(\[{+\-.])(.*)",
    re.DOTALL,
)
# Words in front of a relation, or of several values: `The solutions are x = 3 and x = -3`.
_FRAME = re.compile(
    r"([A-Za-z \\$]*?\b(?:is|are|get|have)\s+)(?=\$?\\?[a-zA-Z]\w?\s*(?:=|<|>|\\[lgn]eq|\\in))(.*)", re.DOTALL
)
# What a unit is after another: 35度36分, 4h 25m.
_BEHIND = {(DEGREE, MINUTE): ARC_MINUTE, (DEGREE, SECOND): ARC_SECOND, (HOUR, METRE): MINUTE}
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp max min gcd lcm det mod".split()
)
_WORD = re.compile(
    r"(?<![\\A-Za-z0-9}\])_^{])(?:[A-Za-z][a-z]{2,}|[A-Z]{3,})(?![A-Za-z_^({/])"
    r"|(?<![\w\\}\])^{+\-*/=])(?:or|and|not|no|of|is|to|if|at|by|be|it|as|an|so|my)(?![A-Za-z_^({/+\-*=])"
    r"|[\u4e00-\u9fff]+"
)
_LEAD_WORD = re.compile(
    r"\s*([A-Za-z]+(?:['\-][A-Za-z]+)*|[\u4e00-\u9fff]+)(\.(?=\s)|[,:*]*)(?=[\s\\$\d(\[{.,:*\u4e00-\u9fff]|$)"
)
_SHORT_WORDS = frozenset("or and not no of is to if at by be it as an so my a i we he in on up".split())
_TAIL_START = re.compile(
    r"(?<![\\A-Za-z])[A-Za-z]+|\\(?:Omega|mu|dollar)(?![a-zA-Z])|\^\{\\circ\}|[%'€£¥]|[\u4e00-\u9fff]+"
    r"|\((?=[A-Za-z]{2}[^()]*\)$|[a-zA-Z]\)$)"
)
# N60°W, A-C-B: no products and differences of their letters.
_ORDERED_LETTERS = re.compile(r"[NESW]\s?\d+(?:\.\d+)?\^\{\\circ\}\s?[NESW]|[A-Z](?:-[A-Z]){2,}")
_GROUPED = re.compile(r"(?<![\d.,])(\d{1,3})((?: \d{3})+)(?![\d])(?! \d)")


@lru_cache(maxsize=512)
def read(text: str) -> tuple[Answer, ...]:
    """All readings of an answer that `notation.normalise` has spelled; none for an empty one."""
    if max(depths(text), default=0) > mathematics.MAX_DEPTH:
        return (Answer(((Part(notation.trim(notation.unwrap_text(text))),),)),)
    grouped = _GROUPED.sub(lambda match: match[0].replace(" ", ""), text)
    spellings = [grouped] if grouped == text or re.search(r"\d 0", text) else [text, grouped]
    return tuple(answer for spelling in spellings for answer in _read_answer(spelling))


def _read_answer(text: str) -> list[Answer]:
    region = read_region(notation.unwrap_text(text))
    answers = [Answer(((region,),))] if region is not None else []
    if (compound := _read_compound(re.sub(r",? and |,", " ", text))) is not None:
        answers.append(Answer(((Part(text, compound),),)))
    parts, ordered, alternatives = split_parts(text)
    if not parts or len(parts) > MAX_PARTS:
        return answers
    if len(parts) == 1 and r"\pm" in parts[0]:
        upper, lower = _plus_and_minus(parts[0])
        answers.append(Answer((read_part(upper), read_part(lower))))
    answers.append(Answer(tuple(read_part(part) for part in parts), ordered, alternatives))
    return answers


def without_frame(text: str) -> str:
    """An answer without the words in front of its relations."""
    frame = _FRAME.fullmatch(text)
    return text if frame is None or wording.denies(frame[1]) else frame[2]


def _plus_and_minus(text: str) -> tuple[str, str]:
    upper = text.replace(r"\pm", "+").replace(r"\mp", "-")
    lower = text.replace(r"\pm", "-").replace(r"\mp", "+")
    return re.sub(r"(^|[=$({,])\s*\+\s*", r"\1", upper), lower


@lru_cache(maxsize=1024)
def read_part(text: str) -> tuple[Part, ...]:
    """All readings of one part; the first is the one that words are compared by."""
    in_math = re.fullmatch(r"\$[^$]*\$", text.strip()) is not None
    plain = notation.trim(notation.unwrap_text(text))
    whole = Part(plain)
    sides, signs = split_top(plain, SIGN)
    if signs:
        readings = _read_relation(sides, signs)
    elif (statement := _STATEMENT.fullmatch(plain)) and wording.states(statement[1]):
        readings = _read_value(statement[2], False)
    else:
        readings = _read_value(plain, in_math)
    return (whole, *(replace(reading, text=plain) for reading in readings))


# Relations.


def _read_relation(sides: list[str], signs: list[str]) -> list[Part]:
    if r"\Rightarrow" in signs:  # 2x = 14, so x = 7
        last = len(signs) - signs[::-1].index(r"\Rightarrow")
        follows = last > 1 and signs[0] != r"\Rightarrow" and bool(signs[last:])
        return _read_relation(sides[last:], signs[last:]) if follows else []
    if len(signs) > 6 or any(wording.denies(side) for side in sides):
        return []
    if signs[0] in EQUAL and not sides[0]:  # ≈ 42
        return _read_value(sides[1], False) if len(sides) == 2 else []
    if all(sign in EQUAL for sign in signs):
        return _read_chain(sides, signs)
    if signs == [r"\in"]:
        return _read_membership(*sides)
    if all(sign in ORDER for sign in signs):
        if len(signs) == 1 and sides[0] and sides[1]:
            left, right = sides if signs[0] in ("<", r"\leq", r"\neq") else sides[::-1]
            sign = {"<": "<", ">": "<", r"\leq": r"\leq", r"\geq": r"\leq", r"\neq": r"\neq"}[signs[0]]
            return [Part("", Relation(sign, left, right))]
        return _read_order(sides, signs)
    if len(signs) == 1 and all(sides):
        return [Part("", Relation(signs[0], *sides))]
    return []


def _read_order(sides: list[str], signs: list[str]) -> list[Part]:
    """`a < b < c`, from the small end; a region if all but one side are numbers."""
    if {*signs} <= {">", r"\geq"}:
        sides = sides[::-1]
        signs = [{">": "<", r"\geq": r"\leq"}[sign] for sign in signs[::-1]]
    if not {*signs} <= {"<", r"\leq"} or not all(sides):
        return []
    chain = sides[0] + "".join(f" {sign} {side}" for sign, side in zip(signs, sides[1:], strict=True))
    region = read_region(chain)
    return [Part("", Relation("<", chain, ""))] + ([region] if region is not None else [])


def _read_chain(sides: list[str], signs: list[str]) -> list[Part]:
    r"""`x = 6 \cdot 7 = 42`: a name, and the last side as its value. What is claimed to be equal must be."""
    if not all(sides) or not _chain_holds(sides, signs) or sides[0].lower() in ("true", "false", "yes", "no"):
        return []
    first = sides[0]
    last = sides[-1]
    if re.fullmatch(r"\([a-zA-Z](?:, ?[a-zA-Z])+\)", first):  # (x, y) = (1, 2)
        return _read_value(last, False) if len(sides) == 2 else []
    if is_name(last) and not is_name(first):  # 7 = x
        first, last = last, first
    if any(re.search(r"\d\s+[a-zA-Z]$", side) for side in sides[1:-1]):
        return []  # x = 5 y = 3: two statements
    equation = Relation("=", first, last)
    if is_name(first):
        formula = first.endswith(")") or (len(first) == 1 and len(last) > 1)  # f(x) = x, P = UI
        if is_name(last) and len(sides) == 2 and not formula:
            return [Part("", equation)]
        return [replace(part, name=first, equation=equation) for part in _read_value(last, False)]
    values = [_number_of(side) for side in sides]
    if all(value is not None for value in values):
        readings = _read_value(last, False)
        # 1/3 ≈ 0.333 states the exact value and rounds it.
        exact = re.search(r"[/\\]", sides[-2]) is not None
        if signs[-1] == r"\approx" and exact and re.match(r"-?\d+\.\d", last):
            readings += _read_value(sides[-2], False)
        return readings
    if _is_identity(first, last):  # x^2 - 1 = (x + 1)(x - 1)
        return _read_value(last, False)
    readings = [Part("", equation)] if len(sides) == 2 else []
    if is_quantity(first) and values[-1] is not None:
        readings += [replace(part, name=first) for part in _read_value(last, False)]
    return readings


def is_quantity(text: str) -> bool:
    """Whether a text is a sum, product or square that a problem may ask for: a + b, x^2 + y^2, BC^2. Not x^2 or 2x,
    whose value is a step on the way to x."""
    names = re.sub(
        r"\^\{?2\}?|\\cdot|\\times|\\(?:sin|cos|tan|vec|angle|frac|alpha|beta|theta)(?![a-zA-Z])|[{}|]", " ", text
    )
    if re.search(r"[^A-Za-z+\-*/() ]", names) or wording.denies(names) or re.search("[a-z]{3}", names):
        return False
    return len(re.findall("[A-Za-z]", names)) > 1


def _chain_holds(sides: list[str], signs: list[str]) -> bool:
    for left, sign, right in zip(sides, signs, sides[1:], strict=False):
        if re.sub(r"\s", "", left) == re.sub(r"\s", "", right):
            return False
        a = _number_of(left)
        b = _number_of(right)
        if a is None or b is None:
            continue
        if sign == r"\approx":
            x = mathematics.numeric(a)
            y = mathematics.numeric(b)
            if x is None or y is None or abs(x - y) > 0.05 * max(abs(x), abs(y)):
                return False
        elif not mathematics.same(a, b):
            return False
    return True


def _is_identity(left: str, right: str) -> bool:
    a = mathematics.parse(left)
    b = mathematics.parse(right)
    return a is not None and b is not None and mathematics.same(a, b)


def _number_of(side: str) -> mathematics.Value | None:
    """The number that one side of an equation is, its unit left out, percent counted; None for anything else."""
    side = re.sub(r"(?<=\d) ?([A-Za-z]+(?:\^\{?\d\}?)?)(?= *[-+=]|$)", _without_unit, side)
    for part in [] if is_name(side) else _read_value(side, False):
        if isinstance(part.body, Expression):
            value = mathematics.parse(part.body.text)
            if isinstance(value, Expr) and mathematics.is_number(value):
                percent = part.unit is not None and part.unit.is_percent
                return value * Rational(part.body.scale) / (100 if percent else 1)
    return None


def _without_unit(match: re.Match[str]) -> str:
    found = match_unit(match[1])
    return "" if found is not None and not found[1] else match[0]


def is_name(text: str) -> bool:
    r"""Whether a text names a value: `x`, `f(2)`, `S_{\triangle ABC}`, `\angle ABC`, `|AB|`, `the area`."""
    if not text:
        return False
    if re.fullmatch(r"[A-Za-z\u4e00-\u9fff' ]*[\u4e00-\u9fff]+|(?:[A-Za-z']+ )*[A-Za-z']{3,}", text):
        return True
    name = re.sub(r"_\s*(?:\{[^{}]*\}|\w|\\[a-zA-Z]+)", "", text)  # subscripts
    name = re.sub(r"^([A-Z])\^\{?(?:-1|T)\}?$", r"\1", name)  # a matrix's
    name = re.sub(r"^([A-Za-z]|\\[a-zA-Z]+)'*(?:\^\{?-1\}?)?\s*\([^()=]*\)$", r"\1", name)  # f(2)
    if re.search(r"[\d+*/^,;]|-|\\(?:times|cdot|div|pm|sqrt|pi|infty|frac|circ|cup|cap|log|ln)(?![a-zA-Z])", name):
        return bool(
            re.fullmatch(r"\\frac\{[A-Z]{1,2}\}\{[A-Z]{1,2}\}|[A-Z]{2}/[A-Z]{2}|\\(?:angle|triangle)\s*\d", name)
        )
    return re.search(r"[A-Za-z\u4e00-\u9fff]", name) is not None and len(name) <= 60


def _read_membership(left: str, right: str) -> list[Part]:
    r"""`x \in \{7\}`."""
    return [replace(part, name=left) for part in _read_value(right, False) if isinstance(part.body, Collection)]


# Values.


def _read_value(text: str, in_math: bool) -> list[Part]:
    """Readings of a text without a relation, with the words around its value."""
    text = text.strip()
    if not text or _ORDERED_LETTERS.fullmatch(text):
        return []
    if (bracketed := _read_brackets(text)) is not None:
        return bracketed
    pieces, colons = split_top(text, re.compile(":"))
    if colons and all(pieces) and not _WORD.search(text):
        return _read_ratio(pieces)
    lead, body = _split_lead(text)
    sign = wording.read_lead(lead)
    if sign is None or not body:
        return []
    if lead and (bracketed := _read_brackets(body)) is not None:
        return _signed(bracketed, sign)
    unit = None
    if money := match_currency(body):
        unit, body = money
        if not body:
            return []
    if unit is None and (compound := _read_compound(body)) is not None:
        return _signed([Part("", compound)], sign)
    readings = []
    if not _WORD.search(body):
        readings.append(Part("", Expression(body, Fraction(sign)), unit=unit))
    readings += _with_tail(body, sign, unit, in_math)
    return readings


def _signed(readings: list[Part], sign: int) -> list[Part]:
    """Readings after `minus`, which only numbers and formulas may follow."""
    if sign > 0:
        return readings
    return [
        replace(part, body=replace(part.body, scale=-part.body.scale))
        for part in readings
        if isinstance(part.body, Expression)
    ]


def _with_tail(body: str, sign: int, currency: Unit | None, in_math: bool) -> list[Part]:
    """Readings of a value with a unit or words after it."""
    for match in _TAIL_START.finditer(body):
        core = body[: match.start()].rstrip(" ,-")
        if not core or _WORD.search(core) or not notation.is_balanced(core) or not _can_end(core):
            continue
        attached = body[match.start() - 1] not in " ~"
        if in_math and attached and match[0] != "(" and is_letter_unit(match[0]):
            continue
        tail = body[match.start() :]
        if match[0] == "(":
            tail = tail[1:-1]  # 12 (cm)
        scale = Fraction(1)
        unit = currency
        found = match_unit(tail)
        if found is None:
            scale, tail = wording.read_scale(tail)
            found = match_unit(tail)
        if found is not None and (currency is None or found[0] == currency):
            unit, tail = found
            if attached and tail[:1].isalnum():
                continue
        zero_sign, tail = wording.read_zero(tail)
        if zero_sign < 0:
            unit = None  # degrees of whatever scale
        words = wording.read_tail(tail, counted=unit is None and scale == 1)
        if words is None or (attached and found is None and scale == 1 and match[0].isascii()):
            continue
        return [Part("", Expression(core, sign * zero_sign * scale), unit=unit, counted=words if unit is None else ())]
    return []


def _can_end(core: str) -> bool:
    return core[-1] in "0123456789)}]!|" or re.search(r"(?:\\[a-zA-Z]+|[a-zA-Z])$", core) is not None


def _split_lead(text: str) -> tuple[str, str]:
    """The words in front of a value, and the rest."""
    end = 0
    while match := _LEAD_WORD.match(text, end):
        word = match[1]
        if word.isascii():
            lowered = word.lower()
            if any(len(piece) == 1 for piece in word.split("-")) and "-" in word:
                break  # v-at
            if lowered in _FUNCTIONS or (len(word) < 3 and lowered not in _SHORT_WORDS):
                break
            if not is_word(word) and 1 < len(word) < 5 and word.isalpha():
                break  # BLv, a product
            if word.isupper() and len(word) > 1 and not wording.is_known(lowered):
                break
            if len(word) == 1 and not re.match(r"\s+[A-Za-z]{2}", text[match.end() :]):
                break
        end = match.end()
    return text[:end], text[end:].strip(" :*,")


def _read_brackets(text: str) -> list[Part] | None:
    """A sequence or a collection, if the whole text is one."""
    name = re.match(r"([A-Z]'?(?:_\{?\w+\}?)?)\s*(?=\()", text)
    inner = text[name.end() :] if name else text
    match = re.fullmatch(r"(\\\{|[(\[{])(.*?)(\\\}|[)\]}])", inner, re.DOTALL)
    if match is None or not _closes_at_end(inner):
        return None
    left = match[1][-1]
    content = match[2].strip()
    right = match[3][-1]
    items, commas = split_top(content, re.compile(","))
    if len(items) > MAX_PARTS:
        return []
    if not commas:
        if name or not content or (left, right) not in (("(", ")"), ("[", "]"), ("{", "}")):
            return None
        return _read_value(content, False) if left != "{" else [Part("", Collection((read_part(content),)))]
    if re.search(r"(?<!\d)\d{1,3}(?:,\d{3})+(?!\d)", content) and len(items) != 2:
        return None
    read_items = tuple(read_part(item) for item in items)
    if not all(items):
        return []
    if left == "{" and right == "}":
        return [Part("", Collection(read_items))]
    return [Part("", Sequence(left, read_items, right), name=name[1] if name else "")]


def _closes_at_end(text: str) -> bool:
    around = depths(text)
    start = 1 if text[0] == "\\" else 0
    return all(depth > 0 for depth in around[start + 1 : -1]) and around[-1] == 0


def _read_ratio(pieces: list[str]) -> list[Part]:
    """`1:2:3`; what continues without end is words."""
    if any(r"\ldots" in piece for piece in pieces):
        return []
    return [Part("", Ratio(tuple(pieces), len(pieces) == 2 and _is_time(pieces)))]


def _is_time(pieces: list[str]) -> bool:
    hours, minutes = pieces
    return re.fullmatch("[01]?[0-9]|2[0-4]", hours) is not None and re.fullmatch("[0-5][05]", minutes) is not None


def _read_compound(text: str) -> Compound | None:
    """`3 h 20 min`, `22°30'`, 3小时20分."""
    amounts: list[tuple[str, Unit]] = []
    rest = text
    while number := re.match(r"\s*(\d+(?:\.\d+)?)\s*", rest):
        found = match_unit(rest[number.end() :])
        if found is None:
            return None
        unit = found[0]
        if amounts:
            unit = _BEHIND.get((amounts[0][1], unit), unit)
        amounts.append((number[1], unit))
        rest = found[1]
    return Compound(tuple(amounts)) if len(amounts) > 1 and not rest.strip() else None
