"""Answers to a benchmark from the file to the scores: `read_answers`, `judge`, `results_of`, `mmeureka eval judge`."""

from __future__ import annotations

import json

import pytest
from helpers.commands import mmeureka, read_rows, write_rows
from helpers.releases import known_release, released, write_json

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation import benchmark as benchmark_module
from mmeureka_jax.evaluation.judging import Answer, judge, read_answers, results_of
from mmeureka_jax.evaluation.release import read_release
from mmeureka_jax.rewards.workers import RewardWorkers

ROWS = [
    {"id": str(index), "question": f"Which is {index}?", "answer": "ABCD"[index % 4], "subject": subject, "image": None}
    for index, subject in enumerate(("math", "math", "physics", "biology"))
]
RIGHT = [{"id": row["id"], "response": f"<answer>{row['answer']}</answer>"} for row in ROWS]
WRONG = [{"id": row["id"], "response": "<answer>it is none of them</answer>"} for row in ROWS]
HANGING = "<answer>$9^{9^{9^{9}}}$</answer>"
LIMIT = 3.0  # seconds


@pytest.fixture(scope="module")
def workers():
    with RewardWorkers(RewardConfig(time_limit=LIMIT)) as rewards:
        rewards.validate()
        yield rewards


@pytest.fixture
def rows(tmp_path):
    return released("mmk12", ROWS, tmp_path)


@pytest.fixture
def asked(rows, tmp_path):
    """Reads answers from a file."""
    return lambda answers: read_answers(write_rows(tmp_path / "answers.jsonl", answers), rows)


def test_answers_come_in_the_order_of_the_release_with_their_samples(asked):
    answers = asked([*reversed(RIGHT), *WRONG])
    found = [(answer.id, answer.sample) for answer in answers]
    assert found == [(row["id"], sample) for row in ROWS for sample in (0, 1)]
    assert [answer.response for answer in answers[:2]] == [RIGHT[0]["response"], WRONG[0]["response"]]


def test_what_a_row_of_answers_may_say(asked):
    given = [
        {"id": 0, "response": "A", "finish_reason": "length"},
        {"id": "1", "text": "B", "finish_reason": "stop"},
        {"id": "2", "response": None, "reason": "the picture cannot be read"},
        {"id": "3", "response": " \n"},
    ]
    assert asked(given) == [
        Answer("0", "A", truncated=True),
        Answer("1", "B"),
        Answer("2", "", reason="the picture cannot be read"),
        Answer("3", " \n"),
    ]


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (RIGHT[1:], r"answers.jsonl: no answer to 1 of 4 rows of .*mmk12.json \(0\); give one for each"),
        ([*RIGHT, {"id": "7", "response": "A"}], r"answers.jsonl:5: '7' is no id of .*mmk12.json"),
        ([*RIGHT, {"response": "A"}], r"answers.jsonl:5: 'None' is no id of"),
        ([*RIGHT, RIGHT[2]], r"answers.jsonl: some rows have 1 answers, others 2; give all the same number"),
        ([{"id": "0"}], r"answers.jsonl:1: it has no response"),
        ([{"id": "0", "response": ["A"]}], r"answers.jsonl:1: its response is list, expected text"),
        (["A"], r"answers.jsonl:1: expected an object with id and response"),
    ],
)
def test_answers_that_do_not_fit_are_refused(answers, message, asked):
    with pytest.raises(UserError, match=message):
        asked(answers)


def test_a_file_that_is_no_jsonl_is_refused(rows, tmp_path):
    file = tmp_path / "cut.jsonl"
    file.write_text('{"id": "0", "response": "A"}\n\n{"id": "1", "resp')
    with pytest.raises(UserError, match=r"cut.jsonl:3: not valid JSON"):
        read_answers(file, rows)
    with pytest.raises(UserError, match=r"nothing.jsonl: cannot be read"):
        read_answers(tmp_path / "nothing.jsonl", rows)


