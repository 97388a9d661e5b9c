"""`mmeureka eval --best-of N --prm DIR`: what it writes, what it does not draw again, and what it refuses."""

from __future__ import annotations

import functools
import gc
import json
import re
import shutil
import weakref
from collections import Counter
from pathlib import Path
from statistics import fmean
from unittest import mock

import jax
import numpy as np
import pytest
from helpers.choices import recounted
from helpers.commands import mmeureka, read_rows, write_rows
from helpers.guessing import write_stepping_checkpoint
from helpers.releases import picture

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.data.problems import open_problems
from mmeureka_jax.data.steps import solution, steps_of
from mmeureka_jax.evaluation import ask
from mmeureka_jax.evaluation.benchmark import open_benchmark
from mmeureka_jax.evaluation.examiner import Examiner
from mmeureka_jax.evaluation.options import ModelOptions
from mmeureka_jax.evaluation.release import read_release
from mmeureka_jax.prm import answer_scores
from mmeureka_jax.prm.aggregators import AGGREGATORS, aggregate
from mmeureka_jax.prm.growth import write_grown
from mmeureka_jax.prm.scorer import Scorer, Solutions, open_scorer
from mmeureka_jax.setup.policy import OpenedPolicy

N = 4
PROBLEMS = 20
CONTEXT = 96  # tokens


DATA = ["eval", "--model", "m", "--data", "d.jsonl", "--output"]
AGAIN = ["eval", "--judge-only", "--data", "d.jsonl", "--output"]


