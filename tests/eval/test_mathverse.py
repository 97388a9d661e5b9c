"""MathVerse: rows in its released forms, answers with verdicts by hand, and what the two judges make of them."""

import csv
import io
import json
from collections import defaultdict

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.data.record import RowError
from mmeureka_jax.errors import UserError
from mmeureka_jax.eval.mathverse.benchmark import options_of
from mmeureka_jax.eval.mathverse.official import judge as official
from mmeureka_jax.evaluation.benchmark import open_benchmark
from mmeureka_jax.evaluation.judging import Answer, judge, read_answers, results_of
from mmeureka_jax.evaluation.release import read_release
from mmeureka_jax.rewards.workers import RewardWorkers

PROBLEMS = 788
COLUMNS = (
    "sample_index problem_index problem_version question image answer question_type metadata query_wo query_cot".split()
)
VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")
TEXT_ONLY = "Text Only"
SUBFIELDS = [
    ("Plane Geometry", "Angle"),
    ("Plane Geometry", "Area"),
    ("Solid Geometry", "Area"),
    ("Solid Geometry", "Volume"),
    ("Functions", "Property"),
]
ANGLE = "Find the size of angle CED.\nChoices:\nA:40°\nB:60°\nC:120°\nD:140°"
WHICH = "Which sentence is right?\nChoices:\nA:The wheel turns in 4 seconds.\nB:Its radius is 4 centimeters."
TRUTH = "True or false: it is the opposite side.\nChoice:\nA. True\nB. False"
BEARING = "Find the true bearing.\nChoice:\nA. 053 ^\\circ T\nB. 082 ^\\circ T"
TWO = "Choose 2 answers:\nChoices:\nA:$\\sin x$\nB:$\\cos x$\nC:$\\tan x$\nD:$-\\tan x$"
IN_THE_PICTURE = "Find the size of the angle."


def choice(answer, question=ANGLE, version=VERSIONS[0], **more):
    return {"answer": answer, "question": question, "question_type": "multi-choice", "problem_version": version} | more


def free(answer, version=VERSIONS[1], question="Find x."):
    return {"answer": answer, "question": question, "question_type": "free-form", "problem_version": version}


SEEN = choice("D", "", "Vision Only")  # as testmini.json has it: the question is in the picture alone
SEEN_AND_TOLD = choice("D", "", "Vision Only", question_for_eval=ANGLE)  # as the Parquet file has it
VOLUME = free(r"Volume $=113.10 \mathrm{~cm}^{3}$", "Vision Only", "")
FRACTION = free(r"$-\frac{21}{29}$", "Vision Dominant")
DOMAIN = free(r"domain: [-4, 0) and range: (-3, 1]", "Vision Intensive")
EQUATION = free(r"\frac{x^2}{81}+\frac{y^2}{9}=1")


def thought(answer):
    return f"<think>It is seen in the figure.</think><answer>{answer}</answer>"


