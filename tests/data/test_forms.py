"""What each known form of rows says: turns, pictures and their places, answer, solution."""

import json
from decimal import Decimal
from pathlib import Path

import pytest

from mmeureka_jax.data.forms import TakenApart, form_of, take_apart
from mmeureka_jax.data.record import RowError


def read(row: dict, needs_answer: bool = True) -> TakenApart:
    return take_apart(row, form_of(row), needs_answer=needs_answer)


def flat(taken: TakenApart) -> list[str]:
    """The turns, a text each, with the picture values in their places."""
    pictures = iter(taken.pictures)
    turns = [
        f"{turn['role']}: "
        + "".join(f"[{next(pictures)}]" if p["type"] == "image" else p["text"] for p in turn["content"])
        for turn in taken.messages
    ]
    return turns + [f"left over: {picture}" for picture in pictures]


def says(*turns: str) -> list[dict]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(turns)]


SHAREGPT = [{"from": "human", "value": "<image>How many?"}, {"from": "gpt", "value": "3"}]
R1 = "<think> 1 + 2 </think><answer> 3 </answer>"


@pytest.mark.parametrize(
    ("row", "turns", "answer", "solution"),
    [
        # ShareGPT, LLaVA, VLM-R1
        ({"conversations": SHAREGPT, "images": ["a.png"]}, ["user: [a.png]How many?"], "3", "3"),
        ({"conversations": SHAREGPT, "image": "a.png", "answer": "4"}, ["user: [a.png]How many?"], "4", "3"),
        (
            {"conversations": SHAREGPT + SHAREGPT, "images": ["a.png", "b.png"], "system": "Be brief."},
            ["system: Be brief.", "user: [a.png]How many?", "assistant: 3", "user: [b.png]How many?"], "3", "3",
        ),
        # R1-V
        ({"image": "a.png", "problem": "How many?", "solution": R1}, ["user: [a.png]How many?"], "3", R1),
        # ms-swift
        ({"messages": says("How many?"), "images": ["a.png"], "solution": "3"}, ["user: [a.png]How many?"], "3", "3"),
        ({"messages": says("How many?", R1), "images": ["a.png"]}, ["user: [a.png]How many?"], "3", R1),
        ({"messages": says("How many?", "x"), "solution": "so \\boxed{3}"}, ["user: How many?"], "3", "so \\boxed{3}"),
        ({"query": "<image>How many?", "response": R1, "images": ["a.png"]}, ["user: [a.png]How many?"], "3", R1),
        (
            {"query": "R?", "response": "4", "history": [["Q?", "3"]], "system": "Be brief."},
            ["system: Be brief.", "user: Q?", "assistant: 3", "user: R?"], "4", "4",
        ),
        # OlympiadBench
        (
            {
                "question": "Find $x$ in <image_2>, given <image_1>.", "context": "A triangle.", "solution": ["So 3."],
                "final_answer": ["3"], "image_1": "a.png", "image_2": "b.png", "image_3": None,
            },
            ["user: A triangle.\nFind $x$ in [b.png], given [a.png]."], "3", "So 3.",
        ),
        ({"question": "Both?", "solution": [], "final_answer": ["1", "-1"]}, ["user: Both?"], "1, -1", None),
        # lmms-eval: MathVista, MathVision, MMMU, OCRBench
        ({"question": "Q", "image": "1.jpg", "decoded_image": "a.png", "answer": 3}, ["user: [1.jpg]Q"], "3", None),
        ({"question": "<image1>\nQ", "decoded_image": "a.png", "answer": "3"}, ["user: [a.png]\nQ"], "3", None),
        ({"question": "<image 1> or <image 2>, <image 1>?", "image_1": "a.png", "image_2": "b.png", "answer": "B"},
         ["user: [a.png] or [b.png], image 1?"], "B", None),
        ({"question": "Q", "image": "a.png", "answer": ["3"]}, ["user: [a.png]Q"], "3", None),
        # TRL, verl
        ({"prompt": says("Q"), "image": "a.png", "solution": R1}, ["user: [a.png]Q"], "3", R1),
        ({"prompt": "Q", "solution": R1}, ["user: Q"], "3", R1),
        ({"prompt": says("Q"), "reward_model": {"ground_truth": 3.5}}, ["user: Q"], "3.5", None),
        ({"prompt": "Q", "reward_model": {"ground_truth": "4"}, "answer": "5"}, ["user: Q"], "4", None),
        ({"query": "Q", "response": "\\boxed{5}", "solution": "4"}, ["user: Q"], "4", "4"),
        # MM-EUREKA with pictures under the other form's column
        ({"conversations": says("Q"), "images": ["a.png"], "answer": "3"}, ["user: [a.png]Q"], "3", None),
        ({"message": json.dumps(says("Q")), "image_urls": ["a.png"], "answer": "3"}, ["user: [a.png]Q"], "3", None),
    ],
)  # fmt: skip
def test_rows_of_each_form(row, turns, answer, solution):
    taken = read(row)
    assert flat(taken) == turns
    assert (taken.answer, taken.solution) == (answer, solution)