@pytest.mark.parametrize(
    "arguments, more, message",
    [
        (DATA, "--best-of 4", "--best-of is for a process reward model: give --prm DIR too"),
        (DATA, "--prm-batch-size 4", "--prm-batch-size is for a process reward model"),
        (DATA, "--prm p", "--prm needs --best-of N, or --judge-only"),
        (DATA, "--prm p --best-of 1", "leaves nothing to choose"),
        (DATA, "--prm p --best-of 4 --n 8", "leave out --n 8"),
        (DATA, "--prm p --best-of 4 --coordinator h:1", "--prm runs in one process"),
        (DATA, "--judge-only", "--judge-only is for --benchmark and --suite, or with --prm DIR for --data"),
        (AGAIN, "--prm p --best-of 4", "leave out --best-of"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(tmp_path, capsys, arguments, more, message):
    assert mmeureka(*arguments, tmp_path / "out", *more.split()) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MMEUREKA_DISTRIBUTED", "1")
    assert mmeureka(*DATA, tmp_path, "--prm", "p", "--best-of", 4) == 2
    assert "--prm runs in one process" in capsys.readouterr().err


@pytest.fixture(scope="module")
def text_models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_stepping_checkpoint(folder / "policy")
    write_grown(folder / "policy", folder / "prm")
    settings = folder / "prm" / "config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"max_position_embeddings": CONTEXT}))
    return folder


def test_a_model_without_the_marker_is_refused_before_an_answer(text_models, tmp_path, capsys):
    policy = text_models / "policy"
    arguments = ["eval", "--model", policy, "--data", "d.jsonl", "--output", tmp_path / "out"]
    assert mmeureka(*arguments, "--best-of", 4, "--temperature", 1, "--prm", policy) == 2
    error = capsys.readouterr().err
    assert f"{policy}: its tokenizer has no token <prm>" in error
    assert not (tmp_path / "out").exists()
    assert mmeureka(*arguments, "--best-of", 4, "--prm", text_models / "prm") == 2
    assert "give a temperature above 0" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# A problem set whose answers are written by hand.


def hand_written(folder: Path, responses: dict[str, list[str]]) -> list[object]:
    """A folder as of `eval --data`, and the arguments that score it."""
    problems = [{"id": name, "question": f"which digit is it, {name}?", "answer": "4"} for name in responses]
    write_rows(folder / "problems.jsonl", problems)
    rows = [
        {"id": name, "sample": sample, "answer": "4", "text": text, "accuracy": float(text.endswith(">4</answer>"))}
        for name, own in responses.items()
        for sample, text in enumerate(own)
    ]
    output = folder / "out"
    output.mkdir()
    write_rows(output / "rows.jsonl", rows)
    (output / "results.json").write_text(json.dumps({"settings": {"accuracy": "steps"}}))
    return ["eval", "--judge-only", "--data", folder / "problems.jsonl", "--output", output]


def test_answers_without_steps_are_refused_where_there_are_no_others(text_models, tmp_path, capsys):
    arguments = hand_written(tmp_path, {"p": ["<answer>4</answer>", "four"], "q": ["4", "<step>not ended"]})
    assert mmeureka(*arguments, "--prm", text_models / "prm") == 2
    error = capsys.readouterr().err
    assert "none of the 4 answers has steps" in error and "--prompt-style steps" in error
    assert [file.name for file in (tmp_path / "out").glob("*best*")] == []


@pytest.mark.parametrize(
    "problems, message",
    [
        ([{"id": "p", "question": "q", "answer": "5"}], "problem 'p' of .*rows.jsonl has another gold answer"),
        ([{"id": "r", "question": "q", "answer": "4"}], "problem 'p' of .*rows.jsonl is not there"),
    ],
)
def test_other_problems_are_refused(text_models, tmp_path, capsys, problems, message):
    arguments = hand_written(tmp_path, {"p": [solution(["1"], "4")] * 2})
    write_rows(tmp_path / "problems.jsonl", problems)
    assert mmeureka(*arguments, "--prm", text_models / "prm") == 2
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "rows, message",
    [
        ([{"id": "p", "text": "4", "answer": "4"}], "one answer to each problem"),
        ([], "no answers"),
        ([{"id": "p", "text": None}], "rows.jsonl:1: not a judged answer"),
    ],
)
def test_a_file_that_holds_no_answers_to_choose_among(text_models, tmp_path, capsys, rows, message):
    arguments = hand_written(tmp_path, {"p": [solution(["1"], "4")] * 2})
    write_rows(tmp_path / "out" / "rows.jsonl", rows)
    assert mmeureka(*arguments, "--prm", text_models / "prm") == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_hostile_answers_score_0_and_are_named(text_models, tmp_path, capsys):
    good = solution(["1", "3"], "4")
    responses = {
        "p": [good, solution(["1<prm>"], "4"), "no steps"],
        "q": [solution(["<|image_pad|>"], "4"), solution(["3"], "8"), solution(["1"] * CONTEXT, "4")],
        "r": ["", "nothing", "<answer> </answer>"],
    }
    arguments = hand_written(tmp_path, responses)
    assert mmeureka(*arguments, "--prm", text_models / "prm") == 0
    rows = read_rows(tmp_path / "out" / "rows.scores.jsonl")
    assert [(row["id"], row["sample"]) for row in rows] == [(name, i) for name in "pqr" for i in range(3)]
    assert [len(row["scores"]) for row in rows] == [3, 0, 0, 0, 2, 0, 0, 0, 0]
    reasons = [row.get("reason", "") for row in rows]
    assert "the marker <prm>" in reasons[1] and "<|image_pad|>" in reasons[3] and "the model's context" in reasons[5]
    content = json.loads((tmp_path / "out" / "best_of_n.json").read_text())
    results = content["results"]["rows"]
    assert (results["answers"], results["without_steps"], results["unscored"]) == (9, 4, 3)
    assert [one["sample"] for one in results["examples"]] == [1, 0, 2]
    figures = results["judges"]["accuracy"]
    assert figures["majority"]["mean"] == pytest.approx(2 / 3)  # 4 and 4; 4, 8 and 4; nothing
    assert figures["best_of_k"]["mean"]["3"]["mean"] == pytest.approx(1 / 3)
    assert "rows: 7 of 9 answers have no steps (4) or cannot be scored (3)" in capsys.readouterr().out
    assert "the model&#x27;s context" in (tmp_path / "out" / "best_of_n.html").read_text()

    opened = ModelOptions(str(text_models / "prm")).open("test")
    problem = open_problems(str(tmp_path / "problems.jsonl"))[0]
    ((scores,),) = open_scorer(opened).score([Solutions(problem, [steps_of(good)])])
    assert rows[0]["scores"] == pytest.approx(scores, abs=1e-5)


@pytest.mark.slow
def test_scores_of_other_answers_are_not_continued(text_models, tmp_path, monkeypatch, caplog):
    arguments = hand_written(tmp_path, {f"p{i}": [solution(["1"], "4"), solution(["3"], "8")] for i in range(10)})
    arguments += ["--prm", text_models / "prm"]
    monkeypatch.setattr(answer_scores, "_BATCHES", 1)
    score = Scorer.score_processes

    def interrupt(self, items, *given):
        if len(items) < 8:
            raise KeyboardInterrupt
        return score(self, items, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score_processes", interrupt)
        assert mmeureka(*arguments) == 130
    file = tmp_path / "out" / "rows.jsonl"
    rows = read_rows(file)
    rows[0]["text"] = solution(["1", "3", "1"], "4")
    write_rows(file, rows)
    assert mmeureka(*arguments) == 0
    assert "16 rows of an interrupted command were made with other settings (answers)" in caplog.text
    scored = read_rows(tmp_path / "out" / "rows.scores.jsonl")
    assert [len(row["scores"]) for row in scored] == [4] + [2] * 19


@pytest.mark.slow
def test_a_problem_set_is_asked_and_scored_and_nothing_is_drawn_again(text_models, tmp_path, monkeypatch, capsys):
    rows = [{"id": f"p{i}", "question": f"which digit, {i}?", "answer": "48"[i % 2]} for i in range(5)]
    data = write_rows(tmp_path / "problems.jsonl", rows)
    settings = "--temperature 1 --max-new-tokens 32 --batch-size 8 --prompt-style steps --accuracy steps"
    command = ["eval", "--model", text_models / "policy", "--data", data, *settings.split()]
    command += ["--best-of", 3, "--prm", text_models / "prm", "--output", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(Scorer, "score_processes", mock.Mock(side_effect=KeyboardInterrupt))
        assert mmeureka(*command) == 130
    monkeypatch.setattr(Examiner, "answer", draw_nothing)
    assert mmeureka(*command) == 0
    said = capsys.readouterr().out
    assert "15 answers to 5 problems" in said and "rows, accuracy, one of 3 answers: random" in said
    assert list((tmp_path / "out").glob("*.partial")) == []
    answers = read_rows(tmp_path / "out" / "rows.jsonl")
    scored = read_rows(tmp_path / "out" / "rows.scores.jsonl")
    assert [len(row["scores"]) for row in scored] == [len(steps_of(row["text"])) for row in answers]
    content = json.loads((tmp_path / "out" / "best_of_n.json").read_text())
    found = content["results"]["rows"]["judges"]["accuracy"]
    assert list(found["pass_at_k"]) == ["1", "2", "3"] and content["prm"]["model"] == str(text_models / "prm")
    assert found["random"]["mean"] == pytest.approx(fmean(row["accuracy"] for row in answers))


# ---------------------------------------------------------------------------------------------------------------------
# A benchmark, asked of a policy.


@pytest.fixture(scope="module", autouse=True)
def patient_judges():
    """On a busy machine the time limit would change a verdict."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ask, "RewardConfig", functools.partial(RewardConfig, time_limit=120))
        yield


@pytest.fixture(scope="module")
def arguments(tmp_path_factory) -> list[str]:
    """Of an `eval` of a part of MMK12, without an output and a process reward model."""
    folder = tmp_path_factory.mktemp("asked")
    write_stepping_checkpoint(folder / "model", family="qwen2_5_vl")
    write_grown(folder / "model", folder / "prm")
    release = folder / "release"
    release.mkdir()
    (release / "red.png").write_bytes(picture(200))
    (release / "broken.png").write_bytes(b"nothing")
    rows = [
        {"id": i, "question": f"what is {i} ?", "answer": "48"[i % 2], "subject": "math",
         "image": "broken.png" if i == 5 else "red.png"}
        for i in range(PROBLEMS)
    ]  # fmt: skip
    (release / "test.json").write_text(json.dumps(rows))
    settings = "--partial --batch-size 8 --temperature 1 --max-new-tokens 32 --prompt-style plain --prm-batch-size 8"
    given = ["eval", "--model", str(folder / "model"), "--benchmark", f"mmk12={release}", *settings.split()]
    return [*given, "--best-of", str(N)]


@pytest.fixture(scope="module")
def prm(arguments) -> str:
    return str(Path(arguments[2]).with_name("prm"))


@pytest.fixture(scope="module")
def release(arguments) -> str:
    return arguments[arguments.index("--benchmark") + 1]


@pytest.fixture(scope="module")
def whole(arguments, prm, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_scores, "_BATCHES", 1)
        assert mmeureka(*arguments, "--prm", prm, "--output", output) == 0
    return output


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def figures(folder: Path) -> dict:
    return json.loads((folder / "best_of_n.json").read_text())["results"]["mmk12"]


def draw_nothing(*_, **__):
    raise AssertionError("an answer is drawn")


@pytest.mark.slow
def test_scores_and_figures_are_those_of_a_plain_recount(whole, prm, release):
    rows = read_rows(whole / "mmk12.jsonl")
    scored = read_rows(whole / "mmk12.scores.jsonl")
    assert [(row["id"], row["sample"]) for row in scored] == [(row["id"], row["sample"]) for row in rows]
    released = read_release(open_benchmark("mmk12"), release.partition("=")[2], partial=True)
    by_problem = [rows[start : start + N] for start in range(0, len(rows), N)]
    with_steps = [own for own in by_problem if own[0]["id"] != "5"]
    problems = {row.id: row for row in released.rows}
    solutions = [
        Solutions(released.problem(problems[own[0]["id"]]), [steps_of(row["response"]) for row in own])
        for own in with_steps
    ]
    expected = iter(open_scorer(ModelOptions(prm).open("test"), batch_size=32).score(solutions))
    scores = [[row["scores"] for row in scored[start : start + N]] for start in range(0, len(rows), N)]
    for own, given in zip(by_problem, scores, strict=True):
        wanted = next(expected) if own[0]["id"] != "5" else [[]] * N
        assert [len(one) for one in given] == [len(one) for one in wanted]
        np.testing.assert_allclose(np.concatenate(given), np.concatenate(wanted), atol=1e-5)

    results = figures(whole)
    assert (results["n"], results["problems"], results["unscored"], results["partial"]) == (N, PROBLEMS, 0, True)
    assert results["without_steps"] == sum(not row["scores"] for row in scored) >= N
    for judge in ("official", "ours"):
        right = [[row[judge] for row in own] for own in by_problem]
        found = results["judges"][judge]
        assert found["random"]["mean"] == pytest.approx(np.mean(right)) and 0.2 < np.mean(right) < 0.8
        common = [Counter(row["extracted"] for row in own).most_common(1)[0][0] for own in by_problem]
        votes = [
            next(row[judge] for row in own if row["extracted"] == text)
            for own, text in zip(by_problem, common, strict=True)
        ]
        assert found["majority"]["mean"] == pytest.approx(np.mean(votes))
        for name in AGGREGATORS:
            values = [[aggregate(name, steps) for steps in own] for own in scores]
            for k in (1, 2, 4):
                assert found["best_of_k"][name][str(k)]["mean"] == pytest.approx(recounted(values, right, k))
        low, high = found["best_of_k"]["mean_odds"]["4"]["interval"]
        assert low < found["best_of_k"]["mean_odds"]["4"]["mean"] < high


@pytest.mark.slow
def test_another_model_scores_the_answers_that_are_there(whole, prm, release, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    shutil.copytree(whole, folder)
    other = tmp_path / "other"
    write_stepping_checkpoint(tmp_path / "base", family="qwen2_5_vl", steps="57")
    write_grown(tmp_path / "base", other)
    again = ["eval", "--judge-only", "--partial", "--benchmark", release, "--output", folder, "--prm-batch-size", 8]
    monkeypatch.setattr(Examiner, "answer", draw_nothing)
    monkeypatch.setattr(answer_scores, "_BATCHES", 1)
    assert mmeureka(*again, "--prm", other) == 0
    changed = {name for name, content in files_of(folder).items() if content != files_of(whole)[name]}
    assert changed == {"mmk12.scores.jsonl", "best_of_n.json", "best_of_n.html"}
    before, after = (figures(one)["judges"]["ours"] for one in (whole, folder))
    assert all(before[key] == after[key] for key in ("random", "majority", "pass_at_k"))
    assert "mmk12, ours, one of 4 answers: random" in capsys.readouterr().out
    assert mmeureka(*again, "--prm", prm) == 0
    assert files_of(folder) == files_of(whole)


@pytest.mark.slow
def test_an_evaluation_interrupted_in_its_scoring_draws_nothing_again(
    arguments, prm, whole, tmp_path, monkeypatch, caplog
):
    """Nor does the policy stay in memory while the answers are scored."""
    command = [*arguments, "--prm", prm, "--output", tmp_path]
    monkeypatch.setattr(answer_scores, "_BATCHES", 1)
    loaded = []
    alive = []
    load = OpenedPolicy.load_params
    score = Scorer.score_processes

    def load_params(self, what="the policy"):
        gc.collect()
        alive.append(sum(leaf() is not None for params in loaded for leaf in params))
        params = load(self, what)
        loaded.append([weakref.ref(leaf) for leaf in jax.tree.leaves(params)])
        return params

    calls = []

    def interrupt(self, *given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(OpenedPolicy, "load_params", load_params)
        patch.setattr(Scorer, "score_processes", interrupt)
        assert mmeureka(*command) == 130
    assert alive == [0, 0]
    left = {file.name for file in tmp_path.glob("*.partial")}
    assert left == {"mmk12.answers.jsonl.partial", "mmk12.scores.jsonl.partial"}
    monkeypatch.setattr(Examiner, "answer", draw_nothing)
    caplog.set_level("INFO")
    assert mmeureka(*command) == 0
    assert "continuing after 80 of 80 rows" in caplog.text and "continuing after 32 of 80 rows" in caplog.text
    assert files_of(tmp_path) == files_of(whole)
