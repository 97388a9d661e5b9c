"""We-Math: its released forms, what both judges say of each form of answer, and the figures of its chains."""

import base64
import itertools
import json

import numpy as np
import pytest
from helpers.releases import (
    known_release,
    picture,
    recounted,
    released,
    verdicts,
    write_json,
    write_parquet,
    write_tsv,
)

from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.eval.wemath.chains import domains
from mmeureka_jax.eval.wemath.options import gold_answer, options_of
from mmeureka_jax.evaluation.benchmark import open_benchmark
from mmeureka_jax.evaluation.judging import Answer, judge, results_of
from mmeureka_jax.evaluation.release import read_release
from mmeureka_jax.rewards.workers import RewardWorkers

CONCEPTS = [concept for names in domains().values() for concept in names]
OPTIONS = [
    "A. 3 cm;B. 4 cm; C. 5 cm; D. 6 cm; E. No correct answer",
    "A. ①;B．②;C. ③; D. Cannot be determined; E. No correct answer",
    "A. 45° B. 60° ;C. 120°; D. No correct answer",
    "A. B; B. C; C. D; D. E; E. No correct answer",
    "A. 300, 400;B. 400, 300;C. 3000, 4000;D. 4000, 3000; E. No correct answer",
    "A. 8;B. 12;C. 16;D. 24 ;E. 48; F. No correct answer",
]


def row_of(number, steps, step, option=OPTIONS[0], answer="C", concept=CONCEPTS[0]):
    """A row as testmini.json has it."""
    return {
        "ID": f"{steps}steps_{number}",
        "split": "testmini",
        "knowledge concept": concept,
        "question": f"As shown in the figure, what is the length of side {number}? ( )",
        "option": option,
        "answer": answer,
        "image_path": f"{steps}steps/image/{number}-{step}.png",
        "key": f"{steps}steps_{step}",
        "question number": number,
        "knowledge concept description": f"{concept}:\n1. What there is to know.",
    }


def make_rows():
    """Eight chains of two steps and six of three: 48 rows, with options of every form and concepts of every domain."""
    rows = []
    for steps, chains in ((2, 8), (3, 6)):
        for number in range(1, chains + 1):
            names = [CONCEPTS[(7 * len(rows) + 11 * step) % len(CONCEPTS)] for step in range(steps)]
            for step, concept in enumerate([*names, ";".join(names)], 1):
                option = OPTIONS[len(rows) % len(OPTIONS)]
                answer = "ABC"[(number + step) % 3]
                rows.append(row_of(number, steps, "multi" if step > steps else step, option, answer, concept))
    return rows


ROWS = make_rows()


@pytest.fixture(scope="module")
def workers():
    with RewardWorkers(RewardConfig(time_limit=60)) as rewards:
        rewards.validate()
        yield rewards


# To the first option list, where C is right: the response, the letter that the official rule finds, and whether the
# official and our rule call it right.
ANSWERS = [
    ("<Thought process>: <<3 + 2 = 5>> <Answer>: <<C>>", "C", 1, 1),
    ("<Thought process>: 3 + 2 = 5 <Answer>: C", "C", 1, 1),
    ("<Thought process>: <<3 + 2 = 5>>\n<Answer>: <<C. 5 cm>>", "C", 1, 1),
    ("<Thought process>: <<so A?>> <Answer>: <C>", "C", 1, 1),
    ("<Thought process>: <<3 + 2>> <Answer>: <<C", "C", 1, 1),
    ("Answer: C.", "C", 1, 1),
    ("C", "C", 1, 1),
    ("<Answer>: <<B>>", "B", 0, 0),
    ("<Answer>: <<E>>", "E", 0, 0),
    ("<Answer>: <<I>>", None, 0, 0),
    ("Answer: A\nAnswer: C", "C", 1, 0),  # two answers: the last counts, or none
    # The letter is there, but not where the rule looks: after another case of "answer", or another sign.
    ("<think>3 + 2 = 5</think><answer> C </answer>", None, 0, 1),
    ("<think>3 + 2 = 5</think><answer>$C$</answer>", None, 0, 1),
    ("The answer is C.", None, 0, 1),
    ("**Answer**: C", None, 0, 1),
    ("<Answer>: <<(C)>>", None, 0, 1),
    ("<Answer>：<<C>>", None, 0, 1),
    (r"Answer: \boxed{C}", None, 0, 1),
    # The option's text in place of its letter.
    ("<Answer>: <<5 cm>>", None, 0, 1),
    ("<Answer>: <<4 cm>>", None, 0, 0),
    # A word that begins with a letter is taken for it.
    ("<Answer>: <<Cannot be determined>>", "C", 1, 0),
    ("Clearly, it is B.", "C", 1, 0),
    ("Answer: Both B and C", "B", 0, 0),
    ("<Answer>: <<C or D>>", "C", 1, 0),
]