def test_the_rows_of_the_documentation_say_the_same():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = [json.loads(line) for line in page.splitlines() if line.startswith("{")]
    assert len(rows) == 6
    for row in rows:
        taken = read(row)
        assert taken.answer == "12" and len(taken.pictures) == 1 and flat(taken)[0].startswith("user: [")


def test_of_two_forms_in_a_table_the_one_with_values_is_read():
    assert flat(read({"messages": None, "question": "Q", "answer": "3"})) == ["user: Q"]
    assert flat(read({"messages": says("R"), "question": None, "answer": "3"})) == ["user: R"]


def image(**more) -> dict:
    return {"type": "image", **more}


def text(words: str) -> dict:
    return {"type": "text", "text": words}


@pytest.mark.parametrize(
    ("content", "more", "turn"),
    [
        ([image(image="a.png"), text("Q")], {}, "[a.png]Q"),
        ([image(path="a.png"), text("Q")], {}, "[a.png]Q"),
        ([image(url="a.png"), image(base64="b.png")], {}, "[a.png][b.png]"),
        ([{"type": "image_url", "image_url": {"url": "a.png"}}, text("Q")], {}, "[{'url': 'a.png'}]Q"),
        ([{"type": "input_image", "image_url": "a.png"}, {"type": "input_text", "text": "Q"}], {}, "[a.png]Q"),
        ([image(), text("Q"), image()], {"images": ["a.png", "b.png"]}, "[a.png]Q[b.png]"),
        ([text("Q <image> R")], {"image": "a.png"}, "Q [a.png] R"),
        ([text("<Image 2> or <IMAGE_1>?")], {"images": ["a.png", "b.png"]}, "[b.png] or [a.png]?"),
        ([text("<image_1> or <image_0>?")], {"images": ["a.png", "b.png"]}, "[b.png] or [a.png]?"),
        ([text("<image_3> or <image_1>?")], {"image_1": "a.png", "image_3": "b.png"}, "[b.png] or [a.png]?"),
        ([text("<image_3> or <image_2>?")], {"images": [None, "a.png", "b.png"]}, "[b.png] or [a.png]?"),
        # The chat names its pictures; the column names them again.
        ([image(image="a.png"), text("Q")], {"images": ["a.png"]}, "[a.png]Q"),
        # As many markers as parts: the markers are the places.
        ([image(image="a.png"), text("<image>\nQ")], {}, "[a.png]\nQ"),
        ([image(image="a.png"), image(image="b.png"), text("<image> or <image>?")], {}, "[a.png] or [b.png]?"),
        ([image(), image(), text("<image_2> or <image_1>?")], {"images": ["a.png", "b.png"]}, "[b.png] or [a.png]?"),
        (["Q", image(image="a.png")], {}, "Q[a.png]"),
    ],
)  # fmt: skip
def test_places_of_pictures(content, more, turn):
    row = {"messages": [{"role": "user", "content": content}], "answer": "3"} | more
    assert flat(read(row)) == [f"user: {turn}"]


def test_pictures_that_a_message_brings_itself():
    turns = [{"role": "user", "content": "Q", "images": ["a.png"]}, {"role": "assistant", "content": "3"}]
    turns.append({"role": "user", "content": "And <image>?", "image": "b.png"})
    assert flat(read({"messages": turns, "answer": "3"})) == ["user: [a.png]Q", "assistant: 3", "user: And [b.png]?"]