def test_a_part_needs_no_answer_to_each_row(tmp_path):
    file = write_json(tmp_path / "mmk12.json", ROWS[:3])
    part = read_release(known_release("mmk12", ROWS), file, partial=True)
    answers = read_answers(write_rows(tmp_path / "answers.jsonl", RIGHT[1:3]), part)
    assert [answer.id for answer in answers] == ["1", "2"]


def test_rows_say_what_was_judged_and_why_an_answer_is_wrong(rows, workers):
    answers = [
        Answer("0", "<think>t</think><answer> A </answer>"),
        Answer("1", "<answer>C</answer>", truncated=True),
        Answer("2", " \n"),
        Answer("3", "<answer>D</answer>", reason="the picture cannot be read"),
    ]
    nothing = {"sample": 0, "truncated": False, "reason": None}
    assert judge(rows, answers, workers) == [
        {"id": "0", **nothing, "official": 1, "ours": 1, "extracted": "A"},
        {"id": "1", **nothing, "official": 0, "ours": 0, "extracted": "C", "truncated": True},
        {"id": "2", **nothing, "official": 0, "ours": 0, "extracted": None, "reason": "the response is empty"},
        {"id": "3", **nothing, "official": 0, "ours": 0, "extracted": None, "reason": "the picture cannot be read"},
    ]


def test_an_answer_that_hangs_its_judge_is_wrong_with_the_reason(tmp_path, workers):
    gold = {"id": "1", "question": "q", "answer": "5"}
    rows = released("k12", [gold, {**gold, "id": "2"}], tmp_path)
    hung, other = judge(rows, [Answer("1", HANGING), Answer("2", "<answer>$5$</answer>")], workers)
    assert hung == {
        "id": "1", "sample": 0, "official": 0, "ours": 0, "extracted": None, "truncated": False,
        "reason": f"official: timeout after {LIMIT:g} s",
    }  # fmt: skip
    assert (other["official"], other["ours"], other["reason"]) == (1, 1, None)
    results = results_of(rows, [hung, other])
    assert (results["failed"], results["unparsed"], results["official"]) == (0.5, 0.5, 0.5)


def test_a_judge_that_fails_leaves_the_other_its_say(rows, workers):
    rows.benchmark.__class__ = type("Broken", (type(rows.benchmark),), {"official": "mmeureka_jax.eval:no_such_rule"})
    (row,) = judge(rows, [Answer("0", "<answer>A</answer>")], workers)
    assert (row["official"], row["ours"], row["extracted"]) == (0, 1, None)
    assert row["reason"].startswith("official: AttributeError: ")


