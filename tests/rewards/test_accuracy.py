"""The accuracy rule: equal answers in other forms score 1, wrong and evasive answers 0, gold answers quoted back 1."""

import json
import re
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mmeureka_jax.rewards.accuracy import accuracy, compare, gold_problem

# gold answer -> the same answer in other words
EQUAL = {
    "7": ["07", "007", "07.0",
          "7", "$7$", "7.", "$x=7$", "x = 7", "$$7$$", r"\(7\)", "$7.0$", "The answer is $7$.", "There are 7 dots.",
          r"\boxed{7}", r"$\boxed{7}$", "$3+4=7$", "7 cm", "**7**", r"$7\ \text{cm}^2$", "７", "$7^{\\circ}$"],
    "9 cm²": ["9", r"$9\,\text{cm}^2$", "9 cm^2", "9cm$^2$", r"$9 \mathrm{~cm}^{2}$", "9 square centimeters",
              "The area is $9$ cm²"],
    "25m.": ["25", "$25$ meters", "25 m", r"$25\text{m}$"],
    "45°": ["45", r"$45^\circ$", "45 degrees", r"$\angle A = 45^{\circ}$", "{{45}^{\\circ }}"],
    "20°C": ["20", "20 degrees Celsius", "20℃"],
    "3π": [r"$3\pi$", "3pi"],
    r"5$\sqrt{2}$": ["5√2", r"$5\sqrt2$", r"$\sqrt{50}$", "5sqrt(2)"],
    r"$\frac{1}{3\left( 3\text{n}+1 \right)}$": [r"$\frac{1}{9n+3}$"],
    r"$\frac{7}{2}$": ["3.5", "7/2", r"$3\frac{1}{2}$", r"\dfrac {7} {2}"],
    r"$5{{x}^{2}}$": ["$5x^2$"],
    "8\n8": ["8\n8", "8, 8", "8 and 8", "$8$, $8$", "8; 8", "$8$ $8$", "8 8"],
    "(3,0)\n(0,-4)": ["$(3,0)$, $(0,-4)$", "(3, 0) and (0, -4)"],
    "(1)$$0.3$$ (2)$$12$$": ["0.3, 12", "(1) 0.3; (2) 12"],
    "2.4.5.": ["②④⑤", "2, 4, 5", "5, 2, 4", "(2)(4)(5)"],
    "1.\n3.": ["1, 3", "①③"],
    "$x > 2$": ["x>2", "$2<x$"],
    r"$$2:\sqrt{3}$$": [r"$2:\sqrt{3}$", r"$\frac{2\sqrt{3}}{3}$"],
    r"$$\left ( 2,6\right ) $$": ["(2,6)", "$(2, 6)$"],
    "trapezoid.": ["Trapezoid", "a trapezoid", r"$\text{trapezoid}$"],
    ">": [">", "$>$", r"$\gt$"],
    "$$B$$": ["B", "(B)", "$B$", "b", r"\text{B}", "B. 5 cm", "Option B"],
    "south\n30\nwest\n20": ["south, 30, west, 20", "South; 30 m; West; 20 m"],
    "12,000": ["12000"],
    "$x_1=1, x_2=2$": ["1, 2"],
    "$x=1$ or $x=-4$": ["-4 and 1"],
    r"$\pm 2$": ["2 or -2"],
    "2, -2": [r"$\pm 2$"],
    "35%": [r"$35\%$", "35 percent"],
    "2:30": ["02:30", "2:30"],
    "1/3": [r"0.\overline{3}", "2/6"],
    "0.5": [".5", "00.50", "1/2", "(1+2)/6", "6÷12", "2**-1", "2^-1"],
    r"$-\frac{1}{2}\overrightarrow{a}-\frac{1}{2}\overrightarrow{b}$": [
        r"$-\frac{1}{2}(\overrightarrow{a}+\overrightarrow{b})$"],
    "6 apples": ["6"],
    "6元": ["6"],
    r"$\{1,2\}$": [r"$\{2,1\}$"],
    "(-∞,1)∪(2,+∞)": [r"$(-\infty,1)\cup(2,+\infty)$"],
    "$4m$": ["4m"],
    "8": ["$2^{3}$", "2**3", "2^3"],
    "1024": ["2^10", "$2^{10}$"],
    "(1,1)→(2,1)→(2,3)": [r"$(1,1) \to (2,1) \to (2,3)$"],
}  # fmt: skip

