r"""One spelling for what is written in many ways: ASCII punctuation, LaTeX commands for signs, no spacing commands.

Real gold answers are uneven: `7.`, `$$-2$$`, `45°`, `5$\sqrt{2}$`, `(3,0)\n(0,-4)`, `1e-07`, `2 1/3`, `12\,000`. Every
rewrite keeps the value: what cannot be spelled otherwise stays as it is.
"""

from __future__ import annotations

import re
import unicodedata

from mmeureka_jax.rewards.answers.spellings import REWRITES


def _vulgar_fraction(character: str) -> str:
    above, below = unicodedata.normalize("NFKC", character).split("\u2044")
    return rf"\frac{{{above}}}{{{below}}}"


def _greek(letter: str) -> str:
    return rf"\{unicodedata.name(letter).split()[-1].lower().replace('lamda', 'lambda')} "


_CHARACTERS = str.maketrans(
    {
        **{chr(0xFF01 + offset): chr(0x21 + offset) for offset in range(94)},  # full-width ASCII
        **{letter: _greek(letter) for letter in "αβγδεζηθκλμνξπρστφχψω"},
        **{chr(code): _vulgar_fraction(chr(code)) for code in (0xBC, 0xBD, 0xBE, *range(0x2150, 0x215F))},
        "、": ",", "【": "[", "】": "]", "。": ".", "．": ".", "\u00a0": " ", "\u2009": " ", "\u202f": " ",
        "\u3000": " ", "\t": " ",
        "\r": "\n",
        "′": "'", "″": "''", "‘": "'", "’": "'", "“": '"', "”": '"', "￥": "¥", "∶": ":", "〜": " ", "~": " ",
        "−": "-", "‐": "-", "‑": "-", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
        "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "⩽": r"\leq ", "⩾": r"\geq ",
        "≦": r"\leq ", "≧": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "≒": r"\approx ", "≅": r"\cong ", "≌": r"\cong ",
        "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∉": r"\notin ", "⊂": r"\subset ", "⊆": r"\subseteq ",
        "∅": r"\emptyset ", "∠": r"\angle ", "△": r"\triangle ", "⊥": r"\perp ", "∥": r"\parallel ",
        "∽": r"\sim ",
        "→": r"\to ", "⇒": r"\Rightarrow ", "…": r"\ldots ", "⋯": r"\ldots ", "¬": r"\neg ", "¢": " cents", "⁄": "/",
        "∕": "/",
        "°": r"^{\circ}", "º": r"^{\circ}", "℃": r"^{\circ}C", "℉": r"^{\circ}F", "⊙": r"\odot ", "µ": r"\mu ",
        "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "Ω": r"\Omega ", "\u2126": r"\Omega ",
        "Δ": r"\Delta ",
    }
)  # fmt: skip
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n")
_RAISED_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_LOWERED = str.maketrans("₀₁₂₃₄₅₆₇₈₉ₙ", "0123456789n")
_LOWERED_RUN = re.compile("[₀₁₂₃₄₅₆₇₈₉ₙ]+")
_MARKS = {"√": "对", "✓": "对", "✔": "对", "×": "错", "✗": "错", "✘": "错"}  # whole answers
# Text whose direction is turned around reads as something else than its characters say.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")

_ENVIRONMENT = re.compile(
    r"(?P<system>\\\{\s*)?\\begin\s*\{(?P<name>aligned|align\*?|split|gathered|cases|array|matrix)\}(?:\s*\{[lcr|\s]*\})?"
    r"(?P<rows>.*?)\\end\s*\{(?P=name)\}(?:\s*\.)?",
    re.DOTALL,
)
_MATRIX = re.compile(r"\\begin\{(\w+)\}.*?\\end\{\1\}", re.DOTALL)
_RECURRING = (
    re.compile(r"(?P<whole>\d+)\.(?P<fixed>\d*)\\overline\s*\{(?P<cycle>\d+)\}"),
    re.compile(r"(?P<whole>\d+)\.(?P<fixed>\d*)\\dot\s*\{?(?P<cycle>\d)\}?(?P<middle>\d*)\\dot\s*\{?(?P<last>\d)\}?"),
    re.compile(r"(?P<whole>\d+)\.(?P<fixed>\d*)\\dot\s*\{?(?P<cycle>\d)\}?(?!\d*\\dot)"),
    re.compile(r"(?P<whole>\d+)\.(?P<fixed>\d*)\((?P<cycle>\d+)\)"),
    re.compile(r"(?P<whole>\d+)\.(?P<fixed>\d{0,9}?)(?P<cycle>\d{1,9}?)(?P=cycle){2,9}(?:\.\.\.|\\[lc]?dots\b)"),
)
_TEXT_COMMAND = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathit|mathsf|mbox|operatorname|boldsymbol|bm|emph|underline)"
    r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
)


