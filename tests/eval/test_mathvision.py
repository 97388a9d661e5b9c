r"""MATH-Vision: rows in the released schema, both judges' verdicts worked out by hand, and the rule's known bugs."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from itertools import cycle, islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.eval.mathvision.arithmetic import value
from mmeureka_jax.eval.mathvision.official import extract, is_equal
from mmeureka_jax.evaluation.benchmark import open_benchmark
from mmeureka_jax.evaluation.judging import Answer, judge, results_of
from mmeureka_jax.evaluation.release import read_release
from mmeureka_jax.rewards.workers import RewardWorkers

SUBJECTS = (
    *("algebra", "analytic geometry", "arithmetic", "combinatorial geometry", "combinatorics", "counting"),
    *("descriptive geometry", "graph theory", "logic", "metric geometry - angle", "metric geometry - area"),
    *("metric geometry - length", "solid geometry", "statistics", "topology", "transformation geometry"),
)
PICTURE = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
LETTERS = list("ABCDE")
LENGTHS = ["3 cm", "4 cm", "5 cm", "6 cm", "8 cm"]
DAYS = ["Monday", "Friday", "Saturday", "Sunday", "Tuesday"]
VALUES = [r"$\sqrt{2}-1$", r"$\frac{1}{2}$", r"$4 \pi$", "$5$", r"$2^{10}$"]

# options, gold answer, response, official, ours
CASES = [
    # A letter, in every form that the rule names.
    (LETTERS, "B", r"The answer is \boxed{B}", 1, 1),
    (LETTERS, "B", r"So it is \boxed{(B)}.", 1, 1),
    (LETTERS, "B", r"Hence \boxed{\text{B}}.", 1, 1),
    (LETTERS, "B", "We choose B.", 1, 1),
    (LETTERS, "B", "We choose (B).", 1, 1),
    (LETTERS, "B", "B\nbecause it is the only one.", 1, 0),
    (LETTERS, "B", "the answer is B", 1, 1),
    (LETTERS, "B", "The correct answer is (B). It is red.", 1, 1),
    (LETTERS, "B", r"\boxed{C}", 0, 0),
    (LETTERS, "B", r"First \boxed{C}, after all \boxed{B}", 1, 1),
    (LETTERS, "B", "<think>x</think><answer>$\\boxed{B}$</answer>", 1, 1),
    (LETTERS, "B", "<think>x</think><answer>B</answer>", 0, 1),  # a block is nothing to the rule
    (LETTERS, "B", "I cannot see the picture", 0, 0),
    (LETTERS, "B", r"\boxed{A, B}", 0, 0),
    # The text of an option.
    (LENGTHS, "B", r"\boxed{4 cm}", 0, 1),  # `4` is left of the answer, and the option keeps its unit
    (LENGTHS, "B", r"\boxed{B}", 1, 1),
    (LENGTHS, "B", r"\boxed{5 cm}", 0, 0),
    (VALUES, "B", r"\boxed{0.5}", 1, 1),
    (VALUES, "A", r"\boxed{\sqrt2-1}", 1, 1),
    (VALUES, "C", r"\boxed{4\pi}", 1, 1),
    (VALUES, "C", r"\boxed{12.57}", 1, 0),  # rounded to two decimals
    (VALUES, "E", r"\boxed{1024}", 1, 1),
    (DAYS, "D", r"\boxed{Sunday}", 1, 1),
    (DAYS, "D", r"\boxed{\text{Sunday}}", 0, 1),  # known bug: {sunday}
    (DAYS, "D", r"\boxed{\text{Monday}}", 0, 0),
    # Values.
    ([], "60", r"\boxed{60}", 1, 1),
    ([], "60", "60", 1, 1),
    ([], "60", "The value is 60.", 1, 1),
    ([], "60", r"\boxed{60^\circ}", 1, 1),
    ([], "60", r"\boxed{60 \text{ km}}", 1, 1),
    ([], "60", r"\boxed{x=60}", 1, 1),
    ([], "60", r"\boxed{61}", 0, 0),
    ([], "60", r"\boxed{60 \text{ or } 61}", 0, 0),
    ([], "1000", r"\boxed{1,000}", 1, 1),
    ([], "7/3", r"\boxed{\frac{7}{3}}", 1, 1),
    ([], "7/3", r"\boxed{2.33}", 1, 0),
    ([], "(3,-4)", r"\boxed{(3, -4)}", 1, 1),
    ([], "(3,-4)", r"\boxed{(-4, 3)}", 0, 0),
    ([], "1:2", r"\boxed{0.5}", 1, 1),
    ([], "525\\pi", r"\boxed{525\pi}", 1, 1),
    ([], "0.001", r"\boxed{0.004}", 1, 0),  # two decimals, however small
    ([], "(6,7)", r"\boxed{(\sqrt{36},7)}", 0, 1),  # tuples are compared as text: 6 and 6.0
    ([], "3.5", r"\boxed{3\frac{1}{2}}", 0, 1),  # a mixed fraction is a product
    # Known bugs that the issues name.
    (
        [],
        r"\frac{1}{2}",
        r"\boxed{\frac{1}{2}} since \frac{a}{b} is",
        1,
        1,
    ),  # greedy, but a number ends at the stray brace
    (LETTERS, "B", r"\boxed{\text{B}} since {x} is", 0, 1),  # greedy: b}since{x
    ([], "5", r"\boxed{5} since {x} is", 1, 1),  # greedy, but without braces in the box it is mended
    ([], r"\frac{1}{2}", r"\boxed{\frac12}", 0, 1),  # mended only where sqrt occurs
    ([], r"\frac{\sqrt{3}}{2}", r"\boxed{\frac12\sqrt3}", 1, 1),
    ([], "2", r"\boxed{\sqrt[3]{8}}", 0, 1),  # \sqrt{[}3]{8}
    # Gold answers of the release that the rule does not clean.
    ([], r"$\boxed{\frac{3}{4}}$", r"\boxed{\frac{3}{4}}", 0, 1),
    ([], "\frac{36}{13}", r"\boxed{\frac{36}{13}}", 0, 1),
    ([], "69{degrees}", r"\boxed{69}", 0, 1),
    ([], r"8\sqrt{3}{squareinches}", r"\boxed{8\sqrt{3}}", 0, 1),
    ([], "11 ", r"\boxed{11}", 1, 1),
]


def rows(cases=CASES):
    """Rows as data/test.jsonl has them, one for each case."""
    subjects = islice(cycle(SUBJECTS), len(cases))
    return [
        {
            "id": str(number),
            "question": f"Which one is it?\n<image1>\nNumber {number}.",
            "options": options,
            "answer": answer,
            "solution": None,
            "level": number % 5 + 1,
            "subject": subject,
            "image": f"images/{number}.jpg",
        }
        for number, (subject, (options, answer, *_)) in enumerate(zip(subjects, cases, strict=True), 1)
    ]


def as_json(folder, content):
    folder.mkdir(exist_ok=True)
    file = folder / "test.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
    return file


def as_parquet(folder, content):
    folder.mkdir(exist_ok=True)
    file = folder / "test-00000-of-00001.parquet"
    pq.write_table(
        pa.Table.from_pylist([{**r, "decoded_image": {"bytes": PICTURE, "path": None}} for r in content]), file
    )
    return file


@pytest.fixture(scope="module")
def workers():
    with RewardWorkers(RewardConfig(workers=1, time_limit=60.0)) as rewards:
        rewards.validate()
        yield rewards


@pytest.fixture(scope="module")
def judged(workers, tmp_path_factory):
    released = read_release(open_benchmark("mathvision"), as_json(tmp_path_factory.mktemp("mv"), rows()), partial=True)
    answers = [Answer(row.id, case[2]) for row, case in zip(released.rows, CASES, strict=True)]
    return released, judge(released, answers, workers)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_both_judges_give_the_verdicts_worked_out_by_hand(judged, number):
    *_, official, ours = CASES[number]
    row = judged[1][number]
    assert (row["official"], row["ours"], row["reason"]) == (official, ours, None)


def test_the_extracted_text_is_what_was_judged(judged):
    extracted = {case[2]: row["extracted"] for case, row in zip(CASES, judged[1], strict=True)}
    assert extracted[r"\boxed{\text{Sunday}}"] == "{sunday}"
    assert extracted[r"\boxed{\sqrt[3]{8}}"] == r"\sqrt{[}3]{8}"
    assert extracted[r"\boxed{\frac{1}{2}} since \frac{a}{b} is"] == r"\frac{1}{2}}since\fraca{b"
    assert extracted["We choose (B)."] == "b"
    assert extracted["I cannot see the picture"] is None
    assert extracted["<think>x</think><answer>B</answer>"] is None


def test_breakdowns_equal_a_plain_recount(judged):
    released, verdicts = judged
    results = results_of(released, verdicts)
    counted = defaultdict(list)
    for row, (*_, official, ours) in zip(rows(), CASES, strict=True):
        subject = row["subject"]
        level = str(row["level"])
        keys = [("subject", subject), ("level", level), ("subject and level", f"{subject}, level {level}")]
        for key in keys:
            counted[key].append((official, ours))
    found = {(name, key): one for name, own in results["breakdowns"].items() for key, one in own.items()}
    assert found.keys() == counted.keys() and len(counted) > 40
    for key, pairs in counted.items():
        first, second = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        assert found[key] == {"official": pytest.approx(first), "ours": pytest.approx(second), "count": len(pairs)}
    assert results["official"] == pytest.approx(sum(case[3] for case in CASES) / len(CASES))
    assert results["ours"] == pytest.approx(sum(case[4] for case in CASES) / len(CASES))
    assert results["disagreements"] == sum(case[3] != case[4] for case in CASES)
    assert results["partial"] is True


@pytest.mark.parametrize("write", [as_json, as_parquet])
def test_released_forms_are_read(tmp_path, write):
    released = read_release(open_benchmark("mathvision"), write(tmp_path / "data", rows()), partial=True)
    assert [row.id for row in released.rows] == [row["id"] for row in rows()]
    problem = released.problem(released.rows[14])
    kinds = [part["type"] for part in problem.messages[0]["content"]]
    assert kinds == ["text", "image", "text"]
    assert problem.messages[0]["content"][2]["text"].endswith(
        "Number 15.\n(A) 3 cm\n(B) 4 cm\n(C) 5 cm\n(D) 6 cm\n(E) 8 cm"
    )
    assert problem.answer == "(B) 4 cm"
    (picture,) = problem.images
    assert picture.data == PICTURE if write is as_parquet else picture.path.name == "15.jpg"


def test_a_picture_that_is_named_several_times_comes_first():
    benchmark = open_benchmark("mathvision")
    row = {"question": "From <image1> to <image2>", "options": LETTERS, "answer": "B"}
    assert benchmark.question(row) == "From image 1 to image 2"
    assert benchmark.question(row | {"options": ["a", "<image3>", "c", "d", "e"]}).endswith(
        "image 2\n(A) a\n(B) image 3\n(C) c\n(D) d\n(E) e"
    )
    assert benchmark.question(row | {"question": "Why <image1>?"}) == "Why <image1>?"


@pytest.mark.parametrize("option", ["between bowls Q and R", "$P$", "I, III and V", "(B)", "<image2>"])
def test_an_option_with_names_of_one_letter_is_asked_by_its_letter(option):
    row = {"options": ["1", option, "3", "4", "5"], "answer": "B"}
    assert open_benchmark("mathvision").answer(row) == "B"


def test_another_split_other_columns_and_missing_rows_are_refused(tmp_path):
    benchmark = open_benchmark("mathvision")
    with pytest.raises(UserError, match="54 rows, but MATH-Vision .test. has 3,040"):
        read_release(benchmark, as_json(tmp_path, rows()))
    many = [dict(rows()[0], id=f"x{number}") for number in range(3040)]
    with pytest.raises(UserError, match="other ids, but MATH-Vision"):
        read_release(benchmark, as_json(tmp_path, many))
    with pytest.raises(UserError, match="it has no options, level, only id, question"):
        read_release(
            benchmark, as_json(tmp_path, [{k: r[k] for k in r if k not in ("options", "level")} for r in rows()])
        )


def test_the_ids_of_the_release_are_accepted(tmp_path):
    ids = [str(number) for number in range(1, 3041)]
    assert (
        hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest() == open_benchmark("mathvision").settings.release.ids
    )
    whole = read_release(open_benchmark("mathvision"), as_json(tmp_path, [dict(rows()[0], id=one) for one in ids]))
    assert not whole.is_partial


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("12", 12), ("1,000", 1000), ("12.0", 12), (".5", 0.5), ("-3", -3), ("--3", 3), ("$4 \\pi$", 12.566)),
        *(("2^3", 8), ("2^{-1}", 0.5), (r"\frac{3}{4}", 0.75), ("6/2", 3.0), ("1:2", 0.5), ("(2)(3)", 6), ("3!", 6)),
        *(
            (r"2\sqrt{3}", 3.464),
            (r"\sqrt[3]{8}", 2.0),
            (r"\binom{4}{2}", 6),
            (r"\log_{2}{8}", 3.0),
            (r"\log 2", 0.301),
        ),
        *(
            (r"\tan^{-1}(1)", 0.785),
            ("e^{2}", 7.389),
            (r"3\%", 0.03),
            (r"\lfloor 2.5\rfloor", 2),
            ("5}", 5),
            ("1_000", 1),
        ),
        *((r"1\frac{1}{2}", 0.5), (r"6 \div 4 \times 2", 3.0), ("1/2\\pi", 0.159), (r"\sin(30)", -0.988), ("5.so", 5)),
        *(
            ("x", None),
            ("e", None),
            (r"\ln{2}", None),
            ("|3|", None),
            (r"\frac12", None),
            (r"\sqrt2", None),
            ("", None),
        ),
        *(("3-", None), ("1/0", None), (r"\sqrt{-1}", None), ("(3,4)", None), ("50%", None), (r"60^\circ", None)),
        *(("9^{9^{9^{9}}}", None), ("99999!", None), ("(" * 60 + "1" + ")" * 60, None), ("2.5!", None), ("3 cm", None)),
    ],
)
def test_numbers_have_the_value_that_the_rule_gives_them(text, expected):
    assert value(text) == (expected if expected is None else pytest.approx(expected, abs=1e-3))


def test_integers_stay_integers():
    assert all(isinstance(value(text), int) for text in ("12.0", "2^3", "3!", r"\binom{4}{2}", "(2)(3)"))
    assert all(isinstance(value(text), float) for text in ("6/2", r"\sqrt{16}"))


@pytest.mark.parametrize(
    ("gold", "text", "expected"),
    [
        ("B", "b", True),
        ("", "", False),
        ("(1,2)", "(1.001,2)", False),
        ("(1,2)", "(1, 2)", True),
        ("[1/2,a]", "[0.5,a]", True),
    ],
)
def test_equal_as_text_as_tuples_or_as_rounded_numbers(gold, text, expected):
    assert is_equal(gold, text) is expected


@pytest.mark.parametrize("response", [r"\boxed{" * 20_000, "}" * 50_000, "the answer is " * 20_000, "(" * 50_000])
def test_long_responses_are_read_in_linear_time(response):
    text, _ = extract(response)
    assert value(text) is None
