r"""LaTeX formulas within a text as MathML, which browsers draw by themselves: no script, no font, no network.

What a model writes is not trusted. Of the converter's tree only known elements and attributes with harmless values are
kept, everything is escaped, and a formula that is too long, or that the converter does not know, stays as it is
written.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from html import escape, unescape
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element

MAX_LENGTH = 400  # characters of a formula
MAX_PER_TEXT = 100  # formulas; later ones stay as they are written

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
_IN_BRACES = r"{(?:[^{}$]|{(?:[^{}$]|{[^{}$]*})*})+}"  # with braces in it, and braces in those
_FORMULA = re.compile(
    rf"(?<![\\$])\$\$(?P<display>{_BODY})\$\$"
    # As Pandoc reads it: no space within the dollars and no digit after them, so that sums of money are none.
    rf"|(?<![\\$])\$(?![\s$])(?P<inline>{_BODY})(?<![\s\\])\$(?!\d)"
    # Several models write spaces within the dollars; then there must be a command or a power.
    rf"|(?<![\\$])\$(?=\s[^$]{{0,{MAX_LENGTH}}}(?:\\[a-zA-Z]{{2}}|\^))(?P<spaced>{_BODY})(?<=\s)\$(?!\d)"
    rf"|\\\[(?P<brackets>[^$]{{1,{MAX_LENGTH}}}?)\\\]"
    rf"|\\\((?P<parentheses>[^$]{{1,{MAX_LENGTH}}}?)\\\)"
    # Without any sign around them.
    rf"|(?P<box>\\boxed{_IN_BRACES})"
    rf"|(?P<environment>\\begin{{(?P<name>(?:align(?:ed)?|equation|gather(?:ed)?|cases|[pbvV]?matrix)\*?)}}"
    rf"[^$]{{1,{MAX_LENGTH}}}?\\end{{(?P=name)}})",
    re.DOTALL,
)
# A command, or one sign above or below another: 2^10 and snake_case are no LaTeX, which would draw the 0 on the line.
_LOOKS_LIKE_LATEX = re.compile(r"\\(?:[a-zA-Z]{2}|%)|[\^_](?:{|[^\s{}](?![a-zA-Z\d]))")
# Words outside of commands and braces, between which the spaces would be lost; "cm" is none.
_WORDS = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z][a-z]{2}")


def text_to_html(text: str) -> str:
    """Escaped, with the formulas drawn that are between `$`, `$$`, `\\(` or `\\[`, or in a box or environment of
    LaTeX's. Their source is the title of each."""
    parts = []
    end = 0
    for found in itertools.islice(_FORMULA.finditer(text), MAX_PER_TEXT):
        body = found[found.lastgroup or 0]
        display = found.lastgroup in ("display", "brackets", "environment")
        before = text[end : found.start()]
        drawn = _draw(body, display)
        end = found.end()
        if display and drawn is not None:  # on a line of its own anyway
            before = before.removesuffix("\n")
            end += text.startswith("\n", end)
        parts += [escape(before), escape(found[0]) if drawn is None else drawn]
    return "".join([*parts, escape(text[end:])])


def answer_to_html(text: str) -> str:
    """As `text_to_html`; a bare formula, as gold answers often are, is drawn too."""
    is_formula = "$" not in text and _LOOKS_LIKE_LATEX.search(text) and not _WORDS.search(re.sub(_IN_BRACES, "", text))
    drawn = _draw(text, display=False) if is_formula else None
    return text_to_html(text) if drawn is None else drawn


@functools.lru_cache(4096)
def _draw(latex: str, display: bool) -> str | None:
    """The formula as HTML; None if it is too long or cannot be read."""
    latex = latex.strip()
    braces = re.findall(r"(?<!\\)[{}]", latex)
    if not latex or len(latex) > MAX_LENGTH or braces.count("{") != braces.count("}"):
        return None
    try:
        # The converter does not know `aligned`, which looks like `align*`, and `align` has numbers that nobody names.
        tree = convert_to_element(re.sub(r"\\(begin|end)\{align(?:ed)?\}", r"\\\1{align*}", latex))
        markup = "".join(_serialise(tree))
    except Exception:  # whatever the text made the converter stumble over
        return None
    kind = "formula display" if display else "formula"
    return f'<span class="{kind}" title="{escape(latex)}">{markup}</span>'


def _serialise(element: Element) -> Iterator[str]:
    """The markup of known elements.

    Raises:
        ValueError: a command is unknown, so that its name would be shown.
    """
    if element.tag not in _TAGS:
        raise ValueError(element.tag)
    attributes = "".join(
        f' {name}="{escape(value)}"'
        for name, value in element.attrib.items()
        if name in _ATTRIBUTES and _ATTRIBUTES[name].fullmatch(value)
    )
    text = unescape(element.text or "")  # the converter writes characters as entities
    if text.startswith("\\") and text != "\\":
        raise ValueError(text)
    yield f"<{element.tag}{attributes}>{escape(text)}"
    for child in element:
        yield from _serialise(child)
    yield f"</{element.tag}>"
