"""MathVista: rows in its released forms, answers with verdicts by hand, and what the two judges make of them."""

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
from mmeureka_jax.eval.mathvista.official import normalised
from mmeureka_jax.evaluation.benchmark import open_benchmark
from mmeureka_jax.evaluation.cells import LONGEST_OPTION, gold_option, nested
from mmeureka_jax.evaluation.judging import Answer, judge, read_answers, results_of
from mmeureka_jax.evaluation.release import read_release
from mmeureka_jax.rewards import accuracy
from mmeureka_jax.rewards.workers import RewardWorkers

ROWS = 1000
COLUMNS = "pid question image choices unit precision answer question_type answer_type metadata".split()
METADATA = {
    "language": ["english", "chinese", "persian"],
    "source": ["GeoQA+", "CLEVR-Math", "SciBench", "ChartQA"],
    "category": ["math-targeted-vqa", "general-vqa"],
    "task": [
        "figure question answering",
        "geometry problem solving",
        "math word problem",
        "textbook question answering",
        "visual question answering",
    ],
    "context": ["bar chart", "geometry diagram", "natural image"],
    "grade": ["elementary school", "college", "not applicable"],
}
SKILLS = ["arithmetic reasoning", "algebraic reasoning", "geometry reasoning", "logical reasoning"]


def choice(answer, *choices):
    return {"choices": list(choices), "answer": answer, "question_type": "multi_choice", "answer_type": "text"}


def value(answer, kind, precision=None, unit=None):
    row = {"answer": answer, "answer_type": kind, "precision": precision, "unit": unit}
    return row | {"question_type": "free_form"}


LENGTHS = choice("6 cm", "4 cm", "6 cm", "8 cm", "10 cm")
VERDICT = choice("Yes", "No", "Yes")
TREND = choice("increase", "increase", "down")
LABELS = choice("(b)", "(c)", "(a)", "(e)", "(d)", "(b)")  # as pid 168
SAMPLES = choice("sample A", "neither; both are alike", "sample A", "sample B")  # as pid 64
REPEATED = choice("20√{2}海里", "20海里", "20√{2}海里", "15海里", "20海里")  # as pid 587
FUNCTIONS = choice("f(x) = 2", "f(x) = 1", "f(x) = 2")
INTEGER = value("12", "integer")
YEARS = value("12", "integer", unit="years")
TENTHS = value("1.2", "float", 1)
HUNDREDTHS = value("0.21", "float", 2)
ZERO = value("0.0", "float", 1)  # as pid 420
LARGE = value("131253.5", "float", 1)  # as pid 383
LIST = value("[2014, 2016]", "list")  # as pid 506


def quoted(answer):
    return f'The answer is "{answer}".'


def thought(answer):
    return f"<think>It is seen in the figure.</think><answer>{answer}</answer>"


