"""MMK12's test: its released form, and what both judges say of each form of answer."""

from __future__ import annotations

import pytest
from helpers.releases import known_release, picture, recounted, released, verdicts, write_json, write_parquet

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.benchmark import open_benchmark
from mmeureka_jax.evaluation.judging import Answer, judge, results_of
from mmeureka_jax.evaluation.release import read_release
from mmeureka_jax.rewards.workers import RewardWorkers

SUBJECTS = ("math", "physics", "chemistry", "biology")


def make_rows():
    """40 rows as the Parquet files have them, ten of each subject."""
    return [
        {
            "id": f"{subject}-{index}",
            "question": f"As shown in the figure, which is right? ( )\nA. {index}\nB. {index + 1}\nC. 0\nD. neither",
            "answer": "ABCD"[index % 4],
            "subject": subject,
            "image": {"bytes": picture(index), "path": f"{subject}/{index}.png"},
        }
        for subject in SUBJECTS
        for index in range(10)
    ]


ROWS = make_rows()
PLAIN = [{**row, "image": {"path": row["image"]["path"]}} for row in ROWS]  # as JSON can hold it

# To a question where B is right: the text in the answer tags, and whether the official and our rule call it right.
ANSWERS = {
    "B": (1, 1),
    " B ": (1, 1),
    "$B$": (1, 1),
    "(B)": (1, 1),
    "b": (1, 1),
    r"\boxed{B}": (1, 1),
    "B. 4 cm": (1, 1),
    "The answer is B": (1, 1),
    "option b": (1, 1),
    "A": (0, 0),
    "A, B, C, D": (0, 0),
    "4 cm": (0, 0),
    "": (0, 0),
    # The official rule finds the letter anywhere, also inside a word, and the first that it reads decides.
    "bulb": (1, 0),
    "B or C": (1, 0),
    "wattage is B": (1, 0),
}
# Whole responses, with the text that the official rule judges.
RESPONSES = {
    "B": (1, 1, "B"),
    "<answer>B": (1, 1, "B"),
    "<answer>\nB\n</answer>": (1, 1, "B\n</answer>"),
    "<answer>C</answer> or <answer>B</answer>": (0, 0, "C"),
    "<think>not <answer>C</answer></think><answer>B</answer>": (0, 1, "C"),
    "<think>B</think>": (1, 0, "<think>B</think>"),
    "": (0, 0, None),
}


@pytest.fixture(scope="module")
def workers():
    with RewardWorkers(RewardConfig(time_limit=60)) as rewards:
        rewards.validate()
        yield rewards


def test_both_judges_on_every_form_of_answer(workers, tmp_path):
    rows = released("mmk12", PLAIN, tmp_path)
    responses = dict(RESPONSES)
    for text, both in ANSWERS.items():
        responses[f"<think>t</think><answer>{text}</answer>"] = (*both, text.strip() or None)
    found = verdicts(rows, [("math-1", response) for response in responses], workers)
    assert dict(zip(responses, found, strict=True)) == responses


def test_subjects_equal_a_recount(workers, tmp_path):
    rows = released("mmk12", PLAIN, tmp_path)
    letters = ["AABCDD"[index % 6] if index % 5 else "B or C" for index in range(len(ROWS))]
    answers = [Answer(row["id"], f"<answer>{letter}</answer>") for row, letter in zip(ROWS, letters, strict=True)]
    judged = judge(rows, answers, workers)
    results = results_of(rows, judged)
    wanted = {
        subject: recounted(judged, [row["id"] for row in ROWS if row["subject"] == subject]) for subject in SUBJECTS
    }
    assert results["breakdowns"] == {"subject": {subject: pytest.approx(wanted[subject]) for subject in SUBJECTS}}
    assert [wanted[subject]["count"] for subject in SUBJECTS] == [10] * 4
    assert results["official"] == pytest.approx(sum(one["official"] for one in wanted.values()) / 4)
    assert results["official"] > results["ours"] > 0


def test_parquet_files_of_a_folder_are_read(tmp_path):
    write_parquet(tmp_path / "test-00000-of-00002.parquet", ROWS[:15])
    write_parquet(tmp_path / "test-00001-of-00002.parquet", ROWS[15:])
    rows = read_release(known_release("mmk12", ROWS), tmp_path)
    problems = [rows.problem(row) for row in rows.rows]
    assert [problem.id for problem in problems] == [row["id"] for row in ROWS]
    assert all(len(problem.images) == 1 for problem in problems)
    text = {"type": "text", "text": ROWS[0]["question"]}
    assert problems[0].messages == ({"role": "user", "content": [{"type": "image"}, text]},)
    assert problems[0].answer == "A"


def test_what_is_not_the_release_is_refused(tmp_path):
    benchmark = known_release("mmk12", ROWS)
    k12 = [{"id": "1", "question": "q", "answer": "3", "image": {"path": "images/1.png"}}]
    with pytest.raises(UserError, match=r"not a row of MMK12 \(test\): it has no subject, only id.*expected test-\*"):
        read_release(benchmark, write_parquet(tmp_path / "k12.parquet", k12))
    with pytest.raises(UserError, match=r"30 rows, but MMK12 \(test\) has 40"):
        read_release(benchmark, write_json(tmp_path / "short.json", PLAIN[:30]))
    train = [{**row, "id": f"train-{index}", "answer": "$3$"} for index, row in enumerate(PLAIN)]
    with pytest.raises(UserError, match=r"other ids, but MMK12 \(test\) has 40"):
        read_release(benchmark, write_json(tmp_path / "train.json", train))
    with pytest.raises(UserError, match=r"no such file, and no folder of .*parquet.*expected test-\*"):
        read_release(benchmark, tmp_path / "nothing")
    assert open_benchmark("mmk12").settings.release.rows == 2000