def test_a_column_that_repeats_the_chats_pictures_is_named():
    row = {"messages": [{"role": "user", "content": [image(image="a.png")]}], "images": ["b.png"], "answer": "3"}
    assert read(row).unread == ("images",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "Q", "left_image": "a.png", "right_image": "b.png"}, "one under 'left_image', 'right_image'"),
        ({"question": "Q", "attachments": ["a.png"]}, "'attachments'; name that column `image`"),
        ({"messages": [{"role": "user", "content": [image(image="a.png"), text("<image> <image>")]}]}, "1 image part"),
        ({"question": "Picture 1: <img>a.png</img> Q"}, "its text shows one by <img>"),
        ({"question": 'Q <img src="a.png"/>'}, "its text shows one by <img src"),
        ({"question": "Q ![figure](images/a.png)"}, "its text shows one by !.figure"),
        ({"question": "<image_placeholder> Q"}, "its text shows one by <image_placeholder>"),
        ({"question": "Q <video>", "videos": None}, "its text shows one by <video>"),
        ({"question": "Q <image src='a.png'>"}, "its text shows one by <image src"),
        ({"question": "Q \\includegraphics[width=3cm]{a.png}"}, "its text shows one by .includegraphics"),
        ({"question": "Q data:image/png;base64,iVBOR"}, "its text shows one by data:image"),
        ({"question": "<image_1> <image_2>", "image_2": "b.png", "image_3": "c.png"}, "holds the images 2, 3; give"),
        ({"question": "<image_1> <image_2>", "images": [None, "b.png", "c.png"]}, "holds the images 2, 3; give"),
        ({"question": "Q", "ground_truth": "3", "answer": None}, "no answer; rename 'ground_truth' to `answer`"),
        ({"question": "Q", "label": ["3"], "answer": None}, "no answer; rename 'label' to `answer` if it is"),
        ({"question": "<image_1> and <image>", "images": ["a.png", "b.png"]}, "some have none"),
        ({"messages": says("<image_1>", "x", "<image_1>"), "images": ["a.png", "b.png"]}, "a number occurs"),
        ({"messages": [{"role": "user", "content": [text("Q") | {"image": "a.png"}]}]}, "has a picture under 'image'"),
        ({"messages": [{"role": "user", "content": "<image> <image>", "image": "a.png"}]}, "other places"),
        ({"messages": [*says("Q"), {"role": "assistant", "content": [image()]}]}, "the assistant's, has a picture"),
        ({"messages": [{"role": "tool", "content": "Q"}]}, "role 'tool'"),
        ({"messages": [{"from": "human", "content": "Q"}]}, "no 'role'"),
        ({"messages": ["Q"]}, "a message is of type str"),
        ({"messages": [{"role": "user", "content": 3}]}, "content of a message is of type int"),
        ({"message": "[" * 5000}, "not valid JSON"),
        ({"question": None}, "'question' is of type NoneType"),
        ({"question": " \n"}, "no question in 'question'"),
        ({"question": "Q", "answer": None, "solution": "It is\nobvious."}, "no answer .its solution has neither"),
        ({"question": "Q", "answer": float("nan")}, "no answer"),
        ({"question": "Q", "answer": float("inf")}, "the answer is inf"),
        ({"question": "Q", "answer": Decimal("NaN")}, "the answer is NaN"),
        ({"question": "Q", "answer": {"value": 3}}, "the answer is of type dict"),
        ({"question": "Q", "answer": b"3"}, "the answer is of type bytes"),
    ],
)  # fmt: skip
def test_rows_that_are_refused(row, reason):
    with pytest.raises(RowError, match=reason):
        read({"answer": "3"} | row)


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (3, "3"), (3.0, "3.0"), (1e-5, "1e-05"), (True, "True"), (Decimal("3.00"), "3.00"), (Decimal("1E+2"), "100"),
        ("nan", "nan"), ("<answer> 3 </answer>", "3"), (R1, "3"), ("so\n#### 1,450 ", "1,450"),
        ("\\boxed{3}", "\\boxed{3}"), ("<answer>4</answer> no, <answer>3</answer>", "3"),
        ("<answer>" * 100_000, "<answer>" * 100_000), ("<answer>" * 100_000 + "3</answer>", "3"),  # in one pass
    ],
)  # fmt: skip
def test_given_answers(value, answer):
    assert read({"question": "Q", "answer": value}).answer == answer
