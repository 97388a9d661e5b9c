"""The kind of problem that a policy of a million parameters learns to solve in steps within minutes.

What makes the others hard to learn step by step is finding the part of the picture that a step is about. Here a step
names a colour, and at a side of 56 pixels each die is one image token of Qwen2.5-VL.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mmeureka_jax.data.shapes.canvas import DEFAULT_SIDE, GREY, INKS, Canvas
from mmeureka_jax.data.shapes.levels import Level
from mmeureka_jax.data.shapes.solving import Solved, Write, as_it_is, running_total

_DICE = 4
_CORNERS = ((-1, -1), (1, 1), (1, -1), (-1, 1))
_DOTS: dict[int, tuple[tuple[int, int], ...]] = {  # of each face: (across, down) from its middle
    1: ((0, 0),),
    2: _CORNERS[:2],
    3: (*_CORNERS[:2], (0, 0)),
    4: _CORNERS,
    5: (*_CORNERS, (0, 0)),
    6: (*_CORNERS, (-1, 0), (1, 0)),
}


@dataclass(frozen=True)
class Dice:
    """Four dice, two by two, each with dots of a colour of its own: how many dots are there?"""

    faces: tuple[tuple[str, int], ...]  # (ink, dots), row by row

    @classmethod
    def sample(cls, rng: np.random.Generator, level: Level) -> Dice:
        inks = rng.permutation(list(INKS)[:_DICE]).tolist()
        return cls(tuple(zip(inks, rng.integers(1, level["faces"] + 1, _DICE).tolist(), strict=True)))

    def draw(self, canvas: Canvas) -> None:
        cell = DEFAULT_SIDE / 2
        for place, (ink, dots) in enumerate(self.faces):
            left = place % 2 * cell
            top = place // 2 * cell
            canvas.box(left + 4, top + 4, left + cell - 4, top + cell - 4, (255, 255, 255), GREY)
            for across, down in _DOTS[dots]:
                canvas.disc(left + (0.5 + across / 4) * cell, top + (0.5 + down / 4) * cell, 6, INKS[ink])

    def solve(self, rng: np.random.Generator, level: Level, write: Write = as_it_is) -> Solved:
        questions = ("how many dots are in the picture?", "count the dots.")
        question = questions[int(rng.integers(len(questions)))]
        steps, total = running_total("boxes", dict(sorted(self.faces)), write, high=level["faces"])
        return Solved(question, str(total), steps, str(total))