# A row, a response, whether the official rule and ours take it, what the official rule compares.
CASES = [
    (choice("D"), "D", 1, 1, "D"),
    (choice("D"), " D\n", 1, 1, "D"),
    (choice("D"), "C", 0, 0, "C"),
    (choice("D"), "d", 0, 1, "d"),
    (choice("D"), "(D)", 0, 1, "(D)"),
    (choice("D"), "D.", 0, 1, "D."),
    (choice("D"), "D:140°", 0, 1, "D:140°"),
    (choice("D"), "140°", 0, 1, "140°"),
    (choice("D"), "120°", 0, 0, "120°"),
    (choice("D"), "C:140°", 0, 0, "C:140°"),
    (choice("D"), "Answer: D", 0, 1, "Answer: D"),
    (choice("D"), "The answer is D.", 0, 1, "The answer is D."),
    (choice("D"), r"\boxed{D}", 0, 1, r"\boxed{D}"),
    (choice("D"), thought("D"), 0, 1, thought("D")),
    (choice("D"), thought("A"), 0, 0, thought("A")),
    (choice("B", version="Vision Intensive"), "A or B", 0, 0, "A or B"),
    (choice("B", IN_THE_PICTURE, "Vision Dominant"), "B", 1, 1, "B"),
    # The question of Vision Only is empty.
    (SEEN, "D", 1, 1, "D"),
    (SEEN, thought("D"), 0, 1, thought("D")),
    (SEEN, "140°", 0, 0, "140°"),  # nothing says what D is
    (SEEN_AND_TOLD, "140°", 0, 1, "140°"),
    (SEEN_AND_TOLD, "(C)", 0, 0, "(C)"),
    (VOLUME, "113.1 cm^3", 0, 1, "113.1 cm^3"),
    # Golds of questions with options that are no letter.
    (choice("(C)"), "(C)", 1, 1, "(C)"),
    (choice("(C)"), "C", 0, 1, "C"),
    (choice("False", TRUTH), "False", 1, 1, "False"),
    (choice("False", TRUTH), "B", 0, 1, "B"),
    (choice("False", TRUTH), "A", 0, 0, "A"),
    (choice("053 ^\\circ T", BEARING), "A", 0, 1, "A"),
    (choice("053 ^\\circ T", BEARING), "B", 0, 0, "B"),
    (choice("C\nD", TWO), "C\nD", 1, 0, "C\nD"),  # ours: without tags the last line is the answer
    (choice("C\nD", TWO), thought("C\nD"), 0, 1, thought("C\nD")),
    (choice("C\nD", TWO), "C, D", 0, 1, "C, D"),
    (choice("C\nD", TWO), "C", 0, 0, "C"),
    # A sentence is compared by its letter: ours would take one with the same number for it.
    (choice("B", WHICH), "The wheel turns in 4 seconds.", 0, 0, "The wheel turns in 4 seconds."),
    (choice("B", WHICH), "Its radius is 4 centimeters.", 0, 0, "Its radius is 4 centimeters."),
    (choice("B", WHICH), thought("B. Its radius is 4 centimeters."), 0, 1, thought("B. Its radius is 4 centimeters.")),
    (
        choice("B", WHICH),
        thought("A. The wheel turns in 4 seconds."),
        0,
        0,
        thought("A. The wheel turns in 4 seconds."),
    ),
    (free("22"), "22", 1, 1, "22"),
    (free("22"), "22.0", 0, 1, "22.0"),
    (free("22"), "$22$", 0, 1, "$22$"),
    (free("22"), "23", 0, 0, "23"),
    (free("777 "), "777", 0, 1, "777"),  # the gold ends with a blank
    (free("777 "), "777 ", 0, 1, "777"),
    (free("4.4 m"), "4.4 m", 1, 1, "4.4 m"),
    (free("4.4 m"), "4.4", 0, 1, "4.4"),
    (free("60^\\circ"), "60°", 0, 1, "60°"),
    (free("35掳"), "35°", 0, 1, "35°"),
    (free("118掳T"), "118° T", 0, 1, "118° T"),
    (free("216.\\mathrm{cm}^2"), "216 cm^2", 0, 1, "216 cm^2"),
    (free("{8}{5} \\pi"), r"\frac{8\pi}{5}", 0, 1, r"\frac{8\pi}{5}"),
    (FRACTION, r"$-\frac{21}{29}$", 1, 1, r"$-\frac{21}{29}$"),
    (FRACTION, r"-\frac{21}{29}", 0, 1, r"-\frac{21}{29}"),
    (FRACTION, r"\frac{21}{29}", 0, 0, r"\frac{21}{29}"),
    (DOMAIN, "domain: [-4, 0) and range: (-3, 1]", 1, 1, "domain: [-4, 0) and range: (-3, 1]"),
    (DOMAIN, "(-3, 1]", 0, 0, "(-3, 1]"),
    (EQUATION, r"\frac{x^{2}}{81} + \frac{y^{2}}{9} = 1", 0, 1, r"\frac{x^{2}}{81} + \frac{y^{2}}{9} = 1"),
    (EQUATION, r"\frac{x^2}{9}+\frac{y^2}{81}=1", 0, 0, r"\frac{x^2}{9}+\frac{y^2}{81}=1"),
    # Apart from the overall score.
    (free("12", TEXT_ONLY), "12", 1, 1, "12"),
    (free("12", TEXT_ONLY), thought("12"), 0, 1, thought("12")),
    (choice("D", version=TEXT_ONLY), "A", 0, 0, "A"),
]
COUNTED = [case for case in CASES if case[0]["problem_version"] != TEXT_ONLY]


