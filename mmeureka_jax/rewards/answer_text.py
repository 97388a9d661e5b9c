"""Answers as text: one spelling for what is written in many ways, and the values that one answer states.

Real gold answers are uneven: `7.`, `$$-2$$`, `45°`, `9 cm²`, `5$\\sqrt{2}$`, `(3,0)\\n(0,-4)`, `2.4.5.`, `trapezoid.`,
`(1)$$0.3$$ (2)$$12$$`. The functions here are string work only (no SymPy), so that what is handed to the LaTeX parser
is either a whole value or nothing: a parser that skips what it does not know reads `5$\\sqrt{2}$` as 5.
"""

from __future__ import annotations

import re
from typing import Literal

AnswerForm = Literal["instruct", "boxed"]

_CHARACTERS = str.maketrans(
    {
        **{chr(0xFF01 + offset): chr(0x21 + offset) for offset in range(94)},  # full-width ASCII
        "、": ",", "。": ".", "\u00a0": " ", "\u2009": " ", "\u3000": " ", "\t": " ", "\r": "\n",
        "′": "'", "″": "''", "‘": "'", "’": "'", "“": '"', "”": '"', "¥": "", "￥": "", "€": "", "£": "",
        "−": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "±": r"\pm ", "π": r"\pi ", "∞": r"\infty ",
        "≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ", "⩾": r"\geq ", "≠": r"\neq ", "≈": "=", "∪": r"\cup ",
        "∩": r"\cap ", "∈": r"\in ", "∠": r"\angle ", "△": r"\triangle ", "⊥": r"\perp ", "∥": r"\parallel ",
        "≌": r"\cong ", "∽": r"\sim ", "→": r"\to ", "°": r"^{\circ}", "℃": " celsius", "²": "^{2}", "³": "^{3}",
        "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
    }
)  # fmt: skip

_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^\s*\*\*(.*)\*\*\s*$", r"\1"),  # markdown bold around the whole answer
        (r"(?<!\\)\\[()\[\]]|\$\$", "$"),  # every delimiter of mathematics is one $
        (r"\\\$", ""),  # currency
        (r"\*\*", "^"),
        (r"\^\s*(-?\d+)", r"^{\1}"),  # 2^10 is no 2^{1}0
        (r"\\(?:[,;:!> ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z]))|~", " "),
        (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|limits)(?![a-zA-Z])\s*", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\(?:leqslant|leqq|le)(?![a-zA-Z])", r"\\leq "),
        (r"\\(?:geqslant|geqq|ge)(?![a-zA-Z])", r"\\geq "),
        (r"\\ne(?![a-zA-Z])", r"\\neq "),
        (r"\\(?:lt)(?![a-zA-Z])", "<"),
        (r"\\(?:gt)(?![a-zA-Z])", ">"),
        (r"\\approx(?![a-zA-Z])", "="),
        (r"\\(?:rightarrow|longrightarrow)(?![a-zA-Z])", r"\\to "),
        (r"\\(?:text|mathrm|mbox)\s*\{\s*(and|or)\s*\}", r" \1 "),
        (r"(?:(?<=^)|(?<=[(,=\s$]))[–—](?=[\d\\.(a-zA-Z])", "-"),  # a dash is a minus only where a sign can stand
        (r"√\s*\(([^()]*)\)|(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"√\s*(\d+(?:\.\d+)?|[a-zA-Z])|(?<![a-zA-Z\\])sqrt\s*(\d+)", r"\\sqrt{\1\2}"),
        (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
        # Degrees go, except before minutes of arc (40°30'), which no parser here knows, and before C.
        (r"(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*(?:\\(?:text|mathrm)\s*\{\s*C\s*\}|C(?![a-zA-Z]))", " celsius"),
        (r"\^\s*\{\s*\\circ\s*\}(?!\s*\d)|\^\s*\\circ(?![a-zA-Z])(?!\s*\d)|\\degree(?![a-zA-Z])(?!\s*\d)", ""),
        (r"(\\[a-zA-Z]+)\s+\{", r"\1{"),
        *2 * ((r"(?<![a-zA-Z}\]_^])\{(\w+)\}", r"\1"),),  # {{5}^{n}}: {5^{n}}; {{9}}: 9
        (r"(?<=[\d}$])\s*(?:percent(?:age)?|pct)\b", r"\\%"),
        (r"[ ]+", " "),
    )
]