# A row, a response, whether the official rule and ours take it, what the official rule extracts.
CASES = [
    (LENGTHS, "6 cm", 1, 1, "6 cm"),
    (LENGTHS, "8 cm", 0, 0, "8 cm"),
    (LENGTHS, quoted("6 cm"), 1, 1, "6 cm"),
    (LENGTHS, quoted("B"), 1, 1, "B"),
    (LENGTHS, quoted("(B)"), 1, 1, "(B)"),
    (LENGTHS, quoted("(b) 6 cm"), 1, 1, "(b) 6 cm"),
    (LENGTHS, quoted("C"), 0, 0, "C"),
    (LENGTHS, f"From the figure:\n{quoted('B')}\nDone.", 1, 1, "B"),
    # A letter is nothing that the quick extraction finds, nor is a text with more than the option.
    (LENGTHS, "B", 0, 1, None),
    (LENGTHS, "(B) 6 cm", 0, 1, None),
    (LENGTHS, " 6 cm", 0, 1, None),
    (LENGTHS, thought(r"\boxed{B}"), 0, 1, None),
    (LENGTHS, thought(r"\boxed{C}"), 0, 0, None),
    (LENGTHS, 'The answer is "B"', 0, 1, None),  # without the full stop
    (LENGTHS, 'The answer is ".', 0, 0, None),  # one quotation mark
    (LENGTHS, 'The answer is "B\n".', 0, 0, None),  # on two lines
    (LENGTHS, f'{quoted("6 cm")} So it is "B".', 1, 1, '6 cm". So it is "B'),  # up to the line's last `".`
    (LENGTHS, quoted(""), 0, 0, None),
    # The nearest text counts, and the first of those that are equally near.
    (LENGTHS, quoted("6 centimetres"), 1, 1, "6 centimetres"),
    (LENGTHS, quoted("7 cm"), 0, 0, "7 cm"),
    (VERDICT, quoted("neither"), 1, 0, "neither"),  # 6 edits from Yes (its e stays), 7 from No
    (VERDICT, quoted("I cannot tell"), 0, 0, "I cannot tell"),
    (VERDICT, quoted("E"), 0, 0, "E"),  # no such option: 2 edits from No, 3 from Yes
    (TREND, quoted("incr"), 1, 0, "incr"),  # 4 edits from either
    (VERDICT, "Yes", 1, 1, "Yes"),
    (VERDICT, thought("Yes"), 0, 1, None),
    # A letter in parentheses anywhere counts as an option's.
    (FUNCTIONS, "f(x) = 2", 0, 1, "f(x) = 2"),  # X, 8 edits from either: the first
    (FUNCTIONS, quoted("B"), 1, 1, "B"),
    (LABELS, "(b)", 0, 0, "(b)"),  # both take it for the second option
    (LABELS, quoted("E"), 1, 1, "E"),
    (LABELS, "(e)", 1, 1, "(e)"),  # an option's text that both take for the fifth letter
    (SAMPLES, "sample A", 1, 1, "sample A"),
    (SAMPLES, "sample B", 0, 0, "sample B"),  # the text of another option, no letter
    (SAMPLES, quoted("B"), 1, 1, "B"),
    (REPEATED, "20√{2}海里", 1, 1, "20√{2}海里"),
    (REPEATED, quoted("D"), 0, 0, "D"),
    (INTEGER, "12", 1, 1, "12"),
    (INTEGER, " 12\n", 1, 1, "12"),
    (INTEGER, "12.0", 0, 1, None),
    (INTEGER, quoted("12.0"), 1, 1, "12.0"),
    (INTEGER, quoted("12.9"), 1, 0, "12.9"),  # cut
    (INTEGER, quoted("1.2e1"), 1, 1, "1.2e1"),
    (INTEGER, quoted("twelve"), 0, 0, "twelve"),
    (INTEGER, "13", 0, 0, "13"),
    (INTEGER, quoted("inf"), 0, 0, "inf"),
    (INTEGER, thought("$12$"), 0, 1, None),
    (YEARS, quoted("12"), 1, 1, "12"),
    (YEARS, quoted("12 years"), 0, 1, "12 years"),
    (TENTHS, "1.2", 1, 1, "1.2"),
    (TENTHS, "1.23", 1, 0, "1.23"),  # rounded
    (TENTHS, "1.26", 0, 0, "1.26"),
    (TENTHS, quoted("1.2"), 1, 1, "1.2"),
    (TENTHS, quoted("1.2 kg"), 0, 1, "1.2 kg"),
    (TENTHS, "nan", 0, 0, "nan"),
    (HUNDREDTHS, "0.208", 1, 0, "0.208"),
    (HUNDREDTHS, ".21", 1, 1, "0.21"),
    (HUNDREDTHS, quoted("21%"), 0, 1, "21%"),
    (ZERO, "0", 1, 1, "0.0"),
    (ZERO, "-0.04", 0, 0, "-0.04"),  # the sign of a zero stays
    (LARGE, "131,253.5", 0, 1, None),
    (LARGE, quoted("131253.54"), 1, 0, "131253.54"),
    (LIST, "[2014, 2016]", 0, 1, None),
    (LIST, quoted("[2014, 2016]"), 1, 1, "[2014, 2016]"),
    (LIST, quoted("[2014,2016]"), 0, 1, "[2014,2016]"),
    (LIST, quoted("[2016, 2014]"), 0, 0, "[2016, 2014]"),
]


def released_rows(count=ROWS, first=1):
    """Rows as data/testmini.json has them; those after the cases repeat them."""
    rows = []
    for i in range(count):
        metadata = {"split": "testmini", "img_width": 8, "img_height": 8}
        metadata |= {name: values[i % len(values)] for name, values in METADATA.items()}
        metadata["skills"] = SKILLS[i % 4 : i % 4 + 1 + i % 2]
        row = {"pid": str(first + i), "question": f"Which length is row {i}'s?", "image": f"images/{first + i}.jpg"}
        row |= {"choices": None, "unit": None, "precision": None} | CASES[i % len(CASES)][0]
        rows.append(row | {"metadata": metadata})
    return rows


def write_json(folder, rows):
    file = folder / "testmini.json"
    file.write_text(json.dumps({row["pid"]: row for row in rows}))
    return file


def picture():
    encoded = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(encoded, "JPEG")
    return encoded.getvalue()


@pytest.fixture(scope="module")
def workers():
    with RewardWorkers(RewardConfig(workers=2)) as rewards:
        rewards.validate()
        yield rewards


@pytest.fixture(scope="module")
def judged(workers, tmp_path_factory):
    """The release of the cases, their judged answers, and the results."""
    file = write_json(tmp_path_factory.mktemp("mathvista"), released_rows(len(CASES)))
    released = read_release(open_benchmark("mathvista"), file, partial=True)
    rows = judge(released, [Answer(str(i), case[1]) for i, case in enumerate(CASES, 1)], workers)
    return released, rows, results_of(released, rows)