def with_queries(row, index, problem):
    """A row of a case in the released schema."""
    what = "correct option letter, e.g., A, B, C, D" if row["question_type"] == "multi-choice" else "final value"
    direct = f"please directly answer the question and provide the {what}."
    reasoned = f"please first conduct reasoning, and then answer the question and provide the {what}, at the end."
    queries = [f"P{query[1:]}\nQuestion: {row['question']}" for query in (direct, reasoned)]
    if not row["question"]:
        queries = [f"According to the question shown in the image, {query}" for query in (direct, reasoned)]
    subject, subfield = SUBFIELDS[index % len(SUBFIELDS)]
    return row | {
        "sample_index": str(index),
        "problem_index": str(problem),
        "image": "" if row["problem_version"] == TEXT_ONLY else f"images_version_1-4/image_{problem}.png",
        "metadata": {"split": "testmini", "source": "GeoQA", "subject": subject, "subfield": subfield},
        "query_wo": queries[0],
        "query_cot": queries[1],
    }


def case_rows():
    return [with_queries(case[0], i, i) for i, case in enumerate(CASES, 1)]


def released_rows(problems=PROBLEMS, versions=VERSIONS):
    """All versions of each problem; Vision Only without a question."""
    rows = []
    for problem in range(1, problems + 1):
        for version in versions:
            row = free(str(problem), version, "" if version == "Vision Only" else "Find x.")
            rows.append(with_queries(row, len(rows) + 1, problem))
    return rows


def write_json(folder, rows, name="testmini.json"):
    file = folder / name
    file.write_text(json.dumps(rows))
    return file


