"""The built-in rendered problems: small pictures with a question, an exact answer and worked solutions.

A problem is a scene (what the picture shows; see scenes.py), a question about it and two worked solutions in the
form `<think>...</think><answer>...</answer>`: the *careful* one reads the picture step by step and is right, the
*hasty* one is a vague sentence and a guess that is right about three times in ten. Imitating a mixture of both gives a
policy that can do either and mostly guesses, which is what reinforcement learning then has to notice.

The same problems come with solutions in steps (data/steps.py), which process rewards are about: the *careful* one, and
a *careless* one that writes one wrong number and continues from it, so that a right answer can be reached from its
steps before that, and no longer from those after it.

Everything follows only from (seed, split, index), in any order. A scene belongs to the train or to the test split by a
hash of its content, so no picture is in both, whatever its colours.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mmeureka_jax.data.shapes.canvas import DEFAULT_SIDE, Canvas
from mmeureka_jax.data.shapes.levels import DIFFICULTIES, KINDS, LEVELS, Level
from mmeureka_jax.data.shapes.scenes import SCENES, Scene
from mmeureka_jax.data.shapes.solving import SLIPS, Solved, careless
from mmeureka_jax.data.steps import solution
from mmeureka_jax.errors import UserError

Split = Literal["train", "test"]
Style = Literal["careful", "hasty", "careless"]

# Shares of the solutions that the train split offers for imitation.
HASTY_FRACTION = 0.6
CARELESS_FRACTION = 0.5
TEST_SHARE = 8  # one scene in this many belongs to the test split

_SLIPS = 1  # the draws of careless solutions, apart from all others

HASTY_THOUGHTS = (
    "glancing at it, maybe this.",
    "glancing, it looks like this.",
    "glancing quickly, this seems right.",
)


@dataclass(frozen=True)
class ShapeProblem:
    """One row.

    Attributes:
        solutions: both worked solutions, by style.
        style: that of the solution offered for imitation.
        slip: for solutions in steps, the first step of the careless one that is wrong, counted from 1.
        image: a PNG file.
    """

    id: str
    kind: str
    difficulty: str
    question: str
    answer: str
    solutions: Mapping[Style, str]
    style: Style
    image: bytes
    side: int
    slip: int | None = None

    @property
    def solution(self) -> str:
        return self.solutions[self.style]

    @property
    def careful(self) -> str:
        return self.solutions["careful"]

    @property
    def hasty(self) -> str:
        return self.solutions["hasty"]

    @property
    def careless(self) -> str:
        return self.solutions["careless"]

    def metadata(self) -> dict[str, Any]:
        """JSON-able; `solution` is the text that supervised fine-tuning imitates."""
        names = ("kind", "difficulty", "style", "solution", "side")
        slip = {} if self.slip is None else {"slip": self.slip}
        return {name: getattr(self, name) for name in names} | dict(self.solutions) | slip


def split_of(scene: Scene) -> Split:
    """The one split that a scene may appear in."""
    digest = hashlib.blake2b(repr(scene).encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_SHARE == 0 else "train"


def generate(
    index: int,
    *,
    split: Split,
    mixture: Sequence[tuple[str, str]],
    seed: int = 0,
    side: int = DEFAULT_SIDE,
    hasty_fraction: float = HASTY_FRACTION,
    careless_fraction: float | None = None,
) -> ShapeProblem:
    """Problem `index` of the endless list that (seed, split, mixture) names.

    Picture, question and answer do not depend on the form of the solutions.

    Args:
        mixture: (kind, difficulty) pairs, taken in turn, so that every stretch of the list is balanced.
        side: pixels, a multiple of 28 (the size of an image token).
        hasty_fraction: probability that `solution` is the hasty one; independent of the problem.
        careless_fraction: the same for the careless one, in solutions in steps; None: the solutions are thoughts.

    Raises:
        UserError: an unknown split, kind or difficulty, or a side that is not a positive multiple of 28.
    """
    if side <= 0 or side % 28:
        raise UserError(f"shapes: side={side} is not a positive multiple of 28")
    kind, difficulty = mixture[index % len(mixture)]
    if kind not in LEVELS or difficulty not in LEVELS[kind]:
        raise UserError(f"shapes: no {kind!r} at {difficulty!r}; kinds: {tuple(LEVELS)}, difficulties: {DIFFICULTIES}")
    rng = _generator(seed, split, index)
    level = LEVELS[kind][difficulty]
    scene = _sample_scene(kind, level, split, rng)
    before_question = copy.deepcopy(rng)
    solved = scene.solve(rng, level)
    hasty = _hasty(kind, level, split, rng)
    style: Style = "hasty" if rng.random() < hasty_fraction else "careful"
    solutions: dict[Style, str] = {"careful": _careful(solved), "hasty": hasty}
    slip = None
    if careless_fraction is not None:
        slips = _generator(seed, split, index, _SLIPS)
        style = "careless" if slips.random() < careless_fraction else "careful"
        wrong = careless(
            lambda write: scene.solve(copy.deepcopy(before_question), level, write), slips, level.get("slips", SLIPS)
        )
        slip = 1 + [a == b for a, b in zip(solved.step_texts, wrong.step_texts, strict=True)].index(False)
        carelessly = _in_steps(wrong)
        if "lucky" in level:
            is_lucky = slips.random() < level["lucky"]
            carelessly = _in_steps(solved if is_lucky else wrong, glance=slip)
            slip = None if is_lucky else slip
        solutions = {"careful": _in_steps(solved), "careless": carelessly}
    canvas = Canvas(side, rng, inks=level["inks"], shift=level["shift"])
    scene.draw(canvas)
    return ShapeProblem(
        id=f"{kind}-{difficulty}-{split}-{index:06d}",
        kind=kind,
        difficulty=difficulty,
        question=solved.question,
        answer=solved.answer,
        solutions=solutions,
        style=style,
        image=canvas.png(),
        side=side,
        slip=slip,
    )


def _generator(seed: int, split: Split, index: int, *purpose: int) -> np.random.Generator:
    if split not in ("train", "test"):
        raise UserError(f"shapes: unknown split {split!r}; there are 'train' and 'test'")
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, split == "test", index, *purpose])))


def _sample_scene(kind: str, level: Level, split: Split, rng: np.random.Generator) -> Scene:
    scene = SCENES[kind].sample(rng, level)
    while split_of(scene) != split:
        scene = SCENES[kind].sample(rng, level)
    return scene


def _careful(solved: Solved) -> str:
    return _wrap(solved.steps, solved.stated)


def _hasty(kind: str, level: Level, split: Split, rng: np.random.Generator) -> str:
    """A guess that has not looked: the answer of some other scene of the kind, now and then right by chance.

    A guess near the truth would not do: the likeliest answer after many such guesses is the truth, and greedy decoding
    of the hasty style would then be right.
    """
    guess = _sample_scene(kind, level, split, rng).solve(rng, level).stated
    return _wrap(HASTY_THOUGHTS[rng.integers(len(HASTY_THOUGHTS))], guess)


def _in_steps(solved: Solved, glance: int | None = None) -> str:
    """
    Args:
        glance: the step, counted from 1, that says it is none but a glance.
    """
    texts = [f"glancing, {text}" if number == glance else text for number, text in enumerate(solved.step_texts, 1)]
    return solution(texts, solved.stated)


def _wrap(thought: str, answer: str) -> str:
    return f"<think>{thought}</think><answer>{answer}</answer>"


def vocabulary_corpus(problems_per_level: int = 64) -> list[str]:
    """Questions and solutions of every kind and difficulty, to train a tokenizer on: every word is in there."""
    texts = list(HASTY_THOUGHTS)
    for kind in KINDS:
        for level in LEVELS[kind].values():
            for index in range(problems_per_level):
                rng = _generator(0, "train", index)
                solved = _sample_scene(kind, level, "train", rng).solve(rng, level)
                texts += [solved.question, _careful(solved), _hasty(kind, level, "train", rng)]
    return texts