def normalise(text: str) -> str:
    r"""One spelling of an answer. `$`, line breaks and `\text{…}` stay. "" if the direction of the text is turned."""
    if _DIRECTION.search(text):
        return ""
    text = _INVISIBLE.sub("", text)
    text = _MARKS.get(text.strip(), text)
    text = re.sub(r"(?<=\d)\s*[~〜～]\s*(?=\d)", "–", text)  # from 10 to 11
    text = _raised_and_lowered(text.translate(_CHARACTERS)).strip()
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = _MATRIX.sub(lambda match: match[0].replace("\n", " "), _ENVIRONMENT.sub(_unwrap_rows, text))
    for pattern in _RECURRING:
        text = pattern.sub(_as_fraction, text)
    return collapse(trim(_money(text)))


def trim(text: str) -> str:
    """Without white space, quotes, markdown and the punctuation that ends a sentence, inside `$…$` too."""
    while True:
        before = text
        text = text.strip().rstrip(",;: ").lstrip(",;: ").strip()
        text = text if text.endswith("..") else text.rstrip(".,;: ")
        text = re.sub(r"\s+only$", "", text)
        for quote in ('"', "'", "`", "**", "__", "*", "_"):
            if len(text) > 2 * len(quote) and text.startswith(quote) and text.endswith(quote):
                text = text[len(quote) : -len(quote)]
        inner = re.fullmatch(r"\$([^$]*)\$", text)
        if inner is not None and (trimmed := inner[1].strip().rstrip(".,;: ").lstrip(",;: ")) != inner[1]:
            text = f"${trimmed}$"
        if text == before:
            return text


def unwrap_text(text: str) -> str:
    r"""`\text{…}` and its kin replaced by what they hold, with spaces around words; `$` removed."""
    for _ in range(3):  # \textbf{\text{(C)}}
        text = _TEXT_COMMAND.sub(_unwrapped, text)
    return re.sub(r" +", " ", text.replace("$", " ")).strip()


def _unwrapped(match: re.Match[str]) -> str:
    if len(match[1].strip()) > 1:
        return f" {match[1]} "
    before = match.string[match.start() - 1 : match.start()]
    return f" {match[1]}" if before.isalpha() else match[1]  # \\mu\\text{m} is no \\mum


def collapse(text: str) -> str:
    """Without brackets of one kind around brackets of that kind: ((5)) is (5), and 5 where that is all."""
    text = _without_needless(_without_needless(text, "{", "}"), "(", ")")
    inner = re.fullmatch(r"\(([^(),]*)\)|\{([^{}]*)\}", text)
    return (inner[1] or inner[2] or "").strip() if inner else text


def _without_needless(text: str, opening: str, closing: str) -> str:
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for i, character in enumerate(text):
        if text[i - 1 : i] == "\\":
            continue
        if character == opening:
            opened.append(i)
        elif character == closing and opened:
            pairs[opened.pop()] = i
    needless = {place for start, end in pairs.items() if pairs.get(start + 1) == end - 1 for place in (start, end)}
    return "".join(character for i, character in enumerate(text) if i not in needless)


def is_balanced(text: str) -> bool:
    """Whether the braces of a LaTeX text open and close in order."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def _raised_and_lowered(text: str) -> str:
    text = _RAISED_RUN.sub(lambda match: f"^{{{match[0].translate(_RAISED)}}}", text)
    return _LOWERED_RUN.sub(lambda match: f"_{{{match[0].translate(_LOWERED)}}}", text)


def _unwrap_rows(match: re.Match[str]) -> str:
    """The rows of an aligned derivation as one line, those of a system of equations as a list. A matrix stays."""
    is_table = "&" in match["rows"] or r"\\" in match["rows"]
    if match["name"] in ("array", "matrix") and match["system"] is None and is_table:
        return match[0]
    rows = [row.replace("&", " ").strip().rstrip(",;") for row in re.split(r"\\\\(?:\s*\[[^\]]*\])?", match["rows"])]
    rows = [row for row in rows if row]
    if any("," in row for row in rows) and match["name"] == "cases":
        return match[0]  # a function in pieces
    joined = ""
    for row in rows:
        separator = " " if re.match(r"=|\\approx|<|>|\\[lg]eq", row) else ", "
        joined += (separator if joined else "") + row
    return joined


def _as_fraction(match: re.Match[str]) -> str:
    """A recurring decimal as a fraction: 0.\\overline{3} is 1/3."""
    groups = match.groupdict()
    cycle = match["cycle"] + (groups.get("middle") or "") + (groups.get("last") or "")
    fixed = match["fixed"]
    whole = int(match["whole"] + fixed + cycle) - int(match["whole"] + fixed)
    return rf"\frac{{{whole}}}{{{(10 ** len(cycle) - 1) * 10 ** len(fixed)}}}"


def _money(text: str) -> str:
    """An odd `$` is money: it becomes a command that `units` knows."""
    if text.count("$") % 2:
        return re.sub(r"\$(?=\s*-?\.?\d)", r"\\dollar ", text, count=1).replace("$", "")
    return text