def test_both_judges_give_the_verdicts_by_hand(judged):
    _, rows, _ = judged
    found = [(CASES[i][1], row["official"], row["ours"], row["extracted"]) for i, row in enumerate(rows)]
    assert found == [case[1:] for case in CASES]
    assert all(row["reason"] is None for row in rows)


def test_scores_and_breakdowns_equal_a_plain_recount(judged):
    released, rows, results = judged
    right = {row["id"]: row for row in rows}
    counted = defaultdict(list)
    for row in released_rows(len(CASES)):
        for name in ("question_type", "answer_type"):
            counted[name, row[name]].append(row["pid"])
        for name in ("language", "source", "category", "task", "context", "grade"):
            counted[name, row["metadata"][name]].append(row["pid"])
        for skill in row["metadata"]["skills"]:
            counted["skills", skill].append(row["pid"])
    found = {
        (name, group): scores for name, groups in results["breakdowns"].items() for group, scores in groups.items()
    }
    assert set(found) == set(counted)
    for key, ids in counted.items():
        assert found[key]["count"] == len(ids)
        for name in ("official", "ours"):
            assert found[key][name] == pytest.approx(sum(right[one][name] for one in ids) / len(ids))
    assert (results["count"], results["partial"]) == (len(CASES), True)
    assert results["official"] == pytest.approx(sum(case[2] for case in CASES) / len(CASES))
    assert results["ours"] == pytest.approx(sum(case[3] for case in CASES) / len(CASES))
    assert results["unparsed"] == pytest.approx(sum(case[4] is None for case in CASES) / len(CASES))
    assert results["disagreements"] == sum(case[2] != case[3] for case in CASES)


