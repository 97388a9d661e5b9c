"""The format rule against hand-made responses."""

import pytest

from mmeureka_jax.rewards.rules.format import MIN_ZERO_THOUGHT, follows_format

LONG = "x" * MIN_ZERO_THOUGHT


@pytest.mark.parametrize(
    ("response", "instruct", "zero"),
    [
        (f"<think>{LONG}</think><answer>5</answer>", 1.0, 1.0),
        (f"<think>\n{LONG}\n</think>\n\n<answer>\n5\n</answer>\n", 1.0, 1.0),
        (f"<think>{LONG[1:]}</think><answer>5</answer>", 1.0, 0.0),
        (f"<think>{LONG[1:]}  </think><answer>5</answer>", 1.0, 0.0),
        (f"Well: <think>{LONG}</think><answer>5</answer>", 1.0, 0.0),
        (f"<think>{LONG}</think><answer>5</answer> Done.", 1.0, 0.0),
        (f"<think>{LONG}</think> so <answer>5</answer>", 0.0, 0.0),
        (f"<answer>5</answer><think>{LONG}</think>", 0.0, 0.0),
        (f"<think>{LONG}</think><answer> </answer>", 0.0, 0.0),
        ("<think> \n</think><answer>5</answer>", 0.0, 0.0),
        (f"<think>{LONG}<answer>5</answer></think>", 0.0, 0.0),
        (f"<think>{LONG}</think><answer>4</answer><answer>5</answer>", 0.0, 0.0),
        (f"<think>a</think><think>{LONG}</think><answer>5</answer>", 0.0, 0.0),
        (f"<think>{LONG}</think><answer>5", 0.0, 0.0),
        ("5", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_format(response, instruct, zero):
    assert follows_format(response, style="instruct") == instruct
    assert follows_format(response, style="zero") == zero


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("<step>2 + 3</step>\n<step>= 5</step>\n<answer>5</answer>", 1.0),
        ("\n<step> 2 + 3\n= 5 </step><answer>\n5\n</answer>\n", 1.0),
        ("<step>a < b</step>" * 40 + "<answer>5</answer>", 1.0),
        ("<answer>5</answer>", 0.0),
        ("<step>a</step>", 0.0),
        ("<step>a</step>\n<step>b</step>", 0.0),
        ("<step> </step><answer>5</answer>", 0.0),
        ("<step>a</step><step></step><answer>5</answer>", 0.0),
        ("<step>a</step><answer>\n</answer>", 0.0),
        ("<step>a</step> so <answer>5</answer>", 0.0),
        ("Well: <step>a</step><answer>5</answer>", 0.0),
        ("<step>a</step><answer>5</answer>.", 0.0),
        ("<step>a</step><answer>5</answer><answer>5</answer>", 0.0),
        ("<step>a</step><answer>4</answer><step>b</step><answer>5</answer>", 0.0),
        ("<answer>5</answer><step>a</step>", 0.0),
        ("<step>a<step>b</step></step><answer>5</answer>", 0.0),
        ("<step>a <answer>5</answer></step><answer>5</answer>", 0.0),
        ("<step>a</step><answer><step>b</step>5</answer>", 0.0),
        ("<step><think>a</think></step><answer>5</answer>", 0.0),
        ("<step>a<answer>5</answer>", 0.0),
        ("<step>a</step><answer>5", 0.0),
        ("<think>a</think><answer>5</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_the_form_of_steps(response, score):
    assert follows_format(response, style="steps") == score
