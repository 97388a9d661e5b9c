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
_FORMULA = re.compile(
    rf"(?<![\\$])\$\$(?P<display>{_BODY})\$\$"
    # As Pandoc reads it: no space within the dollars and no digit after them, so that sums of money are none.
    rf"|(?<![\\$])\$(?![\s$])(?P<inline>{_BODY})(?<![\s\\])\$(?!\d)"
    rf"|\\\[(?P<brackets>[^$]{{1,{MAX_LENGTH}}}?)\\\]"
    rf"|\\\((?P<parentheses>[^$]{{1,{MAX_LENGTH}}}?)\\\)",
    re.DOTALL,
)
_LOOKS_LIKE_LATEX = re.compile(r"\\[a-zA-Z]{2,}|[\^_]")


def text_to_html(text: str) -> str:
    """Escaped, with the formulas between `$`, `$$`, `\\(` or `\\[` drawn. Their source is the title of each."""
    parts, end = [], 0
    for found in itertools.islice(_FORMULA.finditer(text), MAX_PER_TEXT):
        body, display = found[found.lastgroup or 0], found.lastgroup in ("display", "brackets")
        before, drawn = text[end : found.start()], _draw(body, display)
        end = found.end()
        if display and drawn is not None:  # on a line of its own anyway
            before = before.removesuffix("\n")
            end += text.startswith("\n", end)
        parts += [escape(before), escape(found[0]) if drawn is None else drawn]
    return "".join([*parts, escape(text[end:])])


def answer_to_html(text: str) -> str:
    """As `text_to_html`; a bare formula, as gold answers often are, is drawn too."""
    if "$" not in text and _LOOKS_LIKE_LATEX.search(text) and (drawn := _draw(text, display=False)) is not None:
        return drawn
    return text_to_html(text)


@functools.lru_cache(4096)
def _draw(latex: str, display: bool) -> str | None:
    """The formula as HTML; None if it is too long or cannot be read."""
    latex = latex.strip()
    braces = re.findall(r"(?<!\\)[{}]", latex)
    if not latex or len(latex) > MAX_LENGTH or braces.count("{") != braces.count("}"):
        return None
    try:
        # The converter does not know `aligned`, which looks like `align*`.
        tree = convert_to_element(re.sub(r"\\(begin|end)\{aligned\}", r"\\\1{align*}", latex))
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