def test_an_empty_answer_is_wrong_with_a_reason(workers, tmp_path):
    released = read_release(open_benchmark("mathvista"), write_json(tmp_path, released_rows(2)), partial=True)
    lines = [{"id": "1", "response": " \n"}, {"id": "2", "response": "", "reason": "its picture cannot be read"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = judge(released, read_answers(tmp_path / "a.jsonl", released), workers)
    assert [row["reason"] for row in rows] == ["the response is empty", "its picture cannot be read"]
    assert all((row["official"], row["ours"], row["extracted"]) == (0, 0, None) for row in rows)


def test_normalisation_keeps_every_gold_of_its_own_forms():
    for places in (1, 2):
        for number in [*range(-300, 300), 47.6, 2372.1, 131253.5]:
            gold = str(round(number / 10**places if isinstance(number, int) else number, places))
            gold = "0.0" if gold == "-0.0" else gold
            assert normalised(gold, value(gold, "float", places)) == gold
    for number in [*range(-300, 300), 10**15]:
        assert normalised(str(number), value(str(number), "integer")) == str(number)
    for gold in ("[2014, 2016]", "[0, 2, 0, 2, 1, 7]"):
        assert normalised(gold, value(gold, "list")) == gold
    texts = ["6 cm", "Yes", "20√{2}海里", "3/11", "neither; they are alike", "-10", "0.2 - 0.4", "145°", "sample B"]
    for options in (texts, list("ABCDE")):
        for i, gold in enumerate(options):
            for answer in (chr(ord("A") + i), f"({chr(ord('a') + i)})", gold):
                assert normalised(answer, choice(gold, *options)) == gold


def test_golds_with_a_letter_in_parentheses_are_lost():
    assert normalised("(b)", LABELS) == "(a)"
    assert normalised("f(x) = 2", FUNCTIONS) == "f(x) = 1"


def test_precision_is_read_as_every_form_holds_it():
    for precision in (1, 1.0, "1", "1.0"):
        assert normalised("1.23", TENTHS | {"precision": precision}) == "1.2"
    for precision in (None, "", float("nan")):
        assert normalised("1.23", TENTHS | {"precision": precision}) is None


def test_questions_are_the_authors_queries():
    ask = open_benchmark("mathvista").question
    hint = "Hint: Please answer the question "
    row = released_rows(1)[0]
    assert ask(row) == (
        f"{hint}and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
        "Question: Which length is row 0's?\nChoices:\n(A) 4 cm\n(B) 6 cm\n(C) 8 cm\n(D) 10 cm"
    )
    row |= YEARS | {"choices": None, "question": "How old? "}
    integer = f"{hint}requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.\n"
    assert ask(row) == f"{integer}Question: How old?  (Unit: years)"
    assert ask(row | {"unit": None}) == f"{integer}Question: How old?"  # without blanks at the end
    assert ask(row | {"precision": float("nan")}) == ask(row)  # null, as pandas writes it
    kinds = {
        "a floating-point number with one decimal place and provide the final value, e.g., 1.2, 1.3, 1.4,": TENTHS,
        "a floating-point number with two decimal places and provide the final value, e.g., 1.23, 1.34, 1.45,": (
            HUNDREDTHS
        ),
        "a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4],": LIST,
    }
    for kind, form in kinds.items():
        assert ask(row | form) == f"{hint}requiring {kind} at the end.\nQuestion: How old?"
    assert ask(row | {"query": "As released"}) == "As released"


def test_golds_for_our_rule():
    answer = open_benchmark("mathvista").answer
    assert [answer(row) for row in (LENGTHS, VERDICT, REPEATED)] == ["(B) 6 cm", "(B) Yes", "(B) 20√{2}海里"]
    assert [answer(row) for row in (LABELS, SAMPLES, INTEGER, LIST)] == ["E", "(B) sample A", "12", "[2014, 2016]"]
    assert gold_option("C", "0.2 - 0.4") == gold_option("C", "43.2%-63.6%") == "C"
    assert gold_option("C", "It is 2 meters wide.") == gold_option("C", "word " * (LONGEST_OPTION + 1)) == "C"
    assert gold_option("C", "word " * LONGEST_OPTION).startswith("(C) word")
    assert LONGEST_OPTION == accuracy.MAX_WORDS


def test_json_whole_release_is_read(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/1.jpg").write_bytes(picture())
    released = read_release(open_benchmark("mathvista"), write_json(tmp_path, released_rows()))
    assert (len(released.rows), released.is_partial) == (ROWS, False)
    problem = released.problem(released.rows[0])
    assert [part["type"] for part in problem.messages[0]["content"]] == ["image", "text"]
    assert problem.images[0].path == tmp_path / "images/1.jpg"


def test_parquet_files_are_read_like_the_json(tmp_path):
    rows = released_rows(len(CASES))
    query = open_benchmark("mathvista").question
    table = [row | {"decoded_image": {"bytes": picture(), "path": "1.jpg"}, "query": query(row)} for row in rows]
    table = [row | {"precision": None if row["precision"] is None else float(row["precision"])} for row in table]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "testmini-00000-of-00001.parquet")
    assert_same_problems(tmp_path, rows)


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["json", "python"])
def test_tables_of_tabs_are_read_like_the_json(tmp_path, write):
    rows = released_rows(len(CASES))
    with (tmp_path / "testmini.tsv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, delimiter="\t")
        table.writeheader()
        for row in rows:
            texts = {key: "" if cell is None else write(cell) for key, cell in row.items() if not isinstance(cell, str)}
            table.writerow(row | texts)
    (tmp_path / "images").mkdir()
    for row in rows:
        (tmp_path / row["image"]).write_bytes(picture())
    assert_same_problems(tmp_path, rows)


def assert_same_problems(path, rows):
    benchmark = open_benchmark("mathvista")
    released = read_release(benchmark, path, partial=True)
    assert [row.id for row in released.rows] == [row["pid"] for row in rows]
    for row, own in zip(released.rows, rows, strict=True):
        problem = released.problem(row)
        assert (len(problem.images), problem.answer) == (1, benchmark.answer(own))
        assert problem.messages[0]["content"][1]["text"] == benchmark.question(own)
        assert benchmark.groups(row.columns) == benchmark.groups(own)
        assert normalised(own["answer"], row.plain) == normalised(own["answer"], own)


def test_a_row_without_a_picture_has_a_reason(tmp_path):
    rows = released_rows(1)
    rows[0]["image"] = ""
    released = read_release(open_benchmark("mathvista"), write_json(tmp_path, rows), partial=True)
    with pytest.raises(RowError, match="1: it has no picture"):
        released.problem(released.rows[0])


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (released_rows(ROWS - 1), "999 rows, but .* has 1,000"),
        (released_rows(ROWS, first=1001), "other ids"),  # of the test split
        (released_rows(5141, first=1001), "5,141 rows"),
        ([{key: row[key] for key in COLUMNS if key != "metadata"} for row in released_rows()], "has no metadata, only"),
    ],
    ids=["a row short", "other ids", "test split", "other columns"],
)
def test_what_is_not_the_release_is_refused(tmp_path, rows, found):
    with pytest.raises(UserError, match=found) as error:
        read_release(open_benchmark("mathvista"), write_json(tmp_path, rows))
    assert "AI4Math/MathVista" in str(error.value)


def test_nested_cells():
    assert nested('["a", "b"]') == nested("['a', 'b']") == ["a", "b"]
    assert nested("{'skills': ['x']}") == nested({"skills": ["x"]}) == {"skills": ["x"]}
    assert nested("") is nested("None") is nested("nan") is nested(None) is None
    with pytest.raises(ValueError, match="expected a list or an object, got 'Yes; No'"):
        nested("Yes; No")