_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|boldsymbol|bm)\s*\{([^{}]*)\}"
)
_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp max min gcd lcm mod".split()
)
_LONG_UNITS = (
    r"(?:square |cubic |sq\.? ?|cu\.? ?)?(?:mm|cm|dm|km|nm|mg|kg|ml|mL|kW|Hz|Pa|"
    r"(?:milli|centi|deci|kilo)?(?:met(?:er|re)|gram|lit(?:er|re))s?|"
    r"degrees?|radians?|rad|celsius|units?|inch(?:es)?|feet|foot|ft|yards?|miles?|"
    r"hours?|hrs?|minutes?|mins?|seconds?|secs?|days?|weeks?|months?|years?|yuan|dollars?|cents?|people|km/h|m/s|cm/s|m/min)"
)
_POWER = r"(?:\s*\^\s*(?:\{\s*\d\s*\}|\d))?"
# A single letter is a unit only where it cannot be a variable: outside $…$, after a number, or inside \text{…}.
_UNIT = re.compile(rf"(?<=[\d}})\] ])\s*(?P<unit>{_LONG_UNITS}){_POWER}$")
_UNIT_COMMAND = re.compile(
    rf"(?<=\S)\s*\\(?:text|mathrm|mbox|textrm)\s*\{{\s*(?P<unit>[mgshLlNVWAJKt]|[^{{}}]{{2,}}?)\s*\}}{_POWER}$"
)
_UNIT_LETTER = re.compile(rf"(?<=\d)\s*(?P<unit>[mgshLlNVWAJKt]){_POWER}$")
_UNIT_WORDS = re.compile(r"(?<=\d)\s*(?P<unit>[\u4e00-\u9fff]{1,6}|(?<=\s)[a-z]{3,}(?: [a-z]{2,}){0,2})$")
_UNIT_NAMES = (
    (re.compile(r"^(?:square|sq\.?) ?(.*)$"), r"\1^2"),
    (re.compile(r"^(?:cubic|cu\.?) ?(.*)$"), r"\1^3"),
    (re.compile(r"^centimet(?:er|re)s?"), "cm"),
    (re.compile(r"^millimet(?:er|re)s?"), "mm"),
    (re.compile(r"^decimet(?:er|re)s?"), "dm"),
    (re.compile(r"^kilomet(?:er|re)s?"), "km"),
    (re.compile(r"^met(?:er|re)s?"), "m"),
    (re.compile(r"^kilograms?"), "kg"),
    (re.compile(r"^grams?"), "g"),
    (re.compile(r"^lit(?:er|re)s?$|^L$"), "l"),
    (re.compile(r"^(?:hours?|hrs?)$"), "h"),
    (re.compile(r"^(?:minutes?|mins?)$"), "min"),
    (re.compile(r"^(?:seconds?|secs?)$"), "s"),
    (re.compile(r"(?<=[a-z]{3})s$"), ""),
)
_BOXED = re.compile(r"\\f?boxed\s*\{")
_CIRCLED = {chr(0x2460 + i): str(i + 1) for i in range(20)}
_STATEMENT_LISTS = (
    re.compile(r"(?:[①-⑳][\s,.;]*)+"),  # ②④⑤
    re.compile(r"(?:\(\d\)[\s,.;]*){2,}"),  # (2)(4)
    re.compile(r"\d(?:\.\s?\d){2,}\.?"),  # 2.4.5.
)
_NUMBER = r"[-+]?\d+(?:\.\d+)?"


