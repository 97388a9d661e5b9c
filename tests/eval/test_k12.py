"""K12-500: its released forms, and what both judges say of every kind of gold answer that it has."""

from __future__ import annotations

import pytest
from helpers.releases import known_release, picture, recounted, released, verdicts, write_json, write_parquet

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.benchmark import open_benchmark
from mmeureka_jax.evaluation.judging import Answer, judge, results_of
from mmeureka_jax.evaluation.release import read_release
from mmeureka_jax.rewards.workers import RewardWorkers

# For each gold answer: answers with what the official rule (MM-EUREKA's training rule) and ours say.
BOTH_AGREE = {
    "$$6$$": {"6": 1, " 6 ": 1, "$6$": 1, "6.0": 1, "$x=6$": 1, r"\boxed{6}": 1, r"$\frac{12}{2}$": 1, "7": 0, "": 0},
    r"$\frac{5}{2}$": {"2.5": 1, "5/2": 1, r"$2\frac12$": 1, "0.25": 0, r"$\frac{2}{5}$": 0},
    r"$4\sqrt{3}$": {r"$4\sqrt{3}$": 1, r"$\sqrt{48}$": 1, "6.93": 0},
    r"$2\sin (2x-\frac{\pi }{6})$": {r"$f(x)=2\sin(2x-\frac{\pi}{6})$": 1, r"$2\cos(2x)$": 0},
    "30°": {"30°": 1, r"$30^{\circ}$": 1, "30": 1, "30 degrees": 1, "60°": 0},
    "40m.": {"40 m": 1, "40": 1, "45 m": 0},
    "$$A$$": {"A": 1, "(A)": 1, "a": 1, "B": 0, "banana": 0},
    r"$$1:\sqrt{3}$$": {r"$1:\sqrt{3}$": 1, r"$\sqrt{3}:1$": 0},
    r"$- \frac{1}{3} \overrightarrow{a} - \frac{1}{3} \overrightarrow{b}$": {
        r"$- \frac{1}{3} \overrightarrow{a} - \frac{1}{3} \overrightarrow{b}$": 1,
        r"$\frac{1}{3} \overrightarrow{a}$": 0,
    },
}
# Here they disagree: `(official, ours)`.
THEY_DISAGREE = {
    # Without $...$ upstream reads no LaTeX, no names and no letters of other alphabets.
    "2π": {"2π": (0, 1), r"$2\pi$": (1, 1), r" 2\pi": (0, 1)},
    "$x > 1$": {"x > 1": (0, 1), "$x>1$": (1, 1), r"$(1,\infty)$": (0, 1), r"$x \ge 1$": (0, 0)},
    "(15,0)": {"(15,0)": (0, 1), "$(15,0)$": (1, 1), "$(0,15)$": (0, 0)},
    ">": {">": (0, 1), "$>$": (1, 1), "<": (0, 0)},
    # It knows no words: they are products of letters, or nothing.
    "rhombus.": {"rhombus": (0, 1), "A rhombus": (0, 1), "square": (0, 0)},
    "Yes": {"Yes": (0, 1), "No": (0, 0)},
    # It takes a unit for nothing, whichever it is.
    "4 cm²": {"4 cm²": (1, 1), "4": (1, 1), "4 cm": (1, 0), "4 m^2": (1, 0), "5 cm²": (0, 0)},
    # Of several answers it takes the last number of the text.
    "96\n376": {"96, 376": (1, 1), "376": (1, 0), "96": (0, 0), "376, 96": (0, 0)},
    "6\n6": {"6, 6": (1, 1), "6": (1, 0)},
    "(1)$$0.04$$ (2)$$440$$": {"(1) 0.04 (2) 440": (1, 1), "$0.04$, $440$": (0, 1), "440": (1, 0)},
    # A gold answer of which it reads nothing makes everything right.
    "(6,0)\n(0,-2018)": {"(6,0), (0,-2018)": (1, 1), "zebra": (1, 0), "(0,0)": (1, 0)},
    "summer clothing\nwinter clothing": {"summer clothing, winter clothing": (1, 1), "zebra": (1, 0)},
    # An explanation for a gold answer: upstream takes its number, our rule compares none.
    "Both sides are multiplied by x-4. Because the equation has an extraneous root, which is x=4, we find that a=4.": {
        "4": (1, 0),
        "5": (0, 0),
    },
}


def make_rows():
    """44 rows as k12.json has them: every kind of gold answer, and numbers."""
    golds = [*BOTH_AGREE, *THEY_DISAGREE]
    golds += [f"$${number}$$" for number in range(44 - len(golds))]
    return [
        {
            "id": f"{index:08x}-84c9-401f-bd27-ac6869e87a8b",
            "question": f"As shown in the figure, then the value of $x_{{{index}}}$ is ______.",
            "answer": gold,
            "image_path": f"images/{index}.png",
        }
        for index, gold in enumerate(golds)
    ]