def picture():
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(encoded, "PNG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def workers():
    with RewardWorkers(RewardConfig(workers=2)) as rewards:
        rewards.validate()
        yield rewards


@pytest.fixture(scope="module")
def judged(workers, tmp_path_factory):
    """The release of the cases, their judged answers, and the results."""
    file = write_json(tmp_path_factory.mktemp("mathverse"), case_rows())
    released = read_release(open_benchmark("mathverse"), file, partial=True)
    rows = judge(released, [Answer(str(i), case[1]) for i, case in enumerate(CASES, 1)], workers)
    return rows, results_of(released, rows)


def test_both_judges_give_the_verdicts_by_hand(judged):
    rows, _ = judged
    found = [(CASES[i][1], row["official"], row["ours"], row["extracted"]) for i, row in enumerate(rows)]
    assert found == [case[1:] for case in CASES]
    assert all(row["reason"] is None for row in rows)


def test_scores_leave_text_only_out(judged):
    _, results = judged
    assert (results["count"], len(CASES) - len(COUNTED)) == (len(COUNTED), 3)
    assert results["official"] == pytest.approx(sum(case[2] for case in COUNTED) / len(COUNTED))
    assert results["ours"] == pytest.approx(sum(case[3] for case in COUNTED) / len(COUNTED))
    assert results["unparsed"] == 0.0
    assert results["disagreements"] == sum(case[2] != case[3] for case in CASES)


def test_breakdowns_equal_a_plain_recount(judged):
    rows, results = judged
    right = {row["id"]: row for row in rows}
    counted = defaultdict(list)
    for row in case_rows():
        counted["version", row["problem_version"]].append(row["sample_index"])
        if row["problem_version"] != TEXT_ONLY:
            subject = row["metadata"]["subject"]
            counted["subject", subject].append(row["sample_index"])
            counted["subfield", f"{subject}: {row['metadata']['subfield']}"].append(row["sample_index"])
    breakdowns = results["breakdowns"]
    assert {(name, group) for name, groups in breakdowns.items() for group in groups} == set(counted)
    for (name, group), ids in counted.items():
        assert breakdowns[name][group]["count"] == len(ids)
        for judge_name in ("official", "ours"):
            mean = sum(right[one][judge_name] for one in ids) / len(ids)
            assert breakdowns[name][group][judge_name] == pytest.approx(mean)
    for judge_name in ("official", "ours"):
        versions = [breakdowns["version"][version][judge_name] for version in VERSIONS]
        assert results["figures"][judge_name] == {"mean_of_versions": pytest.approx(sum(versions) / 5)}


def test_subfields_of_one_name_stay_apart(judged):
    subfields = judged[1]["breakdowns"]["subfield"]
    assert {"Plane Geometry: Area", "Solid Geometry: Area"} < set(subfields)


def test_an_empty_answer_is_wrong_with_a_reason(workers, tmp_path):
    released = read_release(open_benchmark("mathverse"), write_json(tmp_path, case_rows()[:2]), partial=True)
    lines = [{"id": "1", "response": " \n"}, {"id": "2", "response": "", "reason": "its picture cannot be read"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = judge(released, read_answers(tmp_path / "a.jsonl", released), workers)
    assert [row["reason"] for row in rows] == ["the response is empty", "its picture cannot be read"]
    assert all((row["official"], row["ours"], row["extracted"]) == (0, 0, None) for row in rows)
    assert results_of(released, rows)["unparsed"] == 1.0
    assert official(" \n", case_rows()[0]) == (False, None)


def test_golds_for_our_rule():
    answer = open_benchmark("mathverse").answer
    assert answer(choice("D")) == answer(SEEN_AND_TOLD) == "(D) 140°"
    assert answer(SEEN) == answer(choice("D", IN_THE_PICTURE)) == "D"
    assert answer(choice("(C)")) == "(C) 120°"
    assert answer(choice("False", TRUTH)) == "(B) False"
    assert answer(choice("053 ^\\circ T", BEARING)) == "(A) 053 ^\\circ T"
    assert answer(choice("C\nD", TWO)) == "C, D"
    assert answer(choice("B", WHICH)) == "B"
    assert answer(free("777 ")) == "777"


def test_options_are_read_from_questions():
    assert options_of(ANGLE) == {"A": "40°", "B": "60°", "C": "120°", "D": "140°"}
    assert options_of(TRUTH) == {"A": "True", "B": "False"}
    assert options_of("It is in line\nA: it is no option") == options_of("") == {}
    assert options_of("Which?\nChoices:\nA:one\nof two lines\nB:other") == {"A": "one\nof two lines", "B": "other"}


def test_json_whole_release_is_read(tmp_path):
    (tmp_path / "images_version_1-4").mkdir()
    (tmp_path / "images_version_1-4/image_1.png").write_bytes(picture())
    released = read_release(open_benchmark("mathverse"), write_json(tmp_path, released_rows()))
    assert (len(released.rows), released.is_partial) == (5 * PROBLEMS, False)
    problems = [released.problem(row) for row in released.rows[:5]]
    for problem in problems:
        assert [part["type"] for part in problem.messages[0]["content"]] == ["image", "text"]
        assert problem.images[0].path == tmp_path / "images_version_1-4/image_1.png"
    texts = [problem.messages[0]["content"][1]["text"] for problem in problems]
    assert texts[0].startswith("Please first conduct reasoning") and texts[0].endswith("Question: Find x.")
    assert texts[4].startswith("According to the question shown in the image, please first conduct reasoning")


def test_of_a_whole_release_the_mean_of_versions_is_the_mean(tmp_path):
    released = read_release(open_benchmark("mathverse"), write_json(tmp_path, released_rows()))
    rows = [
        {"id": row.id, "official": int(i % 7 < 2), "ours": int(i % 5 < i % 3), "extracted": "1", "truncated": False}
        for i, row in enumerate(released.rows)
    ]
    results = results_of(released, [row | {"reason": None} for row in rows])
    assert "partial" not in results
    for judge_name in ("official", "ours"):
        assert results["figures"][judge_name]["mean_of_versions"] == pytest.approx(results[judge_name])


def test_parquet_files_are_read_like_the_json(tmp_path):
    rows = [row for row in case_rows() if row["problem_version"] != TEXT_ONLY]
    table = [{"question_for_eval": None} | row | {"image": {"bytes": picture(), "path": "1.png"}} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "testmini.parquet")
    assert_same_problems(tmp_path, rows)


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["json", "python"])
def test_tables_of_tabs_are_read_like_the_json(tmp_path, write):
    rows = [row for row in case_rows() if row["problem_version"] != TEXT_ONLY]
    with (tmp_path / "testmini.tsv").open("w", newline="") as file:
        table = csv.DictWriter(file, [*COLUMNS, "question_for_eval"], delimiter="\t")
        table.writeheader()
        table.writerows(row | {"metadata": write(row["metadata"])} for row in rows)
    (tmp_path / "images_version_1-4").mkdir()
    for row in rows:
        (tmp_path / row["image"]).write_bytes(picture())
    assert_same_problems(tmp_path, rows)


def assert_same_problems(path, rows):
    benchmark = open_benchmark("mathverse")
    released = read_release(benchmark, path, partial=True)
    assert [row.id for row in released.rows] == [row["sample_index"] for row in rows]
    for row, own in zip(released.rows, rows, strict=True):
        problem = released.problem(row)
        assert (len(problem.images), problem.answer) == (1, benchmark.answer(own))
        assert problem.messages[0]["content"][1]["text"] == own["query_cot"]
        assert benchmark.groups(row.columns) == benchmark.groups(own)


def test_a_row_without_a_picture_has_a_reason(tmp_path):
    rows = case_rows()
    rows[0]["image"] = ""
    released = read_release(open_benchmark("mathverse"), write_json(tmp_path, rows), partial=True)
    with pytest.raises(RowError, match="1: it has no picture"):
        released.problem(released.rows[0])
    text_only = released.problem(released.rows[-1])
    assert (text_only.images, len(text_only.messages[0]["content"])) == ((), 1)


TEXT_ONLY_SPLIT = released_rows(versions=[TEXT_ONLY])


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (released_rows()[:-1], "3,939 rows, but .* has 3,940"),
        (released_rows(versions=VERSIONS[:1]), "788 rows"),  # one version is not the benchmark
        (TEXT_ONLY_SPLIT, "788 rows"),
        (
            [{key: row[key] for key in COLUMNS if key != "query_cot"} for row in released_rows(1)],
            "has no query_cot, only",
        ),
    ],
    ids=["a row short", "one version", "text only", "other columns"],
)
def test_what_is_not_the_release_is_refused(tmp_path, rows, found):
    with pytest.raises(UserError, match=found) as error:
        read_release(open_benchmark("mathverse"), write_json(tmp_path, rows))
    assert "AI4Math/MathVerse" in str(error.value)


def test_text_only_is_given_on_its_own(tmp_path):
    write_json(tmp_path, released_rows())
    file = write_json(tmp_path, TEXT_ONLY_SPLIT, "testmini_text_only.json")
    with pytest.raises(UserError, match="give one split at a time"):
        read_release(open_benchmark("mathverse"), tmp_path)
    released = read_release(open_benchmark("mathverse"), file, partial=True)
    rows = [
        {"id": row.id, "official": 1, "ours": int(i < 394), "extracted": "1", "truncated": False, "reason": None}
        for i, row in enumerate(released.rows)
    ]
    results = results_of(released, rows)
    assert (results["count"], results["official"], results["partial"]) == (0, 0.0, True)
    assert results["breakdowns"] == {"version": {TEXT_ONLY: {"official": 1.0, "ours": 0.5, "count": PROBLEMS}}}
    assert results["figures"] == {"official": {}, "ours": {}}