def test_both_judges_on_every_form_of_answer(workers, tmp_path):
    rows = released("wemath", [row_of(1, 2, 1)], tmp_path)
    found = verdicts(rows, [("2steps_1/2steps_1", response) for response, *_ in ANSWERS], workers)
    wanted = [(official, ours, letter) for _, letter, official, ours in ANSWERS]
    assert dict(zip(ANSWERS, found, strict=True)) == dict(zip(ANSWERS, wanted, strict=True))


def test_an_option_never_passes_for_another(workers, tmp_path):
    rows = released("wemath", ROWS, tmp_path)
    asked = []
    for row in ROWS:
        for letter, text in options_of(row).items():
            asked += [(row, letter, f"<Answer>: <<{letter}>>"), (row, letter, f"<Answer>: <<{letter}. {text}>>")]
    responses = [(f"{row['ID']}/{row['key']}", response) for row, _, response in asked]
    for (row, letter, response), (official, ours, _) in zip(asked, verdicts(rows, responses, workers), strict=True):
        assert (official, ours) == 2 * (int(letter == row["answer"]),), response


def test_the_text_of_an_option_counts_where_it_decides():
    options = {letter: options_of({"option": option}) for letter, option in zip("abcdef", OPTIONS, strict=True)}
    assert gold_answer("C", options["a"]) == "(C) 5 cm"
    assert gold_answer("D", options["b"]) == "(D) Cannot be determined"
    assert gold_answer("A", options["c"]) == "(A) 45°"
    assert gold_answer("A", options["d"]) == "A"  # its text is the letter of another option
    assert gold_answer("C", options["e"]) == "C"  # another option has the same numbers in another order
    assert gold_answer("E", options["f"]) == "(E) 48"
    assert gold_answer("A", {"A": "16 equilateral triangles", "B": "16 isosceles triangles"}) == "A"
    assert gold_answer("B", {"A": "x"}) == "B"


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (OPTIONS[1], ["①", "②", "③", "Cannot be determined", "No correct answer"]),
        (OPTIONS[2], ["45°", "60°", "120°", "No correct answer"]),
        ("A. ①; ③;B. ②; ③; C. ④; D. No correct answer", ["①; ③", "②; ③", "④", "No correct answer"]),
        ("A. to get ;C.; B. down to ;C.; C. up to ;C.; D. No", ["to get ;C.", "down to ;C.", "up to ;C.", "No"]),
        ("A. ∠AB;E.; B. ∠AB;C.; C. No.; D. E; E. None", ["∠AB;E.", "∠AB;C.", "No.", "E", "None"]),
    ],
)
def test_options_are_found_in_their_text(text, options):
    assert options_of({"option": text}) == dict(zip("ABCDE", options, strict=False))


def test_options_may_leave_out_a_letter():
    found = options_of({"option": "A. Yes, around ;O.;B. Yes;C. No.; F. No correct answer"})
    assert found == {"A": "Yes, around ;O.", "B": "Yes", "C": "No.", "F": "No correct answer"}


def plain_rates(outcomes):
    """The rates and scores by their definitions: outcomes are `(steps, whole)` of booleans."""
    count = len(outcomes)
    ik = sum(not all(steps) and not whole for steps, whole in outcomes)
    ig = sum(all(steps) and not whole for steps, whole in outcomes)
    rates = {"IK": ik / count, "IG": ig / count}
    for name, knows in (("strict", all), ("loose", any)):
        cm = sum(knows(steps) and whole for steps, whole in outcomes)
        rm = sum(not knows(steps) and whole for steps, whole in outcomes)
        rates[f"CM ({name})"] = cm / count
        rates[f"RM ({name})"] = rm / count
        rates[f"RM rate ({name})"] = rm / (cm + rm) if cm + rm else 0.0
        rates[f"score ({name})"] = (count - ik - 0.5 * ig - rm) / count
    return rates


