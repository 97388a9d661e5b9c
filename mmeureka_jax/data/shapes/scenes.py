"""The kinds of built-in problem: what a picture shows, how it is drawn, what is asked and how it is read.

One frozen dataclass per kind, with `sample`, `draw` and `solve`. A new kind is a class here or in a file of its own, a
line in `SCENES` and its levels (levels.py).

Texts are ASCII, in lower case and from a small vocabulary, with no blank before a digit, so that a word-level tokenizer
spends one token on a word, a mark or a digit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np

from mmeureka_jax.data.shapes.canvas import BLACK, DEFAULT_SIDE, GREY, INKS, PALE, Canvas
from mmeureka_jax.data.shapes.dice import Dice
from mmeureka_jax.data.shapes.levels import Level
from mmeureka_jax.data.shapes.solving import ORDINALS, Solved, Write, as_it_is, running_total


class Scene(Protocol):
    """What one picture shows. The fields hold all of it except colours and shift: their repr decides the split."""

    @classmethod
    def sample(cls, rng: np.random.Generator, level: Level) -> Scene: ...

    def draw(self, canvas: Canvas) -> None: ...

    def solve(self, rng: np.random.Generator, level: Level, write: Write = as_it_is) -> Solved: ...


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _board(rows: int, columns: int) -> tuple[float, float, float]:
    """(left, top, cell) of a centred board of square cells that fills the picture."""
    cell = DEFAULT_SIDE / max(rows, columns)
    return (DEFAULT_SIDE - columns * cell) / 2, (DEFAULT_SIDE - rows * cell) / 2, cell


@dataclass(frozen=True)
class Dots:
    """Dots in the cells of a board, to be counted; with dots of two colours, only those of one."""

    rows: tuple[str, ...]  # "." nothing, "*" a dot of any ink, or the first letter of the ink's name

    @classmethod
    def sample(cls, rng: np.random.Generator, level: Level) -> Dots:
        shape = (level["rows"], level["columns"])
        filled = rng.random(shape) < rng.uniform(0.15, 0.75)
        dots: Any = "*"
        if level["distractors"]:
            first, second = rng.choice(list(INKS), 2, replace=False)
            dots = np.where(rng.random(shape) < 0.6, first[0], second[0])
        return cls(tuple("".join(row) for row in np.where(filled, dots, ".")))

    def draw(self, canvas: Canvas) -> None:
        left, top, cell = _board(len(self.rows), len(self.rows[0]))
        inks = {"*": canvas.inks[0]} | {name[0]: ink for name, ink in INKS.items()}
        for r, row in enumerate(self.rows):
            if r:
                canvas.line((left, top + r * cell), (DEFAULT_SIDE - left, top + r * cell), color=PALE, width=1)
            for c, dot in enumerate(row):
                if dot != ".":
                    canvas.disc(left + (c + 0.5) * cell, top + (r + 0.5) * cell, 0.32 * cell, inks[dot])

    def solve(self, rng: np.random.Generator, level: Level, write: Write = as_it_is) -> Solved:
        dot = "*"
        name = "dots"
        if level["distractors"]:
            shown = [ink for ink in INKS if any(ink[0] in row for row in self.rows)]
            color = _pick(rng, shown or list(INKS))
            dot = color[0]
            name = f"{color} dots"
        counts = [row.count(dot) for row in self.rows]
        question = _pick(rng, (f"how many {name} are in the picture?", f"count the {name}."))
        steps, total = running_total("rows", counts, write, high=len(self.rows[0]))
        return Solved(question, str(total), steps, str(total))


@dataclass(frozen=True)
class FractionBoard:
    """A board of equal cells, some of them shaded: which fraction?"""

    rows: tuple[str, ...]  # "#" shaded, "." not

    @classmethod
    def sample(cls, rng: np.random.Generator, level: Level) -> FractionBoard:
        shape = [int(rng.integers(low, high + 1)) for low, high in (level["rows"], level["columns"])]
        shaded = rng.random(shape) < rng.uniform(0.2, 0.8)
        shaded[tuple(rng.integers(0, size) for size in shape)] ^= shaded.all() or not shaded.any()
        return cls(tuple("".join(row) for row in np.where(shaded, "#", ".")))

    def draw(self, canvas: Canvas) -> None:
        left, top, cell = _board(len(self.rows), len(self.rows[0]))
        for r, row in enumerate(self.rows):
            for c, mark in enumerate(row):
                x = left + c * cell
                y = top + r * cell
                fill = canvas.inks[0] if mark == "#" else None
                canvas.box(x + 1.5, y + 1.5, x + cell - 1.5, y + cell - 1.5, fill, GREY)

    def solve(self, rng: np.random.Generator, level: Level, write: Write = as_it_is) -> Solved:
        counts = [row.count("#") for row in self.rows]
        rows = len(self.rows)
        columns = len(self.rows[0])
        question = _pick(rng, ("what fraction of the board is shaded?", "which part is shaded? give a fraction."))
        read, shaded = running_total("rows", counts, write, high=columns)
        cells = write(rows * columns)
        steps = f"{read} cells={rows}*{columns}={cells}."
        return Solved(question, _fraction(shaded, cells), steps, f"{shaded}/{cells}")


def _fraction(numerator: int, denominator: int) -> str:
    value = Fraction(numerator, denominator)
    return f"{value.numerator}/{value.denominator}"


@dataclass(frozen=True)
class Bars:
    """Bars built of unit blocks: their total, or the tallest minus the shortest."""

    heights: tuple[int, ...]
    highest: int  # on the scale that is drawn behind them

    @classmethod
    def sample(cls, rng: np.random.Generator, level: Level) -> Bars:
        return cls(tuple(rng.integers(1, level["highest"] + 1, level["bars"]).tolist()), level["highest"])

    def draw(self, canvas: Canvas) -> None:
        width = DEFAULT_SIDE / len(self.heights)
        unit = (DEFAULT_SIDE - 8) / self.highest
        floor = DEFAULT_SIDE - 4
        for step in range(self.highest + 1):
            canvas.line((1, floor - step * unit), (111, floor - step * unit), color=PALE, width=1)
        for i, height in enumerate(self.heights):
            for block in range(height):
                bottom = floor - block * unit
                left = (i + 0.16) * width
                right = (i + 0.84) * width
                canvas.box(left, bottom - unit, right, bottom, canvas.inks[0], PALE)
        canvas.line((1, floor), (111, floor), color=BLACK, width=1.5)

    def solve(self, rng: np.random.Generator, level: Level, write: Write = as_it_is) -> Solved:
        if _pick(rng, level["questions"]) == "total":
            question = _pick(rng, ("what is the total height of the bars?", "add the heights of the bars."))
            steps, value = running_total("bars", self.heights, write, high=self.highest)
        else:
            question = "how much taller is the tallest bar than the shortest bar?"
            heights = [write(height, high=self.highest) for height in self.heights]
            read = " ".join(f"{ordinal}={h}." for ordinal, h in zip(ORDINALS, heights, strict=False))
            tall = write(max(heights), low=min(heights))
            short = write(min(heights), high=tall)
            value = write(tall - short)
            steps = f"reading bars: {read} tallest={tall}, shortest={short}, difference={tall}-{short}={value}."
        return Solved(question, str(value), steps, str(value))


@dataclass(frozen=True)
class Digits:
    """Digits in boxes, to be added."""

    rows: tuple[tuple[int, ...], ...]
    cell: int  # units

    @classmethod
    def sample(cls, rng: np.random.Generator, level: Level) -> Digits:
        low, high = level["digits"]
        digits = rng.integers(low, high + 1, (level["rows"], level["columns"]))
        return cls(tuple(tuple(row) for row in digits.tolist()), level["cell"])

    def draw(self, canvas: Canvas) -> None:
        cell = self.cell
        middle = DEFAULT_SIDE / 2
        left = middle - len(self.rows[0]) * cell / 2
        top = middle - len(self.rows) * cell / 2
        for r, row in enumerate(self.rows):
            for c, digit in enumerate(row):
                x = left + c * cell
                y = top + r * cell
                canvas.box(x + 1, y + 1, x + cell - 1, y + cell - 1, (255, 255, 255), GREY)
                canvas.text(x + cell / 2, y + cell / 2, str(digit), 0.95 * cell, canvas.inks[0], bold=True)

    def solve(self, rng: np.random.Generator, level: Level, write: Write = as_it_is) -> Solved:
        digits = [digit for row in self.rows for digit in row]
        question = _pick(rng, ("what is the sum of the digits?", "add the digits in the boxes."))
        steps, total = running_total("boxes", digits, write, high=9)
        return Solved(question, str(total), steps, str(total))


@dataclass(frozen=True)
class Clock:
    """A clock to read; the time is written as one number, 435 for 4:35."""

    hour: int  # 1 to 12
    minute: int

    @classmethod
    def sample(cls, rng: np.random.Generator, level: Level) -> Clock:
        step = level["minute_step"]
        return cls(int(rng.integers(1, 13)), step * int(rng.integers(60 // step)))

    def draw(self, canvas: Canvas) -> None:
        def at(hours: float, radius: float) -> tuple[float, float]:
            angle = math.tau * hours / 12
            return 56 + radius * math.sin(angle), 56 - radius * math.cos(angle)

        canvas.disc(56, 56, 52, (255, 255, 255), BLACK)
        for hour in range(1, 13):
            if hour % 3:
                canvas.line(at(hour, 44), at(hour, 49), color=GREY, width=2)
            else:
                canvas.text(*at(hour, 43), str(hour), 13, BLACK)
        canvas.line((56, 56), at(self.minute / 5, 36), color=canvas.inks[0], width=3)
        canvas.line((56, 56), at(self.hour + self.minute / 60, 22), color=canvas.inks[1], width=6)

    def solve(self, rng: np.random.Generator, level: Level, write: Write = as_it_is) -> Solved:
        question = _pick(rng, ("what time is it (4:35=435)?", "read the clock (4:35=435)."))
        short = write(self.hour, low=1, high=12)
        long = write(self.minute // 5 or 12, low=1, high=12)
        minutes = write(5 * (long % 12), high=59)
        answer = f"{short}{minutes:02}"
        read = f"short={short}, long={long}. minutes={minutes:02}"
        return Solved(question, answer, f"reading hands: {read}, time={answer}.", answer)


@dataclass(frozen=True)
class Lengths:
    """A rectangle with marked sides, or one with a rectangular notch cut out of its top right corner."""

    width: int
    height: int
    notch: tuple[int, int] | None  # (width, height)

    @classmethod
    def sample(cls, rng: np.random.Generator, level: Level) -> Lengths:
        if not level["notch"]:
            width, height = rng.integers(1, level["longest"] + 1, 2).tolist()
            return cls(width, height, None)
        width, height = rng.integers(4, level["longest"] + 1, 2).tolist()
        return cls(width, height, (int(rng.integers(2, width - 1)), int(rng.integers(2, height - 1))))

    def draw(self, canvas: Canvas) -> None:
        ink = canvas.inks[0]
        left = 24
        top = 26
        right = 102
        bottom = 100
        if self.notch is None:
            canvas.line((left, top), (right, top), (right, bottom), (left, bottom), (left, top), color=BLACK, width=2.5)
            canvas.text(70, 14, str(self.width), 24, ink)
            canvas.text(12, 70, str(self.height), 24, ink)
            return
        inner = 60
        step = 56
        bottom = 94
        top = 20
        outline = ((left, top), (inner, top), (inner, step), (right, step), (right, bottom), (left, bottom))
        canvas.line(*outline, (left, top), color=BLACK, width=2.5)
        width, height = self.notch
        canvas.text(63, 103, str(self.width), 16, ink)
        canvas.text(12, 57, str(self.height), 16, ink)
        canvas.text(42, 10, str(self.width - width), 16, ink)
        canvas.text(70, 38, str(height), 16, ink)
        canvas.text(81, 47, "?", 16, BLACK)

    def solve(self, rng: np.random.Generator, level: Level, write: Write = as_it_is) -> Solved:
        asked = _pick(rng, level["questions"])
        question = {
            "perimeter": _pick(rng, ("what is the perimeter?", "how long is the line around the shape?")),
            "area": "what is the area of the shape?",
            "missing": "how long is the side marked ?",
        }[asked]
        w = write(self.width, low=1)
        if asked == "missing" and self.notch:
            top = write(self.width - self.notch[0], low=1, high=w)
            value = write(w - top)
            steps = f"reading sides: width={w}, top={top}, rest={w}-{top}={value}."
            return Solved(question, str(value), steps, str(value))
        h = write(self.height, low=1)
        steps = f"reading sides: width={w}, height={h}. "
        if asked == "perimeter":  # the notch moves two sides inwards and leaves their lengths as they are
            half = write(w + h)
            value = write(2 * half)
            steps += f"half={w}+{h}={half}, all={half}+{half}={value}."
        else:
            value = write(w * h)
            steps += f"all={w}*{h}={value}."
            if self.notch:
                top = write(self.width - self.notch[0], low=1, high=w)
                rest = write(w - top)
                side = write(self.notch[1], low=1)
                cut = write(rest * side, high=value)
                area = write(value - cut)
                steps += f" top={top}, rest={w}-{top}={rest}. cut={rest}*{side}={cut}, area={value}-{cut}={area}."
                value = area
        return Solved(question, str(value), steps, str(value))


@dataclass(frozen=True)
class Angles:
    """Two marked angles of a triangle, to find the third; or two rays on a protractor, to find the angle between."""

    figure: str
    first: int  # degrees: the left angle, or the lower ray
    second: int  # degrees: the right angle, or the upper ray

    @classmethod
    def sample(cls, rng: np.random.Generator, level: Level) -> Angles:
        step = level["step"]
        if level["figure"] == "triangle":
            first, second = (step * int(rng.integers(math.ceil(30 / step), 100 // step + 1)) for _ in range(2))
            while first + second > 150:
                second = step * int(rng.integers(math.ceil(30 / step), 100 // step + 1))
            return cls("triangle", first, second)
        rays = np.sort(rng.choice(np.arange(0, 180 // step + 1), 2, replace=False)) * step
        return cls("protractor", int(rays[0]), int(rays[1]))

    def draw(self, canvas: Canvas) -> None:
        if self.figure == "triangle":
            self._draw_triangle(canvas)
        else:
            self._draw_protractor(canvas)

    def _draw_triangle(self, canvas: Canvas) -> None:
        left, right = (math.radians(angle) for angle in (self.first, self.second))
        apex_x = math.tan(right) / (math.tan(left) + math.tan(right)) if 90 not in (self.first, self.second) else None
        if apex_x is None:
            apex_x = 0.0 if self.first == 90 else 1.0
        height = math.sin(left) * math.sin(right) / math.sin(left + right)
        low = min(0.0, apex_x)
        high = max(1.0, apex_x)
        scale = min(100 / (high - low), 78 / height)
        x0 = 56 - scale * (low + high) / 2
        y0 = 84
        corners = ((x0, y0), (x0 + scale, y0), (x0 + scale * apex_x, y0 - scale * height))
        canvas.line(*corners, corners[0], color=BLACK, width=2.5)
        canvas.arc(*corners[0], 12, 0, self.first, canvas.inks[0])
        canvas.arc(*corners[1], 12, 180 - self.second, 180, canvas.inks[0])
        canvas.text(20, 99, str(self.first), 19, canvas.inks[0])
        canvas.text(92, 99, str(self.second), 19, canvas.inks[0])

    def _draw_protractor(self, canvas: Canvas) -> None:
        def at(angle: float, radius: float) -> tuple[float, float]:
            return 56 + radius * math.cos(math.radians(angle)), 88 - radius * math.sin(math.radians(angle))

        canvas.arc(56, 88, 40, 0, 180, BLACK)
        canvas.line(at(0, 40), at(180, 40), color=GREY, width=1)
        for angle in range(0, 181, 10):
            canvas.line(at(angle, 34 if angle % 30 == 0 else 37), at(angle, 40), color=BLACK, width=1)
            if angle % 30 == 0:
                canvas.text(*at(angle, 47.5), str(angle), 9.5, BLACK)
        for angle in (self.first, self.second):
            canvas.line((56, 88), at(angle, 39), color=canvas.inks[0], width=3)

    def solve(self, rng: np.random.Generator, level: Level, write: Write = as_it_is) -> Solved:
        if self.figure == "triangle":
            question = _pick(rng, ("how many degrees is the third angle?", "what is the angle at the top?"))
            a = write(self.first)
            b = write(self.second)
            both = write(a + b, high=180, unit=10)
            value = write(180 - both, unit=10)
            steps = f"reading corners: left={a}, right={b}. sum={a}+{b}={both}, third=180-{both}={value}."
        else:
            question = "how many degrees are between the two lines?"
            a = write(self.first, high=self.second, unit=10)
            b = write(self.second, low=a, high=180, unit=10)
            value = write(b - a, unit=10)
            steps = f"reading lines: right={a}, left={b}. between={b}-{a}={value}."
        return Solved(question, str(value), steps, str(value))


@dataclass(frozen=True)
class Points:
    """Two points on a grid: how many steps along the lines from one to the other?"""

    size: int
    first: tuple[int, int]  # (x, y), from 1
    second: tuple[int, int]

    @classmethod
    def sample(cls, rng: np.random.Generator, level: Level) -> Points:
        size = level["size"]
        places = rng.choice(size * size, 2, replace=False)
        first, second = ((int(place) // size + 1, int(place) % size + 1) for place in places)
        return cls(size, first, second)

    def draw(self, canvas: Canvas) -> None:
        cell = DEFAULT_SIDE / self.size
        for i in range(1, self.size + 1):
            along = (i - 0.5) * cell
            canvas.line((along, 0), (along, 112), color=PALE, width=1.2)
            canvas.line((0, along), (112, along), color=PALE, width=1.2)
        for (x, y), ink in ((self.first, INKS["red"]), (self.second, INKS["blue"])):
            canvas.disc((x - 0.5) * cell, DEFAULT_SIDE - (y - 0.5) * cell, 0.33 * cell, ink)

    def solve(self, rng: np.random.Generator, level: Level, write: Write = as_it_is) -> Solved:
        question = _pick(rng, ("how many steps from red to blue?", "how far is red from blue, in steps?"))
        x, y, u, v = (write(place, low=1, high=self.size) for place in (*self.first, *self.second))
        across = write(abs(x - u))
        up = write(abs(y - v))
        value = write(across + up)
        read = f"red x={x}, y={y}. blue x={u}, y={v}."
        steps = f"across={max(x, u)}-{min(x, u)}={across}, up={max(y, v)}-{min(y, v)}={up}, sum={across}+{up}={value}"
        return Solved(question, str(value), f"reading points: {read} {steps}.", str(value))


SCENES: dict[str, type[Scene]] = {
    "dots": Dots,
    "fraction": FractionBoard,
    "bars": Bars,
    "digits": Digits,
    "dice": Dice,
    "clock": Clock,
    "lengths": Lengths,
    "angles": Angles,
    "points": Points,
}