def extract_answer(response: str, form: AnswerForm) -> tuple[str, bool]:
    """The text that the rule compares, and whether it stood in tags or a box (False: the whole response)."""
    if form == "boxed":
        return last_boxed(response) or "", True
    for line in response.split("\n"):  # as the regular expression <answer>(.*?)</answer>, whose search is quadratic
        _, opened, rest = line.partition("<answer>")
        inside, closed, _ = rest.partition("</answer>")
        if opened and closed:
            return inside, True
    if "<answer>" in response:
        return response.rpartition("<answer>")[2].partition("</answer>")[0], True
    return response, False


def clean(text: str) -> str:
    """One spelling of an answer: ASCII punctuation, LaTeX commands for signs, `$` as the only math delimiter, no degree
    signs, no sizing or spacing commands, no full stop at the end. `$`, line breaks and `\\text{…}` stay."""
    text = _unwrap_boxed(text.translate(_CHARACTERS)).strip()
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if text.count("$") % 2:  # $5: money
        text = text.replace("$", "")
    return _trim(text)


def _trim(text: str) -> str:
    text = text.strip().rstrip(".,;: ").lstrip(" =:,;").strip()
    inner = re.fullmatch(r"\$([^$]*)\$", text)
    if inner and (trimmed := inner[1].strip().rstrip(".,;: ").lstrip(" =:,;")) != inner[1]:
        return f"${trimmed.strip()}$"
    return text


def last_boxed(text: str) -> str | None:
    """The content of the last `\\boxed{…}` with balanced braces, or None."""
    ends = _brace_ends(text)
    for match in reversed(list(_BOXED.finditer(text))):
        if (end := ends.get(match.end())) is not None:
            return text[match.end() : end]
    return None


def _unwrap_boxed(text: str) -> str:
    """`\\boxed{a}` -> `a`; several boxes are several values."""
    ends = _brace_ends(text)
    contents, pieces, position = [], [], 0
    for match in _BOXED.finditer(text):
        end = ends.get(match.end())
        if match.start() < position or end is None:
            continue
        contents.append(text[match.end() : end])
        pieces += [text[position : match.start()], contents[-1]]
        position = end + 1
    return ";".join(contents) if len(contents) > 1 else "".join(pieces) + text[position:]


def _brace_ends(text: str) -> dict[int, int]:
    """Where the brace that opens just before a position closes. One pass: responses may be nothing but braces."""
    opened: list[int] = []
    ends = {}
    for match in re.finditer(r"(?<!\\)[{}]", text):
        if match[0] == "{":
            opened.append(match.end())
        elif opened:
            ends[opened.pop()] = match.start()
    return ends