def test_results_count_samples_truncated_and_unparsed(rows, workers):
    responses = ["A", "B", "B", "", "C", "C or A", "D", ""]
    answers = [
        Answer(str(index // 2), response and f"<answer>{response}</answer>", index % 2, truncated=index in (2, 5, 7))
        for index, response in enumerate(responses)
    ]
    results = results_of(rows, judge(rows, answers, workers))
    # Right of two, by problem: A of A and B; B of B and nothing; C of C and "C or A" (the official rule takes its
    # first letter, ours refuses the choice); D of D and nothing.
    assert (results["official"], results["ours"]) == (pytest.approx(2.5 / 4), pytest.approx(2 / 4))
    assert (results["count"], results["samples"], results["disagreements"]) == (4, 2, 1)
    assert (results["truncated"], results["unparsed"], results["failed"]) == (3 / 8, 2 / 8, 2 / 8)
    physics = {"official": 1.0, "ours": 0.5, "count": 1}
    assert results["breakdowns"]["subject"]["physics"] == physics
    assert results["breakdowns"]["subject"]["math"] == {"official": 0.5, "ours": 0.5, "count": 2}
    assert "partial" not in results


def test_rows_that_do_not_count_overall_are_broken_down(rows, workers):
    kind = type("Fewer", (type(rows.benchmark),), {"counts_overall": lambda self, row: row["subject"] != "math"})
    rows.benchmark.__class__ = kind
    answers = [Answer(row["id"], row["response"]) for row in WRONG[:2] + RIGHT[2:]]
    results = results_of(rows, judge(rows, answers, workers))
    assert (results["official"], results["count"]) == (1.0, 2)
    assert results["breakdowns"]["subject"]["math"] == {"official": 0.0, "ours": 0.0, "count": 2}


# The command.


@pytest.fixture
def command(tmp_path, monkeypatch, shared_reward_workers):
    """Runs `mmeureka eval judge` on a release of the four rows above; what it writes is in `tmp_path / "out"`."""
    release = write_json(tmp_path / "mmk12.json", ROWS)
    monkeypatch.setattr(benchmark_module, "open_benchmark", lambda name: known_release("mmk12", ROWS))

    def run(answers, *options, benchmark=f"mmk12={release}"):
        file = write_rows(tmp_path / "answers.jsonl", answers)
        given = ["--benchmark", benchmark, "--answers", file, "--output", tmp_path / "out", *options]
        return mmeureka("eval", "judge", *given)

    return run


def test_the_command_writes_scores_and_rows(command, tmp_path, capsys):
    assert command([*RIGHT[:3], WRONG[3]]) == 0
    out = capsys.readouterr().out
    assert "mmk12 (4 problems): official 75.0%, ours 75.0%; unparsed 0.0%, truncated 0.0%, 0 answers" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]["mmk12"]
    assert {"official": 0.75, "ours": 0.75, "count": 4, "unparsed": 0.0, "truncated": 0.0}.items() <= results.items()
    assert set(results["breakdowns"]["subject"]) == {"math", "physics", "biology"}
    rows = read_rows(tmp_path / "out" / "mmk12.jsonl")
    assert [(row["id"], row["official"], row["ours"], row["extracted"]) for row in rows] == [
        ("0", 1, 1, "A"), ("1", 1, 1, "B"), ("2", 1, 1, "C"), ("3", 0, 0, "it is none of them"),
    ]  # fmt: skip


def test_the_same_command_twice_gives_the_same_bytes(command, tmp_path):
    written = []
    for _ in range(2):
        assert command([*RIGHT, *WRONG]) == 0
        written.append({file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()})
    assert written[0] == written[1]
    assert set(written[0]) == {"results.json", "mmk12.jsonl", "eval.html"}


def test_a_part_is_accepted_only_with_partial_and_marked(command, tmp_path, capsys):
    part = f"mmk12={write_json(tmp_path / 'part.json', ROWS[:3])}"
    assert command(RIGHT[:3], benchmark=part) == 2
    refused = capsys.readouterr().err
    assert "3 rows, but MMK12 (test) has 4" in refused
    assert "--partial" in refused
    assert not (tmp_path / "out").exists()
    assert command(RIGHT[:3], "--partial", benchmark=part) == 0
    assert "mmk12 (3 problems, a part of the release)" in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]["mmk12"]
    assert (results["partial"], results["count"]) == (True, 3)


def test_partial_does_not_mark_the_whole_release(command, tmp_path, capsys):
    assert command(RIGHT, "--partial") == 0
    assert "part of the release" not in capsys.readouterr().out
    assert "partial" not in json.loads((tmp_path / "out" / "results.json").read_text())["benchmarks"]["mmk12"]


@pytest.mark.parametrize("answers", [RIGHT[1:], [*RIGHT, {"id": "x", "response": "A"}], []])
def test_answers_that_do_not_fit_write_nothing(answers, command, tmp_path, capsys):
    assert command(answers) == 2
    assert "answers.jsonl" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_benchmark_that_there_is_not_is_named(tmp_path, capsys):
    file = write_rows(tmp_path / "answers.jsonl", RIGHT)
    given = ("--answers", file, "--output", tmp_path / "out")
    assert mmeureka("eval", "judge", "--benchmark", f"mmk21={file}", *given) == 2
    assert "mmk21: no such benchmark; there are" in (message := capsys.readouterr().err)
    assert "did you mean mmk12?" in message
    assert mmeureka("eval", "judge", "--benchmark", "mmk12", *given) == 2
    assert "must be NAME=PATH" in capsys.readouterr().err
