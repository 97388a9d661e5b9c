r"""OlympiadBench: both released forms, both judges' verdicts worked out by hand, and the rule's known bugs."""

from __future__ import annotations

import json
from collections import defaultdict
from itertools import cycle, islice

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.data.record import RowError
from mmeureka_jax.errors import UserError
from mmeureka_jax.eval.olympiadbench.official import is_equal, same_item, spelled, stated, tolerances
from mmeureka_jax.evaluation.benchmark import open_benchmark
from mmeureka_jax.evaluation.judging import Answer, judge, results_of
from mmeureka_jax.evaluation.release import read_release
from mmeureka_jax.rewards.workers import RewardWorkers

SUBFIELDS = ("Algebra", "Combinatorics", "Geometry", "Number Theory")
PICTURES = [b"\x89PNG one", b"\x89PNG two", b"\x89PNG three"]
NUMBER = "Numerical"
FORMULA = "Expression"
EQUATION = "Equation"
INTERVAL = "Interval"
TUPLE = "Tuple"

# answer type, final_answer, error, unit, response, official, ours
CASES = [
    # Where the answer is looked for.
    (NUMBER, ["$5$"], None, None, r"So the final answer is \boxed{5}.", 1, 1),
    (NUMBER, ["$5$"], None, None, "So the final answer is $5$.", 1, 1),
    (NUMBER, ["$5$"], None, None, "We get $x$.\nIt is $5$", 1, 1),
    (NUMBER, ["$5$"], None, None, "5", 1, 1),
    (NUMBER, ["$5$"], None, None, r"<think>x</think><answer>$\boxed{5}$</answer>", 1, 1),
    (NUMBER, ["$5$"], None, None, r"<think>\boxed{4} first</think><answer>\boxed{5}</answer>", 0, 1),  # all boxes count
    (NUMBER, ["$5$"], None, None, "\\boxed{4}\nSo the final answer is \\boxed{5}.", 1, 1),
    (NUMBER, ["$5$"], None, None, r"\boxed{6}", 0, 0),
    (NUMBER, ["$5$"], None, None, r"\boxed{5", 0, 0),
    (NUMBER, ["$5$"], None, None, "I cannot tell", 0, 0),
    # Numbers and tolerances; error is text, as the release has it.
    (NUMBER, [r"$\frac{1}{2}$"], None, None, r"\boxed{0.5}", 1, 1),
    (NUMBER, [r"$\frac{1}{2}$"], None, None, r"\boxed{\frac12}", 1, 1),
    (NUMBER, ["$2$"], None, None, r"\boxed{\sqrt[3]{8}}", 1, 1),
    (NUMBER, ["3.14"], "1e-2", None, r"\boxed{3.15}", 1, 0),  # ours knows no error
    (NUMBER, ["3.14"], "1e-2", None, r"\boxed{3.16}", 0, 0),
    (NUMBER, ["3.14"], "0.1", None, r"\boxed{\pi}", 1, 0),
    (NUMBER, ["314"], "1", None, r"\boxed{315.2}", 0, 0),  # absolute, not relative
    (NUMBER, ["0.5"], None, None, r"\boxed{50}", 1, 0),  # known bug: a hundredth of the model's value
    (NUMBER, ["0.5"], None, None, r"\boxed{0.005}", 1, 0),
    (NUMBER, ["0.5"], None, None, r"\boxed{50%}", 1, 1),
    (NUMBER, ["0.5"], None, None, r"\boxed{50\%}", 0, 1),  # known bug: the backslash remains
    (NUMBER, ["50"], "1", None, r"\boxed{0.49}", 1, 0),  # 49, which is near enough
    (NUMBER, ["0.5"], "1e-2", None, r"\boxed{52}", 0, 0),  # 0.52 is not
    # Units are neither checked nor stripped.
    (NUMBER, ["5"], None, "cm", r"So the final answer is \boxed{5}(cm).", 1, 1),
    (NUMBER, ["5"], None, "cm", r"\boxed{5 \text{ cm}}", 0, 1),
    (NUMBER, ["5"], None, "cm", r"\boxed{5 \text{ m}}", 0, 0),
    (NUMBER, ["60"], None, "degrees", r"\boxed{60^\circ}", 1, 1),
    (NUMBER, ["60"], None, "degrees", r"\boxed{60^{\circ}}", 0, 1),
    # Several answers, with one tolerance or several, of which an empty one is 1e-8.
    (NUMBER, ["$1,2$"], None, None, r"\boxed{2, 1}", 1, 1),
    (NUMBER, ["$1$, $2$"], None, None, r"\boxed{1}, \boxed{2}", 1, 1),
    (NUMBER, ["$1,2$"], None, None, r"\boxed{1}", 0, 0),
    (NUMBER, ["$1,2$"], None, None, r"\boxed{1,2,3}", 0, 0),
    (NUMBER, ["$3,-3$"], None, None, r"\boxed{\pm 3}", 1, 1),
    (NUMBER, ["1.0,2.0"], "0.1", None, r"\boxed{1.05,2.05}", 1, 0),
    (NUMBER, ["1.0,2.0"], "0.1,", None, r"\boxed{1.05,2}", 1, 0),
    (NUMBER, ["1.0,2.0"], "0.1,", None, r"\boxed{1,2.05}", 0, 0),
    (NUMBER, ["1.0,2.0"], ",0.1", None, r"\boxed{1,2.05}", 1, 0),
    (NUMBER, ["1.0,2.0"], "0.1,", None, r"\boxed{2.05,1}", 1, 0),  # the model's first item has the first tolerance
    (NUMBER, ["$1$", "$2$"], None, None, r"\boxed{1}", 1, 0),  # known bug: only the first entry
    (NUMBER, ["$1$", "$2$"], None, None, r"\boxed{1, 2}", 0, 1),
    ("Numerical,Expression", ["$3,n+1$"], None, None, r"\boxed{1+n,3}", 1, 1),
    # Expressions.
    (FORMULA, ["$2n+1$"], None, None, r"\boxed{a_n=1+2n}", 1, 1),
    (FORMULA, ["$2n+1$"], None, None, r"\boxed{2n-1}", 0, 0),
    (FORMULA, [r"$\frac{n(n+1)}{2}$"], None, None, r"\boxed{\frac{n^2+n}{2}}", 0, 1),  # n(n+1) is a function n
    (FORMULA, [r"$\frac{n \cdot(n+1)}{2}$"], None, None, r"\boxed{\frac{n^2+n}{2}}", 1, 1),
    (FORMULA, [r"$\frac{\sqrt{2}}{2}$"], None, None, r"\boxed{\frac{1}{\sqrt{2}}}", 1, 1),
    (FORMULA, ["$2^{2000}$"], None, None, r"\boxed{4^{1000}}", 0, 1),  # an exponent above 1,000
    # Equations.
    (EQUATION, ["$x+y=1$"], None, None, r"\boxed{y=1-x}", 1, 1),
    (EQUATION, ["$x+y=1$"], None, None, r"\boxed{2x+2y=2}", 1, 1),
    (EQUATION, ["$2x+2y=2$"], None, None, r"\boxed{3x+3y=3}", 0, 1),  # known bug: the quotient must be an integer
    (EQUATION, ["$x+y=1$"], None, None, r"\boxed{x-y=1}", 0, 0),
    # Intervals.
    (INTERVAL, ["$[1,2)$"], None, None, r"\boxed{x \in [1, 2)}", 1, 1),
    (INTERVAL, ["$[1,2)$"], None, None, r"\boxed{[1,2]}", 0, 0),
    (INTERVAL, ["$[0.5,2)$"], None, None, r"\boxed{\left[\frac{1}{2}, 2\right)}", 1, 1),
    (INTERVAL, [r"$(0,1) \cup(2,3)$"], None, None, r"\boxed{(0,1)\cup(2,3)}", 0, 1),  # the space before \cup
    (INTERVAL, [r"$(0,1)\cup(2,3)$"], None, None, r"\boxed{(0,\frac{2}{2})\cup(2,3)}", 1, 1),
    (INTERVAL, [r"$(0,1) \cup(2,3)$"], None, None, r"\boxed{(2,3)\cup(0,1)}", 0, 1),  # parts in order only
    # Tuples, whose error is not used.
    (TUPLE, ["$(1,2)$"], None, None, r"\boxed{(1, 2)}", 1, 1),
    (TUPLE, ["$(1,2)$"], None, None, r"\boxed{(2,1)}", 0, 0),
    (TUPLE, ["$(1,2)$"], "0.1", None, r"\boxed{(1.05,2)}", 0, 0),
    (TUPLE, ["$(1,2),(3,4)$"], None, None, r"\boxed{(3,4),(1,2)}", 1, 1),
]


