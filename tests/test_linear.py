"""What reads texts of models and data sets takes time in proportion to their length: a megabyte that was made to be
hard to read ends as any other does."""

from __future__ import annotations

import signal
from contextlib import contextmanager

import pytest

from mmeureka_jax.data import forms
from mmeureka_jax.data.steps import steps_of
from mmeureka_jax.report import page
from mmeureka_jax.report.formulas import text_to_html
from mmeureka_jax.rewards import accuracy
from mmeureka_jax.rewards.answers.extraction import answer_text
from mmeureka_jax.rewards.rules.format import follows_format

PIECES = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "</think><answer>",
    "<answer></answer>",
    "<answer>x",
    "<step>",
    "</step>",
    "<step>a</step>",
    "\\boxed{",
    " ",
    "\n",
)
READERS = {
    "parts of a response": page._parts,
    "tagged solution": forms._tagged,
    "answer in tags": accuracy._untagged,
    "format": lambda text: follows_format(text, style="instruct"),
    "format of steps": lambda text: follows_format(text, style="steps"),
    "answer after steps": lambda text: answer_text(f"<step>a</step>{text}", "steps"),
    "steps": steps_of,
    "picture markers": forms.MARKER.findall,
}


@contextmanager
def ends(seconds: int = 20):
    def stop(*_):
        raise AssertionError(f"it takes more than {seconds} s")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.mark.parametrize("name", READERS)
def test_a_megabyte_of_one_piece(name):
    with ends():
        for piece in PIECES:
            text = piece * (2**20 // len(piece))
            for odd in (text, f"<answer>{text}", f"{text}</answer>", f"<think>{text}x"):
                READERS[name](odd)


def test_formulas_that_do_not_end():
    with ends():
        for piece in ("$a ", "\\(", "\\[", "$$"):
            text_to_html(piece * (2**17 // len(piece)))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("a<think>b</think>c<answer>d</answer>", ["a", "<think>b</think>", "c", "<answer>d</answer>", ""]),
        ("<think>a<answer>b</answer></think>", ["", "<think>a<answer>b</answer></think>", ""]),
        ("<think>a<answer>b</answer>", ["<think>a", "<answer>b</answer>", ""]),
        ("<answer>a<think>b<answer>c</answer>", ["", "<answer>a<think>b<answer>c</answer>", ""]),
        ("<step>a</step>\n<answer>b</answer>", ["", "<step>a</step>", "\n", "<answer>b</answer>", ""]),
        ("</think><think><think>a</think>", ["</think>", "<think><think>a</think>", ""]),
    ],
)
def test_parts_of_a_response(text, parts):
    assert page._parts(text) == parts


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>1</answer> <answer> 2 </answer>", "2"),
        ("<answer>1</answer> <answer>2", "1"),
        ("<answer>1</answer>2</answer>", "1"),
        ("<answer> </answer>", None),
        ("</answer><answer>", None),
        ("</answer>", None),
        ("1", None),
    ],
)
def test_the_last_tagged_answer_of_a_solution(text, answer):
    assert forms._tagged(text) == answer


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (" <Answer> 5 </ANSWER>\n", "5"),
        ("<answer></answer>", ""),
        ("<answer>1</answer><answer>2</answer>", "1</answer><answer>2"),
        ("<answer>", "<answer>"),
        ("<answer></answer", "<answer></answer"),
        ("so <answer>5</answer>", "so <answer>5</answer>"),
    ],
)
def test_an_answer_in_tags(text, inside):
    assert accuracy._untagged(text) == inside
