"""Formulas of a text as MathML: which parts of it are formulas, and that nothing else gets into the page."""

from __future__ import annotations

import html
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmeureka_jax.report.formulas import MAX_LENGTH, MAX_PER_TEXT, answer_to_html, text_to_html


def symbols(markup: str) -> str:
    """What a reader sees, formulas in brackets."""
    return html.unescape(re.sub(r"<[^>]*>", "", re.sub(r"<math.*?>(.*?)</math>", r"[\1]", markup)))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("so $x^2$ is", "so [x2] is"),
        ("$$a+b$$", "[a+b]"),
        (r"a \(x\) b \[y\] c", "a [x] b [y]c"),
        ("one\n$$x$$\ntwo", "one[x]two"),  # it stands on a line of its own as it is
        ("it costs $5 and $10", "it costs $5 and $10"),
        ("$5, $6 or $ 7 $", "$5, $6 or $ 7 $"),
        (r"\$x$ and 5\$", r"\$x$ and 5\$"),
        (r"$\$5$", "[$5]"),
        (r"$\unknown{x}$ and $x$", r"$\unknown{x}$ and [x]"),
        (r"$\frac{1$", r"$\frac{1$"),
        ("a < b & $a<b$", "a < b & [a<b]"),
        (r"so $ \frac{1}{2} $ and $ 5 of $y$", "so [12] and $ 5 of [y]"),
        (r"It is \boxed{\frac{1}{\sqrt{2}}}.", "It is [12]."),
        (r"$x = \boxed{5}$ or \boxed{6", r"[x=5] or \boxed{6"),
        ("so\n\\begin{align} a&=b\\\\ c&=d \\end{align}\nand", "so[a=bc=d]and"),
    ],
)
def test_what_is_a_formula(text, seen):
    assert symbols(text_to_html(text)) == seen


@pytest.mark.parametrize(
    ("answer", "seen"),
    [
        (r"\frac{1}{2}", "[12]"),
        ("x^2", "[x2]"),
        ("5 cm", "5 cm"),
        (r"\sqrt{", r"\sqrt{"),
        ("$x$", "[x]"),
        (r"100\%", "[100%]"),
        ("2^{10}", "[210]"),
        (r"\triangle ABC", "[△ABC]"),
        (r"5\text{ apples}", "[5\xa0apples]"),
        ("2^10", "2^10"),
        ("file_name", "file_name"),
        (r"the area is \frac{1}{2}", r"the area is \frac{1}{2}"),
    ],
)
def test_bare_formulas_are_answers_alone(answer, seen):
    assert symbols(answer_to_html(answer)) == seen


def test_the_elements_are_those_of_the_formula():
    drawn = text_to_html(r"$\frac{a}{\sqrt{b}}$")
    assert "<mfrac>" in drawn and "<msqrt>" in drawn and r'title="\frac{a}{\sqrt{b}}"' in drawn
    assert text_to_html(r"$\begin{aligned}a&=b\\c&=d\end{aligned}$").count("<mtr>") == 2


@pytest.mark.parametrize(
    "latex",
    [
        r"\text{<script>alert(1)</script>}",
        r"\href{javascript:alert(1)}{x}",
        r"\phantom{x}",
        r"\style{background:url(//x)}{y}",
        r'\class{a" onclick="x}{y}',
        r"\hspace{99999em}x",
        r"\rule{999em}{999em}",
        r"\color{red" + '"' + r" onclick=x}{y}",
        "<img src=x onerror=alert(2)>",
        "&lt;script&gt;",
    ],
)
def test_nothing_but_mathematics_gets_in(latex):
    drawn = text_to_html(f"${latex}$")
    allowed = r"</?(span|math|mrow|mi|mn|mo|mtext|mspace|mstyle)( (class|title|display|stretchy|form)=\"[^\"<>]*\")*>"
    assert re.sub(allowed, "", drawn).count("<") == 0
    assert "999" not in re.sub(r'title="[^"]*"', "", drawn) or "$" in drawn


def test_long_and_many_formulas_stay_as_they_are():
    long = "x" * (MAX_LENGTH + 1)
    assert text_to_html(f"${long}$") == f"${long}$"
    assert text_to_html("$x$ " * (MAX_PER_TEXT + 5)).count("<math") == MAX_PER_TEXT


@pytest.mark.parametrize(
    "piece",
    [
        r"\[",
        "$$",
        "$a",
        r"\(",
        r"$\frac",
        "{",
        r"$\left(",
        "\\",
        "$x^",
        "$ ",
        r"\boxed{",
        r"\boxed{x",
        r"\boxed{{{x}}",
        r"\begin{cases}",
    ],
)
def test_hostile_texts_take_no_time(piece):
    start = time.monotonic()
    text_to_html(piece * 20_000)
    text_to_html(f"${piece * 60}$" * 50)
    assert time.monotonic() - start < 20


PIECES = st.sampled_from(
    [*"{}^_&[]()<>\"'%#~$ x1", r"\\", r"\frac", r"\sqrt", r"\left", r"\right", r"\text{", r"\begin{matrix}", r"\over",
     r"\end{matrix}", r"\substack", r"\hspace{", r"\rule", r"\color{", r"\href{", r"\operatorname", r"\unicode{x3c}"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=60).map("".join))
def test_any_text_gives_well_formed_markup(latex):
    stack = []
    for closing, name in re.findall(r"<(/?)([a-z]+)[^<>]*>", text_to_html(f"${latex}$ {latex}")):
        if closing:
            assert stack.pop() == name
        else:
            stack.append(name)
    assert stack == []