# gold answer -> answers that must not score: wrong ones, lists, hedges, and what a loose parser takes for the gold
UNEQUAL = {
    "5": ["", " ", "3, 4, 5", "3 4 5", "1 2 3 4 5 6 7 8 9", "3 or 5", "$3$ or $5$", "$3$, $5$", "$3$ $5$", "4\n5",
          r"\boxed{3}\boxed{5}", r"$\boxed{3}$ or $\boxed{5}$", r"3 \text{ or } 5", r"$5 \text{ or } 6$",
          r"$5\text{x}$", "5x", r"$5\sqrt{3}$", "-5", "15", "5.1", "50", "5/2", r"$\{4,5\}$", "[4,5]", "(5,5)", "not 5",
          "the answer is not 5", "maybe 4, maybe 5", "It is 4 or 5", "Either 4 or 5", "x", "5 +",
          r"$\frac{0}{0}$", r"\infty", "nan", "$x>4$", r"\pm 5", "5!", "?", "=",
          "{" * 500, r"\boxed{" * 300, "5 " * 500],
    "D": ["", "A B C D", "A, B, C, D", "ABCD", "A or D", "A/D", "(A)(D)", "C"],
    "A": ["a triangle", "A B", "a or b"],
    "9 cm²": ["9 m²", "9 cm"],
    "25m.": ["25 cm", "2.5"],
    r"5$\sqrt{2}$": ["5", "2"],
    r"$\frac{1}{3\left( 3\text{n}+1 \right)}$": ["3", "n"],
    "8\n8": ["8", "88", "8, 9", "8, 8, 8"],
    "96\n12": ["12", "12, 96", "9612"],
    "(1)$$0.3$$ (2)$$12$$": ["12", "12, 0.3"],
    "2.4.5.": ["2.4", "2, 4", "2, 3, 4, 5", "11", "245"],
    r"$$\left ( 2,6\right ) $$": ["2.6", "(6,2)", "2"],
    "(3,0)\n(0,-4)": ["(0,-4)"],
    "$x > 2$": ["2", "x<2", r"x \geq 2"],
    r"$$2:\sqrt{3}$$": [r"\sqrt{3}:2"],
    "2:30": ["4:60", "1:15", "3:30", "1/15"],
    "trapezoid.": ["rectangle", "square or trapezoid"],
    ">": ["<", "= > <"],
    "south\n30\nwest\n20": ["20", "south, 20, west, 30"],
    "$x=1$ or $x=-4$": ["1", "1, 1"],
    "x=5": ["y=5"],
    "2,3": ["2.3"],
    "3–5": ["-2"],
    "$4m$": ["4"],
    "35%": ["3.5"],
    "20°30'": ["50", "20"],
    "1/3": ["0.3", "0.33", "0.333333"],
    "30": ["30, 60, 90"],
}  # fmt: skip

EXPLANATION = "Because the two triangles share an angle and both are right-angled, they are similar, so the side is 5."
BROKEN_GOLDS = ["", "  ", "$$", "???", r"\frac{1}{", "$}{$", r"\sqrt{2", "1 +", "5@", EXPLANATION]


@pytest.mark.parametrize("gold", EQUAL)
def test_equal_answers_in_other_forms_score(gold):
    assert [text for text in EQUAL[gold] if compare(text, gold) != 1.0] == []


@pytest.mark.parametrize("gold", UNEQUAL)
def test_wrong_lists_and_hedges_do_not_score(gold):
    assert [text for text in UNEQUAL[gold] if compare(text, gold) != 0.0] == []


@pytest.mark.parametrize("gold", [*EQUAL, *UNEQUAL])
@pytest.mark.parametrize("form", ["instruct", "boxed"])
def test_gold_quoted_back_scores(gold, form):
    response = f"<think>t</think>\n<answer>{gold}</answer>" if form == "instruct" else rf"so \boxed{{{gold}}}."
    assert accuracy(response, gold, form) == 1.0


@pytest.mark.parametrize("gold", BROKEN_GOLDS)
def test_a_gold_that_does_not_parse_has_a_reason_and_never_scores(gold):
    assert gold_problem(gold)
    for text in (gold, "5", "1", ""):
        assert accuracy(f"<answer>{text}</answer>", gold, "instruct") == 0.0
        assert accuracy(text, gold, "instruct") == 0.0
        assert accuracy(rf"\boxed{{{text}}}", gold, "boxed") == 0.0


@settings(deadline=None, max_examples=200)
@example("01")
@given(st.text(alphabet=r"01a\{}$()^_,.;:= √π°²<>" + "frac", max_size=20))
def test_no_text_raises(text):
    compare(text, "7.3104")
    gold_problem(text)


CASES = Path(__file__).parent / "cases"