def figures_of(outcomes):
    """What the benchmark makes of outcomes, a chain each."""
    rows = []
    right = []
    for number, (steps, whole) in enumerate(outcomes):
        keys = [*range(1, len(steps) + 1), "multi"]
        rows += [row_of(number, len(steps), key) for key in keys]
        right += [float(one) for one in [*steps, whole]]
    return dict(open_benchmark("wemath").figures(rows, right))


EVERY_OUTCOME = [
    (outcome[:-1], outcome[-1]) for steps in (2, 3) for outcome in itertools.product([False, True], repeat=steps + 1)
]


@pytest.mark.parametrize("outcomes", [*([one] for one in EVERY_OUTCOME), EVERY_OUTCOME, 3 * EVERY_OUTCOME[5:17]])
def test_rates_and_scores_equal_a_count(outcomes):
    found = figures_of(outcomes)
    wanted = plain_rates(outcomes)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)
    assert found["IK"] + found["IG"] + found["CM (loose)"] + found["RM (loose)"] == pytest.approx(1)


def test_no_whole_problem_right_divides_by_nothing():
    found = figures_of([((True, True), False), ((False, True, True), False)])
    assert (found["RM rate (strict)"], found["RM rate (loose)"]) == (0.0, 0.0)
    assert found["score (strict)"] == found["score (loose)"] == 0.25


@pytest.mark.parametrize("steps", [2, 3])
def test_rates_of_samples_are_means_over_their_combinations(steps):
    samples = np.random.default_rng(steps).integers(0, 2, (5, steps + 1, 2)).astype(bool)  # chain, problem, sample
    shares = [(tuple(chain[:-1].mean(1)), chain[-1].mean()) for chain in samples]
    found = figures_of(shares)
    combinations = [
        (outcome[:-1], outcome[-1]) for chain in samples for outcome in itertools.product(*chain)
    ]  # fmt: skip
    wanted = plain_rates(combinations)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_breakdowns_and_figures_equal_a_recount(workers, tmp_path):
    rows = released("wemath", ROWS, tmp_path)
    names = [row.id for row in rows.rows]
    letters = [("ABC" * 2)[len(name) % 3] if index % 3 else "B" for index, name in enumerate(names)]
    responses = [Answer(name, f"<Answer>: <<{letter}>>") for name, letter in zip(names, letters, strict=True)]
    judged = judge(rows, responses, workers)
    results = results_of(rows, judged)
    by_steps = {
        "one-step": [name for name in names if not name.endswith("multi")],
        "two-step": [name for name in names if name.endswith("2steps_multi")],
        "three-step": [name for name in names if name.endswith("3steps_multi")],
    }
    wanted = {steps: recounted(judged, own) for steps, own in by_steps.items()}
    assert results["breakdowns"]["steps"] == {steps: pytest.approx(scores) for steps, scores in wanted.items()}
    concepts = {}
    for row, name in zip(ROWS, names, strict=True):
        if not name.endswith("multi"):
            concepts.setdefault(row["knowledge concept"], []).append(name)
    counted = {concept: recounted(judged, own) for concept, own in concepts.items()}
    assert results["breakdowns"]["knowledge concept"] == {key: pytest.approx(one) for key, one in counted.items()}
    for judged_by in ("official", "ours"):
        figures = results["figures"][judged_by]
        for steps, figure in zip(by_steps, ("S1", "S2", "S3"), strict=True):
            assert figures[figure] == pytest.approx(wanted[steps][judged_by])
        for domain, own in domains().items():
            means = [counted[concept][judged_by] for concept in own if concept in counted]
            assert (domain in figures) == bool(means)
            assert not means or figures[domain] == pytest.approx(sum(means) / len(means))
    assert 0 < results["official"] < 1
    assert results["unparsed"] == 0


def test_a_domain_is_the_mean_of_its_concepts_not_of_its_rows():
    first, second = domains()["Angles and Length"]
    rows = [row_of(number, 2, 1, concept=first) for number in range(3)] + [row_of(4, 2, 1, concept=second)]
    figures = open_benchmark("wemath").figures(rows, [1.0, 1.0, 1.0, 0.0])
    assert figures == {"S1": 0.75, "Angles and Length": 0.5}  # and no rate: no chain is complete


