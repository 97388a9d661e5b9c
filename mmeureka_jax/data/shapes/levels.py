"""How hard each kind of built-in problem is: the only place to tune."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Level = Mapping[str, Any]

# `inks`: how many of INKS the drawing may use. `shift`: by how much it may be displaced, in units of 1/112 of the side.
# Boards of 4 x 4 cells line up with the 28-pixel image tokens of Qwen2.5-VL at the default side.
LEVELS: dict[str, dict[str, Level]] = {
    "dots": {
        "easy": {"rows": 4, "columns": 4, "distractors": False, "inks": 2, "shift": 1},
        "hard": {"rows": 5, "columns": 7, "distractors": True, "inks": 5, "shift": 2},
    },
    "fraction": {
        "easy": {"rows": (4, 4), "columns": (4, 4), "inks": 2, "shift": 1},
        "hard": {"rows": (2, 5), "columns": (3, 6), "inks": 5, "shift": 1},
    },
    "bars": {
        "easy": {"bars": 4, "highest": 4, "questions": ("total",), "inks": 2, "shift": 1},
        "hard": {"bars": 5, "highest": 9, "questions": ("total", "difference"), "inks": 5, "shift": 2},
    },
    "digits": {
        "easy": {"rows": 2, "columns": 2, "digits": (1, 5), "cell": 50, "inks": 2, "shift": 1},
        "hard": {"rows": 2, "columns": 4, "digits": (0, 9), "cell": 25, "inks": 5, "shift": 4},
    },
    "clock": {
        "easy": {"minute_step": 15, "inks": 2, "shift": 1},
        "hard": {"minute_step": 5, "inks": 5, "shift": 3},
    },
    "lengths": {
        "easy": {"longest": 9, "notch": False, "questions": ("perimeter",), "inks": 2, "shift": 1},
        "hard": {"longest": 12, "notch": True, "questions": ("perimeter", "area", "missing"), "inks": 5, "shift": 2},
    },
    "angles": {
        "easy": {"figure": "triangle", "step": 10, "inks": 2, "shift": 1},
        "hard": {"figure": "protractor", "step": 10, "inks": 5, "shift": 1},
    },
    "points": {
        "easy": {"size": 4, "inks": 2, "shift": 1},
        "hard": {"size": 7, "inks": 5, "shift": 2},
    },
}
KINDS = tuple(LEVELS)

# For solutions in steps only. `slips`: by how much the number of a careless step is wrong. `lucky`: how often not.
LEVELS["dice"] = {"easy": {"faces": 6, "slips": (1,), "lucky": 0.25, "inks": 1, "shift": 1}}
DIFFICULTIES = ("easy", "hard")
