"""Upstream's accuracy rules: the scores of `cases/upstream.jsonl`, worked out by hand from the definition of each."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from mmeureka_jax.rewards.upstream import compare, extract, gold_problem

CASES = [json.loads(line) for line in (Path(__file__).parent / "cases" / "upstream.jsonl").read_text().splitlines()]
KINDS = list(dict.fromkeys(case["kind"] for case in CASES))


def score_of(case: dict) -> float:
    return compare(extract(case["response"], case["form"]), case["gold"], case["form"])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_definition(kind):
    cases = [case for case in CASES if case["kind"] == kind]
    wrong = [case for case in cases if score_of(case) != case["score"]]
    assert wrong == []


def test_there_are_two_hundred_different_instruct_cases_of_both_scores():
    assert len({(case["form"], case["gold"], case["response"]) for case in CASES}) == len(CASES)
    scores = [case["score"] for case in CASES if case["form"] == "instruct"]
    assert len(scores) >= 200
    assert min(scores.count(score) for score in (0.0, 1.0)) >= 80
    assert all(case["why"] for case in CASES)


def pieces(*texts: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(texts), max_size=14).map("".join)


@pytest.mark.parametrize(
    ("form", "expression"), [("instruct", "<answer>(.*?)</answer>"), ("tags", "(<answer>.*?</answer>)")]
)
@given(response=pieces("<answer>", "</answer>", "<answer", "7", "\n", "\r", "\u2028", " ", ">"))
def test_the_answer_in_tags_is_what_a_regular_expression_finds(form, expression, response):
    stripped = response.strip()
    match = re.search(expression, stripped)
    expected = match[1] if match else stripped.split("<answer>")[-1]
    assert extract(response, form) == (expected if stripped else None)


@given(pieces(r"\boxed{", r"\boxed", "{", "}", "}", r"\{", r"\}", "7", "\n", " "))
def test_the_boxed_answer_is_what_a_recursive_regular_expression_finds(response):
    boxes = [match[0] for match in regex.finditer(r"\\boxed(\{(?:[^{}]|(?1))*\})", response)]
    assert extract(response, "boxed") == (boxes[-1] if boxes else "")


@pytest.mark.parametrize("piece", ["<answer>", "<answer>\n", "</answer>", r"\boxed{", "{", r"\boxed{}", "}", "\n", "a"])
def test_a_megabyte_is_searched_in_linear_time(piece):
    """In quadratic time this takes hours."""
    response = piece * (1_000_000 // len(piece))
    for form in ("instruct", "tags", "boxed"):
        extract(response, form)


def test_importing_and_extracting_loads_no_sympy():
    program = (
        "import sys; from mmeureka_jax.rewards.upstream import extract; extract('<answer>5</answer>', 'instruct');"
        "sys.exit(any(name in sys.modules for name in ('sympy', 'math_verify', 'jax')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("gold", ["", " ", "$$", "A\nB", "(6,0)\n(0,-2018)"])
@pytest.mark.parametrize("form", ["instruct", "tags"])
def test_a_gold_answer_that_would_score_everything_has_a_reason(gold, form):
    problem = gold_problem(gold, form)
    assert problem is not None
    assert problem.startswith(repr(gold))
    assert problem.endswith("every response would score 1")
    assert {compare(text, gold, form) for text in ("5", "C", "", "<answer> $x$ </answer>")} == {1.0}
    assert compare(None, gold, form) == 0.0


@pytest.mark.parametrize("gold", [r"\sqrt{2}", "(2,3)", "x", "rhombus."])
def test_a_boxed_gold_answer_that_nothing_equals_has_a_reason(gold):
    problem = gold_problem(gold, "boxed")
    assert problem is not None
    assert problem.endswith("every response would score 0")
    assert {compare(text, gold, "boxed") for text in (rf"\boxed{{{gold}}}", r"\boxed{5}", "")} == {0.0}
    assert gold_problem(gold, "instruct") is None


@pytest.mark.parametrize("gold", ["5", "$5$", "B", r"$\frac{1}{2}$", "8\n8", r"$\frac{1}{$"])
@pytest.mark.parametrize("form", ["instruct", "tags", "boxed"])
def test_other_gold_answers_have_none(gold, form):
    assert gold_problem(gold, form) is None
