"""Which turns the prompt styles touch, and what they ask for."""

import copy

import pytest

from mmeureka_jax.data.prompts import apply_prompt_style
from mmeureka_jax.errors import UserError
from mmeureka_jax.rewards.accuracy import accuracy
from mmeureka_jax.rewards.rules.format import follows_format

IMAGE = {"type": "image"}


def text(value):
    return {"type": "text", "text": value}


def user(*parts):
    return {"role": "user", "content": list(parts)}


def test_plain_changes_nothing():
    messages = [user(text("a"), IMAGE, text("")), {"role": "assistant", "content": [text("b")]}]
    assert apply_prompt_style(messages, "plain") == messages


def test_instruct_asks_in_the_user_turn_before_the_question():
    messages = [user(IMAGE, IMAGE, text("What is $x$?"))]
    before = copy.deepcopy(messages)
    (turn,) = apply_prompt_style(messages, "instruct")
    assert messages == before
    assert turn["role"] == "user" and turn["content"][:2] == [IMAGE, IMAGE] and len(turn["content"]) == 3
    prompt = turn["content"][2]["text"]
    assert prompt.endswith("Question: What is $x$?")
    for tag in ("<think>", "</think>", "<answer>", "</answer>", "$...$"):
        assert tag in prompt
    assert "boxed" not in prompt


def test_zero_asks_for_tags_in_the_system_turn_and_a_box_in_the_user_s():
    system, turn = apply_prompt_style([user(IMAGE, text("Q?"))], "zero")
    assert system["role"] == "system" and "User" in system["content"][0]["text"]
    assert "<think>" in system["content"][0]["text"] and "</answer>" in system["content"][0]["text"]
    assert turn["content"][0] == IMAGE
    assert turn["content"][1]["text"].startswith("Answer the following question: Q?")
    assert turn["content"][1]["text"].endswith("\\boxed{}.")


def test_cpgd_leaves_the_user_turn_and_boxes_the_answer():
    messages = [user(IMAGE, text("Q?"))]
    system, turn = apply_prompt_style(messages, "cpgd")
    assert turn == messages[0]
    assert "\\boxed{}" in system["content"][0]["text"] and "\\boxed{2}" in system["content"][0]["text"]
    assert "<think>" in system["content"][0]["text"]


def test_steps_shows_a_solution_that_the_rules_take():
    (turn,) = apply_prompt_style([user(IMAGE, text("Q?"))], "steps")
    assert turn["content"][0] == IMAGE
    prompt = turn["content"][1]["text"]
    assert prompt.endswith("\nQuestion: Q?")
    example = prompt[prompt.index(":\n") + 2 : prompt.rindex("\nQuestion")]
    assert follows_format(example, style="steps") == 1.0
    assert accuracy(example, "2", "steps") == 1.0
    assert "<think>" not in prompt


@pytest.mark.parametrize("style", ["instruct", "zero", "cpgd", "steps"])
def test_only_the_last_user_turn_is_styled(style):
    shots = [user(text("1?")), {"role": "assistant", "content": [text("one")]}]
    styled = apply_prompt_style([*shots, user(text("2?"))], style)
    assert styled[-3:-1] == shots
    assert "2?" in styled[-1]["content"][0]["text"]


def test_pictures_between_texts_keep_their_places():
    (turn,) = apply_prompt_style([user(IMAGE, text("A:"), IMAGE, text("B:"), IMAGE)], "instruct")
    kinds = [part["type"] for part in turn["content"]]
    assert kinds == ["image", "text", "image", "text", "image"]
    assert turn["content"][1]["text"].endswith("Question: A:") and turn["content"][3] == text("B:")
    _, turn = apply_prompt_style([user(IMAGE, text("A:"), IMAGE)], "zero")
    assert [part["type"] for part in turn["content"]] == ["image", "text", "image", "text"]


def test_a_turn_without_text_gets_the_instructions_after_its_picture():
    (turn,) = apply_prompt_style([user(IMAGE)], "instruct")
    assert [part["type"] for part in turn["content"]] == ["image", "text"]


@pytest.mark.parametrize("style", ["zero", "cpgd"])
def test_a_system_turn_of_the_row_is_kept_after_the_styles_own(style):
    messages = [{"role": "system", "content": [text("Be brief.")]}, user(text("Q"))]
    system, _ = apply_prompt_style(messages, style)
    (own,) = apply_prompt_style([user(text("Q"))], style)[0]["content"]
    assert system["content"] == [text(own["text"] + "\n\nBe brief.")]
    assert messages[0]["content"] == [text("Be brief.")]


def test_unknown_styles_and_missing_user_turns_are_user_errors():
    with pytest.raises(UserError, match="'instuct' is not one of plain, instruct, zero, cpgd"):
        apply_prompt_style([user(text("Q"))], "instuct")
    with pytest.raises(UserError, match="no user turn"):
        apply_prompt_style([{"role": "system", "content": [text("Q")]}], "instruct")
