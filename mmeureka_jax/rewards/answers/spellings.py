r"""What is written in many ways, and the one way that the rest of the reading knows: rewrites, in their order.

Each group relies on those before it: delimiters and spaces are gone before commands are read, commands have one name
before geometry, sets and words use them, and numbers come last, when nothing else can be taken for one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

Rewrite = tuple[str, str | Callable[[re.Match[str]], str]]

_END = r"(?![a-zA-Z])"  # the end of a command's name

_DELIMITERS: tuple[Rewrite, ...] = (
    (r"(?<![^\s(:])\*\*([^*]+)\*\*(?![^\s).,:;])", r"\1"),  # markdown bold
    (r"^#+ ", ""),
    (r"(?<==)\s*\n\s*", " "),
    (r"\\\\\s*$", ""),
    (r"(?<=\d),\\!(?=\d{3})", ","),  # 70,\!000
    (rf"\\textdollar{_END}|\bUS(?=\\?\$)", "$"),
    (r"(?<!\\)\\[()\[\]]|\$\$", "$"),  # every delimiter of mathematics is one $
    (r"\\\$", "$"),  # money, where it is before a number
    (rf"(?<!\\)\\(?:[,;:!> ]|quad{_END}|qquad{_END}|hspace\*?\{{[^{{}}]*\}})", " "),
    (rf"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|rm|bf){_END}\s*", ""),
    (rf"\\(?:tiny|small|large|Large|LARGE|huge|Huge|hbox){_END}", ""),
    (r"\\(?:textcolor|color)\s*\{[a-zA-Z]+\}", ""),
    (r"\{\}(?=\^)", ""),
)
_COMMANDS: tuple[Rewrite, ...] = (
    (rf"\\(?:[dtc]frac|nicefrac|sfrac){_END}", r"\\frac"),
    (rf"\{{([^{{}}]*)\\over{_END}([^{{}}]*)\}}", r"\\frac{\1}{\2}"),
    (r"\\frac\{d([a-z])\}\{d[a-z]\}|\bd([a-z])/d[a-z]\b", r"\1\2'"),
    (rf"\\[dt]binom{_END}", r"\\binom"),
    (
        r"(?<![A-Za-z])C_\{?(\d+)\}?\^\{?(\d+)\}?|(?<![A-Za-z])C\((\d+),\s*(\d+)\)|\{(\d+)\s*\\choose\s*(\d+)\}",
        r"\\binom{\1\3\5}{\2\4\6}",
    ),
    (rf"\\surd{_END}", r"\\sqrt"),
    (r"∛\s*(\d+|[a-z])|\\sqrt\s*\[3\]\s*(\d|[a-z])", r"\\sqrt[3]{\1\2}"),
    (r"p?smallmatrix", "pmatrix"),
    (rf"\\(?:leqslant|leqq|le){_END}|<=|=<", r"\\leq "),
    (rf"\\(?:geqslant|geqq|ge){_END}|>=", r"\\geq "),
    (rf"\\ne{_END}|\\not\s*=|!=", r"\\neq "),
    (rf"\\lt{_END}", "<"),
    (rf"\\gt{_END}", ">"),
    (rf"\\(?:thickapprox|doteq|fallingdotseq|simeq){_END}|^\\sim\s*(?=-?\d)", r"\\approx "),
    (rf"\\(?:rightarrow|longrightarrow){_END}|->", r"\\to "),
    (rf"\\lor{_END}", r"\\vee "),
    (rf"\\land{_END}", r"\\wedge "),
    (rf"\\(?:dots|cdots|dotsc|dotsb){_END}|(?<=,) ?\.\.\.", r"\\ldots "),
    (rf"\\(?:mid|vert|[lr]vert){_END}", "|"),
    (rf"\\colon{_END}", ":"),
    (rf"\\var(epsilon|phi|theta|rho){_END}", r"\\\1"),
    (r"\\(?:text|mathrm|mbox)\s*\{\s*(and|or|[或和且与])\s*\}", r" \1 "),
    (r"\\ce(?=\{)", r"\\text"),
    (rf"\\(?:lbrace|rbrace){_END}", lambda match: r"\{" if match[0] == r"\lbrace" else r"\}"),
    (rf"\\langle{_END}", "("),
    (rf"\\rangle{_END}", ")"),
    (r"⌊", r"\\lfloor "),
    (r"⌋", r"\\rfloor "),
    (r"⌈", r"\\lceil "),
    (r"⌉", r"\\rceil "),
    (r"(?<![A-Za-z\\])abs\(([^()]*)\)", r"|\1|"),
    (rf"\^\s*\{{?\s*\\circ\s*\}}?|\\degree{_END}", r"^{\\circ}"),
    (rf"(?<=\d)\s?\^\s?\{{?(?:\\text\{{|\\mathrm\{{)?o\}}{{0,2}}{_END}", r"^{\\circ}"),
    (r"\^\s*\{?\s*\\prime\s*\}?", "'"),
)
_VECTORS_AND_POINTS: tuple[Rewrite, ...] = (
    (rf"\\overrightarrow{_END}", r"\\vec"),
    *2 * ((rf"\\(?:mathbf|boldsymbol|bm|vec|hat)\s*\{{?\s*([ijk])\s*\}}?{_END}", r"\1"),),
    (rf"\\(?:mathbf|boldsymbol|bm|vec)\s*\{{?\s*([a-hl-z])\s*\}}?{_END}", r"\\vec{\1}"),
    (r"\\(?:overline|bar)\s*\{([A-Z]{2})\}", r"\1"),
    (r"\b(?:segment|side) (?=[A-Z]{2}\b)|线段(?=[A-Z]{2})", ""),
    (r"\\angle\s*\{([A-Z0-9]+)\}|(?<![\\\w])[Aa]ngle (?=[A-Z]{1,3}\b|\d\b)", r"\\angle \1"),
    (r"(?<![\\\w])[Tt]riangle (?=[A-Z]{3}\b)|三角形(?=[A-Z]{3})", r"\\triangle "),
    (rf"\\backsim{_END}", r"\\sim "),
    (rf"\\bot{_END}", r"\\perp "),
    (r"(?<=[A-Z])\s*(?://|\|\||平行于|平行)\s*(?=[A-Z])", r"\\parallel "),
    (r"(?<=[A-Z])\s*(?:垂直于|垂直)\s*(?=[A-Z])", r"\\perp "),
    (r"([A-Z]{2})[与和]([A-Z]{2})平行", r"\1\\parallel \2"),
    (r"([A-Z]{2})[与和]([A-Z]{2})垂直", r"\1\\perp \2"),
    (r"(?<=[A-Z])\s*(?:–|—|\\to\s*|→)\s*(?=[A-Z](?![A-Za-z]))", "-"),  # A→C→B, an order
)
_SETS: tuple[Rewrite, ...] = (
    (rf"\\(?:varnothing|empty){_END}|(?<![\w])Ø(?!\w)", r"\\emptyset "),
    (r"\\\{\s*\\\}|\b(?:the )?(?:empty|null) set\b|空集", r"\\emptyset "),
    (r"\\(?:mathbf|mathrm)\s*\{\s*([RZNQ])\s*\}", r"\\mathbb{\1}"),
    (rf"\\mathbb\s*([RZNQ]){_END}", r"\\mathbb{\1}"),
    (r"\ball (?:of )?(?:the )?real numbers?\b|全体实数|一切实数|任意实数", r"\\mathbb{R}"),
    (r"\ball integers?\b|全体整数", r"\\mathbb{Z}"),
    (rf"\\in\s*([ZNRQ]){_END}", r"\\in \\mathbb{\1}"),
    (r"(?<=\\mathbb\{R\}),? (?:except|excluding|other than)(?: for)?", r" \\setminus "),
    (rf"\\backslash{_END}", r"\\setminus "),
    (r"^\]([^\[\]]+)\[$", r"(\1)"),
    (rf"\s*\(([^()]*(?:[<>]|\\(?:leq|geq|neq|in){_END})[^()]*)\)\s*$", r", \1"),  # y = 5x (x > 0)
    (r"(\b[a-zA-Z]\s?=\s?-?[\d.]+)\s+(?=[a-zA-Z]\s?=)", r"\1, "),  # x = 1 y = 2
)
_WORDS: tuple[Rewrite, ...] = (
    (r"\bper cent\b", "percent"),
    (r"百分之(\d+(?:\.\d+)?)", r"\1%"),
    (r"(\d+(?:\.\d+)?)\s*‰", r"\1\\times 10^{-3}"),
    (r"零下(\d+(?:\.\d+)?)(?:度|\^\{\\circ\}(?!C))", r"-\1^{\\circ}C"),
    (r"(?<=\d)度(?!电)", r"^{\\circ}"),
    (r"(?<=\d)个(?=小时|人|星期|学生)", ""),
    (r"(?<=\d)\s*比\s*(?=\d)|(?<=^\d) to (?=\d+$)|(?<=^\d\d) to (?=\d+$)", ":"),
    (r"(?<=\d) ?\(?(?:in )?base (\d+)\)?", r"_{\1}"),
    (r"\((?:=|i\.e\.,?)\s*([^()]+)\)$", r"= \1"),  # 3/4 (= 0.75)
    (r"\((?:\\approx|approximately|about|approx\.) ?(-?\d[^()]*)\)$", r"\\approx \1"),
    (r" or (?:about|approximately) (-?\d[\d.]*)$", r" \\approx \1"),
    # Names of functions, of π and of infinity.
    (r"(?<=[a-z])(?<!arc)(sin|cos|tan)(?=\s*(?:\\[a-z]|\d|\())", r"\\\1 "),
    (
        r"(?<![A-Za-z\\])(a?(?:rc)?(?:sin|cos|tan)|cot|sec|csc|ln|log|lg)(?=\s*(?:[\d(_^\\]|[a-z](?![a-z])))",
        r"\\\1 ",
    ),
    (r"(?<![a-zA-Z\\])pi(?![a-zA-Z])", r"\\pi "),
    (r"(?<![a-zA-Z\\])(?:inf|infinity|oo)(?![a-zA-Z])", r"\\infty "),
)
_NUMBERS: tuple[Rewrite, ...] = (
    (r"(?<=\d) ?[xX] ?(?=10 ?\^)", r"\\times "),
    (r"\*\*", "^"),
    (r"(?<=[\w)}\]])\s*\*\s*(?=[\w(\\{])", r" \\cdot "),
    (r"(?:(?<=^)|(?<=[(,=\s$]))[–—](?=\s?[\d\\.(a-zA-Z])", "-"),  # a dash is a minus only where a sign can be
    (r"√\s*\(([^()]*)\)|(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)|\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2\3}"),
    (r"\\sqrt\s*(\d+(?:\.\d+)?)(?!\])", r"\\sqrt{\1}"),
    (r"√\s*(\d+(?:\.\d+)?|[a-zA-Z])|(?<![a-zA-Z\\])sqrt\s*(\d+)", r"\\sqrt{\1\2}"),
    (r"(?:(?<=^)|(?<=[\s$(]))\^\s*\{?(\d+)\}?\s*/\s*_\s*\{?(\d+)\}?", r"\\frac{\1}{\2}"),  # ^1/_2
    (r"\^\s*(-?\d+)", r"^{\1}"),  # 2^10 is no 2^{1}0
    (r"(\\[a-zA-Z]+)\s+\{", r"\1{"),
    *2 * ((r"(?<![a-zA-Z}\]_^\\])\{(\w+)\}", r"\1"),),  # {{5}^{n}}: {5^{n}}; {{9}}: 9
    (r"^\((\d+)\)(?=_)", r"\1"),  # (1011)_2
    (r"(?<=\d)\{,\}(?=\d{3})", ","),
    (r"\\%|％", "%"),
    (r"(?<![\w.\\])(\d+(?:\.\d*)?|\.\d+)[eE]([-+]?\d+)(?![\w.])", r"\1\\times 10^{\2}"),
    (r"(?<![\d.,/])(\d+) +(\d+)/(\d+)(?![\d/])", r"\1\\frac{\2}{\3}"),  # 2 1/3
)
_SPACES: tuple[Rewrite, ...] = (
    (rf"\\(in|notin|cup|cap|parallel|perp|sim|cong|approx|neq|leq|geq|to|subset|subseteq){_END}\s*", r"\\\1 "),
    (r"(\\(?:log|ln|lg|sin|cos|tan)) (?=[_(^{\\])", r"\1"),
    (r"[ ]+", " "),
)

REWRITES = [
    (re.compile(pattern), replacement)
    for group in (_DELIMITERS, _COMMANDS, _VECTORS_AND_POINTS, _SETS, _WORDS, _NUMBERS, _SPACES)
    for pattern, replacement in group
]
