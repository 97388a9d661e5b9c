"""The built-in problems: exact, reproducible, split without overlap, in a vocabulary that a tiny tokenizer covers."""

from __future__ import annotations

import io
import re
from collections import Counter
from fractions import Fraction

import math_verify
import numpy as np
import pytest
from PIL import Image

from mmeureka_jax.data.shapes import problems as shapes
from mmeureka_jax.data.shapes.canvas import INKS, Canvas
from mmeureka_jax.data.shapes.levels import KINDS, LEVELS
from mmeureka_jax.data.shapes.problems import (
    HASTY_FRACTION,
    ShapeProblem,
    generate,
    split_of,
    vocabulary_corpus,
)
from mmeureka_jax.data.shapes.scenes import (
    SCENES,
    Angles,
    Bars,
    Clock,
    Digits,
    Dots,
    FractionBoard,
    Lengths,
    Points,
    Scene,
)
from mmeureka_jax.errors import UserError

ALL = tuple((kind, difficulty) for kind in KINDS for difficulty in LEVELS[kind])
SOLUTION = re.compile(r"<think>(?P<thought>[^<]+)</think><answer>(?P<answer>[^<]+)</answer>")


def problems(count: int, split: str = "train", mixture: tuple[tuple[str, str], ...] = ALL, **kwargs):
    return [generate(i, split=split, mixture=mixture, **kwargs) for i in range(count)]


@pytest.fixture(scope="module")
def many() -> list[ShapeProblem]:
    return problems(40 * len(ALL))


def pixels(problem: ShapeProblem) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(problem.image)).convert("RGB"))


def solution_parts(solution: str) -> tuple[str, str]:
    match = SOLUTION.fullmatch(solution)
    assert match, solution
    return match["thought"], match["answer"]


def words(text: str) -> set[str]:
    return set(re.findall(r"</?[a-z]+>| ?[a-z]+|\d|[^a-z\d]", text))


def test_problem_follows_from_seed_split_and_index_in_any_order():
    forwards = problems(32)
    backwards = [generate(i, split="train", mixture=ALL) for i in reversed(range(32))][::-1]
    assert forwards == backwards
    assert problems(16, seed=1) != forwards[:16]
    assert len({problem.id for problem in forwards + problems(32, split="test")}) == 64


def test_no_scene_is_in_both_splits_whatever_its_colours(monkeypatch: pytest.MonkeyPatch):
    """With one colouring for all, pictures repeat within a split (some kinds have few scenes), never across."""

    def plain(side: int, rng: np.random.Generator, *, inks: int, shift: float) -> Canvas:
        return Canvas(side, np.random.default_rng(0), inks=2, shift=0.0)

    monkeypatch.setattr(shapes, "Canvas", plain)
    train, test = ([p.image for p in problems(40 * len(ALL), split)] for split in ("train", "test"))
    assert not set(train) & set(test)
    assert len(set(test)) < len(test)


def test_pictures_vary():
    pictures = [p.image for p in problems(20 * len(ALL))]
    assert len(set(pictures)) > 0.98 * len(pictures)


@pytest.mark.parametrize("kind", LEVELS)
def test_both_splits_hold_several_scenes_of_every_level(kind: str):
    for level in LEVELS[kind].values():
        rng = np.random.default_rng(0)
        scenes = {SCENES[kind].sample(rng, level) for _ in range(2000)}
        share = Counter(split_of(scene) for scene in scenes)
        assert share["test"] >= 4
        assert share["train"] > 3 * share["test"]


def test_mixture_is_taken_in_turn():
    mixture = (("dots", "easy"), ("clock", "hard"), ("bars", "easy"))
    assert [(p.kind, p.difficulty) for p in problems(6, mixture=mixture)] == [*mixture, *mixture]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"side": 100}, "multiple of 28"),
        ({"side": 0}, "multiple of 28"),
        ({"split": "validation"}, "unknown split"),
        ({"mixture": (("cubes", "easy"),)}, "cubes"),
        ({"mixture": (("dots", "brutal"),)}, "brutal"),
    ],
)
def test_wrong_arguments_are_user_errors(arguments: dict, message: str):
    with pytest.raises(UserError, match=message):
        generate(0, **{"split": "train", "mixture": ALL, **arguments})