def is_balanced(text: str) -> bool:
    """Whether the braces of a LaTeX text open and close in order."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def split_values(text: str) -> tuple[list[str], bool]:
    """The values that a cleaned answer states, and whether their order counts.

    Lines, `;`, `(1) … (2) …`, neighbouring `$…$ $…$` and numbers between spaces are the blanks of a question, in order.
    Commas outside brackets, `and` and `or` make a set, and so do numbered statements (`②④⑤`, `(2)(4)`, `2.4.5.`).
    """
    bare = text.replace("$", "").strip()
    if any(pattern.fullmatch(bare) for pattern in _STATEMENT_LISTS):
        return [_CIRCLED.get(mark, mark) for mark in re.findall(r"[①-⑳]|\d", bare)], False
    if re.fullmatch(rf"{_NUMBER}(?:\s+{_NUMBER})+", bare):
        return bare.split(), True

    if re.match(r"\(1\).*\(2\)", text, re.DOTALL):
        blanks = re.split(r"\(\d\)", text)[1:]
    else:
        spans = re.split(r"(\$[^$]*\$)", text)  # odd positions are the $…$ spans
        spans[2:-1:2] = ["\n" if gap and not gap.strip() else gap for gap in spans[2:-1:2]]
        separators = r"[\n;]" if r"\begin" in text else r"[\n;]|\\\\(?![a-zA-Z])"
        blanks = re.split(separators, "".join(spans))
    blanks = [value for blank in blanks if (value := _trim(blank))]
    if len(blanks) > 1:
        return blanks, True
    return [value for part in _split_commas(text) if (value := _trim(part))], False


def _split_commas(text: str) -> list[str]:
    """Splits at commas, `and` and `or` outside brackets; the commas of 12,000 are not separators."""
    parts, depth, start = [], 0, 0
    for match in re.finditer(r"[(\[{]|[)\]}]|,|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", text):
        token = match[0]
        if token in "([{":
            depth += 1
        elif token in ")]}":
            depth -= 1
        elif depth <= 0 and not (token == "," and _is_thousands(text, match.start())):
            parts.append(text[start : match.start()])
            start = match.end()
    return [part.strip().strip("$") if part.count("$") % 2 else part for part in [*parts, text[start:]]]


def _is_thousands(text: str, comma: int) -> bool:
    return bool(re.match(r",\d{3}(?!\d)", text[comma:]) and re.search(r"(?<![\d.])\d{1,3}(?:,\d{3})*$", text[:comma]))


def split_unit(value: str) -> tuple[str, str]:
    """`9 cm^{2}` -> (`9`, `cm^2`); the unit is empty where there is none. `$5m$` keeps its m: it may be a variable."""
    in_math = re.fullmatch(r"\$[^$]*\$", value) is not None
    bare = value.replace("$", "").strip()
    patterns = (_UNIT, _UNIT_COMMAND) if in_math else (_UNIT, _UNIT_COMMAND, _UNIT_LETTER, _UNIT_WORDS)
    for pattern in patterns:
        match = pattern.search(bare)
        if match is None:
            continue
        number = bare[: match.start()].strip()
        if has_value(number) and not words(number) and is_balanced(number):
            return number, _unit_name(match["unit"].strip(), match[0])
    return bare, ""


def _unit_name(unit: str, matched: str) -> str:
    """`square centimeters` -> `cm^2`; the power of `cm^{2}` is in `matched`, what the whole pattern matched."""
    power = re.search(r"\^\s*\{?\s*(\d)\s*\}?$", matched)
    for pattern, name in _UNIT_NAMES:
        unit = pattern.sub(name, unit)
    return f"{unit}^{power[1]}" if power else unit


def unwrap_commands(value: str) -> str:
    """`\\text{…}` and its kin replaced by what they hold."""
    return _TEXT_COMMAND.sub(lambda match: f" {match[1]} " if len(match[1].strip()) > 1 else match[1], value)


def unwrap_text(value: str) -> str:
    """`\\text{…}` and its kin replaced by what they hold, `$` removed."""
    return re.sub(r" +", " ", unwrap_commands(value).replace("$", "")).strip()


def words(value: str) -> list[str]:
    """Words of a natural language: three or more letters that are no function, no command and no name of points; or a
    run of Chinese characters."""
    found = re.findall(r"(?<![\\a-zA-Z])[A-Za-z]{3,}|[\u4e00-\u9fff]+", value)
    return [word for word in found if word not in _FUNCTIONS and not word.isupper()]


def has_value(value: str) -> bool:
    """Whether the text holds a digit or a constant, so that it can be what a sentence states."""
    return re.search(r"\d|\\pi|\\infty|\\sqrt|\\emptyset", value) is not None


def text_key(value: str) -> str:
    """What two answers in words are compared by: case, articles, spaces around signs and quotes do not matter."""
    value = unwrap_text(value).casefold()
    value = re.sub(r"[\"'`*]", "", value)
    value = re.sub(r"^(?:the|an?) (?=\w{3})", "", _trim(value))
    value = re.sub(r"(?<![\d:])0(?=\d:\d\d)", "", value)  # 03:45 is 3:45
    value = re.sub(r"\s+", " ", value)
    return re.sub(r" ?([^\w\s]) ?", r"\1", value).strip(" .")
