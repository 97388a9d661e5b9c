"""Which text of a response counts as its answer."""

import pytest

from mmeureka_jax.data.steps import begun_solution
from mmeureka_jax.rewards.accuracy import accuracy
from mmeureka_jax.rewards.answers.extraction import answer_text


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("<think>4</think><answer>5</answer>", 1.0),
        ("<think>5</think><answer>4</answer>", 0.0),
        ("<answer>5</answer><answer>4</answer>", 1.0),  # the first block counts
        ("<answer>4</answer><answer>5</answer>", 0.0),
        ("<answer>\n5\n</answer>", 1.0),  # on any number of lines
        ("<answer>\n4\n</answer> so 5", 0.0),
        ("<answer>4\n</answer><answer>\n5", 0.0),
        ("<answer></answer> 5", 0.0),  # empty tags are an answer
        ("5 <answer>no idea</answer>", 0.0),
        ("<think>a</think><ANSWER>5</ANSWER>", 1.0),
        ("<think>a</think><answer>5</answer", 1.0),  # cut in the tag
        ("<think>a</think><answer>5", 1.0),
        ("<answer><answer>5</answer></answer>", 1.0),
        ("<think>maybe <answer>4</answer></think><answer>5</answer>", 1.0),  # a thought may quote tags
        ("<think>first </think> and then <answer>4</answer></think><answer>5</answer>", 1.0),
        ("<think>t</think><answer></think><answer>5</answer>", 0.0),  # tags within an answer do not begin another
        ("so it is 5</think><answer>5</answer>", 1.0),  # the prompt began the thought
        ("<think>2 + 3, so the answer is 5.", 0.0),  # cut in the middle of the thought
        ("<think>t <answer>5</answer>", 0.0),
        (r"<answer>Since $3+2=5$ and $4<5$, the answer is $\boxed{5}$</answer>", 1.0),
        (r"<answer>\boxed{3}\boxed{5}</answer>", 0.0),
        (r"<think>\boxed{5}</think><answer>I do not know</answer>", 0.0),
        ("<answer>5</answer><|im_end|>", 1.0),
        ("<answer>5<|im_end|>", 1.0),
        ("So the answer is 5.", 1.0),  # without tags: what the response states in so many words
        ("First 4, then 5. **Answer: 5**", 1.0),
        ("First 5, but then the answer is $6$.", 0.0),
        ("The wrong answer is 5.", 0.0),
        ("The answer is 4. No, the answer is 5.", 0.0),
        (r"The area is \boxed{4}. **Answer: 5**", 1.0),  # whichever comes later
        (r"Answer: 4. So it is \boxed{5}.", 1.0),
        ("2 + 3 = 5\nThe total is 5.", 1.0),  # or its last sentence
        ("one two three 5", 0.0),
        ("答案：5", 1.0),
        ("nothing", 0.0),
        ("", 0.0),
    ],
)
def test_the_instruct_answer(response, score):
    assert accuracy(response, "5", "instruct") == score


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (r"so \boxed{5}", 1.0),
        (r"\boxed{4} no, \boxed{5}", 1.0),  # the last one
        (r"\boxed{5} no, \boxed{4}", 0.0),
        (r"\boxed{5} and \boxed{4", 0.0),  # a box that never closes takes the one before it back
        (r"$\boxed{\frac{10}{2}}$", 1.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{3, 4, 5}", 0.0),
        (r"\boxed{\boxed{5}}", 1.0),
        (r"\boxed{\boxed{4},\boxed{5}}", 0.0),
        (r"\boxed{4}, \boxed{5}", 0.0),  # boxes side by side are a list
        (r"\boxed{4} or \boxed{5}", 0.0),
        (r"\boxed{5}, \boxed{5}", 1.0),
        (r"\fbox{5}", 1.0),
        (r"\boxed 5", 1.0),
        (r"It is not \boxed{5}", 0.0),  # what stands around a box may change it
        (r"It cannot be \boxed{5}", 0.0),
        (r"at least \boxed{5}", 0.0),
        (r"x > \boxed{5}", 0.0),
        (r"-\boxed{5}", 0.0),
        (r"\boxed{5}\times 10^3", 0.0),
        (r"\sqrt{\boxed{5}}", 0.0),
        (r"\boxed{5} or 6", 0.0),
        (r"\boxed{5} is wrong", 0.0),
        (r"x = \boxed{5} cm.", 1.0),
        (r"**Final answer**" "\n" r"\boxed{5}", 1.0),
        (r"<think>so \boxed{5}</think><answer>I do not know</answer>", 0.0),
        (r"<think>so \boxed{5}", 0.0),
        (r"<think>so \boxed{4}</think><answer>\boxed{5}</answer>", 1.0),
        ("<answer>5</answer>", 0.0),
        ("5", 0.0),
    ],
)
def test_the_boxed_answer(response, score):
    assert accuracy(response, "5", "boxed") == score


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("<step>2 + 3</step>\n<answer>5</answer>", 1.0),
        ("<step>5</step>\n<answer>4</answer>", 0.0),
        ("<step>2 + 3</step><answer>The Final Answer is $5$.</answer>", 1.0),
        ("<step>2 + 3</step><answer>\n5\n</answer> Done.", 1.0),
        (r"<step>a</step><answer>Since $3+2=5$ and $4<5$, it is \boxed{5}</answer>", 1.0),
        (r"<step>\boxed{5}</step><answer>4</answer>", 0.0),
        (r"<step>a</step><answer>\boxed{3}\boxed{5}</answer>", 0.0),
        (r"<step>a</step><answer>5 or \boxed{</answer>", 0.0),
        ("<answer>5</answer>", 1.0),
        ("<step>a</step><answer>4</answer><answer>5</answer>", 0.0),  # the first block counts
        ("<step>a</step><answer></answer><answer>5</answer>", 0.0),
        ("<step>say <answer>5</answer></step><answer>4</answer>", 0.0),  # a step may quote tags
        ("<step>say <answer>4</answer></step><answer>5</answer>", 1.0),
        ("<step>say <answer></step><answer>5</answer>", 1.0),
        ("<step>say </answer> <step></step><answer>5</answer>", 1.0),
        ("<answer>5</answer><step>or rather</step>", 0.0),  # a step takes the answer back
        ("<answer>5</answer><step>or rather", 0.0),
        ("<answer>5</answer><step>or rather</step><answer>5</answer>", 0.0),
        ("<step>a</step><step>so <answer>5</answer>", 0.0),  # cut in the middle of a step
        ("<step>a</step><answer>5", 0.0),
        ("<step>a</step><answer>5</answer", 0.0),
        ("<step>a</step>The answer is 5.", 0.0),
        ("<step>a</step>5</answer>", 0.0),
        (r"<step>a</step>\boxed{5}", 0.0),
        ("5", 0.0),
        ("", 0.0),
    ],
)
def test_the_answer_after_steps(response, score):
    assert accuracy(response, "5", "steps") == score


@pytest.mark.parametrize(("drawn", "score"), [("<answer>5</answer>", 1.0), ("<step>b</step>\n<answer>4</answer>", 0.0)])
def test_a_continued_solution_is_judged_whole(drawn, score):
    begun = begun_solution(["2 + 3", "so <answer>4</answer>?"])
    assert accuracy(begun + drawn, "5", "steps") == score
    assert accuracy(begun, "4", "steps") == 0.0


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (r"(1) The area is \boxed{3}. (2) The perimeter is \boxed{5}.", "3; 5"),
        (r"x = \boxed{3} or x = \boxed{5}", "3 or 5"),
        (r"\boxed{3}" "\n" r"\boxed{5}", "3, 5"),
        (r"(2) \boxed{3} (2) \boxed{5}", "5"),
    ],
)
def test_boxes_of_one_answer(response, text):
    assert answer_text(response, "boxed") == text


def test_a_choice_in_a_response_without_tags():
    assert accuracy("The answer is B.", "B", "instruct") == 1.0
    assert accuracy("It could be A, B, C or D.", "B", "instruct") == 0.0