def test_careful_is_right_and_hasty_is_right_only_by_chance(many: list[ShapeProblem]):
    right = Counter()
    for problem in many:
        assert Fraction(solution_parts(problem.careful)[1]) == Fraction(problem.answer)
        right[problem.kind] += Fraction(solution_parts(problem.hasty)[1]) == Fraction(problem.answer)
    per_kind = len(many) / len(KINDS)
    assert 0.02 < sum(right.values()) / len(many) < 0.2
    for kind in KINDS:
        assert right[kind] / per_kind < 0.35, kind


def test_gold_answers_are_numbers_that_the_reward_parses(many: list[ShapeProblem]):
    for problem in many[:160]:
        gold = math_verify.parse(f"${problem.answer}$")
        assert gold, problem.answer
        assert math_verify.verify(gold, math_verify.parse(f"${solution_parts(problem.careful)[1]}$"))


def test_style_is_told_by_the_first_word_and_by_nothing_else(many: list[ShapeProblem]):
    assert {solution_parts(p.careful)[0].split()[0] for p in many} == {"reading"}
    assert {solution_parts(p.hasty)[0].split()[0].strip(",") for p in many} == {"glancing"}
    for kind in KINDS:
        share = np.mean([p.style == "hasty" for p in many if p.kind == kind])
        assert share == pytest.approx(HASTY_FRACTION, abs=0.15)
    assert np.mean([p.style == "hasty" for p in many]) == pytest.approx(HASTY_FRACTION, abs=0.05)
    for problem in many:
        assert problem.solution == (problem.hasty if problem.style == "hasty" else problem.careful)
    pictures = {style: [p.image for p in problems(32, hasty_fraction=f)] for style, f in (("a", 0.0), ("b", 1.0))}
    assert pictures["a"] == pictures["b"]


def test_careful_is_several_times_longer_than_hasty(many: list[ShapeProblem]):
    def length(text: str) -> int:
        return len(re.findall(r"</?[a-z]+>| ?[a-z]+|\d|[^a-z\d]", text))

    easy = [p for p in many if p.difficulty == "easy"]
    careful = np.mean([length(p.careful) for p in easy])
    assert 25 < careful < 60
    assert careful > 2 * np.mean([length(p.hasty) for p in easy])


def test_texts_are_plain_and_their_words_are_in_the_corpus():
    known = set().union(*(words(text) for text in vocabulary_corpus()))
    assert len(known) < 300
    for problem in problems(40 * len(ALL)) + problems(10 * len(ALL), split="test", seed=7):
        for text in (problem.question, problem.careful, problem.hasty):
            assert text.isascii() and text == text.lower() and "\n" not in text
            assert words(text) <= known
            assert not re.search(r" \d", text), text


def test_steps_of_a_careful_solution_are_true(many: list[ShapeProblem]):
    """Every `a+b=c` and every running total, checked by arithmetic alone."""
    checked = 0
    for problem in many:
        thought, _ = solution_parts(problem.careful)
        for a, sign, b, c in re.findall(r"(\d+)([-+*])(\d+)=(\d+)", thought):
            assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(c), thought
            checked += 1
        counts = [
            int(n) for n in re.findall(r"(?:first|second|third|[a-z]+th)=(\d+)", re.sub("width|third=180", "", thought))
        ]
        totals = [int(n) for n in re.findall(r"total=(\d+)", thought)]
        assert totals in ([], np.cumsum(counts)[1:].tolist()), thought
        checked += len(totals)
    assert checked > len(many)


