"""Public benchmarks asked of a policy: every row has an answer or a reason, and a command can stop at any point."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import mmeureka, read_rows
from helpers.guessing import write_guessing_checkpoint
from helpers.served_judge import served_judge
from PIL import Image

from mmeureka_jax.evaluation.partial_rows import PartialRows
from mmeureka_jax.report.answer_browser import read_element

PROBLEMS = 20
BROKEN = "5"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """Of an `eval` of a part of MMK12 in batches of 4, two answers to each problem; one picture is broken."""
    folder = tmp_path_factory.mktemp("asked")
    write_guessing_checkpoint(folder / "model", layers=1)
    release = folder / "release"
    release.mkdir()
    Image.new("RGB", (56, 56), (200, 30, 30)).save(release / "red.png")
    (release / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    rows = [
        {
            "id": i,
            "question": f"what is {i} + 1 ?",
            "answer": str(i % 9),
            "subject": ("math", "physics")[i % 2],
            "image": {"path": "broken.png" if str(i) == BROKEN else "red.png", "bytes": None},
        }
        for i in range(PROBLEMS)
    ]
    (release / "test.json").write_text(json.dumps(rows))
    settings = "--partial --batch-size 4 --n 2 --temperature 1 --max-new-tokens 4 --prompt-style plain"
    given = ["eval", "--model", str(folder / "model"), "--benchmark", f"mmk12={release}"]
    return [*given, *settings.split()]


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert mmeureka(*arguments, "--output", output) == 0
    return output


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_every_row_has_its_answers_or_a_reason(whole):
    rows = read_rows(whole / "mmk12.jsonl")
    assert [(row["id"], row["sample"]) for row in rows] == [(str(i), j) for i in range(PROBLEMS) for j in range(2)]
    reasons = {row["id"]: row["reason"] for row in rows if row["reason"] != "the response is empty" and row["reason"]}
    assert set(reasons) == {BROKEN} and "not a readable picture" in reasons[BROKEN]
    assert all(row["official"] == row["ours"] == 0 for row in rows if row["id"] == BROKEN)
    results = json.loads((whole / "results.json").read_text())["benchmarks"]["mmk12"]
    assert (results["count"], results["samples"], results["partial"]) == (PROBLEMS, 2, True)
    assert results["failed"] >= 1 / PROBLEMS
    settings = results["settings"]
    assert (settings["prompt_style"], settings["max_new_tokens"], settings["temperature"]) == ("plain", 4, 1.0)
    (shown,) = read_element((whole / "eval.html").read_text(), "data")["benchmarks"]
    assert [[shown["problems"][one[0]][0], one[2]] for one in shown["answers"]] == [
        [row["id"], row["sample"]] for row in rows
    ]
    assert settings["release"] == "MMK12 (test)" and "official:judge" in settings["judges"]["official"]


@pytest.mark.slow
def test_an_interrupted_evaluation_ends_with_the_same_files(arguments, whole, tmp_path, monkeypatch, caplog):
    added = []
    add = PartialRows.add

    def interrupt(self, *rows):
        add(self, *rows)
        added.append(rows)
        if len(added) == 10:  # in the second batch, of 8 on eight devices
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PartialRows, "add", interrupt)
        assert mmeureka(*arguments, "--output", tmp_path) == 130
    assert [file.name for file in tmp_path.iterdir()] == ["mmk12.answers.jsonl.partial"]
    caplog.set_level("INFO")
    assert mmeureka(*arguments, "--output", tmp_path) == 0
    assert "continuing after 16 of 40 rows" in caplog.text
    assert files_of(tmp_path) == files_of(whole)


def test_judging_again_asks_nothing_and_changes_nothing(arguments, whole, tmp_path, capsys):
    before = files_of(whole)
    benchmark = arguments[arguments.index("--benchmark") + 1]
    again = ["eval", "--judge-only", "--partial", "--benchmark", benchmark]
    assert mmeureka(*again, "--output", whole) == 0
    assert files_of(whole) == before
    assert mmeureka(*again, "--output", tmp_path) == 2
    assert "mmk12.answers.jsonl: no such file; ask the model first" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, message",
    [
        (["--data", "x.jsonl"], "give --data or benchmarks, not both"),
        (["--accuracy", "boxed"], "--accuracy is for --data"),
        (["--root", "/"], "--root is for --data"),
        (["--benchmark", "mmk12=elsewhere"], "a benchmark is given twice"),
        (["--suite", "paper"], "paper: no such file; give a suite's YAML file, or one of papers"),
        (["--judge-only", "--coordinator", "h:1"], "--judge-only needs no model and runs in one process"),
        (["--benchmark", "mmk21=elsewhere"], "mmk21: no such benchmark; there are"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, tmp_path, capsys, more, message):
    assert mmeureka(*arguments, *more, "--output", tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_part_is_refused_unless_it_is_said(arguments, tmp_path, capsys):
    without = [argument for argument in arguments if argument != "--partial"]
    assert mmeureka(*without, "--output", tmp_path / "out") == 2
    assert "20 rows, but MMK12 (test) has 2,000" in capsys.readouterr().err
    assert mmeureka(*without, "--limit", 4, "--output", tmp_path / "out") == 2
    assert "give --partial too" in capsys.readouterr().err


@pytest.mark.slow
def test_a_limit_asks_the_first_rows(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with served_judge(lambda prompt: "Yes") as judge:
        by_model = ("--judge-model", judge.address, "--judge-model-name", "wise")
        assert mmeureka(*arguments, "--samples", 1, "--limit", 6, "--output", tmp_path, *by_model) == 0
    assert [row["id"] for row in read_rows(tmp_path / "mmk12.jsonl")] == ["0", "1", "2", "3", "4", BROKEN, "6"]
    results = json.loads((tmp_path / "results.json").read_text())["benchmarks"]["mmk12"]
    assert (results["count"], results["samples"], results["partial"]) == (7, 1, True)
    assert results["model"] == pytest.approx(6 / 7) and results["settings"]["judges"]["model"]["model"] == "wise"