def rows(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def in_both_forms(row):
    """The scores of an answer in an `<answer>` block and in a box."""
    block = f"<think>t</think><answer>{row['answer']}</answer>"
    box = rf"<think>t</think><answer>\boxed{{{row['answer']}}}</answer>"
    return accuracy(block, row["gold"], "instruct"), accuracy(box, row["gold"], "boxed")


def disagreements(pairs):
    return [row for row in pairs if in_both_forms(row) != (row["verdict"], row["verdict"])]


PAIRS = rows(CASES / "pairs.jsonl")


@pytest.mark.parametrize("kind", sorted({row["kind"] for row in PAIRS}))
def test_pairs_are_judged_as_a_teacher_would(kind):
    assert disagreements([row for row in PAIRS if row["kind"] == kind]) == []


def test_responses_are_judged_as_a_teacher_would():
    wrong = [row for row in rows(CASES / "responses.jsonl") if _score(row) != row["verdict"]]
    assert wrong == []


def _score(row):
    return accuracy(row["response"], row["gold"], row["form"])


def test_the_verdicts_of_a_teacher_who_saw_no_rule_agree_but_for_one():
    """7% for 7 is another value; docs/rewards.md says why."""
    wrong = disagreements(rows(CASES / "teacher_pairs.jsonl"))
    assert [(row["gold"], row["answer"]) for row in wrong] == [("7", "7%")]
    responses = rows(CASES / "teacher_responses.jsonl")
    assert [row for row in responses if _score(row) != row["verdict"]] == []


def test_answers_that_only_please_the_rule_score_nothing():
    gaming = rows(CASES / "gaming.jsonl")
    assert len(gaming) >= 60
    assert [row for row in gaming if in_both_forms(row) != (0.0, 0.0)] == []


def test_a_gold_is_usable_or_has_a_reason():
    golds = rows(CASES / "golds.jsonl")
    assert [row["gold"] for row in golds if (gold_problem(row["gold"]) is None) != row["usable"]] == []
    quoted = [{"gold": row["gold"], "answer": row["gold"]} for row in golds]
    assert [row for row in quoted if in_both_forms(row) != (float(gold_problem(row["gold"]) is None),) * 2] == []


@pytest.mark.parametrize(
    "text", [r"x\infty", r"\infty x", r"x\infty+1", r"\infty^0", r"\frac{x\infty}{y}", "nan", "inf", r"\frac{0}{0}"]
)
@pytest.mark.parametrize("gold", ["7", r"2\sqrt{3}", "x+1", "y=2x+1", r"(1,\sqrt{2})", "x^2+y^2=4", "1"])
def test_nothing_infinite_equals_anything_finite(text, gold):
    assert compare(text, gold) == compare(f"y={text}", gold) == 0.0


def test_k12_golds_quoted_back_score():
    """Those of 64 problems of MM-EUREKA's K12 set, all but two: explanations in sentences, which no rule can compare
    and the data check refuses."""
    golds = rows(CASES / "k12_golds.jsonl")
    exceptions = [gold for gold in golds if gold_problem(gold) is not None]
    assert len(golds) == 64
    assert len(exceptions) == 2
    assert all("explanation" in gold_problem(gold) for gold in exceptions)
    for gold in golds:
        expected = float(gold not in exceptions)
        assert accuracy(f"<think>t</think><answer>{gold}</answer>", gold, "instruct") == expected, gold
        assert accuracy(rf"\boxed{{{gold}}}", gold, "boxed") == expected, gold
        assert accuracy("<think>t</think><answer>7.3104</answer>", gold, "instruct") == 0.0, gold


def test_k12_golds_do_not_score_for_each_other():
    golds = [gold for gold in rows(CASES / "k12_golds.jsonl") if gold_problem(gold) is None]
    pairs = [(gold, golds[(i + step) % len(golds)]) for i, gold in enumerate(golds) for step in range(1, 12)]
    same = [(a, b) for a, b in pairs if a != b and compare(b, a)]
    unlike = [pair for pair in same if len({re.sub(r"[$.\s]|cm²|m$", "", gold) for gold in pair}) > 1]
    assert unlike == []


@pytest.mark.parametrize("text", ["|x-100|+x-93", r"\max(7, x)", r"\lfloor \frac{x}{1000}+8 \rfloor", r"7^T", "7 + x"])
def test_formulas_that_are_the_value_only_where_one_looks_do_not_score(text):
    assert compare(text, "7") == 0.0


@pytest.mark.parametrize("word", ["three", "$x$", ""])
def test_long_formulas_next_to_a_word_are_read_in_no_time(word):
    formula = r"\frac{1}{2}+\pi" * 60
    start = time.perf_counter()
    compare(f"{formula} {word}", formula)
    assert time.perf_counter() - start < 5.0  # a pattern that goes astray takes years


TOKENS = [
    *r"5 .5 1,000 x x^2 \frac{1}{2} \sqrt{2} \emptyset \mathbb{R} \infty \pm \cup \in".split(),
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    *r"% ① ③ : , ; = < \leq ( ) [ ] { } $ ^ ° ' ! | 万 AB and or cm".split(),
    *(" ", "\n", "minus ", " thousand", " apples", "not ", "C. ", "9" * 400),
]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from(TOKENS), max_size=7).map("".join),
    st.lists(st.sampled_from(TOKENS), max_size=7).map("".join),
)
def test_no_pair_of_texts_raises(gold, text):
    gold_problem(gold)
    compare(text, gold)