@pytest.mark.parametrize(
    ("scene", "asked", "answer"),
    [
        (Dots(("*.*.", "....", "****", ".*..")), None, "7"),
        (Dots(("rr.", "..r")), "distractors", "3"),
        (Dots(("...", "...")), "distractors", "0"),
        (FractionBoard(("##..", "#...")), None, "3/8"),
        (Bars((3, 1, 4), 4), "total", "8"),
        (Bars((3, 1, 4), 4), "difference", "3"),
        (Digits(((1, 2), (3, 4)), 28), None, "10"),
        (Clock(4, 5), None, "405"),
        (Clock(12, 30), None, "1230"),
        (Lengths(5, 3, None), "perimeter", "16"),
        (Lengths(5, 6, (2, 3)), "perimeter", "22"),
        (Lengths(5, 6, (2, 3)), "area", "24"),
        (Lengths(5, 6, (2, 3)), "missing", "2"),
        (Angles("triangle", 50, 60), None, "70"),
        (Angles("protractor", 20, 110), None, "90"),
        (Points(4, (3, 4), (1, 3)), None, "3"),
    ],
)
def test_answers_of_known_scenes(scene: Scene, asked: str | None, answer: str):
    level = {"questions": (asked,), "minute_step": 5, "step": 10, "distractors": asked == "distractors"}
    solved = scene.solve(np.random.default_rng(0), level)
    assert solved.answer == answer
    assert Fraction(solved.stated) == Fraction(answer)


def draw(scene: Scene, inks: int = 1) -> np.ndarray:
    canvas = Canvas(112, np.random.default_rng(0), inks=inks, shift=0.0)
    scene.draw(canvas)
    return np.asarray(Image.open(io.BytesIO(canvas.png())).convert("RGB")).astype(int)


def inked(picture: np.ndarray, color: str = "blue") -> np.ndarray:
    return np.abs(picture - np.array(INKS[color])).sum(-1) < 60


def components(mask: np.ndarray) -> int:
    """Connected regions of True, by flood fill."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    count = 0
    while left:
        count = count + 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            edge += near
    return count


def test_dots_can_be_counted_in_the_pixels():
    """Of every easy problem: the middle of each cell is ink or paper."""
    for problem in problems(24, mixture=(("dots", "easy"),)):
        middles = pixels(problem).astype(int)[14::28, 14::28]
        assert (middles.min(-1) < 100).sum() == int(problem.answer)


def test_shaded_cells_can_be_counted_in_the_pixels():
    for problem in problems(24, mixture=(("fraction", "easy"),)):
        middles = pixels(problem).astype(int)[14::28, 14::28]
        assert Fraction(int((middles.min(-1) < 100).sum()), 16) == Fraction(problem.answer)


def test_bars_are_as_high_as_they_say():
    heights = (3, 1, 4, 2)
    rows = inked(draw(Bars(heights, 4)))[:, 14::28].sum(0)  # down the middle of each bar
    np.testing.assert_allclose(rows / 26, heights, atol=0.35)  # lines between the blocks


def test_only_dots_of_the_colour_asked_for_are_counted():
    for problem in problems(24, mixture=(("dots", "hard"),)):
        match = re.search(r"(\w+) dots", problem.question)
        assert match is not None
        dots = components(inked(pixels(problem).astype(int), match[1]))
        assert dots == int(problem.answer)


def test_points_are_where_they_say():
    picture = draw(Points(4, (1, 2), (4, 3)))
    for color, (column, row) in {"red": (0, 2), "blue": (3, 1)}.items():
        y, x = np.argwhere(inked(picture, color)).mean(0)
        assert (x, y) == pytest.approx((28 * column + 13.5, 28 * row + 13.5), abs=0.5)


def test_clock_hands_point_at_the_time():
    """The minute hand ends 36 units from the middle, the hour hand (drawn over it) 22."""
    canvas = Canvas(112, np.random.default_rng(3), inks=2, shift=0.0)
    Clock(3, 30).draw(canvas)
    picture = np.asarray(Image.open(io.BytesIO(canvas.png())).convert("RGB")).astype(int)
    minute, hour = (inked(picture, name) for name in canvas.ink_names)
    assert minute[56 + 30, 56] and not minute[56 - 30, 56]
    assert hour[60, 72] and not hour[60, 40]  # half past three: a little below the right


@pytest.mark.parametrize("side", [56, 112, 224])
def test_pictures_have_the_side_asked_for(side: int):
    for problem in problems(len(ALL), side=side):
        assert pixels(problem).shape == (side, side, 3)
        assert problem.side == side


def test_different_scenes_give_different_pictures():
    for kind, difficulty in ALL:
        level = LEVELS[kind][difficulty]
        rng = np.random.default_rng(0)
        scenes = {SCENES[kind].sample(rng, level) for _ in range(30)}
        assert len({draw(scene, inks=2).tobytes() for scene in scenes}) == len(scenes), kind