def rows(cases=CASES):
    """Rows as the authors' JSON has them, one for each case, with one to three pictures."""
    made = []
    for number, (subfield, (kind, final, error, unit, *_)) in enumerate(
        zip(islice(cycle(SUBFIELDS), len(cases)), cases, strict=True), 2000
    ):
        tags = " and ".join(f"<img_{number * 10 + index}>" for index in range(number % 3 + 1))
        made.append(
            {
                "id": number,
                "subfield": subfield,
                "context": None,
                "question": f"Look at {tags} and solve it.",
                "solution": ["It is so."],
                "final_answer": final,
                "is_multiple_answer": "," in final[0] and kind not in (INTERVAL, TUPLE),
                "unit": unit,
                "answer_type": kind,
                "error": error,
            }
        )
    return made


def as_json(root, content):
    """The authors' archive: rows in data, pictures in images."""
    for folder in ("data", "images"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for row in content:
        for index in range(row["id"] % 3 + 1):
            (root / "images" / f"img_{row['id'] * 10 + index}.jpg").write_bytes(PICTURES[index])
    file = root / "data" / "OE_MM_maths_en_COMP.json"
    file.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return file


def as_parquet(root, content):
    """The form on Hugging Face: pictures in image_1 to image_9."""
    root.mkdir(parents=True, exist_ok=True)
    made = []
    for row in content:
        question = row["question"]
        pictures: dict[str, object] = {f"image_{number}": None for number in range(1, 10)}
        for index in range(row["id"] % 3 + 1):
            question = question.replace(f"<img_{row['id'] * 10 + index}>", f"<image_{index + 1}>")
            pictures[f"image_{index + 1}"] = {"bytes": PICTURES[index], "path": None}
        others = {"modality": "Multimodal", "difficulty": "Competition", "question_type": "Open-ended"}
        others |= {"subject": "Math", "language": "English"}
        made.append({**row, "question": question, **pictures, **others})
    file = root / "OE_MM_maths_en_COMP.parquet"
    pq.write_table(pa.Table.from_pylist(made), file)
    return file


@pytest.fixture(scope="module")
def workers():
    with RewardWorkers(RewardConfig(workers=1, time_limit=60.0), [open_benchmark("olympiadbench").official]) as rewards:
        rewards.validate()
        yield rewards


@pytest.fixture(scope="module")
def judged(workers, tmp_path_factory):
    file = as_parquet(tmp_path_factory.mktemp("ob"), rows())
    released = read_release(open_benchmark("olympiadbench"), file, partial=True)
    answers = [Answer(row.id, case[4]) for row, case in zip(released.rows, CASES, strict=True)]
    return released, judge(released, answers, workers)


@pytest.mark.parametrize("number", range(len(CASES)))
def test_both_judges_give_the_verdicts_worked_out_by_hand(judged, number):
    *_, official, ours = CASES[number]
    row = judged[1][number]
    assert (row["official"], row["ours"], row["reason"]) == (official, ours, None)


def test_the_extracted_text_is_what_was_judged(judged):
    extracted = [row["extracted"] for row in judged[1]]
    assert extracted[0] == "5" and extracted[5] == "4,5"
    assert extracted[8] is None and extracted[9] is None  # a box that never ends, and nothing at all


def test_breakdowns_equal_a_plain_recount(judged):
    released, verdicts = judged
    results = results_of(released, verdicts)
    counted = defaultdict(list)
    for row, (*_, official, ours) in zip(rows(), CASES, strict=True):
        several = "several answers" if row["is_multiple_answer"] else "one answer"
        keys = (("subfield", row["subfield"]), ("answer type", row["answer_type"]), ("answers", several))
        for key in keys:
            counted[key].append((official, ours))
    found = {(name, key): one for name, own in results["breakdowns"].items() for key, one in own.items()}
    assert found.keys() == counted.keys() and len(counted) == 4 + 6 + 2
    for key, pairs in counted.items():
        first, second = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        assert found[key] == {"official": pytest.approx(first), "ours": pytest.approx(second), "count": len(pairs)}
    assert results["disagreements"] == sum(case[5] != case[6] for case in CASES)


@pytest.mark.parametrize("write", [as_json, as_parquet])
def test_both_released_forms_ask_the_same(tmp_path, write):
    released = read_release(open_benchmark("olympiadbench"), write(tmp_path, rows()), partial=True)
    assert [row.id for row in released.rows] == [str(row["id"]) for row in rows()]
    problem = released.problem(released.rows[0])  # 2000: three pictures
    image = {"type": "image"}
    texts = [{"type": "text", "text": text} for text in ("Look at ", " and ", " and ", " and solve it.")]
    assert problem.messages[0]["content"] == [texts[0], image, texts[1], image, texts[2], image, texts[3]]
    found = [picture.path.read_bytes() if picture.data is None else picture.data for picture in problem.images]
    assert found == PICTURES and problem.answer == "5"


def test_pictures_follow_the_order_of_the_text():
    benchmark = open_benchmark("olympiadbench")
    row = {"context": None, "question": "<image_2>, <image_1>, <image_2>", "image_1": b"one", "image_2": b"two"}
    assert benchmark.question(row) == "<image>, <image>, image 1"
    assert benchmark.pictures(row) == [b"two", b"one"]
    other = {"context": "See <img_7>.", "question": "So <img_3> and <img_7>"}
    assert benchmark.question(other) == "See <image>.\nSo <image> and image 1"
    assert benchmark.pictures(other) == ["../images/img_7.jpg", "../images/img_3.jpg"]


def test_a_row_without_its_pictures_says_so(tmp_path):
    row = rows()[0] | {"question": "Look at <image_1>"}
    released = read_release(open_benchmark("olympiadbench"), as_json(tmp_path, [row]), partial=True)
    with pytest.raises(RowError, match="names 1 pictures, but the row has none"):
        released.problem(released.rows[0])


def test_another_split_other_columns_and_missing_rows_are_refused(tmp_path):
    benchmark = open_benchmark("olympiadbench")
    with pytest.raises(UserError, match=f"{len(CASES)} rows, but OlympiadBench .* has 150"):
        read_release(benchmark, as_json(tmp_path, rows()))
    proofs = [{k: row[k] for k in row if k not in ("final_answer", "error")} for row in rows()]
    with pytest.raises(UserError, match="it has no final_answer, error, only id, subfield"):
        read_release(benchmark, as_json(tmp_path, proofs))


@pytest.mark.parametrize(
    ("kind", "error", "expected"),
    [
        *((NUMBER, None, [1e-8]), (NUMBER, "", [1e-8]), (NUMBER, "1e-3", [1e-3]), (NUMBER, 0.01, [0.01])),
        *((NUMBER, "0.1,,2", [0.1, 1e-8, 2.0]), (TUPLE, "0.1", [1e-8]), ("Numerical,Tuple", "0.1,0.2", [1e-8])),
    ],
)
def test_error_is_a_number_or_several_as_text(kind, error, expected):
    assert tolerances({"answer_type": kind, "error": error}) == expected


def test_tolerances_go_to_every_second_of_the_items():
    assert is_equal("1,2.05,3.5", "1,2,3", [1e-8, 0.1, 0.6])
    assert not is_equal("1,2,3,4.05", "1,2,3,4", [1e-8, 1e-8, 1e-8])  # the authors' program would end


def test_symbols_are_replaced_before_items_are_compared():
    assert spelled(r"\boxed{\left(1，2\right)}") == "(1,2)"
    assert spelled(r"$x \in [0,1]$") == "[0,1]"
    assert spelled(r"\boxed{x \approx 3.1}") == "x = 3.1"
    assert spelled(r"\boxed{5 \mathrm{~cm}}") == "5 cm"
    assert stated("So the final answer is 1\nSo the final answer is 2. So the final answer is 3")[0].startswith("2. So")


def test_what_cannot_be_computed_is_refused():
    assert not same_item("10^{10^{10^{10}}}", "10^{10}", 1e-8)
    assert not same_item(r"\frac{", "1", 1e-8)
