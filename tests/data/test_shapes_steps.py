"""Solutions in steps of the built-in problems: careless ones differ in one number and in what follows from it."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label

from mmeureka_jax.data.shapes.canvas import INKS
from mmeureka_jax.data.shapes.levels import KINDS, LEVELS
from mmeureka_jax.data.shapes.problems import CARELESS_FRACTION, ShapeProblem, generate
from mmeureka_jax.data.shapes.solving import ORDINALS
from mmeureka_jax.data.steps import solution, steps_of
from mmeureka_jax.rewards.accuracy import accuracy
from mmeureka_jax.rewards.rules.format import follows_format

ALL = tuple((kind, difficulty) for kind in KINDS for difficulty in LEVELS[kind])
STATEMENT = re.compile(r"(\w+)=(?:(\d+)([-+*])(\d+)=)?(\d+)")
OPERATIONS = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}
# What is computed from which numbers before it. Only `cells` and `cut` have operands that are read from the picture.
OPERANDS = {
    "half": ("width", "height"),
    "rest": ("width", "top"),
    "area": ("all", "cut"),
    "difference": ("tallest", "shortest"),
    "between": ("left", "right"),
    "third": ("180", "sum"),
    "all": ("half", "half"),
}


@pytest.fixture(scope="module")
def many() -> list[ShapeProblem]:
    return [generate(i, split="train", mixture=ALL, careless_fraction=CARELESS_FRACTION) for i in range(40 * len(ALL))]


def statements(problem: ShapeProblem, style: str) -> list[tuple[str, str, str, str, int]]:
    text = " ".join(steps_of(problem.solutions[style])[:-1])
    for color in ("red", "blue"):
        text = re.sub(rf"{color} x=(\d+), y=", rf"{color}x=\1, {color}y=", text)
    return [(*found[:4], int(found[4])) for found in STATEMENT.findall(text)]


def computed(kind: str, name: str, a: str, sign: str, b: str, before: dict[str, int]) -> int | None:
    """What the statement should say by those before it; None: it was read from the picture."""
    counts = [before[ordinal] for ordinal in ORDINALS if ordinal in before]
    if name == "total":
        return before.get("total", counts[0]) + counts[-1]
    if name == "tallest":
        return max(counts)
    if name == "shortest":
        return min(counts)
    if name == "minutes":
        return 5 * (before["long"] % 12)
    if name == "time":
        return int(f"{before['short']}{before['minutes']:02}")
    if not sign:
        return None
    operands = [before.get(operand, 180) for operand in OPERANDS.get(name, ())]
    if name == "all" and "half" not in before:
        operands = [before["width"], before["height"]]
    elif name == "sum":
        operands = [before["left"], before["right"]] if kind == "angles" else [before["across"], before["up"]]
    elif name in ("across", "up"):
        axis = "x" if name == "across" else "y"
        operands = sorted((before[f"red{axis}"], before[f"blue{axis}"]), reverse=True)
    elif name == "cut":
        operands = [before["rest"], int(b)]
    elif name == "cells":
        operands = [int(a), int(b)]
    assert [int(a), int(b)] == operands, (kind, name)
    return OPERATIONS[sign](*operands)


def wrong_numbers(problem: ShapeProblem, style: str) -> list[int]:
    """By how much each number differs from what it should be, where it does."""
    right = statements(problem, "careful")
    found = []
    before: dict[str, int] = {}
    for (name, a, sign, b, value), careful in zip(statements(problem, style), right, strict=True):
        should = computed(problem.kind, name, a, sign, b, before)
        if name == "cut" and int(b) != int(careful[3]):
            found.append(int(b) - int(careful[3]))
        if value != (careful[4] if should is None else should):
            found.append(value - (careful[4] if should is None else should))
        before[name] = value
    answer = f"{before['total']}/{before['cells']}" if problem.kind == "fraction" else str(value)
    assert steps_of(problem.solutions[style])[-1] == answer
    return found


def test_a_careless_solution_has_one_wrong_number_and_follows_from_it(many):
    places = defaultdict(set)
    for problem in many:
        assert wrong_numbers(problem, "careful") == []
        (slip,) = wrong_numbers(problem, "careless")
        assert abs(slip) in ((10, 20) if problem.kind == "angles" and slip % 10 == 0 else (1, 2)), problem
        careful = steps_of(problem.careful)
        careless = steps_of(problem.careless)
        assert problem.slip is not None
        assert careless[: problem.slip - 1] == careful[: problem.slip - 1]
        assert careless[problem.slip - 1] != careful[problem.slip - 1]
        assert Fraction(careless[-1]) != Fraction(problem.answer) == Fraction(careful[-1])
        places[problem.kind, problem.difficulty].add(problem.slip)
    assert all(steps >= {1, 2} for steps in places.values()) and len(places) == len(ALL)
    assert places["digits", "hard"] == set(range(1, 9))


def test_one_step_of_a_careless_solution_of_dice_is_a_glance():
    """Its number is one too many, or right now and then; everything else follows from what was written."""
    problems = [
        generate(i, split="train", mixture=(("dice", "easy"),), side=56, careless_fraction=0.7) for i in range(400)
    ]
    for problem in problems:
        careless = steps_of(problem.careless)
        (place,) = [number for number, step in enumerate(careless, 1) if step.startswith("glancing, ")]
        assert problem.slip in (None, place)
        assert all("glancing" not in step for step in steps_of(problem.careful))
        values = {style: [value for *_, value in statements(problem, style)] for style in ("careful", "careless")}
        wrong = [b - a for a, b in zip(values["careful"], values["careless"], strict=True) if a != b]
        assert set(wrong) == (set() if problem.slip is None else {1}), problem
        assert accuracy(problem.careless, problem.answer, "steps") == float(problem.slip is None)
    assert np.mean([problem.slip is None for problem in problems]) == pytest.approx(0.25, abs=0.06)
    assert np.mean([problem.style == "careless" for problem in problems]) == pytest.approx(0.7, abs=0.06)
    assert {problem.slip for problem in problems} == {None, 1, 2, 3, 4}


def test_each_die_has_its_dots_within_one_image_token():
    for index in range(40):
        problem = generate(index, split="test", mixture=(("dice", "easy"),), side=56, careless_fraction=0.0)
        picture = np.asarray(Image.open(io.BytesIO(problem.image)).convert("RGB")).astype(int)
        told = {name: value for name, *_, value in statements(problem, "careful") if name != "total"}
        seen = {}
        for top in (0, 28):
            for left in (0, 28):
                die = picture[top : top + 28, left : left + 28]
                dots = {ink: label(np.abs(die - color).sum(-1) < 90)[1] for ink, color in INKS.items()}
                seen |= {ink: count for ink, count in dots.items() if count}
        assert seen == told


def test_only_the_form_of_the_solutions_is_new(many):
    for index, problem in enumerate(many[:96]):
        thought = generate(index, split="train", mixture=ALL)
        for name in ("id", "kind", "question", "answer", "image"):
            assert getattr(problem, name) == getattr(thought, name)
        *steps, answer = steps_of(problem.careful)
        assert f"<think>{' '.join(steps)}</think><answer>{answer}</answer>" == thought.careful
        assert generate(index, split="train", mixture=ALL, careless_fraction=CARELESS_FRACTION) == problem
    assert np.mean([problem.style == "careless" for problem in many]) == pytest.approx(CARELESS_FRACTION, abs=0.06)
    others = [generate(i, split="train", mixture=ALL, careless_fraction=0.0) for i in range(32)]
    assert [problem.careless for problem in others] == [problem.careless for problem in many[:32]]
    assert {problem.solution == problem.careful for problem in others} == {True}


def test_solutions_have_the_form_that_the_rules_ask_for(many):
    for problem in many[:160]:
        for style, right in (("careful", 1.0), ("careless", 0.0)):
            text = problem.solutions[style]
            *steps, answer = steps_of(text)
            assert text == solution(steps, answer)
            assert follows_format(text, style="steps") == 1.0
            assert accuracy(text, problem.answer, "steps") == right
        assert problem.metadata()["solution"] == problem.solutions[problem.style]


def test_thoughts_are_those_of_earlier_versions():
    """Recorded runs were made with them."""
    rows = [
        generate(i, split=split, mixture=ALL, seed=seed)
        for split in ("train", "test")
        for seed in (0, 1)
        for i in range(64)
    ]
    texts = [[row.id, row.question, row.answer, row.metadata()] for row in rows]
    digest = hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()
    assert digest[:16] == "f26f1b7374b13543"
