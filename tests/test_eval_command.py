"""What `mmeureka eval` counts, and what it writes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from commands import TINY, mmeureka, prompt_row, read_rows, write_rows

from mmeureka_jax.data.problems import Problem
from mmeureka_jax.eval_command import summarise
from mmeureka_jax.models.tiny import write_tiny_checkpoint
from mmeureka_jax.rewards.base import RewardResult
from mmeureka_jax.rl.evaluate import Graded, Response


def graded(accuracy: float, length: int, *, finished: bool = True, failure: str | None = None, **metadata) -> Graded:
    problem = Problem("p", ({"role": "user", "content": []},), answer="1", metadata=metadata)
    response = Response("", np.zeros(length, np.int32), np.zeros(length, np.float32), finished)
    return Graded(problem, response, RewardResult(accuracy, {"accuracy": accuracy}, failure))


def test_figures_are_those_of_all_and_of_each_kind():
    results = summarise(
        [
            graded(1.0, 10, kind="dots", subject="geometry"),
            graded(0.0, 20, kind="dots", finished=False),
            graded(1.0, 30, kind="clock"),
            graded(0.0, 40, failure="accuracy: timed out"),
        ]
    )
    assert (results["accuracy"], results["problems"], results["correct"]) == (0.5, 4, 2)
    assert results["accuracy_standard_error"] == math.sqrt(0.5 * 0.5 / 4)
    assert (results["truncated"], results["reward_failures"], results["response_length"]) == (1, 1, 25.0)
    assert {kind: figures["accuracy"] for kind, figures in results["by_kind"].items()} == {"clock": 1.0, "dots": 0.5}
    assert results["by_kind"]["dots"]["response_length"] == 15.0
    assert results["by_subject"]["geometry"]["problems"] == 1
    assert "by_difficulty" not in results


@pytest.mark.slow
def test_a_row_for_every_problem_and_a_count_of_those_left_out(tmp_path: Path, capsys):
    write_tiny_checkpoint(tmp_path / "model", TINY)
    rows = [prompt_row(f"p{i}", f"what is {i} + 1 ?", answer=str(i + 1), kind="sum", n=i) for i in range(5)]
    rows.insert(2, prompt_row("broken", "what is this ?", "gone.png", answer="1", kind="sum"))
    rows.insert(3, prompt_row("no gold", "why ?", answer="$\\frac{1$", kind="sum"))
    data, output = write_rows(tmp_path / "p.jsonl", rows), tmp_path / "results"
    arguments = ["--model", tmp_path / "model", "--data", data, "--output", output, "--max-new-tokens", 4, "--limit", 4]
    assert mmeureka("eval", *arguments) == 0
    printed = capsys.readouterr().out
    assert str(output / "results.json") in printed and "of 4 problems" in printed

    written = read_rows(output / "rows.jsonl")
    assert [row["id"] for row in written] == ["p0", "p1", "p2", "p3"]
    assert all(row["kind"] == "sum" and row["length"] <= 4 for row in written)
    results = json.loads((output / "results.json").read_text())
    assert results["problems"] == 4 and results["rejected"] == 2
    assert results["accuracy"] == np.mean([row["accuracy"] for row in written])
    assert results["settings"]["prompt_style"] == "instruct" and results["settings"]["max_new_tokens"] == 4
    check = json.loads((output / "data_check.json").read_text())
    assert [rejected["id"] for rejected in check["rejected"]] == ["broken", "no gold"]
    assert sorted(path.name for path in output.iterdir()) == ["data_check.json", "results.json", "rows.jsonl"]
