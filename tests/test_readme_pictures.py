"""The pictures of the README can still be drawn, by the script that drew them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "images" / "draw.py"


@pytest.fixture(scope="module")
def draw():
    spec = importlib.util.spec_from_file_location("draw", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_group_has_a_right_answer_and_wrong_ones(draw):
    figure = draw.draw_group()
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert {"+1.39", "-0.20", "-0.99"} <= set(texts)


def test_the_curves_of_the_demo_name_where_accuracy_begins_and_ends(draw, tmp_path):
    rows = {
        "sft": [{"step": 1, "sft/loss": 2.0}, {"step": 2, "sft/loss": 1.0}],
        "rl": [
            {"step": 0, "validation/accuracy": 0.1},
            {"step": 1, "reward/accuracy": 0.2, "validation/accuracy": 0.9},
        ],
    }
    for name, lines in rows.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    figure = draw.draw_demo(tmp_path)
    assert [text.get_text() for text in figure.axes[1].texts] == ["10.0%", "90.0%"]
