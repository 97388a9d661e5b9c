r"""One spelling for what is written in many ways: ASCII punctuation, LaTeX commands for signs, no spacing commands.

Real gold answers are uneven: `7.`, `$$-2$$`, `45°`, `5$\sqrt{2}$`, `(3,0)\n(0,-4)`, `1e-07`, `2 1/3`, `12\,000`. Every
rewrite keeps the value: what cannot be spelled otherwise stays as it is.
"""

from __future__ import annotations

import re
import unicodedata


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
        "、": ",", "。": ".", "．": ".", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ", "\t": " ",
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
# Text whose direction is turned around reads as something else than its characters say.
_DIRECTION = re.compile("[\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")

_NUMBER = r"\d+(?:\.\d+)?"
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<![^\s(:])\*\*([^*]+)\*\*(?![^\s).,:;])", r"\1"),  # markdown bold
        (r"(?<=\d),\\!(?=\d{3})", ","),
        (r"\\(?:mathbf|boldsymbol|bm|vec|hat)\s*\{?\s*([ijk])\s*\}?(?![a-zA-Z])", r"\1"),
        (r"(?<!\\)\\[()\[\]]|\$\$", "$"),  # every delimiter of mathematics is one $
        (r"\\\$", "$"),  # money, where it stands before a number
        (r"(?<!\\)\\(?:[,;:!> ]|quad(?![a-zA-Z])|qquad(?![a-zA-Z])|hspace\*?\{[^{}]*\})", " "),
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|rm|bf)(?![a-zA-Z])\s*", ""),
        (r"\\(?:textcolor|color)\s*\{[a-zA-Z]+\}", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r"\{([^{}]*)\\over(?![a-zA-Z])([^{}]*)\}", r"\\frac{\1}{\2}"),
        (r"\\(?:leqslant|leqq|le)(?![a-zA-Z])", r"\\leq "),
        (r"\\(?:geqslant|geqq|ge)(?![a-zA-Z])", r"\\geq "),
        (r"\\ne(?![a-zA-Z])|\\not\s*=|!=", r"\\neq "),
        (r"<=|=<", r"\\leq "),
        (r">=", r"\\geq "),
        (r"\\lt(?![a-zA-Z])", "<"),
        (r"\\gt(?![a-zA-Z])", ">"),
        (r"\\(?:thickapprox|doteq|fallingdotseq|simeq)(?![a-zA-Z])", r"\\approx "),
        (r"\\(?:rightarrow|longrightarrow)(?![a-zA-Z])|->", r"\\to "),
        (r"\\(?:varnothing|empty)(?![a-zA-Z])|(?<![\w])Ø(?!\w)", r"\\emptyset "),
        (r"\\(?:lbrace|rbrace)(?![a-zA-Z])", lambda match: r"\{" if match[0] == r"\lbrace" else r"\}"),
        (
            r"\\(?:mathbf|boldsymbol|bm|vec)\s*\{?\s*([a-hl-z])\s*\}?(?![a-zA-Z])",
            r"\\vec{\1}",
        ),
        (r"\\frac\{d([a-z])\}\{d[a-z]\}|\bd([a-z])/d[a-z]\b", r"\1\2'"),
        (r"(?<=\d) ?\(?(?:in )?base (\d+)\)?", r"_{\1}"),
        (r"(?<=\d)度(?!电)", r"^{\\circ}"),
        (r"\s*\(([^()]*(?:[<>]|\\(?:leq|geq|neq|in)(?![a-zA-Z]))[^()]*)\)$", r", \1"),  # y = 5x (x > 0)
        (r"\\ce(?=\{)", r"\\text"),
        (r"\\(?:overline|bar)\s*\{([A-Z]{2})\}", r"\1"),
        (r"\b(?:segment|side) (?=[A-Z]{2}\b)|线段(?=[A-Z]{2})", ""),
        (r"\\angle\s*\{([A-Z0-9]+)\}|(?<![\\\w])[Aa]ngle (?=[A-Z]{1,3}\b|\d\b)", r"\\angle \1"),
        (r"(?<![\\\w])[Tt]riangle (?=[A-Z]{3}\b)", r"\\triangle "),
        (r"\\backsim(?![a-zA-Z])", r"\\sim "),
        (r"(?<=[A-Z])\s*(?://|\|\||平行于|平行)\s*(?=[A-Z])", r"\\parallel "),
        (r"(?<=[A-Z])\s*(?:垂直于|垂直)\s*(?=[A-Z])", r"\\perp "),
        (r"(?<=\d)\s*比\s*(?=\d)|(?<=^\d) to (?=\d+$)|(?<=^\d\d) to (?=\d+$)", ":"),
        (r"\\in\s*([ZNRQ])(?![a-zA-Z])", r"\\in \\mathbb{\1}"),
        (r"\s*\(\s*([a-z]\s*\\in\s*\\mathbb\{\w\}[^()]*)\)\s*$", r", \1"),
        (
            r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?|(?<![A-Za-z])C\((\d+),\s*(\d+)\)|\{(\d+)\s*\\choose\s*(\d+)\}",
            r"\\binom{\1\3\5}{\2\4\6}",
        ),
        (r"(?<![A-Za-z\\])abs\(([^()]*)\)", r"|\1|"),
        (r"⌊", r"\\lfloor "),
        (r"⌋", r"\\rfloor "),
        (r"⌈", r"\\lceil "),
        (r"⌉", r"\\rceil "),
        (r"∛\s*(\d+|[a-z])|\\sqrt\s*\[3\]\s*(\d|[a-z])", r"\\sqrt[3]{\1\2}"),
        (r"\\langle(?![a-zA-Z])", "("),
        (r"\\rangle(?![a-zA-Z])", ")"),
        (r"\\\{\s*\\\}|\b(?:the )?(?:empty|null) set\b|空集", r"\\emptyset "),
        (r"\\(?:mathbf|mathrm)\s*\{\s*([RZNQ])\s*\}", r"\\mathbb{\1}"),
        (r"\ball (?:of )?(?:the )?real numbers?\b|全体实数|一切实数|任意实数", r"\\mathbb{R}"),
        (r"\\mathbb\s*([RZNQ])(?![a-zA-Z])", r"\\mathbb{\1}"),
        (r"(?<=\\mathbb\{R\}),? (?:except|excluding|other than)(?: for)?", r" \\setminus "),
        (r"\\backslash(?![a-zA-Z])", r"\\setminus "),
        (
            r"(?<![A-Za-z\\])(a?(?:rc)?(?:sin|cos|tan)|cot|sec|csc|ln|log|lg)(?=\s*(?:[\d(_^\\]|[a-z](?![a-z])))",
            r"\\\1 ",
        ),
        (r"\\mid(?![a-zA-Z])|\\vert(?![a-zA-Z])|\\[lr]vert(?![a-zA-Z])", "|"),
        (r"\\var(epsilon|phi|theta|rho)(?![a-zA-Z])", r"\\\1"),
        (r"\\colon(?![a-zA-Z])", ":"),
        (r"\\overrightarrow(?![a-zA-Z])", r"\\vec"),
        (r"\\(?:text|mathrm|mbox)\s*\{\s*(and|or|[或和且与])\s*\}", r" \1 "),
        (r"(?<=\d) ?[xX] ?(?=10 ?\^)", r"\\times "),
        (r"\bper cent\b", "percent"),
        (r"\((?:=|i\.e\.,?)\s*([^()]+)\)$", r"= \1"),  # 3/4 (= 0.75)
        (r"\((?:\\approx|approximately|about|approx\.) ?(-?\d[^()]*)\)$", r"\\approx \1"),
        (r" or (?:about|approximately) (-?\d[\d.]*)$", r" \\approx \1"),
        (r"\*\*", "^"),
        (r"(?<=[\w)}\]])\s*\*\s*(?=[\w(\\{])", r" \\cdot "),
        (r"(?:(?<=^)|(?<=[(,=\s$]))[–—](?=\s?[\d\\.(a-zA-Z])", "-"),  # a dash is a minus only where a sign can stand
        (r"√\s*\(([^()]*)\)|(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)|\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2\3}"),
        (r"\\sqrt\s*(\d+(?:\.\d+)?)(?!\])", r"\\sqrt{\1}"),
        (r"√\s*(\d+(?:\.\d+)?|[a-zA-Z])|(?<![a-zA-Z\\])sqrt\s*(\d+)", r"\\sqrt{\1\2}"),
        (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
        (r"(?<![a-zA-Z\\])(?:inf|infinity|oo)(?![a-zA-Z])", r"\\infty "),
        (r"\^\s*\{?\s*\\circ\s*\}?|\\degree(?![a-zA-Z])", r"^{\\circ}"),
        (r"(?<=\d)\s?\^\s?\{?o\}?(?![a-zA-Z])", r"^{\\circ}"),
        (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
        (r"(?:(?<=^)|(?<=[\s$(]))\^\s*\{?(\d+)\}?\s*/\s*_\s*\{?(\d+)\}?", r"\\frac{\1}{\2}"),
        (r"\^\s*(-?\d+)", r"^{\1}"),  # 2^10 is no 2^{1}0
        (r"(\\[a-zA-Z]+)\s+\{", r"\1{"),
        *2 * ((r"(?<![a-zA-Z}\]_^\\])\{(\w+)\}", r"\1"),),  # {{5}^{n}}: {5^{n}}; {{9}}: 9
        (r"(?<=\d)\{,\}(?=\d{3})", ","),
        (r"\\%|％", "%"),
        (r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d+)(?![\w.])", r"\1\\times 10^{\2}"),
        (r"(?<![\d.,/])(\d+) +(\d+)/(\d+)(?![\d/])", r"\1\\frac{\2}{\3}"),  # 2 1/3
        (r"\\(in|notin|cup|cap|parallel|perp|sim|cong|approx|neq|leq|geq|to|subset|subseteq)(?![a-zA-Z])\s*", r"\\\1 "),
        (r"(\\(?:log|ln|lg|sin|cos|tan)) (?=[_(^{\\])", r"\1"),
        (r"[ ]+", " "),
    )
]
_ENVIRONMENT = re.compile(
    r"(?P<system>\\\{\s*)?\\begin\s*\{(?P<name>aligned|align\*?|split|gathered|cases|array)\}(?:\s*\{[lcr|\s]*\})?"
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
    text = re.sub(r"(?<=\d)\s*[~〜～]\s*(?=\d)", "–", text)  # from 10 to 11
    text = _raised_and_lowered(text.translate(_CHARACTERS)).strip()
    for pattern, replacement in _REWRITES:
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
    """Without parentheses around parentheses: ((5)) is (5), and 5 where that is all."""
    pairs: dict[int, int] = {}
    opened: list[int] = []
    for i, character in enumerate(text):
        if character == "(":
            opened.append(i)
        elif character == ")" and opened:
            pairs[opened.pop()] = i
    needless = {place for start, end in pairs.items() if pairs.get(start + 1) == end - 1 for place in (start, end)}
    text = "".join(character for i, character in enumerate(text) if i not in needless)
    inner = re.fullmatch(r"\(([^(),]*)\)", text)
    return inner[1].strip() if inner else text


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
    if match["name"] == "array" and match["system"] is None:
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
