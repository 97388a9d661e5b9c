r"""LaTeX formulas within a text as MathML, which browsers draw by themselves: no script, no font, no network.

What a model writes is not trusted: only known elements of the converter's tree, and attributes with harmless values,
are kept, and everything is escaped. A formula that is too long, or that the converter does not know, stays as it is
written.

Pages whose texts are drawn by a script find the formulas of a text with the same pattern, and have them as trees.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from html import escape, unescape
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

MAX_LENGTH = 400  # characters of a formula
MAX_PER_TEXT = 100  # formulas; later ones stay as they are written

Tree = list[Any]  # name, attributes (a mapping, if there are any), and children: texts and trees

_TAGS = frozenset(
    "math mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mtable mtr mtd mstyle "
    "menclose".split()
)
_ATTRIBUTES = {
    **dict.fromkeys(("stretchy", "fence", "displaystyle", "accent", "movablelimits"), re.compile("true|false")),
    "form": re.compile("prefix|infix|postfix"),
    "display": re.compile("inline|block"),
    "scriptlevel": re.compile("[0-2]"),
    "mathvariant": re.compile("[a-z-]{1,30}"),
    "columnalign": re.compile("(left|right|center)( (left|right|center)){0,20}"),
    "notation": re.compile("box"),
    "linethickness": re.compile("0(px|em)?"),
    "width": re.compile(r"\d?(\.\d{1,4})?em"),  # a space
}
_BODY = rf"(?:\\.|[^$\\]){{1,{MAX_LENGTH}}}?"
_IN_BRACES = r"\{(?:[^{}$]|\{(?:[^{}$]|\{[^{}$]*\})*\})+\}"  # with braces in it, and braces in those
# As JavaScript reads it too, but for the two forms of named groups.
_FORMULA = re.compile(
    rf"(?<![\\$])\$\$(?P<display>{_BODY})\$\$"
    # Pandoc's rule: no space just inside the dollars and no digit after them, so that sums of money are not formulas.
    rf"|(?<![\\$])\$(?![\s$])(?P<inline>{_BODY})(?<![\s\\])\$(?![0-9])"
    # Some models write spaces inside the dollars; there must then be a command or a power.
    rf"|(?<![\\$])\$(?=\s[^$]{{0,{MAX_LENGTH}}}(?:\\[a-zA-Z]{{2}}|\^))(?P<spaced>{_BODY})(?<=\s)\$(?![0-9])"
    rf"|\\\[(?P<brackets>[^$]{{1,{MAX_LENGTH}}}?)\\\]"
    rf"|\\\((?P<parentheses>[^$]{{1,{MAX_LENGTH}}}?)\\\)"
    # Without any signs around them.
    rf"|(?P<box>\\boxed{_IN_BRACES})"
    rf"|(?P<environment>\\begin\{{(?P<name>(?:align(?:ed)?|equation|gather(?:ed)?|cases|[pbvV]?matrix)\*?)\}}"
    rf"[^$]{{1,{MAX_LENGTH}}}?\\end\{{(?P=name)\}})",
    re.DOTALL,
)
_REST_OF_LINE = re.compile(r"[ \t]*\n?")
# A command, or one sign raised or lowered: 2^10 and snake_case are not LaTeX, which would raise only the 1.
_LOOKS_LIKE_LATEX = re.compile(r"\\(?:[a-zA-Z]{2}|%)|[\^_](?:{|[^\s{}](?![a-zA-Z\d]))")
# Words outside of commands and braces: the spaces between them would be lost. Three letters or more, so not "cm".
_WORDS = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z][a-z]{2}")


def text_to_html(text: str) -> str:
    """The escaped text, in which formulas between `$`, `$$`, `\\(` or `\\[`, or in a box or environment of LaTeX, are
    drawn. The title of each is its source."""
    parts = []
    end = 0
    for found in itertools.islice(_FORMULA.finditer(text), MAX_PER_TEXT):
        body = found[found.lastgroup or 0]
        display = found.lastgroup in ("display", "brackets", "environment")
        before = text[end : found.start()]
        drawn = _draw(body, display)
        end = found.end()
        if display and drawn is not None:  # it has a line of its own anyway
            before = before.removesuffix("\n")
            rest = _REST_OF_LINE.match(text, end)
            end = rest.end() if rest else end
        parts += [escape(before), escape(found[0]) if drawn is None else drawn]
    return "".join([*parts, escape(text[end:])])


def answer_to_html(text: str) -> str:
    """As `text_to_html`; a bare formula, as gold answers often are, is drawn too."""
    drawn = _draw(text, display=False) if is_bare_formula(text) else None
    return text_to_html(text) if drawn is None else drawn


def is_bare_formula(text: str) -> bool:
    """Whether an answer looks like a formula as a whole, without signs around it."""
    return (
        "$" not in text
        and _LOOKS_LIKE_LATEX.search(text) is not None
        and not _WORDS.search(re.sub(_IN_BRACES, "", text))
    )


def formulas_in(text: str) -> Iterator[tuple[str, str]]:
    """The formulas of a text: each as it is written, and without the signs around it."""
    for found in _FORMULA.finditer(text):
        yield found[0], found[found.lastgroup or 0]


def pattern_for_scripts() -> str:
    """What finds the same formulas in JavaScript, with the flags g, s and u."""
    return _FORMULA.pattern.replace("(?P<", "(?<").replace("(?P=name)", r"\k<name>")


@functools.lru_cache(4096)
def to_tree(latex: str) -> Tree | None:
    """The formula as MathML, of known elements and attributes alone; None if it is too long or cannot be read."""
    latex = latex.strip()
    braces = re.findall(r"(?<!\\)[{}]", latex)
    if not latex or len(latex) > MAX_LENGTH or braces.count("{") != braces.count("}"):
        return None
    try:
        # The converter does not know `aligned`, which looks like `align*`; the numbers of `align` are not referred to.
        return _known(convert_to_element(re.sub(r"\\(begin|end)\{align(?:ed)?\}", r"\\\1{align*}", latex)))
    except Exception:  # the text can make the converter raise anything
        return None


def _known(element: Element) -> Tree:
    """
    Raises:
        ValueError: a command is unknown, so that its name would be shown.
    """
    if element.tag not in _TAGS:
        raise ValueError(element.tag)
    attributes = {
        name: value
        for name, value in element.attrib.items()
        if name in _ATTRIBUTES and _ATTRIBUTES[name].fullmatch(value)
    }
    text = unescape(element.text or "")  # the converter writes characters as entities
    if text.startswith("\\") and text != "\\":
        raise ValueError(text)
    return [element.tag, *filter(None, [attributes, text]), *map(_known, element)]


def _draw(latex: str, display: bool) -> str | None:
    """The formula as HTML; None if it has no tree."""
    tree = to_tree(latex)
    if tree is None:
        return None
    kind = "formula display" if display else "formula"
    return f'<span class="{kind}" title="{escape(latex.strip())}">{_markup(tree)}</span>'


def _markup(tree: Tree) -> str:
    name, *content = tree
    attributes = ""
    inside = ""
    for one in content:
        if isinstance(one, dict):
            attributes = "".join(f' {key}="{escape(value)}"' for key, value in one.items())
        else:
            inside += escape(one) if isinstance(one, str) else _markup(one)
    return f"<{name}{attributes}>{inside}</{name}>"