def test_there_are_12_domains_of_67_concepts():
    assert len(domains()) == 12
    assert len(CONCEPTS) == len(set(CONCEPTS)) == 67


def test_chains_that_a_part_cuts_count_in_no_rate(workers, tmp_path):
    file = write_json(tmp_path / "testmini.json", ROWS[:4])  # a chain of two steps, and a step of the next
    rows = read_release(open_benchmark("wemath"), file, partial=True)
    answers = [Answer(row.id, f"<Answer>: <<{row.columns['answer']}>>") for row in rows.rows[:3]]
    answers.append(Answer(rows.rows[3].id, "<Answer>: <<E>>"))
    results = results_of(rows, judge(rows, answers, workers))
    assert results["partial"] is True
    assert results["figures"]["official"]["score (strict)"] == 1.0
    assert results["figures"]["official"]["S1"] == pytest.approx(2 / 3)
    assert "S3" not in results["figures"]["official"]


def tsv_rows():
    """The rows as VLMEvalKit's table has them: options in columns, pictures in base64."""
    rows = []
    for index, row in enumerate(ROWS):
        options = {letter: options_of(row).get(letter, "") for letter in "ABCDEFG"}
        kept = {key: row[key] for key in ("question", "answer", "knowledge concept", "key", "ID")}
        hint = {"hint": "Now, we require you to solve", "requirement": "Regarding the format"}
        rows.append({"index": index, "image": base64.b64encode(picture(index)).decode(), **options, **kept, **hint})
    return rows


def test_every_released_form_asks_the_same(tmp_path):
    embedded = [{**row, "image_path": {"bytes": picture(i), "path": "1-1.png"}} for i, row in enumerate(ROWS)]
    for row in ROWS:
        file = tmp_path / row["image_path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture())
    files = [
        write_json(tmp_path / "testmini.json", ROWS),
        write_parquet(tmp_path / "testmini-00000-of-00001.parquet", embedded),
        write_tsv(tmp_path / "WeMath.tsv", tsv_rows()),
    ]
    asked = []
    for file in files:
        rows = read_release(known_release("wemath", ROWS), file)
        problems = [rows.problem(row) for row in rows.rows]
        assert all(len(problem.images) == 1 for problem in problems)
        asked.append([(problem.id, problem.messages, problem.answer) for problem in problems])
        json.dumps([row.plain for row in rows.rows])  # what the processes that judge are given
    assert asked[0] == asked[1] == asked[2]
    name, messages, answer = asked[0][0]
    picture_first, text = messages[0]["content"]
    assert (name, picture_first, answer) == ("2steps_1/2steps_1", {"type": "image"}, "(C) 5 cm")
    assert "side 1? ( )\nOptions:\nA. 3 cm\nB. 4 cm\n" in text["text"]
    assert text["text"].endswith("<Thought process>: <<your thought process>> <Answer>: <<your option>>")


def test_what_is_not_the_release_is_refused(tmp_path):
    benchmark = known_release("wemath", ROWS)
    k12 = [{"id": "1", "question": "q", "answer": "3", "image_path": "images/1.png"}]
    with pytest.raises(UserError, match=r"k12.json.*no ID, key, knowledge concept, only id, question.*testmini.json"):
        read_release(benchmark, write_json(tmp_path / "k12.json", k12))
    with pytest.raises(UserError, match=r"47 rows, but We-Math \(testmini\) has 48"):
        read_release(benchmark, write_json(tmp_path / "short.json", ROWS[1:]))
    other = [{**row, "ID": row["ID"].replace("_1", "_91")} for row in ROWS]
    with pytest.raises(UserError, match="other ids, but"):
        read_release(benchmark, write_json(tmp_path / "other.json", other))
    (tmp_path / "both").mkdir()
    for split in ("test.json", "testmini.json"):
        write_json(tmp_path / "both" / split, ROWS)
    with pytest.raises(UserError, match=r"the id '2steps_1/2steps_1' is that of .*test.json.* too; give one split"):
        read_release(benchmark, tmp_path / "both")
    assert open_benchmark("wemath").settings.release.rows == 1740