ROWS = make_rows()
IDS = {row["answer"]: row["id"] for row in ROWS}


@pytest.fixture(scope="module")
def workers():
    with RewardWorkers(RewardConfig(time_limit=60)) as rewards:
        rewards.validate()
        yield rewards


def said(text):
    return f"<think> It follows from the figure. </think><answer>{text}</answer>"


def test_both_judges_on_every_kind_of_answer(workers, tmp_path):
    cases = [(gold, text, (right, right)) for gold, own in BOTH_AGREE.items() for text, right in own.items()]
    cases += [(gold, text, both) for gold, own in THEY_DISAGREE.items() for text, both in own.items()]
    responses = [(IDS[gold], said(text)) for gold, text, _ in cases]
    found = verdicts(released("k12", ROWS, tmp_path), responses, workers)
    assert [(gold, text, one[:2]) for (gold, text, _), one in zip(cases, found, strict=True)] == cases
    assert [one[2] for one in found] == [text.strip() or None for _, text, _ in cases]


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        ("<think>t</think> <answer> $6$ </answer>", (1, 1, "$6$")),
        ("<answer>6", (1, 1, "6")),
        ("<think>t</think><answer>7</answer><answer>6</answer>", (0, 0, "7")),
        ("So the answer is 6.", (1, 1, "So the answer is 6.")),
        (r"Therefore \boxed{6}.", (1, 1, r"Therefore \boxed{6}.")),
        # Upstream reads the thought of a response without tags, and a block that a thought quotes.
        ("<think> it may be 6", (1, 0, "<think> it may be 6")),
        ("<think><answer>5</answer> no</think><answer>6</answer>", (0, 1, "5")),
        ("", (0, 0, None)),
    ],
)
def test_where_the_answer_is_looked_for(response, wanted, workers, tmp_path):
    rows = released("k12", ROWS, tmp_path)
    assert verdicts(rows, [(IDS["$$6$$"], response)], workers) == [wanted]


def test_scores_equal_a_recount(workers, tmp_path):
    rows = released("k12", ROWS, tmp_path)
    answers = [Answer(row["id"], said(row["answer"] if index % 3 else "7")) for index, row in enumerate(ROWS)]
    judged = judge(rows, answers, workers)
    results = results_of(rows, judged)
    assert {key: results[key] for key in ("official", "ours", "count")} == pytest.approx(
        recounted(judged, [row["id"] for row in ROWS])
    )
    assert 0.3 < results["official"] < 0.7
    assert results["breakdowns"] == {}
    assert results["figures"] == {"official": {}, "ours": {}}
    assert results["disagreements"] == sum(row["official"] != row["ours"] for row in judged) > 0


def test_it_is_judged_as_mmk12_is():
    assert open_benchmark("k12").official == open_benchmark("mmk12").official


def test_every_released_form_asks_the_same(tmp_path):
    (tmp_path / "images").mkdir()
    for row in ROWS:
        (tmp_path / row["image_path"]).write_bytes(picture())
    embedded = [
        {key: row[key] for key in ("id", "question", "answer")} | {"image": {"bytes": picture(), "path": "1.png"}}
        for row in ROWS
    ]
    files = [write_json(tmp_path / "k12.json", ROWS), write_parquet(tmp_path / "train.parquet", embedded)]
    asked = []
    for file in files:
        rows = read_release(known_release("k12", ROWS), file)
        problems = [rows.problem(row) for row in rows.rows]
        assert all(len(problem.images) == 1 for problem in problems)
        asked.append([(problem.id, problem.messages, problem.answer) for problem in problems])
    assert asked[0] == asked[1]
    assert asked[0][0] == (
        ROWS[0]["id"],
        ({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ROWS[0]["question"]}]},),
        "$$6$$",
    )


def test_what_is_not_the_release_is_refused(tmp_path):
    benchmark = known_release("k12", ROWS)
    with pytest.raises(UserError, match=r"it has no id, answer, only pid, question; expected eval/k12/k12.json"):
        read_release(benchmark, write_json(tmp_path / "other.json", [{"pid": "1", "question": "q"}]))
    with pytest.raises(UserError, match="43 rows, but K12-500 has 44"):
        read_release(benchmark, write_json(tmp_path / "short.json", ROWS[1:]))
    with pytest.raises(UserError, match="other ids, but K12-500 has 44"):
        read_release(benchmark, write_json(tmp_path / "ids.json", [*ROWS[1:], {**ROWS[0], "id": "new"}]))
    part = read_release(benchmark, tmp_path / "short.json", partial=True)
    assert (len(part.rows), part.is_partial) == (43, True)
    assert open_benchmark("k12").settings.release.rows == 500
