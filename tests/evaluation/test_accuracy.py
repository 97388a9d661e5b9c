"""What `mmeureka eval` counts, and what it writes."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import TINY, environment, mmeureka, prompt_row, read_rows, write_rows
from helpers.guessing import write_guessing_checkpoint

from mmeureka_jax.data.record import Problem
from mmeureka_jax.evaluation.accuracy import row_of, summarise
from mmeureka_jax.evaluation.examiner import Graded
from mmeureka_jax.rewards.base import RewardResult
from mmeureka_jax.sampling.answers import Response
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.setup.random_models import write_tiny_checkpoint


def graded(
    accuracy: float, length: int, *, finished: bool = True, failures: dict[str, str] | None = None, **metadata
) -> dict:
    """The row of an answer."""
    problem = Problem("p", ({"role": "user", "content": []},), answer="1", metadata=metadata)
    response = Response("", np.zeros(length, np.int32), np.zeros(length, np.float32), finished)
    return row_of(Graded(problem, response, RewardResult(accuracy, {"accuracy": accuracy}, failures or {})))


def test_figures_are_those_of_all_and_of_each_kind():
    results = summarise(
        [
            graded(1.0, 10, kind="dots", subject="geometry"),
            graded(0.0, 20, kind="dots", finished=False),
            graded(1.0, 30, kind="clock"),
            graded(0.0, 40, failures={"accuracy": "timed out"}),
        ]
    )
    assert (results["accuracy"], results["problems"], results["correct"]) == (0.5, 4, 2)
    assert results["accuracy_standard_error"] == math.sqrt(0.5 * 0.5 / 4)
    assert (results["truncated"], results["reward_failures"], results["response_length"]) == (1, 1, 25.0)
    assert {kind: figures["accuracy"] for kind, figures in results["by_kind"].items()} == {"clock": 1.0, "dots": 0.5}
    assert results["by_kind"]["dots"]["response_length"] == 15.0
    assert results["by_subject"]["geometry"]["problems"] == 1
    assert "by_difficulty" not in results


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer():
    answers = [[1, 0, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 0, 0]]
    results = summarise([graded(float(right), 1, kind=str(i)) for i, row in enumerate(answers) for right in row], n=6)
    assert (results["problems"], results["answers"], results["correct"]) == (4, 24, 9)
    assert results["accuracy"] == 9 / 24
    assert list(results["pass_at_k"]) == ["1", "2", "4", "6"]
    for k, rate in results["pass_at_k"].items():
        draws = [[any(draw) for draw in itertools.combinations(row, int(k))] for row in answers]
        assert rate == pytest.approx(np.mean([np.mean(one) for one in draws]), abs=1e-12)
    assert results["by_kind"]["0"]["pass_at_k"]["2"] == pytest.approx(1 - 6 / 15)
    means = np.mean(answers, axis=1)
    assert results["accuracy_standard_error"] == pytest.approx(means.std() / 2)
    assert "pass_at_k" not in summarise([graded(1.0, 1)])


def test_several_greedy_answers_are_refused_before_anything_is_opened(tmp_path, capsys):
    arguments = ["--model", tmp_path / "m", "--data", tmp_path / "d", "--output", tmp_path / "o", "--n", 4]
    assert mmeureka("eval", *arguments) == 2
    assert "the temperature 0, which is greedy" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_row_for_every_problem_and_a_count_of_those_left_out(tmp_path: Path, capsys, monkeypatch):
    streams = []
    sample = Sampler.sample
    monkeypatch.setattr(Sampler, "sample", lambda self, *given: streams.append(self.stream) or sample(self, *given))
    write_tiny_checkpoint(tmp_path / "model", TINY)
    rows = [prompt_row(f"p{i}", f"what is {i} + 1 ?", answer=str(i + 1), kind="sum", n=i) for i in range(5)]
    rows.insert(2, prompt_row("broken", "what is this ?", "gone.png", answer="1", kind="sum"))
    rows.insert(3, prompt_row("no gold", "why ?", answer="$\\frac{1$", kind="sum"))
    data = write_rows(tmp_path / "p.jsonl", rows)
    output = tmp_path / "results"
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
    assert set(streams) == {"validation"}


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> list[str]:
    """Arguments of an `eval` of 120 problems in batches of 8, three answers to each."""
    folder = tmp_path_factory.mktemp("asked")
    write_guessing_checkpoint(folder / "model", layers=1)
    rows = [prompt_row(f"p{i}", f"what is {i} + {'1 + ' * (i % 7)} 1 ?", answer=str(i % 9)) for i in range(120)]
    data = write_rows(folder / "p.jsonl", rows)
    settings = "--batch-size 8 --n 3 --temperature 1 --seed 5 --max-new-tokens 6 --prompt-style plain"
    return ["eval", "--model", str(folder / "model"), "--data", str(data), *settings.split()]


def files_of(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def kill_when(come_to: Callable[[], bool], arguments: list[str]) -> None:
    """Starts the command, kills it, and sees that all of its processes end."""
    command = [sys.executable, "-m", "mmeureka_jax.cli", *arguments]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 300
    while not come_to():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    while in_session(process.pid):
        assert time.monotonic() < deadline, in_session(process.pid)
        time.sleep(0.1)


def in_session(session: int) -> list[str]:
    """The processes of a session that have not ended."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        state, _, _, its_session = text.rpartition(")")[2].split()[:4]
        if int(its_session) == session and state != "Z":
            found.append(text)
    return found


@pytest.mark.slow
def test_a_killed_eval_ends_with_the_files_of_one_that_was_not(asked, tmp_path):
    whole = tmp_path / "whole"
    killed = tmp_path / "killed"
    assert subprocess.run([sys.executable, "-m", "mmeureka_jax.cli", *asked, "--output", whole], env=environment(),
                          stdout=subprocess.DEVNULL).returncode == 0  # fmt: skip
    partial = killed / "rows.jsonl.partial"

    def rows() -> int:
        return partial.read_bytes().count(b"\n") - 1 if partial.exists() else 0

    arguments = [*asked, "--output", str(killed)]
    kill_when(lambda: rows() >= 24, arguments)
    kept = partial.read_bytes().splitlines()[: 1 + 24]
    kill_when(lambda: rows() >= 72, arguments)
    assert partial.read_bytes().splitlines()[: 1 + 24] == kept
    assert 72 <= rows() < 360 and not (killed / "rows.jsonl").exists()
    with partial.open("ab") as file:
        file.write(b'{"id": "p119", "sam')
    command = [sys.executable, "-m", "mmeureka_jax.cli", *arguments]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0 and "continuing after" in done.stderr
    assert files_of(killed) == files_of(whole)
    rows_of_whole = read_rows(whole / "rows.jsonl")
    assert [(row["id"], row["sample"]) for row in rows_of_whole] == [(f"p{i}", j) for i in range(120) for j in range(3)]
    assert 0 < np.mean([row["accuracy"] for row in rows_of_whole]) < 1
